"""Which learner, and with which inner loop? MAML, FOMAML, ANIL, Reptile and Prototypical Networks on one small Conv-4.

One `learner` choice opens the sub-space of its hyper-parameters, so that one search compares them all on the same episodes.
Batches are sized so that an outer step costs about the same whatever the learner.
"""
from __future__ import annotations

from metasearch.learners import Learner
from metasearch.learners.anil import ANIL
from metasearch.learners.fomaml import FOMAML
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.learners.reptile import Reptile
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.norm import Norm
from metasearch.objectives.optimizer import adam, cosine, linear, sgd
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Dim, Float, Int, Space
from metasearch.tasks import TaskShape

INNER: dict[str, Dim] = {"inner_lr": Float(0.05, 1.0, log=True), "inner_steps": Int(1, 3)}

SPACE = Space({
    "learner": Choice({
        "maml": Space({**INNER, "outer_lr": Float(1e-3, 1e-2, log=True)}),
        "fomaml": Space({**INNER, "outer_lr": Float(1e-3, 1e-2, log=True)}),
        "anil": Space({**INNER, "outer_lr": Float(1e-3, 1e-2, log=True)}),
        "reptile": Space({"inner_lr": Float(3e-4, 1e-2, log=True), "inner_steps": Int(4, 8)}),
        "prototypical": Space({"train_ways": Choice((5, 10, 20)), "outer_lr": Float(1e-3, 1e-2, log=True)}),
    }),
    "channels": Choice((32, 64)),
})

DESIGN = Conv4(down="stride", norm=Norm("batch", scale=False), init="xavier")


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """300 outer steps; trained on few queries a class, since an outer step should be cheap."""
    name = str(config["learner"])
    design = Conv4(**{**vars(DESIGN), "channels": int(config["channels"])})
    inner_lr, inner_steps = float(config.get("learner.inner_lr", 0.1)), int(config.get("learner.inner_steps", 1))
    learner, episode, meta_batch = _learner(name, config, inner_lr, inner_steps, shape)
    net = conv4(shape.x, shape.ways if learner.head else None, design, mode="transductive")
    if name == "reptile":
        return Recipe(net, learner, sgd(1.0, schedule=linear(0.0)), meta_batch=meta_batch, steps=300, episode=episode)
    optimizer = adam(float(config["learner.outer_lr"]), schedule=cosine(0.01))
    return Recipe(net, learner, optimizer, meta_batch=meta_batch, steps=300, episode=episode)


def _learner(
    name: str, config: Config, inner_lr: float, inner_steps: int, shape: TaskShape
) -> tuple[Learner, TaskShape, int]:
    few = shape._replace(queries=max(1, min(shape.queries, 5)))
    if name == "maml":
        return MAML(inner_lr=inner_lr, inner_steps=inner_steps), few, 8
    if name == "fomaml":
        return FOMAML(inner_lr=inner_lr, inner_steps=inner_steps), few, 12
    if name == "anil":
        return ANIL(inner_lr=inner_lr, inner_steps=inner_steps), few, 12
    if name == "reptile":
        learner = Reptile(inner_lr=inner_lr, inner_steps=inner_steps, inner_batch=10, test_steps=20)
        return learner, shape._replace(queries=9), 6
    ways = int(config["learner.train_ways"])
    return Prototypical(), few._replace(ways=max(ways, shape.ways)), 5
