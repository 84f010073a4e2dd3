"""Opening a study's ledger: a new one, or the same study's; and what SQLite's errors mean for it."""
from __future__ import annotations

import contextlib
import difflib
import json
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metasearch.driver.folder import LockedError, locked
from metasearch.driver.study import Study
from metasearch.ledger import Ledger, LedgerError, Overtaken, half_written
from metasearch.space import Space
from metasearch.strategies import Strategy

__all__ = ["ACCEPT", "STEAL", "StudyMismatch", "mend", "opened", "what_it_means"]


ACCEPT = "accept_space_change"
STEAL = "steal"


class StudyMismatch(ValueError):
    """A study of this name is there, but it is another study, or its space has changed."""


def opened(folder: Path, study: Study, space: Space, strategy: Strategy, about: Mapping[str, Any]) -> tuple[Ledger, bool]:
    """(the study's ledger, whether it is new). about: more for its first row; ACCEPT in it lets an old study go on in a space
    that has changed, and its ledger says so. Raises StudyMismatch, LedgerError."""
    path = folder / "ledger.sqlite"
    accept, about = bool(about.get(ACCEPT)), {key: value for key, value in about.items() if key not in (ACCEPT, STEAL)}
    facts = {
        "study": study.to_json(), "digest": study.digest,
        "space": space.to_json(), "space_digest": space.digest, "inherits": strategy.inherits, "held": list(strategy.held),
    }
    if not path.exists():
        if any((folder / part).is_dir() for part in ("letters", "parcels")):
            raise LedgerError(
                f"{path} is missing, but {folder} holds trials of a study. Nothing was started. "
                f"Put the ledger back from a backup, or move the folder away to start afresh."
            )
        return Ledger.create(path, {**about, **facts}), True
    ledger = Ledger.open(path, write=True)
    try:
        then = {**ledger.study(), **_accepted(ledger)}
        now = {**facts, "digest": _as_begun(study, then)}
        if accept and any(then[key] != now[key] for key in ("digest", "space_digest")):
            _accept(ledger, then, now, space)
        else:
            _same_study(study, then, facts, path)
    except BaseException:
        ledger.close()
        raise
    return ledger, False


def mend(folder: Path) -> None:
    """Takes back half a write, in whose middle a driver was killed, if nobody works on the study: readers cannot. (A WAL needs no
    such thing.) Where this process may not write there, nothing happens. Raises LedgerError for a ledger that is damaged."""
    if half_written(folder / "ledger.sqlite"):
        with contextlib.suppress(LockedError, OSError), locked(folder):
            Ledger.open(folder / "ledger.sqlite", write=True).close()


def _accepted(ledger: Ledger) -> dict[str, Any]:
    """The space in which the study goes on by somebody's word; nothing if it is the one in which it was begun."""
    told = [row.body["accepted"] for row in ledger.rows(kinds=["note"]) if "accepted" in row.body]
    return told[-1] if told else {}


def _accept(ledger: Ledger, then: Mapping[str, Any], now: Mapping[str, Any], space: Space) -> None:
    """Notes that the study goes on with what its files say now. Raises StudyMismatch if its trials are not in that space."""
    for row in ledger.trials().values():
        if wrong := space.problems(row.proposal.config):
            raise StudyMismatch(
                f"the changed space cannot be accepted: trial {row.id} is not in it ({wrong[0]}). Widen the space instead of "
                f"narrowing it, or start a new study under another name."
            )
    changed = _difference(then["space"], now["space"]) or "a file that the study names"
    body = {key: now[key] for key in ("space", "space_digest", "digest")}
    ledger.append("note", {"what": f"gone on with although this has changed: {changed}", "accepted": body})


def _same_study(study: Study, then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """The budget may have grown since; what determines a trial's result may not have changed."""
    if then["space_digest"] != now["space_digest"]:
        raise StudyMismatch(
            f"the search space of study '{study.name}' has changed since {path} was begun:\n"
            f"{_difference(then['space'], now['space'])}\nUndo the change, start a new study under another name, or accept it, "
            f"if no trial lies outside: metasearch resume {study.name} --accept-space-change"
        )
    if then["digest"] != _as_begun(study, then):
        old, new = ({k: v for k, v in s["study"].items() if k not in ("driver", "track", "budget")} for s in (then, now))
        raise StudyMismatch(
            f"a study '{study.name}' is in {path.parent} already, and it is another one:\n"
            f"{_difference(old, new) or 'a file that it names has changed'}\nGive this one another name."
        )


def _as_begun(study: Study, then: Mapping[str, Any]) -> str:
    """The study's digest with the budget with which it was begun."""
    return study.model_copy(update={"budget": type(study.budget).model_validate(then["study"]["budget"])}).digest


def _difference(then: Any, now: Any) -> str:
    old, new = (json.dumps(value, indent=1, sort_keys=True).splitlines() for value in (then, now))
    return "\n".join(line for line in difflib.unified_diff(old, new, "then", "now", lineterm="", n=1))[:4000]


def what_it_means(error: Exception, path: Path) -> Exception:
    """An error of writing to the ledger as what it is: another driver's writing, a storage that is full or broken, or itself."""
    if isinstance(error, sqlite3.IntegrityError | Overtaken):
        # whoever opens a ledger for writing has a higher number than all before, who are refused from then on; and rows are
        # numbered by who writes them, so that a number cannot be written twice. Nothing of the transaction stays
        return LockedError(
            f"another driver has taken {path} over since this one began, so this one ends: what it had not written yet the "
            f"other does. Look for it (metasearch status {path.parent.name}), and keep METASEARCH_HOME on a file system whose "
            f"locks hold."
        )
    said = str(error)
    words = ("full", "I/O", "readonly", "unable to open")
    if isinstance(error, sqlite3.OperationalError) and any(word in said for word in words):
        free = shutil.disk_usage(path.parent).free
        return OSError(
            f"{path} cannot be written: {said} ({free:,} bytes are free there). The study stopped; make room and resume it: what "
            f"is in the ledger is whole."
        )
    return error
