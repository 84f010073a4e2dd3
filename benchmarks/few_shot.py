"""Meta-learners trained here and scored on sealed test tasks, beside the published numbers.

    python benchmarks/few_shot.py sine                              MAML on sine waves, 1 inner step, K = 10, 5,000 iterations
    python benchmarks/few_shot.py prototypical maml --minutes 20    Omniglot 5-way 1-shot (Vinyals split, rotations as classes)

Omniglot is read from METASEARCH_DATA, else from ../shared/data. A run measures its own speed first and then trains for as many
outer steps as fit into --minutes, so that its schedule ends with it. The test split is opened once, at the end; nothing is chosen
on it. Intervals are over test episodes.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _report import Case, Options, Row, benchmark, data_folder

from metasearch import tasks as task_room
from metasearch.learners import Learner
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.nets.conv4 import VARIANTS, conv4
from metasearch.nets.mlp import mlp
from metasearch.objectives import Mode, Trial, parcel
from metasearch.objectives.episodic import draw_block, outer_step
from metasearch.objectives.evaluation import scores
from metasearch.objectives.memory import keep_freed_memory
from metasearch.objectives.optimizer import adam, cosine
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal
from metasearch.tasks import TaskDistribution, TaskShape, open_test
from metasearch.track.statistics import mean_interval


@dataclass(frozen=True)
class Entry:
    """One learner as it is trained here. steps: None: as many as fit into the minutes."""

    tasks: str
    recipe: Callable[[Config, TaskShape], Recipe]
    mode: Mode
    published: float
    source: str
    target: float
    steps: int | None = None


def omniglot(root: Path) -> TaskDistribution:
    return task_room.build("omniglot", {"root": str(root / "omniglot"), "split": "vinyals", "rotations": "new-classes"})


def prototypical(config: Config, shape: TaskShape) -> Recipe:
    """60-way, 5 queries, Adam 1e-3, convolutions in bfloat16; population statistics at test."""
    net = conv4(shape.x, None, "protonet", mode="inductive")
    return Recipe(net, Prototypical(), adam(1e-3, schedule=cosine(0.01)), meta_batch=1, steps=1000,
                  episode=shape._replace(ways=60, queries=5), precision="bfloat16")


def maml(config: Config, shape: TaskShape) -> Recipe:
    """The authors' net and one inner step; their 0.4 on the summed loss is 2.0 on the mean."""
    net = conv4(shape.x, shape.ways, replace(VARIANTS["maml_omniglot"], head_init="xavier"), mode="transductive")
    learner = MAML(inner_lr=0.4, inner_steps=1, test_steps=3)
    return Recipe(net, learner, adam(2e-3, schedule=cosine(0.05)), meta_batch=16, steps=1000, episode=shape._replace(queries=3))


def sine(config: Config, shape: TaskShape) -> Recipe:
    net = mlp(shape.x, shape.ways, init="trunc_normal")
    learner = MAML(inner_lr=0.01, inner_steps=1)
    return Recipe(net, learner, adam(1e-3), meta_batch=25, steps=5000, episode=shape._replace(queries=10))


ENTRIES: dict[str, Entry] = {
    "sine": Entry("sinusoid", sine, "vmap", 0.66, "MAML, 5,000 iterations, K=10, 1 step: a plain loop", 0.9, steps=5000),
    "prototypical": Entry("omniglot", prototypical, "loop", 98.8, "Snell et al. 2017, table 1: 60-way, Euclid", 98.0),
    "maml": Entry("omniglot", maml, "compiled", 98.7, "Finn et al. 2017, table 1: MAML, 5-way 1-shot", 95.0),
}


def cases(options: Options) -> Iterator[Case]:
    for name in options.what:
        for seed in range(options.seeds or 1):
            key = {"learner": name, "seed": seed, "minutes": options.extra.minutes, "episodes": options.extra.episodes}
            yield Case(key, lambda name=name, seed=seed: run(name, seed, options))  # type: ignore[misc]


def run(name: str, seed: int, options: Options) -> list[Row]:
    entry = ENTRIES[name]
    torch.set_num_threads(options.extra.threads)
    keep_freed_memory()
    if entry.tasks == "omniglot":
        root = data_folder()
        if root is None:
            raise FileNotFoundError("Omniglot is wanted: set METASEARCH_DATA to the folder that holds omniglot/")
        tasks = omniglot(root)
        shape = tasks.shape(ways=5, shots=1, queries=15)
    else:
        tasks = task_room.build("sinusoid", {})
        shape = tasks.shape(ways=1, shots=10, queries=100)
    begin = time.monotonic()
    mode: Mode = options.extra.mode or entry.mode
    recipe = entry.recipe({}, shape)
    per_step = seconds_a_step(recipe, tasks, mode)
    left = 60 * options.extra.minutes * 0.95 - (time.monotonic() - begin)
    steps = entry.steps or max(1, int(left / per_step))
    train = Train(entry.recipe, tasks, shape, validation_episodes=200, steps=steps, mode=mode, report_every=max(1, steps // 20))
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
    minutes = (time.monotonic() - begin) / 60

    tensors, _ = parcel.read(saved["last"])
    meta = {k.removeprefix("meta/"): v for k, v in tensors.items() if k.startswith("meta/")}
    opened = open_test(tasks, lambda opening: print(f"  opened {opening}", file=sys.stderr))
    bank = opened.bank(options.extra.episodes, seed=0, shape=shape)
    learner: Learner = recipe.learner.at(1.0)
    found = scores(recipe.net, learner, tasks, meta, bank.episodes, mode="loop")
    sign, scale = (-1, 1) if tasks.unit == "mse" else (1, 100)
    mean, low, high, _ = mean_interval(found)
    conditions = {
        "tasks": entry.tasks, "test_episodes": options.extra.episodes, "steps": steps, "tasks_seen": steps * recipe.meta_batch,
        "train_minutes": round(minutes, 2), "mode": mode, "norm": recipe.net.norm, "target": entry.target,
        "validation": round(sign * scale * report.score, 3),
        "train_tasks": round(sign * scale * report.metrics["train_score"], 3),
    }
    return [Row(
        name, sign * scale * mean, entry.published, entry.source, unit=tasks.unit if sign < 0 else "%",
        better="lower" if sign < 0 else "higher", error=scale * (high - low) / 2, conditions=conditions,
    )]


def seconds_a_step(recipe: Recipe, tasks: TaskDistribution, mode: Mode) -> float:
    """Of the outer step with its sampling, after a warm-up (and a compilation)."""
    shape = recipe.episode
    assert shape is not None
    meta = recipe.learner.init(recipe.net, torch.Generator().manual_seed(0))
    state = recipe.optimizer.init(meta)
    step = outer_step(recipe, tasks.loss, mode)
    begin = time.monotonic()
    episodes = draw_block(recipe, tasks, shape, 10, 0, 0)
    drawing = (time.monotonic() - begin) / 10
    for i in range(11):
        if i == 1:
            begin = time.monotonic()
        meta, state, _ = step(meta, state, episodes.select(slice(0, recipe.meta_batch)), 0.0)
    return (time.monotonic() - begin) / 10 + drawing


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, a learner (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=1000, help="of the test split (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--mode", choices=("loop", "vmap", "compiled"), help="how outer steps run (default: the entry's)")


if __name__ == "__main__":
    sys.exit(benchmark(__file__, __doc__, cases, what=tuple(ENTRIES), default=tuple(ENTRIES), seeds=1, arguments=arguments))
