"""PPO: as REINFORCE, but no sample moves its own probability far from what it was when it was drawn (NASNet's controller).

Schulman, Wolski, Dhariwal, Radford, Klimov. "Proximal Policy Optimization Algorithms." 2017.
https://arxiv.org/abs/1707.06347 (eq. 7)
Zoph, Vasudevan, Shlens, Le. "Learning Transferable Architectures for Scalable Image Recognition." CVPR 2018.
https://arxiv.org/abs/1707.07012 (appendix A.1)

With r = P(config) / P_old(config), P_old as of when it was sampled, and the advantage A = R - b:
maximise min(r A, clip(r, 1 - epsilon, 1 + epsilon) A). A batch is passed several times, and its samples may be old.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metasearch.space import Space
from metasearch.strategies._controller import Controller, Weights
from metasearch.strategies._policy_gradient import PolicyGradient, Sample, problems


class Ppo(PolicyGradient):
    """One ratio for a whole config: the product of its decisions' ratios."""

    @dataclass(frozen=True)
    class Hyperparameters:
        """Defaults are those of NASNet, for 20,000 children; epsilon and passes, which it does not say, those of PPO's paper.

        batch:   samples in one update.
        lr:      of Adam. passes: its steps on every batch. epsilon: how far a ratio may go from 1.
        decay:   of the baseline. power: of the reward. entropy: weight of the entropy of the decisions, as a bonus.
        hidden, layers, init: of the LSTM; weights begin uniform in +-init.
        bins:    how many values of a Float, or of an Int with more than 64, are told apart; None: such a space is refused.
        """

        batch: int = 20
        lr: float = 3.5e-4
        passes: int = 3
        epsilon: float = 0.2
        decay: float = 0.95
        power: float = 1.0
        entropy: float = 1e-5
        hidden: int = 100
        layers: int = 1
        init: float = 0.1
        bins: int | None = None

        def __post_init__(self) -> None:
            found = problems(self)
            if self.hidden < 1 or self.layers < 1:
                found.append(f"`hidden >= 1` and `layers >= 1` must hold, but got {self.hidden} and {self.layers}")
            if self.passes < 1 or not 0 < self.epsilon < 1:
                found.append(f"`passes >= 1` and `0 < epsilon < 1` must hold, but got {self.passes} and {self.epsilon}")
            if found:
                raise ValueError("; ".join(found))

    def made(self, space: Space) -> Controller:
        h = self.hyperparameters
        return Controller(space, h.hidden, h.layers, h.init)

    @property
    def passes(self) -> int:
        return int(self.hyperparameters.passes)

    def loss(self, weights: Weights, samples: Sequence[Sample], advantages: Tensor) -> Tensor:
        log_prob, entropy = self.controller.log_probs(weights, [sample.plan for sample in samples])  # [m], [m]
        old = torch.tensor([sample.log_prob for sample in samples], dtype=torch.float64)
        ratio = (log_prob - old).clamp(-20.0, 20.0).exp()
        epsilon, weight = float(self.hyperparameters.epsilon), float(self.hyperparameters.entropy)
        clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
        return -(torch.minimum(ratio * advantages, clipped * advantages) + weight * entropy).mean()
