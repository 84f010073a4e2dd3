"""Which operations on pictures help few-shot learning, and where in an episode? The policies of AutoAugment, at four places.

Cubuk, Zoph, Mané, Vasudevan, Le. "AutoAugment: Learning Augmentation Policies from Data." CVPR 2019.
https://arxiv.org/abs/1805.09501 (section 3: five sub-policies of two operations, 11 probabilities, 10 magnitudes)
Ni, Goldblum, Sharaf, Kong, Goldstein. "Data Augmentation for Meta-Learning." ICML 2021. https://arxiv.org/abs/2010.07092

Its sixteen operations, and five more that few-shot learning uses. Everything else is fixed: Prototypical Networks on Conv-4.
    metasearch run glyphs space=augmentation method.name=autoaugment "budget={trials=100}"
"""
from __future__ import annotations

from dataclasses import replace

from metasearch.augment import at_place
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Space
from metasearch.tasks import TaskShape
from search_spaces import _policies as policies

SPACE = Space({"place": Choice(policies.opened())})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """500 outer steps of 4 tasks."""
    places = at_place(str(config["place"]), policies.policy(config, "place"))
    return replace(policies.plain(shape), augment=places)


def canonical(config: Config) -> Config:
    return policies.tidy(config, "place")
