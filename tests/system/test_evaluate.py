"""A finished trial is restored and scored on the sealed test split; the ledger says that it was opened, and when."""
from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from metasearch import cli
from metasearch.driver import launch
from metasearch.driver.folder import LockedError, locked
from metasearch.driver.study import Study
from metasearch.ledger import Ledger, LedgerError
from metasearch.objectives.parcel import BadParcel
from metasearch.trained import evaluate, restore

SINE = """
name = "waves"
space = "sine-mlp"
tasks = { name = "sinusoid", shots = 5, queries = 5 }
train = { steps = 60, mode = "vmap" }
validation = { episodes = 20 }
budget = { trials = 2 }
driver = { kind = "local" }
track = { enabled = false }
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("studies")
    launch.run(Study.from_text(SINE), home=home)
    return home


def _opened(home: Path) -> list[dict[str, object]]:
    with Ledger.open(home / "waves" / "ledger.sqlite") as ledger:
        return [row.body for row in ledger.rows(kinds=["opened", "evaluated"])]


def test_evaluation_scores_the_test_split_and_leaves_rows_in_the_ledger(home: Path) -> None:
    before = len(_opened(home))
    result = evaluate("waves/1", home=home, episodes=40, steps=3, mode="vmap")
    opened, half, evaluated = _opened(home)[before:]
    assert opened["split"] == half["split"] == "test"
    assert opened["digest"] != half["digest"], "supports on one half are other tasks"
    assert evaluated["interval"]["mean"] == pytest.approx(result.interval.mean)  # type: ignore[index]
    assert result.interval.n == len(result.scores) == 40
    assert result.interval.low < result.interval.mean < result.interval.high < 0
    assert [p.inner_steps for p in result.curve] == [0, 1, 2, 3]
    assert result.half is not None
    assert result.half.interval.mean != result.interval.mean
    told = evaluated["half"]
    assert isinstance(told, dict)
    assert told["interval"]["mean"] == pytest.approx(result.half.interval.mean)
    assert (told["episodes"], len(told["curve"]), "scores" in told) == (40, 4, False)
    wave = result.waves[0]
    assert len(wave.support) == 5
    assert len(wave.x) == len(wave.truth) == len(wave.predicted[10]) == 200
    assert wave.x == sorted(wave.x)


def test_equal_seeds_score_on_equal_episodes(home: Path) -> None:
    again = [evaluate("waves/1", home=home, episodes=10, steps=0, mode="vmap") for _ in range(2)]
    assert again[0].scores == again[1].scores
    other = evaluate("waves/1", home=home, episodes=10, steps=0, mode="vmap", seed=1)
    assert other.digest != again[0].digest


def test_shifted_tasks_are_harder_and_named(home: Path) -> None:
    plain = evaluate("waves/1", home=home, episodes=40, steps=0, mode="vmap")
    moved = evaluate("waves/1", home=home, episodes=40, steps=0, mode="vmap", shift=True)
    assert moved.split == "test shifted"
    assert moved.interval.mean < plain.interval.mean


def test_nothing_is_opened_while_a_driver_runs(home: Path) -> None:
    before = len(_opened(home))
    with locked(home / "waves"), pytest.raises(LockedError):
        evaluate("waves/1", home=home, episodes=10)
    assert len(_opened(home)) == before


@pytest.mark.parametrize(("reference", "words"), [
    ("waves", "STUDY/NUMBER"), ("waves/x", "STUDY/NUMBER"), ("waves/99", "its trials are 1 to 2"), ("../waves/1", "name"),
    ("waves/١", "STUDY/NUMBER"),
])
def test_a_reference_that_names_no_trial_is_an_error_in_words(home: Path, reference: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        restore(reference, home=home)


def test_half_a_training_is_not_tested(home: Path, tmp_path: Path) -> None:
    """A copy of the study in which trial 2 has not ended yet."""
    shutil.copytree(home / "waves", tmp_path / "waves")
    with sqlite3.connect(tmp_path / "waves" / "ledger.sqlite") as rows:
        rows.execute("delete from rows where seq >= (select min(seq) from rows where kind = 'ended' and trial = 2)")
    before = len(_opened(tmp_path))
    with pytest.raises(ValueError, match=r"waves/2 has not ended .* metasearch resume waves"):
        evaluate("waves/2", home=tmp_path, episodes=10)
    with pytest.raises(ValueError, match="seed >= 0"):
        evaluate("waves/1", home=tmp_path, episodes=10, seed=-1)
    assert len(_opened(tmp_path)) == before


def test_a_damaged_parcel_is_noticed_and_nothing_is_opened(home: Path) -> None:
    with Ledger.open(home / "waves" / "ledger.sqlite") as ledger:
        path = Path(ledger.trials()[2].checkpoint or "")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    before = len(_opened(home))
    try:
        with pytest.raises(BadParcel, match="damaged"):
            evaluate("waves/2", home=home, episodes=10)
    finally:
        path.write_bytes(whole)
    assert len(_opened(home)) == before


TWINS = '''
"""Siamese, Prototypical, Matching and Relation networks, and MAML, on points."""
from metasearch.learners.maml import MAML
from metasearch.learners.matching import Matching
from metasearch.learners.prototypical import Prototypical
from metasearch.learners.relation import Relation
from metasearch.learners.siamese import Siamese
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.space import Choice, Space

LEARNERS = {"siamese": Siamese(), "prototypical": Prototypical(), "matching": Matching(), "relation": Relation(), "maml": MAML()}
SPACE = Space({"learner": Choice(tuple(LEARNERS))})


def recipe(config, shape):
    learner = LEARNERS[config["learner"]]
    net = mlp(shape.x, shape.ways if learner.head else None, hidden=(32, 32))
    return Recipe(net, learner, adam(1e-2), meta_batch=4, steps=150)
'''


def test_learners_that_compare_pairs_are_scored_on_verification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two points of one class are told from two of different ones far above chance (0.5), and MAML compares none."""
    space = tmp_path / "twins.py"
    space.write_text(TWINS)
    launch.run(Study.from_text(f"""
        name = "twins"
        space = "{space}"
        method.name = "grid"
        budget.trials = 5
        tasks = {{ name = "blobs", ways = 5, shots = 1, queries = 3 }}
        train = {{ mode = "vmap" }}
        validation.episodes = 20
        driver.kind = "local"
        track.enabled = false
    """), home=tmp_path)
    with Ledger.open(tmp_path / "twins" / "ledger.sqlite") as ledger:
        trials = {row.proposal.config["learner"]: number for number, row in ledger.trials().items() if row.status == "done"}
    assert len(trials) == 5
    for name, number in trials.items():
        result = evaluate(f"twins/{number}", home=tmp_path, episodes=100, steps=0)
        if name == "maml":
            assert result.verification is None
            continue
        assert result.verification is not None
        assert result.verification > 0.8, name
        assert result.to_json()["verification"] == result.verification
        assert cli.call(["evaluate", f"twins/{number}", "--home", str(tmp_path), "--episodes", "100", "--steps", "0"]) == 0
        assert f"ROC-AUC {result.verification:.4f}" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("name", ["nosuch", "other"])
def test_no_lock_is_laid_where_no_study_is(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(LedgerError, match="there is no ledger"):
        evaluate(f"{name}/1", home=tmp_path)
    assert not list(tmp_path.rglob("driver.lock"))
