"""Few-shot sine regression: width, depth and activation of an MLP, and how MAML trains it.

Finn, Abbeel, Levine. ICML 2017, section 5.1: 1-40-40-1 ReLU, one inner step at 0.01, Adam 1e-3 on 25 tasks a step.
    metasearch run study.toml space=sine-mlp tasks.name=sinusoid tasks.shots=10 tasks.queries=10
"""
from __future__ import annotations

from metasearch.learners.maml import MAML
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Float, Int, Space
from metasearch.tasks import TaskShape

SPACE = Space({
    "width": Int(20, 80, log=True),
    "depth": Int(1, 3),
    "activation": Choice(("relu", "tanh", "silu")),
    "inner_lr": Float(1e-3, 1e-1, log=True),
    "inner_steps": Int(1, 5),
    "first_order": Choice((False, True)),
    "outer_lr": Float(3e-4, 1e-2, log=True),
})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """2,000 outer steps of 25 tasks."""
    hidden = [int(config["width"])] * int(config["depth"])
    net = mlp(shape.x, shape.ways, hidden=hidden, act=str(config["activation"]))  # type: ignore[arg-type]
    learner = MAML(
        inner_lr=float(config["inner_lr"]), inner_steps=int(config["inner_steps"]), first_order=bool(config["first_order"])
    )
    return Recipe(net, learner, adam(float(config["outer_lr"])), meta_batch=25, steps=2000)
