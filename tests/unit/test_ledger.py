"""The ledger keeps what was written, refuses what it cannot trust, and folds its rows fast."""
from __future__ import annotations

import ast
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metasearch import ledger as ledger_module
from metasearch import mounts
from metasearch.crashpoint import KINDS, POINTS, crashpoint
from metasearch.ledger import SCHEMA, Ledger, LedgerError, Overtaken, episode_blob, finite
from metasearch.records import Outcome, Proposal

PACKAGE = Path(ledger_module.__file__).parent
STUDY = {"study": {"name": "t"}}


@pytest.fixture(params=["disk", "network"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Of a ledger with a WAL, and of one with a rollback journal."""
    if request.param == "network":
        request.getfixturevalue("network")
    return tmp_path / "ledger.sqlite"


def ended(number: int, score: float | None = 1.0, status: str = "done") -> dict[str, object]:
    outcome = Outcome(number, Proposal({"x": number}), score, {"loss": 0.5}, status, 3)  # type: ignore[arg-type]
    return {**outcome.to_json(), "seconds": 2.0, "checkpoint": "p/3.safetensors"}


def test_rows_come_back_as_they_were_written_and_in_order(path: Path) -> None:
    ledger = Ledger.create(path, STUDY)
    for n in range(1, 6):
        assert ledger.append("note", {"what": "é", "n": n}, trial=n, blob=bytes([n]), at=float(100 - n)) == n + 1
    ledger.close()
    again = Ledger.open(path)
    assert [(r.seq, r.kind, r.trial, r.body.get("n"), r.blob, r.at) for r in again.rows(after=1)] == [
        (n + 1, "note", n, n, bytes([n]), 100.0 - n) for n in range(1, 6)
    ]
    assert [r.seq for r in again.rows(kinds=["study"])] == [1]
    assert [r.seq for r in again.rows(after=2, trial=4)] == [5]
    assert again.study() == STUDY
    assert again.last == 6


def test_order_is_by_number_whatever_the_clock_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.create(path, STUDY)
    for now in (2e9, 0.0, 4.2e9, 1.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        ledger.append("note", {"what": str(now)})
    assert [r.body["what"] for r in ledger.rows(after=1)] == ["2000000000.0", "0.0", "4200000000.0", "1.0"]


def test_rows_written_together_are_there_together_or_not_at_all(path: Path) -> None:
    ledger = Ledger.create(path, STUDY)

    def half() -> None:
        with ledger.together():
            ledger.append("proposed", Proposal({"x": 1}).to_json(), trial=1)
            assert list(ledger.trials()) == [1]
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half()
    assert ledger.trials() == {}
    assert ledger.last == 1
    with ledger.together():
        ledger.append("proposed", Proposal({"x": 2}).to_json(), trial=1)
        with ledger.together():
            ledger.append("note", {"what": "nested"})
        other = Ledger.open(path)
        assert other.last == 1, "a transaction was seen before it was over"
    assert other.last == 3
    assert ledger.trials()[1].proposal.config == {"x": 2}


def test_a_reader_follows_a_writer_row_by_row(path: Path) -> None:
    writer = Ledger.create(path, STUDY)
    reader = Ledger.open(path)
    for n in range(1, 4):
        writer.append("proposed", Proposal({"x": n}).to_json(), trial=n)
        assert list(reader.trials()) == list(range(1, n + 1))
    with pytest.raises(LedgerError, match="for reading"):
        reader.append("note", {"what": "no"})


def test_trials_are_what_the_rows_say(path: Path) -> None:
    ledger = Ledger.create(path, STUDY)
    ledger.append("proposed", Proposal({"x": 1}, parent=None, until=3).to_json(), trial=1)
    assert ledger.trials()[1].status == "proposed"
    start = {"lane": "a", "process": "p", "attempt": 1, "start": None, "own": False, "cause": "new"}
    ledger.append("started", start, trial=1)
    report = {"step": 2, "metrics": {"loss": 0.1}, "score": 0.3, "checkpoint": "a", "seconds": 1.5}
    ledger.append("report", report, trial=1)
    ledger.append("report", {**report, "step": 3, "checkpoint": "b"}, trial=1)
    trial = ledger.trials()[1]
    assert (trial.status, trial.lane, trial.attempts, trial.seconds) == ("running", "a", 1, 1.5)
    assert trial.checkpoints == ("a", "b")
    assert trial.report is not None
    assert trial.report.step == 3
    ledger.append("started", {**start, "attempt": 2, "cause": "lane"}, trial=1)
    assert (ledger.trials()[1].attempts, ledger.trials()[1].barren) == (2, 1)
    ledger.append("ended", ended(1), trial=1, blob=episode_blob([0.5, 1.0]))
    for found in (ledger.trials()[1], Ledger.open(path).trials()[1]):
        assert (found.status, found.seconds, found.checkpoint) == ("done", 2.0, "p/3.safetensors")
        assert found.outcome == Outcome.from_json({k: v for k, v in ended(1).items() if k not in ("seconds", "checkpoint")})
        assert found.episodes is not None
        assert np.array_equal(found.episodes, np.float32([0.5, 1.0]))


def folded_by_hand(ledger: Ledger) -> dict[int, dict[str, Any]]:
    """What every row means, read one after another."""
    found: dict[int, dict[str, Any]] = {}
    for row in ledger.rows():
        if row.kind == "proposed":
            found[row.trial or 0] = {"attempts": 0, "barren": 0, "reports": 0, "report": None, "seconds": 0.0, "checkpoints": []}
        elif row.trial is not None:
            one, body = found[row.trial], row.body
            if row.kind == "started":
                one["attempts"], one["barren"] = body["attempt"], one["barren"] + (body["cause"] == "lane")
            elif row.kind == "report":
                one |= {"barren": 0, "reports": one["reports"] + 1, "report": body["metrics"], "seconds": body["seconds"]}
            elif row.kind == "ended":
                one["seconds"] = body["seconds"]
            if row.kind in ("report", "ended") and body["checkpoint"]:
                one["checkpoints"] = [c for c in one["checkpoints"] if c != body["checkpoint"]] + [body["checkpoint"]]
    return found


@pytest.mark.parametrize("seed", range(6))
def test_a_ledger_read_at_once_says_what_its_rows_say_one_by_one(tmp_path: Path, seed: int) -> None:
    """Reports that a later one replaces are not read: nothing that they say may be missing."""
    path = tmp_path / "ledger.sqlite"
    rng = random.Random(seed)
    with Ledger.create(path, STUDY) as ledger:
        for trial in range(1, 9):
            ledger.append("proposed", Proposal({"x": trial}).to_json(), trial=trial)
        open_trials, attempts = list(range(1, 9)), dict.fromkeys(range(1, 9), 0)
        for step in range(1, 150):
            trial = rng.choice(open_trials)
            checkpoint = rng.choice([None, None, f"parcels/{trial}/{rng.randint(1, 3)}.safetensors"])
            what = rng.choice(["report"] * 5 + ["started", "ended"])
            if what == "started" or not attempts[trial]:
                attempts[trial] += 1
                started = {"lane": "a", "process": "p", "attempt": attempts[trial], "cause": rng.choice(["new", "lane"])}
                ledger.append("started", started, trial=trial)
            elif what == "report":
                metrics = {"checkpoint": 0.5 * step} if rng.random() < 0.3 else {'"checkpoint":null': 1.0 * step}
                body = {"step": step, "metrics": metrics, "score": None, "checkpoint": checkpoint, "seconds": 0.25 * step}
                ledger.append("report", body, trial=trial)
            elif len(open_trials) > 2:
                open_trials.remove(trial)
                outcome = Outcome(trial, Proposal({"x": trial}), 0.5, {}, "done", step)
                ledger.append("ended", {**outcome.to_json(), "seconds": 9.0, "checkpoint": checkpoint}, trial=trial)
            if rng.random() < 0.2:
                ledger.trials()
        expected = folded_by_hand(ledger)
        with Ledger.open(path) as other:
            for read in (ledger, other):
                assert expected == {
                    number: {
                        "attempts": row.attempts, "barren": row.barren, "reports": row.reports, "seconds": row.seconds,
                        "report": None if row.report is None else row.report.metrics, "checkpoints": list(row.checkpoints),
                    }
                    for number, row in read.trials().items()
                }


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_that_is_not_finite_gets_in(path: Path, bad: float) -> None:
    ledger = Ledger.create(path, STUDY)
    with pytest.raises(ValueError, match=r"JSON"):
        ledger.append("report", {"metrics": {"loss": bad}}, trial=1)
    assert ledger.last == 1
    assert finite({"a": bad, "b": 2}) == {"b": 2.0}


def test_kinds_are_a_closed_list(path: Path) -> None:
    ledger = Ledger.create(path, STUDY)
    with pytest.raises(ValueError, match="no kind of ledger row"):
        ledger.append("rumour", {})
    with pytest.raises(ValueError, match="one study row"):
        ledger.append("study", {})


def test_whoever_opened_last_writes_and_nobody_else(path: Path) -> None:
    """Also where the later one has written nothing yet: a number in the ledger is looked at in every transaction."""
    first = Ledger.create(path, STUDY)
    first.append("note", {"what": "a"})
    assert not first.overtaken
    second = Ledger.open(path, write=True)
    assert (first.overtaken, second.overtaken) == (True, False)
    with pytest.raises(Overtaken, match=r"ledger.sqlite over since this one began"):
        first.append("note", {"what": "b"})
    with pytest.raises(Overtaken), first.together():
        pytest.fail("nothing of it is begun")
    second.append("note", {"what": "c"})
    second.close()
    third = Ledger.open(path, write=True)
    third.append("note", {"what": "d"})
    with pytest.raises(Overtaken):
        first.append("note", {"what": "b"})
    assert [row.body["what"] for row in third.rows(after=1)] == ["a", "c", "d"]
    assert not Ledger.open(path).overtaken, "a reader takes nothing over"
    third.append("note", {"what": "e"})


def test_a_ledger_of_an_older_version_gets_its_fence(path: Path) -> None:
    Ledger.create(path, STUDY).close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE fence")
    db.close()
    first, second = Ledger.open(path, write=True), Ledger.open(path, write=True)
    second.append("note", {"what": "a"})
    assert first.overtaken


def test_a_second_study_does_not_overwrite_the_first(path: Path) -> None:
    Ledger.create(path, STUDY).close()
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(path, {"study": {"name": "other"}})
    assert Ledger.open(path).study() == STUDY


def filled(path: Path, rows: int = 300) -> bytes:
    ledger = Ledger.create(path, STUDY)
    with ledger.together():
        for n in range(rows):
            ledger.append("note", {"what": f"{n} " + "x" * 200})
    ledger.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:10],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[: len(whole) // 2 // 4096 * 4096],
        lambda whole: whole[:-1],
        lambda whole: b"\0" * len(whole),
        lambda whole: whole[:4096] + os.urandom(4096) + whole[8192:],
        lambda whole: b"not a database " * 1000,
    ],
    ids=["empty", "head", "half", "half in pages", "one byte", "zeros", "a page of noise", "text"],
)
def test_a_damaged_ledger_is_refused_with_the_way_out(path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    whole = filled(path)
    path.write_bytes(damage(whole))
    for write in (False, True):
        with pytest.raises(LedgerError, match=r"(?s)ledger.sqlite cannot be read.*backup"):
            Ledger.open(path, write=write)


def test_a_ledger_that_lacks_rows_is_refused(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM rows WHERE seq = 7")
    with pytest.raises(LedgerError, match="1 of 301 rows are missing"):
        Ledger.open(path)


def test_a_ledger_that_is_missing_is_not_made_anew(path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger at"):
        Ledger.open(path, write=True)
    assert not path.exists()


def test_another_programs_database_is_not_taken_for_a_ledger(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY)")
    with pytest.raises(LedgerError, match="no metasearch ledger"):
        Ledger.open(path)


def test_a_newer_schema_is_refused_by_name_and_number(path: Path) -> None:
    filled(path, 3)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    with pytest.raises(LedgerError, match=f"schema {SCHEMA + 1}.*reads up to {SCHEMA}.*update"):
        Ledger.open(path)


def test_every_commit_is_flushed_to_the_disk(path: Path) -> None:
    ledger = Ledger.create(path, STUDY)
    mode = "wal" if mounts.network_filesystem(path) is None else "truncate"
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == (mode,)
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_kill_9_loses_no_row_that_was_acknowledged(path: Path) -> None:
    code = (
        "import sys, pathlib; from metasearch import mounts; from metasearch.ledger import Ledger\n"
        "mounts.MOUNTS = pathlib.Path(sys.argv[2])\n"
        "ledger = Ledger.create(sys.argv[1], {'study': {}})\n"
        "while True: print(ledger.append('note', {'what': 'x' * 500}), flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path), str(mounts.MOUNTS)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().split() if line.strip()]
    process.wait()
    with Ledger.open(path, write=True) as ledger:
        assert ledger.last >= said[-1]
        assert [row.seq for row in ledger.rows()] == list(range(1, ledger.last + 1))
        ledger.append("note", {"what": "it goes on"})


def test_ten_thousand_trials_fold_in_two_seconds_and_then_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger.create(path, STUDY)
    with ledger.together():
        for n in range(1, 10_001):
            ledger.append("proposed", Proposal({"x": n, "learner": "maml", "learner.inner_lr": 0.1}, seed=n).to_json(), trial=n)
            ledger.append("started", {"lane": "a", "attempt": 1, "start": None, "own": False}, trial=n)
            ledger.append("report", {"step": 3, "metrics": {"loss": 0.5}, "score": 1.0, "checkpoint": None}, trial=n)
            ledger.append("ended", ended(n), trial=n, blob=bytes(400))
    ledger.close()
    began = time.process_time()
    again = Ledger.open(path, write=True)
    assert len(again.trials()) == 10_000
    assert time.process_time() - began < 2.0
    began = time.process_time()
    for _ in range(1000):
        again.trials()
    assert time.process_time() - began < 0.2


# -- crash points ---------------------------------------------------------------------------------------------------------


def test_a_crash_point_ends_the_process_as_kill_9_does_at_its_count() -> None:
    code = "from metasearch.crashpoint import crashpoint\nfor n in range(9):\n print(n, flush=True)\n crashpoint('letter.write')"
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "METASEARCH_CRASH_AT": "letter.write:3"}, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout.split()) == (137, ["0", "1", "2"])


def test_an_unknown_crash_point_is_an_error_in_tests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    crashpoint("nowhere")
    monkeypatch.setenv("METASEARCH_CRASH_AT", "letter.write:1")
    with pytest.raises(ValueError, match="no crash point"):
        crashpoint("nowhere")


WRITES = {"replace", "rename", "unlink", "execute"}  # what makes a file or a row durable, or takes it away
SEEN = [
    *(PACKAGE / "driver").glob("*.py"), PACKAGE / "ledger.py", PACKAGE / "objectives" / "parcel.py",
    PACKAGE / "track" / "outbox.py", PACKAGE / "track" / "mirror.py", PACKAGE / "track" / "pictures.py",
]  # fmt: skip
MAY_BE_LOST = {  # caches, leftovers and what is written to see whether one can: nothing is told of them, and they are made again
    ("snapshot.py", "save_snapshot"), ("worker.py", "_watchdog"), ("outbox.py", "write_cursor"), ("doctor.py", "_written"),
    ("folder.py", "_another"), ("folder.py", "close"),
    ("doctor.py", "_visitor"), ("doctor.py", "storage"), ("afar.py", "_must_be_shared"),
}  # fmt: skip


def _functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def _calls(function: ast.FunctionDef) -> list[ast.Call]:
    return [node for node in ast.walk(function) if isinstance(node, ast.Call)]


def _is_write(call: ast.Call) -> bool:
    """os.replace, os.rename, path.unlink, or an SQL statement that changes rows."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in WRITES:
        return False
    if call.func.attr in ("replace", "rename"):
        return isinstance(call.func.value, ast.Name) and call.func.value.id == "os"
    if call.func.attr == "execute":
        words = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else ""
        return str(words).startswith(("INSERT", "COMMIT"))
    return True


def test_every_write_that_must_survive_has_a_crash_point() -> None:
    forgotten = [
        f"{path.name}: {function.name}, line {call.lineno}"
        for path in SEEN for function in _functions(path)
        if (path.name, function.name) not in MAY_BE_LOST
        and not any(isinstance(c.func, ast.Name) and c.func.id == "crashpoint" for c in _calls(function))
        for call in _calls(function) if _is_write(call)
    ]
    assert forgotten == []


def test_every_named_crash_point_is_somewhere_in_the_code() -> None:
    used: set[str] = set()
    for path in SEEN:
        for call in (c for f in _functions(path) for c in _calls(f)):
            if isinstance(call.func, ast.Name) and call.func.id == "crashpoint":
                name = call.args[0]
                if isinstance(name, ast.Constant):
                    used.add(str(name.value))
                else:
                    assert ast.unparse(name) == "f'ledger.{kind}'"
                    used |= {f"ledger.{kind}" for kind in KINDS}
    assert used == POINTS
