"""The benchmark of augmentation: what its rows do to episodes, that they are paired, and that its parts survive a stop."""
from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Generator

from metasearch.augment import PLACES, Places, RandAugment, Schedule, Shuffled, Step, SubPolicies, fixed, saved
from metasearch.objectives import augmenting
from metasearch.tasks import Episode, TaskShape
from metasearch.tasks.blobs import Blobs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import _augmented
import _augmented_numbers
import augmentation_search as benchmark
from _contest import Pace, write
from _report import Kept, Options

SHAPES = {"cifar": TaskShape((3, 32, 32), 5, 1, 15), "omniglot": TaskShape((1, 28, 28), 20, 1, 5)}


def _contest(folder: Path, row: str = "pba", *, go_on: bool = True) -> benchmark.Contest:
    return benchmark.Contest(row, "omniglot", Path("nowhere"), folder, 8.0, 30.0, 4, 1, go_on)


def _tested(scores: list[float], bank: str = "one") -> benchmark.Tested:
    return benchmark.Tested(scores, bank, validation=0.5, training=0.5, steps=10, minutes=1.0)


@pytest.mark.parametrize("data", benchmark.DATA)
def test_every_row_that_is_set_can_act_on_its_pictures(data: str) -> None:
    for row in (row for row in benchmark.ROWS if row not in benchmark.SEARCHES):
        recipe = _augmented.trained(benchmark.DATA[data].places(row), SHAPES[data])
        assert augmenting.check(recipe, Blobs(), SHAPES[data]) is None or row in ("randaugment", "trivialaugment")


def _changed(places: Places | None) -> list[bool]:
    """Of supports, queries: is any picture another one?"""
    shape = TaskShape((1, 32, 32), 5, 1, 4)
    drawn = Blobs(side=32).sample_episodes(2, split="train", shape=shape, generator=Generator().manual_seed(0))
    support, query = (torch.cat([x, x * 0.5, 1 - x], 2) for x in (drawn.support_x, drawn.query_x))
    before = drawn._replace(support_x=support, query_x=query)
    after: Episode = before if places is None else places(before, Generator().manual_seed(1))
    pairs = (after.support_x[:, :5], before.support_x), (after.query_x, before.query_x)
    return [bool((a != b).any()) for a, b in pairs]


@pytest.mark.parametrize(("row", "support", "query"), [
    ("none", False, False), ("randaugment", True, True), ("trivialaugment", True, True), ("support", True, False),
    ("query", False, True), ("shot", False, False), ("task", True, True),
])
def test_a_row_changes_the_pictures_of_its_place_and_no_others(row: str, support: bool, query: bool) -> None:
    assert _changed(benchmark.DATA["cifar"].places(row)) == [support, query]


def test_turned_classes_are_the_tasks_own_or_the_places() -> None:
    cifar, omniglot = benchmark.DATA["cifar"], benchmark.DATA["omniglot"]
    assert cifar.places("rotation-classes") == Places(new_classes=0.25)
    assert omniglot.places("rotation-classes") is None
    assert omniglot.table(Path("/d"), "rotation-classes")["rotate"] == "train"  # what is tested, is the same
    assert "rotations" not in omniglot.table(Path("/d"), "none")


def test_the_spaces_mean_what_those_of_the_package_mean() -> None:
    for space in (_augmented, _augmented_numbers):
        config = space.SPACE.decode([0.9] * space.SPACE.width)
        recipe = space.recipe(config, SHAPES["cifar"])
        assert isinstance(recipe.augment, Places)
        assert set(recipe.augment.policies) <= set(PLACES)
        assert recipe.precision == "bfloat16"
        assert recipe.episode == (SHAPES["cifar"].x, 20, 1, 5)


def test_a_row_is_made_of_what_is_kept_and_laid_beside_no_augmentation(tmp_path: Path) -> None:
    """Nothing is trained: there are no pictures where this looks. The gain is paired: two seeds, four episodes."""
    policy = Places(query=fixed(Step("rotate", 0.5, 0.5)))
    for name, more in (("pba", (0.1, 0.2)), ("none", (0.05, 0.05))):  # of each seed
        contest = _contest(tmp_path, name)
        write(contest.found_file, benchmark.Found(benchmark.told(policy if name == "pba" else None), 0.5, 80, 100, 29.0))
        assert contest.all_tested(2) is None
        for seed in range(2):
            write(contest.seed_file(seed), _tested([more[seed] + level for level in (0.1, 0.3, 0.5, 0.7)]))
    row, = _contest(tmp_path).row(2)
    assert (row.ours, row.reference) == (pytest.approx(55.0), pytest.approx(45.0))
    assert (row.conditions["lowest"], row.conditions["highest"]) == (50.0, 60.0)
    assert (row.conditions["gain"], row.conditions["gain_error"]) == (10.0, 0.0)  # beside an interval of 25 of either row
    assert (row.conditions["gain_lowest"], row.conditions["gain_highest"]) == (5.0, 15.0)  # what the seeds know
    assert row.error is not None
    assert row.error > 20
    assert row.conditions["found"] == "query: rotate 50%"
    alone, = _contest(tmp_path, "none").row(2)
    assert (alone.reference, alone.conditions["gain"], alone.conditions["found"]) == (None, None, "nothing")


def test_scores_of_other_episodes_are_not_paired() -> None:
    with pytest.raises(ValueError, match="paired on the same episodes, but these are of 2 banks"):
        benchmark.gains([_tested([0.1, 0.2])], [_tested([0.1, 0.2], bank="two")])


def test_a_new_search_gets_a_folder_of_its_own_and_a_resumed_one_the_last(tmp_path: Path) -> None:
    assert _contest(tmp_path).name == _contest(tmp_path, go_on=False).name == "omniglot-pba-30m1-1"
    for number in (1, 2, 10):
        (tmp_path / "augmentation_search" / f"omniglot-pba-30m1-{number}").mkdir(parents=True)
    assert _contest(tmp_path).name == "omniglot-pba-30m1-10"
    assert _contest(tmp_path, go_on=False).name == "omniglot-pba-30m1-11"
    assert _contest(tmp_path, "query").name == "omniglot-query-1"


def test_files_have_the_names_under_which_tables_that_were_begun_have_them(tmp_path: Path) -> None:
    contest, folder = _contest(tmp_path), tmp_path / "augmentation_search" / "omniglot-pba-30m1-1"
    assert (contest.found_file, contest.seed_file(2)) == (folder / "found.json", folder / "tested" / "8m1-4-2.json")
    write(folder / "tested" / "8m1.json", Pace(1.0, 2.0, 37))
    assert contest.steps == 37, "a pace that was measured is not measured again"


def test_parts_are_cases_until_the_row_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_DATA", str(tmp_path))
    extra = SimpleNamespace(data=["cifar"], minutes=8.0, search_minutes=30.0, episodes=1000, threads=1)
    options = Options(("dada",), 2, None, False, True, tmp_path, extra, float("inf"))  # type: ignore[arg-type]
    keys = [case.key for case in benchmark.cases(options)]
    assert [key.get("part") for key in keys] == ["policy", "seed 0", "seed 1", None]
    assert keys[-1] == {"augmentation": "dada", "data": "cifar", "minutes": 8.0, "search_minutes": 30.0, "episodes": 1000,
                        "threads_used": 1}
    Kept(tmp_path / "augmentation_search.jsonl").append({**keys[-1], "seeds": 2}, [{"name": "dada"}])
    assert [case.key for case in benchmark.cases(options)] == keys[-1:]


def test_shares_are_those_of_pictures_and_of_training() -> None:
    first = SubPolicies(((Step("rotate", 0.5, 0.1), Step("flip")), (Step("rotate", 1.0, 0.1), Step("identity"))))
    assert benchmark.shares(first) == Counter({"rotate": 0.75, "flip": 0.5})  # type: ignore[arg-type]
    second = Shuffled((Step("rotate", 0.25, 0.1), Step("rotate", 0.0, 0.1), Step("invert", 0.5)))
    both = benchmark.shares(Schedule((first, second), (3.0, 1.0)))
    assert both == pytest.approx({"rotate": 0.625, "flip": 0.375, "invert": 0.125})
    assert benchmark.spelled(Places(support=RandAugment(2, 9))) == "support: RandAugment 100%"


def test_what_is_kept_is_the_policy_itself(tmp_path: Path) -> None:
    contest = _contest(tmp_path)
    places = Places(shot=Schedule((fixed(Step("flip")), fixed(Step("invert"))), (1.0, 2.0)), copies=2)
    write(contest.found_file, benchmark.Found(benchmark.told(places)))
    assert contest.places == places
    assert saved.to_json(contest.places) == contest.found.policy
