"""Sixty numbers: how often, and how much, of fifteen operations, each twice. What population based augmentation moves in.

Ho, Liang, Stoica, Abbeel, Chen. "Population Based Augmentation: Efficient Learning of Augmentation Policy Schedules." ICML 2019.
https://arxiv.org/abs/1905.05393: a picture draws whether it gets 0, 1 or 2 operations, and takes the first that hit, in random
order. Every number at its lowest is no augmentation. Everything else is fixed: Prototypical Networks on Conv-4.
    metasearch run glyphs space=population-augmentation "method={name='pba', steps=25, max_steps=500, synchronous=true}" \
        train.steps=500 "budget={trials=16}"
"""
from __future__ import annotations

from dataclasses import replace

from metasearch.augment import PLACES, Shuffled, at_place, find
from metasearch.augment.ops import AUTOAUGMENT
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Dim, Space
from metasearch.tasks import TaskShape
from search_spaces._policies import LEVELS, plain, step

STEPS = tuple(f"{name}_{copy}" for name in AUTOAUGMENT if not find(name).pairs for copy in (1, 2))
NUMBERS: dict[str, Dim] = {f"{name}_{what}": levels for name in STEPS for what, levels in LEVELS.items()}
SPACE = Space({"place": Choice(PLACES), **NUMBERS})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """500 outer steps of 4 tasks."""
    policy = Shuffled(tuple(step(name.rpartition("_")[0], config, f"{name}_") for name in STEPS))
    return replace(plain(shape), augment=at_place(str(config["place"]), policy))
