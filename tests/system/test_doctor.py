"""What is right passes and every check can fail: on this machine, and on a real Ray whose second node has everything wrong."""
from __future__ import annotations

import errno
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ray_nodes import ROOT, TOKEN, environment, free_port, metasearch, nodes

from metasearch import cli
from metasearch.driver import doctor
from metasearch.driver.doctor import Check, examine
from metasearch.driver.study import Study

HERE = Path(__file__).parent
STUDY = {
    "name": "d", "space": str(HERE / "tiny_space.py"), "tasks": {"name": "sinusoid"}, "budget": {"trials": 1},
    "driver": {"kind": "local"},
}


def found(home: Path, *, disk: float = 1e-6, **changes: Any) -> dict[str, Check]:
    study = Study.from_json({**STUDY, **changes})
    return {check.name: check for check in examine(study, home=home, disk=disk)}


def test_a_machine_on_which_a_study_can_run_passes_and_nothing_is_left_behind(tmp_path: Path) -> None:
    checks = found(tmp_path / "studies")
    assert {name: check.state for name, check in checks.items() if check.state != "ok" and name != "versions"} == {}
    assert set(checks) == {"versions", "study", "data", "home", "disk", "mlflow", "ray", "lanes"}
    assert not (tmp_path / "studies").exists()


def test_packages_with_known_holes_fail() -> None:
    old = {"python": "3.12.11", "ray": "2.55.1", "torch": "2.13.0+cpu", "mlflow": "3.17.2"}
    check = doctor._floors(old)
    assert check.state == "failed"
    assert "ray 2.55.1 (at least 2.56)" in check.said
    assert doctor._floors({**old, "ray": "2.56.0"}).state == "ok"
    assert doctor._floors({**old, "ray": "2.60.0", "python": "3.11.7"}).state == "warning"


def test_a_study_that_does_not_fit_together_fails(tmp_path: Path) -> None:
    check = found(tmp_path, method={"name": "tpe", "startups": 3})["study"]
    assert check.state == "failed"
    assert "method.startups is no hyper-parameter of tpe" in check.said


def test_data_that_are_not_there_fail_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_DATA", str(tmp_path))
    checks = found(tmp_path / "studies", tasks={"name": "omniglot"})
    assert checks["data"].state == "failed"
    assert "omniglot" in checks["data"].said
    assert checks["study"].state == "ok"
    monkeypatch.setenv("METASEARCH_DATA", str(tmp_path / "nowhere"))
    assert "is no folder" in found(tmp_path / "studies")["data"].said


def test_a_home_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = found(tmp_path / "file" / "studies")["home"]
    assert check.state == "failed"
    assert "Not a directory" in check.said
    assert "METASEARCH_HOME" in check.todo


def test_a_home_whose_locks_fail_is_said_and_stops_no_other_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where NFS has no lock service: what every study begins with, its lock, would fail."""

    def fails(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(doctor.fcntl, "flock", fails)
    checks = found(tmp_path / "studies")
    assert checks["home"].state == "failed"
    assert "No locks available (a lock)" in checks["home"].said
    assert set(checks) == {"versions", "study", "data", "home", "disk", "mlflow", "ray", "lanes"}
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(("kind", "state", "said"), [
    ("nfs4", "ok", "it is nfs4: ledgers there have a rollback journal"), ("ext4", "ok", "flushed, renamed in and locked"),
    ("fuse.s3fs", "warning", "fuse.s3fs, a bucket shown as files"),
])
def test_what_file_system_a_home_is_on_is_said_with_what_follows(
    tmp_path: Path, network: Path, kind: str, state: str, said: str
) -> None:
    network.write_text(network.read_text().replace("nfs4", kind))
    check = found(tmp_path / "studies")["home"]
    assert (check.state, check.said.partition(";")[2] != "") == (state, kind != "ext4")
    assert said in check.said


def test_a_home_without_the_locks_of_sqlite_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Lustre that is mounted without `flock`."""

    def fails(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(doctor.fcntl, "lockf", fails)
    assert "Function not implemented (a lock)" in found(tmp_path / "studies")["home"].said


def test_a_disk_without_the_room_that_is_wanted_fails_and_one_that_is_nearly_full_warns(tmp_path: Path) -> None:
    assert found(tmp_path, disk=1e6)["disk"].state == "failed"
    free = shutil.disk_usage(tmp_path).free / 1e9
    assert found(tmp_path, disk=free / 2)["disk"].state == "warning"


def test_a_share_that_this_machine_has_not_fails(tmp_path: Path) -> None:
    check = found(tmp_path, driver={"kind": "ray", "cpus": 4096})["lanes"]
    assert check.state == "failed"
    assert "a lane needs 4096 CPU" in check.said


def test_an_mlflow_that_does_not_answer_fails_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hidden-word@127.0.0.1:{free_port()}")
    check = found(tmp_path)["mlflow"]
    assert check.state == "failed"
    assert "refused" in check.said
    assert "hidden-word" not in json.dumps(check.to_json())


def test_an_mlflow_database_of_an_older_version_fails_and_is_left_as_it_is(tmp_path: Path) -> None:
    from metasearch.track.store import connect

    connect(f"sqlite:///{tmp_path / 'mlflow.db'}", create=True)
    assert found(tmp_path)["mlflow"].state == "ok"
    (tmp_path / "old").mkdir()  # another path, since MLflow looks at a database only once in a process
    path = tmp_path / "old" / "mlflow.db"
    with sqlite3.connect(tmp_path / "mlflow.db") as new, sqlite3.connect(path) as db:
        new.backup(db)
        db.execute("UPDATE alembic_version SET version_num = 'cfd24bdc0731'")  # of an earlier MLflow
    new.close()
    db.close()
    check = found(tmp_path / "old")["mlflow"]
    assert check.state == "failed"
    assert "mlflow db upgrade" in check.todo
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT version_num FROM alembic_version").fetchall() == [("cfd24bdc0731",)]
    db.close()


def test_one_line_a_check_and_exit_code_1_if_one_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "sine", "driver.kind=local", "--disk", "1e-6", "--home", str(tmp_path / "h")]
    assert cli.call(words) == 0
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()].count("ok") >= 7
    assert said.err == ""
    assert cli.call([*words, "--disk", "1e6", "--json"]) == 1
    said = capsys.readouterr()
    states = {row["check"]: row["state"] for row in json.loads(said.out)}
    assert [name for name, state in states.items() if state == "failed"] == ["disk"]
    assert "1 of 8 checks failed" in said.err


def test_what_nodes_say_of_their_data_and_of_locks_is_judged() -> None:
    fine, lost = ({"data": "/data", "data_there": there, "storage": ""} for there in (True, False))
    unlocked = {**fine, "storage": "locks"}
    nodes = [doctor._Node(name, {}, seen) for name, seen in (("one", fine), ("two", lost), ("three", unlocked))]
    assert doctor._data_there(nodes[:1], None).state == "ok"
    check = doctor._data_there(nodes, None)
    assert (check.state, check.said) == ("failed", "two: METASEARCH_DATA = /data is no folder")
    assert doctor._shared(nodes[:2], Path("/home/x")).state == "ok"
    check = doctor._shared(nodes, Path("/home/x"))
    assert (check.state, check.said) == ("warning", "locks in /home do not hold on three")
    assert doctor._clocks([doctor._Node("n", {}, fine, skew=2.0)]).state == "warning"


# -- a cluster -----------------------------------------------------------------------------------------------------------------

STILLBORN = "import os, sys\nif any('default_worker' in word for word in sys.orig_argv):\n    os._exit(1)\n"
ODD_CLOCK = "import time\n_time = time.time\ntime.time = lambda: _time() + 60.0\n"


class Told(NamedTuple):
    code: int
    checks: dict[str, dict[str, str]]


def told(words: list[str], env: dict[str, str], cwd: Path) -> Told:
    done = metasearch("doctor", *words, "--json", env=env, cwd=cwd, timeout=400)
    assert done.stdout, done.stderr
    return Told(done.returncode, {row["check"]: row for row in json.loads(done.stdout)})


def states(report: Told) -> dict[str, str]:
    return {name: row["state"] for name, row in report.checks.items()}


class Reports(NamedTuple):
    well: Told
    sick: Told
    stranger: Told
    silent: Told


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reports]:
    """A head on which all is well; then with a second node that has a folder of its own where the others share one, another
    version, another clock and a GPU that is not there; then asked with a wrong token; then with a third node whose workers die at
    birth, and more room asked for than any disk has."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("no mount namespace can be made here (unshare)")
    place = tmp_path_factory.mktemp("cluster")
    home, odd = place / "shared" / "studies", place / "odd"
    (odd / "metasearch-9.9.dist-info").mkdir(parents=True)
    (odd / "metasearch-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: metasearch\nVersion: 9.9\n")
    (odd / "sitecustomize.py").write_text(ODD_CLOCK)
    home.mkdir(parents=True)
    shutil.copy(HERE / "tiny_space.py", place / "shared" / "space.py")
    study = {**STUDY, "space": "space.py", "driver": {"kind": "ray"}, "track": {"enabled": False}}
    text = "\n".join(f"{key} = {json.dumps(study.pop(key))}" for key in ("name", "space"))
    for table, body in study.items():
        text += f"\n[{table}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in body.items())  # type: ignore[attr-defined]
    (place / "shared" / "study.toml").write_text(text)
    env = environment(TOKEN, METASEARCH_HOME=str(home))
    with nodes() as ray:
        words = [str(place / "shared" / "study.toml"), "--disk", "1e-6", "--address", ray.head(environment(TOKEN))]
        well = told(words, env, place)
        hidden = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {place / "shared"} && exec "$@"', "sh"]
        ray.worker(environment(TOKEN, PYTHONPATH=f"{odd}:{ROOT}"), "--num-gpus=1", inside=hidden)
        sick = told(words, env, place)
        stranger = told(words, environment("0" * 64, METASEARCH_HOME=str(home)), place)
        (place / "broken").mkdir()
        (place / "broken" / "sitecustomize.py").write_text(STILLBORN)
        ray.worker(environment(TOKEN, PYTHONPATH=f"{place / 'broken'}:{ROOT}"))
        silent = told([*words, "--disk", "1e6"], env, place)
        yield Reports(well, sick, stranger, silent)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_with_a_token_on_which_all_is_well_passes(reports: Reports) -> None:
    assert reports.well.code == 0
    assert set(states(reports.well).values()) <= {"ok", "warning"}
    assert set(states(reports.well)) == {
        "versions", "study", "data", "home", "disk", "mlflow", "ray", "authentication", "nodes' versions", "clocks", "lanes",
        "GPUs", "shared storage", "nodes' disk", "nodes' data",
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "said"), [
    ("nodes' versions", "has metasearch 9.9, this machine"),
    ("clocks", "is off by 6"),
    ("GPUs", "Ray counts 1 GPUs on"),
    ("shared storage", "is not the same folder everywhere"),
    ("nodes' data", "space.py"),
])
def test_a_node_that_is_not_like_the_others_fails(reports: Reports, name: str, said: str) -> None:
    assert states(reports.well)[name] == "ok"
    assert states(reports.sick)[name] == "failed"
    assert said in reports.sick.checks[name]["said"]
    assert reports.sick.checks[name]["todo"]
    assert reports.sick.code == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_does_not_answer_fails_and_so_do_full_disks_of_those_that_do(reports: Reports) -> None:
    assert states(reports.silent)["ray"] == "failed"
    assert "no answer from" in reports.silent.checks["ray"]["said"]
    assert states(reports.silent)["nodes' disk"] == "failed"
    assert states(reports.silent)["authentication"] == "ok", "the nodes that answer are looked at all the same"
    assert reports.silent.code == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whoever_has_another_token_is_turned_away_in_words(reports: Reports) -> None:
    assert reports.stranger.code == 1
    assert states(reports.stranger)["ray"] == "failed"
    assert "the token that it asks for is another, or was not given" in reports.stranger.checks["ray"]["said"]
    assert "RAY_AUTH_TOKEN" in reports.stranger.checks["ray"]["said"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_open_cluster_and_a_share_larger_than_its_nodes_fail_and_a_plan_tries_trials_there(tmp_path: Path) -> None:
    with nodes() as ray:
        address = ray.head(environment(None))
        report = told(["sine", "driver.gpus=2", "--disk", "1e-6", "--address", address], environment(None), tmp_path)
        planned = metasearch("plan", "sine", "driver.gpus=2", "--address", address, env=environment(None), cwd=tmp_path)
        words = ["train.steps=8", "validation.episodes=4", "--smoke", "1", "--samples", "1", "--json", "--address", address]
        tried = metasearch("plan", "sine", *words, env=environment(None), cwd=tmp_path)
    assert report.code == 1
    assert [name for name, state in states(report).items() if state == "failed"] == ["authentication", "lanes"]
    assert "a process without a token was let in" in report.checks["authentication"]["said"]
    assert "a lane needs 1 CPU and 2 GPU" in report.checks["lanes"]["said"]
    assert planned.returncode == 2, planned.stderr
    assert "a lane needs 1 CPU and 2 GPU, but Ray has 2 CPU and 0 GPU" in planned.stderr
    assert tried.returncode == 0, tried.stderr
    found = json.loads(tried.stdout)
    assert found["where"] == {"name": address, "lanes": 2}
    assert [one["status"] for one in found["smokes"]] == ["done"]
    assert found["hours"]["expected"] > 0
    assert list(tmp_path.iterdir()) == []


def test_an_address_where_nobody_listens_fails_at_once(tmp_path: Path) -> None:
    checks = {c.name: c for c in examine(None, home=tmp_path, address=f"127.0.0.1:{free_port()}", disk=1e-6)}
    assert checks["ray"].state == "failed"
    assert "refused" in checks["ray"].said
