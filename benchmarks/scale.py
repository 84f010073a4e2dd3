"""Ten thousand trials: what the driver costs a trial, its memory, the ledger, the leaderboard, coming back, calls to MLflow.

    python benchmarks/scale.py                       all of it, about twenty minutes, most of which is sleep
    python benchmarks/scale.py director ledger --trials 1000

lanes     16 worker processes under Ray Tune on 16 simulated CPUs, a ledger that is flushed for every trial. Trials sleep for
          --seconds (Ray's own release test has 10,000 of 1 s, which may take 800 s instead of 625), and once for no time at all,
          where the machine's cores are all that limits. The clock starts before director and lanes do and stops at the last row.
director  The same without Ray and without trials: a director and its ledger in this process, one report a trial.
ledger    A study of that many trials with ten reports and the scores of 200 episodes each: reading it, its leaderboard, and a
          director on it that was killed, until it has handed out the next trial. Each in a process of its own.
calls     Requests that a real MLflow server gets, counted by a proxy, from Ray's callback and from us: ten reports a trial, two
          metrics a report; ours once with reports that follow each other at once and once --apart seconds apart.
mlflow    The leaderboard of that many runs in three studies, out of an MLflow on SQLite: 50 of each are sent, the others copied.
"""
from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from _report import Case, Options, Row, benchmark

HERE = Path(__file__).resolve().parent
LANES = 16
REPORTS, EPISODES = 10, 200
STUDIES = 3  # between which the runs in MLflow are divided
SENT = 50  # trials of each that are really sent; the others are copies of these, made in the database
TARGET = 8.0  # ms a trial
TUNE = "Ray 2.60, release/tune_tests, bookkeeping_overhead: (800 s - 625 s) / 10,000"
WANTED = "what it may be"
CALLBACK = "ray.air MLflowLoggerCallback, this run"


def study(trials: int, *, seconds: float = 0.0, reports: int = 1, lanes: int = LANES, name: str = "nothing") -> Any:
    from metasearch.driver.study import Study

    method = {"name": str(HERE / "_nothing.py"), "seconds": seconds, "reports": reports}
    return Study.from_json({
        "name": name, "space": str(HERE / "_nothing.py"), "method": method, "budget": {"trials": trials},
        "driver": {"kind": "ray", "lanes": lanes, "cpus": 1}, "track": {"enabled": False},
    })  # fmt: skip


def cases(options: Options) -> Iterator[Case]:
    trials, seconds, lanes, apart = (getattr(options.extra, name) for name in ("trials", "seconds", "lanes", "apart"))
    if "director" in options.what:
        yield Case({"what": "director", "trials": trials}, lambda: director_rows(trials))
    if "ledger" in options.what:
        yield Case({"what": "ledger", "trials": trials}, lambda: ledger_rows(trials))
    if "calls" in options.what:
        told = options.extra.told
        yield Case({"what": "calls", "trials": told, "apart": apart}, lambda: call_rows(told, apart))
    if "mlflow" in options.what:
        yield Case({"what": "mlflow", "trials": trials}, lambda: mlflow_rows(trials))
    if "lanes" in options.what:
        for each in seconds:
            yield Case(
                {"what": "lanes", "trials": trials, "sleeps": each, "lanes": lanes},
                lambda each=each: lane_rows(trials, each, lanes),  # type: ignore[misc]
            )


# -- lanes ---------------------------------------------------------------------------------------------------------------------


def lane_rows(trials: int, seconds: float, lanes: int) -> Iterator[Row]:
    from metasearch.driver.lanes import RayLanes
    from metasearch.driver.status import Status
    from metasearch.ledger import Ledger
    from metasearch.testing.history import problems

    memory: dict[int, tuple[float, float]] = {}

    def look(status: Status) -> None:
        for mark in marks(trials):
            if status.used >= mark and mark not in memory:
                memory[mark] = resident(os.getpid()), resident(actor())

    with one_ray(lanes), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        folder = Path(home) / "nothing"
        folder.mkdir()
        began = time.time()
        with RayLanes(study(trials, seconds=seconds, lanes=lanes), folder, {}) as session:
            session.run(look)
            look(session.status())
        with Ledger.open(folder / "ledger.sqlite") as ledger:
            ends = [row.at - began for row in ledger.rows(kinds=["ended"])]
        if (found := problems(folder)) or len(ends) != trials:
            raise RuntimeError(f"{len(ends)} of {trials} trials ended; {found}")
    ideal, wall = trials * seconds / lanes, ends[-1]
    told = {"wall_s": round(wall, 1), "ideal_s": round(ideal, 1), "start_s": round(ends[0] - seconds, 1)}
    yield Row("(wall - ideal) / trials", 1e3 * (wall - ideal) / trials, TARGET, WANTED, "ms", "lower", conditions=told)
    yield Row("the same, against Ray Tune's bar", 1e3 * (wall - ideal) / trials, 17.5, TUNE, "ms", "lower")
    yield from linear(ends)
    for who, at in (("driver", 0), ("director", 1)):
        yield grown(f"memory of the {who}", {mark: found[at] for mark, found in memory.items()})


@contextlib.contextmanager
def one_ray(cpus: int) -> Iterator[None]:
    import ray

    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=cpus, object_store_memory=100 * 2**20, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


def marks(trials: int) -> tuple[int, ...]:
    """The trials after which memory is measured: a tenth, half, all."""
    return trials // 10, trials // 2, trials


def actor() -> int:
    """The process of the director, among those that this one's Ray has started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    for pid in parents:
        with contextlib.suppress(OSError):
            if b"ray::_Actor" in Path(f"/proc/{pid}/cmdline").read_bytes() and os.getpid() in _ancestors(pid, parents):
                return pid
    raise RuntimeError("there is no director")


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


def resident(pid: int) -> float:
    """MiB of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def linear(ends: list[float]) -> Iterator[Row]:
    """Whether the last tenth costs more than the first one after the start."""
    tenth = max(2, len(ends) // 10)
    first, last = ends[tenth - 1] - ends[0], ends[-1] - ends[-tenth]
    yield Row("last tenth / first tenth", last / first, 1.5, WANTED, "", "lower",
              conditions={"first_s": round(first, 2), "last_s": round(last, 2)})  # fmt: skip


def grown(what: str, memory: dict[int, float]) -> Row:
    """Growth from the first mark to the last."""
    seen = sorted(memory)
    told = {f"at_{mark}": round(memory[mark], 1) for mark in seen}
    trials = max(1, seen[-1] - seen[0])
    told["kB_a_trial"] = round(1024 * (memory[seen[-1]] - memory[seen[0]]) / trials, 2)
    return Row(f"{what}, growth", memory[seen[-1]] - memory[seen[0]], 500.0, WANTED, "MiB", "lower", conditions=told)


# -- the director alone --------------------------------------------------------------------------------------------------------


def director_rows(trials: int) -> Iterator[Row]:
    from metasearch.driver.director import Director
    from metasearch.driver.messages import Assignment, Ending, Line

    memory: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as home:
        director = Director(study(trials), Path(home) / "nothing")
        ends: list[float] = []
        began, used = time.monotonic(), time.process_time()
        said = director.next("a", "1")
        while isinstance(said, Assignment):
            score = float(said.proposal.config["x"])
            lines = (Line(1, {"loss": score}, score, None, None, time.time(), 0.0),)
            said = director.next("a", "1", Ending(said.trial, "done", score, {"loss": score}, step=1), lines)
            ends.append(time.monotonic() - began)
            if len(ends) in marks(trials):
                memory[len(ends)] = resident(os.getpid())
        used = time.process_time() - used
        director.close()
    if len(ends) != trials:
        raise RuntimeError(f"{len(ends)} of {trials} trials ended")
    told = {"processor_ms": round(1e3 * used / trials, 3)}
    yield Row("director and ledger", 1e3 * ends[-1] / trials, TARGET, WANTED, "ms/trial", "lower", conditions=told)
    yield from linear(ends)
    yield grown("memory", memory)


# -- a large ledger ------------------------------------------------------------------------------------------------------------

READ = """
import time, sys; from pathlib import Path; from metasearch.ledger import Ledger
began = time.monotonic(); used = time.process_time()
with Ledger.open(Path(sys.argv[1]) / "ledger.sqlite") as ledger:
    found = len(ledger.trials())
print(time.monotonic() - began, time.process_time() - used, found)
"""
BOARD = """
import time, sys; from pathlib import Path; from metasearch.track.leaderboard import leaderboard, rows_from_ledger
began = time.monotonic(); used = time.process_time()
found = len(leaderboard(rows_from_ledger(Path(sys.argv[1]))))
print(time.monotonic() - began, time.process_time() - used, found)
"""
AGAIN = """
import time, sys, json; from pathlib import Path
from metasearch.driver.director import Director; from metasearch.driver.study import Study
study = Study.from_json(json.loads(sys.argv[2]))
began = time.monotonic(); used = time.process_time()
director = Director(study, Path(sys.argv[1]))
said = director.next("b", "2")
print(time.monotonic() - began, time.process_time() - used, said.trial)
director.close()
"""


def ledger_rows(trials: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as home:
        folder, body = Path(home) / "nothing", study(trials + 100)
        large_ledger(body, folder, trials)
        size = round((folder / "ledger.sqlite").stat().st_size / 1e6, 1)
        for name, script, most, least in (
            ("reading the ledger", READ, 2.0, trials), ("leaderboard from the ledger", BOARD, 10.0, trials),
            ("ready to propose after a kill", AGAIN, 5.0, 1),
        ):
            seconds, used, found = timed(script, str(folder), json.dumps(body.to_json()))
            if found < least:
                raise RuntimeError(f"{name}: {found} of {least}")
            told = {"processor_s": round(used, 2), "load": round(os.getloadavg()[0], 1), "MB": size}
            yield Row(name, seconds, most, WANTED, "s", "lower", conditions=told)
        began = time.monotonic()
        words = ["leaderboard", "nothing", "--source", "ledger", "--top", "10", "--home", home]
        command = [sys.executable, "-c", "from metasearch.cli import main; main()", *words]
        subprocess.run(command, check=True, capture_output=True, env=environment())
        yield Row("the command `leaderboard --top 10`", time.monotonic() - began, 10.0, WANTED, "s", "lower")


def large_ledger(body: Any, folder: Path, trials: int) -> None:
    """As a driver leaves it that was killed: `trials` have ended, with reports and episodes, and one is running."""
    import numpy as np

    from metasearch.driver.director import Director
    from metasearch.driver.messages import Assignment, Ending, Line

    rng = np.random.default_rng(0)
    director = Director(body, folder, about={"bank_digest": "b" * 16})
    director.ledger._db.execute("PRAGMA synchronous = OFF")  # making it is not what is measured
    said = director.next("a", "1")
    while isinstance(said, Assignment) and said.trial <= trials:
        episodes = rng.uniform(0, 1, EPISODES).astype("<f4")
        score = float(episodes.mean())
        told = {"accuracy": score}
        lines = tuple(Line(k, {**told, "loss": 1 / k}, score, None, None, time.time(), 0.1 * k) for k in range(1, REPORTS + 1))
        ending = Ending(said.trial, "done", score, {"params": 1e5 + said.trial}, step=REPORTS, episodes=episodes.tobytes())
        said = director.next("a", "1", ending, lines)
    director.ledger.close()  # as kill -9 leaves it
    director._lock.close()


def timed(script: str, *words: str) -> tuple[float, float, float]:
    """What a script prints: seconds, processor seconds, what it found."""
    said = subprocess.run([sys.executable, "-c", script, *words], check=True, capture_output=True, text=True, env=environment())
    seconds, used, found = map(float, said.stdout.split())
    return seconds, used, found


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}


# -- MLflow --------------------------------------------------------------------------------------------------------------------


def mlflow_rows(trials: int) -> Iterator[Row]:
    from _many_runs import multiply

    from metasearch.track import outbox
    from metasearch.track.leaderboard import leaderboard, rows_from_mlflow

    sent = max(1, min(SENT, trials // STUDIES))
    with tempfile.TemporaryDirectory() as home:
        uri, runs = f"sqlite:///{home}/mlflow.db", 0
        for at in range(STUDIES):
            name = f"study-{at}"
            large_ledger(study(sent + 100, name=name), Path(home) / name, sent)
            if not outbox.follow(Path(home) / name, uri, None):
                raise RuntimeError(f"MLflow did not take {name}")
            runs += multiply(uri, name, -(-trials // STUDIES // sent))
        for what, top in (("leaderboard of all studies from MLflow", None), ("the same, top 10 of each study", 10)):
            began, used = time.monotonic(), time.process_time()
            found = len(leaderboard(rows_from_mlflow(None, uri, top=top)))
            seconds, used = time.monotonic() - began, time.process_time() - used
            if found < (runs - STUDIES if top is None else STUDIES * top):
                raise RuntimeError(f"{found} of {runs} runs")
            told = {"runs": runs, "processor_s": round(used, 2), "load": round(os.getloadavg()[0], 1)}
            yield Row(what, seconds, 10.0, WANTED, "s", "lower", conditions=told)


class Proxy:
    """Passes requests on to a server, and counts them: .writes and .reads."""

    def __init__(self, port: int) -> None:
        self.paths: Counter[str] = Counter()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.paths[self.path.partition("?")[0]] += 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                there = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                there.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() != "host"})
                answer = there.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type") or "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                there.close()

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def counted(self) -> tuple[int, int]:
        """(calls that write, calls that read) since the last time."""
        reads = sum(n for path, n in self.paths.items() if path.rpartition("/")[2] in READS)
        every = self.paths.total()
        self.paths.clear()
        return every - reads, reads


READS = frozenset({"get", "get-by-name", "search", "get-history", "list", "get-history-bulk", "version", "health", "server-info"})


@contextlib.contextmanager
def server() -> Iterator[int]:
    """A real MLflow server's port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
    with tempfile.TemporaryDirectory() as home, open(os.devnull, "w") as nowhere:
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--workers", "1",
            "--artifacts-destination", f"{home}/artifacts", "--host", "127.0.0.1", "--port", str(port),
        ]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(command, env=env, stdout=nowhere, stderr=nowhere, start_new_session=True)
        try:
            until = time.monotonic() + 120
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                if time.monotonic() > until or process.poll() is not None:
                    raise RuntimeError("the MLflow server does not answer")
                time.sleep(0.5)
            yield port
        finally:
            os.killpg(process.pid, 15)
            process.wait(60)


def call_rows(trials: int, apart: float) -> Iterator[Row]:
    reports = trials * REPORTS
    with server() as port:
        proxy = Proxy(port)
        with one_ray(2):
            their_search(proxy.uri, trials)
        theirs, read = proxy.counted()
        told = {"reading": round(read / reports, 2)}
        yield Row("Ray's callback, writing calls a report", theirs / reports, unit="calls", better="lower", conditions=told)
        for name, pause in (("at once", 0.0), (f"{apart:g} s apart", apart)):
            our_search(proxy.uri, trials, pause)
            ours, read = proxy.counted()
            yield Row(
                f"ours, reports {name}", ours / reports, theirs / reports, CALLBACK, "calls", "lower",
                conditions={"reading": round(read / reports, 2)},
            )


def their_search(uri: str, trials: int) -> None:
    """Ray Tune with its own callback, as its documentation shows it."""
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    def trainable(config: dict[str, float]) -> None:
        for step in range(REPORTS):
            tune.report({"loss": 1.0 / (step + 1), "accuracy": config["x"]})

    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        tuner = tune.Tuner(
            trainable, param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(metric="accuracy", mode="max", num_samples=trials),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, callbacks=[
                MLflowLoggerCallback(tracking_uri=uri, experiment_name="theirs"),
            ]),
        )
        results = tuner.fit()
    if results.num_errors or len(results) != trials:
        raise RuntimeError(f"Ray Tune ran {len(results)} of {trials} trials, {results.num_errors} of them with errors")


def our_search(uri: str, trials: int, apart: float) -> None:
    """One trial after another, in this process, with a real outbox beside it; neither weights nor pictures."""
    from metasearch.driver import launch
    from metasearch.track.outbox import behind

    with tempfile.TemporaryDirectory() as home:
        body = study(trials, seconds=apart * REPORTS, reports=REPORTS, name=f"ours-{apart:g}".replace(".", "-"))
        wanted = body.model_copy(update={
            "driver": body.driver.model_copy(update={"kind": "local"}),
            "track": body.track.model_copy(update={"enabled": True, "uri": uri, "top": 0, "pictures": 0}),
        })
        result = launch.run(wanted, home=Path(home))
        until = time.monotonic() + 120
        while behind(result.folder):
            if time.monotonic() > until or result.status.done != trials:
                raise RuntimeError(f"{behind(result.folder)} rows are missing in MLflow; {result.status}")
            time.sleep(0.2)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=int, default=10_000, help="of a study (default: %(default)s)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.0, 1.0],
                        help="for which a trial sleeps, one case each (default: %(default)s)")  # fmt: skip
    parser.add_argument("--lanes", type=int, default=LANES, help="and simulated CPUs (default: %(default)s)")
    parser.add_argument("--told", type=int, default=6, help="trials of which calls to MLflow are counted (default: %(default)s)")
    parser.add_argument("--apart", type=float, default=1.0, help="seconds between two reports there (default: %(default)s)")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a Ray of this run alone, for minutes
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers are at nice 15: beside other work they would not start
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    what = ("director", "ledger", "calls", "mlflow", "lanes")
    sys.exit(benchmark(__file__, __doc__, cases, what=what, default=what, arguments=arguments))
