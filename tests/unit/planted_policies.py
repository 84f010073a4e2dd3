"""Two sub-policies of two operations on the queries of the planted tasks (planted.py)."""
from __future__ import annotations

from planted import OPERATIONS, trained

from metasearch.augment import at_place
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Space
from metasearch.tasks import TaskShape
from search_spaces import _policies as policies

SPACE = Space({"place": Choice({"query": policies.sub_policies(OPERATIONS, count=2)})})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    return trained(at_place(str(config["place"]), policies.policy(config, "place")), shape)
