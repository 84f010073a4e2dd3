"""A tiny space with a mixture, for tests of one-shot search: one of its operations sees the input, the others do not."""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from metasearch.learners.prototypical import Prototypical
from metasearch.nets import Block, Net, Params
from metasearch.nets.init import weights
from metasearch.nets.mixture import begin, read
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Space
from metasearch.tasks import TaskShape

OPTIONS = ("none", "blind", "see", "dim")
RELAXED = ("a", "b")
SPACE = Space({"a": Choice(OPTIONS), "b": Choice(OPTIONS), "width": Choice((3, 4))})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    return _recipe(config, shape, {path: OPTIONS.index(str(config[path])) for path in RELAXED})


def sized(config: Config, shape: TaskShape) -> Recipe:
    """Of the operations that are not chosen there are no weights: at width 4 "see" and "dim" have 24, "blind" 8, "none" none."""
    made, keys = recipe(config, shape), tuple(f"net/{path}/{config[path]}/" for path in RELAXED)

    def init(generator: Generator) -> Params:
        return {k: v for k, v in made.net.init(generator).items() if k.startswith(keys)}

    return replace(made, net=made.net._replace(init=init))


def relaxed(config: Config, shape: TaskShape) -> Recipe:
    return _recipe(config, shape, {})


def _recipe(config: Config, shape: TaskShape, fixed: dict[str, int]) -> Recipe:
    """The features are the sum of two edges from the input; "blind" gives every input the same, "dim" a tenth of what is seen."""
    width, inputs = int(config["width"]), shape.x[0]

    def init(generator: Generator) -> Params:
        params: Params = {}
        for path in RELAXED:
            params |= weights(f"{path}/see", (width, inputs), "torch", generator)
            params |= weights(f"{path}/dim", (width, inputs), "torch", generator)
            params |= weights(f"{path}/blind", (width, 1), "torch", generator)
        return params if fixed else params | begin(RELAXED, len(OPTIONS), generator)

    def edge(params: Params, path: str, x: Tensor) -> Tensor:
        def option(number: int) -> Tensor:
            if number == 0:
                return x.new_zeros(len(x), width)
            key = f"net/{path}/{OPTIONS[number]}"
            seen = x[:, :1] * 0 if number == 1 else x
            return (0.1 if number == 3 else 1.0) * torch.tanh(seen @ params[f"{key}/weight"].T + params[f"{key}/bias"])

        chosen = fixed.get(path)
        shares = read(params, path) if chosen is None else chosen
        if isinstance(shares, int):
            return option(shares)
        return torch.stack([shares[i] * option(i) for i in range(len(OPTIONS))]).sum(0)

    def apply(params: Params, x: Tensor) -> Tensor:
        return edge(params, "a", x) + edge(params, "b", x)

    net = Net.of(init, [Block("edges", apply)], outputs=None, norm="none", features=width)
    return Recipe(net, Prototypical(), adam(0.01), meta_batch=4, steps=30)
