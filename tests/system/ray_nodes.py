"""A Ray of nodes that are processes of their own (`ray start --block`), as on a cluster: started and stopped by a test."""
from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOKEN = secrets.token_hex(32)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def environment(token: str | None, **more: str) -> dict[str, str]:
    """Of a node, or of a command that talks to one. None: without authentication."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "METASEARCH_", "MLFLOW_"))}
    mode = {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    return {**kept, **mode, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


class Nodes:
    """`head` and `worker` start a node; all end with `close`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mst-", dir="/tmp"))  # a socket's path has at most 107 bytes
        self.processes: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def head(self, env: dict[str, str], *words: str) -> str:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self._start(env, (), "--head", f"--port={port}", f"--temp-dir={self.folder}", "--num-cpus=2", *words)
        return self.address

    def worker(self, env: dict[str, str], *words: str, inside: Sequence[str] = ()) -> None:
        """inside: a command that starts the node, such as ("unshare", "--mount")."""
        self._start(env, inside, f"--address={self.address}", "--num-cpus=1", *words)

    def kill(self, index: int) -> None:
        """A node as a power cut takes it away: every process of it at once, by SIGKILL."""
        family = [self.processes[index].pid]
        for pid in family:
            family += children(pid)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.processes[index].wait()

    def close(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, env: dict[str, str], inside: Sequence[str], *words: str) -> None:
        log = self.folder / f"node-{len(self.processes)}.log"
        ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
        options = ["--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--disable-usage-stats"]
        with log.open("wb") as out:
            self.processes.append(subprocess.Popen(
                [*inside, *ray, *options, *words], env=env, stdout=out, stderr=subprocess.STDOUT, cwd=self.folder,
                start_new_session=True,
            ))
        end = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            assert self.processes[-1].poll() is None, log.read_text()
            time.sleep(0.2)


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


@contextlib.contextmanager
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    try:
        yield made
    finally:
        made.close()


def metasearch(*words: str, env: dict[str, str], cwd: Path, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-c", "from metasearch.cli import main; main()", *words]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout)
