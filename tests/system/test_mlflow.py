"""Ledger rows come to a real MLflow once each, whatever is killed, lost or broken on the way; nobody waits for it."""
from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pandas as pd
import pytest
from made_ledgers import end, fill, make, one_shot, propose, report, stop, study

from metasearch.driver.clean import clean
from metasearch.ledger import Ledger
from metasearch.track import leaderboard as boards
from metasearch.track import outbox, pictures
from metasearch.track.leaderboard import leaderboard, rows_from_ledger, rows_from_mlflow, unseen
from metasearch.track.pictures import Pictures
from metasearch.track.store import TrackingError, connect, tracking_uri
from metasearch.track.where import WhereError

ME = os.getpid()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making MLflow's tables takes seconds: once for all tests."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}", create=True)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "made", 14)


def in_mlflow(uri: str) -> dict[str, Any]:
    """All that MLflow holds of active runs, by name, without what it invents (ids and the parents' ids)."""
    db = sqlite3.connect(uri.removeprefix("sqlite:///"))
    runs: dict[str, Any] = {}
    for run, name, status, start, ended in db.execute(
        "SELECT run_uuid, name, status, start_time, end_time FROM runs WHERE lifecycle_stage = 'active'"
    ).fetchall():
        parts = {
            "tags": dict(db.execute("SELECT key, value FROM tags WHERE run_uuid = ? AND key != 'mlflow.parentRunId'", [run])),
            "params": dict(db.execute("SELECT key, value FROM params WHERE run_uuid = ?", [run])),
            "points": sorted(db.execute("SELECT key, step, timestamp, value, is_nan FROM metrics WHERE run_uuid = ?", [run])),
            "latest": sorted(db.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", [run])),
        }
        assert name not in runs, f"{name} is there twice"
        runs[name] = {"status": status, "start": start, "end": ended, **parts}
    db.close()
    return runs


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> dict[str, Any]:
    """What MLflow holds after 14 trials were sent without trouble."""
    home = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(empty_database, home / "mlflow.db")
    assert outbox.follow(make(home / "made", 14), f"sqlite:///{home / 'mlflow.db'}", None)
    return in_mlflow(f"sqlite:///{home / 'mlflow.db'}")


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Equal but for the times, which differ between two ledgers, and the study's id, which is made from them."""
    def timeless(runs: dict[str, Any]) -> Any:
        return {
            name: {
                "status": run["status"], "params": run["params"], "latest": run["latest"],
                "points": sorted((key, step, value) for key, step, _, value, _ in run["points"]),
                "tags": {k: v for k, v in run["tags"].items() if k != "metasearch.study_id"},
            }
            for name, run in runs.items()
        }

    return bool(timeless(found) == timeless(expected))


# -- what is shown --------------------------------------------------------------------------------------------------------


def test_a_study_is_an_experiment_with_a_parent_run_and_a_child_run_a_trial(folder: Path, uri: str) -> None:
    assert outbox.follow(folder, uri, None)
    client = connect(uri, create=False)
    experiment = client.get_experiment_by_name("made")
    assert experiment.artifact_location.startswith("file:")
    runs = list(client.search_runs([experiment.experiment_id], max_results=100))
    (parent,) = [run for run in runs if run.data.tags["metasearch.kind"] == "study"]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.run_name for run in children} == {f"made/{trial}" for trial in range(1, 15)}
    assert parent.info.status == "FINISHED"
    assert parent.data.params["tasks.ways"] == "5"
    assert parent.data.metrics["trials/ended"] == 14
    assert parent.data.metrics["trials/diverged"] == 1

    with Ledger.open(folder / "ledger.sqlite") as ledger:
        trial = ledger.trials()[1]
    (run,) = [run for run in children if run.data.tags["metasearch.trial"] == "made/1"]
    assert run.data.params == {k: v if isinstance(v, str) else json.dumps(v) for k, v in trial.proposal.config.items()}
    metrics = run.data.metrics
    assert metrics["config/learner.inner_lr"] == trial.proposal.config["learner.inner_lr"]
    assert "config/first_order" not in metrics
    assert metrics["score"] == pytest.approx(trial.episodes.mean())
    assert metrics["score_low"] < metrics["score"] < metrics["score_high"]
    assert (metrics["episodes"], metrics["params"], metrics["flops"], metrics["seconds"]) == (100, 100_001, 2.5e7, 2.5)
    expected = {
        "seed": str(2**60 + 1), "space_digest": "5" * 16, "data_digest": "d" * 16, "bank_digest": "b" * 16, "unit": "accuracy",
        "code": "0123456789ab", "norm": "transductive", "status": "done", "step": "300",
    }
    assert {key: run.data.tags[f"metasearch.{key}"] for key in expected} == expected
    history = client.get_metric_history(run.info.run_id, "curve/train_loss")
    assert [point.step for point in history] == [100, 200, 300]


def test_times_are_those_of_the_ledger(folder: Path, uri: str) -> None:
    assert outbox.follow(folder, uri, None)
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        trials = ledger.trials()
    runs = in_mlflow(uri)
    for number, trial in trials.items():
        assert runs[f"made/{number}"]["start"] == round(trial.proposed_at * 1000)
        assert runs[f"made/{number}"]["end"] == round((trial.ended_at or 0) * 1000)


def test_diverged_and_failed_trials_are_failed_runs_without_a_score(folder: Path, uri: str) -> None:
    assert outbox.follow(folder, uri, None)
    runs = in_mlflow(uri)
    for name, status in (("made/10", "diverged"), ("made/11", "error")):
        assert runs[name]["status"] == "FAILED"
        assert runs[name]["tags"]["metasearch.status"] == status
        assert runs[name]["tags"]["metasearch.reason"] == f"the trial is {status}"
        assert "score" not in dict(runs[name]["latest"])


def test_a_want_of_memory_is_shown_with_what_was_changed_for_it(tmp_path: Path, uri: str) -> None:
    with Ledger.create(tmp_path / "short" / "ledger.sqlite", study("short")) as ledger, ledger.together():
        for trial in (1, 2):
            proposal = propose(ledger, trial, {"lr": 0.1 * trial})
            ledger.append("retry", {"cause": "oom", "chunk": 1, "reason": "no memory", "step": 0, "seconds": 1.0}, trial=trial)
            ledger.append("started", {"lane": "0", "process": "p", "attempt": 2, "start": None, "chunk": 1}, trial=trial)
            scores = np.full(4, 0.5, "<f4") if trial == 1 else None
            end(ledger, trial, proposal, scores, status="done" if trial == 1 else "oom")
        stop(ledger)
    assert outbox.follow(tmp_path / "short", uri, None)
    runs = in_mlflow(uri)
    for name, status, shown in (("short/1", "FINISHED", "done"), ("short/2", "FAILED", "oom")):
        tags = {key.removeprefix("metasearch."): value for key, value in runs[name]["tags"].items()}
        assert (runs[name]["status"], tags["status"], tags["attempts"]) == (status, shown, "2")
        assert (tags["retry"], tags["chunk"], tags["retry_reason"]) == ("oom", "1", "no memory")
    for rows in (rows_from_mlflow("short", uri=uri), rows_from_ledger(tmp_path / "short")):
        assert {row.trial: (row.status, row.reason) for row in rows} == {1: ("done", None), 2: ("oom", "the trial is oom")}


def test_an_infinity_is_never_a_number_in_mlflow(tmp_path: Path, uri: str) -> None:
    with Ledger.create(tmp_path / "made" / "ledger.sqlite", study()) as ledger:
        propose(ledger, 1, {"lr": 0.1})
        report(ledger, 1, 100, train_loss=0.5)
    with sqlite3.connect(tmp_path / "made" / "ledger.sqlite") as db:  # the ledger refuses to write it; another hand did
        db.execute("UPDATE rows SET body = replace(body, '0.5', '1e999') WHERE kind = 'report'")
    assert outbox.follow(tmp_path / "made", uri, None)
    run = in_mlflow(uri)["made/1"]
    assert all(abs(value) < 1e300 for _, _, _, value, _ in run["points"])
    assert run["tags"]["metasearch.not_finite.curve/train_loss"] == "inf at step 100"


def test_ten_thousand_numbers_in_a_report_and_two_hundred_dimensions_arrive(tmp_path: Path, uri: str) -> None:
    with Ledger.create(tmp_path / "made" / "ledger.sqlite", study()) as ledger:
        proposal = propose(ledger, 1, {f"cell.{i}.width": i for i in range(200)} | {"long": "x" * 9_000})
        report(ledger, 1, 100, **{f"weight {i}": float(i) for i in range(10_000)})
        end(ledger, 1, proposal, np.linspace(0, 1, 5_000))
    assert outbox.follow(tmp_path / "made", uri, None)
    (row,) = rows_from_mlflow("made", uri)
    assert row.config == proposal["config"]
    assert row.episodes is not None
    assert row.episodes.tolist() == np.linspace(0, 1, 5_000).astype("f4").tolist()
    run = in_mlflow(uri)["made/1"]
    assert sum(key.startswith("curve/") for key, _ in run["latest"]) == 10_000
    assert len(run["params"]) == 201
    assert len(run["params"]["long"]) < 6_000


# -- once each ------------------------------------------------------------------------------------------------------------


def test_sending_everything_twice_changes_nothing(folder: Path, uri: str, undisturbed: dict[str, Any]) -> None:
    assert outbox.follow(folder, uri, None)
    first = in_mlflow(uri)
    assert same(first, undisturbed)
    for lost in (lambda path: path.unlink(), lambda path: path.write_text('{"seq": 3'), lambda path: None):
        lost(folder / "outbox.json")
        assert outbox.follow(folder, uri, None)
        assert in_mlflow(uri) == first


def test_points_that_are_there_but_not_yet_marked_are_not_doubled(folder: Path, uri: str) -> None:
    assert outbox.follow(folder, uri, None)
    first = in_mlflow(uri)
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as db:
        db.execute("UPDATE tags SET value = '0' WHERE key = 'metasearch.seq'")
    assert outbox.follow(folder, uri, None)
    assert in_mlflow(uri) == first


def killed_at(point: str, folder: Path, uri: str, rows: int = outbox.ROWS) -> bool:
    """An outbox that sends so many rows at once, in a process that dies at a point; whether it did."""
    child = forked.server().Process(target=_outbox, args=(point, str(folder), uri, rows))
    child.start()
    child.join(120)
    return child.exitcode == 137


def _outbox(point: str, folder: str, uri: str, rows: int) -> None:
    os.environ["METASEARCH_CRASH_AT"] = point
    outbox.ROWS = rows
    sys.exit(outbox.main([folder, "--uri", uri]))


@pytest.mark.parametrize("point", ["outbox.made:6", pytest.param("outbox.before:1", marks=pytest.mark.slow), "outbox.after:2"])
def test_an_outbox_that_is_killed_goes_on_without_doubling_or_losing(
    folder: Path, uri: str, undisturbed: dict[str, Any], point: str
) -> None:
    assert killed_at(point, folder, uri, rows=20)
    assert not same(in_mlflow(uri), undisturbed)
    assert outbox.follow(folder, uri, None)
    assert same(in_mlflow(uri), undisturbed)


def test_an_outbox_that_is_told_to_end_does_so_between_two_batches(tmp_path: Path, uri: str) -> None:
    """Its study is under way, and its driver lives; what it has sent it knows, and it leaves its lock."""
    folder = make(tmp_path / "made", 3, stopped=False)
    child = forked.server().Process(target=_following, args=(str(folder), uri, os.getpid()))
    child.start()
    until = time.monotonic() + 100
    while outbox.behind(folder) and time.monotonic() < until:
        time.sleep(0.05)
    assert not outbox.behind(folder)
    child.terminate()
    child.join(30)
    assert child.exitcode == 69, "it says that the study had not ended, and is not killed by the signal"
    with Ledger.open(folder / "ledger.sqlite", write=True) as ledger:
        stop(ledger)
    assert outbox.follow(folder, uri, None)


def _following(folder: str, uri: str, pid: int) -> None:
    sys.exit(outbox.main([folder, "--uri", uri, "--follow", str(pid)]))


def test_rows_that_come_later_are_sent_later(tmp_path: Path, uri: str, undisturbed: dict[str, Any]) -> None:
    folder = make(tmp_path / "made", 14, stopped=False)
    box = outbox.Outbox(folder, uri)
    with Ledger.open(folder / "ledger.sqlite", write=True) as ledger:
        while box.step():
            pass
        assert not box.finished
        assert unseen("made", folder, uri) == 0
        stop(ledger)
        assert unseen("made", folder, uri) == 1
        assert outbox.behind(folder) == 1
        assert box.step()
    assert box.finished
    box.close()
    assert same(in_mlflow(uri), undisturbed)


def test_of_all_studies_it_is_said_which_mlflow_has_not_seen_whole(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = make(tmp_path / "made", 14, stopped=False)
    box = outbox.Outbox(folder, uri)
    while box.step():
        pass
    box.close()
    assert leaderboard(None, home=tmp_path).attrs["behind"] == []
    with Ledger.open(folder / "ledger.sqlite", write=True) as ledger:
        stop(ledger)
    make(tmp_path / "unsent", 3)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "ledger.sqlite").write_bytes(b"no ledger")
    with Ledger.open(tmp_path / "unsent" / "ledger.sqlite") as ledger:
        rows = ledger.last
    make(tmp_path / "locked", 3)
    with closing(sqlite3.connect(tmp_path / "locked" / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("pragma locking_mode = exclusive")
        other.execute("begin exclusive")
        for address in (None, uri.replace(str(tmp_path), f"{tmp_path}/unsent/..") if uri.startswith("sqlite") else f"{uri}/"):
            found = leaderboard(None, home=tmp_path, uri=address).attrs
            assert (found["unseen"], found["behind"]) == (1 + rows, ["made", "unsent"])


class Flaky:
    """A client of a real MLflow whose replies are lost now and then: the server did what it was asked, nobody heard of it."""

    def __init__(self, client: Any, every: int) -> None:
        self._client, self._every, self._calls = client, every, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name not in ("create_run", "log_batch", "set_terminated", "create_experiment"):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            found = method(*args, **kwargs)
            if self._calls % self._every == 0:
                raise ConnectionResetError("the reply was lost")
            return found

        return call


def test_reports_of_a_running_study_are_one_call_a_batch_and_do_not_touch_the_studys_run(tmp_path: Path, uri: str) -> None:
    with Ledger.create(tmp_path / "made" / "ledger.sqlite", study()) as ledger:
        propose(ledger, 1, {"lr": 0.1})
        box = outbox.Outbox(tmp_path / "made", uri)
        assert box.step(sparing=True)
        mirror = box.open()
        calls: list[str] = []
        real = mirror.client.log_batch

        def counted(run_id: str, **given: Any) -> None:
            calls.append(run_id)
            real(run_id, **given)

        mirror.client.log_batch = counted
        while box.step(sparing=True):
            pass
        calls.clear()
        for batch in range(3):
            for step in range(1, 6):
                report(ledger, 1, 10 * batch + step, train_loss=1.0 / step)
            assert box.step(sparing=True)
        assert calls == [mirror.runs[1].run_id] * 3
        box.tell()
        assert calls[3:] == [mirror.runs[None].run_id]
        assert int(mirror.client.get_run(mirror.runs[None].run_id).data.tags["metasearch.seq"]) == ledger.last
        box.tell()
        assert len(calls) == 4
        assert not box.stopping
        stop(ledger)
        assert box.stopping
        box.close()


@pytest.mark.parametrize("every", [2, 3, 5])
def test_lost_replies_double_nothing(
    folder: Path, uri: str, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    flaky = Flaky(connect(uri, create=True), every)
    monkeypatch.setattr(outbox, "connect", lambda uri, create: flaky)
    box = outbox.Outbox(folder, uri)
    failures: list[TrackingError] = []
    while not box.finished and len(failures) < 100:
        try:
            box.step()
        except TrackingError as error:
            failures.append(error)
    assert len(failures) > 5
    assert all(error.passing for error in failures)
    box.settle()
    box.close()
    assert same(in_mlflow(uri), undisturbed)


# -- trouble --------------------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_dead_server_costs_one_warning_and_sync_brings_everything_later(
    folder: Path, uri: str, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "GRACE", 4.0)
    dead = f"http://user:canary@127.0.0.1:{closed_port()}"
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "metasearch"):
        assert not outbox.follow(folder, dead, None)
    assert time.monotonic() - began < 30
    assert len([record for record in caplog.records if record.name.startswith("metasearch")]) == 1
    assert "metasearch sync made" in caplog.text
    assert "canary" not in caplog.text + (folder / "outbox.json").read_text()
    assert "refused" in (outbox.read_cursor(folder).trouble or "").lower()
    assert outbox.behind(folder) > 80
    with pytest.raises(TrackingError, match="refused"):
        outbox.sync(folder, dead)

    found = outbox.sync(folder, uri)
    assert (found.runs, found.wrong) == (15, 0)
    assert same(in_mlflow(uri), undisturbed)
    assert outbox.behind(folder) == 0
    assert outbox.read_cursor(folder).trouble is None


def test_a_server_that_comes_back_gets_everything(
    folder: Path, uri: str, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0

    def sometimes(uri: str, create: bool) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise TrackingError("no answer", passing=True)
        return connect(uri, create=create)

    monkeypatch.setattr(outbox, "connect", sometimes)
    with caplog.at_level(logging.WARNING, "metasearch"):
        assert outbox.follow(folder, uri, None)
    assert [record.message for record in caplog.records if "answers again" in record.message] == ["MLflow answers again"]
    assert same(in_mlflow(uri), undisturbed)


def test_a_run_that_somebody_deleted_does_not_stop_the_others(tmp_path: Path, uri: str) -> None:
    folder = make(tmp_path / "made", 3, stopped=False)
    box = outbox.Outbox(folder, uri)
    with Ledger.open(folder / "ledger.sqlite", write=True) as ledger:
        proposal = propose(ledger, 4, {"lr": 0.1})
        while box.step():
            pass
        client = connect(uri, create=False)
        (run,) = client.search_runs(["1"], "tags.`metasearch.trial` = 'made/4'")
        client.delete_run(run.info.run_id)
        end(ledger, 4, proposal, np.full(100, 0.9))
        fill(ledger, range(5, 7))
        stop(ledger)
    while box.step():
        pass
    assert list(box.refused) == [4]
    box.close()
    assert set(in_mlflow(uri)) == {"made", *(f"made/{t}" for t in (1, 2, 3, 5, 6))}
    assert outbox.sync(folder, uri).wrong == 1  # brought back, then written to the end
    assert dict(in_mlflow(uri)["made/4"]["latest"])["score"] == pytest.approx(0.9)


@pytest.mark.parametrize("harm", ["tag", "param", "metric", "status", "copy", "foreign", "parent", "experiment", "nothing"])
def test_sync_makes_mlflow_equal_the_ledger(folder: Path, uri: str, undisturbed: dict[str, Any], harm: str) -> None:
    assert outbox.follow(folder, uri, None)
    before = in_mlflow(uri)
    client = connect(uri, create=False)
    experiment = client.get_experiment_by_name("made").experiment_id

    def run(name: str) -> Any:
        return next(r for r in client.search_runs([experiment]) if r.info.run_name == name)

    third = run("made/3")
    if harm == "tag":
        client.set_tag(third.info.run_id, "metasearch.status", "diverged")
        client.set_tag(third.info.run_id, "metasearch.invented", "x")
    elif harm == "param":
        with sqlite3.connect(uri.removeprefix("sqlite:///")) as db:
            db.execute("UPDATE params SET value = 'resnet' WHERE run_uuid = ? AND key = 'learner'", [third.info.run_id])
    elif harm == "metric":
        client.log_metric(third.info.run_id, "score", 0.999, step=10_000)
    elif harm == "status":
        client.set_terminated(third.info.run_id, "KILLED", end_time=1)
    elif harm == "copy":
        tags = {k: v for k, v in third.data.tags.items() if k != "mlflow.runName"}
        client.create_run(experiment, start_time=third.info.start_time + 1, tags=tags, run_name="made/3")
    elif harm == "foreign":
        parent = run("made").data.tags["metasearch.study_id"]
        tags = {"metasearch.study_id": parent, "metasearch.trial": "made/99", "metasearch.kind": "trial"}
        client.create_run(experiment, tags=tags, run_name="made/99")
    elif harm == "parent":
        client.delete_run(run("made").info.run_id)
    elif harm == "experiment":
        client.delete_experiment(experiment)

    found = outbox.sync(folder, uri)
    after = in_mlflow(uri)
    assert same(after, undisturbed)
    assert {name: run["points"] for name, run in after.items()} == {name: run["points"] for name, run in before.items()}
    assert found.wrong == (harm != "nothing")
    assert outbox.sync(folder, uri).wrong == 0
    assert len(leaderboard(rows_from_mlflow("made", uri))) == 14


def test_a_new_study_of_a_deleted_experiments_name_leaves_the_old_runs_deleted(tmp_path: Path, uri: str) -> None:
    old = make(tmp_path / "old" / "made", 2)
    assert outbox.follow(old, uri, None)
    client = connect(uri, create=False)
    client.delete_experiment(client.get_experiment_by_name("made").experiment_id)
    assert outbox.follow(make(tmp_path / "made", 3, seed=5), uri, None)
    assert set(in_mlflow(uri)) == {"made", "made/1", "made/2", "made/3"}
    assert len(rows_from_mlflow("made", uri)) == 3


def test_two_studies_of_one_name_do_not_mix(tmp_path: Path, uri: str) -> None:
    assert outbox.follow(make(tmp_path / "here" / "made", 2), uri, None)
    assert outbox.follow(make(tmp_path / "there" / "made", 5, seed=1), uri, None)
    assert len(rows_from_mlflow("made", uri)) == 5  # the newest
    assert len(leaderboard("made", home=tmp_path / "here", uri=uri)) == 2  # one's own
    assert unseen("made", tmp_path / "here" / "made", uri) == 0
    assert outbox.sync(tmp_path / "here" / "made", uri).wrong == 0
    assert len(rows_from_mlflow("made", uri)) == 5


def test_only_one_process_sends_the_rows_of_a_study(folder: Path, uri: str) -> None:
    with outbox._alone(folder, lambda: 0.0, asked_by="test"), pytest.raises(outbox.OutboxBusy, match=str(ME)):
        outbox.sync(folder, uri, wait=0.2)
    assert outbox.sync(folder, uri).runs == 15


def test_sync_waits_for_an_outbox_that_gives_a_server_up_once_its_study_has_stopped(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default: so long as that one tries, and a little; while the study runs there is no use in waiting for it."""
    monkeypatch.setattr(outbox, "GRACE", -14.5)
    waited = []
    for stopped in (True, False):
        folder = make(tmp_path / str(stopped) / "made", 2, stopped=stopped)
        began = time.monotonic()
        with outbox._alone(folder, lambda: 0.0, asked_by="test"), pytest.raises(outbox.OutboxBusy):
            outbox.sync(folder, uri)
        waited.append(time.monotonic() - began)
    assert waited[0] < 8 < 10 <= waited[1]


def test_processes_that_touch_a_fresh_database_at_once_make_it_once(tmp_path: Path) -> None:
    context = forked.server()
    found = context.Queue()
    database = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    processes = [context.Process(target=_touch, args=(database, found)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [found.get(timeout=9) for _ in processes] == [1, 1, 1]
    with sqlite3.connect(tmp_path / "new" / "mlflow.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def _touch(uri: str, found: Any) -> None:
    found.put(len(connect(uri, create=True).search_experiments()))


# -- the process ----------------------------------------------------------------------------------------------------------


def test_the_process_ends_when_the_study_has_stopped_and_shows_no_secret(
    folder: Path, uri: str, undisturbed: dict[str, Any]
) -> None:
    process = outbox.start(folder, uri, follow=ME)
    assert uri not in Path(f"/proc/{process.pid}/cmdline").read_text()
    assert process.wait(timeout=120) == 0
    assert same(in_mlflow(uri), undisturbed)
    assert (folder / "outbox.log").read_text() == ""


def test_the_process_ends_when_its_driver_is_gone_and_everything_is_sent(tmp_path: Path, uri: str) -> None:
    folder = make(tmp_path / "made", 3, stopped=False)
    driver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    process = outbox.start(folder, uri, follow=driver.pid)
    deadline = time.monotonic() + 100
    while outbox.behind(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert process.poll() is None
    driver.kill()  # nobody waits for it: it stays a zombie, which is gone all the same
    assert process.wait(timeout=60) == 0
    driver.wait()
    assert set(in_mlflow(uri)) == {"made", "made/1", "made/2", "made/3"}


# -- weights --------------------------------------------------------------------------------------------------------------


def test_the_best_trials_weights_are_artifacts_of_the_study(tmp_path: Path, uri: str) -> None:
    folder = make(tmp_path / "made", 6, parcels=True)
    assert outbox.follow(folder, uri, None)
    client = connect(uri, create=False)
    (parent,) = client.search_runs(["1"], "tags.`metasearch.kind` = 'study'")
    best = leaderboard(rows_from_ledger(folder), top=2)
    root = Path(parent.info.artifact_uri.removeprefix("file://"))
    trials = [name.rpartition("/")[2] for name in best["trial"]]
    assert json.loads((root / "best" / "best.json").read_text()) == [f"trial-{trial}" for trial in trials]
    for trial, score in zip(trials, best["score"], strict=True):
        at = root / "best" / f"trial-{trial}"
        assert (at / "300.safetensors").read_text() == f"parcel of trial {trial}"
        about = json.loads((at / "trial.json").read_text())
        assert about["score"] == score
        assert about["config"] == json.loads(best["config"][trials.index(trial)])
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert outbox.follow(folder, uri, None)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    clean("made", keep=1, yes=True, home=tmp_path)
    assert not list(folder.glob(f"parcels/{trials[1]}/*")), "it was removed here, and stays stored there"
    outbox.sync(folder, uri)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


# -- pictures -------------------------------------------------------------------------------------------------------------

DRAWN = {"architecture.png", "architecture.svg", "learning.png"}
CELLS = Path(__file__).with_name("cells_space.py")


def cells(folder: Path, trials: int, *, space: Path = CELLS, stopped: bool = True, **track: Any) -> Path:
    """A search of cells: the later a trial, the better it is."""
    first = study(folder.name, pictures=2, **track)
    first["study"]["space"] = str(space)
    with Ledger.create(folder / "ledger.sqlite", first) as ledger, ledger.together():
        more_cells(ledger, range(1, trials + 1))
        if stopped:
            stop(ledger)
    return folder


def more_cells(ledger: Ledger, numbers: range) -> None:
    for trial in numbers:
        proposal = propose(ledger, trial, dict.fromkeys(("e10", "e20", "e21"), "skip_connect" if trial % 2 else "nor_conv_3x3"))
        report(ledger, trial, 100, train_loss=1 / trial)
        end(ledger, trial, proposal, np.array([0.4, 0.6]) + trial / 1000)


def stored(uri: str) -> dict[str, dict[str, int]]:
    """The pictures of every run, with the times at which they were written."""
    client = connect(uri, create=False)
    roots = {run.info.run_name: Path(run.info.artifact_uri.removeprefix("file://")) for run in client.search_runs(["1"])}
    found = {name: {p.name: p.stat().st_mtime_ns for p in (root / "pictures").glob("*")} for name, root in roots.items()}
    return {name: files for name, files in found.items() if files}


def test_the_search_and_the_best_trials_have_pictures_and_are_not_drawn_twice(tmp_path: Path, uri: str) -> None:
    folder = cells(tmp_path / "made", 6)
    assert outbox.follow(folder, uri, None)
    first = stored(uri)
    assert {name: set(files) for name, files in first.items()} == {"made": {"history.png"}, "made/5": DRAWN, "made/6": DRAWN}
    client = connect(uri, create=False)
    (run,) = client.search_runs(["1"], "tags.`metasearch.trial` = 'made/6'")
    root = Path(run.info.artifact_uri.removeprefix("file://")) / "pictures"
    assert (root / "architecture.svg").read_text().count(">conv<") == 3
    assert (root / "learning.png").read_bytes()[:4] == b"\x89PNG"
    for again in (lambda: outbox.follow(folder, uri, None), lambda: outbox.sync(folder, uri)):
        assert again()
        assert stored(uri) == first
    client.delete_run(run.info.run_id)
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as db:
        db.execute("DELETE FROM runs WHERE run_uuid = ?", [run.info.run_id])
    outbox.sync(folder, uri)  # the run is made again, and so are its pictures
    assert set(stored(uri)["made/6"]) == DRAWN


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_an_outbox_that_is_killed_between_two_pictures_stores_the_rest_later(tmp_path: Path, uri: str, count: int) -> None:
    folder = cells(tmp_path / "made", 6)
    assert killed_at(f"outbox.pictured:{count}", folder, uri)
    assert len(stored(uri)) == count
    assert outbox.follow(folder, uri, None)
    assert {name: set(files) for name, files in stored(uri).items()} == {
        "made": {"history.png"}, "made/5": DRAWN, "made/6": DRAWN}


def test_pictures_are_drawn_while_a_study_runs_now_and_then(tmp_path: Path, uri: str) -> None:
    folder = cells(tmp_path / "made", 19, stopped=False)
    box = outbox.Outbox(folder, uri)

    def on() -> dict[str, dict[str, int]]:
        while box.step():
            pass
        box.draw()
        return stored(uri)

    with Ledger.open(folder / "ledger.sqlite", write=True) as ledger:
        assert on() == {}
        more_cells(ledger, range(20, 21))
        first = on()
        assert set(first) == {"made", "made/19", "made/20"}
        more_cells(ledger, range(21, 40))
        assert on() == first
        more_cells(ledger, range(40, 41))
        second = on()
        assert set(second) == {*first, "made/39", "made/40"}
        assert second["made"] != first["made"]
        assert second["made/20"] == first["made/20"]
    box.close()


def test_a_study_of_two_thousand_trials_is_drawn_some_thirty_times() -> None:
    pictures = Pictures()
    looks = 0
    for ended in range(1, 2001):
        if pictures.due(ended):
            pictures.at, looks = ended, looks + 1
    assert looks == 33


FAILING = """
def graph(config):
    {}
"""


@pytest.mark.parametrize(("body", "said"), [
    ("raise RuntimeError('canary')", "RuntimeError: canary"), ("raise SystemExit(3)", "SystemExit"),
    ("return 3", "must return a list"),
    ("while True: pass", "TimeoutError: it took more than"),
])
def test_a_graph_of_a_users_that_fails_or_never_ends_is_a_warning(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, body: str, said: str
) -> None:
    if "while" in body:
        monkeypatch.setattr(pictures, "PATIENCE", 1.0)
    (tmp_path / "mine.py").write_text(FAILING.format(body))
    folder = cells(tmp_path / "made", 3, space=tmp_path / "mine.py")
    with caplog.at_level(logging.WARNING, "metasearch"):
        assert outbox.follow(folder, uri, None)
    assert said in caplog.text
    assert {name: set(files) for name, files in stored(uri).items()} == {
        "made": {"history.png"}, "made/2": {"learning.png"}, "made/3": {"learning.png"}}
    assert set(in_mlflow(uri)) == {"made", "made/1", "made/2", "made/3"}
    assert outbox.read_cursor(folder).trouble is None


def test_a_store_that_takes_no_files_is_a_warning_and_all_rows_are_there(
    tmp_path: Path, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cells(tmp_path / "made", 3)
    (tmp_path / "mlartifacts").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, "metasearch"):
        assert outbox.follow(folder, uri, None)
    assert "pictures were not stored in MLflow" in caplog.text
    assert set(in_mlflow(uri)) == {"made", "made/1", "made/2", "made/3"}
    (tmp_path / "mlartifacts").unlink()
    outbox.sync(folder, uri)
    assert set(stored(uri)) == {"made", "made/2", "made/3"}


def test_a_study_may_do_without_pictures(folder: Path, uri: str) -> None:
    assert outbox.follow(folder, uri, None)
    assert stored(uri) == {}
    assert "metasearch.pictures" not in in_mlflow(uri)["made"]["tags"]


# -- the leaderboard ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> tuple[Path, str]:
    """40 trials, in MLflow."""
    home = tmp_path_factory.mktemp("sent")
    shutil.copy(empty_database, home / "mlflow.db")
    folder, uri = make(home / "made", 40), f"sqlite:///{home / 'mlflow.db'}"
    assert outbox.follow(folder, uri, None)
    return folder, uri


def test_the_leaderboard_from_mlflow_is_that_from_the_ledger(sent: tuple[Path, str]) -> None:
    folder, uri = sent
    pd.testing.assert_frame_equal(leaderboard(rows_from_mlflow("made", uri)), leaderboard(rows_from_ledger(folder)))


@pytest.mark.parametrize("where", [
    "learner.inner_lr < 0.1", "learner = maml and learner.inner_steps >= 3", "learner != maml", "learner.inner_steps != 3",
    "first_order = true", "score > 60%", "score >= 1e-1 and score < 0.62", "low > 0.6", "status = diverged", "status != done",
    "trial = 7", "trial != made/7", "params > 100020 and norm = transductive", "net.width = 32", "seconds < 12.5",
    "episodes = 100", "step <= 200", f"seed = {2**60 + 5}", "learner = resnet",
])
def test_a_filter_means_the_same_on_the_server(sent: tuple[Path, str], where: str) -> None:
    folder, uri = sent
    pd.testing.assert_frame_equal(
        leaderboard(rows_from_mlflow("made", uri, where)), leaderboard(rows_from_ledger(folder, where=where)), check_names=False
    )


def test_a_filter_that_cannot_be_understood_is_no_fault_of_the_server(sent: tuple[Path, str]) -> None:
    with pytest.raises(WhereError, match=r"Did you mean 'learner\.inner_lr'"):
        rows_from_mlflow("made", sent[1], "learner.inner_lrr < 1")


def test_a_dead_server_is_named_at_once_and_without_its_password() -> None:
    began = time.monotonic()
    with pytest.raises(TrackingError, match="refused") as caught:
        rows_from_mlflow("made", f"http://user:canary@127.0.0.1:{closed_port()}")
    assert time.monotonic() - began < 20
    assert "canary" not in str(caught.value)


def test_the_server_orders_and_limits(sent: tuple[Path, str]) -> None:
    folder, uri = sent
    whole = leaderboard(rows_from_ledger(folder))
    assert [row.name for row in rows_from_mlflow("made", uri, top=5)] == whole["trial"].head(5).tolist()
    cheap = rows_from_mlflow("made", uri, sort="params", top=3)
    assert [row.params for row in cheap] == whole["params"].dropna().sort_values().head(3).tolist()
    steep = rows_from_mlflow("made", uri, sort="-learner.inner_lr", top=3)
    assert [row.config["learner.inner_lr"] for row in steep] == whole["config/learner.inner_lr"].sort_values().tolist()[:-4:-1]


def test_every_page_is_read(sent: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, uri = sent
    monkeypatch.setattr(boards, "PAGE", 7)
    assert sorted(row.trial for row in rows_from_mlflow("made", uri)) == list(range(1, 41))


def test_what_a_one_shot_search_found_is_the_same_from_mlflow(tmp_path: Path, uri: str) -> None:
    one_shot(tmp_path / "made", {"op": "held"}, {"op": "conv"})
    assert outbox.follow(tmp_path / "made", uri, None)
    board = leaderboard(rows_from_mlflow("made", uri))
    assert json.loads(board["found"][0]) == {"op": "conv"}
    assert (board["supernet"][0], board["rank_correlation"][0], board["latency_ms"][0]) == (0.4, -0.25, 0.5)
    pd.testing.assert_frame_equal(board, leaderboard(rows_from_ledger(tmp_path / "made")))


def test_params_of_a_one_shot_search_are_what_it_found_and_not_what_was_held(tmp_path: Path, uri: str) -> None:
    """Said when the trial ends, for MLflow takes a param once; of a search that failed nothing is said."""
    one_shot(tmp_path / "made", {"op": "held", "width": 3, "lr": 0.1}, {"op": "conv", "width": 4, "lr": 0.1})
    assert outbox.follow(tmp_path / "made", uri, None)
    runs = in_mlflow(uri)
    assert runs["made/1"]["params"] == {"op": "conv", "width": "4", "lr": "0.1"}
    assert runs["made/2"]["params"] == {"lr": "0.1"}
    assert ("config/width", 4.0) in runs["made/1"]["latest"]
    assert "config/width" not in dict(runs["made/2"]["latest"])


def test_a_leaderboard_by_name_says_where_it_comes_from(
    sent: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, uri = sent
    board = leaderboard("made", home=folder.parent, top=3)
    assert board.attrs == {"source": f"MLflow at {uri}", "unseen": 0, "rows": 40, "front": "params"}
    assert len(board) == 3
    pd.testing.assert_frame_equal(board, leaderboard("made", home=folder.parent, source="ledger", top=3))
    pd.testing.assert_frame_equal(leaderboard(None, home=folder.parent, top=3), board)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'elsewhere.db'}")
    with pytest.raises(TrackingError, match="no MLflow database"):
        leaderboard("made", home=folder.parent)
    assert not (folder / "elsewhere.db").exists()


def test_errors_are_filtered_by_the_server_as_tables_show_them(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "made"
    with Ledger.create(folder / "ledger.sqlite", study(unit="mse")) as ledger:
        for trial in range(1, 6):
            end(ledger, trial, propose(ledger, trial, {"lr": 0.1 * trial}), -np.linspace(0.1, 0.3, 50) * trial)
    assert outbox.follow(folder, uri, None)
    for where in ("score < 0.5", "score >= 0.5", "low > 0.3", "high <= 0.7"):
        here = leaderboard(rows_from_mlflow("made", uri, where))
        pd.testing.assert_frame_equal(here, leaderboard(rows_from_ledger(folder, where=where)))
        assert 0 < len(here) < 5
        assert (here["score"] > 0).all()


def test_a_filter_over_all_studies_leaves_out_those_without_the_dimension(tmp_path: Path, uri: str) -> None:
    for name, path in (("one", "lr"), ("other", "width")):
        with Ledger.create(tmp_path / name / "ledger.sqlite", study(name)) as ledger:
            for trial in range(1, 4):
                end(ledger, trial, propose(ledger, trial, {path: 0.1 * trial}), np.linspace(0.1, 0.3, 50) * trial)
        assert outbox.follow(tmp_path / name, uri, None)
    assert sorted(row.name for row in rows_from_mlflow(None, uri, "lr < 0.25")) == ["one/1", "one/2"]
    with pytest.raises(WhereError, match="'depth' is no key"):
        rows_from_mlflow(None, uri, "depth < 3")


def test_a_study_that_mlflow_does_not_know_is_named_with_its_neighbour(sent: tuple[Path, str]) -> None:
    with pytest.raises(TrackingError, match="Did you mean 'made'"):
        rows_from_mlflow("maed", sent[1])


def test_the_environment_wins_over_the_study_and_the_study_over_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri(None, tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert tracking_uri("http://host:5000", tmp_path) == "http://host:5000"
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///relative.db", tmp_path) == f"sqlite:///{tmp_path / 'relative.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    assert tracking_uri("http://host:5000", tmp_path) == "http://other:5000"


# -- a server -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[tuple[str, Path]]:
    home, port = tmp_path_factory.mktemp("server"), closed_port()
    shutil.copy(empty_database, home / "mlflow.db")
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}",
        "--artifacts-destination", str(home / "artifacts"), "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", home
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


@pytest.mark.slow
def test_a_server_gets_what_a_database_gets(
    tmp_path: Path, server: tuple[str, Path], undisturbed: dict[str, Any]
) -> None:
    url, home = server
    folder = make(tmp_path / "made", 14)
    assert outbox.follow(folder, url, None)
    assert same(in_mlflow(f"sqlite:///{home / 'mlflow.db'}"), undisturbed)
    pd.testing.assert_frame_equal(leaderboard(rows_from_mlflow("made", url)), leaderboard(rows_from_ledger(folder)))
    assert outbox.sync(folder, url).wrong == 0


@pytest.mark.slow
def test_two_thousand_trials_are_read_in_seconds(tmp_path: Path, uri: str) -> None:
    folder = make(tmp_path / "made", 2_000)
    assert outbox.follow(folder, uri, None)
    began = time.monotonic()
    board = leaderboard(rows_from_mlflow("made", uri))
    assert time.monotonic() - began < 20
    pd.testing.assert_frame_equal(board, leaderboard(rows_from_ledger(folder)))
