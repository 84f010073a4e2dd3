"""Parts of a task distribution have different training classes, and together they have all."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import task_data
import torch
from torch import Generator

from metasearch.tasks import Split, TaskDistribution, TaskShape, build
from metasearch.tasks._images import ImageTasks, Pictures
from metasearch.tasks.blobs import Blobs
from metasearch.tasks.sinusoid import Sinusoid


def _drawn(tasks: TaskDistribution, shape: TaskShape) -> torch.Tensor:
    e = tasks.sample_episodes(200, split="train", shape=shape, generator=Generator().manual_seed(0))
    return torch.cat([e.support_x.flatten(0, 1), e.query_x.flatten(0, 1)])


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_no_class_of_pictures_is_in_both_halves(share: float) -> None:
    """Ten training classes whose pictures are of one grey level each."""
    images = np.repeat(np.arange(12, dtype=np.uint8), 2)[:, None, None, None] * np.ones((1, 1, 2, 2), np.uint8)
    splits: dict[Split, list[int]] = {"train": list(range(10)), "val": [10, 11]}
    pictures = Pictures(images, np.arange(0, 25, 2), [str(i) for i in range(12)], splits, "digest")
    tasks, shape = ImageTasks(pictures, told={}), TaskShape((1, 2, 2), 2, 1, 1)
    seen = [set((_drawn(tasks.part(share, which), shape)[:, 0, 0, 0] * 255).round().int().tolist()) for which in (0, 1)]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(10))
    assert len(seen[0]) == round(share * 10)
    assert tasks.class_count("train") == 10, "the whole stays as it was"


def test_no_class_of_blobs_is_in_both_halves() -> None:
    tasks = Blobs(dimensions=3, separation=1000.0, train_classes=9)
    shape, centres = tasks.shape(ways=2, shots=1, queries=1), tasks._centres["train"]
    seen = [set(torch.cdist(_drawn(tasks.part(0.5, which), shape), centres).argmin(-1).tolist()) for which in (0, 1)]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(9))


def test_parts_of_an_alphabet_stay_within_it(tmp_path: Path) -> None:
    root = task_data.omniglot(tmp_path / "omniglot", background={"Greek": 6, "Latin": 8})
    tasks = build("omniglot", {"root": str(root), "partial": True, "split": "lake", "within": "alphabet"})
    halves = [tasks.part(0.5, 0), tasks.part(0.5, 1)]
    shape = tasks.shape(ways=2, shots=1, queries=1)
    names = [set[str](), set[str]()]
    for half, mine in zip(halves, names, strict=True):
        assert isinstance(half, ImageTasks)
        drawings, _, _ = half.indices(200, "train", shape, Generator().manual_seed(0))
        for episode in drawings[..., 0] // 6:
            found = [half.names[c] for c in episode]
            assert len({name.partition("/")[0] for name in found}) == 1
            mine |= set(found)
    assert not names[0] & names[1]
    assert sum(half.class_count("train") for half in halves) == tasks.class_count("train")


def test_tasks_without_classes_are_their_own_parts_and_nonsense_is_refused() -> None:
    waves = Sinusoid()
    assert waves.part(0.5, 1) is waves
    with pytest.raises(ValueError, match="0 < share < 1"):
        Blobs().part(1.0, 0)
