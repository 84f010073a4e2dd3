"""A name -> a (strategy, objective) pair, one short file each; a strategy alone is a method with `train`.

    def method(study: Study) -> tuple[Strategy, Objective]: ...

A file may define a dataclass `Hyperparameters`: the further keys of a study's [method] are then checked against its fields.
An objective may have `recipes(config)`, all Recipes that a trial of this config trains, or Infeasible: a study of whose space no
configuration can be built is then refused before it starts.
"""
from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from metasearch.objectives import Infeasible
from metasearch.plugins import did_you_mean
from metasearch.space import Choice, Space

if TYPE_CHECKING:
    from metasearch.objectives.train import Train

__all__ = ["Study", "augmented", "relaxation"]

TRIES = 30  # configs of which one must augment


class Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> dict[str, Any]: ...


class Study(Protocol):
    """What a method may ask of a study (metasearch/driver/study.py)."""

    @property
    def seed(self) -> int: ...
    @property
    def space_name(self) -> str: ...
    @property
    def method(self) -> Named: ...
    def space_module(self) -> ModuleType: ...
    def space(self) -> Space: ...
    def training(self) -> Train: ...


def relaxation(study: Study) -> tuple[ModuleType, tuple[str, ...]]:
    """(the space's file, RELAXED). Raises ValueError, with what would work, for a space without a mixture, and for a RELAXED that
    names something else than dimensions with options, or such as not every config has."""
    module = study.space_module()
    if not callable(getattr(module, "relaxed", None)):
        raise ValueError(
            f"{study.method.name} searches in a mixture of all architectures, but the space '{study.space_name}' has no "
            "relaxed(config, shape). Take a space that has one, such as nasbench201 or darts-cells, or a method that trains "
            "every architecture by itself: random, regularized-evolution, reinforce or tpe."
        )
    named, leaves = getattr(module, "RELAXED", ()), dict(study.space().columns())
    where = f"RELAXED of the space '{study.space_name}'"
    if isinstance(named, str) or not named:
        raise ValueError(f"{where} must name the dimensions that relaxed(config, shape) mixes, ('op1', 'op2'), but is {named!r}.")
    for path in named:
        if path not in leaves:
            raise ValueError(f"{where} names {path!r}, which is no path of SPACE.{did_you_mean(str(path), leaves)}")
        if not isinstance(leaves[path], Choice):
            raise ValueError(f"{where} names '{path}', which is no Choice: a mixture has a share for every option.")
    if some := [path for path in named if path not in study.space().always]:
        raise ValueError(f"{where} names {', '.join(some)}, but not every config makes that decision, and a mixture is of such.")
    return module, tuple(named)


def augmented(study: Study, train: Train) -> None:
    """Raises ValueError, with what would work, for a space in which no config augments anything."""
    space = study.space()
    corners = [space.decode([u] * space.width) for u in (0.5, 0.0, 1.0)]
    for config in (*corners, *(space.sample(np.random.default_rng(seed)) for seed in range(TRIES))):
        try:
            if train.built(config).augment is not None:
                return
        except Infeasible:
            return  # another config may not be
    raise ValueError(
        f"{study.method.name} searches for augmentations, but the space '{study.space_name}' has none. Take a space that has, "
        "such as augmentation, randaugment or whole-pipeline, or another method: random, regularized-evolution, reinforce or tpe."
    )
