"""Episodic meta-training: the loop that every learner of few-shot tasks shares, read from top to bottom.

One outer step: draw `meta_batch` episodes, take each one's gradient (a loop, a vmap, or a compiled vmap: the trainer owns the
only vmap), average them, let the outer optimiser step. Randomness is data: the episodes of a block of steps come from a generator
seeded by (trial seed, number of the block), so a resumed trial sees the episodes that an undisturbed one would have seen.
"""
from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from metasearch import measure
from metasearch.learners import Learner, Loss, gradients
from metasearch.nets import Net, Params, learnt
from metasearch.nets.norm import population
from metasearch.objectives import MODES, Diverged, Mode, Trial, parcel
from metasearch.objectives.evaluation import scores
from metasearch.objectives.memory import keep_freed_memory
from metasearch.objectives.recipe import Recipe
from metasearch.records import Proposal, Report
from metasearch.tasks import Episode, TaskDistribution, TaskShape

if TYPE_CHECKING:
    from metasearch.objectives.train import Train

__all__ = ["Step", "block_steps", "draw_block", "episodic", "outer_step"]

# (meta, optimiser state, episodes, progress []) -> (meta, optimiser state, metrics of the step)
Step = Callable[[Params, Params, Episode, float], tuple[Params, Params, dict[str, Tensor]]]

COMPILE_SECONDS = 30.0  # what a first compilation costs; later trials of a study pay CACHED_SECONDS
CACHED_SECONDS = 2.0
BLOCK_BYTES = 32 * 2**20  # episodes drawn at once take about so much memory
BLOCK_STEPS = 100


def episodic(recipe: Recipe, study: Train, proposal: Proposal, trial: Trial) -> Iterator[Report]:
    """Trains `recipe` up to `proposal.until` (or recipe.steps) outer steps; reports on the way, and scores on the study's bank.

    Raises Diverged with the step at which a loss or a weight stopped being finite.
    """
    started = time.monotonic()
    torch.set_num_threads(trial.threads)
    keep_freed_memory()
    device = torch.device(trial.devices[0])
    tasks = study.tasks.to(device)
    shape = recipe.episode or study.shape
    seed = proposal.seed or 0
    end = proposal.until or recipe.steps

    meta = _to(recipe.learner.init(recipe.net, _generator(seed, "init")), device)
    state = _to(recipe.optimizer.init(_learnt(meta)), device)
    first = begun = 0  # the step from which this session goes on; the one from which the trial went
    best: tuple[float, int, Params] | None = None
    if trial.start is not None:
        meta, state, first, begun, best = _go_on(trial, meta, state, proposal)

    mode = _mode(recipe, study, trial, meta, state, shape, steps=end - first)
    step_once = outer_step(recipe, tasks.loss, mode, chunk=trial.chunk, devices=trial.devices)
    per_block = block_steps(shape, recipe.meta_batch, recipe.steps)
    report_every = study.report_every or max(1, math.ceil((end - begun) / 10))  # the same after an interruption
    checkpoint_every = study.checkpoint_every or report_every
    facts = {"config": proposal.config, "seed": seed, **study.facts, "episode": shape, "begun": begun}

    def save(step: int, ready: Params | None = None) -> str | None:
        """A parcel to go on from; at the end also `ready`, with the statistics of an inductive norm."""
        if trial.save is None:
            return None
        tensors = {f"meta/{k}": v for k, v in (ready or meta).items()} | {f"state/{k}": v for k, v in state.items()}
        told = {**facts, "step": step}
        if best is not None:
            tensors |= {f"best/{k}": v for k, v in best[2].items()}
            told |= {"best_score": best[0], "best_step": best[1]}
        return trial.save(step, tensors, told)

    def validated(step: int) -> tuple[float, tuple[float, ...], Params]:
        ready = _ready(recipe, tasks, meta, shape, seed)
        found = scores(recipe.net, recipe.learner.at(1.0), tasks, ready, study.bank.episodes, mode=mode, chunk=trial.chunk)
        if not bool(torch.isfinite(found).all()):
            raise Diverged(step, f"{int((~torch.isfinite(found)).sum())} of {len(found)} validation scores are not finite")
        return float(found.mean()), tuple(found.tolist()), ready

    block_number, block = -1, None
    losses: list[Tensor] = []
    metrics: dict[str, Tensor] = {}
    step = first
    while step < end:
        if step // per_block != block_number:
            block_number = step // per_block
            block = draw_block(recipe, tasks, shape, per_block, seed, block_number)
        assert block is not None
        at = (step % per_block) * recipe.meta_batch
        episodes = block.select(slice(at, at + recipe.meta_batch))
        meta, state, metrics = step_once(meta, state, episodes, step / recipe.steps)
        losses.append(metrics["loss"])
        step += 1
        late = trial.deadline is not None and time.time() > trial.deadline
        if step % report_every == 0 or step == end or late:
            curve = _curve(losses, metrics, meta, step)
            losses = []
            score, each = None, None
            if study.keep == "best" and step != end and not late:
                score, each, ready = validated(step)
                if best is None or score > best[0]:
                    best = (score, step, ready)
            if step == end or late:
                end = step
                break
            checkpoint = save(step) if step % checkpoint_every == 0 else None
            yield Report(step, curve, score=score, checkpoint=checkpoint, episodes=each)
        elif len(losses) >= 50:  # a diverged trial should not train on for long
            _curve(losses, metrics, meta, step)
            losses = losses[-1:]

    training_seconds = time.monotonic() - started
    score, each, ready = validated(end)
    curve = _curve(losses, metrics, meta, end)
    curve |= _size(recipe, study, ready) | {"train_seconds": training_seconds}
    curve["train_score"] = float(_train_scores(recipe, tasks, ready, study, seed, mode, trial.chunk).mean())
    checkpoint = save(end, ready)
    yield Report(end, curve, score=score, episodes=each, checkpoint=checkpoint)
    if best is not None and best[0] > score:  # the trial's score is that of its last report: one more, which names the step
        again = scores(recipe.net, recipe.learner.at(1.0), tasks, best[2], study.bank.episodes, mode=mode, chunk=trial.chunk)
        curve = {**curve, "kept_step": float(best[1])}
        yield Report(end, curve, score=float(again.mean()), episodes=tuple(again.tolist()), checkpoint=checkpoint)


# one outer step ---------------------------------------------------------------------------------------------------------------


def outer_step(recipe: Recipe, loss: Loss, mode: Mode, *, chunk: int | None = None, devices: tuple[str, ...] = ("cpu",)) -> Step:
    """The outer step of a recipe as one function; "compiled" compiles sampling's consumer, gradient and optimiser together.

    Float hyper-parameters and rates enter the compiled function as tensors: another value is no new program. With several
    devices the meta-batch is split over them and the gradients are averaged on the first.
    """
    net, optimizer = recipe.net, recipe.optimizer
    if mode != "loop" and recipe.learner.looped is not None:
        raise ValueError(f"{type(recipe.learner).__name__} must run in a loop: {recipe.learner.looped}")

    def whole(
        learner: Learner, floats: Params, meta: Params, state: Params, episodes: Episode, rates: Params, progress: Tensor
    ) -> tuple[Params, Params, dict[str, Tensor]]:
        learner = replace(learner, **floats) if floats else learner
        if recipe.precision == "float32":
            grads, metrics = mean_gradient(learner, net, loss, meta, episodes, mode, chunk)
        else:
            with torch.autocast(episodes.support_x.device.type, dtype=torch.bfloat16):
                grads, metrics = mean_gradient(learner, net, loss, _channels_last(meta), episodes, mode, chunk)
        return _stepped(optimizer, grads, meta, state, rates, progress, metrics)

    if mode == "compiled":
        whole = torch.compile(whole, dynamic=False)

    def step(meta: Params, state: Params, episodes: Episode, progress: float) -> tuple[Params, Params, dict[str, Tensor]]:
        device = episodes.support_x.device
        now = torch.tensor(progress, device=device)
        rates = _to(optimizer.rates, device)
        learner = recipe.learner.at(progress)
        with torch.no_grad():
            if len(devices) > 1:
                grads, metrics = _split_gradient(learner, net, loss, meta, episodes, mode, chunk, devices)
                return _stepped(optimizer, grads, meta, state, rates, now, metrics)
            floats = _floats(learner, episodes.support_x) if mode == "compiled" else {}
            return whole(_without_floats(learner, floats), floats, meta, state, episodes, rates, now)

    return step


def mean_gradient(
    learner: Learner, net: Net, loss: Loss, meta: Params, episodes: Episode, mode: Mode, chunk: int | None
) -> tuple[Params, dict[str, Tensor]]:
    """The mean over a batch of episodes of `episode_gradient` and of its metrics."""
    if mode == "loop":
        with gradients.on_tape():
            found = [learner.episode_gradient(net, loss, meta, episodes.select(i)) for i in range(episodes.count)]
        grads = {k: torch.stack([g[k] for g, _ in found]).mean(0) for k in found[0][0]} if len(found) > 1 else found[0][0]
        return grads, {k: torch.stack([m[k].detach() for _, m in found]).mean(0) for k in found[0][1]}
    each = torch.func.vmap(partial(learner.episode_gradient, net, loss, meta), chunk_size=chunk)
    many, metrics = each(episodes)
    return {k: g.mean(0) for k, g in many.items()}, {k: m.mean(0) for k, m in metrics.items()}


def _split_gradient(
    learner: Learner, net: Net, loss: Loss, meta: Params, episodes: Episode, mode: Mode, chunk: int | None,
    devices: tuple[str, ...],
) -> tuple[Params, dict[str, Tensor]]:
    sizes = [len(part) for part in torch.arange(episodes.count).tensor_split(len(devices)) if len(part)]
    first, total = 0, episodes.count
    grads: Params = {}
    metrics: dict[str, Tensor] = {}
    home = next(iter(meta.values())).device
    for device, size in zip(devices, sizes, strict=False):
        part = episodes.select(slice(first, first + size)).to(device)
        g, m = mean_gradient(learner, net, loss, _to(meta, torch.device(device)), part, mode, chunk)
        first += size
        for into, new in ((grads, g), (metrics, m)):
            for k, v in new.items():
                share = v.to(home) * (size / total)
                into[k] = into[k] + share if k in into else share
    return grads, metrics


def _stepped(
    optimizer: Any, grads: Params, meta: Params, state: Params, rates: Params, progress: Tensor, metrics: dict[str, Tensor]
) -> tuple[Params, Params, dict[str, Tensor]]:
    new, state = optimizer.update(grads, state, _learnt(meta), rates, progress)
    return {**meta, **new}, state, metrics


# episodes ---------------------------------------------------------------------------------------------------------------------


def block_steps(shape: TaskShape, meta_batch: int, steps: int) -> int:
    """How many outer steps' episodes are drawn at once: a function of shapes alone, so that every run draws the same."""
    rows = max(1, shape.ways) * (shape.shots + shape.queries)
    bytes_a_step = meta_batch * rows * 4 * (math.prod(shape.x) + shape.ways)
    return max(1, min(BLOCK_STEPS, BLOCK_BYTES // bytes_a_step))


def draw_block(recipe: Recipe, tasks: TaskDistribution, shape: TaskShape, steps: int, seed: int, number: int) -> Episode:
    """The training episodes of block `number`: steps * meta_batch of them."""
    generator = _generator(seed, f"block {number}")
    episodes = tasks.sample_episodes(steps * recipe.meta_batch, split="train", shape=shape, generator=generator)
    if recipe.augment is not None:
        episodes = recipe.augment(episodes, generator)
    return with_noise(recipe.learner, episodes, shape, generator)


def with_noise(learner: Learner, episodes: Episode, shape: TaskShape, generator: Generator) -> Episode:
    """Draws the noise that the learner names."""
    wanted = learner.noise(shape)
    if not wanted:
        return episodes
    drawn = {k: torch.randn(episodes.count, *s, generator=generator).to(episodes.support_x.device) for k, s in wanted.items()}
    return episodes._replace(noise=drawn)


# loop, vmap or compiled -------------------------------------------------------------------------------------------------------


def _mode(recipe: Recipe, study: Train, trial: Trial, meta: Params, state: Params, shape: TaskShape, *, steps: int) -> Mode:
    if recipe.learner.looped is not None or steps <= 0:
        return "loop"
    if study.mode != "auto":
        return study.mode
    return trial.mode(signature(recipe, trial, meta, shape), partial(_measured, recipe, study, trial, meta, state, shape, steps))


def signature(recipe: Recipe, trial: Trial, meta: Params, shape: TaskShape) -> str:
    """What the choice depends on: the net's shapes, the learner without its rates, the episodes, the device."""
    learner = {f.name: v for f in fields(recipe.learner) if not isinstance(v := getattr(recipe.learner, f.name), float | Tensor)}
    described = {
        "params": {k: list(v.shape) for k, v in meta.items()},
        "learner": [type(recipe.learner).__name__, {k: str(v) for k, v in learner.items()}],
        "episode": list(shape), "meta_batch": recipe.meta_batch, "norm": recipe.net.norm,
        "devices": [torch.device(d).type for d in trial.devices], "threads": trial.threads,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _measured(
    recipe: Recipe, study: Train, trial: Trial, meta: Params, state: Params, shape: TaskShape, steps: int
) -> Mapping[str, float]:
    """Seconds an outer step, by mode. Compilation is tried when the study is long enough to earn it back."""
    episodes = study.tasks.sample_episodes(recipe.meta_batch, split="train", shape=shape, generator=_generator(0, "measure"))
    episodes = with_noise(recipe.learner, episodes, shape, _generator(0, "noise"))

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

    found: dict[str, float] = {mode: seconds(mode) for mode in MODES if mode != "compiled"}
    eager = min(found.values())
    if eager * steps * study.expected_trials > 4 * COMPILE_SECONDS and eager * steps > 4 * CACHED_SECONDS:
        try:
            found["compiled"] = seconds("compiled") + CACHED_SECONDS / steps
        except Exception as error:  # no C compiler, an operation that cannot be compiled: train without
            found["compiled"] = math.inf
            study.remark(f"compilation failed, so this study trains without it: {type(error).__name__}: {str(error)[:300]}")
    return found


# small parts ------------------------------------------------------------------------------------------------------------------


def _go_on(
    trial: Trial, meta: Params, state: Params, proposal: Proposal
) -> tuple[Params, Params, int, int, tuple[float, int, Params] | None]:
    """(meta, state, the step of the parcel, the step at which the trial itself began, its best so far)."""
    assert trial.start is not None
    tensors, facts = parcel.read(trial.start)

    def under(prefix: str) -> Params:
        return {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}

    theirs, best = under("meta/"), under("best/")
    missing = sorted(set(meta) - set(theirs))
    if trial.own and missing:
        raise parcel.BadParcel(f"{trial.start} lacks {', '.join(missing[:5])}: it is no parcel of this trial")
    meta = parcel.inherit(theirs, meta, proposal.moved)  # stat/ keys stay behind: a longer training fills them anew
    state = parcel.inherit(under("state/"), state, proposal.moved)
    kept = (facts["best_score"], facts["best_step"], _to(best, _device(meta))) if trial.own and best else None
    step = int(facts["step"])
    return meta, state, step, int(facts.get("begun", 0)) if trial.own else step, kept


def _ready(recipe: Recipe, tasks: TaskDistribution, meta: Params, shape: TaskShape, seed: int) -> Params:
    """The parameters with which a net is validated: the statistics of an inductive norm are filled from training episodes."""
    if recipe.net.norm != "inductive":
        return meta
    generator = _generator(seed, "statistics")
    batches = []
    for _ in range(20):
        one = tasks.sample_episodes(1, split="train", shape=shape, generator=generator).select(0)
        batches.append(torch.cat([one.support_x, one.query_x]))
    return {**_learnt(meta), **population(recipe.net, _learnt(meta), batches)}


def _train_scores(
    recipe: Recipe, tasks: TaskDistribution, meta: Params, study: Train, seed: int, mode: Mode, chunk: int | None
) -> Tensor:
    """Scores on training tasks of the study's own shape: beside the validation score they show overfitting to tasks."""
    count = min(100, study.bank.episodes.count)
    episodes = tasks.sample_episodes(count, split="train", shape=study.shape, generator=_generator(seed, "train scores"))
    return scores(recipe.net, recipe.learner.at(1.0), tasks, meta, episodes, mode=mode, chunk=chunk)


def _curve(losses: list[Tensor], metrics: dict[str, Tensor], meta: Params, step: int) -> dict[str, float]:
    """The means since the last report, if everything is finite."""
    if losses:
        values = torch.stack(losses)
        if not bool(torch.isfinite(values).all()):
            bad = int(torch.nonzero(~torch.isfinite(values))[0])
            raise Diverged(step - len(losses) + bad + 1, f"the outer loss is {float(values[bad])}")
        for k, v in meta.items():
            if not bool(torch.isfinite(v).all()):
                raise Diverged(step, f"the weights {k} are not finite")
        return {"train_loss": float(values.mean()), **{k: float(v) for k, v in metrics.items() if k != "loss"}}
    return {}


def _size(recipe: Recipe, study: Train, meta: Params) -> dict[str, float]:
    found = measure.size(recipe.net, recipe.learner, study.tasks, meta, study.shape)
    return {
        "params": float(found.params), "flops": float(found.flops), "episode_flops": float(found.episode_flops),
        f"norm/{recipe.net.norm}": 1.0,  # metrics are numbers: the norm mode, which tables name in every row
    }


def _floats(learner: Learner, like: Tensor) -> Params:
    named = {f.name: v for f in fields(learner) if isinstance(v := getattr(learner, f.name), float | Tensor)}
    return {k: torch.as_tensor(v, dtype=like.dtype, device=like.device) for k, v in named.items()}


def _without_floats(learner: Learner, floats: Params) -> Learner:
    """The same learner with its float fields blanked: what a compiled function may be specialised on."""
    return replace(learner, **{k: f.default for f in fields(learner) if (k := f.name) in floats and isinstance(f.default, float)})


def _learnt(meta: Params) -> Params:
    return {k: v for k, v in meta.items() if learnt(k)}


def _channels_last(meta: Params) -> Params:
    """Convolution weights in the layout that bfloat16 kernels want; the numbers are the same."""
    return {k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in meta.items()}


def _device(meta: Params) -> torch.device:
    return next(iter(meta.values())).device


def _to(params: Params, device: torch.device) -> Params:
    return {k: v.to(device) for k, v in params.items()}


def _generator(seed: int, purpose: str) -> Generator:
    number = int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "big") >> 1
    return Generator().manual_seed(number)
