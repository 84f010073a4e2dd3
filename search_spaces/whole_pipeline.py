"""Everything at once: the layers of a net, its meta-learner, the hyper-parameters of both loops, and what augments where.

One `learner` opens its inner loop's numbers, one place of an episode its sub-policies (`none`: no augmentation), and layers are
as many as it takes, as in NAS with reinforcement learning (search_spaces/conv_chain.py, with fewer and smaller layers). Any
strategy searches it; a controller (reinforce, ppo, autoaugment) wants `bins` for the rates.
    metasearch run glyphs space=whole-pipeline method.name=regularized-evolution "budget={trials=100}"
"""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from metasearch.augment import at_place
from metasearch.graph import Graph
from metasearch.learners import Learner
from metasearch.learners.anil import ANIL
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.objectives.optimizer import Schedule, adam, clipped_norm, constant, cosine, linear
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Dim, Float, Int, Repeat, Space
from metasearch.tasks import TaskShape
from search_spaces import _policies as policies
from search_spaces import conv_chain

MOST_LAYERS = 4
INNER: dict[str, Dim] = {"inner_lr": Float(0.02, 1.0, log=True), "inner_steps": Int(1, 3)}
SCHEDULES: dict[str, Schedule] = {"constant": constant, "cosine": cosine(0.01), "linear": linear(0.01)}


def _layer(number: int) -> Space:
    return Space({
        "height": Choice((3, 5)), "width": Choice((3, 5)), "filters": Choice((16, 32, 48)), "stride": Choice((2, 1)),
        **{f"skip_{j}": Choice((False, True)) for j in range(number)},
    })


SPACE = Space({
    "layer": Repeat(Int(2, MOST_LAYERS), tuple(_layer(i) for i in range(MOST_LAYERS))),
    "learner": Choice({
        "prototypical": Space({"distance": Choice(("euclid", "cosine"))}), "maml": Space(INNER), "anil": Space(INNER),
    }),
    "outer_lr": Float(3e-4, 1e-2, log=True),
    "schedule": Choice(tuple(SCHEDULES)),
    "meta_batch": Choice((2, 4)),
    "augment": Choice({"none": Space({}), **policies.opened(count=2)}),
})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """500 outer steps; trained on few queries a class, since an outer step should be cheap."""
    learner = _learner(config)
    place = str(config["augment"])
    return replace(
        conv_chain.recipe(config, shape, way="maml" if learner.head else "prototypical"),
        learner=learner,
        optimizer=clipped_norm(adam(float(config["outer_lr"]), schedule=SCHEDULES[str(config["schedule"])]), 10.0),
        meta_batch=int(config["meta_batch"]),
        augment=None if place == "none" else at_place(place, policies.policy(config, "augment")),
    )


def mutations(config: Config, rng: np.random.Generator) -> tuple[Config, dict[str, str]]:
    """Of any part; layers go on reading the layers that they read."""
    return conv_chain.mutations(config, rng, SPACE)


def canonical(config: Config) -> Config:
    return config if config["augment"] == "none" else policies.tidy(config, "augment")


def graph(config: Config) -> list[Graph]:
    return conv_chain.graph(config)


def _learner(config: Config) -> Learner:
    if config["learner"] == "prototypical":
        return Prototypical(distance=config["learner.distance"])  # type: ignore[arg-type]  # one of its two names
    inner_lr, inner_steps = float(config["learner.inner_lr"]), int(config["learner.inner_steps"])
    return MAML(inner_lr, inner_steps) if config["learner"] == "maml" else ANIL(inner_lr, inner_steps)
