"""Which rule minimises random quadratic functions best in 100 steps? Learning to learn by gradient descent by gradient descent.

Andrychowicz et al. NeurIPS 2016, section 3.1. https://arxiv.org/abs/1606.04474: a coordinate-wise LSTM, unrolled in truncations
of epochs of 100 steps from thetas that begin anywhere; or the simplest optimiser, one learnt rate. Beside it what learns where to
begin, too: the same optimiser trained by episodes, the LSTM meta-learner and a rate for each coordinate. A score is minus the
mean loss after 100 steps on functions that nobody has seen.
    metasearch run study.toml space=quadratics tasks.name=quadratics tasks.shots=10 tasks.queries=10
"""
from __future__ import annotations

from dataclasses import replace
from functools import partial

from metasearch.learners import Learner
from metasearch.learners.learned_optimizer import LearnedOptimizer
from metasearch.learners.meta_lstm import MetaLSTM
from metasearch.learners.meta_sgd import MetaSGD
from metasearch.nets.linear_map import linear_map
from metasearch.objectives.optimizer import adam, clipped_norm, cosine
from metasearch.objectives.recipe import Fit, Recipe
from metasearch.objectives.unroll import unroll
from metasearch.records import Config
from metasearch.space import Choice, Dim, Float, Int, Space
from metasearch.tasks import TaskShape

EPOCH = 100  # inner steps: of an epoch, and when scored
OUTER: dict[str, Dim] = {"outer_lr": Float(3e-4, 3e-2, log=True)}

SPACE = Space({
    "learner": Choice({
        "learned-optimizer": Space({
            "core": Choice({
                "lstm": Space({"hidden": Choice((10, 20, 40)), "p": Choice((0, 5, 10))}),  # 0: it reads gradients as they are
                "rate": Space({}),
            }),
            "scale": Float(0.01, 1.0, log=True),
            "training": Choice({
                "unroll": Space({"truncation": Choice((5, 10, 20, 50))}), "episodes": Space({"steps": Int(5, 20)}),
            }),
            **OUTER,
        }),
        "meta-lstm": Space({
            "inner_steps": Int(5, 20), "recurrent": Choice(("logit", "gate")), "input_bias": Float(-6.0, -1.0), **OUTER,
        }),
        "meta-sgd": Space({
            "low": Float(0.01, 0.3, log=True), "spread": Float(1.0, 3.0, log=True), "inner_steps": Int(5, 20), **OUTER,
        }),
    }),
})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """1,000 outer steps on 32 functions each. Raises ValueError for tasks whose answer is not one number of a few."""
    if len(shape.x) != 1 or shape.ways != 1:
        raise ValueError(f"a quadratic is one number of a vector, but the tasks have inputs {shape.x} and ways={shape.ways}. "
                         "Set tasks.name = 'quadratics'.")
    learner, fit = _learner(config)
    optimizer = clipped_norm(adam(float(config["learner.outer_lr"]), schedule=cosine(0.1)), 10.0)
    made = Recipe(linear_map(shape.x, 1), learner, optimizer, meta_batch=32, steps=1000)
    return made if fit is None else replace(made, fit=fit)


def _learner(config: Config) -> tuple[Learner, Fit | None]:
    own = {path.removeprefix("learner."): value for path, value in config.items() if path.startswith("learner.")}
    name = config["learner"]
    if name == "meta-lstm":
        learner = MetaLSTM(
            int(own["inner_steps"]), EPOCH, recurrent=own["recurrent"], input_bias=float(own["input_bias"])  # type: ignore[arg-type]
        )
        return learner, None
    if name == "meta-sgd":
        low = float(own["low"])
        return MetaSGD(low, low * float(own["spread"]), int(own["inner_steps"]), EPOCH), None
    unrolled = own["training"] == "unroll"
    steps = int(own["training.truncation"] if unrolled else own["training.steps"])
    built = LearnedOptimizer(
        steps, EPOCH, core=own["core"], hidden=int(own.get("core.hidden", 20)),  # type: ignore[arg-type]
        scale=float(own["scale"]), p=int(own.get("core.p", 0)) or None,
    )
    return built, partial(unroll, epoch=EPOCH) if unrolled else None
