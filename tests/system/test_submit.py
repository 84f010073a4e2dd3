"""A study as a job of a real Ray head with a token: once for each name, with its files, without its secrets."""
from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray_nodes import TOKEN, environment, free_port, metasearch, nodes

from metasearch import cli
from metasearch.cli import runs
from metasearch.cli.stored import stored
from metasearch.driver import submit
from metasearch.ledger import Ledger
from metasearch.testing.history import problems

HERE = Path(__file__).parent
CANARIES = {"MLFLOW_TRACKING_TOKEN": "canary-of-mlflow", "AWS_SECRET_ACCESS_KEY": "canary-of-amazon"}
SPACE = '''
import json
from pathlib import Path
from metasearch.space import Choice, Float, Space

NEEDS = ("widths.json",)
SPACE = Space({"width": Choice(tuple(json.loads((Path(__file__).parent / "widths.json").read_text()))), "x": Float(0.0, 1.0)})
'''
STUDY = """
name = "{name}"
space = "my_space.py"
[method]
name = "counting.py"
steps = 4
seconds = {seconds}
misbehave = {misbehave}
[budget]
trials = 4
[driver]
lanes = 2
cpus = 0.5
max_errors = 1
[track]
enabled = false
"""


def written(folder: Path, name: str, *, seconds: float = 0.0, misbehave: str = "{}") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "my_space.py").write_text(SPACE)
    (folder / "widths.json").write_text("[1, 2, 3]")
    shutil.copy(HERE / "counting.py", folder / "counting.py")
    (folder / "study.toml").write_text(STUDY.format(name=name, seconds=seconds, misbehave=misbehave))
    return folder / "study.toml"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("aiohttp_cors") is None or find_spec("opencensus") is None, reason="Ray's Jobs need ray[default]")
def test_a_study_is_submitted_once_runs_there_with_its_files_and_gives_its_exit_code(tmp_path: Path) -> None:
    port, home = free_port(), tmp_path / "shared" / "studies"
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    mine = {**environment(TOKEN, METASEARCH_HOME=str(home)), **CANARIES}
    there = f"http://127.0.0.1:{port}"

    def said(file: Path, *words: str, code: int = 0, env: dict[str, str] = mine) -> tuple[dict[str, object], str]:
        done = metasearch("submit", str(file), "--address", there, "--json", *words, env=env, cwd=tmp_path, timeout=400)
        assert done.returncode == code, done.stderr
        return (json.loads(done.stdout) if done.stdout else {}), done.stderr

    good = written(tmp_path / "good", "good", seconds=1.0)
    with nodes() as ray:
        client = free_port()
        ports = (f"--dashboard-port={port}", f"--ray-client-server-port={client}")
        address = ray.head(environment(TOKEN, PATH=path), "--include-dashboard=true", *ports)
        first, talk = said(good)
        assert (first["state"], first["job"]) == ("submitted", "metasearch-good")
        for name, value in CANARIES.items():
            assert f"{name} is set here and does not travel" in talk
            assert value not in talk
        assert said(good)[0] == {**first, "state": "running"}
        _, talk = said(good, "budget.trials=5", code=2)
        assert "another study 'good' is running there as job metasearch-good" in talk
        followed, talk = said(good, "--wait")
        assert followed == {**first, "state": "running", "exit_code": 0}
        assert "4 done" in talk, "the log was not followed"
        assert said(good, "--wait")[0] == {**first, "state": "done", "exit_code": 0}

        bad = written(tmp_path / "bad", "bad", misbehave=json.dumps(dict.fromkeys("1234", "error")).replace(":", " ="))
        ended, talk = said(bad, "--wait", code=4)
        assert (ended["state"], ended["exit_code"]) == ("submitted", 4)
        assert "no trial of 'bad' succeeded" in talk
        again, _ = said(bad, "--wait", code=4)
        assert (again["state"], again["job"]) == ("submitted", "metasearch-bad@2"), "a job that failed goes on in another one"

        more, _ = said(good, "budget.trials=6", "--wait")
        assert (more["job"], more["exit_code"]) == ("metasearch-good@2", 0)

        _, talk = said(good, code=69, env={**mine, "RAY_AUTH_TOKEN": "0" * 64})
        assert "RAY_AUTH_TOKEN" in talk
        for name, where in (("direct", address), ("client", f"ray://127.0.0.1:{client}")):
            one = metasearch("run", str(good), f"name={name}", "--address", where, env=mine, cwd=tmp_path)
            assert one.returncode == 0, one.stderr
            assert "4 done" in one.stderr
            assert one.stdout.count(f"{name}/") == 4, "the leaderboard"
        logs = b"".join(file.read_bytes() for file in ray.folder.rglob("*") if file.is_file() and not file.is_symlink())

    shutil.rmtree(good.parent)  # what the study needs has been kept beside its results
    for name, trials in (("good", 6), ("direct", 4), ("client", 4)):
        with Ledger.open(home / name / "ledger.sqlite") as ledger:
            assert [row.status for row in ledger.trials().values()] == ["done"] * trials
            space = Path(ledger.study()["study"]["space"])
        assert problems(home / name) == []
        assert (home / name / "files" in space.parents) == (name != "direct")
    kept = b"".join(file.read_bytes() for file in (tmp_path / "shared").rglob("*") if file.is_file())
    for value in CANARIES.values():
        assert value.encode() not in logs + kept
    assert b"metasearch-good" in logs


def test_the_newest_job_of_a_study_is_found_where_older_ones_have_been_deleted() -> None:
    def last(*names: str | None) -> tuple[str, str | None]:
        name, job = submit._last(SimpleNamespace(list_jobs=lambda: [SimpleNamespace(submission_id=one) for one in names]), "s")
        return name, None if job is None else job.submission_id

    assert last(None, "metasearch-other", "metasearch-s2", "metasearch-other@3") == ("metasearch-s", None)
    assert last("metasearch-s") == ("metasearch-s@2", "metasearch-s")
    assert last("metasearch-s@2", "metasearch-s@10", "metasearch-s@x") == ("metasearch-s@11", "metasearch-s@10")


def test_an_address_where_nobody_listens_is_unavailable_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "mine", "nobody")
    assert cli.call(["submit", str(file), "--address", f"http://127.0.0.1:{free_port()}"]) == 69
    assert "no Ray Jobs at http://127.0.0.1" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [
    (["--home", "studies"], "METASEARCH_HOME = studies must be an absolute path"),
    (["method.seconds=1", "budget.trials=0"], "budget.trials must be at least 1"),
])
def test_what_cannot_run_there_is_not_submitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    file = written(tmp_path / "mine", "wrong")
    assert cli.call(["submit", str(file), "--address", f"http://127.0.0.1:{free_port()}", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_job_that_does_not_know_where_studies_live_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METASEARCH_HOME")
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path / "mine", "lost")
    assert cli.call(["run", str(file), "--submitted"]) == 2
    assert "metasearch submit --home PATH" in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()


def test_a_scheduler_may_start_a_study_again_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "studies"
    words = ["run", str(written(tmp_path / "mine", "again")), "driver.kind=local", "--resume-if-exists", "--json"]
    for trials, change in ((4, []), (4, []), (6, ["budget.trials=6"]), (6, [])):
        assert cli.call([*words, *change]) == 0
        capsys.readouterr()
        with Ledger.open(home / "again" / "ledger.sqlite") as ledger:
            assert len(ledger.trials()) == trials
    assert problems(home / "again") == [], "the budget that counts is the one of its last session"
    wanted = runs.read([words[1], "budget.trials=6", "driver.lanes=1", "track.top=1", "track.uri=sqlite:///elsewhere.db"])
    changes = runs.to_go_on(wanted, home)
    assert changes is not None
    session = stored("again", home).with_(changes)
    assert (session.driver, session.track) == (wanted.driver, wanted.track), "what may change is as it is given now"
    assert cli.call([*words, "method.steps=9"]) == 2
    assert "another study 'again' is there already" in capsys.readouterr().err
