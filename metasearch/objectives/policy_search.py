"""Policy search: the outer loop of meta-reinforcement learning, a trust region (TRPO) or clipped (PPO) step on adapted policies.

Schulman et al. "Trust Region Policy Optimization". ICML 2015. https://arxiv.org/abs/1502.05477 · "Proximal Policy Optimization".
2017. https://arxiv.org/abs/1707.06347 · as MAML uses them: Finn, Abbeel, Levine 2017, section 5.3.
Every task's trajectories before and after its inner step are gathered once; then the surrogate mean(pi_new/pi_old * advantage) of
the policies *after* adaptation is a function of the initialisation, through the inner step, and so is their mean KL divergence.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from metasearch.learners.maml_rl import MAMLRL, STD, Trajectories, log_probability
from metasearch.nets import Net, Params, adapted
from metasearch.objectives import Infeasible, Mode, Trial
from metasearch.objectives.episodic import block_steps, draw_block, weighted
from metasearch.objectives.recipe import Fit, Recipe
from metasearch.objectives.training import Course, Setting, Step, only_learnt, to, training
from metasearch.records import Proposal, Report
from metasearch.tasks import Episode

if TYPE_CHECKING:
    from metasearch.objectives.train import Train

__all__ = ["policy_search"]


def policy_search(
    outer: Literal["trpo", "ppo"] = "trpo", *, kl: float = 0.01, conjugate_steps: int = 10, damping: float = 1e-5,
    backtracks: int = 15, clip: float = 0.2, epochs: int = 5,
) -> Fit:
    """A recipe's `fit`. kl, conjugate_steps, damping, backtracks: of TRPO's step; the recipe's optimizer is not used then.
    clip, epochs: of PPO, whose `epochs` gradient steps on the same trajectories are the recipe's optimizer's."""
    if outer not in ("trpo", "ppo"):
        raise ValueError(f"outer is 'trpo' or 'ppo', but got {outer!r}")
    if not (kl > 0 and 0 < clip < 1 and min(conjugate_steps, backtracks, epochs) >= 1):
        raise ValueError(
            "`kl > 0`, `0 < clip < 1` and at least 1 of conjugate_steps, backtracks and epochs must hold, but got "
            f"kl={kl}, clip={clip}, conjugate_steps={conjugate_steps}, backtracks={backtracks}, epochs={epochs}"
        )

    def fit(recipe: Recipe, study: Train, proposal: Proposal, trial: Trial) -> Iterator[Report]:
        learner = recipe.learner
        if not isinstance(learner, MAMLRL):
            raise Infeasible(f"policy_search trains maml-rl, but the learner is {type(learner).__name__}")
        recipe.full_precision("policy_search")

        def step(meta: Params, state: Params, episodes: Episode, progress: float) -> tuple[Params, Params, dict[str, Tensor]]:
            task = Tasks(learner, recipe.net, meta, episodes, trial.chunk)
            if outer == "trpo":
                return {**meta, **trust_region_step(task, kl, conjugate_steps, damping, backtracks)}, state, task.told()
            for _ in range(epochs):
                grads = task.mean(lambda part: torch.func.grad(partial(part.clipped, clip))(task.free))
                task.free, state = recipe.optimizer.update(
                    grads, state, task.free, recipe.optimizer.rates, torch.tensor(progress)
                )
            return {**meta, **task.free}, state, task.told()

        return training(recipe, study, proposal, trial, partial(_course, step))

    return fit


def _course(step: Step, setting: Setting) -> Course:
    recipe, tasks, meta = setting.recipe, setting.tasks, setting.meta
    per_block = block_steps(setting.shape, recipe.meta_batch, recipe.steps)

    def begin(meta: Params, state: Params) -> tuple[Step, Mode]:
        return step, "vmap"

    return Course(
        meta, to(recipe.optimizer.init(only_learnt(meta)), tasks.device), per_block, recipe.meta_batch,
        lambda number: draw_block(recipe, tasks, setting.shape, per_block, setting.seed, number), begin,
    )


class Tasks:
    """A meta-batch of tasks with what was gathered in them: before adaptation (inner data), and after it, by theta' = old.

    free:  the initialisation of this moment. Surrogate and KL are functions of it; everything else is fixed.
    chunk: at most so many tasks are computed at once; None: all.
    """

    def __init__(self, learner: MAMLRL, net: Net, meta: Params, episodes: Episode, chunk: int | None = None) -> None:
        self.learner, self.net, self.chunk = learner, net, chunk
        self.fixed = {k: v for k, v in meta.items() if not adapted(k)}
        self.free = {k: v for k, v in meta.items() if adapted(k)}

        def gather(e: Episode) -> tuple[list[Trajectories], Trajectories, Params]:
            theta, seen = self.free, []
            for _ in range(learner.inner_steps):
                seen.append(learner.gathered(net, {**self.fixed, **theta}, e.support_x, e.support_y))
                theta = learner.stepped(net, self.fixed, theta, seen[-1])
            after = learner.gathered(net, {**self.fixed, **theta}, e.query_x, e.query_y)
            return seen, after, {k: v.detach() for k, v in theta.items()}

        with torch.no_grad():
            self.before, self.after, self.old = torch.func.vmap(gather, chunk_size=chunk)(episodes)
            log = torch.func.vmap(lambda p, s: log_probability(net, {**self.fixed, **p}, s), chunk_size=chunk)
            self.old_log = log(self.old, self.after)  # [B, T, H]

    def mean(self, gradient: Callable[[Tasks], Params]) -> Params:
        """The mean of a gradient over tasks. It keeps what it goes through until it is taken, so it is taken chunk by chunk."""
        count = len(self.old_log)
        if self.chunk is None or self.chunk >= count:
            return gradient(self)
        parts = [self._part(slice(first, first + self.chunk)) for first in range(0, count, self.chunk)]
        return weighted([gradient(part) for part in parts], [len(part.old_log) for part in parts], self.old_log.device)

    def _part(self, which: slice) -> Tasks:
        part = copy(self)
        part.before = [Trajectories(*(t[which] for t in seen)) for seen in self.before]
        part.after, part.old_log = Trajectories(*(t[which] for t in self.after)), self.old_log[which]
        part.old, part.chunk = {k: v[which] for k, v in self.old.items()}, None
        return part

    def surrogate(self, free: Params) -> Tensor:
        """-mean over tasks and steps of pi_new / pi_old * advantage, of the policies after adaptation (TRPO, eq. 14)."""
        return self._over_tasks(free, lambda ratio, value: -ratio * value)

    def clipped(self, clip: float, free: Params) -> Tensor:
        """PPO, eq. 7."""
        return self._over_tasks(
            free, lambda ratio, value: -torch.minimum(ratio * value, ratio.clamp(1 - clip, 1 + clip) * value)
        )

    def divergence(self, free: Params) -> Tensor:
        """Mean KL(pi_old || pi_new) over tasks and steps, of the policies after adaptation."""

        def one(old: Params, before: list[Trajectories], after: Trajectories) -> Tensor:
            new = {**self.fixed, **self._adapted(free, before)}
            states = after.states.reshape(-1, 2)
            gap = self.net.apply({**self.fixed, **old}, states) - self.net.apply(new, states)
            log_ratio = new[STD] - old[STD]
            each = log_ratio + 0.5 * ((-2 * log_ratio).exp() + (gap * (-new[STD]).exp()) ** 2 - 1)
            return _mean(each.sum(-1).view(after.alive.shape), after.alive)

        return torch.func.vmap(one, chunk_size=self.chunk)(self.old, self.before, self.after).mean()

    def curvature(self) -> Callable[[Params], Params]:
        """v -> Hessian of `divergence` times v, at the initialisation with which trajectories were gathered. There new policies
        are the old ones, so that no slope of the KL meets a second derivative of a policy, and the Hessian is J^T F J with
        the Jacobian J of what policies say after adaptation and F = (1 / variance of a mean, 2 of a log std): half the cost of
        the Hessian itself, and equal to it. What it goes through is kept, but for one chunk at a time."""
        if self.chunk is not None and self.chunk < len(self.old_log):
            return lambda v: self.mean(lambda part: part.curvature()(v))

        def policies(free: Params) -> tuple[Tensor, Tensor]:
            def one(before: list[Trajectories], after: Trajectories) -> tuple[Tensor, Tensor]:
                new = {**self.fixed, **self._adapted(free, before)}
                return self.net.apply(new, after.states.reshape(-1, 2)), new[STD]

            return torch.func.vmap(one)(self.before, self.after)

        start = self.free
        (means, log_std), pull, *_ = torch.func.vjp(policies, start)
        alive = self.after.alive.reshape(*means.shape[:-1], 1)
        fisher = (alive / alive.sum(1, keepdim=True) * (-2 * log_std).exp()[:, None] / len(means), 2 / len(means))

        def product(v: Params) -> Params:
            moved = torch.func.jvp(policies, (start,), (v,))[1]
            found: Params = pull(tuple(f * m for f, m in zip(fisher, moved, strict=True)))[0]
            return found

        return product

    def told(self) -> dict[str, Tensor]:
        """Metrics of an outer step that has just moved the initialisation to `free`."""
        with torch.no_grad():
            return {"loss": self.surrogate(self.free), "kl": self.divergence(self.free)}

    def _over_tasks(self, free: Params, each: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        def one(old_log: Tensor, before: list[Trajectories], after: Trajectories) -> Tensor:
            new = {**self.fixed, **self._adapted(free, before)}
            ratio = (log_probability(self.net, new, after) - old_log).exp()
            return _mean(each(ratio, after.advantages), after.alive)

        return torch.func.vmap(one, chunk_size=self.chunk)(self.old_log, self.before, self.after).mean()

    def _adapted(self, theta: Params, before: list[Trajectories]) -> Params:
        """theta' as a function of theta, through inner steps on trajectories that stay as they were gathered."""
        for seen in before:
            theta = self.learner.stepped(self.net, self.fixed, theta, seen)
        return theta


def trust_region_step(tasks: Tasks, kl: float, conjugate_steps: int, damping: float, backtracks: int) -> Params:
    """The initialisation after the largest step along the natural gradient that lowers the surrogate within the trust region
    (TRPO, appendix C); unchanged if none does. Sets `tasks.free` to it."""
    start = tasks.free
    slope = tasks.mean(lambda part: torch.func.grad(part.surrogate)(start))
    product = tasks.curvature()

    def curvature(v: Params) -> Params:
        return {k: along + damping * v[k] for k, along in product(v).items()}

    with torch.no_grad():
        way = conjugate_gradient(curvature, slope, conjugate_steps)
        length = (2 * kl / _dot(way, curvature(way)).clamp(min=1e-12)).sqrt()
        before = tasks.surrogate(start)
        for j in range(backtracks):
            tried = {k: v - 0.8**j * length * way[k] for k, v in start.items()}
            if bool(tasks.surrogate(tried) < before) and bool(tasks.divergence(tried) <= kl):
                tasks.free = tried
                break
    return tasks.free


def conjugate_gradient(product: Callable[[Params], Params], right: Params, steps: int) -> Params:
    """x with product(x) = right, after so many steps from 0 (Hestenes, Stiefel 1952)."""
    x = {k: torch.zeros_like(v) for k, v in right.items()}
    residual, direction = right, right
    size = _dot(residual, residual)
    for _ in range(steps):
        moved = product(direction)
        alpha = size / _dot(direction, moved).clamp(min=1e-30)
        x = {k: v + alpha * direction[k] for k, v in x.items()}
        residual = {k: v - alpha * moved[k] for k, v in residual.items()}
        new_size = _dot(residual, residual)
        if bool(new_size < 1e-20):
            break
        direction = {k: v + (new_size / size) * direction[k] for k, v in residual.items()}
        size = new_size
    return x


def _dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[k] * b[k]).sum() for k in a]).sum()


def _mean(values: Tensor, alive: Tensor) -> Tensor:
    return (values * alive).sum() / alive.sum()
