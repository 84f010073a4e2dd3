"""MAML with policy gradients: learn a policy that one policy-gradient step on a few trajectories turns towards an unseen goal.

Finn, Abbeel, Levine. ICML 2017, section 4.2 and algorithm 3. https://arxiv.org/abs/1703.03400; as in the authors' code
(cbfinn/maml_rl): Gaussian policy with a learnt standard deviation, inner loss -mean(log pi * advantage), advantages by a linear
baseline on polynomial features of state and time that is fitted to each task's returns, normalised in each task.
Trajectories are data: no gradient passes through how they were sampled, so the meta-gradient lacks the term of the sampling
distribution (Al-Shedivat et al. 2018; DiCE estimators have it), as in that code.
The outer loop is the recipe's `fit`: TRPO or PPO on the adapted policies (objectives/policy_search.py).
"""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, gradients, inner
from metasearch.nets import Net, Params, adapted
from metasearch.tasks import Episode, Kind, TaskDistribution, TaskShape
from metasearch.tasks.navigation import Navigation, rewarded, walk

STD = "net/policy/log_std"


class Trajectories(NamedTuple):
    """What a policy did in one task, without a graph. states: where it stood [T, H, 2]; actions: before clipping [T, H, 2];
    advantages: [T, H]; alive: 1 for steps that were made [T, H]."""

    states: Tensor
    actions: Tensor
    advantages: Tensor
    alive: Tensor


@dataclass(frozen=True)
class MAMLRL(Learner):
    """inner_lr: of -mean(log pi * advantage). std: with which the policy begins. horizon: of the tasks.
    discount, trace: of the advantages (gamma, and lambda of generalised advantage estimation; 1 is Monte-Carlo).

    The net maps positions [M, 2] to mean actions [M, 2]; its log standard deviation is learnt and adapted with it.
    The same normal draws serve every inner step (common random numbers)."""

    kinds: ClassVar[tuple[Kind, ...]] = ("control",)

    inner_lr: float | Tensor = 0.1
    inner_steps: int = 1
    test_steps: int | None = None
    std: float = 1.0
    horizon: int = 100
    discount: float = 0.99
    trace: float = 1.0

    def __post_init__(self) -> None:
        inner.check(
            inner_lr=self.inner_lr, inner_steps=self.inner_steps, test_steps=self.test_steps, std=self.std,
            discount=self.discount, trace=self.trace,
        )
        inner.check(least=1, horizon=self.horizon)
        if not isinstance(self.std, Tensor) and not self.std > 0:
            raise ValueError(f"`std > 0` must hold, but got std={self.std}")

    def init(self, net: Net, generator: Generator) -> Params:
        if net.outputs != 2:
            raise ValueError(f"a navigating policy has 2 outputs, but this net has {net.outputs}. Build it with shape.ways.")
        return net.init(generator) | {STD: torch.ones(2) * math.log(self.std)}

    def check(self, tasks: TaskDistribution, shape: TaskShape) -> None:
        super().check(tasks, shape)
        if not isinstance(tasks, Navigation):
            raise ValueError(f"maml-rl walks in the plane of Navigation, but the tasks are {type(tasks).__name__}")
        if tasks.horizon != self.horizon:
            raise ValueError(f"maml-rl would walk for {self.horizon} steps, but the tasks' walks have {tasks.horizon}. "
                             f"Set tasks.horizon = {self.horizon}, or the learner's horizon to {tasks.horizon}.")

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        theta = {k: v for k, v in meta.items() if adapted(k)}
        for _ in range(self.inner_steps):
            seen = self.gathered(net, {**meta, **theta}, support_x, support_y)
            theta = self.stepped(net, meta, theta, seen)
        return theta

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        """Positions [Q, 2] after every step."""
        return self._walked(net, {**meta, **task}, query_x)[1].reshape(-1, 2)

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        """-mean(log pi' * advantage) of the adapted policy on its own trajectories: its gradient is that of algorithm 3."""
        task = self.adapt(net, loss, meta, episode.support_x, episode.support_y)
        after = self.gathered(net, {**meta, **task}, episode.query_x, episode.query_y)
        return self.surprise(net, {**meta, **task}, after), {}

    def at_test(self) -> MAMLRL:
        return self if self.test_steps is None else replace(self, inner_steps=self.test_steps)

    def stepped(self, net: Net, meta: Params, theta: Params, seen: Trajectories) -> Params:
        """One inner step of vanilla policy gradient on trajectories that are data."""
        def objective(p: Params) -> tuple[Tensor, tuple[()]]:
            return self.surprise(net, {**meta, **p}, seen), ()

        _, _, grads = gradients.value_and_gradient(objective, theta, differentiable=True)
        return {k: inner.descend(p, grads[k], self.inner_lr) for k, p in theta.items()}

    def surprise(self, net: Net, params: Params, seen: Trajectories) -> Tensor:
        """-mean(log pi * advantage) over the steps that were made."""
        return -(log_probability(net, params, seen) * seen.advantages * seen.alive).sum() / seen.alive.sum()

    def gathered(self, net: Net, params: Params, noise: Tensor, goal: Tensor) -> Trajectories:
        """Trajectories of the policy in the task of this goal, with their advantages."""
        frozen = {k: v.detach() for k, v in params.items()}
        actions, positions = self._walked(net, frozen, noise)
        rewards, alive = rewarded(positions, goal.view(positions.shape))
        states = torch.cat([torch.zeros_like(positions[:, :1]), positions[:, :-1]], 1)
        values = advantages(states, rewards, alive, discount=self.discount, trace=self.trace)
        return Trajectories(*(t.detach() for t in (states, actions, values, alive)))

    def _walked(self, net: Net, params: Params, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(actions, positions) [T, H, 2] of noise [T * H, 2]."""
        noise = noise.view(-1, self.horizon, 2)
        std, actions = params[STD].exp(), []

        def act(at: Tensor, time: int) -> Tensor:
            actions.append(net.apply(params, at) + std * noise[:, time])
            return actions[-1]

        positions = walk(act, noise.shape[0], self.horizon, noise)
        return torch.stack(actions, 1), positions


def log_probability(net: Net, params: Params, seen: Trajectories) -> Tensor:
    """log pi(actions | states), without the constant that no gradient sees: [T, H]."""
    mean = net.apply(params, seen.states.reshape(-1, 2)).view(seen.states.shape)
    z = (seen.actions - mean) * (-params[STD]).exp()
    return -0.5 * (z * z).sum(-1) - params[STD].sum()


def returns(rewards: Tensor, alive: Tensor, discount: float | Tensor) -> Tensor:
    """Discounted sums of what was still to come: R_t = r_t + discount R_{t+1}; [T, H]."""
    summed, later = [], torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        later = rewards[:, t] * alive[:, t] + discount * later
        summed.append(later)
    return torch.stack(summed[::-1], 1)


def advantages(
    states: Tensor, rewards: Tensor, alive: Tensor, *, discount: float | Tensor, trace: float | Tensor
) -> Tensor:
    """Generalised advantage estimates over a linear baseline fitted to the returns, then mean 0 and variance 1 over the task.

    Baseline (Duan et al. 2016, as in rllab): ridge regression of returns on state, state^2, t, t^2, t^3 (t in hundreds), 1.
    """
    trajectories, horizon, _ = states.shape
    t = (torch.arange(horizon, dtype=states.dtype, device=states.device) / 100).expand(trajectories, horizon)[..., None]
    features = torch.cat([states, states**2, t, t**2, t**3, torch.ones_like(t)], -1)  # [T, H, 8]
    weighted = features * alive[..., None]
    gram = torch.einsum("thi,thj->ij", weighted, features)
    right = torch.einsum("thi,th->i", weighted, returns(rewards, alive, discount))
    ridge = 1e-5 * torch.eye(features.shape[-1], dtype=states.dtype, device=states.device)
    fitted, _ = torch.linalg.solve_ex(gram + ridge, right)  # a policy that is not finite diverges; it is no error
    value = (features @ fitted) * alive  # [T, H]
    after = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
    surprise = (rewards + discount * after - value) * alive
    raw = returns(surprise, alive, discount * trace)
    count = alive.sum()
    mean = (raw * alive).sum() / count
    spread = (((raw - mean) ** 2 * alive).sum() / count).sqrt()
    return (raw - mean) / (spread + 1e-8) * alive
