"""Throughput of the operations on pictures against kornia's RandAugment: the same batch, one run, one thread.

kornia's RandAugment draws two operations for the whole batch: so does `shared`, with a sign for every picture, as kornia has.
`each` draws two operations for every picture, as RandAugment is defined; kornia has no such mode: the reference is the same.
Both have 14 or 15 operations at level 9 of 30, zeros around the picture and bilinear interpolation. `ours` and `reference` are
milliseconds of processor time a batch, means over 400 of them (operations differ in cost, so it is the mean that a training
pays), contenders taking turns of ten; `faster` is reference / ours.

step: what augmenting costs a training: the share of an outer step of Conv-4 (5-way 1-shot, 15 queries, 4 tasks, prototypical and
first-order MAML) that drawing its episodes takes longer with RandAugment on supports and queries.
"""
from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from _report import Case, Options, Row, benchmark
from torch import Generator

from metasearch.augment import Places, RandAugment, Shared
from metasearch.learners import Learner
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.nets.conv4 import conv4
from metasearch.objectives.episodic import draw_block, outer_step
from metasearch.objectives.memory import keep_freed_memory
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.training import only_learnt
from metasearch.tasks import TaskShape
from metasearch.tasks._images import ImageTasks, Pictures

TURNS, IN_A_ROW = 40, 10
PICTURES = {"1x28": (1, 28, 28), "3x28": (3, 28, 28), "3x84": (3, 84, 84)}
BATCHES = (("1x28", 64), ("3x28", 64), ("3x84", 64), ("3x28", 640))  # the last: a meta-batch of eight 5-way 1-shot episodes


def cases(options: Options) -> Iterator[Case]:
    torch.set_num_threads(1)
    keep_freed_memory()  # as a training does, and for kornia too
    if options.what[0] in ("all", "throughput"):
        for name, batch in BATCHES:
            yield Case({"pictures": name, "batch": batch}, lambda name=name, batch=batch: _throughput(name, batch))  # type: ignore[misc]
    if options.what[0] in ("all", "step"):
        for name, learner in (("prototypical", Prototypical()), ("fomaml", MAML(first_order=True))):
            yield Case({"step": name}, lambda name=name, learner=learner: _share(name, learner))  # type: ignore[misc]


def _throughput(name: str, batch: int) -> Iterable[Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kornia.augmentation.auto import RandAugment as Kornias

    x = torch.rand(batch, *PICTURES[name], generator=Generator().manual_seed(0))
    generator = Generator().manual_seed(1)
    torch.manual_seed(1)
    each, theirs = RandAugment(2, 9), Kornias(n=2, m=9)
    shared = Shared(each)
    colour = x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1).contiguous()  # kornia's saturation takes no grey pictures
    contenders: dict[str, Callable[[], object]] = {
        "shared": lambda: shared(x, generator, fill=0.0), "each": lambda: each(x, generator, fill=0.0),
        "kornia": lambda: theirs(colour),
    }
    took: dict[str, list[float]] = {who: [] for who in contenders}
    with torch.no_grad():
        for turn in range(-1, TURNS):
            for who, run in contenders.items():
                begin = time.process_time()
                for _ in range(IN_A_ROW):
                    run()
                if turn >= 0:
                    took[who].append(1000 * (time.process_time() - begin) / IN_A_ROW)
    means = {who: statistics.fmean(times) for who, times in took.items()}
    said = "kornia RandAugment(n=2, m=9), this run" + ("" if x.shape[1] == 3 else ", on three equal channels")
    for who in ("shared", "each"):
        conditions = {"faster": means["kornia"] / means[who], "median_faster": statistics.median(took["kornia"])
                      / statistics.median(took[who]), "pictures_a_second": 1000 * batch / means[who]}
        yield Row(f"{name} {who}", means[who], means["kornia"], said, "ms", "lower", conditions=conditions)


def _share(name: str, learner: Learner) -> Iterable[Row]:
    shape = TaskShape((3, 32, 32), 5, 1, 15)
    plain = Recipe(conv4(shape.x, shape.ways if learner.head else None), learner, adam(1e-3), meta_batch=4, steps=1000)
    policy = RandAugment(2, 9)
    recipe = replace(plain, augment=Places(support=policy, query=policy))
    tasks = _tasks()
    meta = learner.init(plain.net, Generator().manual_seed(0))
    state = plain.optimizer.init(only_learnt(meta))
    step, block = outer_step(plain, tasks.loss, "loop"), draw_block(plain, tasks, shape, 1, 0, 0)

    def drawn(recipe: Recipe) -> Callable[[], object]:
        return lambda: draw_block(recipe, tasks, shape, 10, 0, 0)

    whole = _milliseconds(lambda: step(meta, state, block, 0.0))
    bare, augmented = (_milliseconds(drawn(r)) / 10 for r in (plain, recipe))
    conditions = {"step_ms": whole, "draw_ms": bare, "augment_ms": augmented - bare}
    yield Row(f"conv4 {name}", 100 * (augmented - bare) / (whole + augmented), unit="% of a step", better="lower",
              conditions=conditions)


def _tasks() -> ImageTasks:
    """As many pictures as a meta-batch needs, of random values."""
    import numpy as np

    images = np.random.default_rng(0).integers(0, 256, (20 * 20, 3, 32, 32), dtype=np.uint8)
    names = [str(c) for c in range(20)]
    return ImageTasks(Pictures(images, np.arange(21) * 20, names, {"train": list(range(20))}, "noise"), told={})


def _milliseconds(run: Callable[[], object], times: int = 20) -> float:
    took = []
    for turn in range(-2, times):
        begin = time.process_time()
        run()
        if turn >= 0:
            took.append(1000 * (time.process_time() - begin))
    return statistics.median(took)


if __name__ == "__main__":
    sys.exit(benchmark(__file__, __doc__, cases, what=("all", "throughput", "step"), default=("all",)))
