"""ENAS: an LSTM controller samples architectures that share their weights, and learns from their scores.

Pham, Guan, Zoph, Le, Dean. "Efficient Neural Architecture Search via Parameter Sharing." ICML 2018.
https://arxiv.org/abs/1802.03268 (metasearch/objectives/shared.py, metasearch/strategies/reinforce.py). Every trial is a whole
search from another seed; its score is that of the architecture it found, trained from the beginning.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch

from metasearch.methods import Study, relaxation
from metasearch.methods._one_shot import Checked, arguments
from metasearch.objectives import Objective
from metasearch.objectives.shared import Shared
from metasearch.space import Space
from metasearch.strategies import Strategy, build
from metasearch.strategies._policy_gradient import PolicyGradient, Sample
from metasearch.strategies._seeds import Seeds
from metasearch.strategies.reinforce import Reinforce, Settings


@dataclass(frozen=True, kw_only=True)
class Hyperparameters(Checked, Settings):
    """Of the controller as published for cells: 1 layer of 64, Adam 3.5e-3, 1.1 tanh; skip connections are held to their rate.

    every:        steps of the shared weights before one of the controller.
    aggregate:    samples in one step of the controller.
    candidates:   samples of the final controller, of which the best is trained.
    """

    lr: float = 3.5e-3
    decay: float = 0.99
    entropy: float = 1e-4
    skip_weight: float = 0.8
    hidden: int = 64
    layers: int = 1
    init: float = 0.1
    clip: float = 1.1
    every: int = 1
    aggregate: int = 10
    candidates: int = 10


def method(study: Study) -> tuple[Strategy, Objective]:
    module, dims = relaxation(study)
    given = Hyperparameters(**study.method.arguments)
    if given.every < 1:
        raise ValueError(f"`every >= 1` must hold, but got every={given.every}. Without a controller it is random-sharing.")
    settings = {field.name: getattr(given, field.name) for field in fields(Settings)}
    knobs = asdict(Reinforce.Hyperparameters(batch=given.aggregate, **settings))
    space = study.space()
    objective = Shared(
        **arguments(study, module, dims, given), sampler=partial(Controlled, knobs), every=given.every,
        aggregate=given.aggregate, candidates=given.candidates,
    )
    middle = space.decode([0.5] * space.width)
    objective.check_mixture(middle, study.method.name)
    objective.check_classes(middle)
    objective.check_limits(middle)
    return Seeds(space, dims, seed=study.seed), objective


class Controlled:
    """REINFORCE as a Sampler: its memory as tensors."""

    def __init__(self, knobs: Mapping[str, Any], space: Space, seed: int) -> None:
        policy = build("reinforce", space, knobs, seed=seed)
        assert isinstance(policy, PolicyGradient)
        self.policy = policy

    def sample(self) -> Sample:
        return self.policy.sample()

    def update(self, drawn: Sequence[Sample], rewards: Sequence[float]) -> None:
        self.policy.update(drawn, rewards)

    def tensors(self) -> dict[str, torch.Tensor]:
        body = self.policy.state_dict()
        steps, mean, square = body["adam"]
        counts = [math.nan if v is None else float(v) for v in (steps, *body["counts"].values())]
        parts = {"weights": body["weights"], "mean": mean, "square": square}
        return {f"{name}/{k}": v for name, part in parts.items() for k, v in part.items()} | {
            "counts": torch.tensor(counts, dtype=torch.float64)}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        body = self.policy.state_dict()
        steps, *counts = tensors["counts"].tolist()
        reals = ("baseline", "_worst")
        told = {
            name: (None if math.isnan(v) else v) if name in reals else int(v)
            for name, v in zip(body["counts"], counts, strict=True)
        }

        def under(name: str) -> dict[str, torch.Tensor]:
            return {k[len(name) + 1:]: v for k, v in tensors.items() if k.startswith(f"{name}/")}

        adam = [int(steps), under("mean"), under("square")]
        self.policy.load_state_dict({**body, "counts": told, "weights": under("weights"), "adam": adam})
