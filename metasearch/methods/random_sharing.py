"""Random search with weight sharing: architectures that share their weights are sampled uniformly; the best one is trained.

Li, Talwalkar. "Random Search and Reproducibility for Neural Architecture Search." UAI 2019. https://arxiv.org/abs/1902.07638
(metasearch/objectives/shared.py). What ENAS must beat to show that its controller is worth something. Every trial is a whole
search from another seed; its score is that of the architecture it found, trained from the beginning.
"""
from __future__ import annotations

from dataclasses import dataclass

from metasearch.methods import Study, relaxation
from metasearch.objectives import Objective
from metasearch.objectives.shared import Shared
from metasearch.strategies import Strategy
from metasearch.strategies._seeds import Seeds


@dataclass(frozen=True)
class Hyperparameters:
    """candidates: samples that are scored with the shared weights, of which the best is trained.
    search_steps: outer steps of the search; None: those of the space's supernet. `train.steps` are those of what is found.
    share:        of the training classes, for the weights; candidates are scored on the others.
    check:        so many random architectures are trained for `check_steps` to see whether shared weights rank them rightly.
    """

    candidates: int = 100
    search_steps: int | None = None
    share: float = 0.5
    check: int = 0
    check_steps: int = 50


def method(study: Study) -> tuple[Strategy, Objective]:
    module, dims = relaxation(study)
    given = Hyperparameters(**study.method.arguments)
    space = study.space()
    objective = Shared(
        train=study.training(), relaxed=module.relaxed, space=space, dims=dims, steps=given.search_steps, share=given.share,
        check=given.check, check_steps=given.check_steps, candidates=given.candidates,
    )
    objective.check_classes(space.decode([0.5] * space.width))
    return Seeds(space, dims, seed=study.seed), objective
