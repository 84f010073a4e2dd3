"""Sine waves of random amplitude and phase: few-shot regression.

Finn, Abbeel, Levine. "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks." ICML 2017, section 5.1.
https://arxiv.org/abs/1703.03400; as in its code: amplitude ~ U[0.1, 5], phase ~ U[0, pi], x ~ U[-5, 5],
y = amplitude sin(x - phase), no noise, mean squared error.

Predicting 0 costs 4.252; the phase covers half a period only, so the best predictor that sees no support is
-(2/pi) 2.55 cos x = -1.623 cos x, which costs 3.006: less than that before adaptation means leakage.
"""
from __future__ import annotations

import hashlib
import json
import math
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from metasearch.tasks import Episode, Kind, Split, TaskDistribution, TaskShape

HALVES = {"axis": (-5.0, 5.0), "left": (-5.0, 0.0), "right": (0.0, 5.0)}


class Sinusoid(TaskDistribution):
    """An episode is one wave: K supports and Q queries (x, y). `ways` is the number of outputs, which is 1.

    oracle:  inputs are (x, amplitude, phase) [3] instead of x [1]: what a learner could do that knew the task.
    support: where the supports' x lie: on the whole "axis", or all on the "left" or the "right" half. Queries: always the axis.
    All splits are one law; they are different random streams.
    """

    kind: ClassVar[Kind] = "regression"
    chance: ClassVar[Literal["1/ways"] | None] = None
    unit: ClassVar[str] = "mse"

    def __init__(
        self, amplitude_low: float = 0.1, amplitude_high: float = 5.0, phase_low: float = 0.0, phase_high: float = math.pi,
        support: Literal["axis", "left", "right"] = "axis", oracle: bool = False,
    ) -> None:
        if not (amplitude_low <= amplitude_high and phase_low <= phase_high):
            raise ValueError(
                f"`low <= high` must hold, but got amplitude ({amplitude_low}, {amplitude_high}), "
                f"phase ({phase_low}, {phase_high})"
            )
        if support not in HALVES:
            raise ValueError(f"support must be one of {', '.join(HALVES)}, but got {support!r}")
        self.amplitude = (float(amplitude_low), float(amplitude_high))
        self.phase = (float(phase_low), float(phase_high))
        self.support: Literal["axis", "left", "right"] = support
        self.oracle = oracle

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3,) if self.oracle else (1,)

    @property
    def digest(self) -> str:
        told = json.dumps(["sinusoid", self.amplitude, self.phase, self.support, self.oracle])
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def check(self, shape: TaskShape, split: Split) -> None:
        if tuple(shape.x) != self.input_shape:
            raise ValueError(f"inputs {tuple(shape.x)} were asked for, but these tasks have inputs {self.input_shape}")
        if shape.ways != 1 or shape.shots < 1 or shape.queries < 1:
            raise ValueError(
                f"`ways == 1` (a wave has one output), `shots >= 1` and `queries >= 1` must hold, but got (ways={shape.ways}, "
                f"shots={shape.shots}, queries={shape.queries})."
            )

    def on(self, support: Literal["axis", "left", "right"]) -> Sinusoid:
        """The same waves with the supports on this part of the axis."""
        return Sinusoid(*self.amplitude, *self.phase, support=support, oracle=self.oracle).to(self.device)

    def shifted(self, strength: float = 1.0) -> Sinusoid:
        """Both ranges moved up by `strength` times their width: at 1, amplitude ~ U[5, 9.9] and phase ~ U[pi, 2 pi]."""
        (a_low, a_high), (p_low, p_high) = self.amplitude, self.phase
        a_move, p_move = strength * (a_high - a_low), strength * (p_high - p_low)
        moved = Sinusoid(a_low + a_move, a_high + a_move, p_low + p_move, p_high + p_move, self.support, self.oracle)
        return moved.to(self.device)

    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        generator = _stream(split, generator)
        amplitude = _uniform(n, 1, self.amplitude, generator)  # [n, 1]
        phase = _uniform(n, 1, self.phase, generator)
        support_x = _uniform(n, shape.shots, HALVES[self.support], generator)  # [n, K]
        query_x = _uniform(n, shape.queries, HALVES["axis"], generator)  # [n, Q]

        def inputs(x: Tensor) -> Tensor:
            told = (x, amplitude.expand_as(x), phase.expand_as(x)) if self.oracle else (x,)
            return torch.stack(told, dim=-1)

        def values(x: Tensor) -> Tensor:
            return (amplitude * torch.sin(x - phase))[..., None]

        return Episode(inputs(support_x), values(support_x), inputs(query_x), values(query_x)).to(self.device)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()

    def score(self, output: Tensor, y: Tensor) -> Tensor:
        return -(output - y).square().mean()


def _uniform(n: int, m: int, bounds: tuple[float, float], generator: Generator) -> Tensor:
    low, high = bounds
    return torch.rand(n, m, generator=generator).mul_(high - low).add_(low)


def _stream(split: Split, generator: Generator) -> Generator:
    """Training reads the caller's generator; val and test each read a stream of their own that it seeds, so that equal
    seeds do not give equal tasks in two splits."""
    if split == "train":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    number = hashlib.sha256(f"{split} {seed}".encode()).digest()[:8]
    return Generator().manual_seed(int.from_bytes(number, "big") >> 1)
