"""Runs a study from its first trial to its last, or goes on with one that was interrupted.

    result = run(Study.from_toml("study.toml"))
    result.status.best_trial, result.trials          # a pandas DataFrame, one row a trial

Ctrl-C (or SIGTERM, SIGHUP) once stops running trials at their next report; the study can then be resumed. Twice ends at once,
which a study survives as well as kill -9.
"""
from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from metasearch import plugins
from metasearch.driver import start
from metasearch.driver.director import Director
from metasearch.driver.folder import logged, must_be_free, must_be_gone
from metasearch.driver.messages import Lost
from metasearch.driver.opening import ACCEPT, STEAL, StudyMismatch, ended, mend
from metasearch.driver.status import Status
from metasearch.driver.study import Study, StudyError
from metasearch.home import home_of, living_in, study_folder
from metasearch.ledger import Ledger, LedgerError, TrialRow
from metasearch.signals import asking

if TYPE_CHECKING:
    from pandas import DataFrame

    from metasearch.objectives.train import Train
    from metasearch.track.outbox import Synced

__all__ = ["Result", "of_last_session", "resume", "run", "status", "sync"]

PACKAGES = ("metasearch", "torch", "numpy", "ray", "optuna", "mlflow")
SHOWN = 0.5  # seconds between two statuses that are shown
LAG = 10.0  # seconds for which the last rows' way to MLflow is waited for; what is missing then goes on by itself
Show = Callable[[Status], None]
log = logging.getLogger("metasearch.driver")


@dataclass(frozen=True)
class Result:
    """What a study came to.

    exit_code: 0; 3 if it ended because too many trials failed; 4 if no trial succeeded.
    """

    status: Status
    folder: Path

    @property
    def exit_code(self) -> int:
        if self.status.done == 0:
            return 4
        return 3 if self.status.reason == "errors" else 0

    @property
    def best(self) -> TrialRow | None:
        """The trial with the best score among those that trained longest."""
        if self.status.best_trial is None:
            return None
        with Ledger.open(self.folder / "ledger.sqlite") as ledger:
            return ledger.trials()[self.status.best_trial]

    @property
    def trials(self) -> DataFrame:
        """One row a trial, in the order of proposals: trial, status, score, step, seconds, parent, until, seed, reason, and a
        column `config/PATH` for every dimension."""
        import pandas as pd

        with Ledger.open(self.folder / "ledger.sqlite") as ledger:
            return pd.DataFrame([_flat(row) for row in ledger.trials().values()])


def run(study: Study, *, home: Path | None = None, show: Show | None = None) -> Result:
    """Runs a new study.

    Raises StudyError with everything that does not fit, before anything starts; StudyMismatch if a study of this name is there.
    """
    plugins.renew()
    folder = study_folder(study.name, home_of(home))
    if (folder / "ledger.sqlite").exists():
        raise StudyMismatch(f"a study '{study.name}' is in {folder} already. Resume it, or give the new one another name.")
    with living_in(folder.parent):
        if problems := study.problems() or start.problems(study, folder.parent):
            raise StudyError(problems, f"study '{study.name}'")
        start.fetch(study, folder.parent, folder)
        return _work(study, folder, _about(study), show)


def resume(
    name: str, *, home: Path | None = None, show: Show | None = None, overrides: tuple[str, ...] = (),
    accept_space_change: bool = False, steal: bool = False,
) -> Result:
    """Goes on with a study: no trial that has ended runs again, none is lost. A finished study answers with its result.

    overrides: `key=value` for its budget, its driver and its tracking ("budget.trials=500", "driver.lanes=8"). The budget (and
    driver.max_errors) holds for later sessions too, until another one is given. accept_space_change: its space's file may have
    changed since, if all its trials are in the space as it is now; the ledger says so. steal: take it from a driver on a
    machine that is gone, whose lock is left. Raises StudyMismatch if its data are no longer those of its earlier trials.
    """
    plugins.renew()
    folder = study_folder(name, home_of(home))
    (must_be_gone if steal else must_be_free)(folder)
    mend(folder)
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        study = of_last_session(ledger).with_(overrides)
        looks = ledger.study().get("data_digest") is not None and ended(ledger, study) is None
    about = {key: True for key, said in ((ACCEPT, accept_space_change), (STEAL, steal)) if said}
    with living_in(folder.parent):
        return _work(study, folder, {**about, **(_data_now(study) if looks else {})}, show)


def status(name: str, *, home: Path | None = None) -> dict[str, Any]:
    """What the driver last wrote into status.json, on whatever machine it runs. Raises StudyError if there is no such study,
    LedgerError if the file is lost or damaged."""
    import json

    path = study_folder(name, home_of(home)) / "status.json"
    if not (path.exists() or (path.parent / "ledger.sqlite").exists()):
        raise StudyError([f"there is no {path}: check the study's name and METASEARCH_HOME"], f"study '{name}'")
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        Status.from_json(found)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LedgerError(
            f"{path} is lost or damaged ({error}). It only says what the ledger knows: metasearch resume {name} writes it again"
        ) from error
    return found


def sync(name: str, *, home: Path | None = None) -> Synced:
    """Makes MLflow equal a study's ledger: sends what is missing, mends what differs. Raises TrackingError, LedgerError."""
    from metasearch.track import outbox
    from metasearch.track.store import tracking_uri

    folder = study_folder(name, home_of(home))
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        study = Study.from_json(ledger.study()["study"])
    return outbox.sync(folder, tracking_uri(study.track.uri, folder.parent))


def of_last_session(ledger: Ledger) -> Study:
    """The study of a ledger, with the limits of its last session."""
    study = Study.from_json(ledger.study()["study"])
    told = [row.body for row in ledger.rows(kinds=["resumed", "stopped"]) if "budget" in row.body]
    if not told:
        return study
    budget = type(study.budget).model_validate(told[-1]["budget"])
    driver = study.driver.model_copy(update={"max_errors": told[-1]["max_errors"]})
    return study.model_copy(update={"budget": budget, "driver": driver})


def _work(study: Study, folder: Path, about: Mapping[str, Any], show: Show | None) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with logged(folder), _Interrupts() as interrupts:
            found = _work_of(study)(study, folder, about, show or (lambda status: None), interrupts)
            interrupts.deliver()
    except _Terminated:
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # where nothing was begun, nothing is left
    return Result(found, folder)


def _work_of(study: Study) -> Callable[[Study, Path, Mapping[str, Any], Show, _Interrupts], Status]:
    if study.driver.kind == "local":
        return _locally
    from metasearch.driver.lanes import address_of

    return _through_a_client if (address_of(study.driver) or "").startswith("ray://") else _on_ray


def _locally(study: Study, folder: Path, about: Mapping[str, Any], show: Show, interrupts: _Interrupts) -> Status:
    from metasearch.driver.local import run_local

    director = Director(study, folder, about=about)
    try:
        last, broken = time.monotonic(), list[Exception]()

        def tick(look: Callable[[], Status]) -> None:
            nonlocal last
            if time.monotonic() - last >= SHOWN:
                try:
                    show(look())
                except Exception as error:
                    broken.append(error)
                    raise Lost(f"the study cannot be shown: {error}") from error  # no trial is to blame
                last = time.monotonic()

        if not director.finished:
            with interrupts.gently(director.stop), _tracked(study, folder):
                show(director.status())
                with contextlib.suppress(Lost):  # the director's own failure says more
                    run_local(director, study, folder, tick=tick)
                director.close()
        if director.failure is not None:
            raise director.failure
        if broken:
            raise broken[0]
        found = director.status()
        show(found)
        return found
    finally:
        director.close()


def _on_ray(study: Study, folder: Path, about: Mapping[str, Any], show: Show, interrupts: _Interrupts) -> Status:
    from metasearch.driver.lanes import RayLanes

    with contextlib.ExitStack() as stack:
        with RayLanes(study, folder, about) as lanes:
            found = lanes.status()
            if found.reason is None:
                stack.enter_context(_tracked(study, folder))
                with interrupts.gently(lanes.stop):
                    show(found)
                    lanes.run(show)
                found = lanes.status()
        show(found)
    return found


class _There:
    """The driver as an actor, for those who are only clients of its Ray."""

    def __init__(self, study: dict[str, Any], folder: str, about: dict[str, Any]) -> None:
        self.study, self.folder, self.about = Study.from_json(study), Path(folder), about
        self.interrupts = _Interrupts()
        self.seen: Status | None = None

    def sees(self, path: str) -> bool:
        return Path(path).is_file()

    def run(self) -> Status:
        with logged(self.folder):
            return _on_ray(self.study, self.folder, self.about, self._keep, self.interrupts)

    def _keep(self, status: Status) -> None:
        self.seen = status

    def last(self) -> Status | None:
        return self.seen

    def stop(self, reason: str) -> None:
        self.interrupts.ask(reason)


def _through_a_client(
    study: Study, folder: Path, about: Mapping[str, Any], show: Show, interrupts: _Interrupts
) -> Status:
    from metasearch.driver.afar import run_afar

    def running(stop: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
        interrupts.install()  # Ray has put its own in place
        return interrupts.gently(stop)

    return run_afar(study, folder, about, show, _There, running)


# -- signals -------------------------------------------------------------------------------------------------------------------


class _Interrupts:
    """The first SIGINT, SIGTERM or SIGHUP asks the study to stop at the next reports, the second one ends at once."""

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._stop: Callable[[str], None] | None = None
        self.caught: int | None = None

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in asking()}
            self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    @contextlib.contextmanager
    def gently(self, stop: Callable[[str], None]) -> Iterator[None]:
        """While inside, a first signal calls `stop`."""
        self._stop = stop
        try:
            yield
        finally:
            self._stop = None

    def ask(self, reason: str) -> None:
        """Stops the study as a first signal would; once it runs."""
        if self._stop is not None:
            self._stop(reason)

    def deliver(self) -> None:
        """A signal that stopped the study is now passed on to whoever was there before."""
        if self.caught is not None:
            self._pass_on(self.caught, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.caught is None and self._stop is not None:
            self.caught = number
            log.warning("stopping at the next report of every running trial; once more to end at once")
            self._stop("interrupted")
        else:
            self._pass_on(number, frame)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        before = self._before.get(number)
        if callable(before):
            before(number, frame)
        raise KeyboardInterrupt if number == signal.SIGINT else _Terminated


class _Terminated(KeyboardInterrupt):
    """SIGTERM, SIGHUP: a SystemExit that comes out of a trial would be the trial's own error."""


# -- what the ledger's first row says ------------------------------------------------------------------------------------------


def _about(study: Study) -> dict[str, Any]:
    """Data, bank, versions, code and machine: with the study itself (its seed), what determines its results."""
    objective = _training(study)
    data: dict[str, Any] = {"data_digest": None, "bank_digest": None, "bank_episodes": None, "unit": "score"}
    if objective is not None:
        bank = objective.bank
        data = {
            "data_digest": objective.tasks.digest, "bank_digest": bank.digest, "bank_episodes": bank.episodes.count,
            "unit": objective.tasks.unit,
        }
    return {**data, "versions": {"python": sys.version.split()[0], **_versions()}, "code": _code(), "machine": _machine()}


def _data_now(study: Study) -> dict[str, Any]:
    """The digests of the data and of the bank as `_about` would say them today, as far as they can be had: where the data are
    not there, trials say so."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        if (objective := _training(study)) is not None:
            found["data_digest"] = objective.tasks.digest
            found["bank_digest"] = objective.bank.digest
    return found


def _training(study: Study) -> Train | None:
    """How a study's trials are trained and scored; None for a method of its own that does something else."""
    from metasearch.objectives.train import Train

    objective = study.objective()
    objective = getattr(objective, "train", objective)  # of a one-shot search: how what it finds is trained and scored
    return objective if isinstance(objective, Train) else None


def _machine() -> dict[str, Any]:
    """The driver's, on which a study without a cluster runs as a whole; and whether torch was told to be deterministic."""
    import torch

    return {
        "platform": platform.platform(), "cpus": os.cpu_count(), "gpus": torch.cuda.device_count(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _code() -> str | None:
    """The commit of this code, with a + if files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()


# -- tracking ------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _tracked(study: Study, folder: Path) -> Iterator[None]:
    """The outbox follows in a process of its own; nothing that goes wrong with it touches the search."""
    from metasearch.track import outbox
    from metasearch.track.store import tracking_uri

    process: subprocess.Popen[bytes] | None = None
    if study.track.enabled:
        try:
            process = outbox.start(folder, tracking_uri(study.track.uri, folder.parent), follow=os.getpid())
        except Exception as error:
            log.warning("MLflow is not told of this study: %s. Later: metasearch sync %s", error, study.name)
    yield
    if process is not None:
        until = time.monotonic() + LAG
        while process.poll() is None and time.monotonic() < until and outbox.read_cursor(folder).trouble is None:
            time.sleep(0.05)  # a server that does not answer is not waited for
        if (trouble := outbox.read_cursor(folder).trouble) is not None:
            log.warning("%s. Later: metasearch sync %s", trouble, study.name)
        elif process.poll() is None:
            log.warning("MLflow has not taken everything yet; process %d goes on sending", process.pid)


def _flat(row: TrialRow) -> dict[str, Any]:
    outcome, proposal = row.outcome, row.proposal
    ended = {name: getattr(outcome, name) if outcome else None for name in ("score", "step", "reason")}
    return {
        "trial": row.id, "status": row.status, **ended, "seconds": row.seconds, "parent": proposal.parent,
        "until": proposal.until, "seed": proposal.seed, **{f"config/{path}": value for path, value in proposal.config.items()},
    }
