"""Every recipe that `few_shot.py` trains can be built, and its learner begins; no data are read."""
from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from _recipes import ENTRIES, IMBALANCED, NEEDS_DATA, TASKS  # noqa: E402

from metasearch.learners.maml import MAML  # noqa: E402
from metasearch.learners.meta_weight_net import MetaWeightNet  # noqa: E402
from metasearch.tasks import TaskDistribution, TaskShape  # noqa: E402
from metasearch.tasks.latency import LAYERS, OPERATIONS  # noqa: E402
from metasearch.tasks.noisy import Noisy  # noqa: E402

PICTURE = (1, 28, 28)
INPUTS: Mapping[str, tuple[int, ...]] = {  # of tasks that read files or draw letters
    "omniglot": PICTURE, "lake-runs": PICTURE, "noisy-glyphs": PICTURE, "imbalanced-glyphs": PICTURE,
    "latency": (LAYERS * OPERATIONS,),
}
MADE: dict[str, TaskDistribution] = {k: made(Path()) for k, made in TASKS.items() if k not in INPUTS}


@pytest.mark.parametrize("name", ENTRIES)
def test_every_recipe_can_be_built_and_begun(name: str) -> None:
    entry = ENTRIES[name]
    x = MADE[entry.tasks].input_shape if entry.tasks in MADE else INPUTS[entry.tasks]
    shape = TaskShape(x, entry.ways, entry.shots, entry.queries)
    recipe = entry.recipe({}, shape)
    if entry.tasks in MADE:
        recipe.learner.check(MADE[entry.tasks], shape)
        MADE[entry.tasks].check(shape, "test")
        MADE[entry.tasks].check(recipe.episode or shape, "train")
    else:
        assert "classes" in recipe.learner.kinds or entry.tasks == "latency"
    meta = recipe.learner.init(recipe.net, torch.Generator().manual_seed(0))
    recipe.optimizer.init({k: v for k, v in meta.items() if not k.startswith("stat/")})
    if entry.before is not None:
        assert entry.before_steps > 0
        first = entry.before({}, shape)
        begun = first.learner.init(first.net, torch.Generator().manual_seed(0))
        net = {k: v.shape for k, v in begun.items() if k.startswith("net/")}
        assert net
        assert {k: v.shape for k, v in meta.items() if k in net} == net, "the learner takes over every weight"


def test_tasks_are_named_that_there_are() -> None:
    assert {entry.tasks for entry in ENTRIES.values()} == TASKS.keys()
    assert INPUTS.keys() >= NEEDS_DATA


def test_noisy_and_imbalanced_entries_train_the_same_learners_alike() -> None:
    for old, new, learner in (
        ("noisy-maml", "imbalanced-maml", MAML(0.4, 3)),
        ("meta-weight-net", "imbalanced-meta-weight-net", MetaWeightNet(0.8, 3)),
    ):
        a, b = ENTRIES[old], ENTRIES[new]
        assert (a.ways, a.shots, a.queries, a.mode) == (b.ways, b.shots, b.queries, b.mode)
        shape = TaskShape(PICTURE, a.ways, a.shots, a.queries)
        x, y = a.recipe({}, shape), b.recipe({}, shape)
        assert x.learner == y.learner == learner
        assert (x.meta_batch, x.episode, x.net.features) == (y.meta_batch, y.episode, y.net.features)


def test_imbalanced_glyphs_have_drawings_enough_for_their_commonest_class() -> None:
    entry = ENTRIES["imbalanced-maml"]
    tasks = Noisy(**{**IMBALANCED, "tasks": {"name": "blobs"}})  # letters take half a minute to draw
    counts = tasks.counts(tasks.shape(ways=entry.ways, shots=entry.shots, queries=entry.queries))
    assert counts == [12, 6, 4, 2, 1]
    assert counts[0] + entry.queries <= IMBALANCED["tasks"]["drawings"]
