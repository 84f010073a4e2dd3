"""Meta-reinforcement learning: a policy that one step turns towards a goal nobody shows, and how the outer loop moves it.

Finn, Abbeel, Levine. ICML 2017, section 5.3. https://arxiv.org/abs/1703.03400: inner vanilla policy gradient, outer TRPO (as
published), PPO, or plain policy gradients through the inner step (algorithm 3). Walks have the 100 steps of tasks `navigation`,
20 of them before the inner step and 20 behind it:
    metasearch run study.toml space=navigation tasks.name=navigation tasks.shots=2000 tasks.queries=2000
"""
from __future__ import annotations

from dataclasses import replace

from metasearch.learners.maml_rl import MAMLRL
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam
from metasearch.objectives.policy_search import policy_search
from metasearch.objectives.recipe import Fit, Recipe
from metasearch.records import Config
from metasearch.space import Choice, Dim, Float, Int, Space
from metasearch.tasks import TaskShape

ADAM: dict[str, Dim] = {"outer_lr": Float(1e-4, 1e-2, log=True)}

SPACE = Space({
    "learner": Choice({
        "maml-rl": Space({
            "inner_lr": Float(0.03, 1.0, log=True),
            "inner_steps": Int(1, 3),
            "std": Float(0.5, 2.0, log=True),
            "discount": Choice((0.95, 0.99)),
            "trace": Choice((0.95, 1.0)),
        }),
    }),
    "outer": Choice({
        "trpo": Space({"kl": Float(1e-3, 0.1, log=True)}),
        "ppo": Space({"clip": Float(0.1, 0.3), "epochs": Int(1, 10), **ADAM}),
        "policy-gradient": Space(ADAM),
    }),
    "width": Choice((32, 64, 100)),
    "depth": Int(1, 2),
    "activation": Choice(("relu", "tanh")),
})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """100 outer steps of 20 tasks."""
    own = {path.removeprefix("learner."): value for path, value in config.items() if path.startswith("learner.")}
    learner = MAMLRL(**own)  # type: ignore[arg-type]
    hidden = [int(config["width"])] * int(config["depth"])
    net = mlp(shape.x, shape.ways, hidden=hidden, act=str(config["activation"]))  # type: ignore[arg-type]
    made = Recipe(net, learner, adam(float(config.get("outer.outer_lr", 1e-3))), meta_batch=20, steps=100)
    fit = _fit(config)
    return made if fit is None else replace(made, fit=fit)


def _fit(config: Config) -> Fit | None:
    """None: episodic training with maml-rl's own loss, policy gradients through the inner step."""
    if config["outer"] == "trpo":
        return policy_search("trpo", kl=float(config["outer.kl"]))
    if config["outer"] == "ppo":
        return policy_search("ppo", clip=float(config["outer.clip"]), epochs=int(config["outer.epochs"]))
    return None
