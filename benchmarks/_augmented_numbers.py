"""The space of augmentation_search.py for pba: search_spaces/population_augmentation.py, trained as in _augmented.py."""
from __future__ import annotations

from _augmented import trained

from metasearch.augment import Places
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.tasks import TaskShape
from search_spaces import population_augmentation

SPACE = population_augmentation.SPACE


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """A study says for how many steps."""
    places = population_augmentation.recipe(config, shape).augment
    assert isinstance(places, Places)
    return trained(places, shape)
