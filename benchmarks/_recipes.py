"""What `few_shot.py` trains: one recipe a learner, and what is published of it.

Every entry names its tasks, its recipe and the number that it is laid beside. Inner rates are those of a *mean* loss: the 0.4 of
MAML's authors, whose loss is summed over five ways, would be 2.0 here.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from metasearch import tasks as task_room
from metasearch.learners import Learner
from metasearch.learners.anil import ANIL
from metasearch.learners.boil import BOIL
from metasearch.learners.fomaml import FOMAML
from metasearch.learners.maml import MAML
from metasearch.learners.maml_pp import MAMLPP
from metasearch.learners.meta_sgd import MetaSGD
from metasearch.learners.prototypical import Prototypical
from metasearch.learners.reptile import Reptile
from metasearch.nets.conv4 import VARIANTS, conv4
from metasearch.nets.mlp import mlp
from metasearch.objectives import Mode
from metasearch.objectives.optimizer import adam, cosine, linear, sgd
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.tasks import TaskDistribution, TaskShape

RecipeOf = Callable[[Config, TaskShape], Recipe]


@dataclass(frozen=True)
class Entry:
    """One learner as it is trained here.

    tasks: a key of TASKS. steps: None: as many as fit into the minutes. published: None where there is no number for these
    tasks. target: what this budget should reach. ways, shots, queries: of the episodes that are scored.
    """

    tasks: str
    recipe: RecipeOf
    mode: Mode
    published: float | None
    source: str
    target: float
    steps: int | None = None
    ways: int = 5
    shots: int = 1
    queries: int = 15


def _omniglot(data: Path) -> TaskDistribution:
    return task_room.build("omniglot", {"root": str(data / "omniglot"), "split": "vinyals", "rotations": "new-classes"})


TASKS: dict[str, Callable[[Path], TaskDistribution]] = {
    "omniglot": _omniglot,
    "sinusoid": lambda data: task_room.build("sinusoid", {}),
}
NEEDS_DATA = frozenset(TASKS) - {"sinusoid"}

# Omniglot ---------------------------------------------------------------------------------------------------------------------

STRIDED = replace(VARIANTS["maml_omniglot"], head_init="xavier")  # the authors' net; N(0, 1) heads take long to come down


def prototypical(config: Config, shape: TaskShape) -> Recipe:
    """60-way, 5 queries, Adam 1e-3, convolutions in bfloat16; population statistics at test."""
    net = conv4(shape.x, None, "protonet", mode="inductive")
    return Recipe(net, Prototypical(), adam(1e-3, schedule=cosine(0.01)), meta_batch=1, steps=1000,
                  episode=shape._replace(ways=60, queries=5), precision="bfloat16")


def strided(learner: Learner, *, outer_lr: float = 2e-3, meta_batch: int = 16) -> RecipeOf:
    """A gradient learner on MAML's net for Omniglot, with 3 queries a class."""

    def recipe(config: Config, shape: TaskShape) -> Recipe:
        net = conv4(shape.x, shape.ways, STRIDED, mode="transductive")
        optimizer = adam(outer_lr, schedule=cosine(0.05))
        return Recipe(net, learner, optimizer, meta_batch=meta_batch, steps=1000, episode=shape._replace(queries=3))

    return recipe


def reptile(config: Config, shape: TaskShape) -> Recipe:
    """5 inner steps of 10 pictures by Adam 1e-3 on 10 pictures a class, 5 tasks, outer rate 1 to 0; 50 steps at test."""
    net = conv4(shape.x, shape.ways, "reptile_omniglot", mode="transductive")
    learner = Reptile(inner_lr=1e-3, inner_steps=5, inner_batch=10, test_steps=50, test_batch=5)
    outer = sgd(1.0, schedule=linear(0.0))
    return Recipe(net, learner, outer, meta_batch=5, steps=1000, episode=shape._replace(queries=10 - shape.shots))


# sine waves: 10 supports, 5,000 iterations of 25 tasks ------------------------------------------------------------------------


def waves(learner: Learner, *, outer_lr: float = 1e-3) -> RecipeOf:
    def recipe(config: Config, shape: TaskShape) -> Recipe:
        net = mlp(shape.x, shape.ways, init="trunc_normal")
        return Recipe(net, learner, adam(outer_lr), meta_batch=25, steps=5000, episode=shape._replace(queries=10))

    return recipe


def sine_reptile(config: Config, shape: TaskShape) -> Recipe:
    """5 full-batch SGD steps at 0.02, outer rate 0.1 to 0; 5 tasks a step, so 20,000 steps see as many as 4,000 of the others."""
    learner = Reptile(inner_lr=0.02, inner_steps=5, optimizer="sgd", test_steps=1)
    outer = sgd(0.1, schedule=linear(0.0))
    return Recipe(mlp(shape.x, shape.ways), learner, outer, meta_batch=5, steps=20000, episode=shape._replace(queries=1))


def _waves(recipe: RecipeOf, published: float | None, source: str, target: float, steps: int = 5000) -> Entry:
    return Entry("sinusoid", recipe, "vmap", published, source, target, steps=steps, ways=1, shots=10, queries=100)


PLAIN = "a plain loop, 5,000 iterations, K=10, 1 step"
ENTRIES: dict[str, Entry] = {
    "sine": _waves(waves(MAML(0.01, 1)), 0.66, f"MAML, {PLAIN}", 0.9),
    "sine-fomaml": _waves(waves(FOMAML(0.01, 1)), 0.646, "FOMAML, a plain loop, 10,000 iterations, K=10, 1 step", 2.4),
    "sine-anil": _waves(waves(ANIL(0.01, 1)), None, "", 2.4),
    "sine-boil": _waves(waves(BOIL(0.01, 1)), None, "", 2.4),
    "sine-reptile": _waves(sine_reptile, 1.21, "Reptile, a plain loop, 20,000 iterations, K=10, 1 step", 2.4, steps=20000),
    "sine-meta-sgd": _waves(waves(MetaSGD()), 0.53, "Li et al. 2017 (as remembered, unchecked): 10-shot training and test", 0.66),
    "sine-maml-pp": _waves(waves(MAMLPP(0.01, 1)), None, "", 0.66),
    "prototypical": Entry("omniglot", prototypical, "loop", 98.8, "Snell et al. 2017, table 1: 60-way, Euclid", 98.0),
    "maml": Entry(
        "omniglot", strided(MAML(0.4, 1, test_steps=3)), "compiled", 98.7, "Finn et al. 2017, table 1: MAML, 5-way 1-shot", 95.0
    ),
    "maml-pp": Entry(
        "omniglot", strided(MAMLPP(0.1, 3), meta_batch=8), "compiled", 99.47, "Antoniou et al. 2019, table 1", 95.0
    ),
    "meta-sgd": Entry("omniglot", strided(MetaSGD(0.1, 0.4)), "compiled", 99.53, "Li et al. 2017, table 2", 95.0),
    "anil": Entry("omniglot", strided(ANIL(0.4, 3)), "compiled", None, "", 95.0),
    "boil": Entry("omniglot", strided(BOIL(0.4, 1)), "compiled", None, "", 95.0),
    "fomaml": Entry("omniglot", strided(FOMAML(0.4, 1)), "compiled", 98.3, "Nichol et al. 2018, table 2: transductive", 95.0),
    "reptile": Entry("omniglot", reptile, "compiled", 97.68, "Nichol et al. 2018, table 2: transductive", 95.0),
}
