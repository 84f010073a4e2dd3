"""Meta-learners trained here and scored on sealed test tasks, beside the published numbers.

    python benchmarks/few_shot.py sine                              MAML on sine waves, 1 inner step, K = 10, 5,000 iterations
    python benchmarks/few_shot.py prototypical maml --minutes 20    Omniglot 5-way 1-shot (Vinyals split, rotations as classes)
    python benchmarks/few_shot.py --resume                          every learner that is not yet in the results file

What is trained is in _recipes.py. Data are read from METASEARCH_DATA, else from ../shared/data. A run measures its own speed
first and then trains for as many outer steps as fit into --minutes, so that its schedule ends with it. The test split is opened
once, at the end; nothing is chosen on it. Intervals are over test episodes.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from _recipes import ENTRIES, NEEDS_DATA, TASKS
from _report import Case, Options, Row, benchmark, data_folder

from metasearch.learners import Learner
from metasearch.objectives import Mode, Trial, parcel
from metasearch.objectives.evaluation import scores
from metasearch.objectives.memory import keep_freed_memory
from metasearch.objectives.train import Train
from metasearch.records import Proposal
from metasearch.tasks import open_test
from metasearch.track.statistics import mean_interval


def cases(options: Options) -> Iterator[Case]:
    for name in options.what:
        for seed in range(options.seeds or 1):
            key = {"learner": name, "seed": seed, "minutes": options.extra.minutes, "episodes": options.extra.episodes}
            yield Case(key, lambda name=name, seed=seed: run(name, seed, options))  # type: ignore[misc]


def run(name: str, seed: int, options: Options) -> list[Row]:
    entry = ENTRIES[name]
    torch.set_num_threads(options.extra.threads)
    keep_freed_memory()
    root = data_folder()
    if root is None and entry.tasks in NEEDS_DATA:
        raise FileNotFoundError(f"{entry.tasks} is wanted: set METASEARCH_DATA to the folder that holds the data")
    tasks = TASKS[entry.tasks](root or Path())
    shape = tasks.shape(ways=entry.ways, shots=entry.shots, queries=entry.queries)
    begin, begin_cpu = time.monotonic(), time.process_time()
    mode: Mode = options.extra.mode or entry.mode
    recipe = entry.recipe({}, shape)
    train = Train(entry.recipe, tasks, shape, validation_episodes=200, mode=mode)
    steps = entry.steps or steps_within(60 * options.extra.minutes * 0.95, train, options.extra.threads)
    train = replace(train, steps=steps, report_every=max(1, steps // 20))
    saved: dict[str, Path] = {}

    def save(step: int, tensors: dict[str, torch.Tensor], facts: dict[str, object]) -> str:
        saved["last"] = parcel.write(options.results / "parcels" / f"{name}-{seed}.safetensors", tensors, facts)
        return str(saved["last"])

    report = None
    for report in train(Proposal({}, seed=seed), Trial(seed, threads=options.extra.threads, save=save)):  # type: ignore[arg-type]
        told = " ".join(f"{k}={v:.4g}" for k, v in report.metrics.items())
        print(f"  {time.monotonic() - begin:6.0f} s  step {report.step}/{steps}  {told}", file=sys.stderr, flush=True)
    assert report is not None
    assert report.score is not None
    minutes, cpu_minutes = (time.monotonic() - begin) / 60, (time.process_time() - begin_cpu) / 60

    tensors, _ = parcel.read(saved["last"])
    meta = {k.removeprefix("meta/"): v for k, v in tensors.items() if k.startswith("meta/")}
    opened = open_test(tasks, lambda opening: print(f"  opened {opening}", file=sys.stderr))
    bank = opened.bank(entry.episodes or options.extra.episodes, seed=0, shape=shape)
    learner: Learner = recipe.learner.at(1.0)
    found = scores(recipe.net, learner, tasks, meta, bank.episodes, mode="loop")
    sign, scale = {"mse": (-1, 1), "accuracy": (1, 100)}.get(tasks.unit, (1, 1))
    mean, low, high, _ = mean_interval(found)
    conditions = {
        "tasks": entry.tasks, "test_episodes": bank.episodes.count, "steps": steps, "tasks_seen": steps * recipe.meta_batch,
        "train_minutes": round(minutes, 2), "cpu_minutes": round(cpu_minutes, 2), "threads": options.extra.threads,
        "mode": mode, "norm": recipe.net.norm, "target": entry.target,
        "validation": round(sign * scale * report.score, 3),
        "train_tasks": round(sign * scale * report.metrics["train_score"], 3),
    }
    return [Row(
        name, sign * scale * mean, entry.published, entry.source or None, unit="%" if scale == 100 else tasks.unit,
        better="lower" if sign < 0 else "higher", error=scale * (high - low) / 2, conditions=conditions,
    )]


def steps_within(seconds: float, train: Train, threads: int) -> int:
    """How many outer steps fit, by the pace of ten of them, after a warm-up (and a compilation) which is taken off."""
    begin = time.monotonic()
    running = replace(train, steps=10**6, report_every=1)(Proposal({}, seed=0), Trial(0, threads=threads))
    for _ in range(3):
        next(running)
    warm = time.monotonic()
    for _ in range(10):
        next(running)
    pace = (time.monotonic() - warm) / 10
    running.close()  # type: ignore[attr-defined]
    return max(1, int((seconds - (time.monotonic() - begin)) / pace))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, a learner (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=1000, help="of the test split (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--mode", choices=("loop", "vmap", "compiled"), help="how outer steps run (default: the entry's)")


if __name__ == "__main__":
    sys.exit(benchmark(__file__, __doc__, cases, what=tuple(ENTRIES), default=tuple(ENTRIES), seeds=1, arguments=arguments))
