"""A study through the real command line: from a TOML file to a leaderboard in every format, and what a second try is told.

The first command is a process of its own from the very beginning, the others are forked with their imports done.
"""
from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forked
import pandas as pd
import pytest

from metasearch.ledger import Ledger
from metasearch.track import outbox

METASEARCH = [sys.executable, "-c", "from metasearch.cli import main; main()"]
UNTRACKED = "track.enabled=false"
STUDY = """
name = "tiny"
space = "sine-mlp"
seed = 3
[tasks]
name = "sinusoid"
shots = 5
queries = 5
[train]
steps = 20
report_every = 10
mode = "vmap"
[validation]
episodes = 20
[budget]
coverage = 0.5
top = "15%"
[driver]
kind = "local"
[track]
pictures = 0
"""
TRIALS = 5  # ceil(ln 0.5 / ln 0.85)


class Place:
    """A folder with a study file and a home of its own."""

    first: subprocess.CompletedProcess[bytes]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "studies"
        (folder / "study.toml").write_text(STUDY)

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "METASEARCH_HOME": str(self.home)}

    def began(self) -> subprocess.CompletedProcess[bytes]:
        """The first study, by a process that imports everything itself."""
        command = [*METASEARCH, "run", "study.toml"]
        return _judged(subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, timeout=280), 0)

    def ran(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        return _judged(forked.run(*words, cwd=self.folder, env=self.env, timeout=280), code)

    def rows(self, name: str) -> list[object]:
        with Ledger.open(self.home / name / "ledger.sqlite") as ledger:
            return list(ledger.rows())

    def trials(self, name: str) -> dict[int, str]:
        with Ledger.open(self.home / name / "ledger.sqlite") as ledger:
            return {number: row.status for number, row in ledger.trials().items()}


def _judged(done: subprocess.CompletedProcess[bytes], code: int) -> subprocess.CompletedProcess[bytes]:
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where the study has been run, on the local driver."""
    made = Place(tmp_path_factory.mktemp("place"))
    made.first = made.began()
    deadline = time.monotonic() + 120
    while outbox.behind(made.home / "tiny") and time.monotonic() < deadline:  # the study does not wait for MLflow, tests do
        time.sleep(0.05)
    with open(made.home / "tiny" / "outbox.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # it has ended
    return made


def test_a_run_ends_in_a_leaderboard_and_says_the_coverage(place: Place) -> None:
    said, table = place.first.stderr.decode(), place.first.stdout.decode()
    assert place.trials("tiny") == dict.fromkeys(range(1, TRIALS + 1), "done")
    assert f"{TRIALS} trials (the top 15% with probability 0.5)" in said
    assert "coverage: one of the top 15% was tried with probability 0.556 (wanted: 0.5)" in said
    assert f"{TRIALS} done" in said
    assert "learner" not in table
    assert table.count("tiny/") == TRIALS
    assert "resume" not in said


def test_the_leaderboard_is_the_same_in_every_format_and_from_both_sources(place: Place) -> None:
    (sent,) = json.loads(place.ran("sync", "tiny", "--json").stdout)
    assert (sent["study"], sent["rows"], sent["runs"]) == ("tiny", len(place.rows("tiny")), TRIALS + 1)
    boards = {
        "csv": pd.read_csv(io.BytesIO(place.ran("leaderboard", "tiny", "--format", "csv").stdout)),
        "json": pd.DataFrame(json.loads(place.ran("leaderboard", "tiny", "--format", "json").stdout)),
        "parquet": pd.read_parquet(io.BytesIO(place.ran("leaderboard", "tiny", "--format", "parquet").stdout)),
        "ledger": pd.DataFrame(json.loads(place.ran("leaderboard", "tiny", "--json", "--source", "ledger").stdout)),
    }
    for board in boards.values():
        assert list(board["trial"]) == list(boards["ledger"]["trial"])
        assert board["score"].tolist() == pytest.approx(boards["ledger"]["score"].tolist())
        assert board["score"].is_monotonic_increasing  # an error: less is better
        assert (board["low"] < board["score"]).all()
    assert b"tiny/" in place.ran("leaderboard", "tiny").stdout
    best = boards["ledger"]["trial"][0]
    assert json.loads(place.ran("leaderboard", "tiny", "--format", "json", "--top", "1").stdout)[0]["trial"] == best


def test_a_filter_and_an_order_are_those_of_the_config(place: Place) -> None:
    words = ("leaderboard", "tiny", "--format", "json", "--where", "depth > 1", "--sort", "-width")
    rows = json.loads(place.ran(*words).stdout)
    assert rows
    assert all(row["config"]["depth"] > 1 for row in rows)
    widths = [row["config"]["width"] for row in rows]
    assert widths == sorted(widths, reverse=True)


def test_a_trial_and_a_study_are_shown_from_the_ledger(place: Place) -> None:
    trial = json.loads(place.ran("show", "tiny/2", "--json").stdout)
    assert trial["status"] == "done"
    assert [row["kind"] for row in trial["history"]] == ["proposed", "started", "report", "report", "ended"]
    assert len(trial["episodes"]) == 20
    study = json.loads(place.ran("show", "tiny", "--json").stdout)
    assert study["study"]["seed"] == 3
    assert study["unit"] == "mse"
    assert {"python", "torch", "ray", "mlflow", "metasearch"} <= set(study["versions"])
    assert study["machine"]["deterministic"] is False
    assert study["machine"]["cpus"] >= 1
    assert place.ran("show", "tiny").stdout
    assert b"inner_lr" in place.ran("show", "tiny/2").stdout


def test_the_status_of_a_finished_study_says_why_it_ended(place: Place) -> None:
    one = json.loads(place.ran("status", "tiny", "--json").stdout)
    assert (one["done"], one["reason"], one["planned"]) == (TRIALS, "coverage", TRIALS)
    assert b"ended: coverage" in place.ran("status").stdout


def test_a_finished_study_is_not_run_again(place: Place) -> None:
    before = place.rows("tiny")
    assert b"metasearch resume tiny" in place.ran("run", "study.toml", code=2).stderr
    assert b"another study 'tiny'" in place.ran("run", "study.toml", "seed=4", code=2).stderr
    assert place.ran("resume", "tiny").stdout.count(b"tiny/") == TRIALS
    assert place.rows("tiny") == before


def test_a_new_number_leaves_the_old_study_as_it_is(place: Place) -> None:
    before = place.rows("tiny")
    place.ran("run", "study.toml", "seed=4", "budget.trials=1", UNTRACKED, "--new-id", "--json")
    assert place.trials("tiny-2") == {1: "done"}
    assert place.rows("tiny") == before


def test_an_evaluation_opens_the_test_split_and_the_ledger_knows(place: Place) -> None:
    words = ("evaluate", "tiny/1", "--episodes", "30", "--steps", "2", "--json", "--plot", "drawn.svg")
    found = json.loads(place.ran(*words).stdout)
    assert found["split"] == "test"
    assert [point["inner_steps"] for point in found["curve"]] == [0, 1, 2]
    assert found["half"]["split"].endswith("half")
    assert (place.folder / "drawn.svg").read_text().startswith("<?xml")
    with Ledger.open(place.home / "tiny" / "ledger.sqlite") as ledger:
        assert {row.trial for row in ledger.rows(kinds=["opened"])} == {1}
        assert [row.trial for row in ledger.rows(kinds=["evaluated"])] == [1]
    assert b"mse" in place.ran("evaluate", "tiny/1", "--episodes", "30", "--shift").stdout


def test_an_export_is_loaded_from_its_folder(place: Place) -> None:
    import metasearch

    done = place.ran("export", "tiny/1", "model", "--json")
    assert json.loads(done.stdout)["files"] == ["model.json", "weights.safetensors"]
    assert b"metasearch.load(" in done.stderr
    model = metasearch.load(place.folder / "model")
    assert model.adapt([[0.0], [1.0]], [[0.0], [1.0]]).predict([[0.5]]).shape == (1, 1)


def test_the_python_api_does_what_the_command_line_does(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    import metasearch

    monkeypatch.setenv("METASEARCH_HOME", str(place.home))
    study = metasearch.Study.from_toml(place.folder / "study.toml", ["name=api", "budget.trials=2", UNTRACKED])
    result = metasearch.run(study)
    assert (result.exit_code, result.status.done) == (0, 2)
    table = metasearch.leaderboard("api", source="ledger")
    assert table["trial"][0] == f"api/{result.status.best_trial}"
    assert metasearch.resume("api").status.done == 2
    assert metasearch.restore("api/1").config == result.trials.iloc[0].filter(like="config/").rename(lambda c: c[7:]).to_dict()
    first = json.loads(place.ran("leaderboard", "tiny", "--source", "ledger", "--sort", "seed", "--format", "json").stdout)
    seeds = {row["trial"].rpartition("/")[2]: row["seed"] for row in first}
    assert seeds["1"] == result.trials["seed"][0]  # the same study under another name: the same trials


def test_what_a_recipe_prints_is_no_data(place: Place) -> None:
    (place.folder / "loud.py").write_text(
        "from search_spaces import sine_mlp\nSPACE = sine_mlp.SPACE\n"
        "def recipe(config, shape):\n    print('canary')\n    return sine_mlp.recipe(config, shape)\n"
    )
    done = place.ran("run", "study.toml", "name=loud", "space=loud.py", "budget={ trials = 1 }", UNTRACKED, "--json")
    assert json.loads(done.stdout)["status"]["done"] == 1
    assert b"canary" in done.stderr
    assert json.loads(place.ran("evaluate", "loud/1", "--episodes", "2", "--steps", "0", "--json").stdout)["trial"] == "loud/1"


# -- exit codes that only a real run has ------------------------------------------------------------------------------

METHOD = """
from metasearch import strategies
from metasearch.records import Report


def objective(proposal, trial):
    {body}
    yield Report(1, score=0.0)


def method(study):
    return strategies.build("random", study.space(), {{}}, seed=study.seed), objective
"""


def method(place: Place, body: str) -> str:
    file = place.folder / f"method{abs(hash(body))}.py"
    file.write_text(METHOD.format(body=body))
    return f"method.name={file}"


def test_a_study_without_a_success_is_exit_code_4(place: Place) -> None:
    raising = method(place, "raise RuntimeError('canary')")
    done = place.ran("run", "study.toml", "name=broken", raising, "driver.max_errors=2", UNTRACKED, code=4)
    assert b"metasearch show broken" in done.stderr
    assert b"metasearch evaluate" not in done.stderr, "there is nothing to test"
    assert b"RuntimeError: canary" in place.ran("show", "broken").stdout


def test_a_study_with_too_many_failures_is_exit_code_3(place: Place) -> None:
    some = method(place, "if trial.id > 1: raise RuntimeError('canary')")
    done = place.ran("run", "study.toml", "name=brittle", some, "driver.max_errors=1", UNTRACKED, code=3)
    assert b"driver.max_errors" in done.stderr
    assert place.trials("brittle") == {1: "done", 2: "error", 3: "error"}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_stops_a_study_that_can_then_be_finished(place: Place, number: signal.Signals, code: int) -> None:
    name = f"stopped-{code}"
    slow = method(place, "import time; yield Report(0); time.sleep(0.5)")
    process = forked.Command("run", "study.toml", f"name={name}", slow, cwd=place.folder, env=place.env)
    wait_for(lambda: (place.home / name / "ledger.sqlite").exists() and "done" in place.trials(name).values())
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"to go on: metasearch resume {name}".encode() in said
    assert b"Traceback" not in said
    before = place.trials(name)
    assert set(before.values()) <= {"done", "running", "proposed"}
    assert b"interrupted; to go on" in place.ran("status").stdout
    place.ran("resume", name, UNTRACKED)
    assert place.trials(name) == dict.fromkeys(range(1, TRIALS + 1), "done")


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.1)


# -- the same under Ray -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ray_proposes_the_same_trials_and_scores_them_alike(place: Place) -> None:
    place.ran("run", "study.toml", "name=on-ray", "driver.kind=ray", "driver.lanes=2")
    assert place.trials("on-ray") == dict.fromkeys(range(1, TRIALS + 1), "done")
    here, there = (
        {row["trial"].rpartition("/")[2]: row for row in json.loads(
            place.ran("leaderboard", name, "--source", "ledger", "--format", "json").stdout
        )} for name in ("tiny", "on-ray")
    )
    for number, row in here.items():
        assert there[number]["config"] == row["config"]
        assert there[number]["score"] == pytest.approx(row["score"], rel=1e-5)
