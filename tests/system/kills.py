"""The kill test: `kill -9` of the driver, a worker or a node, at random, again and again, while studies train real learners.

    python tests/system/kills.py --kills 200 [--home FOLDER] [--resume] [--seed 0] [--minutes 60] [--pause 4]

A Ray of a head and two worker nodes, each of processes of its own and with token authentication; studies of second-order MAML on
sine waves, one after another, each sent to an MLflow. A node that was killed is replaced, a driver that was killed goes on with
`resume`. A worker is spared whose trial would be given up, as a trial is that has killed its worker three times without a report
in between. Every study is compared with the same one that nobody disturbed. One line at the end:

    200 kills (driver 71, worker 66, node 63) over 15 studies of 8 trials: lost 0, twice 0, disagreement 0

lost: trials that the ledger had as ended before a kill and that are gone or other than they were, or that ended otherwise than
undisturbed. twice: trials that ended twice in the ledger, or have two runs in MLflow. disagreement: whatever else
metasearch.testing.history finds, MLflow and the leaderboard included, and proposals or scores that differ. Exit code 0 if all
are 0. A run that was stopped goes on with --resume: its counts are in FOLDER/kills.json.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from killable import run_or_resume, table
from ray_nodes import TOKEN, Nodes, environment

from metasearch.driver.director import DEATHS
from metasearch.ledger import Ledger
from metasearch.testing.history import problems, proposals, results
from metasearch.track.outbox import sync

KINDS = ("driver", "worker", "node")
TRIALS = 8
STEPS = 300
PATIENCE = 240.0  # seconds after which a study that shows no trial at work is said to hang


def study(number: int, home: Path, driver: dict[str, Any]) -> dict[str, Any]:
    """Trials of a second or two, a report and a parcel every tenth of them. Each study has a seed of its own."""
    train = {"steps": STEPS, "report_every": STEPS // 10, "checkpoint_every": STEPS // 10, "mode": "vmap"}
    track = {"enabled": driver["kind"] == "ray", "uri": f"sqlite:///{home}/mlflow.db", "pictures": 0}
    return table(seed=number, train=train, budget={"trials": TRIALS}, driver=driver, track=track)


class Tally:
    """What was done and found so far; it outlives the process."""

    def __init__(self, home: Path) -> None:
        self.file = home / "kills.json"
        self.kills: Counter[str] = Counter()
        self.studies = self.lost = self.twice = self.disagreement = 0
        self.seconds = 0.0
        self.said: list[str] = []
        self.ended: dict[str, tuple[str, float | None, int]] = {}  # of the study under way: what its ledger had before a kill

    def load(self) -> None:
        told = json.loads(self.file.read_text())
        self.kills = Counter(told.pop("kills"))
        vars(self).update(told)

    def save(self) -> None:
        told = {key: value for key, value in vars(self).items() if key != "file"}
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps(told))
        os.replace(temporary, self.file)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {self.kills[kind]}" for kind in KINDS)
        return (
            f"{self.kills.total()} kills ({kinds}) over {self.studies} studies of {TRIALS} trials: lost {self.lost}, "
            f"twice {self.twice}, disagreement {self.disagreement}; {self.seconds:.0f} s"
        )


class Cluster:
    """A head and two nodes that may be killed and are replaced."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes, self.env = nodes, environment(TOKEN, METASEARCH_CACHE=os.environ["METASEARCH_CACHE"])
        self.address = nodes.head(self.env, "--num-cpus=0", "--include-dashboard=false")
        self.mend()

    def mend(self) -> None:
        failures = 0
        while sum(process.poll() is None for process in self.nodes.processes[1:]) < 2:
            try:
                self.nodes.worker(self.env)
            except AssertionError:  # beside other work a node may take longer than the 30 s that Ray gives it
                failures += 1
                if failures == 5:
                    raise

    def kill(self, rng: random.Random) -> None:
        """kill -9 of a worker node: all of its processes at once."""
        alive = [process for process in self.nodes.processes[1:] if process.poll() is None]
        victim = rng.choice(alive)
        for pid in [victim.pid, *below(victim.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        victim.wait()


def below(pid: int) -> list[int]:
    """All processes that a process has begun, and theirs."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        todo += (more := children.get(todo.pop(), []))
        found += more
    return found


class AtWork(NamedTuple):
    """What the ledger tells now."""

    pids: dict[int, int]  # {trial: pid of its worker}, of those that run
    spare: tuple[int, ...]  # of which a worker may die: one more death without a report between does not end the trial
    ended: dict[int, tuple[str, float | None, int]]


def at_work(folder: Path) -> AtWork:
    if not (folder / "ledger.sqlite").is_file():
        return AtWork({}, (), {})
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        trials = ledger.trials().values()
        running = {t.id: int(t.process.partition("-")[0]) for t in trials if t.status == "running" and t.process}
        spare = tuple(t.id for t in trials if t.id in running and t.barren + 1 < DEATHS)
        ended = {t.id: (t.status, t.outcome.score, t.outcome.step) for t in trials if t.outcome is not None}
    return AtWork({trial: pid for trial, pid in running.items() if Path(f"/proc/{pid}").exists()}, spare, ended)


def work(body: dict[str, Any], home: str) -> None:
    """What a driver does: it runs the study, or goes on with it, at the address of this session's cluster."""
    os.dup2(2, 1)  # Ray talks; stdout is for the one line
    if (Path(home) / "t" / "ledger.sqlite").exists() and body["driver"]["kind"] == "ray":
        from metasearch.driver import launch

        launch.resume("t", home=Path(home), overrides=(f"driver.address={json.dumps(body['driver']['address'])}",))
    else:
        run_or_resume(body, home, None)


def one_study(
    forks: Any, cluster: Cluster, home: Path, tally: Tally, most: int, until: float, rng: random.Random, pause: float
) -> None:
    """Runs the next study to its end, with kills in between as long as there are some left; then looks for what is wrong."""
    number = tally.studies + 1
    place, quiet = home / f"shaken-{number}", home / f"quiet-{number}"
    body = study(number, place, {"kind": "ray", "lanes": 2, "cpus": 1, "address": cluster.address})
    folder = place / "t"
    while True:
        cluster.mend()
        child = forks.Process(target=work, args=(body, str(place)))
        child.start()
        try:
            while child.exitcode is None:
                if not _busy(child, folder) or tally.kills.total() >= most or time.monotonic() > until:
                    child.join(PATIENCE)
                    break
                time.sleep(rng.uniform(0.0, pause))
                now, kind = at_work(folder), rng.choice(KINDS)
                tally.ended |= {str(trial): end for trial, end in now.ended.items()}
                workers = [pid for trial, pid in now.pids.items() if trial in now.spare]
                if child.exitcode is not None or (kind == "worker" and not workers):
                    continue
                if kind == "driver":
                    os.kill(child.pid, signal.SIGKILL)
                    child.join()
                elif kind == "worker":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(rng.choice(workers), signal.SIGKILL)
                else:
                    cluster.kill(rng)
                    cluster.mend()
                tally.kills[kind] += 1
                tally.save()
                print(f"  {tally}; {kind} of study {number}", file=sys.stderr, flush=True)
            if child.exitcode is None:
                raise RuntimeError(f"{folder} hangs: nothing was at work for {PATIENCE:g} s")
        finally:
            child.kill()  # if this process is told to stop, so is the driver
            child.join()
        if child.exitcode == 0:
            break
    local = forks.Process(target=work, args=(study(number, quiet, {"kind": "local"}), str(quiet)))
    local.start()
    local.join()
    right = judge(folder, quiet / "t", f"sqlite:///{place}/mlflow.db", tally)
    tally.studies, tally.ended = number, {}
    tally.save()
    if right:  # else they are there to be looked at
        shutil.rmtree(place)
        shutil.rmtree(quiet)


def _busy(child: Any, folder: Path) -> bool:
    """Waits until a trial is at work; False: the driver has ended first, or nothing ever is."""
    until = time.monotonic() + PATIENCE
    while child.exitcode is None and time.monotonic() < until:
        if at_work(folder).pids:
            return True
        time.sleep(0.1)
    return False


def judge(folder: Path, quiet: Path, uri: str, tally: Tally) -> bool:
    """Counts what is wrong with a study that has ended; True: nothing."""
    sync(folder, uri, wait=60)
    wrong = problems(folder, tracked=uri)
    ours, wanted = results(folder), results(quiet)
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        ends = Counter(row.trial for row in ledger.rows(kinds=["ended"]))
    lost = {int(n) for n, was in tally.ended.items() if ours.get(int(n)) != tuple(was)}
    lost |= {n for n, was in wanted.items() if ours.get(n, ("gone",))[0] != was[0]}
    twice = {n for n, count in ends.items() if count > 1} | {text for text in wrong if " runs of trial " in text}
    other = [text for text in wrong if text not in twice]
    other += [] if proposals(folder) == proposals(quiet) else ["the proposals are not those of an undisturbed study"]
    other += [f"trial {n}: {ours.get(n)}, undisturbed {was}" for n, was in wanted.items() if n not in lost and ours[n] != was]
    tally.lost += len(lost)
    tally.twice += len(twice)
    tally.disagreement += len(other)
    said = [f"lost trial {n}: {ours.get(n)}, before {tally.ended.get(str(n))}, undisturbed {wanted.get(n)}" for n in sorted(lost)]
    said += [f"twice {n}" for n in twice] + other
    tally.said += [f"{folder}: {text}" for text in said]
    return not said


@contextlib.contextmanager
def _environment(home: Path) -> Iterator[None]:
    """Of this process and all that it starts: as on a cluster with a token, one thread a process."""
    before = dict(os.environ)
    os.environ.update(environment(TOKEN), METASEARCH_CACHE=str(home / "cache"), MLFLOW_DISABLE_TELEMETRY="true")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--home", type=Path, default=Path(tempfile.gettempdir()) / "metasearch-kills")
    parser.add_argument("--resume", action="store_true", help="go on with the counts and studies of --home")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="no kill after so long; --resume goes on")
    parser.add_argument(
        "--pause", type=float, default=4.0,
        help="seconds, at most, from a trial at work to the next kill: on a slow machine more, or no trial ever reaches a parcel",
    )
    given = parser.parse_args(words)
    if not given.resume:
        shutil.rmtree(given.home, ignore_errors=True)
    given.home.mkdir(parents=True, exist_ok=True)
    tally = Tally(given.home)
    if given.resume and tally.file.is_file():
        tally.load()
    began, earlier = time.monotonic(), tally.seconds
    rng = random.Random(f"{given.seed} {tally.kills.total()}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # no node is left behind
    nodes = Nodes()
    with _environment(given.home), contextlib.closing(nodes):
        forks = multiprocessing.get_context("forkserver")
        forks.set_forkserver_preload(["ray", "ray.tune", "torch", "metasearch.driver.launch", "metasearch.objectives.episodic"])
        cluster = Cluster(nodes)
        while tally.kills.total() < given.kills and time.monotonic() - began < 60 * given.minutes:
            one_study(forks, cluster, given.home, tally, given.kills, began + 60 * given.minutes, rng, given.pause)
            tally.seconds = earlier + time.monotonic() - began
            tally.save()
    for text in tally.said:
        print(text, file=sys.stderr)
    print(tally)
    return 0 if tally.lost == tally.twice == tally.disagreement == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
