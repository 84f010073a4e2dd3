"""PBA's numbers, one probability and one magnitude of each operation, on the queries of the planted tasks (planted.py)."""
from __future__ import annotations

from planted import OPERATIONS, trained

from metasearch.augment import Places, Shuffled
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Space
from metasearch.tasks import TaskShape
from search_spaces._policies import LEVELS, step

SPACE = Space({f"{name}_{what}": levels for name in OPERATIONS for what, levels in LEVELS.items()})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    return trained(Places(query=Shuffled(tuple(step(name, config, f"{name}_") for name in OPERATIONS))), shape)
