"""Who may write in a study's folder: one process, until it is gone; and who may take it from whom."""
from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metasearch.driver import folder as folders
from metasearch.driver.folder import Held, LockedError, held_by, lock, locked, must_be_free, must_be_gone


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's folder, whose drivers give ten signs a second and are given up after one."""
    monkeypatch.setattr(folders, "BEAT", 0.1)
    monkeypatch.setattr(folders, "STALE", 1.0)
    return tmp_path


def as_if_elsewhere(folder: Path) -> None:
    (folder / "driver.lock").write_text(json.dumps({"host": "other", "pid": 7, "since": "now"}))


def silenced(held: Held) -> Held:
    """Its process is stopped, or its machine is gone, as others see it; the server keeps its lock."""
    held._ended.set()
    return held


def aged(folder: Path, seconds: float) -> None:
    now = time.time() - seconds
    os.utime(folder / "driver.beat", (now, now))


def test_a_driver_gives_signs_of_itself_until_it_ends_in_order(here: Path) -> None:
    with locked(here):
        first = folders._seen(here)
        assert first is not None
        until = time.monotonic() + 10
        while folders._seen(here) == first and time.monotonic() < until:
            time.sleep(0.01)
        assert folders._seen(here) != first
    assert folders._seen(here) is None
    assert held_by(here) is None


def test_who_gives_signs_is_not_robbed_and_it_is_said_how_long_to_wait(here: Path) -> None:
    held = silenced(lock(here))
    as_if_elsewhere(here)
    aged(here, 0.4)
    with pytest.raises(LockedError, match=r"process 7 on other.*a sign of itself 0 s ago.*none for 1 s.*try again in 2 s"):
        lock(here, steal=True)
    with pytest.raises(LockedError, match=rf"process 7 on other.*machine is gone: metasearch resume {here.name} --steal"):
        lock(here)
    aged(here, 2.0)
    mine = lock(here, steal=True)
    assert held_by(here) == f"{os.getpid()} on {socket.gethostname()}"
    assert held.beat() is False, "a thief's signs are not the old driver's"
    held.close()
    assert folders._seen(here) is not None, "what is the thief's stays"
    with pytest.raises(LockedError, match=f"process {os.getpid()}"):
        lock(here)
    mine.close()
    lock(here).close()


def test_a_living_process_of_this_machine_is_never_robbed(here: Path) -> None:
    code = ("import sys, time; from pathlib import Path; from metasearch.driver.folder import lock\n"
            "held = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code, str(here)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        aged(here, 1000.0)
        for take in (lambda: lock(here, steal=True), lambda: must_be_gone(here)):
            with pytest.raises(LockedError, match=rf"process of this machine, and lives: stop it \(kill -INT {other.pid}"):
                take()
    finally:
        other.kill()
        other.wait()
    lock(here, steal=True).close()


def test_that_somebody_works_there_is_said_before_anything_slow_is_done(here: Path) -> None:
    """A second driver is refused without torch, Ray, or a look at the ledger."""
    code = ("import sys; from pathlib import Path; from metasearch.driver import launch\n"
            "from metasearch.driver.folder import LockedError\n"
            "try: launch.resume('t', home=Path(sys.argv[1]))\n"
            "except LockedError as error: print(error, sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))")
    (here / "t").mkdir()
    must_be_free(here / "t")
    with locked(here / "t"):
        said = subprocess.run([sys.executable, "-c", code, str(here)], capture_output=True, text=True, check=True, timeout=60)
        assert f"study 't' is being run by process {os.getpid()} on" in said.stdout, said
        assert said.stdout.endswith("[]\n")
    must_be_free(here / "t")


def test_what_a_dead_driver_has_left_behind_is_not_yet_a_refusal(here: Path) -> None:
    with locked(here, owner=2**22 - 1):  # a pid that no process has
        must_be_free(here)
        as_if_elsewhere(here)
        with pytest.raises(LockedError, match="process 7 on other"):
            must_be_free(here)


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)


def keeps(folder: Path, stop: threading.Event) -> None:
    while not stop.wait(0.05):
        os.utime(folder / "driver.beat")


@pytest.mark.parametrize("lives", [True, False])
def test_where_locks_do_not_hold_signs_do(here: Path, monkeypatch: pytest.MonkeyPatch, lives: bool) -> None:
    """A lock that ends at the machine looks free to all others."""
    without_locks(monkeypatch)
    monkeypatch.setattr(folders, "STALE", 60.0)
    as_if_elsewhere(here)
    (here / "driver.beat").write_text("")
    stop = threading.Event()
    other = threading.Thread(target=keeps, args=(here, stop))
    if lives:
        other.start()
        try:
            with pytest.raises(LockedError, match=r"process 7 on other.*locks do not hold between the two machines"):
                lock(here)
        finally:
            stop.set()
            other.join()
    else:
        began = time.monotonic()
        lock(here).close()
        assert 0.2 < time.monotonic() - began < 60.0, "it was waited for"


@pytest.mark.parametrize("left", [lambda path: path.unlink(), lambda path: path.write_text("?")], ids=["nothing", "noise"])
def test_a_lock_file_that_says_nothing_is_no_reason_to_refuse(here: Path, left: Callable[[Path], object]) -> None:
    lock(here).close()
    left(here / "driver.lock")
    must_be_gone(here)
    lock(here, steal=True).close()
