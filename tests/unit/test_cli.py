"""The command line: data on stdout, talk on stderr, one message an error, and the exit codes of the manual."""
from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_ledgers
import pytest
from made_ledgers import make
from typer.main import get_command

from metasearch import cli
from metasearch.cli import failures, live
from metasearch.cli.live import Unit, clock, in_a_line
from metasearch.driver.status import Status
from metasearch.driver.study import Study
from metasearch.ledger import Ledger
from metasearch.track.formats import records

Said = pytest.CaptureFixture[str]

STUDY = """
name = "first"
space = "sine-mlp"
[tasks]
name = "sinusoid"
shots = 10
[budget]
trials = 3
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "study.toml"
    file.write_text(STUDY)
    return file


def ran(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-c", "from metasearch.cli import main; main()", *words]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)


# -- lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("room", "name"), [
    ("learners", "maml"), ("strategies", "random"), ("tasks", "sinusoid"), ("spaces", "maml-family"),
])
def test_a_room_lists_its_files_with_their_first_lines(room: str, name: str, capsys: Said) -> None:
    assert cli.call([room, "list", "--json"]) == 0
    out = capsys.readouterr()
    rows = {row["name"]: row["what"] for row in json.loads(out.out)}
    assert rows[name]
    assert out.err == ""
    assert not [name for name in rows if name.startswith("_")]
    assert cli.call([room, "list"]) == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize("words", [["learners", "list"], ["spaces", "list"], ["budget", "--total", "1000"], ["--help"]])
def test_a_list_takes_less_than_a_second(words: list[str]) -> None:
    """Of a processor on which what every command imports takes an eighth of one; there are slower ones."""
    def used(*command: str) -> float:  # seconds of CPU, so that a busy machine does not count
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    second = 8 * used(sys.executable, "-c", "import typer, rich.table")
    assert used(sys.executable, "-m", "metasearch", *words) < max(1.0, second)


def test_the_size_and_the_conditions_of_a_space_are_shown(tmp_path: Path, capsys: Said) -> None:
    assert cli.call(["spaces", "show", "maml-family"]) == 0
    said = capsys.readouterr()
    assert "learner = prototypical" in said.out
    assert "infinitely many" in said.err
    file = tmp_path / "space.py"
    file.write_text("from metasearch.space import Choice, Int, Repeat, Space\n"
                    "SPACE = Space({'cell': Repeat(Int(1, 2), Space({'op': Choice(('a', 'b', 'c'))}))})\n")
    assert cli.call(["spaces", "show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == 3 + 9


def test_budget_prints_both_numbers_and_the_way_back(capsys: Said) -> None:
    assert cli.call(["budget", "--total", "1000", "--top", "10", "--confidence", "0.9"]) == 0
    out = capsys.readouterr().out
    assert "230" in out
    assert "205" in out
    assert cli.call(["budget", "--total", "1000", "--top", "10", "--trials", "205", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["draws"] for row in rows] == ["with replacement", "without replacement"]
    assert rows[1]["coverage"] >= 0.9 > rows[0]["coverage"]


@pytest.mark.parametrize("words", [
    ["budget", "--total", "ten"], ["budget", "--top", "x"], ["budget", "--total", "10", "--top", "11"],
    ["budget", "--confidence", "1"],
])
def test_an_impossible_budget_is_a_usage_error(words: list[str], capsys: Said) -> None:
    assert cli.call(words) == 2
    assert capsys.readouterr().out == ""


# -- what a person types wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "said"), [
    (["runn"], "Did you mean 'run'?"),
    (["run", "--nwe-id"], "--new-id"),
    (["run", "nosuch"], "no study"),
    (["run", "omniglo"], "Did you mean 'omniglot'?"),
    (["run", "study.tml"], "study.tml"),
    (["run", "study.toml", "tasks.shots=x"], "tasks.shots=x: tasks.shots must be a whole number, but got 'x'"),
    (["run", "study.toml", "space=sine-mpl"], "Did you mean 'sine-mlp'?"),
    (["resume", "nosuch"], "there is no study 'nosuch'"),
    (["resume", "../nosuch"], "a study's name must begin with a letter"),
    (["status", "no\x1b[31msuch"], "a study's name must begin with a letter"),
    (["show", "nosuch/3"], "there is no study 'nosuch'"),
    (["evaluate", "nosuch/3"], "there is no study 'nosuch'"),
    (["leaderboard", "nosuch", "--source", "ledger"], "there is no study 'nosuch'"),
    (["sync", "nosuch"], "there is no study 'nosuch'"),
    (["spaces", "show", "maml-famly"], "Did you mean 'maml-family'?"),
    (["spaces", "show", "none.py"], "there is no file none.py"),
    (["spaces", "new", "space.txt"], "does not end in .py"),
])
def test_a_mistake_is_one_message_and_exit_code_2(study: Path, words: list[str], said: str, capsys: Said) -> None:
    assert cli.call(words) == 2
    out = capsys.readouterr()
    assert said in out.err
    assert "Traceback" not in out.err
    assert "\x1b" not in out.err
    assert out.out == ""


def test_everything_wrong_with_a_study_is_said_in_one_go(study: Path, capsys: Said) -> None:
    words = ["run", str(study), "sed=1", "train.steps=0", "tasks.amplitud_low=1", "method.name=tpe", "budget.coverage=0.9",
             "budget.top=1%", "space=sine-mpl"]
    assert cli.call(words) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'seed'?" in said
    assert "train.steps must be at least 1" in said
    assert "Did you mean 'amplitude_low'?" in said
    assert "Did you mean 'sine-mlp'?" in said
    assert "'tpe' makes none" in said
    assert not list(study.parent.glob("studies/*"))


def test_check_says_what_would_be_done_and_does_nothing(study: Path, capsys: Said) -> None:
    assert cli.call(["run", str(study), "--check"]) == 0
    out = capsys.readouterr()
    assert "3 trials" in out.err
    assert "sine-mlp" in out.err
    assert not list(study.parent.glob("studies/*"))


def test_a_traceback_is_shown_when_it_is_asked_for(study: Path, capsys: Said) -> None:
    assert cli.call(["-v", "resume", "nosuch"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_no_arguments_show_the_help(capsys: Said) -> None:
    assert cli.call([]) == 2
    assert "leaderboard" in capsys.readouterr().err
    assert cli.call(["--help"]) == 0
    assert "leaderboard" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: Said) -> None:
    import metasearch

    assert cli.call(["--version"]) == 0
    assert capsys.readouterr().out.strip() == metasearch.__version__
    module = subprocess.run([sys.executable, "-m", "metasearch", "--version"], capture_output=True, text=True, timeout=60)
    assert module.stdout.strip() == metasearch.__version__, module.stderr


@pytest.mark.parametrize("file", [
    "import time\nraise ValueError('canary')\n", "import sys\nsys.exit(5)\n", "x = (\n", "import no_such_module_anywhere\n",
    "SPACE = 3\n",
])
def test_a_bad_space_file_is_exit_code_2_with_its_own_line(tmp_path: Path, file: str, capsys: Said) -> None:
    path = tmp_path / "space.py"
    path.write_text(file)
    assert cli.call(["spaces", "show", str(path)]) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert "Traceback" not in said


def test_what_a_space_file_prints_is_no_data(tmp_path: Path, capsys: Said) -> None:
    path = tmp_path / "space.py"
    path.write_text("from metasearch.space import Float, Space\nprint('canary')\nSPACE = Space({'a': Float(0, 1)})\n")
    assert cli.call(["spaces", "show", str(path), "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)["size"] is None
    assert "canary" in out.err


# -- variables of the environment --------------------------------------------------------------------------------------


def test_every_option_is_also_a_variable_and_the_option_comes_first(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setenv("METASEARCH_BUDGET_TOTAL", "1000")
    monkeypatch.setenv("METASEARCH_BUDGET_JSON", "1")
    assert cli.call(["budget"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 1000
    assert cli.call(["budget", "--total", "2000"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 2000
    monkeypatch.setenv("METASEARCH_BUDGET_TOTAL", "many")
    assert cli.call(["budget"]) == 2
    assert "whole number" in capsys.readouterr().err

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        for option in command.params:
            if option.param_type_name == "option" and not option.hidden and option.name not in cli._NOT_MIRRORED:
                yield " ".join((*words, max(option.opts, key=len))), option.envvar
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*words, name))

    found = dict(walk(cli._mirrored(get_command(cli.app), "METASEARCH"), ()))
    assert found["plan --gpu-hour"] == "METASEARCH_PLAN_GPU_HOUR"
    assert found["spaces check --json"] == "METASEARCH_SPACES_CHECK_JSON"
    assert found["run --home"] == found["status --home"] == "METASEARCH_HOME", "those that all share keep their one name"
    assert len(found) > 60
    assert all(name.startswith(("METASEARCH_", "RAY_")) for name in found.values())


def test_a_variable_that_only_sounds_like_an_option_disturbs_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    for name in ("VERSION", "RUN_SUBMITTED", "SUBMITTED", "HELP"):
        monkeypatch.setenv(f"METASEARCH_{name}", "0.1.0")
    assert cli.call(["budget"]) == 0
    assert cli.call(["run", "sine", "--check"]) == 0


# -- names that are taken ---------------------------------------------------------------------------------------------


def stored(file: Path, home: Path, *overrides: str) -> Study:
    """A study that is on the disk, as if it had been run."""
    study = Study.from_toml(file, overrides)
    Ledger.create(home / study.name / "ledger.sqlite", {"study": study.to_json(), "unit": "mse"}).close()
    return study


def test_the_same_study_again_is_told_to_resume(study: Path, capsys: Said) -> None:
    home = Path(os.environ["METASEARCH_HOME"])
    stored(study, home)
    before = (home / "first" / "ledger.sqlite").read_bytes()
    assert cli.call(["run", str(study)]) == 2
    assert "metasearch resume first" in capsys.readouterr().err
    assert cli.call(["run", str(study), "driver.kind=local"]) == 2
    assert "is the same" in capsys.readouterr().err
    assert cli.call(["run", str(study), "--check"]) == 2, "as the run itself would be"
    assert "metasearch resume first" in capsys.readouterr().err
    assert cli.call(["run", str(study), "--check", "--new-id"]) == 0
    assert "study 'first-2'" in capsys.readouterr().err
    assert (home / "first" / "ledger.sqlite").read_bytes() == before


def test_another_study_of_the_same_name_is_refused(study: Path, capsys: Said) -> None:
    home = Path(os.environ["METASEARCH_HOME"])
    stored(study, home)
    before = (home / "first" / "ledger.sqlite").read_bytes()
    assert cli.call(["run", str(study), "seed=1"]) == 2
    assert "another study 'first'" in capsys.readouterr().err
    assert (home / "first" / "ledger.sqlite").read_bytes() == before


# -- what a study is in full, and one to begin from -------------------------------------------------------------------


def test_what_init_writes_is_a_study_that_can_run_and_is_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.call(["init", "mine"]) == 0
    assert cli.call(["run", "mine/study.toml", "--check"]) == 0
    assert "study 'mine': random over " in capsys.readouterr().err
    before = (tmp_path / "mine" / "study.toml").read_bytes()
    assert cli.call(["init", "mine"]) == 2
    assert "exists already, and is left as it is" in capsys.readouterr().err
    assert (tmp_path / "mine" / "study.toml").read_bytes() == before
    for name in ("-rf me", "mlartifacts"):
        assert cli.call(["init", name]) == 2
        assert not (tmp_path / name).exists()
    assert "MLflow's own" in capsys.readouterr().err


def test_a_study_is_shown_with_its_defaults_and_with_where_each_key_was_said(study: Path, capsys: Said) -> None:
    words = ["config", "show", str(study), "train.steps=7", "driver.trial_timeout=5"]
    assert cli.call(words) == 0
    shown = capsys.readouterr().out
    assert Study.from_text(shown) == Study.from_toml(study, words[3:]), "what is shown is the study"
    assert cli.call([*words, "--origin"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (f'tasks.shots = 10  # {study}:6', "train.steps = 7  # train.steps=7", "driver.cpus = 1.0  # default"):
        assert line in lines
    assert cli.call([*words, "--given", "--json"]) == 0
    rows = {row["key"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    assert rows == {"name": "first", "space": "sine-mlp", "tasks.name": "sinusoid", "tasks.shots": 10, "train.steps": 7,
                    "driver.trial_timeout": 5.0, "budget.trials": 3}
    assert cli.call(["config", "show", str(study), "train.stepps=7"]) == 2
    assert "did you mean" in capsys.readouterr().err.lower()


# -- two trials in pairs ----------------------------------------------------------------------------------------------


def test_two_trials_are_compared_episode_by_episode_as_a_paired_t_test_does(capsys: Said) -> None:
    from scipy.stats import ttest_rel

    home = Path(os.environ["METASEARCH_HOME"])
    for at, name in enumerate(("one", "two")):
        make(home / name, 8, seed=at)
    with Ledger.open(home / "one" / "ledger.sqlite") as a, Ledger.open(home / "two" / "ledger.sqlite") as b:
        ours, theirs = (ledger.trials()[number].episodes for ledger, number in ((a, 3), (b, 5)))
    assert ours is not None
    assert theirs is not None
    assert cli.call(["compare", "one/3", "two/5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    wanted = ttest_rel(ours.astype("f8"), theirs.astype("f8"))
    assert said["p"] == pytest.approx(wanted.pvalue, rel=1e-6)
    assert said["difference"] == pytest.approx(float(ours.mean() - theirs.mean()), abs=1e-6)
    assert said["low"] < said["difference"] < said["high"]
    assert cli.call(["compare", "one/3", "one/3"]) == 0
    assert "they cannot be told apart" in capsys.readouterr().out
    assert cli.call(["compare", "one", "two"]) == 0
    assert "flatter" in capsys.readouterr().err
    assert cli.call(["compare", "one/3", "two/99"]) == 2
    assert "there is no trial two/99 that is done" in capsys.readouterr().err
    other = made_ledgers.study("three")
    other["bank_digest"] = "c" * 16
    with Ledger.create(home / "three" / "ledger.sqlite", other) as ledger:
        made_ledgers.fill(ledger, range(1, 3))
    assert cli.call(["compare", "one/3", "three/1"]) == 2
    assert "not scored on the same episodes" in capsys.readouterr().err


# -- exit codes -------------------------------------------------------------------------------------------------------


def test_bad_data_are_exit_code_65(study: Path, capsys: Said) -> None:
    home = Path(os.environ["METASEARCH_HOME"])
    stored(study, home)
    (home / "first" / "ledger.sqlite").write_bytes(b"no database")
    for words in (["resume", "first"], ["show", "first"], ["leaderboard", "first", "--source", "ledger"]):
        assert cli.call(words) == 65
        assert "ledger.sqlite" in capsys.readouterr().err


def test_a_study_that_cannot_be_read_hides_no_other(study: Path, capsys: Said) -> None:
    home = Path(os.environ["METASEARCH_HOME"])
    for name in ("bad", "first", "lost", "old"):
        stored(study, home, f"name={name}", "track.enabled=false")
        (home / name / "status.json").write_text(json.dumps(status(name=name).to_json()))
    (home / "bad" / "ledger.sqlite").write_bytes(b"no database")
    (home / "lost" / "status.json").write_text("{")
    body = status(name="old").to_json()
    del body["used"]
    (home / "old" / "status.json").write_text(json.dumps({**body, "of another version": 1}))
    assert cli.call(["status"]) == 65
    out = capsys.readouterr()
    assert [line.split()[:2] for line in out.out.splitlines()[2:]] == [["first", "4/20"], ["old", "4/20"]]
    assert "metasearch resume lost" in out.err
    assert "cannot be read, as said above: bad, lost" in out.err
    assert cli.call(["status", "lost"]) == 65
    assert cli.call(["sync"]) == 65
    assert "first: not sent, since track.enabled is false" in capsys.readouterr().err


def test_a_study_that_another_process_runs_is_exit_code_75(study: Path, capsys: Said) -> None:
    from metasearch.driver.folder import locked

    home = Path(os.environ["METASEARCH_HOME"])
    stored(study, home, "driver.kind=local")
    with locked(home / "first"):
        assert cli.call(["resume", "first"]) == 75
        said = capsys.readouterr().err
        assert str(os.getpid()) in said
        assert "to go on" not in said, "that is what was just refused"


def test_a_ledger_that_another_machine_writes_is_not_opened_here(study: Path, capsys: Said) -> None:
    """As on the login node of a Slurm cluster, while the study runs on another one."""
    from metasearch.driver.folder import locked

    folder = Path(os.environ["METASEARCH_HOME"]) / "first"
    stored(study, folder.parent, "driver.kind=local")
    (folder / "ledger.sqlite").write_bytes(b"this is not for you")
    (folder / "status.json").write_text(json.dumps(status(name="first", unit="accuracy", host="other", pid=7).to_json()))
    with locked(folder):
        (folder / "driver.lock").write_text(json.dumps({"host": "other", "pid": 7, "since": "now"}))
        for words in (["status"], ["status", "first"], ["status", "first", "--json"]):
            assert cli.call(words) == 0, capsys.readouterr().err
            said = capsys.readouterr()
            assert "93.1" in said.out or json.loads(said.out)["best_score"] == 0.931
        for words in (["show", "first"], ["leaderboard", "first", "--source", "ledger"], ["sync", "first"], ["resume", "first"]):
            assert cli.call(words) == 75, words
            assert "process 7 on other, and only that machine may open its ledger" in capsys.readouterr().err
    assert cli.call(["show", "first"]) == 65, "when nobody runs it, it is for everybody"


def test_a_ledger_over_a_network_is_opened_here_while_another_machine_writes_it(
    study: Path, capsys: Said, tmp_path: Path, network: Path
) -> None:
    from metasearch.driver.folder import locked

    folder = Path(os.environ["METASEARCH_HOME"]) / "first"
    stored(study, folder.parent, "driver.kind=local")
    with locked(folder):
        (folder / "driver.lock").write_text(json.dumps({"host": "other", "pid": 7, "since": "now"}))
        assert cli.call(["leaderboard", "first", "--source", "ledger"]) == 0, capsys.readouterr().err
        for words in (["resume", "first"], ["resume", "first", "--steal"]):
            assert cli.call(words) == 75
            assert "run by process 7 on other" in (said := capsys.readouterr().err)
            assert ("a sign of itself" in said) is (len(words) == 3)


def test_a_service_that_is_away_is_exit_code_69(study: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:canary-secret@127.0.0.1:9")
    assert cli.call(["leaderboard", "first"]) == 69
    said = capsys.readouterr().err
    assert "***@127.0.0.1:9" in said
    assert "canary" not in said


def test_a_folder_that_cannot_be_written_is_exit_code_74(study: Path, capsys: Said) -> None:
    (study.parent / "file").write_text("")
    assert cli.call(["run", str(study), "--home", str(study.parent / "file"), "driver.kind=local"]) == 74


@pytest.mark.parametrize(("error", "code"), [
    (failures.Refused("no"), 2), (failures.Refused("no", 4), 4), (sqlite3.OperationalError("database is locked"), 75),
    (sqlite3.DatabaseError("malformed"), 65), (ConnectionError("gone"), 69), (OSError(28, "No space left on device"), 74),
    (RuntimeError("bug"), 1), (ValueError("somebody else's"), 1),
])
def test_every_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert failures.judged(error)[0] == code


def test_a_refusal_is_its_own_words_whatever_its_code() -> None:
    assert failures.judged(failures.Refused("2 of 6 truths do not hold", 1)) == (1, "2 of 6 truths do not hold")


@pytest.mark.parametrize("file", ["x.doc", "nowhere/x.png"])
def test_a_picture_that_cannot_be_drawn_is_refused_before_the_test_is_opened(study: Path, file: str, capsys: Said) -> None:
    stored(study, Path(os.environ["METASEARCH_HOME"]))
    assert cli.call(["evaluate", "first/1", "--plot", file]) == 2
    assert "--plot needs" in capsys.readouterr().err


def test_a_secret_of_the_environment_is_in_no_message(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary-token")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-key")
    code, said = failures.judged(RuntimeError("cannot reach https://me:canary-pw@host with canary-token and canary-key"))
    assert (code, "canary" in said) == (1, False)
    assert cli.call(["run", "canary-token"]) == 2
    assert "canary" not in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_breaks_nothing() -> None:
    command = f"{sys.executable} -c 'from metasearch.cli import main; main()' spaces show maml-family --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr


# -- how it looks -----------------------------------------------------------------------------------------------------


def status(**changed: object) -> Status:
    body = dict.fromkeys(Status.__dataclass_fields__)
    body.update(
        name="first", used=4, done=3, running=2, failed=1, diverged=1, infeasible=0, reused=0, planned=20, elapsed_seconds=61.0,
        eta_seconds=3700.0, best_trial=2, best_score=0.931, best_low=0.92, best_high=0.942, coverage=0.4, coverage_wanted=0.9,
        top="1%", lanes=(),
    )
    body.update(changed)
    return Status(**body)  # type: ignore[arg-type]


def test_a_status_is_one_line_with_all_that_matters() -> None:
    said = in_a_line(status(), Unit("accuracy"))
    for part in ("4 of 20", "3 done, 2 running, 1 failed, 1 diverged", "best 93.1 ± 1.1 % (trial 2)", "coverage 0.40 of 0.90"):
        assert part in said
    for part in ("top 1%", "1:01 gone", "about 1:01:40 left"):
        assert part in said
    assert "\n" not in said


def test_an_unfinished_thing_is_said_without_inventing() -> None:
    said = in_a_line(status(best_trial=None, best_score=None, coverage=None, eta_seconds=None, planned=None), Unit())
    assert "no result yet" in said
    assert "coverage" not in said
    assert "time left unknown" in said


@pytest.mark.parametrize(("unit", "score", "low", "high", "said"), [
    ("accuracy", 0.931, 0.92, 0.942, "93.1 ± 1.1 %"), ("mse", -0.5, -0.75, -0.25, "0.5 ± 0.25"), ("score", 2.0, None, None, "2"),
    ("accuracy", None, None, None, "-"), ("mse", 0.0, None, None, "0"),
])
def test_a_score_is_shown_in_its_unit(unit: str, score: float | None, low: float | None, high: float | None, said: str) -> None:
    assert Unit(unit).text(score, low, high) == said


@pytest.mark.parametrize(("seconds", "said"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (-5, "0:00")])
def test_times_are_minutes_and_seconds(seconds: float, said: str) -> None:
    assert clock(seconds) == said


def test_without_a_terminal_a_change_is_a_line_and_the_time_alone_is_none(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LINES_APART", 0.0)
    with live.Live(Unit("accuracy")) as show:
        for one in (status(done=1), status(done=1, elapsed_seconds=62.0), status(done=2)):
            show(one)
    out = capsys.readouterr()
    assert out.out == ""
    assert [line.split("(")[1][:6] for line in out.err.splitlines()] == ["1 done", "2 done"]


def test_many_changes_are_few_lines(capsys: Said) -> None:
    with live.Live(Unit("accuracy")) as show:
        for done in range(1000):
            show(status(done=done))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 3
    assert "999 done" in lines[-1]


def test_on_a_terminal_the_region_is_live_and_leaves_one_line() -> None:
    code = (
        "import sys, time\nsys.path.insert(0, 'tests')\nfrom tests.unit.test_cli import status\n"
        "from metasearch.cli.live import Live, Unit\n"
        "with Live(Unit('accuracy')) as show:\n    assert show._live is not None\n    show(status())\n    time.sleep(0.6)\n"
    )
    out = on_a_terminal([sys.executable, "-c", code], TERM="xterm-256color")
    assert "93.1 ± 1.1 %" in out
    assert "\x1b[" in out


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_colours_are_left_out_where_they_are_not_wanted(env: dict[str, str]) -> None:
    out = on_a_terminal([sys.executable, "-c", "from metasearch.cli import main; main()", "learners", "list"], **env)
    assert "maml" in out
    assert "\x1b[3" not in out


def test_a_table_keeps_to_the_width_of_the_terminal() -> None:
    narrow = ran("learners", "list", COLUMNS="50").stdout
    assert max(map(len, narrow.splitlines())) <= 50
    assert "distance" not in ran("budget", COLUMNS="50").stdout


def on_a_terminal(command: list[str], **env: str) -> str:
    """What a command prints to a terminal of its own."""
    import pty

    ours, theirs = pty.openpty()
    root = Path(__file__).resolve().parents[2]
    base = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**base, **env}, cwd=root)
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break
        if not piece:
            break
        said += piece
    os.close(ours)
    assert process.wait(60) == 0, said.decode()
    return said.decode()


def test_what_a_table_shows_steers_no_terminal(capsys: Said) -> None:
    from metasearch.cli.show import table

    table(["name"], [["red\x1b[31m [bold]not markup[/bold]"]])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[bold]not markup[/bold]" in out


def test_missing_numbers_are_null_in_json() -> None:
    import pandas as pd

    board = pd.DataFrame({"score": [0.5, float("nan")], "config": ['{"a": 1}', '{"a": 2}'], "trial": ["x/1", "x/2"],
                          "found": [None, '{"a": 3}']})
    assert records(board) == [
        {"score": 0.5, "config": {"a": 1}, "found": None, "trial": "x/1"},
        {"score": None, "config": {"a": 2}, "found": {"a": 3}, "trial": "x/2"},
    ]


# -- the Python API ---------------------------------------------------------------------------------------------------


def test_every_public_name_is_there() -> None:
    import metasearch

    for name in metasearch.__all__:
        assert getattr(metasearch, name) is not None
    assert set(metasearch.__all__) == set(metasearch._HOME)
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        metasearch.nosuch  # noqa: B018


@pytest.mark.parametrize(("unit", "text"), [
    ("accuracy", "25.0 ± 5.0 %"), ("mse", "-0.25 ± 0.05"), ("mae", "-0.25 ± 0.05"), ("return", "0.25 ± 0.05"),
    ("spearman", "0.25 ± 0.05"),
])
def test_errors_are_shown_with_the_other_sign_and_returns_are_not(unit: str, text: str) -> None:
    from metasearch.cli.live import Unit

    assert Unit(unit).text(0.25, 0.2, 0.3) == text
