"""What the spaces with augmentation share: sub-policies as dimensions, and policies from a config. Not a space itself.

Levels are those that AutoAugment publishes: probabilities 0, 1, ..., 10 of 10, magnitudes 0, 1, ..., 9 of 10: the highest
is 90 % of its operation's range.
"""
from __future__ import annotations

from collections.abc import Sequence

from metasearch.augment import PLACES, Policy, Step, SubPolicies, find
from metasearch.augment.ops import AUTOAUGMENT
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.norm import Norm
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Dim, Int, Repeat, Space, items
from metasearch.tasks import TaskShape
from search_spaces._few_shot import few_shot

__all__ = ["LEVELS", "OPERATIONS", "opened", "plain", "policy", "step", "sub_policies", "tidy"]

LEVELS: dict[str, Dim] = {"probability": Int(0, 10), "magnitude": Int(0, 9)}
OPERATIONS = (*AUTOAUGMENT, "crop", "flip", "turn", "channel_permutation", "cutmix")
DESIGN = Conv4(down="stride", norm=Norm("batch", scale=False), init="xavier")


def sub_policies(operations: Sequence[str] = OPERATIONS, *, count: int = 5, length: int = 2) -> Space:
    """`count` sub-policies of `length` steps, each an operation, its probability and its magnitude."""
    steps = Space({"operation": Choice(tuple(operations)), **LEVELS})
    return Space({"sub": Repeat(Int(count, count), Space({"step": Repeat(Int(length, length), steps)}))})


def opened(operations: Sequence[str] = OPERATIONS, *, count: int = 5, length: int = 2) -> dict[str, Space]:
    """The places, each of which opens its sub-policies: on whole classes nothing can act that mixes single pictures."""
    alone = [name for name in operations if not find(name).pairs]
    return {
        place: sub_policies(alone if place == "task" else operations, count=count, length=length) for place in PLACES
    }


def step(operation: str, config: Config, prefix: str = "") -> Step:
    """From config[prefix + "probability"] and config[prefix + "magnitude"]."""
    return Step(operation, int(config[f"{prefix}probability"]) / 10, int(config[f"{prefix}magnitude"]) / 10)


def policy(config: Config, path: str) -> Policy:
    """The sub-policies under `path`.sub."""
    return SubPolicies(tuple(
        tuple(step(str(one["operation"]), one) for one in items(sub, "step")) for sub in items(config, f"{path}.sub")))


def tidy(config: Config, path: str) -> Config:
    """The first of the configs whose sub-policies under `path`.sub mean the same: they are drawn uniformly, so their order means
    nothing, nor does the magnitude of an operation that has none, nor which operation is never applied."""
    subs = []
    for sub in items(config, f"{path}.sub"):
        steps = [_step(one) for one in items(sub, "step")]
        subs.append(sorted(steps, key=lambda one: one[1] == 0))  # what is never applied stands last
    found = dict(config)
    for i, steps in enumerate(sorted(subs)):
        for j, (operation, probability, magnitude) in enumerate(steps):
            own: Config = {"operation": operation, "probability": probability, "magnitude": magnitude}
            found |= {f"{path}.sub.{i}.step.{j}.{name}": value for name, value in own.items()}
    return found


def _step(one: Config) -> tuple[str, int, int]:
    name, probability, magnitude = str(one["operation"]), int(one["probability"]), int(one["magnitude"])
    if probability == 0:
        return AUTOAUGMENT[0], 0, 0
    return name, probability, magnitude if find(name).unit else 0


def plain(shape: TaskShape) -> Recipe:
    """What an augmentation is tried on: 500 outer steps of Prototypical Networks on Conv-4, 4 tasks each."""
    return few_shot(lambda outputs: conv4(shape.x, outputs, DESIGN, mode="transductive"), shape, "prototypical")
