"""A space whose trials train in a tenth of a second, with a real learner: for tests that kill them."""
from __future__ import annotations

from metasearch.learners.maml import MAML
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Float, Int, Space
from metasearch.tasks import TaskShape

SPACE = Space({"width": Choice((4, 8)), "inner_lr": Float(1e-3, 1e-1, log=True), "inner_steps": Int(1, 2)})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    net = mlp(shape.x, shape.ways, hidden=[int(config["width"])])
    return Recipe(net, MAML(inner_lr=float(config["inner_lr"]), inner_steps=int(config["inner_steps"])), adam(1e-2), 4, steps=9)
