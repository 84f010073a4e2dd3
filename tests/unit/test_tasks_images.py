"""Episodes of pictures are fair draws: without replacement, uniform, turned as said, cheap."""
from __future__ import annotations

import time
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import task_data
import torch
from torch import Generator

from metasearch.tasks import Split, TaskShape, _classes, build
from metasearch.tasks._images import ImageTasks, Pictures, turned
from metasearch.tasks.class_arrays import ClassArrays
from metasearch.tasks.image_folder import ImageFolder

Rotations = Literal["none", "new-classes", "per-class", "per-episode"]
SPLITS: dict[Split, list[int]] = {"train": [0, 1, 2, 3], "val": [4, 5, 6], "test": [7, 8, 9]}


def _arrows(rotations: Rotations, rotated: tuple[Split, ...] = ("train", "val", "test")) -> ImageTasks:
    """Ten classes of three drawings, 6x6. The first row's pixels say (in grey levels) class and drawing, so a picture tells
    which drawing it is, and where its first row is tells how it is turned."""
    images = np.zeros((30, 1, 6, 6), np.uint8)
    images[:, 0, 0, 1] = 10 + np.arange(30) // 3
    images[:, 0, 0, 2] = 100 + np.arange(30) % 3
    pictures = Pictures(
        images if rotations == "none" else turned(images), np.arange(0, 31, 3), [f"c{i}" for i in range(10)], SPLITS, "digest",
        turned=rotations != "none")
    return ImageTasks(pictures, told={}, rotations=rotations, rotated=rotated)


def _read(picture: torch.Tensor) -> tuple[int, int, int]:
    """Class, drawing and quarter turns of one picture [1, 6, 6]."""
    grey = (picture[0] * 255).round().long().numpy()
    for turns in range(4):
        upright = np.rot90(grey, -turns)
        if upright[0, 1]:
            return int(upright[0, 1]) - 10, int(upright[0, 2]) - 100, turns
    raise AssertionError("no arrow")


def _episodes(tasks: ImageTasks, n: int, ways: int, shots: int = 1, queries: int = 1, split: Split = "train") -> list[Any]:
    """Of each episode: label -> [(class, drawing, turns) of support rows, of query rows]."""
    shape = TaskShape((1, 6, 6), ways, shots, queries)
    e = tasks._draw(n, split, shape, Generator().manual_seed(0))
    found = []
    for i in range(n):
        rows: dict[int, list[tuple[int, int, int]]] = {}
        for x, y in ((e.support_x[i], e.support_y[i]), (e.query_x[i], e.query_y[i])):
            for picture, label in zip(x, y, strict=True):
                rows.setdefault(int(label.argmax()), []).append(_read(picture))
        found.append(rows)
    return found


def test_an_episodes_rows_of_one_label_are_drawings_of_one_class() -> None:
    for rows in _episodes(_arrows("none"), 200, ways=3, shots=1, queries=2):
        classes = [{c for c, _, _ in drawn} for drawn in rows.values()]
        assert all(len(c) == 1 for c in classes)
        assert len(set.union(*classes)) == 3
        assert all(sorted(d for _, d, _ in drawn) == [0, 1, 2] for drawn in rows.values())
        assert {t for drawn in rows.values() for _, _, t in drawn} == {0}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_splits_take_their_own_classes(split: Split) -> None:
    met = {c for rows in _episodes(_arrows("none"), 100, ways=2, split=split) for drawn in rows.values() for c, _, _ in drawn}
    assert met == set(SPLITS[split])


def test_rotated_classes_are_new_ones_that_may_meet() -> None:
    tasks = _arrows("new-classes")
    assert [tasks.classes(s) for s in ("train", "val", "test")] == [16, 12, 12]
    met = False
    for rows in _episodes(tasks, 300, ways=5):
        kinds = [{(c, t) for c, _, t in drawn} for drawn in rows.values()]
        assert all(len(k) == 1 for k in kinds)
        assert len(set.union(*kinds)) == 5
        met |= len({c for k in kinds for c, _ in k}) < 5
    assert met


def test_rotated_per_class_the_forms_of_a_class_never_meet() -> None:
    tasks = _arrows("per-class")
    assert tasks.classes("train") == 4
    turns = set()
    for rows in _episodes(tasks, 300, ways=3):
        kinds = [{(c, t) for c, _, t in drawn} for drawn in rows.values()]
        assert all(len(k) == 1 for k in kinds)  # one angle for the supports and the queries of a class
        assert len({c for k in kinds for c, _ in k}) == 3
        turns.add(tuple(t for k in kinds for _, t in k))
    assert len(turns) == 64  # every combination of angles


def test_rotated_per_episode_all_classes_share_one_angle() -> None:
    angles = [{t for drawn in rows.values() for _, _, t in drawn} for rows in _episodes(_arrows("per-episode"), 100, ways=3)]
    assert all(len(a) == 1 for a in angles)
    assert set.union(*angles) == {0, 1, 2, 3}


@pytest.mark.parametrize("rotations", ["new-classes", "per-class", "per-episode"])
def test_only_the_named_splits_are_rotated(rotations: Rotations) -> None:
    tasks = _arrows(rotations, rotated=("train",))
    assert {t for rows in _episodes(tasks, 60, ways=3, split="val") for drawn in rows.values() for _, _, t in drawn} == {0}
    assert len({t for rows in _episodes(tasks, 60, ways=3) for drawn in rows.values() for _, _, t in drawn}) == 4


@pytest.mark.parametrize(("below", "k", "rows"), [(5, 3, 30_000), (65, 2, 60_000)], ids=["few", "many"])  # both ways
def test_ordered_draws_without_replacement_are_uniform(below: int, k: int, rows: int) -> None:
    """Chi-square over all ordered tuples, 5 sigma: false alarm about 1e-5 at 59 degrees of freedom, 1e-6 at 4,159."""
    drawn = _classes.distinct(np.full(rows, below), k, Generator().manual_seed(0))
    tuples = {t: i for i, t in enumerate(permutations(range(below), k))}
    counts = np.bincount([tuples[tuple(row)] for row in drawn.tolist()], minlength=len(tuples))
    expected = rows / len(tuples)
    chi, degrees = float(((counts - expected) ** 2 / expected).sum()), len(tuples) - 1
    assert abs(chi - degrees) < 5 * (2 * degrees) ** 0.5


def test_draws_from_uneven_classes_stay_inside_of_each_class() -> None:
    below = np.array([2, 9, 64] * 2000 + [65, 400] * 1000)
    for counts in (below[:6000], below):  # both ways
        places = _classes.distinct(counts, 2, Generator().manual_seed(0))
        assert (places < counts[:, None]).all()
        for size in set(counts.tolist()):
            assert len(np.unique(places[counts == size])) == size or size > 64


def test_all_pairs_of_a_class_are_drawn_equally_often() -> None:
    places = _classes.distinct(np.full(30_000, 4), 2, Generator().manual_seed(1))
    for pair in combinations(range(4), 2):
        share = (np.sort(places, axis=1) == pair).all(axis=1).mean()
        assert share == pytest.approx(1 / 6, abs=5 * (5 / 36 / 30_000) ** 0.5)  # false alarm 6e-7 each


def test_too_few_pictures_name_the_smallest_class(tmp_path: Path) -> None:
    tasks = ImageFolder(str(task_data.class_folders(tmp_path / "p")), size=8)
    with pytest.raises(ValueError, match=r"train has 5 images in class 'train0', but 4 shots \+ 2 queries need 6\. Lower"):
        tasks.check(tasks.shape(ways=2, shots=4, queries=2), "train")
    with pytest.raises(ValueError, match="val has 4 classes, but 5 ways need 5"):
        tasks.check(tasks.shape(ways=5, shots=1, queries=1), "val")


def test_normalised_pictures_have_mean_0_and_deviation_1_in_training(tmp_path: Path) -> None:
    tasks = ClassArrays(str(task_data.class_arrays(tmp_path / "a.npz")), normalise="train")
    shape = tasks.shape(ways=5, shots=3, queries=3)  # all classes of train, all drawings
    e = tasks.sample_episodes(1, split="train", shape=shape, generator=Generator().manual_seed(0))
    x = torch.cat((e.support_x, e.query_x), dim=1)
    torch.testing.assert_close(x.mean(dim=(0, 1, 3, 4)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var(dim=(0, 1, 3, 4), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_colour_arrays_become_channels_first(tmp_path: Path) -> None:
    file = task_data.class_arrays(tmp_path / "a.npz")
    raw = np.load(file)["images"]
    tasks = ClassArrays(str(file))
    e = tasks.sample_episodes(
        1, split="train", shape=tasks.shape(ways=5, shots=3, queries=3), generator=Generator().manual_seed(0))
    ours = {(x * 255).round().byte().numpy().tobytes() for x in torch.cat((e.support_x, e.query_x), dim=1)[0]}
    assert ours == {picture.transpose(2, 0, 1).tobytes() for picture in raw[:5].reshape(-1, 8, 8, 3)}


def test_pictures_in_folders_are_resized_directly(tmp_path: Path) -> None:
    from PIL import Image

    root = task_data.class_folders(tmp_path / "p")
    tasks = ImageFolder(str(root), size=8)
    expected = set()
    for file in (root / "val").glob("*/*.png"):
        with Image.open(file) as picture:
            resized = picture.resize((8, 8), Image.Resampling.LANCZOS)
            expected.add(np.asarray(resized).transpose(2, 0, 1).tobytes())
    starts, counts = tasks._starts["val"], tasks._counts["val"]
    ours = {tasks._images[i].numpy().tobytes() for s, c in zip(starts, counts, strict=True) for i in range(s, s + c)}
    assert ours == expected


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda p: (p / "val" / "train0").mkdir() or (p / "val/train0/0.png").write_bytes((p / "train/train0/0.png").read_bytes()),
     "disjoint, but 'train0'"),
    (lambda p: (p / "train" / "train0" / "0.png").write_bytes(b"no picture"), "no picture"),
    (lambda p: (p / "train.csv").write_text("filename,label\n../secret.png,a\n"), r"there is no images/\.\./secret"),
    (lambda p: (p / "train.csv").write_text("file,class\na,b\n"), "columns filename,label"),
], ids=["class-in-two-splits", "no-picture", "path-outside", "wrong-columns"])
def test_a_spoilt_folder_is_refused_in_words(tmp_path: Path, spoil: Any, said: str) -> None:
    root = task_data.class_folders(tmp_path / "p")
    spoil(root)
    with pytest.raises(ValueError, match=said):
        ImageFolder(str(root), size=8)


def test_sampling_costs_under_a_twentieth_of_a_conv4_training_step() -> None:
    """4 tasks, 5-way 1-shot with 1 query, 28x28: the smallest step that there is. Medians of runs that alternate, so that a
    busy machine slows both. Seen: less than a hundredth."""
    from metasearch.learners.maml import MAML
    from metasearch.nets.conv4 import conv4

    tasks = build("glyphs", {})
    shape, generator = tasks.shape(ways=5, shots=1, queries=1), Generator().manual_seed(0)
    net = conv4(shape.x, shape.ways, "maml_omniglot")
    meta, episodes = net.init(generator), None
    draws, steps = [], []
    for _ in range(7):
        begin = time.perf_counter()
        for _ in range(10):
            episodes = tasks.sample_episodes(4, split="train", shape=shape, generator=generator)
        middle = time.perf_counter()
        for i in range(4):
            MAML().episode_gradient(net, tasks.loss, meta, episodes.select(i))
        draws.append((middle - begin) / 10)
        steps.append(time.perf_counter() - middle)
    assert np.median(draws) < 0.05 * np.median(steps), (np.median(draws), np.median(steps))
