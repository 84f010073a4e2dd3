"""Processes that begin with everything imported: forked from a server, a command costs what it does, not five seconds of imports.

There is one server for all files of tests that run in one process, so what it imports is said once, here.
"""
from __future__ import annotations

import atexit
import contextlib
import fcntl
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

IMPORTED = [
    "torch", "torch._dynamo", "torch.utils.flop_counter", "metasearch.driver.launch", "metasearch.driver.local",
    "metasearch.objectives.train", "metasearch.objectives.episodic", "metasearch.tasks.sinusoid", "metasearch.cli",
    "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking", "pandas", "pyarrow.parquet", "matplotlib.figure",
]


def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


class Command:
    """`metasearch WORDS`, with pipes for what it says, or on a terminal; behaves as subprocess.Popen does."""

    def __init__(self, *words: str, cwd: Path, env: Mapping[str, str], terminal: int | None = None) -> None:
        """terminal: the descriptor of one, which becomes the process's own; it is closed here."""
        (out, theirs), (err, errors) = os.pipe(), os.pipe()
        sent = [_Sent(theirs), _Sent(errors), None if terminal is None else _Sent(terminal)]
        self._process = server().Process(target=_command, args=(words, str(cwd), dict(env), *sent))
        self._process.start()
        for descriptor in (theirs, errors, terminal):
            if descriptor is not None:
                os.close(descriptor)
        self.stdout, self.stderr = io.BufferedReader(io.FileIO(out)), io.BufferedReader(io.FileIO(err))
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("metasearch", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Everything that it still says, and its end."""
        said = [b"", b""]

        def hear(number: int, pipe: io.BufferedReader) -> None:
            if not pipe.closed:
                with pipe:
                    said[number] = pipe.read()

        ears = [threading.Thread(target=hear, args=pair, daemon=True) for pair in enumerate((self.stdout, self.stderr))]
        for ear in ears:
            ear.start()
        self.wait(timeout)
        for ear in ears:
            ear.join()
        return said[0], said[1]


def run(*words: str, cwd: Path, env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[bytes]:
    """A command to its end, as subprocess.run tells of it."""
    process = Command(*words, cwd=cwd, env=env)
    try:
        out, err = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(words, process.wait(), out, err)


class _Sent:
    """A descriptor that arrives with the process that is started, under another number."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        return _received, (DupFd(self.descriptor),)


def _received(sent: Any) -> int:
    return int(sent.detach())


def _command(words: tuple[str, ...], cwd: str, env: dict[str, str], out: int, err: int, terminal: int | None) -> None:
    if terminal is not None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)  # Ctrl-C reaches whoever has the terminal
    for number, pipe in enumerate((None, out, err)):
        if (descriptor := pipe if terminal is None else terminal) is not None:
            os.dup2(descriptor, number)
    for descriptor in (out, err, terminal):
        if descriptor is not None:
            os.close(descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["metasearch", *words]
    from metasearch.cli import main

    try:
        main()
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()  # a process of multiprocessing ends without them
