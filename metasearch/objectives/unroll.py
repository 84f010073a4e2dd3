"""Truncated back-propagation through a learned optimiser: one outer step is one stretch of a longer optimisation.

Andrychowicz et al. NeurIPS 2016, section 3. https://arxiv.org/abs/1606.04474 (learners/learned_optimizer.py). An epoch draws
`meta_batch` functions and a fresh theta_0 for each, and optimises them for `epoch` steps; every `inner_steps` of them the
optimiser is changed once, by the gradient through that stretch alone. Theta and the optimiser's memories go on from stretch to
stretch: they are in `state`, hence in every parcel, and a stopped trial goes on in the middle of an epoch.

    Recipe(net, LearnedOptimizer(test_steps=100), adam(1e-3), meta_batch=128, steps=5000, fit=unroll)
"""
from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metasearch.learners import Loss, gradients
from metasearch.learners.learned_optimizer import LearnedOptimizer
from metasearch.nets import Params, adapted
from metasearch.objectives import Infeasible, Mode, Trial, augmenting
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.training import Course, Setting, Step, generator, to, training
from metasearch.records import Proposal, Report
from metasearch.tasks import Episode, concatenate

if TYPE_CHECKING:
    from metasearch.objectives.train import Train

__all__ = ["unroll"]


def unroll(recipe: Recipe, study: Train, proposal: Proposal, trial: Trial, *, epoch: int = 100) -> Iterator[Report]:
    """Trains the keys `optimizer/...` of a LearnedOptimizer, see `training`; all others stay as they begin. epoch: inner steps
    before functions, thetas and memories are drawn anew; a multiple of the learner's inner_steps."""
    learner = recipe.learner
    if not isinstance(learner, LearnedOptimizer):
        raise Infeasible(f"unroll trains a learned optimiser, but the learner is {type(learner).__name__}")
    if epoch < 1 or epoch % learner.inner_steps:
        raise Infeasible(f"an epoch must be a multiple of inner_steps={learner.inner_steps}, but got epoch={epoch}")
    return training(recipe, study, proposal, trial, partial(_course, learner, epoch // learner.inner_steps))


def _course(learner: LearnedOptimizer, stretches: int, setting: Setting) -> Course:
    recipe, study, trial, tasks, shape, seed, meta, _ = setting
    augmenting.one_version(recipe, "the training of an optimiser")
    recipe.full_precision("unroll")
    count = recipe.meta_batch

    def draw(number: int) -> Episode:
        """The functions of epoch `number`, again for each of its stretches; `begin` is 1 in the first."""
        drawn = generator(seed, f"block {number}")
        episodes = tasks.sample_episodes(count, split="train", shape=shape, generator=drawn)
        episodes = augmenting.augmented(recipe, tasks, episodes, drawn, first=number * stretches, rows=count)
        starts = [recipe.net.init(drawn) for _ in range(count)]
        theta = {f"theta/{k}": torch.stack([s[k] for s in starts]) for k in starts[0] if adapted(k)}
        begin = torch.ones(count)
        parts = [episodes._replace(noise=to({"begin": flag, **theta}, tasks.device)) for flag in (begin, 0 * begin)]
        return concatenate([parts[0], *[parts[1]] * (stretches - 1)])

    def begin(meta: Params, state: Params) -> tuple[Step, Mode]:
        compiled = study.mode == "compiled" and trial.chunk is None
        return _step(recipe, learner, tasks.loss, compiled=compiled, chunk=trial.chunk), "vmap"

    theta = {k: v for k, v in meta.items() if adapted(k)}
    carried = {f"theta/{k}": v for k, v in theta.items()} | {f"memory/{k}": v for k, v in learner.memory(theta).items()}
    state = to(recipe.optimizer.init(_own(meta)), tasks.device)
    state |= {f"unroll/{k}": torch.zeros_like(v).expand(count, *v.shape).contiguous() for k, v in carried.items()}
    return Course(meta, state, stretches, count, draw, begin)


def _step(recipe: Recipe, learner: LearnedOptimizer, loss: Loss, *, compiled: bool, chunk: int | None) -> Step:
    """One stretch of all functions at once, then one step of the outer optimiser."""
    def stretch(meta: Params, carried: Params, episode: Episode) -> tuple[Params, dict[str, Tensor], Params]:
        """Of one function: the gradient in the optimiser's weights, what is shown, and what is carried on."""
        fixed = {k: v for k, v in meta.items() if k not in _own(meta)}
        begins = episode.noise["begin"] > 0
        theta = {k: torch.where(begins, v, carried[k]) for k, v in episode.noise.items() if k != "begin"}
        memory = {k: torch.where(begins, torch.zeros_like(v), v) for k, v in carried.items() if k.startswith("memory/")}

        def f(own: Params) -> tuple[Tensor, Any]:
            here = _cut("theta/", theta), _cut("memory/", memory)
            total, *rest = learner.unrolled(recipe.net, loss, {**fixed, **own}, *here, episode)
            return total, rest

        total, (last, theta, memory), grads = gradients.value_and_gradient(f, _own(meta), differentiable=False)
        carried = {f"theta/{k}": v.detach() for k, v in theta.items()} | {f"memory/{k}": v.detach() for k, v in memory.items()}
        return grads, {"loss": total.detach() / learner.inner_steps, "last": last.detach()}, carried

    def whole(
        meta: Params, state: Params, episodes: Episode, rates: Params, progress: Tensor
    ) -> tuple[Params, Params, dict[str, Tensor]]:
        carried = _cut("unroll/", state)
        grads, metrics, carried = torch.func.vmap(stretch, in_dims=(None, 0, 0), chunk_size=chunk)(meta, carried, episodes)
        mean = {k: g.mean(0) for k, g in grads.items()}
        new, after = recipe.optimizer.update(mean, state, _own(meta), rates, progress)
        after = {**after, **{f"unroll/{k}": v for k, v in carried.items()}}
        return {**meta, **new}, after, {k: m.mean(0) for k, m in metrics.items()}

    if compiled:
        whole = torch.compile(whole, dynamic=False)

    def step(meta: Params, state: Params, episodes: Episode, progress: float) -> tuple[Params, Params, dict[str, Tensor]]:
        device = episodes.support_x.device
        with torch.no_grad():
            return whole(meta, state, episodes, to(recipe.optimizer.rates, device), torch.tensor(progress, device=device))

    return step


def _own(meta: Params) -> Params:
    """What is learnt here."""
    return {k: v for k, v in meta.items() if k.startswith("optimizer/")}


def _cut(prefix: str, params: Params) -> Params:
    """What is under a prefix, without it."""
    return {k[len(prefix):]: v for k, v in params.items() if k.startswith(prefix)}
