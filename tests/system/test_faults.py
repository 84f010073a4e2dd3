"""Faults of disks, clocks, files and other processes, one by one: nothing finished is lost, nothing runs twice, and what cannot
go on says so. The table of all faults and their tests is in docs/reliability.md."""
from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import pytest
from killable import HERE, run_or_resume, table

from metasearch import cli, mounts
from metasearch import ledger as ledgers
from metasearch.cli.failures import judged
from metasearch.driver import folder as folders
from metasearch.driver import launch
from metasearch.driver.director import Director
from metasearch.driver.folder import LockedError, locked
from metasearch.driver.messages import Assignment, Ending, StorageFailure
from metasearch.driver.study import Study
from metasearch.ledger import Ledger, LedgerError, half_written
from metasearch.objectives import parcel
from metasearch.testing.history import problems, proposals, results

TRIALS = 4


def counting(home: Path, **how: Any) -> dict[str, Any]:
    """Trials of three steps whose scores are known in advance, a parcel each step, and a line for every start and end."""
    method = {"name": str(HERE / "counting.py"), "log": str(home / "log"), "misbehave": {"2": "diverged"}, **how}
    return table(space="counting_space.py", method=method, budget={"trials": TRIALS})


def run(home: Path, **how: Any) -> launch.Result:
    """Runs the study, or goes on with it."""
    if (home / "t" / "ledger.sqlite").exists():
        return launch.resume("t", home=home)
    return launch.run(Study.from_json(counting(home, **how)), home=home)


def effects(home: Path) -> dict[int, Counter[str]]:
    """How often each trial was seen to start and to come to its end."""
    found: dict[int, Counter[str]] = {}
    for what, trial, *_ in (line.split() for line in (home / "log").read_text().splitlines()):
        found.setdefault(int(trial), Counter())[what] += 1
    return found


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study undisturbed."""
    home = tmp_path_factory.mktemp("quiet")
    assert run(home).exit_code == 0
    return home


def same_as(quiet: Path, home: Path) -> None:
    """Nothing lost, nothing run twice, the same proposals and results as undisturbed."""
    assert problems(home / "t", effects=effects(home)) == []
    assert proposals(home / "t") == proposals(quiet / "t")
    assert results(home / "t") == results(quiet / "t")


# -- disks ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [
    errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow), pytest.param(errno.EROFS, marks=pytest.mark.slow),
], ids=["full", "broken", "read-only"])
def test_a_disk_that_fails_at_the_nth_write_stops_the_study_and_a_resume_finishes_it(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """n = 1, 2, 3, ... until a study comes through: every write of a worker fails once."""
    real, stopped = os.fsync, 0
    for n in range(1, 100):
        home, count = tmp_path / str(n), 0
        home.mkdir()

        def fails(handle: int, n: int = n) -> None:
            nonlocal count
            count += 1
            if count >= n and not os.path.isdir(f"/proc/self/fd/{handle}"):
                raise OSError(number, os.strerror(number))
            real(handle)

        monkeypatch.setattr(os, "fsync", fails)
        try:
            run(home)
            monkeypatch.undo()
            same_as(quiet, home)
            break
        except StorageFailure as error:
            code, said = judged(error)
            stopped += 1
        monkeypatch.undo()
        assert code == 74
        assert os.strerror(number) in said
        assert "bytes are free" in said
        assert str(home) in said
        assert problems(home / "t", finished=False) == []
        assert not {"error", "oom"} & {status for status, _, _ in results(home / "t").values()}, "no trial is to blame"
        assert run(home).exit_code == 0
        same_as(quiet, home)
    assert stopped == n - 1 > 10, "every parcel and every letter is a write"


def test_a_ledger_that_cannot_grow_at_any_page_stops_the_study_and_a_resume_finishes_it(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = 0
    for more in range(40):
        home = tmp_path / str(more)
        home.mkdir()
        director = Director(Study.from_json(counting(home)), home / "t")
        pages = director.ledger._db.execute("PRAGMA page_count").fetchone()[0]
        director.close()

        def limited(path: Path, write: bool, most: int = pages + more, opened: Any = ledgers._connect) -> sqlite3.Connection:
            db: sqlite3.Connection = opened(path, write=write)
            db.execute(f"PRAGMA max_page_count = {most}")
            return db

        monkeypatch.setattr(ledgers, "_connect", limited)
        try:
            run(home)
            monkeypatch.undo()
            same_as(quiet, home)
            break
        except OSError as error:
            code, said = judged(error)
            stopped += 1
        monkeypatch.undo()
        assert code == 74
        assert "full" in said
        assert run(home).exit_code == 0
        same_as(quiet, home)
    assert stopped == more >= 2


@pytest.mark.slow
def test_a_file_system_that_is_full_is_exit_code_74_and_the_study_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """A real one, of 300 kB, in a mount namespace of its own."""
    study = tmp_path / "study.toml"
    study.write_text(
        f"name = 't'\nspace = '{HERE / 'tiny_space.py'}'\ntasks = {{ name = 'sinusoid', shots = 5, queries = 5 }}\n"
        "train = { report_every = 3, checkpoint_every = 3, mode = 'vmap' }\nvalidation = { episodes = 10 }\n"
        "budget = { trials = 40 }\ndriver = { kind = 'local' }\ntrack = { enabled = false }\n"
    )
    place = tmp_path / "small"
    place.mkdir()
    script = (
        f"mount -t tmpfs -o size=300k tmpfs {place} || exit 99\nexport METASEARCH_HOME={place}\n"
        f"{sys.executable} -m metasearch run {study}\necho first $?\ndf --output=avail {place}\n"
        f"mount -o remount,size=50m {place}\n{sys.executable} -m metasearch resume t\necho second $?\n"
        f"cp -r {place}/t {tmp_path}/kept"
    )
    done = subprocess.run(["unshare", "--mount", "bash", "-c", script], capture_output=True, text=True, timeout=280)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"this machine does not let a test mount a file system: {done.stderr.strip()[:100]}")
    assert "first 74" in done.stdout, done.stderr
    assert "cannot be written" in done.stderr
    assert "bytes are free" in done.stderr
    assert "second 0" in done.stdout, done.stderr
    assert problems(tmp_path / "kept") == []


# -- locks and two drivers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forks() -> Any:
    return forked.server()


def _hold(path: str, seconds: float, held: Any) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN EXCLUSIVE")
    held.set()
    time.sleep(seconds)
    db.execute("ROLLBACK")
    db.close()


@pytest.mark.parametrize(("seconds", "patience"), [(1.0, 20.0), (30.0, 0.5)], ids=["for a moment", "for too long"])
def test_a_ledger_that_another_process_holds_is_waited_for_and_then_it_is_try_again(
    forks: Any, quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, patience: float
) -> None:
    Director(Study.from_json(counting(tmp_path)), tmp_path / "t").close()
    held = forks.Event()
    other = forks.Process(target=_hold, args=(str(tmp_path / "t" / "ledger.sqlite"), seconds, held))
    other.start()
    assert held.wait(60)
    monkeypatch.setattr(ledgers, "PATIENCE", patience)
    began = time.monotonic()
    if patience > seconds:
        assert run(tmp_path).exit_code == 0
        assert time.monotonic() - began > 0.5
    else:
        with pytest.raises(sqlite3.OperationalError) as error:
            run(tmp_path)
        assert judged(error.value)[0] == 75
        other.kill()
        assert run(tmp_path).exit_code == 0
    other.join()
    same_as(quiet, tmp_path)


def finished(said: Assignment) -> Ending:
    return Ending(said.trial, "done", score=1.0, step=3)


def test_a_driver_that_was_overtaken_is_refused_at_its_next_write_and_the_history_is_one(tmp_path: Path) -> None:
    """Two machines on a file system whose locks do not hold: the second breaks in, the first is a zombie."""
    folder = tmp_path / "t"
    study = Study.from_json(counting(tmp_path))
    first = Director(study, folder)
    mine = first.next("a", "first")
    assert isinstance(mine, Assignment)
    (folder / "driver.lock").unlink()  # what a lock that is not shared looks like
    second = Director(study, folder)
    theirs = second.next("a", "second")
    assert isinstance(theirs, Assignment)
    assert theirs.trial == mine.trial
    with pytest.raises(LockedError, match=r"another driver has taken .* over since this one began.*status t") as error:
        first.next("a", "first", replace(finished(mine), score=-1.0))
    assert judged(error.value)[0] == 75
    said: Any = theirs
    while isinstance(said, Assignment):
        said = second.next("a", "second", finished(said))
    second.close()
    first.close()
    assert problems(folder) == []
    assert {score for _, score, _ in results(folder).values()} == {1.0}, "a zombie's words came into the history"


def test_a_driver_that_is_paused_keeps_its_study_and_goes_on(forks: Any, quiet: Path, tmp_path: Path) -> None:
    child = forks.Process(target=run_or_resume, args=(counting(tmp_path, seconds=0.1), str(tmp_path), None))
    child.start()
    until = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGSTOP)
    try:
        with pytest.raises(LockedError, match=f"process {child.pid} on "):
            launch.resume("t", home=tmp_path)
    finally:
        os.kill(child.pid, signal.SIGCONT)
    child.join(60)
    assert child.exitcode == 0
    same_as(quiet, tmp_path)


def elsewhere(mounted: str, study: dict[str, Any], home: str) -> None:
    """A driver on another machine, for all that this one knows; its last words go into a file."""
    mounts.MOUNTS = Path(mounted)
    folders.BEAT = 0.1
    socket.gethostname = lambda: "other"
    try:
        run_or_resume(study, home, None)
    except BaseException as error:
        Path(home, "words").write_text(str(error))
        sys.exit(judged(error)[0])


def free(path: Path) -> bool:
    """Is nobody in the middle of a write?"""
    db = sqlite3.connect(path, timeout=0.1, isolation_level=None)
    with contextlib.closing(db):
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True


def test_a_study_is_taken_over_from_a_driver_that_is_silent_and_when_he_comes_back_he_writes_nothing(
    forks: Any, quiet: Path, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "BEAT", 0.1)
    monkeypatch.setattr(folders, "STALE", 3.0)
    folder = tmp_path / "t"
    child = forks.Process(target=elsewhere, args=(str(network), counting(tmp_path, seconds=0.3), str(tmp_path)))
    child.start()
    until = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < until:
        time.sleep(0.02)
    with pytest.raises(LockedError, match=rf"process {child.pid} on other .*a sign of itself"):
        launch.resume("t", home=tmp_path, steal=True)
    os.kill(child.pid, signal.SIGSTOP)
    try:
        while not free(folder / "ledger.sqlite") and time.monotonic() < until:
            os.kill(child.pid, signal.SIGCONT)
            time.sleep(0.05)
            os.kill(child.pid, signal.SIGSTOP)
        time.sleep(3.2)
        with pytest.raises(LockedError, match=r"machine is gone: metasearch resume t --steal"):
            launch.resume("t", home=tmp_path)
        assert launch.resume("t", home=tmp_path, steal=True).exit_code == 0
        kept = ("ledger.sqlite", "status.json", "driver.lock")
        before = {name: (folder / name).read_bytes() for name in kept}
    finally:
        os.kill(child.pid, signal.SIGCONT)
    child.join(60)
    assert child.exitcode == 75
    words = (tmp_path / "words").read_text()
    assert words.startswith("another driver has taken ")
    assert "metasearch status t" in words
    assert {name: (folder / name).read_bytes() for name in kept} == before, "a zombie wrote"
    assert problems(folder) == []
    assert proposals(folder) == proposals(quiet / "t")
    assert results(folder) == results(quiet / "t")


# -- files that are damaged ----------------------------------------------------------------------------------------------------


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


HARMS: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda data: b"", "half": half, "all but one byte": lambda data: data[:-1], "gone": lambda data: None,
    "a byte is flipped": lambda data: half(data) + bytes([data[len(data) // 2] ^ 0x40]) + data[len(data) // 2 + 1 :],
    "noise": lambda data: random.Random(0).randbytes(len(data)),
}  # fmt: skip
FILES = (
    "ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "parcels/3/2.safetensors", "parcels/3/*", "parcels/1/*",
    "letters/1.json", "letters/*", "status.json", "driver.lock",
)  # fmt: skip


@pytest.fixture(scope="module")
def killed(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was killed in its third trial, after the second parcel."""
    home = tmp_path_factory.mktemp("killed")
    child = forks.Process(target=run_or_resume, args=(counting(home), str(home), "parcel.write:7"))
    child.start()
    child.join(60)
    assert child.exitcode == 137
    with Ledger.open(home / "t" / "ledger.sqlite") as ledger:
        assert (ledger.trials()[3].status, len(ledger.trials()[3].checkpoints)) == ("running", 2)
    assert (home / "t" / "ledger.sqlite-wal").stat().st_size > 0
    return home


def folder_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_whatever_file_is_damaged_the_study_is_refused_in_words_or_ends_as_undisturbed(
    quiet: Path, killed: Path, tmp_path: Path, name: str, harm: str
) -> None:
    """Never a fresh start, never a wrong result, never a finished trial again."""
    home = tmp_path / "home"
    shutil.copytree(killed, home)
    for path in (home / "t").glob(name):
        damaged = HARMS[harm](path.read_bytes())
        path.unlink() if damaged is None else path.write_bytes(damaged)
    before = folder_of(home / "t")
    refused: LedgerError | None = None
    try:
        assert run(home).exit_code == 0
    except LedgerError as error:
        refused = error
    if refused is not None:
        assert name.startswith("ledger.sqlite"), f"{name} is no reason to stop: {refused}"
        assert judged(refused)[0] == 65
        assert "backup" in str(refused), "the way out"
        after = folder_of(home / "t")
        for file in before:
            if not file.startswith(("ledger.sqlite" if "-" in name else "ledger.sqlite-", "log", "driver.")):
                assert after[file] == before[file], f"{file} was changed"
        return
    assert [problem for problem in problems(home / "t") if not problem.endswith("is no letter of a trial")] == []
    assert proposals(home / "t") == proposals(quiet / "t")
    assert results(home / "t") == results(quiet / "t")
    assert effects(killed)[1] == {"start": 1, "end": 1}, "a finished trial ran again"


# -- a file system that several machines share ---------------------------------------------------------------------------------


def over_a_network(mounted: str, study: dict[str, Any], home: str, crash_at: str | None) -> None:
    mounts.MOUNTS = Path(mounted)
    run_or_resume(study, home, crash_at)


def run_over_a_network(forks: Any, network: Path, home: Path, crash_at: str | None = None) -> int:
    child = forks.Process(target=over_a_network, args=(str(network), counting(home), str(home), crash_at))
    child.start()
    child.join(60)
    return int(child.exitcode)


@pytest.mark.parametrize("point", ["ledger.study:1", "ledger.commit:1", "ledger.commit:2", "ledger.commit:9", "ledger.ended:2",
                                   "ledger.committed:1", "ledger.committed:9", "ledger.stopped:1"])
def test_a_driver_killed_over_a_network_comes_back_to_the_same_history(
    forks: Any, quiet: Path, network: Path, tmp_path: Path, point: str
) -> None:
    assert run_over_a_network(forks, network, tmp_path, point) == 137
    assert not list((tmp_path / "t").glob("*-wal")), "machines share no memory"
    assert run_over_a_network(forks, network, tmp_path) == 0
    same_as(quiet, tmp_path)


def half_a_write(mounted: str, path: str) -> None:
    mounts.MOUNTS = Path(mounted)
    ledger = Ledger.open(path, write=True)
    ledger._db.execute("PRAGMA cache_size = 2")  # pages go into the file before the commit
    with ledger.together():
        for number in range(99):
            ledger.append("note", {"what": "x" * 3000, "number": number})
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def torn(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study over a network whose driver was killed in the middle of a write."""
    home = tmp_path_factory.mktemp("torn")
    told = home.with_name("torn.mountinfo")
    told.write_text(f"1 0 0:50 / {home} rw - nfs4 server:/export rw\n")
    assert run_over_a_network(forks, told, home, "ledger.commit:9") == 137
    child = forks.Process(target=half_a_write, args=(str(told), str(home / "t" / "ledger.sqlite")))
    child.start()
    child.join(60)
    assert half_written(home / "t" / "ledger.sqlite")
    return home


@pytest.mark.parametrize("harm", [*HARMS, None])
def test_whatever_becomes_of_a_journal_the_study_is_refused_in_words_or_ends_as_undisturbed(
    quiet: Path, network: Path, torn: Path, tmp_path: Path, harm: str | None
) -> None:
    shutil.copytree(torn, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "t" / "ledger.sqlite-journal"
    damaged = path.read_bytes() if harm is None else HARMS[harm](path.read_bytes())
    path.unlink() if damaged is None else path.write_bytes(damaged)
    refused: LedgerError | None = None
    try:
        assert run(tmp_path).exit_code == 0
    except LedgerError as error:
        refused = error
    if refused is not None:
        assert harm is not None
        assert judged(refused)[0] == 65
        assert "backup" in str(refused), "the way out"
        return
    assert problems(tmp_path / "t") == []
    assert proposals(tmp_path / "t") == proposals(quiet / "t")
    assert results(tmp_path / "t") == results(quiet / "t")


def test_a_command_that_looks_takes_half_a_write_back_where_nobody_works_on_the_study(
    network: Path, torn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(torn, tmp_path, dirs_exist_ok=True)
    look = ["status", "t", "--home", str(tmp_path)]
    with locked(tmp_path / "t"):
        assert cli.call(look) == 65
    assert "killed in the middle of a write" in capsys.readouterr().err
    assert cli.call(look) == 0
    assert not half_written(tmp_path / "t" / "ledger.sqlite")


# -- clocks --------------------------------------------------------------------------------------------------------------------

HOUR = 3600.0
CLOCKS: dict[str, Callable[[int, float], float]] = {
    "an hour forward in the middle": lambda n, now: now + HOUR * (n > 12),
    "an hour back in the middle": lambda n, now: now - HOUR * (n > 12),
    "it runs backwards": lambda n, now: now - 100.0 * n,
    "1970": lambda n, now: 0.0,
    "2038 and on": lambda n, now: 2.0**31 + n,
    "any": lambda n, now: random.Random(n).uniform(0, 4e9),
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_clock_that_jumps_changes_no_result_no_order_and_no_time(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    real, calls = time.time, 0

    def wrong() -> float:
        nonlocal calls
        calls += 1
        return CLOCKS[clock](calls, real())

    shown: list[Any] = []
    study = counting(tmp_path)
    study["budget"] = {"trials": TRIALS, "hours": 0.5}
    monkeypatch.setattr(time, "time", wrong)
    launch.run(Study.from_json(study), home=tmp_path, show=shown.append)
    monkeypatch.undo()
    assert calls > 20
    same_as(quiet, tmp_path)
    assert all(status.eta_seconds is None or 0 <= status.eta_seconds <= 0.5 * HOUR for status in shown)
    assert all(0 <= status.elapsed_seconds < 300 for status in shown)
    with Ledger.open(tmp_path / "t" / "ledger.sqlite") as ledger:
        assert all(0 <= trial.seconds < 300 for trial in ledger.trials().values())


def test_a_study_that_is_gone_on_with_in_another_time_zone_is_the_same(
    forks: Any, quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = forks.Process(target=run_or_resume, args=(counting(tmp_path), str(tmp_path), "ledger.committed:8"))
    child.start()
    child.join(60)
    assert child.exitcode == 137
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        assert run(tmp_path).exit_code == 0
    finally:
        monkeypatch.undo()
        time.tzset()
    same_as(quiet, tmp_path)


# -- numbers that are none -----------------------------------------------------------------------------------------------------

ODD = {"nan": "nan", "inf": "inf", "-inf": "-inf"}


@pytest.mark.parametrize("at", ["score 1", "score 3", "metric 1", "metric 2", "episodes 3"])
@pytest.mark.parametrize("value", ODD)
def test_a_number_that_is_not_finite_is_a_divergence_with_its_step_and_never_on_top(
    tmp_path: Path, at: str, value: str
) -> None:
    home = tmp_path
    study = counting(home, misbehave={"2": f"{value} {at}"})
    result = launch.run(Study.from_json(study), home=home)
    assert (result.status.done, result.status.diverged) == (TRIALS - 1, 1)
    with Ledger.open(home / "t" / "ledger.sqlite") as ledger:
        outcome = ledger.trials()[2].outcome
    assert outcome is not None
    assert (outcome.status, outcome.score, outcome.step) == ("diverged", None, int(at.split()[1]))
    assert (outcome.reason or "").startswith(f"step {outcome.step}: ")
    assert problems(home / "t") == []
    assert result.status.best_trial != 2
    json.loads((home / "t" / "status.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.mark.parametrize(("what", "said"), [
    ("none score 3", "has no score"), ("text metric 2", "could not convert"), ("none metric 2", "TypeError"),
])
def test_what_is_no_number_at_all_is_the_trials_own_error(tmp_path: Path, what: str, said: str) -> None:
    result = launch.run(Study.from_json(counting(tmp_path, misbehave={"2": what})), home=tmp_path)
    assert (result.status.done, result.status.failed) == (TRIALS, 1)
    with Ledger.open(tmp_path / "t" / "ledger.sqlite") as ledger:
        outcome = ledger.trials()[2].outcome
    assert outcome is not None
    assert outcome.status == "error"
    assert said in (outcome.reason or "")
    assert problems(tmp_path / "t") == []


# -- hostile names, pickles, secrets -------------------------------------------------------------------------------------------

NAMES = [
    "../../canary", "/canary", "a/../../canary", "~root", "C:\\canary", "-rf", "canary\n", "\x1b[31mcanary", "x" * 300,
    "c\u0430nary", ".", "..",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_hostile_name_is_refused_wherever_it_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    home = tmp_path / "inside" / "studies"
    home.mkdir(parents=True)
    (tmp_path / "study.toml").write_text(
        "name = 'good'\nspace = 'sine-mlp'\ntasks = { name = 'sinusoid' }\nbudget = { trials = 1 }\n"
    )
    monkeypatch.chdir(tmp_path / "inside")
    monkeypatch.setenv("METASEARCH_HOME", str(home))
    before = {str(path) for path in tmp_path.rglob("*")}
    study, word = str(tmp_path / "study.toml"), json.dumps(name)
    for words in (
        ["run", study, f"name={word}"], ["run", study, f"space={word}"], ["run", study, f"method.name={word}"],
        ["run", study, f"tasks.name={word}"], ["run", study, f"train.start={json.dumps(name + '/1')}"], ["run", "--", name],
        ["resume", "--", name], ["status", "--", name], ["leaderboard", "--source", "ledger", "--", name], ["show", "--", name],
        ["evaluate", "--", f"{name}/1"], ["export", "--", f"{name}/1", "out"], ["clean", "--yes", "--", name],
        ["sync", "--", name], ["stop", "--", name], ["compare", "--", name, name],
    ):
        assert cli.call(words) == 2, words
        said = capsys.readouterr().err
        assert said.startswith("metasearch: ")
        assert "Traceback" not in said
        assert "\x1b" not in said, "a terminal could be steered"
    assert {str(path) for path in tmp_path.rglob("*")} == before
    assert not Path("/canary").exists()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_no_file_of_a_study_is_ever_unpickled(quiet: Path, killed: Path, tmp_path: Path, protocol: str) -> None:
    import pickle

    import torch

    home, canary = tmp_path / "home", tmp_path / "canary"
    shutil.copytree(killed, home)
    body = io.BytesIO()
    torch.save({"x": Bomb(canary)}, body) if protocol == "torch" else pickle.dump(Bomb(canary), body)
    places = [*(home / "t" / "parcels").glob("*/*"), *(home / "t" / "letters").glob("*.json")]
    more = ("strategy.json", "status.json", "outbox.json", ".tune/tuner.pkl", ".tune/experiment_state-2031-01-01_00-00-00.json")
    for path in (*places, *(home / "t" / name for name in more)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(body.getvalue())
    assert run(home).exit_code == 0
    assert proposals(home / "t") == proposals(quiet / "t")
    assert results(home / "t") == results(quiet / "t")
    for path in (home / "t" / "parcels").glob("*/*.safetensors"):
        if path.read_bytes() == body.getvalue():
            with pytest.raises(parcel.BadParcel, match="cannot be read as a parcel"):
                parcel.read(path)
    (tmp_path / "ledger.sqlite").write_bytes(body.getvalue())
    with pytest.raises(LedgerError, match="cannot be read"):
        Ledger.open(tmp_path / "ledger.sqlite")
    assert not canary.exists()


SECRETS = {
    "MLFLOW_TRACKING_TOKEN": "canary-of-mlflow", "AWS_SECRET_ACCESS_KEY": "canary-of-aws", "RAY_AUTH_TOKEN": "canary" * 8,
    "MLFLOW_TRACKING_PASSWORD": "canary-password", "MY_API_KEY": "canary-of-mine",
}  # fmt: skip
LEAKY = """
import os
import traceback
from metasearch import strategies

def method(study):
    return strategies.build("random", study.space(), {}, seed=study.seed), objective

def objective(proposal, trial):
    raise RuntimeError(f"cannot log in to https://me:canary-in-a-url@host with {dict(os.environ)}")
    yield
"""


def test_no_secret_is_in_any_file_or_word_when_everything_fails(tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    study = tmp_path / "study.toml"
    study.write_text(
        f"name = 't'\nspace = '{HERE / 'counting_space.py'}'\nmethod = {{ name = '{tmp_path / 'leaky.py'}' }}\n"
        "budget = { trials = 3 }\ndriver = { kind = 'local', max_errors = 2 }\n"
    )
    home = tmp_path / "studies"
    uri = "http://me:canary-in-a-uri@127.0.0.1:9"
    env = {**os.environ, **SECRETS, "METASEARCH_HOME": str(home), "MLFLOW_TRACKING_URI": uri}
    done = []
    for words in (["run", str(study), "--json"], ["show", "t"], ["sync", "t"]):
        done.append(forked.run("-v", *words, env=env, cwd=tmp_path, timeout=200))
        if words[0] == "run":  # its outbox, which goes on trying
            os.kill(int((home / "t" / "outbox.lock").read_text().split()[0]), signal.SIGTERM)
    assert done[0].returncode in (3, 4), done[0].stderr
    assert b"cannot log in" in done[1].stdout, "the trial's words are shown, without what must not be"
    assert done[2].returncode == 69, "nobody answers"
    said = [text.decode() for one in done for text in (one.stdout, one.stderr)]
    files = {str(path): path.read_bytes().decode("utf-8", "replace") for path in home.rglob("*") if path.is_file()}
    assert any(path.endswith("outbox.log") for path in files)
    heard = zip(("run", "run's talk", "show", "show's talk", "sync", "sync's talk"), said, strict=True)
    for name, text in [*files.items(), *heard]:
        for secret in (*SECRETS.values(), "canary-in-a-url", "canary-in-a-uri"):
            assert secret not in text, f"{secret} is in {name}: ...{text[max(0, text.find(secret) - 100) : text.find(secret)]}"


# -- files that are code -------------------------------------------------------------------------------------------------------

SPACE = "from metasearch.space import Float, Space\n{more}\nSPACE = Space({{'lr': Float(0.1, 1.0)}})\n"


@pytest.mark.parametrize(("more", "code"), [
    ("import os; os.chdir('/')", 0), ("print('x' * 10_000_000)", 0), ("raise SystemExit(0)", 2),
    ("raise KeyboardInterrupt", 130), ("1 / 0", 2), ("", 0),
])
def test_a_space_file_that_misbehaves_changes_nothing_for_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, code: int
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SPACE.format(more=more))
    before = (os.getcwd(), list(sys.path), dict(os.environ))
    assert cli.call(["spaces", "show", str(file), "--json"]) == code
    out = capsys.readouterr().out
    assert code or json.loads(out), "what it printed is not among the data"
    assert (os.getcwd(), list(sys.path), dict(os.environ)) == before

