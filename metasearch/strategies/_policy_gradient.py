"""What REINFORCE and PPO share: samples of a controller on their way to a score, the baseline, Adam, memory, snapshots.

Asked and told it is a strategy. In one process, without a driver (ENAS), it is a sampler that learns:

    drawn = [policy.sample() for _ in range(10)]
    policy.update(drawn, [reward(sample.config) for sample in drawn])

As a strategy it goes on sampling while others run, and improves whenever `batch` rewards are in, from whichever weights their
configs were sampled: then the log-probabilities are those under the present weights, as nobody keeps old ones (`stale` counts
by how many updates they are behind). What is told:

    done, reused                its score
    diverged, oom, infeasible   the worst score that was told before (nothing, if there is none): the config is to blame
    error                       nothing: the config is not to blame

A config is trained once. One that is sampled again is rewarded at once if its score is known, or when it has ended if it
runs, and the controller is sampled again: it takes the way of one that trains everything twice, with fewer trainings. When of
DRAWS samples in a row all have a known score it has converged, and begins anew with other weights (`restarts`); what was drawn
from the old ones and waits is not its own, and teaches it nothing.
"""
from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from metasearch.records import Config, Outcome, Proposal
from metasearch.space import Space, digest
from metasearch.strategies import Strategy
from metasearch.strategies._controller import Controller, Plan, Weights, discretised, one_thread
from metasearch.strategies._draws import Seen, rng_of, seed_of

__all__ = ["Adam", "Knobs", "PolicyGradient", "Sample", "problems"]

DRAWS = 50
HUGE = 1e100  # rewards are squared


class Knobs(Protocol):
    """The hyper-parameters that every policy gradient has."""

    @property
    def batch(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def power(self) -> float: ...
    @property
    def bins(self) -> int | None: ...


def problems(knobs: Knobs) -> list[str]:
    """What is wrong with the hyper-parameters, in words."""
    found = []
    if knobs.batch < 1:
        found.append(f"`batch >= 1` must hold, but got batch={knobs.batch}")
    if not knobs.lr > 0:
        found.append(f"`lr > 0` must hold, but got lr={knobs.lr}")
    if not 0 <= knobs.decay < 1:
        found.append(f"`0 <= decay < 1` must hold, but got decay={knobs.decay}")
    if not knobs.power > 0:
        found.append(f"`power > 0` must hold, but got power={knobs.power}")
    return found


class Sample(NamedTuple):
    """A config that the controller drew. log_prob: under the weights of then, which were `version` updates old."""

    config: Config
    plan: Plan
    log_prob: float
    version: int


class Adam:
    """Kingma, Ba. ICLR 2015. https://arxiv.org/abs/1412.6980, algorithm 1, betas .9 and .999."""

    def __init__(self, weights: Weights) -> None:
        self.steps = 0
        self.mean = {key: torch.zeros_like(value) for key, value in weights.items()}
        self.square = {key: torch.zeros_like(value) for key, value in weights.items()}

    def step(self, weights: Weights, gradient: Weights, lr: float) -> Weights:
        self.steps += 1
        rate = lr * math.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        after = {}
        for key, g in gradient.items():
            self.mean[key] = 0.9 * self.mean[key] + 0.1 * g
            self.square[key] = 0.999 * self.square[key] + 0.001 * g * g
            after[key] = weights[key] - rate * self.mean[key] / (self.square[key].sqrt() + 1e-8)
        return after


class PolicyGradient(Strategy):
    """baseline: exponential average of the rewards *before* a batch; the first batch, which has none, only sets it.

    A reward is a score to the power `power`, with its sign. issued, applied: samples that were drawn, and that were used.
    """

    example: ClassVar[Mapping[str, Any]] = {"bins": 4}

    def __init__(self, space: Space, *, hyperparameters: Any, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        self._finite = discretised(space, hyperparameters.bins, type(self).__name__.lower())
        self.controller = self.made(self._finite)
        self.restarts = 0
        self._begin()
        self.baseline: float | None = None
        self.updates = 0
        self.issued = self.applied = self.stale = 0
        self._draws = 0
        self._worst: float | None = None  # the lowest reward that was told
        self._seen = Seen(self._finite)
        self._known: dict[str, float] = {}  # digest of a config -> its reward
        self._running: dict[str, list[Sample]] = {}  # every one a sample waits for
        self._batch: list[tuple[Sample, float]] = []

    @abstractmethod
    def made(self, space: Space) -> Controller:
        """The controller over a finite space."""

    @abstractmethod
    def loss(self, weights: Weights, samples: Sequence[Sample], advantages: Tensor) -> Tensor:
        """To be minimised; advantages [m]."""

    @property
    def passes(self) -> int:
        """Steps of Adam on every batch."""
        return 1

    @property
    def population(self) -> int | float:
        return self._finite.size

    def _begin(self) -> None:
        self.weights = self.controller.init(Generator().manual_seed(seed_of(self.seed, self.restarts)))
        self._adam = Adam(self.weights)

    # -- a sampler that learns -----------------------------------------------------------------------------------------------

    def sample(self) -> Sample:
        """Drawn from (seed, how many were drawn before) and the present weights."""
        self._draws += 1
        self.issued += 1
        with one_thread():
            config, plan, log_prob = self.controller.sample(self.weights, rng_of(self.seed, self._draws))
        return Sample(config, plan, log_prob, self.updates)

    def update(self, samples: Sequence[Sample], rewards: Sequence[float]) -> None:
        """One batch: moves the weights, then the baseline. Rewards are larger-is-better, and their power was taken already."""
        mean = sum(rewards) / len(rewards)
        self.applied += len(samples)
        self.stale += sum(self.updates - sample.version for sample in samples)
        if self.baseline is None:
            self.baseline = mean
        else:
            advantages = torch.tensor([reward - self.baseline for reward in rewards], dtype=torch.float64)
            with one_thread():
                for _ in range(self.passes):
                    self.weights = self._adam.step(self.weights, self.gradient(samples, advantages), self.hyperparameters.lr)
            decay = self.hyperparameters.decay
            self.baseline = decay * self.baseline + (1 - decay) * mean
        self.updates += 1

    def gradient(self, samples: Sequence[Sample], advantages: Tensor) -> Weights:
        """Of the loss, at the present weights."""
        leaves = {key: value.detach().requires_grad_() for key, value in self.weights.items()}
        loss = self.loss(leaves, samples, advantages)
        if not loss.requires_grad:  # a space of one config
            return {key: torch.zeros_like(value) for key, value in leaves.items()}
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    # -- asked and told ------------------------------------------------------------------------------------------------------

    def ask(self) -> Proposal | None:
        if self._seen.everything:
            return None
        for _ in range(2):  # once more with new weights
            waits = False
            for _ in range(DRAWS):
                sample = self.sample()
                key = digest(sample.config)
                if key in self._running:
                    self._running[key].append(sample)
                    waits = True
                elif key in self._known:
                    self._collect(sample, self._known[key])
                elif sample.config not in self._seen:
                    return self._asked(sample.config, [sample])
            if waits:
                break  # there is something to learn from yet
            self._restart()
        return self._asked(self._seen.another(rng_of(self.seed, self._draws, 1)), [])

    def _asked(self, config: Config, samples: list[Sample]) -> Proposal:
        self._seen.add(config)
        self._running[digest(config)] = samples
        return Proposal(dict(config))

    def tell(self, outcome: Outcome) -> None:
        config = outcome.proposal.config
        if self._finite.problems(config):  # from elsewhere, between the bins
            return
        key = digest(config)
        samples = self._running.pop(key, [])
        self._seen.add(config)
        if outcome.status == "error":
            return
        reward = self._reward(outcome)
        if reward is None:
            return
        self._known[key] = reward
        for sample in samples:
            self._collect(sample, reward)

    def _reward(self, outcome: Outcome) -> float | None:
        score = outcome.score
        if outcome.status not in ("done", "reused") or score is None or not math.isfinite(score):
            return self._worst
        power = self.hyperparameters.power
        try:
            reward = math.copysign(min(abs(score) ** power, HUGE), score)
        except OverflowError:
            reward = math.copysign(HUGE, score)
        self._worst = reward if self._worst is None else min(self._worst, reward)
        return reward

    def _collect(self, sample: Sample, reward: float) -> None:
        self._batch.append((sample, reward))
        if len(self._batch) == self.hyperparameters.batch:
            batch, self._batch = self._batch, []
            self.update([sample for sample, _ in batch], [reward for _, reward in batch])

    def _restart(self) -> None:
        self.restarts += 1
        self._begin()
        self._batch = []
        self._running = {key: [] for key in self._running}

    # -- snapshots -----------------------------------------------------------------------------------------------------------

    COUNTS = ("restarts", "baseline", "updates", "issued", "applied", "stale", "_draws", "_worst")

    def state_dict(self) -> dict[str, Any]:
        return {
            "counts": {name: getattr(self, name) for name in self.COUNTS},
            "weights": dict(self.weights),
            "adam": [self._adam.steps, dict(self._adam.mean), dict(self._adam.square)],
            "seen": self._seen.digests(),
            "known": dict(self._known),
            "running": {key: [_to_json(sample) for sample in samples] for key, samples in self._running.items()},
            "batch": [[_to_json(sample), reward] for sample, reward in self._batch],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self.COUNTS:
            setattr(self, name, state["counts"][name])
        self.weights = dict(state["weights"])
        self._adam.steps, self._adam.mean, self._adam.square = state["adam"][0], dict(state["adam"][1]), dict(state["adam"][2])
        self._seen = Seen(self._finite, state["seen"])
        self._known = dict(state["known"])
        self._running = {key: [self._from_json(body) for body in bodies] for key, bodies in state["running"].items()}
        self._batch = [(self._from_json(body), reward) for body, reward in state["batch"]]

    def _from_json(self, body: Sequence[Any]) -> Sample:
        config, log_prob, version = body
        return Sample(config, self.controller.plan(config), log_prob, version)


def _to_json(sample: Sample) -> list[Any]:
    return [sample.config, sample.log_prob, sample.version]
