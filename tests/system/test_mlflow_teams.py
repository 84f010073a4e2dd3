"""MLflow as a team has it: a server, PostgreSQL, several searches that write at once, ten thousand runs; and MLflow away for a
whole search. Real servers, started here."""
from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from killable import HERE
from made_ledgers import fill, make
from test_mlflow import closed_port, empty_database, in_mlflow  # noqa: F401

from metasearch.driver import launch
from metasearch.driver.study import Study
from metasearch.ledger import Ledger
from metasearch.track import outbox
from metasearch.track.leaderboard import leaderboard, rows_from_ledger, rows_from_mlflow
from metasearch.track.store import patience

sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

from _many_runs import multiply

SERVER = Path("/usr/lib/postgresql")


def missing() -> str | None:
    """Why there can be no PostgreSQL here."""
    if find_spec("pg8000") is None:
        return "pg8000 is not installed (pip install '.[test]')"
    if program("initdb") is None or program("postgres") is None:
        return "there is no PostgreSQL on this machine (apt-get install postgresql)"
    return None


def program(name: str) -> str | None:
    places = [str(path) for path in sorted(SERVER.glob("*/bin"), reverse=True)]
    return shutil.which(name, path=os.pathsep.join([*places, os.environ["PATH"]]))


def other_user() -> dict[str, Any]:
    """PostgreSQL does not run as root."""
    if os.getuid() != 0:
        return {}
    known = {entry.pw_name for entry in pwd.getpwall()}
    name = "postgres" if "postgres" in known else "nobody"
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The SQLAlchemy URL of an empty database that belongs to a user without further rights."""
    if (why := missing()) is not None:
        pytest.skip(why)
    port, who = closed_port(), other_user()
    with tempfile.TemporaryDirectory(prefix="mspg-", dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        place = Path(folder) / "data"
        place.mkdir(mode=0o700)
        if who:
            shutil.chown(place, who["user"], who["group"])
        quiet: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **who}
        made = [program("initdb"), "--auth=trust", "--username=admin", "--no-sync", f"--pgdata={place}"]
        subprocess.run(made, check=True, **quiet)
        options = ["-p", str(port), "-h", "127.0.0.1", "-k", str(place), "-c", "fsync=off"]
        log = (Path(folder) / "log").open("wb")
        command = [str(program("postgres")), "-D", str(place), *options]
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **who)
        try:
            made_ready(port)
            yield f"postgresql+pg8000://metasearch:of-a-test@127.0.0.1:{port}/mlflow"
        finally:
            server.send_signal(2)  # a fast shutdown
            server.wait(60)
            log.close()


def made_ready(port: int) -> None:
    import pg8000.dbapi

    until = time.monotonic() + 60
    while True:
        try:
            admin = pg8000.dbapi.connect(host="127.0.0.1", port=port, user="admin", database="postgres")
            break
        except (pg8000.dbapi.InterfaceError, pg8000.dbapi.DatabaseError):
            assert time.monotonic() < until
            time.sleep(0.2)
    admin.autocommit = True
    say = admin.cursor()
    say.execute("CREATE ROLE metasearch LOGIN PASSWORD 'of-a-test' NOSUPERUSER NOCREATEDB NOCREATEROLE")
    say.execute("CREATE DATABASE mlflow OWNER metasearch")
    admin.close()


@pytest.fixture(scope="module")
def server(postgres: str) -> Iterator[str]:
    """A real MLflow server on that database. Its address is in no command line; nor is the password."""
    port = closed_port()
    with tempfile.TemporaryDirectory(prefix="msml-") as home, (Path(home) / "log").open("wb") as log:
        words = ["--artifacts-destination", f"{home}/artifacts", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        env = {**os.environ, "MLFLOW_BACKEND_STORE_URI": postgres, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words], env=env, stdout=log, stderr=log, start_new_session=True,
        )
        try:
            answers(port, process, Path(home) / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(60)


def answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import requests

    until = time.monotonic() + 240
    while True:
        try:
            if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                return
        except requests.RequestException:
            assert time.monotonic() < until, log.read_text()[-3000:]
            assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.5)


def dumped(url: str) -> dict[str, Any]:
    """All that a database of MLflow's holds of active trials and studies, by the run's name."""
    import sqlalchemy as sql

    engine = sql.create_engine(url)
    with engine.connect() as db:
        def rows(what: str) -> list[Any]:
            return [tuple(row) for row in db.execute(sql.text(what))]

        names = dict(rows("SELECT run_uuid, name FROM runs WHERE lifecycle_stage = 'active'"))
        assert len(set(names.values())) == len(names), "a run is there twice"
        found: dict[str, Any] = {name: {"tags": {}, "params": {}, "points": [], "latest": {}} for name in names.values()}
        for run, status, start, end in rows("SELECT run_uuid, status, start_time, end_time FROM runs"):
            found[names[run]] |= {"status": status, "start": start, "end": end}
        for run, key, value in rows("SELECT run_uuid, key, value FROM tags WHERE key != 'mlflow.parentRunId'"):
            found[names[run]]["tags"][key] = value
        for run, key, value in rows("SELECT run_uuid, key, value FROM params"):
            found[names[run]]["params"][key] = value
        for run, *point in rows("SELECT run_uuid, key, step, timestamp, value FROM metrics"):
            found[names[run]]["points"].append(tuple(point))
        for run, key, value in rows("SELECT run_uuid, key, value FROM latest_metrics"):
            found[names[run]]["latest"][key] = value
    engine.dispose()
    for run in found.values():
        run["points"].sort()
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_searches_that_write_at_once_to_a_server_with_postgres_are_all_there_and_do_not_mix(
    tmp_path: Path, server: str, postgres: str, empty_database: Path,  # noqa: F811
) -> None:
    """Four outboxes at once: three through the server, one straight into the database; what each made is what SQLite gets."""
    folders = {name: make(tmp_path / name, 20, seed=at) for at, name in enumerate(("red", "green", "blue", "grey"))}
    processes = [outbox.start(folder, postgres if name == "grey" else server) for name, folder in folders.items()]
    for process in processes:
        assert process.wait(400) == 0, (tmp_path / "red" / "outbox.log").read_text()
    found = dumped(postgres)
    alone = tmp_path / "alone.db"
    shutil.copy(empty_database, alone)
    for folder in folders.values():
        assert outbox.follow(folder, f"sqlite:///{alone}", None)
    assert found == dumped(f"sqlite:///{alone}")
    assert len(found) == 4 * 21
    for name, folder in folders.items():
        pd.testing.assert_frame_equal(leaderboard(rows_from_mlflow(name, server)), leaderboard(rows_from_ledger(folder)))
        with patience(60):
            assert outbox.sync(folder, server).wrong == 0
    together = leaderboard(rows_from_mlflow(None, server))
    assert sorted(set(together["trial"].str.partition("/")[0])) == sorted(folders)
    assert len(together) == sum(len(leaderboard(rows_from_ledger(folder))) for folder in folders.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_leaderboard_of_ten_thousand_runs_of_two_studies_comes_out_of_postgres_in_seconds(
    tmp_path: Path, server: str, postgres: str
) -> None:
    """Of both together, in processor time: five to six seconds on a quiet machine, twice that beside other work."""
    runs = 0
    for at, name in enumerate(("north", "south")):
        assert outbox.follow(make(tmp_path / name, 50, seed=at), server, None)
        runs += multiply(postgres, name, 100)
    assert runs == 10_000
    used = time.process_time()
    straight = rows_from_mlflow(None, postgres)
    board = leaderboard(straight)
    assert time.process_time() - used < 20
    assert sum(row.study in ("north", "south") for row in straight) == runs
    assert len(board) >= runs
    assert len(leaderboard(rows_from_mlflow("north", server))) == sum(board["trial"].str.startswith("north/"))


# -- MLflow is away for the whole search ----------------------------------------------------------------------------------


def searched(home: Path, **track: Any) -> tuple[Path, float, float]:
    """(a study's folder, seconds from its first row to its last end, seconds of everything)."""
    method = {"name": str(HERE / "counting.py"), "steps": 4, "seconds": 0.2, "parcels": False}
    study = Study.from_json({
        "name": "t", "space": str(HERE / "counting_space.py"), "method": method, "budget": {"trials": 12},
        "driver": {"kind": "local"}, "track": {"pictures": 0, **track},
    })
    began = time.monotonic()
    result = launch.run(study, home=home)
    wall = time.monotonic() - began
    with Ledger.open(result.folder / "ledger.sqlite") as ledger:
        times = [row.at for row in ledger.rows(kinds=["study", "ended"])]
    assert result.status.done == 12
    return result.folder, times[-1] - times[0], wall


@pytest.mark.slow
def test_a_search_without_its_mlflow_is_as_fast_and_sync_makes_mlflow_what_the_ledger_is(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch,  # noqa: F811
) -> None:
    for name in ("normal", "later", "never-away"):
        shutil.copy(empty_database, tmp_path / f"{name}.db")
    _, normal, normal_wall = searched(tmp_path / "normal", enabled=True, uri=f"sqlite:///{tmp_path / 'normal.db'}")
    folder, down, down_wall = searched(tmp_path / "down", enabled=True, uri=f"http://127.0.0.1:{closed_port()}")
    assert down <= 1.1 * normal
    assert down_wall <= 1.1 * normal_wall

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'later.db'}")
    until = time.monotonic() + 120
    while True:
        try:
            launch.sync("t", home=tmp_path / "down")
            break
        except outbox.OutboxBusy:  # it gives up by itself, though this process lives on
            assert time.monotonic() < until
    later = in_mlflow(f"sqlite:///{tmp_path / 'later.db'}")
    assert outbox.follow(folder, f"sqlite:///{tmp_path / 'never-away.db'}", None)
    assert later == in_mlflow(f"sqlite:///{tmp_path / 'never-away.db'}")
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        assert later.keys() == {"t", *(f"t/{number}" for number in ledger.trials())}
        for number, trial in ledger.trials().items():
            run = later[f"t/{number}"]
            config = trial.proposal.config
            assert run["params"] == {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
            curve = [(step, at, value) for key, step, at, value, _ in run["points"] if key == "curve/train_loss"]
            reports = list(ledger.rows(kinds=["report"], trial=number))
            assert curve == [(r.body["step"], round(r.at * 1000), r.body["metrics"]["train_loss"]) for r in reports]
            assert trial.outcome is not None
            assert dict(run["latest"])["score"] == trial.outcome.score
            assert run["tags"]["metasearch.status"] == "done"
            assert (run["status"], run["end"]) == ("FINISHED", round((trial.ended_at or 0) * 1000))


def test_what_the_dump_of_a_test_says_is_what_is_there(tmp_path: Path, empty_database: Path) -> None:  # noqa: F811
    """`dumped` must see a difference, or the tests above could not fail."""
    shutil.copy(empty_database, tmp_path / "one.db")
    uri = f"sqlite:///{tmp_path / 'one.db'}"
    assert outbox.follow(make(tmp_path / "made", 2), uri, None)
    before = dumped(uri)
    assert len(before) == 3
    with Ledger.open(tmp_path / "made" / "ledger.sqlite", write=True) as ledger:
        fill(ledger, range(3, 4))
    assert outbox.follow(tmp_path / "made", uri, None)
    assert dumped(uri) != before
