"""A study's [tasks] table becomes a task distribution, or words about everything that is wrong with it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from metasearch import plugins, tasks
from metasearch.tasks import concatenate, open_test


def test_all_problems_are_said_at_once() -> None:
    said = tasks.problems("blobs", {"dimension": 3, "side": "x", "separation": True, "data_seed": 1.5})
    assert said == [
        "'dimension' is no argument of blobs. Did you mean 'dimensions'?", "side of blobs must be a whole number, but got 'x'",
        "separation of blobs must be a number, but got True", "data_seed of blobs must be a whole number, but got 1.5",
    ]
    with pytest.raises(ValueError, match=r"dimensions.*whole number"):
        tasks.build("blobs", {"dimension": 3, "side": "x"})


def test_a_whole_number_is_a_number() -> None:
    assert tasks.problems("blobs", {"separation": 3}) == []


def test_options_are_listed_in_words() -> None:
    said = tasks.problems("omniglot", {"rotations": "maml", "partial": 1})
    assert "'none' or 'new-classes' or 'per-class' or 'per-episode'" in said[0]
    assert "true or false" in said[1]


@pytest.mark.parametrize("name", plugins.names("tasks"))
def test_problems_are_found_without_building(name: str) -> None:
    assert len(tasks.problems(name, {"no_such": 1})) >= 1


def test_an_unknown_name_gets_its_neighbour() -> None:
    with pytest.raises(plugins.UnknownName, match="Did you mean 'omniglot'"):
        tasks.build("omniglott", {})


@pytest.mark.parametrize("name", ["omniglot", "class-arrays", "image-folder", "latency", "lake-runs"])
def test_missing_data_say_how_to_get_them(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("METASEARCH_DATA", raising=False)
    with pytest.raises(ValueError, match="METASEARCH_DATA"):
        tasks.build(name, {})
    monkeypatch.setenv("METASEARCH_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=str(tmp_path)):
        tasks.build(name, {})


def test_a_batch_of_episodes_is_cut_and_joined() -> None:
    blobs = tasks.build("blobs", {})
    episodes = blobs.sample_episodes(
        6, split="train", shape=blobs.shape(ways=3, shots=1, queries=2), generator=Generator().manual_seed(0))
    whole = concatenate([episodes.select(slice(0, 2)), episodes.select(torch.tensor([2, 3, 4, 5]))])
    assert whole.count == episodes.count == 6
    assert all(torch.equal(a, b) for a, b in zip(whole[:4], episodes[:4], strict=True))  # type: ignore[arg-type]


def test_an_opened_test_split_has_a_bank_of_its_own() -> None:
    blobs = tasks.build("blobs", {})
    shape, rows = blobs.shape(ways=3, shots=1, queries=2), []
    opened = open_test(blobs, rows.append)
    assert rows == [{"tasks": "Blobs", "digest": blobs.digest, "split": "test"}]
    bank = opened.bank(5, seed=0, shape=shape)
    assert bank.digest == opened.bank(5, seed=0, shape=shape).digest
    assert bank.digest != blobs.bank("val", 5, seed=0, shape=shape).digest


OWN = """
import typing
from collections.abc import Mapping, Sequence
from typing import Any
from metasearch.tasks.blobs import Blobs

class Mine(Blobs):
    def __init__(self, bare=40, sizes: list[int] | None = None, weights: Sequence[float] = (), pair: tuple[int, ...] = (),
                 table: dict[str, float] | None = None, anything: Any = None, way: str | None = None,
                 plain: typing.List = [], named: Mapping[str, float] = {}, two: tuple[str, float] = ("a", 0.5),
                 any_map: typing.Mapping = {}) -> None:
        super().__init__()
        self.given = (bare, sizes, weights, pair, table, anything, plain, named, two, any_map)
"""


@pytest.mark.parametrize(("arguments", "said"), [
    ({"bare": 50, "sizes": [1, 2], "weights": [0.5], "pair": [1, 2], "table": {"a": 1.0}, "anything": 3,
      "plain": [1], "named": {"a": 1}, "two": ["a", 1.5], "any_map": {"b": [2]}}, None),
    ({"named": {"a": "b"}}, "named of FILE must be collections.abc.Mapping[str, float], but got {'a': 'b'}"),
    ({"two": ["a"]}, "two of FILE must be tuple[str, float], but got ['a']"),
    ({"sizes": [1, "two"]}, "sizes of FILE must be list[int] or NoneType, but got [1, 'two']"),
    ({"weights": 0.5}, "weights of FILE must be collections.abc.Sequence[float], but got 0.5"),
    ({"way": 3}, "way of FILE must be a string, but got 3"),
])
def test_arguments_of_ones_own_tasks_may_be_all_that_toml_has(
    arguments: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    expected = [] if said is None else [said.replace("FILE", str(file)).replace(" or NoneType", "")]
    assert tasks.problems(str(file), arguments) == expected
    if said is None:
        built: Any = tasks.build(str(file), arguments)
        assert built.given == tuple(arguments.values())
