"""What a person, a log file and a scheduler see of a running study: real processes, on terminals and without one."""
from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import pytest
from killable import HERE

from metasearch.driver.folder import locked

STUDY = """
name = "t"
space = "{here}/counting_space.py"
[method]
name = "{here}/counting.py"
steps = 4
seconds = {seconds}
parcels = false
log = "{folder}/begun"
[budget]
trials = {trials}
[driver]
kind = "local"
[track]
enabled = false
"""


class Place:
    """A folder with studies, and what is started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[forked.Command | subprocess.Popen[bytes]]()
        self.env = {**os.environ, "METASEARCH_HOME": str(folder / "studies"), "PYTHONPATH": str(HERE.parents[1])}

    def study(self, seconds: float, trials: int) -> str:
        (self.folder / "study.toml").write_text(STUDY.format(here=HERE, folder=self.folder, seconds=seconds, trials=trials))
        return "study.toml"

    def start(self, *words: str, **env: str) -> forked.Command:
        process = forked.Command(*words, cwd=self.folder, env={**self.env, **env})
        self.processes.append(process)
        return process

    def done(self) -> int:
        try:
            return int(json.loads((self.folder / "studies" / "t" / "status.json").read_text())["done"])
        except (OSError, ValueError):
            return -1


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.05)


def test_a_study_is_watched_from_other_terminals_until_it_ends(place: Place) -> None:
    """Three watchers: without a terminal, as JSON, and one on a terminal that is left with Ctrl-C; the study does not notice."""
    study = place.start("run", place.study(0.1, 9), "--quiet")
    wait_for(lambda: place.done() >= 0)
    ours, theirs = pty.openpty()
    env = {**place.env, "TERM": "xterm"}
    terminal = forked.Command("status", "t", "--watch", cwd=place.folder, env=env, terminal=theirs)
    place.processes.append(terminal)
    plain = place.start("status", "t", "--watch", "--every", "0.2")
    lines = place.start("status", "t", "--watch", "--json", "--every", "0.2")
    seen = _read(ours, lambda said: b"done" in said)
    os.write(ours, b"\x03")
    seen += _read(ours, lambda said: False)
    assert terminal.wait(30) == 130
    assert b"\x1b[" in seen, "no live region"
    assert seen.rstrip().endswith(b"metasearch: interrupted")
    assert b"\x1b[?25h" in seen, "the cursor stays hidden"
    assert b"Traceback" not in seen

    out, said = study.communicate(timeout=120)
    assert (study.returncode, said) == (0, b""), "quiet means quiet"
    assert b"t/1" in out, "data are data"
    out, said = plain.communicate(timeout=60)
    assert (plain.returncode, said) == (0, b"")
    assert b"\x1b" not in out
    told = out.decode().splitlines()
    assert len(told) >= 2
    assert "ended: trials" in told[-1]
    assert "9 done" in told[-1]
    out, _ = lines.communicate(timeout=60)
    states = [json.loads(line) for line in out.splitlines()]
    assert [state["done"] for state in states] == sorted(state["done"] for state in states)
    assert (states[-1]["reason"], states[-1]["done"]) == ("trials", 9)


def _read(ours: int, enough: Callable[[bytes], bool]) -> bytes:
    said = b""
    while not enough(said):
        try:
            piece = os.read(ours, 65536)
        except OSError:
            break
        if not piece:
            break
        said += piece
    return said


def test_watching_takes_no_lock_opens_no_ledger_and_says_when_the_driver_is_gone(place: Place) -> None:
    study = place.start("run", place.study(0.2, 500), "--log", "json")
    wait_for(lambda: place.done() >= 1)
    bare = (
        "import fcntl, sqlite3\ndef no(*a, **k): raise AssertionError('no')\nfcntl.flock = fcntl.lockf = sqlite3.connect = no\n"
        "from metasearch.cli import main; main()"
    )
    watch = subprocess.Popen(
        [sys.executable, "-c", bare, "status", "t", "--watch"], cwd=place.folder, env=place.env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    place.processes.append(watch)
    assert watch.stdout is not None
    assert b"t: " in watch.stdout.readline()
    study.send_signal(signal.SIGKILL)
    _, said = study.communicate()
    _, told = watch.communicate(timeout=60)
    assert watch.returncode == 1
    assert b"nobody runs 't' any more; to go on: metasearch resume t" in told
    events = [json.loads(line) for line in said.splitlines()]
    assert {event["level"] for event in events} == {"info"}
    assert events[0]["message"].startswith("study 't': ")
    assert [event["status"]["name"] for event in events if "status" in event]


@pytest.mark.parametrize(
    ("number", "code"), [
        (signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 143, marks=pytest.mark.slow),
    ],
)
def test_a_second_signal_ends_at_once_what_a_first_one_asked_to_stop(
    place: Place, number: signal.Signals, code: int
) -> None:
    """A trial that does not report for an hour: one signal waits for it, two do not. As lines of JSON, by the environment."""
    study = place.start("run", place.study(3600, 2), METASEARCH_LOG="json")
    wait_for((place.folder / "begun").exists)  # handed out is too early: what has not begun is stopped without a question
    study.send_signal(number)
    events = []
    while not events or "stopping" not in events[-1]["message"]:
        events.append(json.loads(study.stderr.readline()))
    assert events[-1]["level"] == "warning"
    time.sleep(1)
    assert study.poll() is None, "one signal is a question"
    began = time.monotonic()
    study.send_signal(number)
    said = study.stderr.read()
    assert study.wait(30) == code
    assert time.monotonic() - began < 20
    events = [json.loads(line) for line in said.splitlines()]
    assert any("to go on: metasearch resume t" in event["message"] for event in events)
    assert events[-1]["exit_code"] == code
    assert events[-1]["level"] == "error"


def test_a_study_is_stopped_from_another_terminal_and_one_that_nobody_runs_is_left_alone(place: Place) -> None:
    study = place.start("run", place.study(0.2, 500))
    wait_for(lambda: place.done() >= 1)
    asked = place.start("stop", "t", "--json")
    out, said = asked.communicate(timeout=120)
    assert asked.returncode == 0, said
    assert json.loads(out) == {"study": "t", "asked": f"{study.pid} on {socket.gethostname()}", "stopped": True}
    assert b"to go on: metasearch resume t" in said
    assert study.wait(60) == 143
    again = place.start("stop", "t")
    _, said = again.communicate(timeout=60)
    assert (again.returncode, b"nobody runs 't'" in said) == (0, True)
    missing = place.start("stop", "nosuch")
    _, said = missing.communicate(timeout=60)
    assert (missing.returncode, b"there is no study 'nosuch'" in said) == (2, True)
    with locked(place.folder / "studies" / "t"):
        (place.folder / "studies" / "t" / "driver.lock").write_text('{"host": "other", "pid": 1}')
        far = place.start("stop", "t")
        _, said = far.communicate(timeout=60)
    assert (far.returncode, b"ray job stop metasearch-t" in said) == (75, True)


def test_an_error_is_said_in_quiet_and_is_an_object_where_lines_are_objects(place: Place) -> None:
    failed = place.start("--quiet", "--log", "json", "run", "study.toml", "budget.trials=0")
    _, said = failed.communicate(timeout=60)
    events = [json.loads(line) for line in said.splitlines()]
    assert failed.returncode == 2
    assert [(event["level"], event["exit_code"]) for event in events] == [("error", 2)]


@pytest.mark.parametrize("how", ["2>/dev/full", "2>&-", ">&- 2>&-", "2> >(head -1 > /dev/null)"])
def test_a_stderr_that_takes_nothing_more_ends_no_study(place: Place, how: str) -> None:
    """A log on a full disk, a stream that is closed, a reader that is gone."""
    words = f"{sys.executable} -c 'from metasearch.cli import main; main()' run {place.study(0.5, 3)}"
    done = subprocess.run(["bash", "-c", f"{words} {how}"], cwd=place.folder, env=place.env, capture_output=True, timeout=120)
    assert done.returncode == 0
    status = json.loads((place.folder / "studies" / "t" / "status.json").read_text())
    assert (status["done"], status["failed"], status["reason"]) == (3, 0, "trials")
    assert (b"t/1" in done.stdout) == (not how.startswith(">&-"))
