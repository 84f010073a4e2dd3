"""Cleaning an ended study removes the weights of all but its best trials, and nothing else."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import metasearch
from metasearch import cli
from metasearch.driver.folder import LockedError, locked
from metasearch.driver.study import Study
from metasearch.ledger import Ledger

STUDY = f"""
name = "t"
space = "{Path(__file__).parent / 'tiny_space.py'}"
tasks = {{ name = "blobs" }}
train = {{ mode = "loop" }}
validation = {{ episodes = 5 }}
budget = {{ trials = 4 }}
driver = {{ kind = "local" }}
track = {{ enabled = false, top = 2 }}
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("ended")
    metasearch.run(Study.from_text(STUDY), home=home)
    return home.rename(home.with_name("moved"))  # copies find no parcels where theirs were written


@pytest.fixture
def home(ended: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ended, tmp_path / "studies"))


def parcels(home: Path) -> set[int]:
    return {int(path.parent.name) for path in (home / "t" / "parcels").glob("*/*.safetensors")}


def notes(home: Path) -> list[str]:
    with Ledger.open(home / "t" / "ledger.sqlite") as ledger:
        return [str(row.body["what"]) for row in ledger.rows(kinds=["note"])]


def test_without_yes_it_only_says_what_it_would_free(home: Path) -> None:
    size = sum(file.stat().st_size for file in (home / "t" / "parcels").glob("*/*"))
    found = metasearch.clean("t", keep=0, home=home)
    assert (found.done, found.kept, found.trials, found.files, found.bytes) == (False, (), (1, 2, 3, 4), 4, size)
    assert parcels(home) == {1, 2, 3, 4}
    assert notes(home) == []


def test_the_best_keep_their_weights_and_nothing_else_changes(home: Path) -> None:
    board = metasearch.leaderboard("t", home=home, source="ledger")
    best = [int(name.rpartition("/")[2]) for name in board["trial"][:2]]
    found = metasearch.clean("t", yes=True, home=home)
    assert list(found.kept) == best, "as the leaderboard ranks them; track.top of them"
    assert parcels(home) == set(best)
    assert not (home / "t" / "parcels" / str(found.trials[0])).exists()
    assert metasearch.leaderboard("t", home=home, source="ledger").equals(board)
    assert notes(home) == [f"the parcels of 2 trials were removed to make room; kept: {best[0]}, {best[1]}"]
    assert metasearch.evaluate(f"t/{best[0]}", home=home, episodes=2, steps=0).interval.n == 2
    with pytest.raises(ValueError, match="has no parcel any more"):
        metasearch.evaluate(f"t/{found.trials[0]}", home=home, episodes=2)
    again = metasearch.clean("t", yes=True, home=home)
    assert (again.done, again.trials, len(notes(home))) == (False, (), 1), "once is enough"
    assert metasearch.resume("t", home=home, overrides=("budget.trials=6",)).status.done == 6


def test_links_and_strangers_are_left_alone(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(home / "t" / "parcels" / "1", elsewhere)
    (home / "t" / "parcels" / "1").symlink_to(elsewhere)
    (home / "t" / "parcels" / "2" / "mine.txt").write_text("kept")
    found = metasearch.clean("t", keep=0, yes=True, home=home)
    assert found.trials == (2, 3, 4)
    assert len(list(elsewhere.glob("*.safetensors"))) == 1
    assert (home / "t" / "parcels" / "2" / "mine.txt").read_text() == "kept"


def test_a_study_that_may_go_on_is_not_cleaned(home: Path) -> None:
    with Ledger.open(home / "t" / "ledger.sqlite", write=True) as ledger:
        ledger.append("resumed", {})
    with pytest.raises(ValueError, match="has not ended, and goes on from its parcels: metasearch resume t"):
        metasearch.clean("t", yes=True, home=home)
    with locked(home / "t"), pytest.raises(LockedError):
        metasearch.clean("t", yes=True, home=home)
    assert parcels(home) == {1, 2, 3, 4}


def test_the_command_asks_for_yes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = home.rename(home.with_name("my studies"))
    words = ["clean", "t", "--keep", "1", "--home", str(home)]
    assert cli.call(words) == 0
    said = capsys.readouterr().err
    assert "would free" in said
    assert f"metasearch clean t --keep 1 --yes --home '{home}'" in said
    assert len(parcels(home)) == 4
    assert cli.call([*words, "--yes", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["done"] is True
    assert "freed" in out.err
    assert len(parcels(home)) == 1
    assert cli.call(["clean", "nope", "--home", str(home)]) == 2
    assert cli.call(["clean", "t", "--keep", "-1", "--home", str(home)]) == 2
