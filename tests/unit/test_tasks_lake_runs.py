"""Lake's runs are read right, if the published baseline has its published error on them; and nothing of them is trained on."""
from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import task_data
import torch
from scipy.spatial.distance import cdist
from torch import Generator

from metasearch.driver import launch
from metasearch.driver.plan import plan
from metasearch.driver.study import Study, Tasks
from metasearch.tasks import TestSplit, open_test
from metasearch.tasks._archive import DataError, DataMissing
from metasearch.tasks._images import Array
from metasearch.tasks.lake_runs import LakeRuns, read
from metasearch.trained import evaluate


@pytest.fixture(scope="module")
def real(data: Path) -> LakeRuns:
    return LakeRuns(str(data / "omniglot"))


@pytest.fixture
def made_up(tmp_path: Path) -> LakeRuns:
    return LakeRuns(str(task_data.lake_runs(tmp_path / "o")), partial=True)


def _opened(tasks: LakeRuns) -> TestSplit:
    return open_test(tasks, lambda row: None)


def _hausdorff(a: Array, b: Array) -> float:
    """Modified Hausdorff distance of two clouds of points (Dubuisson, Jain 1994): the larger mean distance to the nearest."""
    distance = cdist(a, b)
    return float(max(distance.min(0).mean(), distance.min(1).mean()))


@pytest.mark.slow
def test_the_published_baseline_has_its_published_error(data: Path) -> None:
    """Lake's own demo: ink points about their mean, 105x105, the class of the nearest drawing: 38.8 % in his paper."""
    arrays = read(data / "omniglot" / "all_runs.zip", side=105)
    points = [np.argwhere(picture[0] > 0).astype(float) for picture in arrays["images"]]
    points = [p - p.mean(0) for p in points]
    wrong = []
    for run, labels in enumerate(arrays["labels"]):
        classes, items = points[40 * run:40 * run + 20], points[40 * run + 20:40 * run + 40]
        guessed = np.array([np.argmin([_hausdorff(item, one) for one in classes]) for item in items])
        wrong.append((guessed != labels).mean())
    assert np.mean(wrong) == pytest.approx(0.3875, abs=1e-9)


def test_nothing_of_the_runs_is_trained_or_validated_on(real: LakeRuns) -> None:
    """Picture by picture, and turned ones too: not one of the 800 is in the classes of train or val."""
    runs = {picture.tobytes() for picture in real._runs.numpy()}
    assert len(runs) == 800
    for split in ("train", "val"):
        starts, counts = real._starts[split], real._counts[split]  # type: ignore[index]
        places = np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])
        pictures = real._images[places].numpy()
        assert len(pictures) == {"train": 792, "val": 172}[split] * 20
        for quarter in range(4):
            assert not runs & {p.tobytes() for p in np.ascontiguousarray(np.rot90(pictures, quarter, (-2, -1)))}


def test_every_picture_of_the_runs_is_one_of_the_evaluation_set(real: LakeRuns) -> None:
    starts, counts = real._starts["test"], real._counts["test"]
    held = {real._images[i].numpy().tobytes() for i in range(int(starts[0]), int(starts[-1] + counts[-1]))}
    missing = sum(picture.numpy().tobytes() not in held for picture in real._runs)
    assert missing == 0


@pytest.mark.parametrize("name", ["real", "made_up"])
def test_a_bank_of_20_gives_each_run_once(name: str, request: pytest.FixtureRequest) -> None:
    tasks: LakeRuns = request.getfixturevalue(name)
    shape = tasks.shape(ways=20, shots=1, queries=1)
    bank = _opened(tasks).bank(20, seed=0, shape=shape)
    key = {picture.numpy().tobytes(): i for i, picture in enumerate(tasks._runs)}
    raw = bank.episodes.map(lambda t: t)
    seen = []
    for e in range(20):
        supports = [key[(p * 255).round().to(torch.uint8).numpy().tobytes()] for p in raw.support_x[e]]
        queries = [key[(p * 255).round().to(torch.uint8).numpy().tobytes()] for p in raw.query_x[e]]
        run = supports[0] // 40
        assert sorted(supports) == list(range(40 * run, 40 * run + 20))
        assert sorted(queries) == list(range(40 * run + 20, 40 * run + 40))
        label = {place % 40: int(y.argmax()) for place, y in zip(supports, raw.support_y[e], strict=True)}
        for place, y in zip(queries, raw.query_y[e], strict=True):  # a query has the label of its class's support
            assert label[int(tasks._labels[run, place % 40 - 20])] == int(y.argmax())
        seen.append(run)
    assert sorted(seen) == list(range(20))
    again = _opened(tasks).sample_episodes(45, shape=shape, generator=Generator().manual_seed(1))
    assert len({x.numpy().tobytes() for x in again.support_x.sort(1).values.sum((1, 2, 3))}) == 20


def test_test_episodes_are_the_runs_and_nothing_else(made_up: LakeRuns) -> None:
    for wrong in ({"ways": 5}, {"shots": 2}, {"queries": 2}):
        shape = made_up.shape(**{"ways": 20, "shots": 1, "queries": 1, **wrong})
        with pytest.raises(ValueError, match="20 ways, 1 shot and 1 query"):
            made_up.check(shape, "test")


SPACE = """
from metasearch.learners.prototypical import Prototypical
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.space import Choice, Space

SPACE = Space({"width": Choice((4,))})


def recipe(config, shape):
    return Recipe(mlp(shape.x, None, hidden=(config["width"],)), Prototypical(), adam(0.01), 1, 1)
"""


def _study(tmp_path: Path, **tasks: object) -> Study:
    (tmp_path / "wide.py").write_text(SPACE)
    if not (tmp_path / "o").exists():
        task_data.lake_runs(tmp_path / "o")
    return Study.model_validate({
        "name": "lake", "space": str(tmp_path / "wide.py"), "budget": {"trials": 1}, "validation": {"episodes": 2},
        "tasks": {"name": "lake-runs", "root": str(tmp_path / "o"), "partial": True, **tasks},
        "train": {"mode": "vmap"}, "driver": {"kind": "local"}, "track": {"enabled": False},
    })


def test_a_study_that_could_never_be_evaluated_is_refused_before_it_starts(tmp_path: Path) -> None:
    (said,) = _study(tmp_path, queries=2).problems()
    assert "no trial could ever be evaluated: the runs are test episodes of 20 ways, 1 shot and 1 query a class" in said
    assert "but got (ways=5, shots=1, queries=2). Set ways = 20, shots = 1 and queries = 1" in said
    assert _study(tmp_path, ways=20, shots=1, queries=1).problems() == []


def test_who_only_searches_needs_no_test_split(tmp_path: Path) -> None:
    def blobs(classes: int) -> Study:
        return _study(tmp_path).model_copy(update={"tasks": Tasks.model_validate({"name": "blobs", "test_classes": classes})})

    assert blobs(0).problems() == []
    (said,) = blobs(4).problems()
    assert "could ever be evaluated: test has 4 classes, but 5 ways need 5" in said
    found = plan(blobs(0), home=tmp_path, samples=1, smokes=0)
    assert any("could ever be evaluated on the test split: test has 0 classes" in one for one in found.warnings)


def test_every_run_is_evaluated_once(tmp_path: Path) -> None:
    """The same runs again would pass for independent draws: of 600, the interval would be 5.5 times too narrow."""
    launch.run(_study(tmp_path, ways=20, shots=1, queries=1), home=tmp_path)
    said: list[str] = []
    found = evaluate("lake/1", home=tmp_path, say=said.append)
    assert found.interval.n == len(found.scores) == 20
    assert said == ["lake/1: 20 episodes of test, all that there are"]
    assert evaluate("lake/1", home=tmp_path, episodes=5).interval.n == 5


def test_validation_is_within_an_alphabet_whatever_training_is(tmp_path: Path) -> None:
    root = str(task_data.lake_runs(tmp_path / "o"))
    free = LakeRuns(root, within="all", rotations="new-classes", partial=True)
    free.check(free.shape(ways=60, shots=1, queries=1), "train")
    free.check(free.shape(ways=20, shots=1, queries=1), "val")
    assert free.classes("val") == 20, "val is upright"
    bound = LakeRuns(root, rotations="new-classes", partial=True)
    assert bound.alphabets("train", 20) == {"Greek": 88}
    assert free.digest != bound.digest


def test_damaged_runs_are_named(tmp_path: Path) -> None:
    root = task_data.omniglot(tmp_path / "o")
    with pytest.raises(DataMissing, match=r"has no all_runs\.zip"):
        LakeRuns(str(root), partial=True)
    whole = task_data.lake_runs(tmp_path / "w") / "all_runs.zip"
    for name, text, words in (
        ("run07/class_labels.txt", b"nothing", "run07/class_labels.txt must give each of the 20 classes"),
        ("run20/test/item20.png", None, "has no run20/test/item20.png"),
    ):
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(root / "all_runs.zip", "w") as target:
            for member in source.namelist():
                body = source.read(member) if member != name else text
                if body is not None:
                    target.writestr(member, body)
        with pytest.raises(DataError, match=words):
            LakeRuns(str(root), partial=True)
