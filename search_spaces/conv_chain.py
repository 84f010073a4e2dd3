"""Convolutional layers with skip connections, as many as it takes: the space of neural architecture search by reinforcement.

Zoph, Le. "Neural Architecture Search with Reinforcement Learning." ICLR 2017. https://arxiv.org/abs/1611.01578 (section 4.1)

A layer is a convolution, a norm and a ReLU. It reads the outputs of those earlier layers j with `skip_<j>`, concatenated in
depth, or the picture if there are none; smaller maps are padded with zeros. What no layer reads is concatenated for the
classifier, which sees the means over space. Strides are those of the paper's second experiment; its first has none.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.graph import Edge, Graph, Node
from metasearch.nets import Net, Params
from metasearch.nets.activation import activation
from metasearch.nets.init import weights
from metasearch.nets.norm import Norm
from metasearch.nets.operations import convolve
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Int, Repeat, Space, items, origin
from metasearch.tasks import TaskShape
from search_spaces._few_shot import Way, few_shot
from search_spaces._orders import one_order

MOST_LAYERS = 15
NORM = Norm("batch")


def _layer(number: int) -> Space:
    return Space({
        "height": Choice((1, 3, 5, 7)),
        "width": Choice((1, 3, 5, 7)),
        "filters": Choice((24, 36, 48, 64)),
        "stride": Choice((1, 2, 3)),
        **{f"skip_{j}": Choice((False, True)) for j in range(number)},
    })


SPACE = Space({"layer": Repeat(Int(2, MOST_LAYERS), tuple(_layer(i) for i in range(MOST_LAYERS)))})


def recipe(config: Config, shape: TaskShape, *, way: Way = "prototypical") -> Recipe:
    """500 outer steps of 4 tasks."""
    return few_shot(lambda outputs: _net(config, shape.x, outputs), shape, way)


def mutations(config: Config, rng: np.random.Generator, space: Space = SPACE) -> tuple[Config, dict[str, str]]:
    """Space.mutate, after which layers still read the layers that they read, although those may have other numbers now.
    space: any with such layers.

    No layer that was there reads a new one, so that all of them keep their shapes, and their weights where they are inherited.
    """
    child, moved = space.mutate(config, rng)
    count = int(child["layer.count"])
    if count == config["layer.count"]:
        return child, moved
    parents = [origin(f"layer.{i}", moved) for i in range(count)]
    came = [int(str(parent).rpartition(".")[2]) if f"{parent}.height" in config else None for parent in parents]
    for i, old in enumerate(came):
        if old is not None:
            child |= {
                f"layer.{i}.skip_{j}": source is not None and config[f"layer.{old}.skip_{source}"]
                for j, source in enumerate(came[:i])
            }
    return child, moved


def canonical(config: Config) -> Config:
    """One of the configs that differ only in the numbers of their layers: what is concatenated has a weight for every channel."""
    layers = items(config, "layer")
    order = one_order(
        [tuple(int(layer[key]) for key in ("height", "width", "filters", "stride")) for layer in layers],
        [_read(layer, i) for i, layer in enumerate(layers)],
    )
    found: Config = {"layer.count": len(layers)}
    for i, number in enumerate(order):
        layer = layers[number]
        found |= {f"layer.{i}.{key}": value for key, value in layer.items() if not key.startswith("skip_")}
        read = {order.index(j) for j in _read(layer, number)}
        found |= {f"layer.{i}.skip_{j}": j in read for j in range(i)}
    return SPACE.normal(found)


def graph(config: Config) -> list[Graph]:
    """What every layer reads, and what the classifier does."""
    layers = items(config, "layer")
    read = [_read(layer, i) for i, layer in enumerate(layers)]
    names = [f"layer {i}" for i in range(len(layers))]
    edges = [Edge(names[j], names[i]) for i, sources in enumerate(read) for j in sources]
    edges += [Edge("picture", names[i]) for i, sources in enumerate(read) if not sources]
    edges += [Edge(names[i], "output") for i in _unused(read)]
    inside = [
        Node(name, f"conv {layer['height']}x{layer['width']}, {layer['filters']}, /{layer['stride']}")
        for name, layer in zip(names, layers, strict=True)
    ]
    return [Graph("net", (Node("picture", role="input"), *inside, Node("output", "concat", "output")), tuple(edges))]


def _read(layer: Config, number: int) -> list[int]:
    return [j for j in range(number) if layer[f"skip_{j}"]]


def _unused(read: list[list[int]]) -> list[int]:
    """Layers that no layer reads; the last one is always among them."""
    used = {j for sources in read for j in sources}
    return [i for i in range(len(read)) if i not in used]


def _net(config: Config, x_shape: tuple[int, ...], outputs: int | None) -> Net:
    if len(x_shape) != 3:
        raise ValueError(f"convolutions take pictures of shape (C, H, W), but got {x_shape}. Use an mlp for vectors.")
    layers = items(config, "layer")
    read = [_read(layer, i) for i, layer in enumerate(layers)]
    filters = [int(layer["filters"]) for layer in layers]
    unused = _unused(read)
    features = sum(filters[i] for i in unused)
    relu = activation("relu")

    def begin(generator: Generator) -> Params:
        params: Params = {}
        for i, layer in enumerate(layers):
            inputs = sum(filters[j] for j in read[i]) or x_shape[0]
            shape = (filters[i], inputs, int(layer["height"]), int(layer["width"]))
            params[f"net/layer.{i}/weight"] = weights(f"layer.{i}", shape, "torch", generator)[f"net/layer.{i}/weight"]
            params |= NORM.init(f"layer.{i}", filters[i])
        return params if outputs is None else params | weights("head", (outputs, features), "torch", generator)

    def body(params: Params, x: Tensor) -> Tensor:
        made: list[Tensor] = []
        for i, layer in enumerate(layers):
            stride = int(layer["stride"])
            z = _together([made[j] for j in read[i]] or [x])
            z = convolve(z, params[f"net/layer.{i}/weight"], (stride, stride))
            made.append(relu(NORM.apply(params, f"layer.{i}", z)))
        return torch.cat([made[i].mean((2, 3)) for i in unused], 1)

    norm = NORM.mode("transductive")
    if outputs is None:
        return Net(begin, body, norm, features)

    def head(params: Params, z: Tensor) -> Tensor:
        return F.linear(z, params["net/head/weight"], params["net/head/bias"])

    return Net(begin, lambda params, x: head(params, body(params, x)), norm, features, body, head, outputs)


def _together(maps: list[Tensor]) -> Tensor:
    """[M, C_i, H_i, W_i] each -> [M, sum C_i, max H_i, max W_i], zeros below and to the right of smaller ones."""
    height, width = (max(z.shape[side] for z in maps) for side in (2, 3))
    return torch.cat([F.pad(z, (0, width - z.shape[3], 0, height - z.shape[2])) for z in maps], 1)
