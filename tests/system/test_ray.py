"""Lanes under a real Ray Tune: whatever is killed, every trial is done once and nothing is left behind."""
from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from killable import HERE, table

from metasearch.driver import launch
from metasearch.driver.folder import lives
from metasearch.driver.lanes import OWNER, lanes_that_fit
from metasearch.driver.status import Status
from metasearch.driver.study import Driver, Study
from metasearch.ledger import Ledger, LedgerError
from metasearch.testing.history import problems, proposals, results

TWO = {"kind": "ray", "lanes": 2, "cpus": 0.5}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """One Ray for all tests of this file; the study's own Ray is tested in a process of its own."""
    quiet: dict[str, Any] = {"include_dashboard": False, "logging_level": "ERROR", "log_to_driver": False}
    ray.init(address="local", num_cpus=2, num_gpus=4, object_store_memory=100 * 2**20, **quiet)
    yield
    ray.shutdown()


def counting(trials: int, tmp_path: Path, *, driver: dict[str, Any] | None = None, **how: Any) -> dict[str, Any]:
    method = {"name": str(HERE / "counting.py"), "log": str(tmp_path / "log"), "parcels": False, **how}
    return table(space="counting_space.py", method=method, budget={"trials": trials}, driver={**TWO, **(driver or {})})


def effects(tmp_path: Path) -> dict[int, Counter[str]]:
    found: dict[int, Counter[str]] = {}
    for what, trial, *_ in (line.split() for line in (tmp_path / "log").read_text().splitlines()):
        found.setdefault(int(trial), Counter())[what] += 1
    return found


def run(study: dict[str, Any], home: Path, show: Callable[[Status], None] | None = None) -> launch.Result:
    return launch.run(Study.from_json(study), home=home, show=show)


def ledger(home: Path) -> Ledger:
    return Ledger.open(home / "t" / "ledger.sqlite")


def pids(what: str) -> list[int]:
    """The processes with that name below this one (there may be another Ray on the machine)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(path.parent.name)
        try:
            if what in path.read_text().replace("\0", " ") and os.getpid() in ancestors(pid):
                found.append(pid)
        except OSError:
            continue
    return found


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_a_study_under_ray_proposes_and_finds_what_the_local_driver_does(tmp_path: Path) -> None:
    shown: list[Status] = []
    result = run(counting(30, tmp_path, seconds=0.02, meet=2, seen=str(tmp_path / "seen")), tmp_path / "ray", shown.append)
    assert (result.exit_code, result.status.done, result.status.reason) == (0, 30, "trials")
    assert shown[0].done == 0
    assert shown[-1].done == 30
    assert problems(tmp_path / "ray" / "t", effects=effects(tmp_path)) == []
    assert len({line.split()[3] for line in (tmp_path / "log").read_text().splitlines()}) == 2, "two lanes are two processes"
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert all((one["devices"], one["visible"]) == (["cpu"], "") for one in seen), "a trial without a GPU sees one of four"
    run(counting(30, tmp_path, driver={"kind": "local"}), tmp_path / "local")
    assert proposals(tmp_path / "ray" / "t") == proposals(tmp_path / "local" / "t")
    assert results(tmp_path / "ray" / "t") == results(tmp_path / "local" / "t")
    assert not (tmp_path / "ray" / "t" / ".tune").exists()
    assert list(result.trials["trial"]) == list(range(1, 31))
    assert result.best is not None
    assert result.best.id == result.status.best_trial


ARCHITECTURES = {  # one trial is one search, but for those that train every architecture by itself
    "reinforce": {"batch": 2}, "ppo": {"batch": 2}, "regularized-evolution": {"population": 2, "sample": 2},
    "enas": {"search_steps": 6, "candidates": 4, "every": 2, "aggregate": 2, "check": 0},
    "random-sharing": {"search_steps": 6, "check": 0}, "darts": {"search_steps": 6, "check": 0},
    "metanas": {"search_steps": 6, "alone": True, "test_steps": 2}, "auto-maml": {"search_steps": 6},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_search_of_architectures_finds_under_ray_what_it_finds_on_one_machine(tmp_path: Path, name: str) -> None:
    adaptive = name in ("reinforce", "ppo", "regularized-evolution")
    study = table(
        space=str(HERE.parent / "unit" / "relaxed_space.py"), method={"name": name, **ARCHITECTURES[name]}, budget={"trials": 4},
        tasks={"name": "blobs", "dimensions": 5, "train_classes": 20, "ways": 3, "shots": 2, "queries": 3},
        train={"steps": 6, "mode": "vmap"}, validation={"episodes": 10},
    )
    for home, driver in (("ray", TWO), ("local", {"kind": "local"})):
        result = run({**study, "driver": driver}, tmp_path / home)
        assert (result.exit_code, result.status.done) == (0, 4)
        assert problems(tmp_path / home / "t") == []
    if not adaptive:  # what these propose next hangs on which trial ends first
        assert proposals(tmp_path / "ray" / "t") == proposals(tmp_path / "local" / "t")
        for (status, score, *_), (same, near, *_) in zip(
            results(tmp_path / "ray" / "t").values(), results(tmp_path / "local" / "t").values(), strict=True
        ):
            assert (status, score) == (same, pytest.approx(near, abs=1e-3))


def test_a_trial_that_fails_takes_its_process_with_it_and_nothing_else(tmp_path: Path) -> None:
    how = {"3": "error", "4": "oom", "5": "diverged", "6": "die", "7": "hang"}
    result = run(counting(8, tmp_path, misbehave=how, driver={"trial_timeout": 4.0}), tmp_path)
    assert [results(tmp_path / "t")[n][0] for n in (3, 4, 5, 6, 7)] == ["error", "oom", "diverged", "error", "error"]
    with ledger(tmp_path) as now:
        assert (now.trials()[4].attempts, now.trials()[4].chunk) == (2, 1)
        hung = now.trials()[7].outcome
    assert hung is not None
    assert "no report for 4.0 s" in (hung.reason or "")
    assert "counting.py" in (tmp_path / "t" / "stacks" / "7-1.txt").read_text()
    assert (result.status.done, result.status.failed, result.status.diverged) == (7, 4, 1)
    assert problems(tmp_path / "t") == []
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    process = {n: {pid for _, trial, _, pid in lines if trial == str(n)} for n in range(1, 13)}
    assert len(process[4]) == 2, "a trial that ran out of memory is tried once more, in a new process"
    assert len(process[6]) == 3, "a trial whose worker dies is tried twice more"
    assert len(process[7]) == 1, "one that hangs is not"
    for at, (what, trial, _, pid) in enumerate(lines):
        if what == "start" and trial in ("3", "4", "6", "7"):
            assert pid not in [line[3] for line in lines[at + 1 :]], f"a process that had trial {trial} was used again"


def test_a_lane_that_is_killed_goes_on_from_its_parcel(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(status: Status) -> None:
        if killed:
            return
        for line in (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").exists() else []:
            what, trial, _, pid = line.split()
            with ledger(tmp_path) as now:
                row = now.trials().get(int(trial))
                if what == "start" and row is not None and row.status == "running" and row.checkpoint is not None:
                    os.kill(int(pid), signal.SIGKILL)
                    killed.append(row.id)
                    return

    result = run(counting(3, tmp_path, steps=20, seconds=0.1, parcels=True), tmp_path, kill_one)
    assert len(killed) == 1
    assert result.status.done == 3
    with ledger(tmp_path) as now:
        row = now.trials()[killed[0]]
        second = [r.body for r in now.rows(kinds=["started"], trial=row.id)][1]
        steps = [r.body["step"] for r in now.rows(kinds=["report"], trial=row.id)]
    assert (second["cause"], second["own"], row.attempts) == ("lane", True, 2)
    assert steps[-1] == 20
    assert len(steps) < 25, "it began again instead of going on"
    assert problems(tmp_path / "t", effects=effects(tmp_path)) == []


@pytest.mark.slow
def test_a_worker_that_is_frozen_is_ended_from_outside(tmp_path: Path) -> None:
    frozen: list[int] = []

    def freeze_one(status: Status) -> None:
        log = tmp_path / "log"
        if not frozen and log.exists() and log.read_text().count("end ") > 2:
            frozen.append(int(log.read_text().splitlines()[-1].split()[3]))
            os.kill(frozen[0], signal.SIGSTOP)

    result = run(counting(40, tmp_path, steps=1, seconds=0.2, driver={"trial_timeout": 3.0}), tmp_path, freeze_one)
    assert len(frozen) == 1
    assert result.status.done == 40
    assert not Path(f"/proc/{frozen[0]}").exists()
    assert problems(tmp_path / "t", effects=effects(tmp_path)) == []


def test_the_director_is_killed_and_comes_back_under_its_lanes(tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_director(status: Status) -> None:
        if len(killed) < 2 and status.done >= 5 * (len(killed) + 1):
            for pid in pids("ray::_Actor"):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    result = run(counting(40, tmp_path, steps=2, seconds=0.05), tmp_path, kill_director)
    assert len(set(killed)) == 2
    assert result.status.done == 40
    with ledger(tmp_path) as now:
        assert list(now.rows(kinds=["resumed"])) == []
        assert {row.attempts for row in now.trials().values()} == {1}, "lanes lived on, so no trial was started again"
    assert problems(tmp_path / "t", effects=effects(tmp_path)) == []


def test_an_objective_that_cannot_be_built_ends_the_study_with_its_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import os\nfrom metasearch import strategies\n"
        "def method(study):\n"
        "    if os.environ.get('OMP_NUM_THREADS') == '1' and 'ray' in __import__('sys').modules and os.getppid() != 1:\n"
        "        pass\n"
        f"    if os.getpid() != {os.getpid()} and not _director():\n"
        "        raise ValueError('the data are not on this machine')\n"
        "    return strategies.build('random', study.space(), {}, seed=study.seed), None\n"
        "def _director():\n"
        "    import traceback\n"
        "    return any('director.py' in f.filename for f in traceback.extract_stack())\n"
    )
    study = table(space="counting_space.py", method={"name": str(broken)}, driver={**TWO, "lanes": 1})
    with pytest.raises(RuntimeError, match="the data are not on this machine"):
        run(study, tmp_path)
    assert problems(tmp_path / "t", finished=False) == []


def test_lanes_that_can_never_be_placed_are_an_error_in_words() -> None:
    node = {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}}
    assert lanes_that_fit(Driver(), [node]) == 2
    assert lanes_that_fit(Driver(cpus=0.5), [node, node]) == 8
    assert lanes_that_fit(Driver(cpus=0.1, gpus=0.25), [node]) == 4
    assert lanes_that_fit(Driver(cpus=0.1, gpus=0.4), [{"Alive": True, "Resources": {"CPU": 9, "GPU": 2}}]) == 4
    assert lanes_that_fit(Driver(), [node, {"Alive": False, "Resources": {"CPU": 64}}]) == 2
    with pytest.raises(ValueError, match=r"needs 4 CPU, but Ray has 2 CPU and 1 GPU.*Lower"):
        lanes_that_fit(Driver(cpus=4), [node, node])
    with pytest.raises(ValueError, match="needs 1 CPU and 2 GPU"):
        lanes_that_fit(Driver(gpus=2.0), [node])
    with pytest.raises(ValueError, match=r"8 lanes of 1 CPU are wanted, but 2 fit.*cpus = 0.25"):
        lanes_that_fit(Driver(lanes=8), [node])


def test_a_trial_sees_its_own_gpus_and_no_others(tmp_path: Path) -> None:
    """Four GPUs as Ray counts them: what it hands out is what CUDA is told, before anything of CUDA begins."""
    driver = {"gpus": 2, "address": ray.get_runtime_context().gcs_address}
    result = run(counting(8, tmp_path, steps=2, meet=2, seen=str(tmp_path / "seen"), driver=driver), tmp_path)
    assert result.status.done == 8
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert all(one["devices"] == ["cuda:0", "cuda:1"] for one in seen)
    lanes = {one["pid"]: [name for name in one["visible"].split(",") if name] for one in seen}
    assert len(lanes) == 2
    assert [len(names) for names in lanes.values()] == [2, 2]
    assert len({name for names in lanes.values() for name in names}) == 4, "a GPU is seen by two trials at once"


def test_a_ledger_that_cannot_be_read_is_the_same_error_as_on_one_machine(tmp_path: Path) -> None:
    run(counting(2, tmp_path, driver={"kind": "local"}), tmp_path)
    path = tmp_path / "t" / "ledger.sqlite"
    on_ray = ('driver.kind="ray"',)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LedgerError, match="cannot be read"):
        launch.resume("t", home=tmp_path, overrides=on_ray)
    path.write_bytes(whole)
    assert launch.resume("t", home=tmp_path, overrides=on_ray).status.reason == "trials"


# -- the driver itself, in a process of its own with a Ray of its own -------------------------------------------------------


def child(study: dict[str, Any], home: Path, *crash_at: str) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    command = [sys.executable, str(HERE / "killable.py"), json.dumps(study), str(home), *crash_at]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def wait_for(home: Path, seen: Callable[[Ledger], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if (home / "t" / "ledger.sqlite").exists():
            with ledger(home) as now:
                if seen(now):
                    return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"it was never seen; the driver said {process.communicate()[0]!r}")


@pytest.mark.slow
@pytest.mark.parametrize("point", ["ledger.ended:5", "letter.written:3"])
def test_directors_and_lanes_that_crash_again_and_again_at_a_point_end_the_study_all_the_same(tmp_path: Path, point: str) -> None:
    """Every process of the session has the point, and every new one crashes there again."""
    process = child(counting(12, tmp_path, steps=2), tmp_path, point)
    out, _ = process.communicate(timeout=150)
    assert process.returncode == 0, out
    assert problems(tmp_path / "t", effects=effects(tmp_path)) == []
    with ledger(tmp_path) as now:
        trials = now.trials().values()
        assert {t.status for t in trials} == {"done"}
        assert {t.attempts for t in trials} == {1}, "a letter was not adopted, or lanes did not outlive the director"


@pytest.mark.slow
def test_the_driver_is_killed_three_times_under_ray_and_resumed(tmp_path: Path) -> None:
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    run(counting(8, quiet, steps=4, parcels=True, driver={"kind": "local"}), quiet)
    study = counting(8, tmp_path, steps=4, seconds=0.1, parcels=True)
    for kind, count in (("started", 2), ("report", 9), ("ended", 4)):
        process = child(study, tmp_path)
        wait_for(tmp_path, lambda now, kind=kind, count=count: len(list(now.rows(kinds=[kind]))) >= count, process)  # type: ignore[misc]
        started = children(process.pid)
        assert kind != "started" or {"raylet", "gcs_server"} <= set(started.values())  # later ones may still be starting
        process.kill()
        process.wait()
        gone(started)
    last = child(study, tmp_path)
    out, _ = last.communicate(timeout=200)
    assert (last.returncode, out) == (0, b""), "it failed, or Ray talks"
    assert problems(tmp_path / "t", effects=effects(tmp_path)) == []
    assert proposals(tmp_path / "t") == proposals(quiet / "t")
    assert results(tmp_path / "t") == results(quiet / "t")


def children(pid: int) -> dict[int, str]:
    """The processes that a process has started, and their names."""
    found = dict[int, str]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            before, _, after = stat.read_text().rpartition(")")
            if int(after.split()[1]) == pid and after.split()[0] != "Z":
                found[int(stat.parent.name)] = before.partition("(")[2]
    return found


def gone(processes: dict[int, str], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while left := {pid: name for pid, name in processes.items() if lives(pid)}:
        assert time.monotonic() < deadline, f"they stay behind: {left}"
        time.sleep(0.05)


def rays_of(driver: int) -> list[Path]:
    """Folders of Rays that a driver has started."""
    found = list[Path]()
    for mark in Path("/tmp").glob(f"ms-*/{OWNER}"):
        with contextlib.suppress(FileNotFoundError):  # another test's, which ends at this moment
            found += [mark] * (mark.read_text() == str(driver))
    return found


def test_a_signal_while_ray_starts_ends_the_study_in_order(tmp_path: Path) -> None:
    """Ray then has a handler of its own."""
    process = child(counting(2, tmp_path, steps=1000, seconds=0.1), tmp_path)
    deadline = time.monotonic() + 60
    while "gcs_server" not in (started := children(process.pid)).values():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143, out
    assert not rays_of(process.pid)
    gone(started)


@pytest.mark.parametrize(("number", "send", "code"), [
    (signal.SIGTERM, os.killpg, 143),
    pytest.param(signal.SIGINT, os.kill, 130, marks=pytest.mark.slow),
    pytest.param(signal.SIGHUP, os.killpg, 143, marks=pytest.mark.slow),
], ids=["SIGTERM to the group", "SIGINT", "SIGHUP to the group"])  # fmt: skip
def test_one_signal_stops_the_lanes_at_their_next_report_and_leaves_no_ray_behind(
    tmp_path: Path, number: signal.Signals, send: Callable[[int, int], None], code: int
) -> None:
    """To the driver alone, or to its whole process group, as a closed terminal or a container's init sends it."""
    process = child(counting(2, tmp_path, steps=1000, seconds=0.1, parcels=True), tmp_path)
    wait_for(tmp_path, lambda now: len(list(now.rows(kinds=["report"]))) > 2, process)
    assert rays_of(process.pid)
    started = children(process.pid)
    send(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode in (code, -number), out
    with ledger(tmp_path) as now:
        assert [r.body["final"] for r in now.rows(kinds=["stopped"])] == [False]
        assert {t.status for t in now.trials().values()} == {"running"}
    assert problems(tmp_path / "t", finished=False) == []
    assert not rays_of(process.pid)
    gone(started)
