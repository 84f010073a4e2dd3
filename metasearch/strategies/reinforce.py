"""REINFORCE: an LSTM controller samples configs, and good ones are made more probable (NAS with reinforcement learning).

Zoph, Le. "Neural Architecture Search with Reinforcement Learning." ICLR 2017. https://arxiv.org/abs/1611.01578
Williams. "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning." Machine Learning 8, 1992.

gradient = 1/m sum_k sum_t grad log P(a_t | a_(t-1), ..., a_1) (R_k - b), b an exponential average of previous rewards. The
controller, its walk through a space and its skip connections are in _controller.py.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from metasearch.space import Space
from metasearch.strategies._controller import Controller, Weights
from metasearch.strategies._policy_gradient import PolicyGradient, Sample, problems


@dataclass(frozen=True)
class Settings:
    """Of the controller and of how it learns, wherever it does (ENAS: metasearch/methods/enas.py). Defaults are NAS-RL's.

    lr:      of Adam. Published for 12,800 children; for 100 trainings 0.01 in batches of 1 (benchmarks/tabular_nas.py).
    decay:   of the baseline.
    power:   of the reward; the paper cubes accuracies in [0, 1].
    entropy: weight of the entropy of the decisions, as a bonus (its gradient; ENAS shifts the reward by it instead).
    hidden, layers, init: of the LSTM; weights begin uniform in +-init.
    skip_weight, skip_target: where a space has skip connections: weight of the divergence of their probabilities from a
             rate (ENAS: 0.8 and 0.4; NAS-RL has none). Without it a controller may soon take all of them, or none.
    temperature, clip: logits / temperature, then clip * tanh (ENAS: 5 and 2.5, for its recurrent cells); clip 0: no tanh.
    """

    lr: float = 6e-4
    decay: float = 0.95
    power: float = 1.0
    entropy: float = 0.0
    skip_weight: float = 0.0
    skip_target: float = 0.4
    hidden: int = 35
    layers: int = 2
    init: float = 0.08
    temperature: float = 1.0
    clip: float = 0.0


class Reinforce(PolicyGradient):
    """A runnable loop, without a driver:

        policy = build("reinforce", space, {"batch": 1, "lr": 0.01}, seed=0)
        for _ in range(100):
            sample = policy.sample()
            policy.update([sample], [reward(sample.config)])
    """

    @dataclass(frozen=True)
    class Hyperparameters(Settings):
        """batch: samples in one update (published: 8 replicas of a child a controller).
        bins:  how many values of a Float, or of an Int with more than 64, are told apart; None: such a space is refused.
        """

        batch: int = 8
        bins: int | None = None

        def __post_init__(self) -> None:
            found = problems(self)
            if self.hidden < 1 or self.layers < 1:
                found.append(f"`hidden >= 1` and `layers >= 1` must hold, but got {self.hidden} and {self.layers}")
            if not self.temperature > 0 or self.clip < 0:
                found.append(f"`temperature > 0` and `clip >= 0` must hold, but got {self.temperature} and {self.clip}")
            if self.skip_weight < 0 or not 0 < self.skip_target < 1:
                told = f"{self.skip_weight} and {self.skip_target}"
                found.append(f"`skip_weight >= 0` and `0 < skip_target < 1` must hold, but got {told}")
            if found:
                raise ValueError("; ".join(found))

    def made(self, space: Space) -> Controller:
        h = self.hyperparameters
        return Controller(space, h.hidden, h.layers, h.init, h.temperature, h.clip)

    def loss(self, weights: Weights, samples: Sequence[Sample], advantages: Tensor) -> Tensor:
        plans, h = [sample.plan for sample in samples], self.hyperparameters
        log_prob, entropy = self.controller.log_probs(weights, plans)  # [m], [m]
        loss: Tensor = -(advantages * log_prob + h.entropy * entropy).mean()
        if h.skip_weight:
            loss = loss + h.skip_weight * self.controller.skip_divergence(weights, plans, h.skip_target).mean()
        return loss
