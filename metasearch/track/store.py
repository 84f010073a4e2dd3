"""The door to MLflow: which server, with what patience, and the words for what can go wrong there.

MLflow's facts that shaped this file (3.17, each was run): six processes that touch a fresh SQLite file at once break its
migrations; SQLite in WAL mode takes twice the calls a second; a dead server blocks a call for four minutes by default.
"""
from __future__ import annotations

import fcntl
import gc
import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasearch.environment import environment
from metasearch.mounts import network_filesystem
from metasearch.track.redact import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 1000  # runs a page


class TrackingError(Exception):
    """MLflow said no, or nothing; says which server, what happened and what to do. `passing`: trying again may help."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(redact(message))
        self.passing = passing


def tracking_uri(uri: str | None, home: Path) -> str:
    """MLFLOW_TRACKING_URI wins, then the study's own `uri`, then SQLite in METASEARCH_HOME; a SQLite path is made absolute."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI") or uri or f"sqlite:///{home.resolve() / 'mlflow.db'}"
    return chosen if sqlite_path(chosen) is None else resolved(chosen)


def resolved(uri: str) -> str:
    """One spelling for every address of one MLflow: the absolute path of a SQLite file, no slash at the end of a server's."""
    path = sqlite_path(uri)
    return uri.rstrip("/") if path is None else f"sqlite:///{path}"


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a SQLite URI's file, or None for another kind of URI."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve() if uri.startswith("sqlite:///") else None


def artifact_location(uri: str, experiment: str) -> str | None:
    """Where a new experiment's files go: beside a SQLite file; a server decides for itself."""
    path = sqlite_path(uri)
    return None if path is None else (path.parent / "mlartifacts" / experiment).as_uri()


def connect(uri: str, *, create: bool) -> MlflowClient:
    """A client. A SQLite database is made (once, whoever comes first) and put in WAL mode, on a disk, if `create`.

    Raises TrackingError if MLflow does not take the URI, or if there is no database and `create` is False.
    """
    with _quiet(), said(uri, "connecting"):
        return _connect(uri, create)


def _connect(uri: str, create: bool) -> MlflowClient:
    path = sqlite_path(uri)
    if path is None:
        return _client(uri)
    if not path.exists() and not create:
        raise TrackingError(
            f"there is no MLflow database at {path}. Name the right one with MLFLOW_TRACKING_URI, or fill it from the ledger: "
            f"metasearch sync NAME",
            passing=False,
        )
    if not create and not os.access(path.parent, os.W_OK):
        return _client(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first process migrates, the others wait
        client = _client(uri)
        client.search_experiments(max_results=1)  # opens the store: makes or checks the tables
        with sqlite3.connect(path, timeout=20.0) as db:
            if network_filesystem(path) is None:
                db.execute("PRAGMA journal_mode = WAL")  # persists in the file
            else:  # a WAL needs memory that machines do not share
                with suppress(sqlite3.OperationalError):  # somebody has it open: the next time
                    db.execute("PRAGMA journal_mode = TRUNCATE")
        db.close()
    return client


def _client(uri: str) -> MlflowClient:
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.MlflowClient(tracking_uri=uri)
    except MlflowException as error:
        raise TrackingError(f"MLflow does not take the tracking URI {uri}: {error}", passing=False) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No usage reports over the network and no progress bars; inside, no log lines about migrations."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # sets its loggers up when it is imported

    assert mlflow
    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def patience(seconds: int) -> AbstractContextManager[None]:
    """How long one call may take inside. No retries in MLflow: after a lost reply a run is looked up before it is made again."""
    return environment({"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})


_PASSING = frozenset({
    "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED", "CANCELLED",
})


@contextmanager
def said(uri: str, doing: str) -> Iterator[None]:
    """Turns what MLflow, requests and SQLAlchemy raise inside into one TrackingError with words."""
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    broken = (requests.exceptions.RequestException, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError, json.JSONDecodeError)
    try:
        yield
    except MlflowException as error:
        passing = error.error_code in _PASSING
        raise TrackingError(f"MLflow at {uri}, while {doing}: {_first_line(error)}", passing=passing) from None
    except broken as error:
        raise TrackingError(f"MLflow at {uri}, while {doing}: {_first_line(error)}", passing=True) from None


def _first_line(error: Exception) -> str:
    """What it says, in a line; of a server that does not answer only why (requests says it three times over)."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    why = re.search(r"\[Errno -?\d+\] [\w ]+|(Read|connect) timed out|Name or service not known|Connection aborted", lines[0])
    if why and lines[0].startswith("API request"):
        return f"no answer ({why[0]})"
    refused = re.search(r"failed with error code (401|403)\b|^(401|403) Client Error", lines[0])
    return _refused(refused[1] or refused[2]) if refused else lines[0][:500]


def _refused(code: str) -> str:
    """Who was refused, and the way out."""
    if code == "401":
        return ("the server does not know this user or password. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or "this user"
    return (f"{user} may not do that there. An administrator of the server can grant READ (leaderboards) or EDIT (also writing) "
            "of the experiment, which has the study's name; a study of another name makes one of its own")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside, Python does not look for garbage: a page of runs is made of 30,000 objects, none of which is any, and looking takes
    half of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def pages(search: Callable[..., Any], **query: Any) -> Iterator[Any]:
    """Every result of a paged MLflow search."""
    token = None
    while True:
        with _uncollected():
            page = search(page_token=token, **query)
        yield from page
        token = page.token
        if not token:
            return
