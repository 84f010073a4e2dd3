"""2-D navigation: reach a goal that is never shown, from the rewards of a few trajectories. Reinforcement learning as tasks.

Finn, Abbeel, Levine. ICML 2017, section 5.3. https://arxiv.org/abs/1703.03400; as in the authors' environment: from (0, 0), a
step is the action clipped to +-0.1 on each axis, the reward is minus the distance to the goal after it, the goal is uniform in
[-0.5, 0.5]^2, a trajectory ends within 0.01 of the goal on both axes, or after 100 steps.

Randomness is data: an input row is the standard normal draw of one time step, y is the goal, an output row is the position after
that step. Where somebody goes does not depend on the goal, so `score` and the rewards are functions of positions and goal.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from metasearch.tasks import Episode, Kind, Split, TaskDistribution, TaskShape

STEP, BOX = 0.1, 0.01


class Navigation(TaskDistribution):
    """An episode is one goal. Rows are time steps: `shots` = trajectories x horizon; trajectory by trajectory, in order of time.

    All splits are one law; they are different random streams. The score is the mean return of the queries' trajectories.
    """

    kind: ClassVar[Kind] = "control"
    chance: ClassVar[Literal["1/ways"] | None] = None
    unit: ClassVar[str] = "return"

    def __init__(self, horizon: int = 100, reach: float = 0.5) -> None:
        if horizon < 1 or not reach > 0:
            raise ValueError(f"`horizon >= 1` and `reach > 0` must hold, but got horizon={horizon}, reach={reach}")
        self.horizon = horizon
        self.reach = float(reach)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def usual_ways(self) -> int:
        return 2

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(["navigation", self.horizon, self.reach]).encode()).hexdigest()[:16]

    def check(self, shape: TaskShape, split: Split) -> None:
        if tuple(shape.x) != self.input_shape:
            raise ValueError(f"inputs {tuple(shape.x)} were asked for, but these tasks have inputs {self.input_shape}")
        rows = (shape.shots, shape.queries)
        if shape.ways != 2 or min(rows) < 1 or any(n % self.horizon for n in rows):
            raise ValueError(
                f"`ways == 2` (an action has two axes) must hold, and shots and queries be positive multiples of the horizon "
                f"{self.horizon} (20 trajectories are {20 * self.horizon}), but got (ways={shape.ways}, shots={shape.shots}, "
                f"queries={shape.queries})."
            )

    def shifted(self, strength: float = 1.0) -> Navigation:
        """Goals farther away: the square's side grows by `strength` times itself."""
        return Navigation(self.horizon, self.reach * (1 + strength)).to(self.device)

    def _draw(self, n: int, split: Split, shape: TaskShape, generator: Generator) -> Episode:
        if split != "train":  # a stream of their own
            seed = int(torch.randint(2**62, (), generator=generator))
            number = hashlib.sha256(f"{split} {seed}".encode()).digest()[:8]
            generator = Generator().manual_seed(int.from_bytes(number, "big") >> 1)
        goal = (torch.rand(n, 1, 2, generator=generator) * 2 - 1) * self.reach
        support = torch.randn(n, shape.shots, 2, generator=generator)
        query = torch.randn(n, shape.queries, 2, generator=generator)
        goals = (goal.expand_as(support).contiguous(), goal.expand_as(query).contiguous())
        return Episode(support, goals[0], query, goals[1]).to(self.device)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return -self.score(output, y)

    def score(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean undiscounted return of the trajectories in rows of positions [T * horizon, 2]."""
        rewards, alive = rewarded(output.view(-1, self.horizon, 2), y.view(-1, self.horizon, 2))
        return (rewards * alive).sum(1).mean()


def walk(act: Callable[[Tensor, int], Tensor], trajectories: int, horizon: int, like: Tensor) -> Tensor:
    """Positions [T, horizon, 2] after each step; act(positions [T, 2], time) -> actions [T, 2], which are clipped here."""
    at = torch.zeros(trajectories, 2, dtype=like.dtype, device=like.device)
    visited = []
    for time in range(horizon):
        at = at + act(at, time).clamp(-STEP, STEP)
        visited.append(at)
    return torch.stack(visited, 1)


def rewarded(positions: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """(rewards, 1 where the trajectory had not ended before that step): [T, H, 2], [T, H, 2] -> [T, H], [T, H]."""
    away = positions - goal
    there = (away.abs() < BOX).all(-1).to(positions.dtype)
    ended_before = torch.cumsum(there, 1) - there
    return -away.norm(dim=-1), (ended_before == 0).to(positions.dtype)
