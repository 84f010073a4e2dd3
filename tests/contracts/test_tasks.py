"""Every task distribution, found by listing the folder, against every law; those that need data get made-up ones."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import task_data

from metasearch import plugins
from metasearch.testing import tasks
from metasearch.testing.tasks import Case

Make = Callable[[Path], Mapping[str, Any]]


def _nothing(folder: Path) -> Mapping[str, Any]:
    return {}


def _omniglot(**more: Any) -> Make:
    return lambda folder: {"root": str(task_data.omniglot(folder / "omniglot")), "partial": True, **more}


# What to build of each name; a name that is not here is built without arguments.
VARIANTS: dict[str, dict[str, Make]] = {
    "blobs": {"vectors": _nothing, "pictures": lambda folder: {"side": 6, "data_seed": 1}},
    "sinusoid": {
        "plain": _nothing,
        "half-oracle": lambda folder: {"support": "left", "oracle": True},
    },
    "navigation": {"short": lambda folder: {"horizon": 2}},
    "noisy": {
        "uniform": lambda folder: {"tasks": {"name": "blobs"}, "flip": 0.4},
        "pair": lambda folder: {"tasks": {"name": "blobs", "side": 6}, "flip": 0.5, "wrong": "pair"},
        "long-tailed": lambda folder: {"tasks": {"name": "blobs"}, "flip": 0.4, "imbalance": 3.0},
    },
    "omniglot": {
        "plain": _omniglot(),
        "new-classes": _omniglot(rotations="new-classes"),
        "alphabet": _omniglot(within="alphabet"),
        "alphabet-new-classes": _omniglot(within="alphabet", rotations="new-classes"),
        "per-class": _omniglot(rotations="per-class", invert=False),
        "per-episode": _omniglot(rotations="per-episode", rotate="train"),
    },
    "class-arrays": {
        "plain": lambda folder: {"path": str(task_data.class_arrays(folder / "a.npz"))},
        "normalised": lambda folder: {
            "path": str(task_data.class_arrays(folder / "a.npz")), "split": "fc100_split", "normalise": "train"},
    },
    "lake-runs": {
        "alphabet": lambda folder: {"root": str(task_data.lake_runs(folder / "omniglot")), "partial": True},
        "all": lambda folder: {
            "root": str(task_data.lake_runs(folder / "omniglot")), "partial": True, "within": "all", "rotations": "new-classes"},
    },
    "latency": {
        "middle": lambda folder: {"path": str(task_data.latency(folder / "a.csv.gz")), "known": 80},
        "all": lambda folder: {"path": str(task_data.latency(folder / "a.csv.gz")), "known": 80, "middle": 1.0},
    },
    "image-folder": {
        "folders": lambda folder: {"root": str(task_data.class_folders(folder / "pictures")), "size": 9, "normalise": "train"},
        "lists": lambda folder: {"root": str(task_data.split_lists(folder / "pictures.zip")), "size": 8, "grey": True},
    },
}
# What a variant does not promise, and its tests of its own show.
EXCEPT = {("noisy", "long-tailed"): tasks.labels_are_one_hot_and_balanced}
SHAPES: dict[str, dict[str, int]] = {"lake-runs": {"ways": 20, "shots": 1, "queries": 1}}  # where only such episodes are
CASES = [(name, variant) for name in plugins.names("tasks") for variant in VARIANTS.get(name, {"plain": _nothing})]
FIRST = dict(reversed(CASES))
# A process of its own takes seconds: one variant of each name goes through one together.
PAIRS = [
    pytest.param((name, variant), law, id=f"{name}-{variant}-{law.__name__}")
    for name, variant in CASES for law in tasks.LAWS
    if law not in (EXCEPT.get((name, variant)), tasks.banks_are_equal_in_another_process)
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Case]:
    cases: dict[tuple[str, str], Case] = {}

    def case(name: str, variant: str) -> Case:
        if (name, variant) not in cases:
            make = VARIANTS.get(name, {}).get(variant, _nothing)
            cases[name, variant] = Case(name, make(tmp_path_factory.mktemp(f"{name}-{variant}")), **SHAPES.get(name, {}))
        return cases[name, variant]

    return case


@pytest.mark.parametrize(("which", "law"), PAIRS)
def test_law_holds(which: tuple[str, str], law: Callable[[Case], None], built: Callable[[str, str], Case]) -> None:
    law(built(*which))


def test_banks_are_equal_in_another_process(built: Callable[[str, str], Case]) -> None:
    tasks.banks_are_equal_in_another_process(*(built(*which) for which in FIRST.items()))


@pytest.mark.parametrize(("name", "arguments"), [
    pytest.param("omniglot", {}, marks=pytest.mark.slow), ("class-arrays", {}), ("latency", {}),
    pytest.param("omniglot", {"rotations": "new-classes"}, marks=pytest.mark.slow),
], ids=["omniglot", "cifar-fs", "latency", "omniglot-new-classes"])
def test_laws_hold_on_real_data(
    name: str, arguments: Mapping[str, Any], data: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METASEARCH_DATA", str(data))
    case = Case(name, arguments, ways=5, shots=1, queries=5)
    for law in tasks.LAWS:
        if law is not tasks.banks_are_equal_in_another_process:
            law(case)


def test_a_fixed_label_a_class_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from metasearch.tasks import _classes

    right, case = _classes.distinct, Case("blobs", {"train_classes": 12})
    tasks.labels_are_fresh_in_every_episode(case)

    def ordered(below: Any, k: int, generator: Any) -> Any:
        drawn = right(below, k, generator)
        drawn.sort(axis=1)  # the nearest wrong: classes in their order, so that a class's label is nearly fixed
        return drawn

    monkeypatch.setattr(_classes, "distinct", ordered)
    with pytest.raises(AssertionError, match="not fresh"):
        tasks.labels_are_fresh_in_every_episode(case)


def test_a_label_at_a_fixed_position_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from metasearch.tasks import _classes

    case = Case("blobs", {})
    monkeypatch.setattr(_classes.np, "argsort", lambda keys, axis: _classes.np.broadcast_to(range(keys.shape[1]), keys.shape))
    with pytest.raises(AssertionError, match="at one position"):
        tasks.positions_say_nothing_of_labels(case)
