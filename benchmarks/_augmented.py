"""The space of augmentation_search.py for autoaugment and dada, and what every row of its table is trained with.

Prototypical Networks on Conv-4 as they have it, on 20-way episodes with 5 queries, in bfloat16: the cheapest learner that is
good. Batch norms use the statistics of an episode. The policies are those of search_spaces/augmentation.py: a place of an
episode and five sub-policies of two operations.
"""
from __future__ import annotations

from metasearch.augment import Places
from metasearch.learners.prototypical import Prototypical
from metasearch.nets.conv4 import conv4
from metasearch.objectives.optimizer import adam, cosine
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.tasks import TaskShape
from search_spaces import augmentation

SPACE = augmentation.SPACE
canonical = augmentation.canonical


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """A study says for how many steps."""
    places = augmentation.recipe(config, shape).augment
    assert isinstance(places, Places)
    return trained(places, shape)


def trained(places: Places | None, shape: TaskShape) -> Recipe:
    net = conv4(shape.x, None, "protonet", mode="transductive")
    return Recipe(net, Prototypical(), adam(1e-3, schedule=cosine(0.01)), meta_batch=1, steps=1000,
                  episode=shape._replace(ways=20, shots=1, queries=5), precision="bfloat16", augment=places)
