"""Labelled inputs for ordinary supervised training: each is an input of its class, and the test split stays sealed."""
from __future__ import annotations

from pathlib import Path

import pytest
import task_data
import torch
from torch import Generator

from metasearch.tasks import TaskDistribution
from metasearch.tasks.blobs import Blobs
from metasearch.tasks.class_arrays import ClassArrays
from metasearch.tasks.image_folder import ImageFolder
from metasearch.tasks.omniglot import Omniglot
from metasearch.tasks.sinusoid import Sinusoid


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _omniglot(folder: Path, **more: object) -> Omniglot:
    return Omniglot(str(task_data.omniglot(folder / "omniglot")), partial=True, **more)  # type: ignore[arg-type]


def test_a_class_holds_its_own_pictures_and_no_other(tmp_path: Path) -> None:
    """6 characters of 6 drawings, all different: 600 draws miss one of 36 with a chance below 36 exp(-600/36) = 2e-6."""
    tasks = _omniglot(tmp_path)
    x, numbers = tasks.labelled(600, "train", _generator())
    assert x.shape == (600, 1, 28, 28)
    assert numbers.dtype == torch.int64
    assert numbers.shape == (600,)
    assert sorted(set(numbers.tolist())) == list(range(tasks.class_count("train"))) == list(range(6))
    seen: dict[bytes, int] = {}
    for picture, number in zip(x, numbers.tolist(), strict=True):
        assert seen.setdefault(picture.numpy().tobytes(), number) == number
    assert [list(seen.values()).count(c) for c in range(6)] == [6] * 6


def test_the_pictures_are_those_of_episodes(tmp_path: Path) -> None:
    """Two pictures are of one class here if and only if they may share a label there."""
    tasks = _omniglot(tmp_path, rotations="new-classes")
    assert tasks.class_count("train") == 24
    x, numbers = tasks.labelled(2000, "train", _generator())
    known = {picture.numpy().tobytes(): number for picture, number in zip(x, numbers.tolist(), strict=True)}
    assert len(known) == 24 * 6
    e = tasks.sample_episodes(40, split="train", shape=tasks.shape(ways=10, shots=2, queries=2), generator=_generator(1))
    for i in range(e.count):
        of_label: dict[int, set[int]] = {}
        for picture, label in zip(e.support_x[i], e.support_y[i].argmax(-1).tolist(), strict=True):
            of_label.setdefault(label, set()).add(known[picture.numpy().tobytes()])
        classes = [next(iter(found)) for found in of_label.values() if len(found) == 1]
        assert len(set(classes)) == 10, "ten labels are ten classes, each picture of a label is of one class"


def test_a_turned_picture_keeps_its_class_where_a_turn_is_no_new_class(tmp_path: Path) -> None:
    tasks = _omniglot(tmp_path, rotations="per-class")
    x, numbers = tasks.labelled(2000, "train", _generator())
    pictures: list[set[bytes]] = [set() for _ in range(6)]
    for picture, number in zip(x, numbers.tolist(), strict=True):
        pictures[number].add(picture.numpy().tobytes())
    assert [len(p) for p in pictures] == [4 * 6] * 6


def test_every_picture_is_equally_likely_in_classes_of_unequal_size(tmp_path: Path) -> None:
    """Classes of 5 to 8 pictures; five standard errors: a false alarm in 6e-7 a class."""
    tasks = ImageFolder(str(task_data.class_folders(tmp_path / "pictures")), size=8)
    n = 20_000
    _, numbers = tasks.labelled(n, "train", _generator())
    sizes = torch.tensor([5.0, 6, 7, 8, 5, 6]) / 37
    shares = torch.bincount(numbers, minlength=6) / n
    assert bool(((shares - sizes).abs() < 5 * (sizes * (1 - sizes) / n).sqrt()).all())


@pytest.mark.parametrize("side", [None, 4])
def test_a_blobs_class_has_its_centre(side: int | None) -> None:
    tasks = Blobs(side=side, train_classes=3)
    x, numbers = tasks.labelled(3000, "train", _generator())
    for c in range(3):
        torch.testing.assert_close(x[numbers == c].mean(0), tasks._centres["train"][c], atol=0.2, rtol=0)


def _cases(folder: Path) -> list[TaskDistribution]:
    return [_omniglot(folder), Blobs(), ClassArrays(str(task_data.class_arrays(folder / "a.npz")))]


def test_equal_generators_draw_equal_inputs_and_the_test_split_is_sealed(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    for tasks in _cases(tmp_path):
        one, again, other = (tasks.labelled(20, "train", _generator(seed)) for seed in (0, 0, 1))
        assert torch.equal(one[0], again[0])
        assert torch.equal(one[1], again[1])
        assert not torch.equal(one[0], other[0])
        one[0].zero_()
        assert torch.equal(tasks.labelled(20, "train", _generator())[0], again[0]), "inputs are the caller's own"
        val, numbers = tasks.labelled(20, "val", _generator())
        assert int(numbers.max()) < tasks.class_count("val")
        assert val.dtype == torch.float32
        with pytest.raises(PermissionError, match="open_test"):
            tasks.labelled(1, "test", _generator())
        with pytest.raises(ValueError, match="0 or more, but got -1"):
            tasks.labelled(-1, "train", _generator())
    assert torch.equal(before, torch.get_rng_state())


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="val has 0 classes"):
        Blobs(val_classes=0).labelled(1, "val", _generator())


def test_tasks_without_lasting_classes_say_so() -> None:
    for ask in (lambda: Sinusoid().class_count("train"), lambda: Sinusoid().labelled(1, "train", _generator())):
        with pytest.raises(ValueError, match="Sinusoid has no classes that last"):
            ask()


@pytest.mark.parametrize(("arguments", "classes"), [({}, 1028), ({"rotations": "new-classes"}, 4112)])
def test_omniglot_trains_on_its_published_number_of_classes(data: Path, arguments: dict[str, str], classes: int) -> None:
    assert Omniglot(str(data / "omniglot"), **arguments).class_count("train") == classes  # type: ignore[arg-type]
