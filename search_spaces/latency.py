"""Few-shot regression of latencies: an MLP, and how it is adapted to a device that nobody has seen.

Lee, Lee, Chong, Hwang. "HELP". NeurIPS 2021. https://arxiv.org/abs/2106.08630: layers of 100,
8 devices an outer step, 2 inner steps. `joint` is one net for all devices, fine-tuned at most.
    metasearch run study.toml space=latency tasks.name=latency tasks.shots=10 tasks.queries=200
"""
from __future__ import annotations

from collections.abc import Callable

from metasearch.learners import Learner
from metasearch.learners.anil import ANIL
from metasearch.learners.joint import Joint
from metasearch.learners.maml import MAML
from metasearch.learners.meta_sgd import MetaSGD
from metasearch.learners.reptile import Reptile
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam, cosine, linear, sgd
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Dim, Float, Int, Space
from metasearch.tasks import TaskShape

INNER: dict[str, Dim] = {"inner_lr": Float(1e-3, 0.3, log=True), "inner_steps": Int(1, 5)}
OUTER: dict[str, Dim] = {"outer_lr": Float(3e-4, 1e-2, log=True)}
LEARNERS: dict[str, Callable[[float, int], Learner]] = {  # trained by Adam: another one is a line
    "maml": lambda lr, steps: MAML(inner_lr=lr, inner_steps=steps),
    "meta-sgd": lambda lr, steps: MetaSGD(low=lr, high=lr, inner_steps=steps),
    "anil": lambda lr, steps: ANIL(inner_lr=lr, inner_steps=steps),
    "joint": lambda lr, steps: Joint(inner_lr=lr, inner_steps=steps),
}

SPACE = Space({
    "width": Int(32, 256, log=True),
    "depth": Int(1, 3),
    "activation": Choice(("relu", "silu", "tanh")),
    "learner": Choice({
        **{name: Space({**INNER, **OUTER}) for name in LEARNERS if name != "joint"},
        "joint": Space({**INNER, "inner_steps": Int(0, 20), **OUTER}),
        "reptile": Space({"inner_lr": Float(1e-4, 1e-2, log=True), "inner_steps": Int(4, 10)}),
    }),
})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """2,000 outer steps of 8 episodes with 50 queries each."""
    hidden = [int(config["width"])] * int(config["depth"])
    net = mlp(shape.x, shape.ways, hidden=hidden, act=str(config["activation"]))  # type: ignore[arg-type]
    name, lr, steps = str(config["learner"]), float(config["learner.inner_lr"]), int(config["learner.inner_steps"])
    episode = shape._replace(queries=min(shape.queries, 50))
    if name == "reptile":
        learner = Reptile(inner_lr=lr, inner_steps=steps, inner_batch=20, test_steps=2 * steps)
        return Recipe(net, learner, sgd(1.0, schedule=linear(0.0)), meta_batch=8, steps=2000, episode=episode)
    optimizer = adam(float(config["learner.outer_lr"]), schedule=cosine(0.01))
    return Recipe(net, LEARNERS[name](lr, steps), optimizer, meta_batch=8, steps=2000, episode=episode)
