"""Is this machine, and the cluster at an address, ready for a study? One check after the other, each with what to do about it.

    for check in examine(study, home=home, address="10.0.0.1:6379"):
        print(check.state, check.name, check.said, check.todo)

Everything is tried, not looked up: a process without a token knocks at the cluster, every node writes a file that this one reads,
every node reads the study's data. What runs on a node travels by value, so that a node with another version, or none, can answer.
"""
from __future__ import annotations

import contextlib
import fcntl
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from metasearch.driver.lanes import address_of, connected, lanes_that_fit
from metasearch.driver.study import Driver, Study
from metasearch.mounts import BUCKETS, network_filesystem
from metasearch.track.redact import redact

__all__ = ["Check", "examine"]

State = Literal["ok", "warning", "failed"]
PACKAGES = ("ray", "torch", "metasearch")  # that must be the same on all nodes
FLOORS = {  # below these are known holes through which data run code
    "ray": "2.56", "mlflow": "3.15", "torch": "2.10",
}
PATIENCE = 60.0  # seconds in which a node must answer
SKEW = (1.0, 5.0)  # seconds of difference between clocks: a warning, a failure
ROOM = 5.0  # so many times the wanted room is comfortable
STRANGER = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).get_all_node_info(timeout=20)
except AuthenticationError:
    print("closed")
else:
    print("open")
"""


@dataclass(frozen=True)
class Check:
    """name: what was looked at; said: what was found; todo: the way out, if it is not ok."""

    name: str
    state: State
    said: str
    todo: str = ""

    def to_json(self) -> dict[str, str]:
        return {"check": self.name, "state": self.state, "said": redact(self.said), "todo": redact(self.todo)}


def examine(study: Study | None, *, home: Path, address: str | None = None, disk: float = 1.0) -> Iterator[Check]:
    """Every check, as soon as its answer is known.

    address: of a Ray cluster; None: the study's, RAY_ADDRESS, or none. disk: GB that must be free where studies and temporary
    files are. Writes a file into `home` for a moment, and nothing else.
    """
    driver = Driver() if study is None else study.driver
    if address is not None:
        driver = driver.model_copy(update={"address": address, "kind": "ray"})
    yield _floors(_versions())
    if study is not None:
        yield _study(study.model_copy(update={"driver": driver}))
    yield _data(study)
    with _scratch(home) as (folder, wrong):
        yield _storage(home, wrong)
        yield _room({f"{home}": home, "temporary files": Path(tempfile.gettempdir())}, disk)
        yield _mlflow(study, home)
        there = address_of(driver)
        if there is None or driver.kind == "local":
            yield Check("ray", "ok", "no address: a study starts a Ray of its own on this machine, with a token of its own")
            yield _placed(driver, [{"Resources": _own()}], "this machine")
            return
        try:
            with connected(driver) as ray:
                yield from _cluster(ray, there, driver, study, folder, disk)
        except ConnectionError as error:
            yield Check("ray", "failed", str(error), "Start it, or name another address (--address, RAY_ADDRESS).")


# -- this machine --------------------------------------------------------------------------------------------------------------


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in ("metasearch", "ray", "torch", "mlflow"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _floors(found: Mapping[str, str]) -> Check:
    told = ", ".join(f"{name} {number}" for name, number in found.items())
    old = [f"{name} {found.get(name, 'is not installed')} (at least {floor})" for name, floor in FLOORS.items()
           if _numbers(found.get(name, "0")) < _numbers(floor)]
    if old:
        return Check("versions", "failed", f"too old: {', '.join(old)}", "Install newer ones: those before have known holes.")
    if (3, 11) <= _numbers(found["python"]) < (3, 11, 14):
        return Check("versions", "warning", told, "Python before 3.11.14 has known holes in tarfile: install a newer 3.11.")
    return Check("versions", "ok", told)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


def _study(study: Study) -> Check:
    """All that does not fit, but for the tasks, which have a check of their own."""
    problems = [words for words in study.problems() if not words.startswith("tasks")]
    if problems:
        return Check("study", "failed", f"'{study.name}': " + " ".join(problems), "Mend the study file.")
    return Check("study", "ok", f"'{study.name}' fits together (digest {study.digest})")


def _data(study: Study | None) -> Check:
    named = os.environ.get("METASEARCH_DATA")
    todo = "METASEARCH_DATA must name the folder with the data, here and on every node."
    if named and not Path(named).is_dir():
        return Check("data", "failed", f"METASEARCH_DATA = {named} is no folder", todo)
    if study is None or study.tasks is None:
        return Check("data", "ok", f"METASEARCH_DATA = {named}" if named else "METASEARCH_DATA is not set, and not asked for")
    try:
        tasks = study.tasks_distribution()
        return Check("data", "ok", f"{study.tasks.name} is there (digest {tasks.digest})")
    except (Exception, SystemExit) as error:
        return Check("data", "failed", f"{study.tasks.name}: {error}", todo)


@contextlib.contextmanager
def _scratch(home: Path) -> Iterator[tuple[Path | None, str | None]]:
    """(a folder in the home with a file of the driver's in it, None), or (None, what went wrong); gone afterwards."""
    missing = [folder for folder in (home, *home.parents) if not folder.exists()]
    folder = home / f".doctor-{uuid.uuid4().hex[:12]}"
    with contextlib.ExitStack() as stack:
        wrong: str | None = None
        try:
            stack.callback(_removed, folder, missing)
            folder.mkdir(parents=True)
            _written(folder / "driver", folder.name)
            fcntl.flock(stack.enter_context((folder / "lock").open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(stack.enter_context((folder / "rows").open("w")), fcntl.LOCK_EX | fcntl.LOCK_NB)  # as SQLite does
        except OSError as error:
            wrong = f"{error.strerror or error}" + (" (a lock)" if (folder / "lock").exists() else "")
        yield None if wrong else folder, wrong


def _removed(folder: Path, missing: list[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for made in missing:  # the innermost first
        with contextlib.suppress(OSError):
            made.rmdir()


def _written(path: Path, text: str) -> None:
    """As parcels and letters are: a temporary name, flushed to the disk, renamed."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _storage(home: Path, wrong: str | None) -> Check:
    if wrong is not None:
        todo = "Name another folder: METASEARCH_HOME, or --home."
        return Check("home", "failed", f"{home} cannot be written and locked: {wrong}", todo)
    said, kind = f"{home} can be written, flushed, renamed in and locked", network_filesystem(home)
    if kind in BUCKETS:
        return Check("home", "warning", f"{said}; but it is {kind}, a bucket shown as files: no lock holds on two machines "
                     "there, and no part of a file is ever replaced, as a ledger needs",
                     "Name a folder on a disk, NFS, Lustre or CephFS.")
    if kind is not None:
        return Check("home", "ok", f"{said}; it is {kind}: ledgers there have a rollback journal, slower than on a disk, and "
                     "other machines may read them while they are written")
    return Check("home", "ok", said)


def _room(places: Mapping[str, Path], wanted: float) -> Check:
    """wanted: GB."""
    free = {name: shutil.disk_usage(next(p for p in (place, *place.parents) if p.is_dir())).free / 1e9
            for name, place in places.items()}
    return _judged_room(free, wanted)


def _judged_room(free: Mapping[str, float], wanted: float, name: str = "disk") -> Check:
    told = ", ".join(f"{room:,.1f} GB for {name}" for name, room in free.items())
    short = min(free.values())
    state: State = "failed" if short < wanted else "warning" if short < ROOM * wanted else "ok"
    todo = "" if state == "ok" else "Make room (metasearch clean NAME), or name another METASEARCH_HOME or TMPDIR."
    return Check(name, state, f"{told} ({wanted:g} GB wanted)", todo)


def _mlflow(study: Study | None, home: Path) -> Check:
    """MLflow is written by the driver's machine alone, so it is asked from here."""
    from metasearch.track.store import TrackingError, connect, patience, said, sqlite_path, tracking_uri

    if study is not None and not study.track.enabled:
        return Check("mlflow", "ok", "track.enabled = false: not asked for")
    uri = tracking_uri(None if study is None else study.track.uri, home)
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        return Check("mlflow", "ok", f"{uri} will be made by the first study")
    try:
        with patience(10):
            client = connect(uri, create=False)
            with said(uri, "asking for its experiments"):
                client.search_experiments(max_results=1)
    except TrackingError as error:
        todo = "Start it, check MLFLOW_TRACKING_URI and MLFLOW_TRACKING_TOKEN (or USERNAME and PASSWORD)."
        if "schema" in str(error):
            todo = "Back the database up, then: mlflow db upgrade URI"
        return Check("mlflow", "failed", str(error), f"{todo} Studies run without it; metasearch sync NAME sends the rest later.")
    return Check("mlflow", "ok", f"{uri} answers")


def _own() -> dict[str, float]:
    import torch

    return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}


def _placed(driver: Driver, nodes: list[Mapping[str, Any]], where: str) -> Check:
    try:
        lanes = lanes_that_fit(driver, nodes)
    except ValueError as error:
        return Check("lanes", "failed", f"{where}: {error}", "Change [driver], or ask for larger machines.")
    share = f"{driver.cpus:g} CPU" + (f" and {driver.gpus:g} GPU" if driver.gpus else "")
    return Check("lanes", "ok", f"{lanes} of {share} on {where}")


# -- the cluster ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Node:
    """What a node said of itself, or why it did not. skew: seconds by which its clock is certainly off."""

    name: str
    resources: Mapping[str, float]
    seen: Mapping[str, Any] | None
    wrong: str = ""
    skew: float = 0.0
    study: Mapping[str, str] | None = None


def _cluster(
    ray: Any, address: str, driver: Driver, study: Study | None, folder: Path | None, disk: float
) -> Iterator[Check]:
    live = [node for node in ray.nodes() if node["Alive"]]
    visitors = [_visitor(ray, node["NodeID"]) for node in live]
    try:
        nodes = [_asked(ray, node, visitor, folder) for node, visitor in zip(live, visitors, strict=True)]
        silent = [f"{node.name}: {node.wrong}" for node in nodes if node.seen is None]
        if silent:
            yield Check("ray", "failed", f"no answer from {'; '.join(silent)}", "Take these nodes out, or start them again.")
        else:
            yield Check("ray", "ok", f"{len(live)} node{'s' * (len(live) > 1)} at {address} answered")
        yield _authentication(ray, visitors)
        if study is not None:
            nodes = [_with_study(ray, node, each["NodeID"], study) for node, each in zip(nodes, live, strict=True)]
    finally:
        for visitor in visitors:
            ray.kill(visitor)
    answered = [node for node in nodes if node.seen is not None]
    yield _same_versions(answered)
    yield _clocks(answered)
    yield _placed(driver, live, address)
    yield _gpus(answered)
    yield _shared(answered, folder)
    if answered:
        free = {f"{where} of {n.name}": room for n in answered for where, room in (n.seen or {})["free"].items()}
        yield _judged_room(free, disk, "nodes' disk")
    yield _data_there(answered, study)


def _visitor(ray: Any, node: str) -> Any:
    """An actor on a node, without a CPU of its own. A local class travels by value: metasearch may be missing there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Visitor:
        def clock(self) -> float:
            import time

            return time.time()

        def look(self, folder: str | None, packages: tuple[str, ...]) -> dict[str, Any]:
            import importlib.metadata
            import os
            import shutil
            import sys
            import tempfile

            found: dict[str, Any] = {"host": socket.gethostname(), "versions": {"python": sys.version.split()[0]}}
            for name in packages:
                try:
                    found["versions"][name] = importlib.metadata.version(name)
                except importlib.metadata.PackageNotFoundError:
                    found["versions"][name] = "none"
            found["data"] = os.environ.get("METASEARCH_DATA")
            found["data_there"] = found["data"] is not None and os.path.isdir(found["data"])
            found["free"] = {"temporary files": shutil.disk_usage(tempfile.gettempdir()).free / 1e9}
            found["gpus"] = self.gpus()
            found["storage"] = "no folder" if folder is None else self.storage(folder)
            return found

        def gpus(self) -> int:
            import os

            hidden = os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides them from those who ask for none
            try:
                import torch

                return torch.cuda.device_count()
            except ImportError:
                return 0
            finally:
                if hidden is not None:
                    os.environ["CUDA_VISIBLE_DEVICES"] = hidden

        def storage(self, folder: str) -> str:
            """ "" if the driver's file is there, a file can be flushed, and the driver's lock holds here too."""
            import fcntl
            import os

            try:
                with open(os.path.join(folder, "driver")) as file:
                    if file.read() != os.path.basename(folder):
                        return "reads another file than the driver wrote"
                mine = os.path.join(folder, f"node-{node}")
                with open(mine + ".new", "w") as out:
                    out.write(node)
                    out.flush()
                    os.fsync(out.fileno())
                os.replace(mine + ".new", mine)
                with open(os.path.join(folder, "lock"), "r+") as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except OSError:
                        return ""
                    return "locks"
            except OSError as error:
                return f"{error.strerror} ({error.filename})"

        def stranger(self, code: str) -> str:
            """What happens to a process without a token."""
            import os
            import sys

            import ray

            environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
            done = subprocess.run(
                [sys.executable, "-c", code, ray.get_runtime_context().gcs_address], capture_output=True, text=True,
                env={**environment, "RAY_AUTH_MODE": "disabled", "HOME": "/nonexistent"}, timeout=50, check=False,
            )
            return done.stdout.strip() or done.stderr.strip()[-300:]

    here = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(Visitor).remote()


def _asked(ray: Any, node: Mapping[str, Any], visitor: Any, folder: Path | None) -> _Node:
    name = f"{node.get('NodeManagerHostname', '?')} ({node['NodeID'][:6]})"
    try:
        seen = ray.get(visitor.look.remote(None if folder is None else str(folder), PACKAGES), timeout=PATIENCE)
        skew = math.inf
        for _ in range(3):
            before = time.time()
            there = ray.get(visitor.clock.remote(), timeout=PATIENCE)
            skew = min(skew, max(0.0, before - there, there - time.time()))
    except ray.exceptions.RayError as error:
        return _Node(name, node["Resources"], None, _short(error))
    if folder is not None and seen["storage"] in ("", "locks") and not (folder / f"node-{node['NodeID']}").is_file():
        seen["storage"] = "what it wrote is not here"
    return _Node(name, node["Resources"], seen, skew=skew)


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _authentication(ray: Any, visitors: list[Any]) -> Check:
    todo = ("Whoever reaches its ports runs code as its user. Set RAY_AUTH_MODE=token, and the same RAY_AUTH_TOKEN_PATH or "
            "RAY_AUTH_TOKEN, in the environment of `ray start` on every node.")
    said = "nobody could be asked"
    for visitor in visitors:
        try:
            said = ray.get(visitor.stranger.remote(STRANGER), timeout=PATIENCE)
            break
        except ray.exceptions.RayError as error:
            said = _short(error)
    if said == "closed":
        return Check("authentication", "ok", "a process without the token is turned away")
    if said == "open":
        return Check("authentication", "failed", "the cluster is open: a process without a token was let in", todo)
    return Check("authentication", "failed", f"it is not known whether the cluster is open: {said}", todo)


def _same_versions(nodes: list[_Node]) -> Check:
    own = _versions()
    wrong = [
        f"{node.name} has {name} {number}, this machine {own.get(name, 'none')}"
        for node in nodes for name, number in (node.seen or {})["versions"].items() if number != own.get(name, "none")
    ]
    if wrong:
        return Check("nodes' versions", "failed", "; ".join(wrong), "Install the same on all: pip install -c constraints.txt.")
    return Check("nodes' versions", "ok", "Python, " + ", ".join(PACKAGES) + " are everywhere as on this machine")


def _clocks(nodes: list[_Node]) -> Check:
    worst = max(nodes, key=lambda node: node.skew, default=None)
    if worst is None or worst.skew < SKEW[0]:
        return Check("clocks", "ok", "less than a second apart")
    state: State = "failed" if worst.skew >= SKEW[1] else "warning"
    return Check("clocks", state, f"the clock of {worst.name} is off by {worst.skew:.1f} s", "Run chrony or ntpd on every node.")


def _gpus(nodes: list[_Node]) -> Check:
    wrong = [
        f"Ray counts {count:g} GPUs on {node.name}, torch sees {(node.seen or {})['gpus']}"
        for node in nodes if (count := node.resources.get("GPU", 0)) > (node.seen or {})["gpus"]
    ]
    if wrong:
        return Check("GPUs", "failed", "; ".join(wrong), "Look at nvidia-smi there, at the driver, and at ray start --num-gpus.")
    total = sum(node.resources.get("GPU", 0) for node in nodes)
    return Check("GPUs", "ok", f"torch sees all {total:g} that Ray counts" if total else "none, and Ray counts none")


def _shared(nodes: list[_Node], folder: Path | None) -> Check:
    home = "the studies' home" if folder is None else str(folder.parent)
    wrong = {node.name: str((node.seen or {})["storage"]) for node in nodes if (node.seen or {})["storage"]}
    broken = [f"{name}: {said}" for name, said in wrong.items() if said != "locks"]
    todo = "Let METASEARCH_HOME be a folder that all nodes mount (NFS, a volume of Kubernetes) at the same path."
    if broken:
        return Check("shared storage", "failed", f"{home} is not the same folder everywhere: {'; '.join(broken)}", todo)
    if wrong:
        return Check("shared storage", "warning", f"locks in {home} do not hold on {', '.join(wrong)}",
                     "Mount it with locks, or never start one study from two machines.")
    return Check("shared storage", "ok", f"{home} was written, flushed and read from every node")


def _with_study(ray: Any, node: _Node, number: str, study: Study) -> _Node:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if node.seen is None:
        return node
    here = NodeAffinitySchedulingStrategy(number, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(_study_there)
    try:
        found = ray.get(task.remote(study.to_json()), timeout=PATIENCE)
    except ray.exceptions.RayError as error:
        found = {"wrong": _short(error)}
    return _Node(node.name, node.resources, node.seen, node.wrong, node.skew, found)


def _study_there(body: dict[str, Any]) -> dict[str, str]:
    """Runs on a node: what it would make of the study."""
    try:
        study = Study.from_json(body)
        study.space()
        return {"study": study.digest, "tasks": "" if study.tasks is None else study.tasks_distribution().digest}
    except (Exception, SystemExit) as error:
        return {"wrong": f"{type(error).__name__}: {error}"}


def _data_there(nodes: list[_Node], study: Study | None) -> Check:
    """Are the space's file and the data found on every node, and the same ones?"""
    todo = "Put the data (METASEARCH_DATA) and the study's files at the same paths on every node, or on the shared storage."
    if study is None:
        wrong = [f"{node.name}: METASEARCH_DATA = {seen['data']} is no folder" for node in nodes
                 if (seen := node.seen or {})["data"] and not seen["data_there"]]
        return Check("nodes' data", "failed", "; ".join(wrong), todo) if wrong else Check("nodes' data", "ok", "as the nodes say")
    own = _study_there(study.to_json())
    wrong = []
    for node in nodes:
        found = node.study or {}
        if "wrong" in found:
            wrong.append(f"{node.name}: {found['wrong']}")
        else:
            wrong += [f"{node.name} has other {what} than this machine" for what, key in (("files of the study", "study"),
                      ("data", "tasks")) if "wrong" not in own and found.get(key) != own[key]]
    if wrong:
        return Check("nodes' data", "failed", "; ".join(wrong), todo)
    return Check("nodes' data", "ok", "the study's files and data are everywhere as on this machine")
