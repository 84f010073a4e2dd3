"""Lanes under Ray Tune: one Tune trial is one lane, a worker process with its share of a machine that asks for one proposal after
another. Tune places the lanes, waits for resources and starts a dead one again; what is tried is the director's business.

The director is one actor beside the driver, without a CPU of its own. If it is killed, Ray starts it again, it comes back from
the ledger, and calls that were under way are repeated: they may be repeated without harm.
"""
from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from metasearch.driver.director import Director, Loss
from metasearch.driver.folder import lives, logged
from metasearch.driver.messages import Assignment, Ending, Line, Lost, Wait
from metasearch.driver.status import Status
from metasearch.driver.study import Driver, Study
from metasearch.driver.worker import work
from metasearch.environment import environment
from metasearch.objectives import Mode
from metasearch.signals import kept

__all__ = ["RayLanes", "Sick", "address_of", "authenticated", "connected", "knock", "lanes_that_fit", "places"]

BARREN = 20  # lanes that end in a row before any of them asks for a trial: none ever will
OWNER = "driver.pid"  # in Ray's folder: whose Ray it was
QUIET = {  # read by Ray and Tune when they start, here and in the workers of a local Ray
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_token: str | None = None
log = logging.getLogger("metasearch.driver")


class Sick(Exception):
    """Ends a lane's process after a trial that may have left it unsound; Tune starts the lane again in a new one."""


class RayLanes:
    """Ray, the director and the lanes of one session of one study.

        with RayLanes(study, folder, about) as lanes:
            lanes.run(tick)               # until there is nothing more to try, or lanes.stop()
            lanes.status()

    Raises LedgerError, LockedError, StudyMismatch as the Director does; ValueError for lanes that can never be placed;
    ConnectionError if there is no Ray at the study's address.
    """

    def __init__(self, study: Study, folder: Path, about: Mapping[str, Any]) -> None:
        self.study, self.folder, self.about = study, folder, about
        self._stack = contextlib.ExitStack()
        self._stopping: str | None = None
        self._director: Any = None

    def __enter__(self) -> Self:
        try:
            self._stack.enter_context(environment(_variables(self.study.driver)))
            import ray

            self._ray = ray
            if not ray.is_initialized():
                self._stack.enter_context(_started(self.study.driver))
            self.lanes = lanes_that_fit(self.study.driver, ray.nodes())
            self._director = _beside(ray).remote(self.study.to_json(), str(self.folder), os.getpid(), dict(self.about))
            self._stack.callback(ray.kill, self._director)
            importlib.import_module("ray.tune")  # takes a second, in which the director begins

            self._call("ready")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._call("close", self._stopping)
        except Exception as problem:
            log.warning("the director did not close its ledger: %s", problem)
        finally:
            self._stack.close()

    def run(self, tick: Callable[[Status], None]) -> None:
        """Lanes work until the director has nothing more for them. `tick` is called about once a second."""
        from ray import tune

        config, director, body, folder = self.study.driver, self._director, self.study.to_json(), str(self.folder)

        def lane(space: dict[str, Any]) -> dict[str, str]:
            _lane(director, space["lane"], body, folder)
            return {"lane": space["lane"]}  # Tune prints a line about trials that never said anything

        share: dict[str, float] = {"cpu": config.cpus, **({"gpu": config.gpus} if config.gpus else {})}
        _keep_secrets_here()
        storage = self.folder / ".tune"
        watch = _watch(self, tick)
        with _silence(), _removed(storage):
            tuner = tune.Tuner(
                tune.with_resources(lane, share),
                param_space={"lane": tune.grid_search([f"lane-{n}" for n in range(self.lanes)])},
                tune_config=tune.TuneConfig(
                    reuse_actors=False, trial_name_creator=_name, trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name=f"lanes-{os.getpid()}", storage_path=str(storage), verbose=0, callbacks=[watch],
                    failure_config=tune.FailureConfig(max_failures=-1),
                ),
            )
            tuner.fit()
        if watch.failure is not None:
            raise watch.failure
        broken = self._call("broken")
        if broken is not None:
            raise broken

    def stop(self, reason: str) -> None:
        """Running trials stop at their next report. Does not wait."""
        if self._stopping is None and self._director is not None:
            self._stopping = reason
            self._director.call.remote("stop", (reason,))

    def status(self) -> Status:
        found = self._call("status")
        assert isinstance(found, Status)
        return found

    def _lost_with_its_node(self, lane: str) -> Loss | None:
        """Has a lane's process ended because its machine has? Ray says so half a minute later, after it has missed heartbeats; at
        first it knows of a process alone. But where Ray's own process has ended nobody listens any more."""
        node = str(self._call("process", lane) or "").rpartition("-")[2]
        for known in self._ray.nodes():
            if known["NodeID"] != node:
                continue
            try:
                socket.create_connection((known["NodeManagerAddress"], known["NodeManagerPort"]), timeout=2).close()
            except TimeoutError:
                pass  # it may only be slow: if it is gone, Ray will say so
            except OSError:  # refused, or no route there
                return "machine"
            return None if known["Alive"] else "machine"
        return None

    def _call(self, name: str, *given: Any) -> Any:
        try:
            return self._ray.get(self._director.call.remote(name, given))
        except self._ray.exceptions.RayTaskError as error:  # what the director raised, as it raised it
            raise error.cause from None


# -- the director as an actor --------------------------------------------------------------------------------------------------


class _Actor:
    """The director in a process of its own. Its errors travel as values, so that the driver raises the very ones."""

    def __init__(self, study: dict[str, Any], folder: str, owner: int, about: dict[str, Any]) -> None:
        import ray

        self.log = contextlib.ExitStack()
        self.log.enter_context(logged(Path(folder)))
        self.director: Director | None = None
        self.error: Exception | None = None
        restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        try:
            self.director = Director(Study.from_json(study), Path(folder), owner=owner, about=about, lanes_live=restarted)
        except Exception as error:
            self.error = error

    def call(self, name: str, given: tuple[Any, ...]) -> Any:
        """Any method of the director, or one of the driver's questions."""
        if self.director is None:
            assert self.error is not None
            raise self.error
        if name == "ready":
            return None
        if name == "broken":
            return self.director.failure
        if name == "status":
            self.director.keep_status()
        return getattr(self.director, name)(*given)


def _beside(ray: Any) -> Any:
    """The actor's class, placed on the driver's own node, where the ledger is."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(_Actor)


# -- one lane ------------------------------------------------------------------------------------------------------------------


class _Remote:
    """A Link that calls the director's actor."""

    def __init__(self, director: Any, lane: str) -> None:
        import ray

        self._ray, self._director, self.lane = ray, director, lane
        self.process = f"{os.getpid()}-{uuid.uuid4().hex[:8]}-{ray.get_runtime_context().get_node_id()}"

    def next(self, ending: Ending | None, lines: tuple[Line, ...]) -> Assignment | Wait | None:
        found: Assignment | Wait | None = self._call("next", self.lane, self.process, ending, lines)
        return found

    def end(self, ending: Ending, lines: tuple[Line, ...]) -> None:
        self._call("end", self.lane, self.process, ending, lines)

    def report(self, trial: int, lines: tuple[Line, ...]) -> bool:
        return bool(self._call("report", self.lane, self.process, trial, lines))

    def mode(self, signature: str, seconds: Mapping[str, float] | None) -> Mode | None:
        found: Mode | None = self._call("mode", signature, seconds)
        return found

    def note(self, trial: int, what: str) -> None:
        self._call("note", trial, what)

    def fail(self, reason: str, *, storage: bool = False) -> None:
        self._call("fail", reason, storage)

    def _call(self, name: str, *given: Any) -> Any:
        try:
            return self._ray.get(self._director.call.remote(name, given))
        except Exception as error:  # the director has given up, or is gone for good: no trial is to blame
            raise Lost(str(error)) from error


def _lane(director: Any, name: str, body: dict[str, Any], folder: str) -> None:
    """What a worker process does: trials, until there are none."""
    study = Study.from_json(body)
    if not study.driver.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides other trials' GPUs only from those that have one
    try:
        sound = work(
            _Remote(director, name), study.objective, Path(folder),
            devices=study.driver.trial_devices, threads=max(1, int(study.driver.cpus)),
            go_on_after_error=False,
        )
    except Lost:
        return
    if not sound:
        raise Sick(f"{name} goes on in a new process")


def _keep_secrets_here() -> None:
    """Tune copies AWS keys into the environment of its actors, which Ray writes into its logs. Lanes need none: parcels are
    files, and artifacts are sent by the driver's outbox."""
    from ray.tune.execution import class_cache

    for name in [name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]:
        class_cache.ENV_VARS_TO_PROPAGATE.discard(name)


def _name(trial: Any) -> str:
    return str(trial.config["lane"])


def _watch(lanes: RayLanes, tick: Callable[[Status], None]) -> Any:
    """A Tune callback that passes the director's status on, and gives up where no lane ever comes to life."""
    from ray.tune import Callback

    class Watch(Callback):  # type: ignore[misc]
        failure: BaseException | None = None

        def __init__(self) -> None:
            self.asked: Any = None
            self.asked_at = -math.inf
            self.deaths = 0
            self.calls = -1

        def __reduce__(self) -> tuple[type, tuple[()]]:
            return object, ()  # Tune writes its callbacks to a file that nobody reads

        def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
            try:
                self._look(trials)
            except BaseException as error:
                self.failure = self.failure or error
                raise

        def _look(self, trials: list[Any]) -> None:
            if self.asked is None and time.monotonic() - self.asked_at >= 0.5:
                self.asked, self.asked_at = lanes._director.call.remote("status", ()), time.monotonic()
            if self.asked is None or not lanes._ray.wait([self.asked], timeout=0)[0]:
                return
            asked, self.asked = self.asked, None
            status = lanes._ray.get(asked)
            if status.calls != self.calls:
                self.calls, self.deaths = status.calls, 0
            for trial in trials:
                if _name(trial) in status.overdue and trial.temporary_state.ray_actor is not None:
                    log.warning("%s has not been heard of for too long: its process is ended", _name(trial))
                    lanes._ray.kill(trial.temporary_state.ray_actor)
            tick(status)

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            with contextlib.suppress(Exception):  # said before the lane can come back
                if (loss := _loss(_cause(trial)) or lanes._lost_with_its_node(_name(trial))) is not None:
                    lanes._call("lost", _name(trial), loss)
            self.deaths += 1
            if self.deaths >= BARREN:
                self.failure = RuntimeError(
                    f"{self.deaths} lanes ended one after another before any of them asked for a trial: {_cause(trial)}"
                )
                raise self.failure

    return Watch()


def _cause(trial: Any) -> str:
    with contextlib.suppress(Exception):
        return str(trial.get_error() or "no reason is known").rpartition("Failure # ")[2][-2000:]
    return "no reason is known"


def _loss(cause: str) -> Loss | None:
    """What Ray says of the end of a lane's process, where the trial has no part in it; None: nobody knows."""
    if any(mark in cause for mark in ("its node has died", "node was preempted", "AUTOSCALER_DRAIN", "node is dead")):
        return "machine"
    return "memory" if any(mark in cause for mark in ("NODE_OUT_OF_MEMORY", "running low on memory")) else None


# -- resources -----------------------------------------------------------------------------------------------------------------


def lanes_that_fit(driver: Driver, nodes: list[Mapping[str, Any]]) -> int:
    """How many lanes to start: driver.lanes, or as many as fit.

    Raises ValueError, in words, if a lane can never be placed: Ray would wait for ever.
    """
    live = [node["Resources"] for node in nodes if node.get("Alive", True)]
    fits = places(driver, nodes)
    share = f"{driver.cpus:g} CPU" + (f" and {driver.gpus:g} GPU" if driver.gpus else "")
    if fits == 0:
        largest = ", ".join(f"{r.get('CPU', 0):g} CPU and {r.get('GPU', 0):g} GPU" for r in live) or "no machine"
        raise ValueError(
            f"a lane needs {share}, but Ray has {largest}, so none could ever start. Lower driver.cpus or driver.gpus."
        )
    if driver.lanes is not None and driver.lanes > fits and driver.address is None:
        raise ValueError(
            f"{driver.lanes} lanes of {share} are wanted, but {fits} fit. Lower driver.lanes, or what one lane takes: "
            f"driver.cpus = {sum(r.get('CPU', 0) for r in live) / driver.lanes:g} would do for the CPUs."
        )
    return driver.lanes or fits


def places(driver: Driver, nodes: list[Mapping[str, Any]]) -> int:
    """How many lanes fit on all live nodes together."""
    return sum(_times(node["Resources"], driver) for node in nodes if node.get("Alive", True))


def _times(resources: Mapping[str, float], driver: Driver) -> int:
    """How many lanes fit on one node. Ray counts in ten-thousandths."""
    found = math.floor(resources.get("CPU", 0) / driver.cpus + 1e-6)
    if driver.gpus >= 1:
        return min(found, math.floor(resources.get("GPU", 0) / driver.gpus + 1e-6))
    if driver.gpus > 0:  # shares do not stretch over two GPUs
        return min(found, int(resources.get("GPU", 0)) * math.floor(1 / driver.gpus + 1e-6))
    return found


# -- Ray itself ----------------------------------------------------------------------------------------------------------------


def _variables(driver: Driver) -> dict[str, str]:
    """What Ray and Tune are to read from the environment in this session."""
    wanted = {k: v for k, v in QUIET.items() if k not in os.environ}
    wanted["TUNE_MAX_PENDING_TRIALS_PG"] = str(driver.lanes or 1000)  # all lanes start at once
    return wanted | _authentication(driver)


def _authentication(driver: Driver) -> dict[str, str]:
    """Whoever reaches an open Ray's ports runs code as this user, so a local one gets a token, known to this process alone.

    Ray reads it once, when it is imported. With an address Ray does not look for the token file unless it is told to.
    """
    global _token
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    if address_of(driver) is None:
        if _token is None and "ray" in sys.modules:
            return {}  # too late: Ray makes a token file of its own
        _token = _token or secrets.token_hex(32)
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token}
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    return {"RAY_AUTH_MODE": "token"} if named or Path("~/.ray/auth_token").expanduser().is_file() else {}


def address_of(driver: Driver) -> str | None:
    """Of the Ray that a study runs on; None: it has one of its own."""
    return driver.address or os.environ.get("RAY_ADDRESS") or None


@contextlib.contextmanager
def authenticated(address: str | None) -> Iterator[None]:
    """Inside, Ray's own clients show the token that this machine has for clusters elsewhere."""
    with environment(_authentication(Driver(address=address or "auto"))):
        yield


@contextlib.contextmanager
def connected(driver: Driver) -> Iterator[Any]:
    """Ray itself, as a study with this driver would reach it; left again afterwards. Raises ConnectionError."""
    with environment(_variables(driver)):
        import ray

        if ray.is_initialized():
            yield ray
            return
        with _started(driver), _silence():
            yield ray


@contextlib.contextmanager
def _started(driver: Driver) -> Iterator[None]:
    """A Ray of our own, gone afterwards without a trace, or a connection to the one at the study's address."""
    import ray

    address = address_of(driver)
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is not None:
        try:
            knock(address)
            with kept():
                ray.init(address=address, **common)
        except Exception as error:
            raise ConnectionError(
                f"there is no Ray at {address}: {str(error).rstrip('.')}. If it asks for a token, set "
                f"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) as on the cluster."
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    room = tempfile.gettempdir() if len(tempfile.gettempdir()) <= 20 else "/tmp"  # a socket's path has at most 107 bytes
    _sweep(Path(room))
    folder = tempfile.mkdtemp(prefix="ms-", dir=room)
    Path(folder, OWNER).write_text(str(os.getpid()))
    try:
        with _out_of_our_group(), kept():
            ray.init(address="local", include_dashboard=False, object_store_memory=100 * 2**20, _temp_dir=folder, **common)
        yield
    finally:
        try:
            ray.shutdown()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _out_of_our_group() -> Iterator[None]:
    """Ray's processes that are started inside get sessions of their own: a signal to the driver's process group (a terminal
    that is closed, a container's init, `kill -- -GROUP`) asks the driver to stop, and leaves it the Ray that it stops with.

    Only where the kernel ends them with a driver that is killed (Linux): elsewhere Ray does it itself, by the group."""
    services: Any = importlib.import_module("ray._private.services")
    if not services.ray._private.utils.detect_fate_sharing_support():
        yield
        return
    before = services.ConsolePopen
    services.ConsolePopen = functools.partial(before, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = before


def knock(address: str) -> None:
    """Raises OSError if nobody listens there, or turns us away; Ray itself tries for minutes."""
    scheme, _, where = address.rpartition("://")
    host, colon, port = where.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        if not scheme:
            _show_the_token(where)


def _show_the_token(where: str) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError

    try:
        GcsClient(address=where).get_all_node_info(timeout=10)
    except AuthenticationError as error:
        raise PermissionError("the token that it asks for is another, or was not given") from error
    except Exception as error:  # Ray's own connection says more
        log.debug("no answer from %s: %s", where, error)


def _sweep(room: Path) -> None:
    """Takes away what drivers that were killed have left behind."""
    for mark in room.glob(f"ms-*/{OWNER}"):
        with contextlib.suppress(OSError, ValueError):
            if mark.stat().st_uid == os.getuid() and not lives(int(mark.read_text())):
                shutil.rmtree(mark.parent, ignore_errors=True)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Tune talks to its own users; ours hear of their trials from the director."""
    names = ("ray", "ray.tune", "ray.train", "ray.data")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"ray\b.*")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Tune wants a folder for its own state, which nobody reads."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
