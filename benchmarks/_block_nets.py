"""The space of architecture_search.py: a Conv-4 whose blocks are searched, and none of whose members outweighs a Conv-4.

A 3x3 convolution and three blocks, 32, 64, 64 and 64 channels wide, each followed by 2x2 pooling as in Conv-4 (Vinyals et al.
2016, https://arxiv.org/abs/1606.04080). In a block y = first(x), and second(y) is added to it: a residual branch that is light,
so that even the heaviest member has fewer parameters than Conv-4 at its usual width of 64. What a search finds may therefore
always be compared with Conv-4, whatever it is. 128,000 members, of which Conv-4 with a narrower first layer is one.

    down0, down1, ... down3    how the maps are halved: "max" or "mean"
    first1, ... first3         "3x3", "3x1" (and 1x3), "sep" (depthwise and pointwise) or "1x1": a channel mixer
    second1, ... second3       "none", "1x1", "deep" (depthwise), "sep" or "mean" (of 3x3)

Operations are ReLU, convolution, norm (metasearch/nets/operations.py).
"""
from __future__ import annotations

import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.learners.prototypical import Prototypical
from metasearch.nets import Block, Net, Params
from metasearch.nets.init import weights
from metasearch.nets.mixture import begin, mixture, read
from metasearch.nets.norm import Norm
from metasearch.nets.operations import Operation, convolve, operation
from metasearch.objectives.optimizer import adam, cosine
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Space
from metasearch.tasks import TaskShape

FIRST = {"3x3": "nor_conv_3x3", "3x1": "conv_3x1_1x3", "sep": "one_sep_conv_3x3", "1x1": "nor_conv_1x1"}
SECOND = {
    "none": "none", "1x1": "nor_conv_1x1", "deep": "depthwise_conv_3x3", "sep": "one_sep_conv_3x3", "mean": "avg_pool_3x3",
}
DOWN = ("max", "mean")
WIDTHS = (32, 64, 64, 64)  # of the first convolution and of the blocks
BLOCKS = range(1, len(WIDTHS))
NORM = Norm("batch")
RATE = 3e-3

SPACE = Space({
    "down0": Choice(DOWN),
    **{
        path: Choice(tuple(options))
        for i in BLOCKS for path, options in ((f"first{i}", FIRST), (f"second{i}", SECOND), (f"down{i}", DOWN))
    },
})
RELAXED = tuple(SPACE.dims)


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """Prototypical Networks on 20-way episodes with 5 queries; a study says for how many steps."""
    return few_shot(_net(config, shape.x, relaxed=False), shape)


def relaxed(config: Config, shape: TaskShape) -> Recipe:
    """Every choice is a mixture of its options."""
    return few_shot(_net(config, shape.x, relaxed=True), shape)


def few_shot(net: Net, shape: TaskShape) -> Recipe:
    optimizer = adam(RATE, schedule=cosine(0.01))
    episode = training_episode(shape)
    return Recipe(net, Prototypical(), optimizer, meta_batch=1, steps=1000, episode=episode, precision="bfloat16")


def training_episode(shape: TaskShape) -> TaskShape:
    return shape._replace(ways=20, shots=1, queries=5)


def graph(config: Config) -> list[tuple[str, str, str]]:
    """(from, to, operation)."""
    edges = [("picture", "0", "3x3")]
    for i in BLOCKS:
        edges += [(str(i - 1), f"{i}a", f"{config[f'down{i - 1}']}, {config[f'first{i}']}"), (f"{i}a", str(i), "skip_connect")]
        if config[f"second{i}"] != "none":
            edges.append((f"{i}a", str(i), str(config[f"second{i}"])))
    return [*edges, (str(BLOCKS[-1]), "output", str(config[f"down{BLOCKS[-1]}"]))]


def _net(config: Config, x_shape: tuple[int, ...], *, relaxed: bool) -> Net:
    if len(x_shape) != 3 or min(x_shape[1:]) < 2 ** len(WIDTHS):
        raise ValueError(f"pictures of at least 16x16 with their channels first are halved four times, but got {x_shape}")

    def option(names: dict[str, str], path: str, before: int, after: int) -> Operation:
        if relaxed:
            return mixture(tuple(names.values()), path, path, before, after, 1, NORM)
        return operation(names[str(config[path])], path, before, after, 1, NORM)

    first = {i: option(FIRST, f"first{i}", WIDTHS[i - 1], WIDTHS[i]) for i in BLOCKS}
    second = {i: option(SECOND, f"second{i}", WIDTHS[i], WIDTHS[i]) for i in BLOCKS}

    def init(generator: Generator) -> Params:
        stem = weights("stem", (WIDTHS[0], x_shape[0], 3, 3), "torch", generator)
        params = {"net/stem/weight": stem["net/stem/weight"]} | NORM.init("stem", WIDTHS[0])
        for i in BLOCKS:
            params |= first[i].init(generator) | second[i].init(generator)
        for path, dim in SPACE.dims.items():
            if relaxed and isinstance(dim, Choice):
                params |= begin((path,), len(dim.values), generator)
        return params

    def halved(params: Params, i: int, x: Tensor) -> Tensor:
        """ReLU and pooling; the last maps are laid flat."""
        share = read(params, f"down{i}") if relaxed else DOWN.index(str(config[f"down{i}"]))
        if isinstance(share, int):
            x = _pooled(share, x)
        else:
            x = share[0] * _pooled(0, x) + share[1] * _pooled(1, x)
        return x.flatten(1) if i == BLOCKS[-1] else x

    def stem(params: Params, x: Tensor) -> Tensor:
        return halved(params, 0, NORM.apply(params, "stem", convolve(x, params["net/stem/weight"])))

    def block(i: int) -> Block:
        def apply(params: Params, x: Tensor) -> Tensor:
            y = first[i].apply(params, x)
            return halved(params, i, y + second[i].apply(params, y))

        return Block(f"block{i}", apply)

    height, width = (side // 2 ** len(WIDTHS) for side in x_shape[1:])
    chain = [Block("stem", stem), *(block(i) for i in BLOCKS)]
    return Net.of(init, chain, outputs=None, norm=NORM.mode("transductive"), features=WIDTHS[-1] * height * width,
                  maps=(WIDTHS[-1], height, width))


def _pooled(down: int, x: Tensor) -> Tensor:
    """The same as pooling what the ReLU lets through."""
    return F.avg_pool2d(F.relu(x), 2) if DOWN[down] == "mean" else F.relu(F.max_pool2d(x, 2))
