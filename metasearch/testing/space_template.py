"""A search space of your own: what could be tried (SPACE), and what one config means (recipe).

    metasearch spaces check THIS_FILE.py             # samples, mutations, round trips, one training step
    metasearch run study.toml space=THIS_FILE.py     # a search through it

The file holds SPACE and recipe(config, shape), and whatever else you like. Several worker processes import it, so it should do
nothing but define. Where configs are architectures, graph(config) -> [metasearch.graph.Graph, ...] lets `metasearch show`
draw them.
"""
from __future__ import annotations

from typing import Any

from metasearch.learners import Learner
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.norm import Norm
from metasearch.objectives.optimizer import adam, constant, cosine
from metasearch.objectives.recipe import Recipe
from metasearch.space import Choice, Float, Int, Space
from metasearch.tasks import TaskShape

# Four kinds of dimension:
#   Float(low, high, log=True)     a real number; log=True for scales, such as learning rates
#   Int(low, high)                 a whole number, both ends included
#   Choice(("a", "b"))             one of several values, or of several sub-spaces: Choice({"a": Space(...), "b": Space({})})
#   Repeat(Int(1, 4), Space(...))  a variable number of items, such as the layers of a net
SPACE = Space({
    # the net: a Conv-4
    "channels": Choice((16, 32, 64)),
    "activation": Choice(("relu", "leaky_relu", "gelu")),
    # the learner; only the chosen one's own dimensions are part of a config
    "learner": Choice({
        "maml": Space({
            "inner_lr": Float(0.01, 1.0, log=True),
            "inner_steps": Int(1, 5),
            "first_order": Choice((False, True)),
        }),
        "prototypical": Space({}),
    }),
    # the outer loop
    "outer_lr": Float(3e-4, 1e-2, log=True),
    "schedule": Choice(("constant", "cosine")),
})


def recipe(config: dict[str, Any], shape: TaskShape) -> Recipe:
    """What is trained for one config, a flat dict such as {"channels": 32, ..., "learner": "maml", "learner.inner_lr": 0.1}.

    shape: of the episodes that every trial is scored on: x (of one input), ways, shots, queries. Raise ValueError, with the
    reason, for a config that cannot be trained on them: the trial is then infeasible, and the search goes on.
    """
    learner = _learner(config)
    design = Conv4(channels=config["channels"], down="stride", act=config["activation"], norm=Norm("batch"))
    # MAML's net ends in one output a class; prototypes are compared in the space of the features
    net = conv4(shape.x, shape.ways if learner.head else None, design)
    schedule = cosine(0.01) if config["schedule"] == "cosine" else constant
    optimizer = adam(config["outer_lr"], schedule=schedule)
    return Recipe(net, learner, optimizer, meta_batch=4, steps=500)


def _learner(config: dict[str, Any]) -> Learner:
    if config["learner"] == "prototypical":
        return Prototypical()
    return MAML(
        inner_lr=config["learner.inner_lr"],
        inner_steps=config["learner.inner_steps"],
        first_order=config["learner.first_order"],
    )
