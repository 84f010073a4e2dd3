"""Meta-learners trained here and scored on sealed test tasks, beside the published numbers.

    python benchmarks/few_shot.py sine                              MAML on sine waves, 1 inner step, K = 10, 5,000 iterations
    python benchmarks/few_shot.py prototypical maml --minutes 20    Omniglot 5-way 1-shot (Vinyals split, rotations as classes)
    python benchmarks/few_shot.py --resume                          every learner that is not yet in the results file

What is trained is in _recipes.py. Data are read from METASEARCH_DATA, else from ../shared/data. A run measures its own speed
first and then trains for as many outer steps as fit into --minutes, so that its schedule ends with it: one thread for 40 minutes
is the budget of two for 20. The test split is opened once, at the end; nothing is chosen on it. Intervals are over test episodes.

A learner that can say whether two pictures are of one class has a second row, "NAME verification": the area under the ROC curve
over pairs of the first 200 of these episodes, every query with one support of its class and one of another.
"""
from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from _recipes import ENTRIES, NEEDS_DATA, TASKS, Entry
from _report import Case, Condition, Options, Row, benchmark, data_folder, machine

from metasearch.learners import Learner
from metasearch.learners.black_box import BlackBox
from metasearch.learners.mann import MANN
from metasearch.nets import Params
from metasearch.objectives import Mode, Trial, parcel
from metasearch.objectives.evaluation import scores, similarities
from metasearch.objectives.memory import keep_freed_memory
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.train import Train
from metasearch.records import Proposal, Report
from metasearch.tasks import TaskDistribution, TaskShape, TestSplit, open_test
from metasearch.track.statistics import accuracy_by_instance, mean_interval, roc_auc

TRAINED = frozenset({  # what a row says of the training, in the facts of its weights, too
    "minutes", "steps", "tasks_seen", "train_minutes", "cpu_minutes", "threads", "mode", "norm", "validation", "train_tasks",
})

PAIRED = 200  # episodes whose queries are compared: 30,000 pairs of 15 queries and five classes


def cases(options: Options) -> Iterator[Case]:
    for name in options.what:
        for seed in range(options.seeds or 1):
            key = {
                "learner": name, "seed": seed, "minutes": options.extra.minutes, "episodes": options.extra.episodes,
                "shift": options.extra.shift,
            }
            idle = frozenset() if ENTRIES[name].steps is None else frozenset({"minutes"})
            yield Case(key, lambda name=name, seed=seed: run(name, seed, options), idle)  # type: ignore[misc]


def run(name: str, seed: int, options: Options) -> list[Row]:
    entry = ENTRIES[name]
    torch.set_num_threads(options.extra.threads)
    keep_freed_memory()
    root = data_folder()
    if root is None and entry.tasks in NEEDS_DATA:
        raise FileNotFoundError(f"{entry.tasks} is wanted: set METASEARCH_DATA to the folder that holds the data")
    tasks = TASKS[entry.tasks](root or Path())
    shape = tasks.shape(ways=entry.ways, shots=entry.shots, queries=entry.queries)
    recipe, kept = entry.recipe({}, shape), options.results / "parcels" / f"{name}-{seed}.safetensors"
    count = entry.episodes or options.extra.episodes
    sign, scale = {"mse": (-1, 1), "accuracy": (1, 100)}.get(tasks.unit, (1, 1))
    conditions: dict[str, Condition] = {"tasks": entry.tasks, "test_episodes": count, "target": entry.target}
    if options.extra.shift and kept.exists():
        conditions |= earlier(kept, entry)
    else:
        conditions |= train(name, seed, entry, tasks, shape, kept, options, sign * scale)
    tensors, _ = parcel.read(kept)
    meta = {k.removeprefix("meta/"): v for k, v in tensors.items() if k.startswith("meta/")}
    learner: Learner = recipe.learner.at(1.0)

    def tested(title: str, tasks: TaskDistribution, published: float | None) -> Iterator[Row]:
        bank = opened(tasks).bank(count, seed=0, shape=shape)
        mean, low, high, _ = mean_interval(scores(recipe.net, learner, tasks, meta, bank.episodes, mode="loop"))
        yield Row(
            title, sign * scale * mean, published, entry.source if published is not None else None,
            unit="%" if scale == 100 else tasks.unit, better="lower" if sign < 0 else "higher",
            error=scale * (high - low) / 2, conditions=conditions,
        )
        first = bank.episodes.map(lambda t: t[:PAIRED])
        compared = similarities(recipe.net, learner, meta, first, seed=0) if tasks.kind == "classes" else None
        if compared is not None:
            yield Row(f"{title} verification", roc_auc(*compared), unit="AUC", conditions=conditions)

    rows = [*tested(name, tasks, entry.published)]
    if options.extra.shift:
        rows += tested(f"{name} shifted", tasks.shifted(), None)
    if isinstance(learner, MANN):
        rows += by_instance(name, learner, recipe, tasks, meta, shape, count, conditions)
    return rows


def train(
    name: str, seed: int, entry: Entry, tasks: TaskDistribution, shape: TaskShape, kept: Path, options: Options, scale: float
) -> dict[str, Condition]:
    """What was spent, and the scores on validation and on training tasks times `scale`. Leaves the weights in `kept`, with all
    that as the fact `conditions`."""
    begin, begin_cpu = time.monotonic(), time.process_time()
    mode: Mode = options.extra.mode or entry.mode
    recipe, objective = entry.recipe({}, shape), Train(entry.recipe, tasks, shape, validation_episodes=200, mode=mode)
    steps = entry.steps or steps_within(60 * options.extra.minutes * 0.95, objective, options.extra.threads)
    start: Path | None = None
    before, score = dict[str, Condition](), dict[str, float]()
    if entry.before is not None:
        first = Train(entry.before, tasks, shape, validation_episodes=200, mode="loop", steps=entry.before_steps)
        beginning = kept.with_name(f"{kept.stem}-before.safetensors")
        report = trained(first, "before", seed, beginning, options)
        start = net_alone(beginning, recipe, tasks)
        before = {
            "before": type(first.built({}).learner).__name__, "before_steps": entry.before_steps,
            "before_cpu_minutes": round((time.process_time() - begin_cpu) / 60, 2),
        }
        score = {"before_validation": report.score or 0.0}
    unfinished = kept.with_suffix(".part")
    report = trained(replace(objective, steps=steps), name, seed, unfinished, options, start)
    assert report.score is not None
    score |= {"validation": report.score, "train_tasks": report.metrics["train_score"]}
    conditions: dict[str, Condition] = {
        "steps": steps, "tasks_seen": steps * recipe.meta_batch, "train_minutes": round((time.monotonic() - begin) / 60, 2),
        "cpu_minutes": round((time.process_time() - begin_cpu) / 60, 2), "threads": options.extra.threads, "mode": mode,
        "norm": recipe.net.norm, **before, **{k: round(scale * v, 3) if math.isfinite(v) else None for k, v in score.items()},
    }
    tensors, facts = parcel.read(unfinished)
    minutes = {"minutes": options.extra.minutes} if entry.steps is None else {}
    parcel.write(kept, tensors, {**facts, "conditions": {**minutes, **conditions}, "code": machine()["code"]})
    unfinished.unlink()
    return conditions


def earlier(kept: Path, entry: Entry) -> dict[str, Condition]:
    """How the weights in `kept` were trained, by their facts: another recipe, other minutes than this run's perhaps."""
    _, facts = parcel.read(kept)
    asked = TRAINED if entry.steps is None else TRAINED - {"minutes"}
    told: dict[str, Condition] | None = facts.get("conditions")
    untold = dict.fromkeys(sorted(asked), "unknown" if told is None else None)
    return {"weights": kept.name, "weights_code": facts.get("code", "unknown"), **untold, **(told or {})}


def trained(objective: Train, name: str, seed: int, path: Path, options: Options, start: Path | None = None) -> Report:
    """Leaves the weights in `path`; returns the last report."""
    begin, steps, report = time.monotonic(), objective.steps or 0, None

    def save(step: int, tensors: dict[str, torch.Tensor], facts: dict[str, object]) -> str:
        return str(parcel.write(path, tensors, facts))

    trial = Trial(seed, start=start, threads=options.extra.threads, save=save)  # type: ignore[arg-type]
    for report in replace(objective, report_every=max(1, steps // 20))(Proposal({}, seed=seed), trial):
        told = " ".join(f"{k}={v:.4g}" for k, v in report.metrics.items())
        print(f"  {time.monotonic() - begin:6.0f} s  {name} step {report.step}/{steps}  {told}", file=sys.stderr, flush=True)
    assert report is not None
    return report


def net_alone(path: Path, recipe: Recipe, tasks: TaskDistribution) -> Path:
    """A parcel of the net's weights, from which another learner begins at step 0. For one that takes a centre off its features
    also their mean over 1,000 training pictures."""
    tensors, facts = parcel.read(path)
    net = {k: v for k, v in tensors.items() if k.startswith("meta/net/")}
    if isinstance(recipe.learner, MANN | BlackBox) and recipe.learner.normed:
        x, _ = tasks.labelled(1000, "train", torch.Generator().manual_seed(0))
        features = recipe.net.embed({k.removeprefix("meta/"): v for k, v in net.items()}, x)
        net["meta/mann/centre" if isinstance(recipe.learner, MANN) else "meta/black_box/centre"] = features.mean(0)
    return parcel.write(path.with_name(f"{path.stem}-net.safetensors"), net, {**facts, "step": 0})


def opened(tasks: TaskDistribution) -> TestSplit:
    return open_test(tasks, lambda opening: print(f"  opened {opening}", file=sys.stderr))


def by_instance(
    name: str, learner: MANN, recipe: Recipe, tasks: TaskDistribution, meta: Params, shape: TaskShape, count: int,
    conditions: dict[str, Condition],
) -> list[Row]:
    """Accuracy when a class is seen for the k-th time, in sequences of ten drawings of every class (Santoro et al. 2016)."""
    published = {1: 36.4, 2: 82.8, 3: 91.0, 4: 92.6, 5: 94.9, 10: 98.1}
    e = opened(tasks).bank(count, seed=1, shape=shape._replace(shots=5, queries=5)).episodes
    x, y = torch.cat([e.support_x, e.query_x], 1), torch.cat([e.support_y, e.query_y], 1)
    order = torch.rand(y.shape[:2], generator=torch.Generator().manual_seed(0)).argsort(1)
    x, y = (t[torch.arange(count)[:, None], order] for t in (x, y))
    with torch.no_grad():
        outputs = torch.stack([learner.sequence(recipe.net, meta, one, labels) for one, labels in zip(x, y, strict=True)])
    right = outputs.argmax(-1) == y.argmax(-1)
    each = 100 * accuracy_by_instance(right.numpy(), y.argmax(-1).numpy())
    return [
        Row(f"{name} instance {k}", float(each[k - 1]), known, "Santoro et al. 2016, table 1", unit="%", conditions=conditions)
        for k, known in published.items()
    ]


def steps_within(seconds: float, train: Train, threads: int) -> int:
    """How many outer steps fit, by the pace of twenty, after a warm-up (and a compilation) which is taken off. In processor time
    of one thread, so that what else the machine does changes nothing."""
    begin = time.process_time()
    running = replace(train, steps=10**6, report_every=5)(Proposal({}, seed=0), Trial(0, threads=threads))
    next(running)
    warm = time.process_time()
    for _ in range(4):
        next(running)
    pace = (time.process_time() - warm) / 20
    running.close()  # type: ignore[attr-defined]
    return max(1, int((seconds * threads - (time.process_time() - begin)) / pace))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="of training, in processor time of every thread; nothing where the "
        "entry has fixed steps (default: %(default)s)",
    )
    parser.add_argument("--episodes", type=int, default=1000, help="of the test split (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--shift", action="store_true", help="also score on tasks moved away from those trained on; "
                        "weights of an earlier run that lie in --results/parcels are not trained again, and the row says how "
                        "they were")
    parser.add_argument("--mode", choices=("loop", "vmap", "compiled"), help="how outer steps run (default: the entry's)")


if __name__ == "__main__":
    sys.exit(benchmark(__file__, __doc__, cases, what=tuple(ENTRIES), default=tuple(ENTRIES), seeds=1, arguments=arguments))
