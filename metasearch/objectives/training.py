"""The loop that every training shares, read from top to bottom: blocks of data, outer steps, reports, parcels, validation.

What one outer step *does* is a Course: episodic meta-training (objectives/episodic.py), pre-training (pretrain.py), unrolled
optimisers (unroll.py), policy search (policy_search.py). Randomness is data: what a block of steps reads comes from a generator
seeded by (trial seed, number of the block), so a resumed trial sees what an undisturbed one would have seen; everything else
that must survive a stop is in `meta` and `state`, which go into every parcel.
"""
from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Generator, Tensor

from metasearch import measure
from metasearch.nets import Params, learnt
from metasearch.nets.norm import population
from metasearch.objectives import Diverged, Infeasible, Mode, Trial, augmenting, parcel
from metasearch.objectives.evaluation import scores
from metasearch.objectives.memory import keep_freed_memory
from metasearch.objectives.recipe import Recipe
from metasearch.records import Proposal, Report
from metasearch.tasks import Episode, TaskDistribution, TaskShape

if TYPE_CHECKING:
    from metasearch.objectives.train import Train

__all__ = ["Course", "Setting", "Step", "generator", "only_learnt", "to", "training", "within"]

# (meta, state, what the step reads, progress) -> (meta, state, metrics of the step: scalars, "loss" among them)
Step = Callable[[Params, Params, Episode, float], tuple[Params, Params, dict[str, Tensor]]]


class Setting(NamedTuple):
    """What a Course is made from. shape: of training episodes; meta: as the learner begins, on the trial's device; steps: that
    this run has still to do."""

    recipe: Recipe
    study: Train
    trial: Trial
    tasks: TaskDistribution
    shape: TaskShape
    seed: int
    meta: Params
    steps: int


class Course(NamedTuple):
    """What an objective does in one outer step.

    meta:      what is learnt, at its beginning (a course may add keys of its own).
    state:     of the outer optimiser, and whatever else must survive a stop.
    per_block: outer steps whose data are drawn at once; a function of shapes alone, so that every run draws the same.
    rows:      rows of a block that one step reads.
    draw:      draw(number of the block) -> the data of its steps, [per_block * rows, ...].
    begin:     begin(meta, state) -> (the step, how episodes are scored); called once, after a stopped trial has been taken up.
    splits:    a step splits what it reads over the trial's devices; otherwise it runs on the first of them.
    episodes:  draws training episodes of the recipe's shape; otherwise single inputs, whatever that shape.
    """

    meta: Params
    state: Params
    per_block: int
    rows: int
    draw: Callable[[int], Episode]
    begin: Callable[[Params, Params], tuple[Step, Mode]]
    splits: bool = False
    episodes: bool = True


def training(
    recipe: Recipe, study: Train, proposal: Proposal, trial: Trial, course_of: Callable[[Setting], Course]
) -> Iterator[Report]:
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
    remark = augmenting.check(recipe, tasks, shape)
    if remark is not None:
        study.remark(f"{remark} (said of the first such trial; metasearch show TRIAL says it of any)", about="grey pictures")

    try:
        meta = to(recipe.learner.init(recipe.net, generator(seed, "init")), device)
        looks = _looks(recipe, study, tasks, meta, seed)
    except ValueError as error:  # a learner that this net or these episodes are not for
        raise Infeasible(str(error)) from error
    within(study.limits, looks)
    found = None if trial.start is None else parcel.read(trial.start)
    first = 0 if found is None else int(found[1]["step"])  # the step from which this session goes on
    begun = int(found[1].get("begun", 0)) if found is not None and trial.own else first  # the one from which the trial went
    course = course_of(Setting(recipe, study, trial, tasks, shape, seed, meta, end - first))
    if course.episodes or recipe.net.norm == "inductive":  # whose statistics are those of training episodes
        try:
            tasks.check(shape, "train")
        except ValueError as error:
            raise Infeasible(f"its training episodes cannot be drawn: {error}") from error
    meta, state = course.meta, course.state
    if len(trial.devices) > 1 and not course.splits:
        study.remark(f"this training runs on {trial.devices[0]} alone, the first of its trial's {len(trial.devices)} devices")
    best: tuple[float, int, Params] | None = None
    if found is not None:
        meta, state, best = _go_on(trial, *found, meta, state, proposal, device)

    step_once, mode = course.begin(meta, state)
    report_every = study.report_every or max(1, math.ceil((end - begun) / 10))  # the same after an interruption
    checkpoint_every = study.checkpoint_every or report_every
    facts = {"config": proposal.config, "seed": seed, **study.facts, "episode": shape, "begun": begun}

    def save(step: int, ready: Params | None = None) -> str | None:
        """A parcel to go on from; at the end also `ready`, with the statistics of an inductive norm."""
        if trial.save is None:
            return None
        tensors = {f"meta/{k}": v for k, v in (ready or meta).items()} | {f"state/{k}": v for k, v in state.items()}
        told = {**facts, "step": step, "curve": {k: repr(v) for k, v in curve.items()}}  # JSON has no word for infinity
        if best is not None:
            tensors |= {f"best/{k}": v for k, v in best[2].items()}
            told |= {"best_score": best[0], "best_step": best[1]}
        return trial.save(step, tensors, told)

    bank = augmenting.tested(recipe.augment, study.bank.episodes, augmenting.moments(tasks))

    def validated(step: int) -> tuple[float, tuple[float, ...], Params]:
        ready = _ready(recipe, tasks, meta, shape, seed)
        found = scores(recipe.net, recipe.learner.at(1.0), tasks, ready, bank, mode=mode, chunk=trial.chunk)
        if not bool(torch.isfinite(found).all()):
            raise Diverged(step, f"{int((~torch.isfinite(found)).sum())} of {len(found)} validation scores are not finite")
        return float(found.mean()), tuple(found.tolist()), ready

    block_number, block = -1, None
    losses: list[Tensor] = []
    # a trial that is taken up at its end, where no step is left to do, says what it had to say
    curve = {k: float(v) for k, v in found[1].get("curve", {}).items()} if found is not None and trial.own else {}
    step = first
    while step < end:
        if step // course.per_block != block_number:
            block_number = step // course.per_block
            block = course.draw(block_number)
        assert block is not None
        at = (step % course.per_block) * course.rows
        meta, state, metrics = step_once(meta, state, block.select(slice(at, at + course.rows)), step / recipe.steps)
        losses.append(metrics["loss"])
        step += 1
        late = trial.late
        if step % report_every == 0 or step == end or late:
            curve, losses = _curve(losses, metrics, meta, step), []
            score, each = None, None
            if study.keep == "best" and step != end and not late:
                score, each, ready = validated(step)
                if best is None or score > best[0]:
                    best = (score, step, ready)
            if step == end or late:
                end = step
                break
            checkpoint = save(step) if step % checkpoint_every == 0 else None
            yield Report(step, curve | looks, score=score, checkpoint=checkpoint, episodes=each)
        elif len(losses) % 50 == 0:  # a diverged trial should not train on for long
            _curve(losses[-50:], metrics, meta, step)

    training_seconds = time.monotonic() - started
    score, each, ready = validated(end)
    # metrics are numbers: so is the norm mode, which tables name in every row
    told = curve | looks | {f"norm/{recipe.net.norm}": 1.0, "train_seconds": training_seconds}
    told["train_score"] = float(_train_scores(recipe, tasks, ready, study, seed, mode, trial.chunk).mean())
    told |= {} if trial.chunk is None else {"chunk": float(trial.chunk)}
    if best is not None and best[0] <= score:  # the end is the best: its parcel holds no other weights
        best = None
    checkpoint = save(end, ready)
    yield Report(end, told, score=score, episodes=each, checkpoint=checkpoint)
    if best is not None:  # the trial's score is that of its last report: one more, which names the step
        again = scores(recipe.net, recipe.learner.at(1.0), tasks, best[2], bank, mode=mode, chunk=trial.chunk)
        told = {**told, "kept_step": float(best[1])}
        yield Report(end, told, score=float(again.mean()), episodes=tuple(again.tolist()), checkpoint=checkpoint)


# small parts ------------------------------------------------------------------------------------------------------------------


def _go_on(
    trial: Trial, tensors: Params, facts: dict[str, Any], meta: Params, state: Params, proposal: Proposal, device: torch.device
) -> tuple[Params, Params, tuple[float, int, Params] | None]:
    def under(prefix: str) -> Params:
        return {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}

    theirs, best = under("meta/"), under("best/")
    missing = sorted(set(meta) - set(theirs))
    if trial.own and missing:
        raise parcel.BadParcel(f"{trial.start} lacks {', '.join(missing[:5])}: it is no parcel of this trial")
    begun, meta = meta, parcel.inherit(theirs, meta, proposal.moved)  # stat/ keys stay behind: a longer training fills them anew
    new = tuple(f"/{k}" for k, v in meta.items() if v is begun[k])  # what the optimiser knew of others is not about these
    known = parcel.inherit(_counted(under("state/"), state), state, proposal.moved)
    state = {k: state[k] if k.endswith(new) else v for k, v in known.items()}
    kept = (facts["best_score"], facts["best_step"], to(best, device)) if trial.own and best else None
    return meta, state, kept


def _counted(theirs: Params, wanted: Params) -> Params:
    """The state of an optimiser as it is now: older parcels have one count for all tensors."""
    heads = {k: k.partition("count/")[0] for k in wanted if "count/" in k and k not in theirs}
    return theirs | {k: theirs[f"{head}count"] for k, head in heads.items() if f"{head}count" in theirs}


def _ready(recipe: Recipe, tasks: TaskDistribution, meta: Params, shape: TaskShape, seed: int) -> Params:
    """The parameters with which a net is validated: the statistics of an inductive norm are filled from training episodes."""
    if recipe.net.norm != "inductive":
        return meta
    drawn = generator(seed, "statistics")
    batches = []
    for _ in range(20):
        one = tasks.sample_episodes(1, split="train", shape=shape, generator=drawn).select(0)
        batches.append(torch.cat([one.support_x, one.query_x]))
    return {**only_learnt(meta), **population(recipe.net, only_learnt(meta), batches)}


def _train_scores(
    recipe: Recipe, tasks: TaskDistribution, meta: Params, study: Train, seed: int, mode: Mode, chunk: int | None
) -> Tensor:
    """Scores on training tasks of the study's own shape: beside the validation score they show overfitting to tasks."""
    count = min(100, study.bank.episodes.count)
    episodes = tasks.sample_episodes(count, split="train", shape=study.shape, generator=generator(seed, "train scores"))
    episodes = augmenting.tested(recipe.augment, episodes, augmenting.moments(tasks))
    return scores(recipe.net, recipe.learner.at(1.0), tasks, meta, episodes, mode=mode, chunk=chunk)


def _curve(losses: list[Tensor], metrics: dict[str, Tensor], meta: Params, step: int) -> dict[str, float]:
    """The means since the last report, if everything is finite."""
    values = torch.stack(losses)
    if not bool(torch.isfinite(values).all()):
        bad = int(torch.nonzero(~torch.isfinite(values))[0])
        raise Diverged(step - len(losses) + bad + 1, f"the outer loss is {float(values[bad])}")
    for k, v in meta.items():
        if not bool(torch.isfinite(v).all()):
            raise Diverged(step, f"the weights {k} are not finite")
    return {"train_loss": float(values.mean()), **{k: float(v) for k, v in metrics.items() if k != "loss"}}


def _looks(recipe: Recipe, study: Train, tasks: TaskDistribution, meta: Params, seed: int) -> dict[str, float]:
    """What can be said of an architecture before it is trained (measure.py)."""
    if not study.looks:
        return {"params": float(measure.parameters(meta)), "flops": float(measure.flops(recipe.net, meta, study.shape.x))}
    one = tasks.sample_episodes(1, split="train", shape=study.shape, generator=generator(seed, "looks")).select(0)
    x = torch.cat([one.support_x, one.query_x])[:64]
    return measure.looks(recipe.net, recipe.learner, tasks, meta, augmenting.at_test(recipe, study.shape), x)


def within(limits: Mapping[str, float], looks: Mapping[str, float]) -> None:
    """Raises Infeasible for what is beyond a limit."""
    for name, most in limits.items():
        if looks.get(name, 0.0) > most:
            raise Infeasible(f"{name} is {looks[name]:g}, but the study's limit is {most:g}", looks)


def only_learnt(meta: Params) -> Params:
    return {k: v for k, v in meta.items() if learnt(k)}


def to(params: Params, device: torch.device) -> Params:
    return {k: v.to(device) for k, v in params.items()}


def generator(seed: int, purpose: str) -> Generator:
    number = int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8], "big") >> 1
    return Generator().manual_seed(number)
