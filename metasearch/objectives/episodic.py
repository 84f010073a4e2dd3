"""Episodic meta-training: what every learner of few-shot tasks does in one outer step.

Draw `meta_batch` episodes, take each one's gradient (a loop, a vmap, or a compiled vmap: the trainer owns the only vmap), average
them, let the outer optimiser step.
"""
from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, gradients
from metasearch.nets import Net, Params, learnt
from metasearch.objectives import Mode, Trial, augmenting
from metasearch.objectives.memory import out_of_memory, release
from metasearch.objectives.recipe import Precision, Recipe
from metasearch.objectives.training import Course, Setting, Step, generator, only_learnt, to, training
from metasearch.records import Proposal, Report
from metasearch.tasks import Episode, TaskDistribution, TaskShape

if TYPE_CHECKING:
    from metasearch.objectives.train import Train

__all__ = ["Step", "block_steps", "draw_block", "episodic", "in_precision", "mean_gradient", "outer_step", "weighted"]

T = TypeVar("T")
Slope = Callable[[Params, Episode], tuple[Params, Params]]  # (meta, episodes) -> the mean gradient and metrics
COMPILE_SECONDS = 30.0  # what a first compilation costs; later trials of a study pay CACHED_SECONDS
CACHED_SECONDS = 2.0
BLOCK_BYTES = 32 * 2**20  # episodes drawn at once take about so much memory
BLOCK_STEPS = 100


def episodic(recipe: Recipe, study: Train, proposal: Proposal, trial: Trial) -> Iterator[Report]:
    """Meta-trains `recipe`, see `training`."""
    return training(recipe, study, proposal, trial, _course)


def _course(setting: Setting) -> Course:
    recipe, study, trial, tasks, shape, seed, meta, steps = setting
    rows = recipe.meta_batch * augmenting.versions(recipe)
    per_block = block_steps(augmenting.given(recipe, shape), rows, recipe.steps)

    def begin(meta: Params, state: Params) -> tuple[Step, Mode]:
        mode = _mode(recipe, study, trial, meta, state, shape, steps=steps)
        return outer_step(recipe, tasks.loss, mode, chunk=trial.chunk, devices=trial.devices), mode

    return Course(
        meta, to(recipe.optimizer.init(only_learnt(meta)), tasks.device), per_block, rows,
        lambda number: draw_block(recipe, tasks, shape, per_block, seed, number), begin, splits=True,
    )


# one outer step ---------------------------------------------------------------------------------------------------------------


def outer_step(recipe: Recipe, loss: Loss, mode: Mode, *, chunk: int | None = None, devices: tuple[str, ...] = ("cpu",)) -> Step:
    """The outer step of a recipe as one function; "compiled" compiles sampling's consumer, gradient and optimiser together.

    Float hyper-parameters and rates enter the compiled function as tensors: another value is no new program. With several
    devices the meta-batch is split over them and the gradients are averaged on the first.
    """
    net, optimizer, versions = recipe.net, recipe.optimizer, augmenting.versions(recipe)
    if mode != "loop" and recipe.learner.looped is not None:
        raise ValueError(f"{type(recipe.learner).__name__} must run in a loop: {recipe.learner.looped}")

    def chosen(learner: Learner, meta: Params, episodes: Episode) -> Episode:
        return augmenting.hardest(learner, net, loss, meta, episodes, versions, mode, chunk) if versions > 1 else episodes

    def slope(learner: Learner, meta: Params, episodes: Episode) -> tuple[Params, dict[str, Tensor]]:
        def of(meta: Params) -> tuple[Params, dict[str, Tensor]]:
            return mean_gradient(learner, net, loss, meta, chosen(learner, meta, episodes), mode, chunk)

        return in_precision(recipe.precision, episodes.support_x.device, of, meta)

    def whole(
        learner: Learner, floats: Params, meta: Params, state: Params, episodes: Episode, rates: Params, progress: Tensor
    ) -> tuple[Params, Params, dict[str, Tensor]]:
        learner = replace(learner, **floats) if floats else learner
        grads, metrics = slope(learner, meta, episodes)
        return _stepped(optimizer, grads, meta, state, rates, progress, metrics)

    if mode == "compiled":
        whole = torch.compile(whole, dynamic=False)

    def step(meta: Params, state: Params, episodes: Episode, progress: float) -> tuple[Params, Params, dict[str, Tensor]]:
        device = episodes.support_x.device
        now = torch.tensor(progress, device=device)
        rates = to(optimizer.rates, device)
        learner = recipe.learner.at(progress)
        with torch.no_grad():
            if len(devices) > 1:
                grads, metrics = _split(partial(slope, learner), meta, episodes, devices, versions)
                return _stepped(optimizer, grads, meta, state, rates, now, metrics)
            floats = _floats(learner, episodes.support_x) if mode == "compiled" else {}
            return whole(_without_floats(learner, floats), floats, meta, state, episodes, rates, now)

    return step


def mean_gradient(
    learner: Learner, net: Net, loss: Loss, meta: Params, episodes: Episode, mode: Mode, chunk: int | None,
    precision: Precision = "float32",
) -> tuple[Params, dict[str, Tensor]]:
    """The mean over a batch of episodes of `episode_gradient` and of its metrics."""
    if precision != "float32":
        return in_precision(
            precision, episodes.support_x.device, lambda m: mean_gradient(learner, net, loss, m, episodes, mode, chunk), meta
        )
    if mode == "loop":
        with gradients.on_tape():
            found = [learner.episode_gradient(net, loss, meta, episodes.select(i)) for i in range(episodes.count)]
        grads = {k: torch.stack([g[k] for g, _ in found]).mean(0) for k in found[0][0]} if len(found) > 1 else found[0][0]
        return grads, {k: _mean(torch.stack([m[k].detach() for _, m in found])) for k in found[0][1]}
    if learner.pooled:
        return _pooled_gradient(learner, net, loss, meta, episodes, chunk)
    each = torch.func.vmap(partial(learner.episode_gradient, net, loss, meta), chunk_size=chunk)
    many, metrics = each(episodes)
    return {k: g.mean(0) for k, g in many.items()}, {k: _mean(m) for k, m in metrics.items()}


def _mean(metric: Tensor) -> Tensor:
    """Of a metric [episodes], which may be a count, or yes or no."""
    return (metric if metric.is_floating_point() else metric.float()).mean(0)


def _pooled_gradient(
    learner: Learner, net: Net, loss: Loss, meta: Params, episodes: Episode, chunk: int | None
) -> tuple[Params, dict[str, Tensor]]:
    """The gradient of the mean loss: with shared weights a vmapped convolution or product is one big one.

    A gradient keeps what it went through until it is taken, so chunks are differentiated one by one.
    """
    count = episodes.count
    if chunk is not None and chunk < count:
        sizes = [min(chunk, count - first) for first in range(0, count, chunk)]
        found = [
            _pooled_gradient(learner, net, loss, meta, episodes.select(slice(first, first + size)), None)
            for first, size in zip(range(0, count, chunk), sizes, strict=True)
        ]
        home = episodes.support_x.device
        return weighted([g for g, _ in found], sizes, home), weighted([m for _, m in found], sizes, home)
    fixed = {k: v for k, v in meta.items() if not learnt(k)}

    def mean_loss(free: Params) -> tuple[Tensor, dict[str, Tensor]]:
        each = torch.func.vmap(lambda e: learner.episode_loss(net, loss, {**fixed, **free}, e))
        values, metrics = each(episodes)
        value = values.mean()
        return value, {"loss": value, **{k: _mean(m) for k, m in metrics.items()}}

    grads, metrics = torch.func.grad(mean_loss, has_aux=True)(only_learnt(meta))
    return {k: g.detach() for k, g in grads.items()}, {k: m.detach() for k, m in metrics.items()}


def _split(slope: Slope, meta: Params, episodes: Episode, devices: tuple[str, ...], versions: int) -> tuple[Params, Params]:
    """The mean gradient and metrics of a meta-batch that is split over devices: each part by its share. The versions of an
    episode stay together. Nothing here waits for a device before all have their work."""
    sizes = [len(part) for part in torch.arange(episodes.count // versions).tensor_split(len(devices)) if len(part)]
    home, first, found = episodes.support_x.device, 0, []
    for device, size in zip(devices, sizes, strict=False):
        part = episodes.select(slice(first * versions, (first + size) * versions)).to(device)
        found.append(slope(to(meta, torch.device(device)), part))
        first += size
    return weighted([g for g, _ in found], sizes, home), weighted([m for _, m in found], sizes, home)


def weighted(parts: list[Params], sizes: list[int], home: torch.device) -> Params:
    """The mean of means over so many episodes each."""
    shares = [size / sum(sizes) for size in sizes]
    return {k: torch.stack([part[k].to(home) * s for part, s in zip(parts, shares, strict=True)]).sum(0) for k in parts[0]}


def _stepped(
    optimizer: Any, grads: Params, meta: Params, state: Params, rates: Params, progress: Tensor, metrics: dict[str, Tensor]
) -> tuple[Params, Params, dict[str, Tensor]]:
    new, state = optimizer.update(grads, state, only_learnt(meta), rates, progress)
    return {**meta, **new}, state, metrics


# episodes ---------------------------------------------------------------------------------------------------------------------


def block_steps(shape: TaskShape, meta_batch: int, steps: int) -> int:
    """How many outer steps' episodes are drawn at once: a function of shapes alone, so that every run draws the same."""
    rows = max(1, shape.ways) * (shape.shots + shape.queries)
    bytes_a_step = meta_batch * rows * 4 * (math.prod(shape.x) + shape.ways)
    return max(1, min(BLOCK_STEPS, BLOCK_BYTES // bytes_a_step))


def draw_block(recipe: Recipe, tasks: TaskDistribution, shape: TaskShape, steps: int, seed: int, number: int) -> Episode:
    """The training episodes of block `number`: steps * meta_batch of them, each in as many versions as the recipe wants."""
    drawn = generator(seed, f"block {number}")
    episodes = tasks.sample_episodes(steps * recipe.meta_batch, split="train", shape=shape, generator=drawn)
    return _ready(recipe, tasks, episodes, shape, drawn, drawn, first=number * steps)


def _ready(
    recipe: Recipe, tasks: TaskDistribution, episodes: Episode, shape: TaskShape, drawn: Generator, noise: Generator, *,
    first: int,
) -> Episode:
    """Episodes as they are drawn -> as the learner is given them, from outer step `first` on."""
    episodes = augmenting.augmented(recipe, tasks, episodes, drawn, first=first, rows=recipe.meta_batch)
    return with_noise(recipe.learner, episodes, augmenting.given(recipe, shape), noise, versions=augmenting.versions(recipe))


def with_noise(learner: Learner, episodes: Episode, shape: TaskShape, generator: Generator, *, versions: int = 1) -> Episode:
    """Draws the noise that the learner names; versions of an episode share theirs."""
    wanted = learner.noise(shape)
    if not wanted:
        return episodes
    count = episodes.count // versions
    each = {k: torch.randn(count, *s, generator=generator).to(episodes.support_x.device) for k, s in wanted.items()}
    return episodes._replace(noise={k: v.repeat_interleave(versions, 0) if versions > 1 else v for k, v in each.items()})


# loop, vmap or compiled -------------------------------------------------------------------------------------------------------


def _mode(recipe: Recipe, study: Train, trial: Trial, meta: Params, state: Params, shape: TaskShape, *, steps: int) -> Mode:
    if recipe.learner.looped is not None or steps <= 0:
        return "loop"
    if study.mode != "auto":
        return "vmap" if study.mode == "compiled" and trial.chunk is not None else study.mode  # a compiler would unroll chunks
    return trial.mode(signature(recipe, trial, meta, shape), partial(_measured, recipe, study, trial, meta, state, shape, steps))


def signature(recipe: Recipe, trial: Trial, meta: Params, shape: TaskShape) -> str:
    """What the choice depends on: the net's shapes, the learner without its rates, the episodes, the device."""
    learner = {f.name: v for f in fields(recipe.learner) if not isinstance(v := getattr(recipe.learner, f.name), float | Tensor)}
    described = {
        "params": {k: list(v.shape) for k, v in meta.items()},
        "learner": [type(recipe.learner).__name__, {k: str(v) for k, v in learner.items()}],
        "episode": list(augmenting.given(recipe, shape)), "meta_batch": recipe.meta_batch, "norm": recipe.net.norm,
        "devices": [torch.device(d).type for d in trial.devices], "threads": trial.threads,
    } | ({"versions": many} if (many := augmenting.versions(recipe)) > 1 else {})
    described |= {"chunk": trial.chunk} if trial.chunk is not None else {}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _measured(
    recipe: Recipe, study: Train, trial: Trial, meta: Params, state: Params, shape: TaskShape, steps: int
) -> Mapping[str, float]:
    """Seconds an outer step, by mode. Compilation is tried when the study is long enough to earn it back."""
    episodes = study.tasks.sample_episodes(recipe.meta_batch, split="train", shape=shape, generator=generator(0, "measure"))
    episodes = _ready(recipe, study.tasks, episodes, shape, generator(0, "augment"), generator(0, "noise"), first=0)

    def seconds(mode: Mode) -> float:
        step = outer_step(recipe, study.tasks.loss, mode, chunk=trial.chunk, devices=trial.devices)

        def once() -> float:
            begin = time.perf_counter()
            step(meta, state, episodes, 0.0)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter() - begin

        warm = once()
        return min(once() for _ in range(2 if warm > 0.5 else 5))

    found: dict[str, float] = {}
    for mode in ("loop", "vmap"):
        try:
            found[mode] = seconds(mode)
        except Exception as error:  # all episodes at once may not fit where one does
            if not out_of_memory(error):
                raise
            found[mode], wanted = math.inf, str(error)[:300]
        if math.isinf(found[mode]):
            release()
    eager = min(found.values())
    if math.isinf(eager):
        raise MemoryError(wanted)
    if trial.chunk is not None:
        return found
    if math.isinf(found["vmap"]):
        study.remark(f"a meta-batch does not fit into memory at once, so its episodes are taken one by one: {wanted}")
        return found
    if eager * steps * study.expected_trials > 4 * COMPILE_SECONDS and eager * steps > 4 * CACHED_SECONDS:
        try:
            found["compiled"] = seconds("compiled") + CACHED_SECONDS / steps
        except Exception as error:  # no C compiler, an operation that cannot be compiled: train without
            found["compiled"] = math.inf
            study.remark(f"compilation failed, so this study trains without it: {type(error).__name__}: {str(error)[:300]}")
    return found


# small parts ------------------------------------------------------------------------------------------------------------------


def _floats(learner: Learner, like: Tensor) -> Params:
    named = {f.name: v for f in fields(learner) if isinstance(v := getattr(learner, f.name), float | Tensor)}
    return {k: torch.as_tensor(v, dtype=like.dtype, device=like.device) for k, v in named.items()}


def _without_floats(learner: Learner, floats: Params) -> Learner:
    """The same learner with its float fields blanked: what a compiled function may be specialised on."""
    return replace(learner, **{k: f.default for f in fields(learner) if (k := f.name) in floats and isinstance(f.default, float)})


def in_precision(precision: Precision, device: torch.device, f: Callable[[Params], T], meta: Params) -> T:
    """f(meta), with its products and convolutions taken as Recipe.precision says."""
    if precision == "float32":
        return f(meta)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        return f(_channels_last(meta))


def _channels_last(meta: Params) -> Params:
    """Convolution weights in the layout that bfloat16 kernels want; the numbers are the same."""
    return {k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in meta.items()}


