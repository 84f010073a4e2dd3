"""RandAugment's two numbers and a place: the small space of augmentations, and the baseline of the large one.

Cubuk, Zoph, Shlens, Le. "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space." NeurIPS 2020.
https://arxiv.org/abs/1909.13719: n of fourteen operations, drawn uniformly, all at level m of 30. Small enough for a grid.
"""
from __future__ import annotations

from dataclasses import replace

from metasearch.augment import PLACES, RandAugment, at_place
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Int, Space
from metasearch.tasks import TaskShape
from search_spaces._policies import plain

SPACE = Space({"place": Choice(PLACES), "n": Int(1, 3), "m": Int(0, 30)})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """500 outer steps of 4 tasks."""
    policy = RandAugment(int(config["n"]), int(config["m"]))
    return replace(plain(shape), augment=at_place(str(config["place"]), policy))
