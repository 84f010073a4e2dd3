"""Random search with weight sharing: architectures that share their weights are sampled uniformly; the best one is trained.

Li, Talwalkar. "Random Search and Reproducibility for Neural Architecture Search." UAI 2019. https://arxiv.org/abs/1902.07638
(metasearch/objectives/shared.py). What ENAS must beat to show that its controller is worth something. Every trial is a whole
search from another seed; its score is that of the architecture it found, trained from the beginning.
"""
from __future__ import annotations

from dataclasses import dataclass

from metasearch.methods import Study, relaxation
from metasearch.methods._one_shot import Checked, arguments
from metasearch.objectives import Objective
from metasearch.objectives.shared import Shared
from metasearch.strategies import Strategy
from metasearch.strategies._seeds import Seeds


@dataclass(frozen=True, kw_only=True)
class Hyperparameters(Checked):
    """candidates: samples that are scored with the shared weights, of which the best is trained."""

    candidates: int = 100


def method(study: Study) -> tuple[Strategy, Objective]:
    module, dims = relaxation(study)
    given = Hyperparameters(**study.method.arguments)
    space = study.space()
    objective = Shared(**arguments(study, module, dims, given), candidates=given.candidates)
    middle = space.decode([0.5] * space.width)
    objective.check_mixture(middle, study.method.name)
    objective.check_classes(middle)
    objective.check_limits(middle)
    return Seeds(space, dims, seed=study.seed), objective
