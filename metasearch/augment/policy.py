"""Policies on pictures: what a search looks for, and the two that it must beat.

    policy = metasearch.augment.load("policy.json")
    augmented = policy(images, generator)        # [n, C, H, W] uint8, or float in 0..1, on any device

A policy is a frozen value that draws a Plan (plan.py) for n pictures from a generator of the CPU; it is exported as JSON
(saved.py), and `Places` says where in an episode policies act (places.py).

AutoAugment, PBA, RandAugment, TrivialAugment, UniformAugment: see each class.
"""
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import overload

import torch
from torch import Generator, Tensor

from metasearch.augment import ranges as tables
from metasearch.augment.ops import NOISE, NUMBER, RANDAUGMENT, find
from metasearch.augment.plan import Moments, Plan, carry_out, joined

__all__ = [
    "Policy", "RandAugment", "Schedule", "Shared", "Shuffled", "Step", "SubPolicies", "TrivialAugment", "UniformAugment", "fixed",
]


@dataclass(frozen=True)
class Step:
    """An operation that is applied with a probability, at a level 0..1 of its range (ranges.py)."""

    operation: str
    probability: float = 1.0
    magnitude: float = 0.5

    def __post_init__(self) -> None:
        find(self.operation)
        hold(self, probability=_share(f"the probability of {self.operation}", self.probability),
              magnitude=_share(f"the magnitude of {self.operation}, a level of its range,", self.magnitude))


class Policy(ABC):
    """Draws a Plan for pictures; called, it carries it out."""

    @abstractmethod
    def plan(self, n: int, generator: Generator, progress: float | Tensor = 0.0) -> Plan:
        """For n pictures. progress: the point of training, 0..1, one or [n] of them; a Schedule goes by it, and Shared tells the
        outer steps apart by it."""

    @property
    @abstractmethod
    def operations(self) -> tuple[str, ...]:
        """The names of all operations that may be applied, each once."""

    @overload
    def __call__(self, images: Tensor, generator: Generator, *, progress: float | Tensor | None = None,
                 group: int | None = None, fill: float | None = None, moments: Moments | None = None) -> Tensor: ...
    @overload
    def __call__(self, images: Tensor, generator: Generator, labels: Tensor, *, progress: float | Tensor | None = None,
                 group: int | None = None, fill: float | None = None, moments: Moments | None = None,
                 ) -> tuple[Tensor, Tensor]: ...

    def __call__(
        self, images: Tensor, generator: Generator, labels: Tensor | None = None, *, progress: float | Tensor | None = None,
        group: int | None = None, fill: float | None = None, moments: Moments | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Augmented pictures; (pictures, labels) if labels [n, N] are given. The other arguments are those of `carry_out`.

        Raises ValueError for what is no such tensor, and where a policy that changes over training is not told the progress.
        """
        if progress is None and self.changes:
            raise ValueError("the policy changes over training: say at which point of it the pictures are seen, progress=0..1")
        _look(images, moments, generator)
        plan = self.plan(len(images), generator, 0.0 if progress is None else progress)
        found, mixed = carry_out(plan, images, labels, group=group, fill=fill, moments=moments)
        return found if mixed is None else (found, mixed)

    def idle(self, channels: int) -> tuple[str, ...]:
        """The operations that leave pictures of so many channels as they are: those about colour, of grey pictures."""
        return tuple(name for name in self.operations if find(name).colour) if channels == 1 else ()

    @property
    def changes(self) -> bool:
        """Does it go by the progress of training?"""
        return False

    def check(self, steps: int) -> None:  # noqa: B027  most policies are for any
        """Raises ValueError if the policy is not for a training of so many outer steps."""


@dataclass(frozen=True)
class SubPolicies(Policy):
    """Every picture draws one sub-policy, uniformly, and goes through its steps in order, each with its probability.

    AutoAugment: Cubuk et al. CVPR 2019. https://arxiv.org/abs/1805.09501: sub-policies of two steps. One sub-policy alone is a
    fixed policy. weights: the sub-policies' probabilities are proportional to them (a mixture, as DADA ends with); none: equal.
    """

    choices: tuple[tuple[Step, ...], ...]
    weights: tuple[float, ...] = ()
    ranges: str = "autoaugment"

    def __post_init__(self) -> None:
        tables.check(self.ranges)
        if not isinstance(self.choices, Sequence) or not self.choices:
            raise ValueError(f"a policy needs one sub-policy or more, but got {self.choices or 'none'!r}")
        hold(self, choices=tuple(_steps(choice) for choice in self.choices), weights=_numbers("weights", self.weights))
        total = sum(self.weights)
        if self.weights and (len(self.weights) != len(self.choices) or min(self.weights) < 0 or not 0 < total < math.inf):
            raise ValueError(f"weights must be one number >= 0 for each of {len(self.choices)} sub-policies, not all 0, "
                             f"but got {list(self.weights)}")

    @property
    def operations(self) -> tuple[str, ...]:
        return _once(step.operation for choice in self.choices for step in choice)

    def plan(self, n: int, generator: Generator, progress: float | Tensor = 0.0) -> Plan:
        number, probability, level = _table(self.choices)  # [choices, L]
        weights = torch.tensor(self.weights or (1.0,) * len(self.choices), dtype=torch.float64)
        drawn = torch.rand(n, dtype=torch.float64, generator=generator) * weights.sum()
        chosen = torch.searchsorted(weights.cumsum(0), drawn, right=True).clamp(max=len(weights) - 1)
        applied = torch.rand(n, number.shape[1], generator=generator) < probability[chosen]
        return _drawn(torch.where(applied, number[chosen], 0).T, level[chosen].T, self.ranges, generator)


def fixed(*steps: Step, ranges: str = "autoaugment") -> SubPolicies:
    """The same steps for every picture."""
    return SubPolicies((steps,), ranges=ranges)


@dataclass(frozen=True)
class Shuffled(Policy):
    """PBA's policy: a picture draws how many operations it gets, and takes the first that hit out of all steps in random order.

    Ho, Liang, Stoica, Abbeel, Chen. ICML 2019. https://arxiv.org/abs/1905.05393, algorithm 1. counts: the probabilities of
    0, 1, 2, ... operations.
    """

    steps: tuple[Step, ...]
    counts: tuple[float, ...] = (0.2, 0.3, 0.5)
    ranges: str = "autoaugment"

    def __post_init__(self) -> None:
        tables.check(self.ranges)
        hold(self, steps=_steps(self.steps), counts=_numbers("counts", self.counts))
        if not self.steps or len(self.counts) < 2 or min(self.counts) < 0 or not abs(sum(self.counts) - 1) < 1e-6:
            raise ValueError(f"a shuffled policy needs steps, and the probabilities of 0, 1, ... of them, which add to 1, but "
                             f"got {len(self.steps)} steps and {list(self.counts)}")

    @property
    def operations(self) -> tuple[str, ...]:
        return _once(step.operation for step in self.steps)

    def plan(self, n: int, generator: Generator, progress: float | Tensor = 0.0) -> Plan:
        number, probability, level = (column[0] for column in _table([self.steps]))  # [steps]
        most = min(len(self.counts) - 1, len(self.steps))
        u = torch.rand(n, 1, generator=generator)
        count = (u >= torch.tensor(self.counts[:-1]).cumsum(0)).sum(1, keepdim=True)  # [n, 1]
        order = torch.rand(n, len(number), generator=generator).argsort(1)
        hit = torch.rand(n, len(number), generator=generator) < probability[order]
        taken = hit & (hit.cumsum(1) <= count)
        first = (~taken).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]  # those taken, in their order
        steps = order.gather(1, first)
        numbers = torch.where(taken.gather(1, first), number[steps], 0)
        return _drawn(numbers.T, level[steps].T, self.ranges, generator)


@dataclass(frozen=True)
class RandAugment(Policy):
    """n operations a picture, drawn uniformly with replacement, all at level m / 30.

    Cubuk, Zoph, Shlens, Le. NeurIPS 2020. https://arxiv.org/abs/1909.13719: fourteen operations, one of them the identity.
    """

    n: int = 2
    m: float = 9
    names: tuple[str, ...] = RANDAUGMENT
    ranges: str = "randaugment"

    def __post_init__(self) -> None:
        tables.check(self.ranges)
        m = _number("m", self.m)
        hold(self, names=_named(self.names), n=_whole("n", self.n), m=int(m) if m.is_integer() else m)
        if self.n < 1 or not 0 <= self.m <= 30:
            raise ValueError(f"`n >= 1` and `0 <= m <= 30` must hold, but got (n={self.n}, m={self.m})")

    @property
    def operations(self) -> tuple[str, ...]:
        return _once(self.names)

    def plan(self, n: int, generator: Generator, progress: float | Tensor = 0.0) -> Plan:
        numbers = _uniform(self.names, (self.n, n), generator)
        return _drawn(numbers, torch.full(numbers.shape, self.m / 30), self.ranges, generator)


@dataclass(frozen=True)
class TrivialAugment(Policy):
    """One operation a picture, drawn uniformly, at a level drawn uniformly out of 0, 1/30, ..., 1.

    Müller, Hutter. ICCV 2021. https://arxiv.org/abs/2103.10158.
    """

    names: tuple[str, ...] = RANDAUGMENT
    ranges: str = "wide"

    def __post_init__(self) -> None:
        tables.check(self.ranges)
        hold(self, names=_named(self.names))

    @property
    def operations(self) -> tuple[str, ...]:
        return _once(self.names)

    def plan(self, n: int, generator: Generator, progress: float | Tensor = 0.0) -> Plan:
        numbers = _uniform(self.names, (1, n), generator)
        return _drawn(numbers, torch.randint(31, (1, n), generator=generator) / 30, self.ranges, generator)


@dataclass(frozen=True)
class UniformAugment(Policy):
    """Two operations a picture, each with probability 0.5 at a level uniform in 0..1.

    LingChen, Khonsari, Lashkari et al. https://arxiv.org/abs/2003.14348.
    """

    n: int = 2
    probability: float = 0.5
    names: tuple[str, ...] = RANDAUGMENT
    ranges: str = "dada"

    def __post_init__(self) -> None:
        tables.check(self.ranges)
        hold(self, names=_named(self.names), probability=_share("the probability", self.probability), n=_whole("n", self.n))
        if self.n < 1:
            raise ValueError(f"`n >= 1` must hold, but got n={self.n}")

    @property
    def operations(self) -> tuple[str, ...]:
        return _once(self.names)

    def plan(self, n: int, generator: Generator, progress: float | Tensor = 0.0) -> Plan:
        numbers = _uniform(self.names, (self.n, n), generator)
        applied = torch.rand(self.n, n, generator=generator) < self.probability
        level = torch.rand(self.n, n, generator=generator)
        return _drawn(torch.where(applied, numbers, 0), level, self.ranges, generator)


@dataclass(frozen=True)
class Schedule(Policy):
    """One policy after the other over training, as PBA finds them.

    lengths: how long each lasts, in any unit (epochs, say); none: all alike. A schedule is stretched over the training, however
    long: policy i ends where the share sum(lengths[:i + 1]) / sum(lengths) of it is done. steps: the only number of outer steps
    for which the schedule may be used; None: any.
    """

    policies: tuple[Policy, ...]
    lengths: tuple[float, ...] = ()
    steps: int | None = None

    def __post_init__(self) -> None:
        hold(self, policies=_policies("a schedule", self.policies), lengths=_numbers("lengths", self.lengths))
        if not self.policies or any(policy.changes for policy in self.policies):
            raise ValueError("a schedule needs one policy or more, none of them a schedule")
        if self.lengths and (len(self.lengths) != len(self.policies) or not all(0 < n < math.inf for n in self.lengths)):
            raise ValueError(f"lengths must be one number > 0 for each of {len(self.policies)} policies, but got "
                             f"{list(self.lengths)}")
        if self.steps is not None:
            hold(self, steps=_whole("steps", self.steps))
            if self.steps < 1:
                raise ValueError(f"a schedule is for one outer step or more, but got steps={self.steps}. None: for any number")

    @property
    def operations(self) -> tuple[str, ...]:
        return _once(name for policy in self.policies for name in policy.operations)

    @property
    def changes(self) -> bool:
        return True

    def stage(self, progress: float | Tensor) -> Tensor:
        """The number of the policy at each progress. Raises ValueError for one that is not in 0..1."""
        lengths = torch.tensor(self.lengths or (1.0,) * len(self.policies), dtype=torch.float64)
        ends = lengths.cumsum(0) / lengths.sum()
        at = torch.as_tensor(progress, dtype=torch.float64)
        if at.numel() and not (at.min() >= 0 and at.max() <= 1 + 1e-6):
            raise ValueError(f"progress is the share of training that is done, 0..1, but got {progress}")
        return torch.searchsorted(ends - 1e-7, at, right=True).clamp(max=len(ends) - 1)  # 1e-7: a progress may be a float32

    def at(self, progress: float) -> Policy:
        return self.policies[int(self.stage(progress))]

    def plan(self, n: int, generator: Generator, progress: float | Tensor = 0.0) -> Plan:
        stages, at = self.stage(progress), torch.as_tensor(progress, dtype=torch.float64)
        if stages.dim() and len(stages) != n:
            raise ValueError(f"progress is a number, or one for each of {n} pictures, but got {len(stages)}")
        stages, at = stages.expand(n), at.expand(n)
        rows = [(self.policies[k], torch.nonzero(stages == k)[:, 0]) for k in sorted(set(stages.tolist()))]
        if not rows:
            return Plan.nothing(1, 0)
        parts = joined([policy.plan(len(where), generator, at[where]) for policy, where in rows])
        return parts.select(torch.cat([where for _, where in rows]).argsort())

    def check(self, steps: int) -> None:
        if self.steps is not None and steps != self.steps:
            raise ValueError(f"the schedule is for {self.steps} outer steps, but this training has {steps}. Train for "
                             f"{self.steps}, or set the schedule's steps to None: then it is stretched.")


@dataclass(frozen=True)
class Shared(Policy):
    """One draw of operations and levels for all pictures of an outer step (those in a row with the same progress), as DADA draws
    them for a batch. Signs, holes and partners stay each picture's own."""

    policy: Policy

    def __post_init__(self) -> None:
        _policies("a draw for all pictures", (self.policy,))

    @property
    def changes(self) -> bool:
        return self.policy.changes

    @property
    def operations(self) -> tuple[str, ...]:
        return self.policy.operations

    def plan(self, n: int, generator: Generator, progress: float | Tensor = 0.0) -> Plan:
        at = torch.as_tensor(progress, dtype=torch.float64)
        if not at.dim():
            return self._drawn(n, generator, at)
        if len(at) != n:
            raise ValueError(f"progress is a number, or one for each of {n} pictures, but got {len(at)}")
        ends = torch.cat([torch.nonzero(at[1:] != at[:-1])[:, 0] + 1, torch.tensor([n])]) if n else torch.zeros(0)
        steps = pairwise([0, *map(int, ends)])
        parts = [self._drawn(end - first, generator, at[first]) for first, end in steps]
        return joined(parts) if parts else Plan.nothing(1, 0)

    def _drawn(self, n: int, generator: Generator, progress: Tensor) -> Plan:
        number, magnitude, _ = self.policy.plan(1, generator, progress)
        noise = torch.rand(len(number), n, NOISE, generator=generator)
        return Plan(number.expand(-1, n), magnitude.expand(-1, n), noise)

    def check(self, steps: int) -> None:
        self.policy.check(steps)


# small parts ------------------------------------------------------------------------------------------------------------------


def _table(choices: Sequence[Sequence[Step]]) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers, probabilities and levels, [choices, L]; shorter choices end in identities."""
    rounds = max(1, *(len(choice) for choice in choices))
    filled = [[*choice, *[Step("identity")] * (rounds - len(choice))] for choice in choices]
    return (
        torch.tensor([[NUMBER[step.operation] for step in choice] for choice in filled]),
        torch.tensor([[step.probability for step in choice] for choice in filled], dtype=torch.float32),
        torch.tensor([[step.magnitude for step in choice] for choice in filled], dtype=torch.float32),
    )


def _drawn(numbers: Tensor, level: Tensor, ranges: str, generator: Generator) -> Plan:
    noise = torch.rand(*numbers.shape, NOISE, generator=generator)
    return Plan(numbers, tables.magnitudes(ranges, numbers, level), noise)


def _uniform(names: Sequence[str], shape: tuple[int, int], generator: Generator) -> Tensor:
    """Numbers of operations, each of `names` equally likely."""
    return torch.tensor([NUMBER[name] for name in names])[torch.randint(len(names), shape, generator=generator)]


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def hold(policy: object, **values: object) -> None:
    """Fields of a frozen value in types of their own: what is equal is then saved and hashed alike."""
    for name, value in values.items():
        object.__setattr__(policy, name, value)


def _named(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(f"a policy needs a sequence of one operation or more, but got {names or 'none'!r}")
    return tuple(find(name).name for name in names)


def _steps(steps: object) -> tuple[Step, ...]:
    if not isinstance(steps, Sequence) or not all(isinstance(step, Step) for step in steps):
        raise ValueError(f"a sub-policy is a sequence of steps (operation, probability, magnitude), but got {steps!r}")
    return tuple(steps)


def _policies(what: str, policies: Sequence[object]) -> tuple[Policy, ...]:
    found = []
    for policy in policies if isinstance(policies, Sequence) else (policies,):
        if not isinstance(policy, Policy):
            raise ValueError(f"{what} is made of policies, but got {policy!r}")
        found.append(policy)
    return tuple(found)


def _whole(what: str, value: float) -> int:
    if not isinstance(value, Integral):
        raise ValueError(f"{what} must be a whole number, but is {value!r}")
    return int(value)


def _numbers(what: str, values: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(values, Iterable):
        raise ValueError(f"{what} must be a sequence of numbers, but is {values!r}")
    return tuple(_number(f"each of {what}", value) for value in values)


def _number(what: str, value: float) -> float:
    if not isinstance(value, Real):
        raise ValueError(f"{what} must be a number, but is {value!r}")
    return float(value)


def _look(images: object, moments: Moments | None, generator: object) -> None:
    """At the sum of all, which is no number if one of them is none, and at the middle row of each picture: that is cheap, and
    tells 0..255 and normalised pictures."""
    if not isinstance(generator, Generator) or generator.device.type != "cpu":
        raise ValueError(f"luck comes from a torch.Generator of the CPU, but got {generator!r}. torch.Generator().manual_seed(0) "
                         f"makes one.")
    if not isinstance(images, Tensor):
        raise ValueError(f"pictures are a tensor [n, C, H, W], but got {type(images).__name__}. torch.as_tensor makes one.")
    if images.dim() != 4 or not images.numel():
        return
    if images.shape[3] <= NOISE < images.shape[1]:
        raise ValueError(f"pictures are [n, C, H, W], but these look like [n, H, W, C]: {tuple(images.shape)}. "
                         f"images.permute(0, 3, 1, 2) turns them.")
    if not images.is_floating_point():
        return
    if not math.isfinite(float(images.sum(dtype=torch.float64 if images.dtype == torch.float64 else torch.float32))):
        raise ValueError("pictures are made of finite numbers, but some of these values are not. torch.isfinite tells which.")
    if moments is not None:
        return
    low, high = (float(v) for v in images[:, :, images.shape[2] // 2].aminmax())
    if not (low >= -0.5 and high <= 1.5):
        raise ValueError(f"pictures are floats in 0..1 or uint8, but these go from {low:.4g} to {high:.4g}. Divide them by 255, "
                         f"or say how they are normalised: moments=(means, standard deviations)")


def _share(what: str, value: float) -> float:
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{what} must be between 0 and 1, but is {value!r}")
    return float(value)
