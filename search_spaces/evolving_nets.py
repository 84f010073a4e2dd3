"""Nets of any depth, and the mutations of large-scale evolution: from a linear layer to convolutions, strides and skips.

Real et al. "Large-Scale Evolution of Image Classifiers." ICML 2017. https://arxiv.org/abs/1703.01041, section 3.2

    [method]
    name = "large-scale-evolution"     # begins with no layer at all, and calls `mutations`
    steps = 200
    evaluations = 300
    population = 40

Of the eleven mutations ten are here; IDENTITY, which trains on, is the strategy's. RESET-WEIGHTS counts `weights` up, a number
that is part of every key of the net, so that nothing is inherited.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from metasearch.graph import Edge, Graph, Node
from metasearch.learners.prototypical import Prototypical
from metasearch.nets import evolving
from metasearch.objectives.optimizer import adam, constant
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Float, Int, Repeat, Space, items
from metasearch.tasks import TaskShape

__all__ = ["MUTATIONS", "SPACE", "between", "graph", "mutations", "recipe"]

DEPTH = 16  # layers at most
SIZES = (1, 3, 5, 7)
STRIDES = (1, 2, 4)


def _layer(number: int) -> Space:
    """A layer can read what any of the layers before it read."""
    conv = Space({
        "channels": Int(1, 128, log=True), "height": Choice(SIZES), "width": Choice(SIZES), "stride": Choice(STRIDES),
        "act": Choice((True, False)),
    })
    return Space({"kind": Choice({"identity": Space({}), "conv": conv}), "skip": Int(0, number)})


SPACE = Space({
    "learning_rate": Float(1e-5, 1e-1, log=True),  # of Adam; evolution begins at 1e-3
    "weights": Int(0, 999),
    "layers": Repeat(Int(0, DEPTH), tuple(_layer(i) for i in range(DEPTH))),
})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """Prototypical networks on 64 features, 4 tasks a step; the rate is constant: nobody knows how long a lineage trains."""
    net = evolving.evolving(shape.x, 64, [_read(item) for item in items(config, "layers")], f"weights{config['weights']}")
    episode = shape._replace(queries=max(1, min(shape.queries, 5)))
    optimizer = adam(float(config["learning_rate"]), schedule=constant)
    return Recipe(net, Prototypical(), optimizer, meta_batch=4, steps=500, episode=episode)


def graph(config: Config) -> list[Graph]:
    """The chain, and the skips: a layer that has one adds what an earlier layer read to what it reads itself."""
    nodes, edges = [Node("picture", role="input")], []
    for i, layer in enumerate(_read(item) for item in items(config, "layers")):
        if layer.skip:
            edges.append(Edge(nodes[i - layer.skip].name, f"layer {i}"))
        conv = f"conv {layer.height}x{layer.width}, {layer.channels}, /{layer.stride}{'' if layer.act else ', linear'}"
        edges.append(Edge(nodes[-1].name, f"layer {i}"))
        nodes.append(Node(f"layer {i}", conv if layer.channels else "identity"))
    edges.append(Edge(nodes[-1].name, "output"))
    return [Graph("net", (*nodes, Node("output", "linear", "output")), tuple(edges))]


def _read(item: Config) -> evolving.Layer:
    if item["kind"] == "identity":
        return evolving.Layer(skip=int(item["skip"]))
    return evolving.Layer(
        channels=int(item["kind.channels"]), height=int(item["kind.height"]), width=int(item["kind.width"]),
        stride=int(item["kind.stride"]), act=bool(item["kind.act"]), skip=int(item["skip"]),
    )


# -- mutations -----------------------------------------------------------------------------------------------------------------

Layer = evolving.Layer


@dataclass(frozen=True)
class DNA:
    learning_rate: float
    weights: int
    layers: tuple[Layer, ...]

    def config(self) -> Config:
        config: Config = {"learning_rate": self.learning_rate, "weights": self.weights, "layers.count": len(self.layers)}
        for i, layer in enumerate(self.layers):
            config[f"layers.{i}.kind"] = "conv" if layer.channels else "identity"
            if layer.channels:
                for name in ("channels", "height", "width", "stride", "act"):
                    config[f"layers.{i}.kind.{name}"] = getattr(layer, name)
            config[f"layers.{i}.skip"] = layer.skip
        return config

    def with_layer(self, i: int, layer: Layer) -> DNA:
        return replace(self, layers=(*self.layers[:i], layer, *self.layers[i + 1:]))


Moved = dict[str, str]
Change = tuple[DNA, Moved]


def mutations(config: Config, rng: np.random.Generator) -> tuple[Config, dict[str, str]]:
    """One of the ten, uniformly; one that cannot be made here, or changes nothing, is drawn again, as the paper does."""
    dna = DNA(float(config["learning_rate"]), int(config["weights"]), tuple(map(_read, items(config, "layers"))))
    names = list(MUTATIONS)
    while True:
        made = MUTATIONS[names[int(rng.integers(len(names)))]](dna, rng)
        if made is not None and made[0] != dna:
            return made[0].config(), made[1]


def alter_learning_rate(dna: DNA, rng: np.random.Generator) -> Change | None:
    rate = min(max(dna.learning_rate * _factor(rng), 1e-5), 1e-1)
    return replace(dna, learning_rate=rate), {}


def reset_weights(dna: DNA, rng: np.random.Generator) -> Change | None:
    return None if dna.weights == 999 else (replace(dna, weights=dna.weights + 1), {})


def insert_convolution(dna: DNA, rng: np.random.Generator) -> Change | None:
    """3x3, as many channels as its input, stride 1 or 2, with norm and ReLU or linear."""
    place = int(rng.integers(len(dna.layers) + 1))
    before = [layer.channels for layer in dna.layers[:place] if layer.channels]
    channels = before[-1] if before else FIRST
    new = Layer(channels, stride=int(rng.integers(1, 3)), act=bool(rng.integers(2)))
    return _inserted(dna, place, new)


def remove_convolution(dna: DNA, rng: np.random.Generator) -> Change | None:
    place = _convolution(dna, rng)
    return None if place is None else _removed(dna, place)


def alter_stride(dna: DNA, rng: np.random.Generator) -> Change | None:
    """Powers of 2."""
    return _altered(dna, rng, lambda layer: replace(layer, stride=int(rng.choice(STRIDES))))


def alter_channels(dna: DNA, rng: np.random.Generator) -> Change | None:
    return _altered(dna, rng, lambda layer: replace(layer, channels=min(max(round(layer.channels * _factor(rng)), 1), 128)))


def filter_size(dna: DNA, rng: np.random.Generator) -> Change | None:
    """Height or width, odd."""
    size = int(rng.choice(SIZES))
    if rng.integers(2):
        return _altered(dna, rng, lambda layer: replace(layer, height=size))
    return _altered(dna, rng, lambda layer: replace(layer, width=size))


def insert_one_to_one(dna: DNA, rng: np.random.Generator) -> Change | None:
    return _inserted(dna, int(rng.integers(len(dna.layers) + 1)), Layer())


def add_skip(dna: DNA, rng: np.random.Generator) -> Change | None:
    free = [i for i, layer in enumerate(dna.layers) if i and not layer.skip]
    if not free:
        return None
    i = free[int(rng.integers(len(free)))]
    return dna.with_layer(i, replace(dna.layers[i], skip=int(rng.integers(1, i + 1)))), {}


def remove_skip(dna: DNA, rng: np.random.Generator) -> Change | None:
    taken = [i for i, layer in enumerate(dna.layers) if layer.skip]
    if not taken:
        return None
    i = taken[int(rng.integers(len(taken)))]
    return dna.with_layer(i, replace(dna.layers[i], skip=0)), {}


MUTATIONS: dict[str, Callable[[DNA, np.random.Generator], Change | None]] = {
    "alter-learning-rate": alter_learning_rate, "reset-weights": reset_weights, "insert-convolution": insert_convolution,
    "remove-convolution": remove_convolution, "alter-stride": alter_stride, "alter-number-of-channels": alter_channels,
    "filter-size": filter_size, "insert-one-to-one": insert_one_to_one, "add-skip": add_skip, "remove-skip": remove_skip,
}



def between(parent: Config, child: Config) -> str:
    """The name of the mutation that led from the one to the other, as a ledger has them; "identity" if they are equal."""
    a, b = items(parent, "layers"), items(child, "layers")
    if len(b) < len(a):
        return "remove-convolution"
    if len(b) > len(a):
        convolutions = [sum(layer["kind"] == "conv" for layer in layers) for layers in (a, b)]
        return "insert-convolution" if convolutions[1] > convolutions[0] else "insert-one-to-one"
    changed = {path.rpartition(".")[2]: path for path in (*parent, *child) if parent.get(path) != child.get(path)}
    if not changed:
        return "identity"
    name, path = changed.popitem()
    if name == "skip":
        return "add-skip" if child[path] else "remove-skip"
    return {
        "learning_rate": "alter-learning-rate", "weights": "reset-weights", "stride": "alter-stride",
        "channels": "alter-number-of-channels", "height": "filter-size", "width": "filter-size",
    }[name]


FIRST = 16  # channels of a convolution of the picture itself, whose own number (1 or 3) no mutation would leave soon


def _factor(rng: np.random.Generator) -> float:
    """Log-uniform in [1/2, 2]."""
    return math.exp(float(rng.uniform(-math.log(2), math.log(2))))


def _convolution(dna: DNA, rng: np.random.Generator) -> int | None:
    found = [i for i, layer in enumerate(dna.layers) if layer.channels]
    return found[int(rng.integers(len(found)))] if found else None


def _altered(dna: DNA, rng: np.random.Generator, change: Callable[[Layer], Layer]) -> Change | None:
    i = _convolution(dna, rng)
    return None if i is None else (dna.with_layer(i, change(dna.layers[i])), {})


def _inserted(dna: DNA, place: int, new: Layer) -> Change | None:
    """Skips go on reading what they read: the new layer's output is what the layer behind it reads."""
    if len(dna.layers) == DEPTH:
        return None
    node = [n if n <= place else n + 1 for n in range(len(dna.layers) + 1)]  # nodes: what layers read; place itself stays
    layers = [replace(layer, skip=i + (i >= place) - node[i - layer.skip] if layer.skip else 0) for i, layer in
              enumerate(dna.layers)]
    moved = {f"layers.{i + 1}": f"layers.{i}" for i in range(place, len(dna.layers))}
    return replace(dna, layers=(*layers[:place], new, *layers[place:])), moved


def _removed(dna: DNA, place: int) -> Change:
    """What read the removed layer's output now reads its input; a skip that becomes none is gone."""
    node = [n if n <= place else n - 1 for n in range(len(dna.layers) + 1)]
    layers = [replace(layer, skip=i - (i > place) - node[i - layer.skip] if layer.skip else 0) for i, layer in
              enumerate(dna.layers)]
    moved = {f"layers.{i}": f"layers.{i + 1}" for i in range(place, len(dna.layers) - 1)}
    return replace(dna, layers=(*layers[:place], *layers[place + 1:])), moved
