"""What an older version left behind is read and gone on with; what a newer one did is refused."""
from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

import metasearch
from metasearch import cli
from metasearch.driver import launch
from metasearch.ledger import SCHEMA, Ledger
from metasearch.testing.history import problems, proposals, results

KEPT = Path(__file__).parent.parent / "data" / "state"
VERSIONS = sorted(path.name for path in KEPT.iterdir() if path.is_dir())


@pytest.fixture(params=VERSIONS)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of all studies of a version: nothing ever writes to the kept files."""
    return Path(shutil.copytree(KEPT / request.param, tmp_path / "studies"))


def test_every_schema_has_its_kept_files() -> None:
    assert [f"v{number}" for number in range(1, SCHEMA + 1)] == VERSIONS


def test_an_old_study_is_shown_and_its_results_are_what_they_were(home: Path) -> None:
    assert launch.status("whole", home=home)["reason"] == "trials"
    board = metasearch.leaderboard("whole", home=home, source="ledger")
    assert list(board["status"]) == ["done"] * 3
    assert problems(home / "whole") == []


def test_an_old_study_goes_on_with_a_larger_budget_and_runs_nothing_again(home: Path) -> None:
    before = results(home / "whole")
    assert launch.resume("whole", home=home, overrides=("budget.trials=4",)).status.done == 4
    after = results(home / "whole")
    assert {number: after[number] for number in before} == before
    with Ledger.open(home / "whole" / "ledger.sqlite") as ledger:
        assert [row.attempts for row in ledger.trials().values()] == [1, 1, 1, 1]
        assert not any("differ" in row.body["what"] or "not what" in row.body["what"] for row in ledger.rows(kinds=["note"]))
    assert problems(home / "whole") == []


def test_an_old_study_that_was_killed_goes_on_from_its_parcel_to_what_it_would_have_become(home: Path) -> None:
    assert launch.resume("half", home=home).status.done == 3
    assert problems(home / "half") == []
    assert proposals(home / "half") == proposals(home / "whole"), "the same study under another name, never killed"
    ours, whole = results(home / "half"), results(home / "whole")
    for number, (status, score, step) in whole.items():
        assert ours[number][0] == status
        assert ours[number][1] == pytest.approx(score, rel=1e-5)
        assert ours[number][2] == step
    with Ledger.open(home / "half" / "ledger.sqlite") as ledger:
        (first, again) = (row.body for row in ledger.rows(kinds=["started"], trial=2))
        assert (first["own"], again["own"]) == (False, True)
        assert again["start"].endswith("parcels/2/4.safetensors") or again["start"].endswith("parcels/2/2.safetensors")


def test_an_old_trial_is_evaluated(home: Path) -> None:
    assert metasearch.evaluate("whole/1", home=home, episodes=2, steps=0).interval.n == 2


@pytest.mark.parametrize("command", [["resume", "whole"], ["leaderboard", "whole", "--source", "ledger"], ["show", "whole/1"]])
def test_a_newer_study_is_refused_with_both_versions_and_left_as_it_is(
    home: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "whole" / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    db.close()
    before = path.read_bytes()
    assert cli.call([*command, "--home", str(home)]) == 65
    said = capsys.readouterr().err
    assert f"schema {SCHEMA + 1}" in said
    assert f"up to {SCHEMA}" in said
    assert path.read_bytes() == before
