"""Opening a study's ledger: a new one, or the same study's; and what SQLite's errors mean for it."""
from __future__ import annotations

import contextlib
import difflib
import json
import logging
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

__all__ = ["ACCEPT", "STEAL", "StudyMismatch", "ended", "limits", "mend", "opened", "what_it_means"]


log = logging.getLogger("metasearch.driver")
ACCEPT = "accept_space_change"
STEAL = "steal"


class StudyMismatch(ValueError):
    """A study of this name is there, but it is another study, or its space or its data have changed."""


def opened(folder: Path, study: Study, space: Space, strategy: Strategy, about: Mapping[str, Any]) -> tuple[Ledger, bool]:
    """(the study's ledger, whether it is new). about: more for its first row, with which the digests of an old study's data must
    agree; ACCEPT in it lets an old study go on in a space that has changed, and its ledger says so. Raises StudyMismatch,
    LedgerError."""
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
        accept = accept and any(then[key] != now[key] for key in ("digest", "space_digest"))
        if accept:
            _same_table(study, then, facts, path)
            _all_within(ledger, space)
        else:
            _same_study(study, then, facts, path)
        _same_data(study, then, about, path)
        if accept:
            _accept(ledger, then, now)
        _note_other_bank(ledger, then, about)
    except BaseException:
        ledger.close()
        raise
    return ledger, False


def limits(study: Study) -> dict[str, Any]:
    """What may be changed when a study goes on, as rows of its ledger say it."""
    return {"budget": study.budget.model_dump(mode="json"), "max_errors": study.driver.max_errors}


def ended(ledger: Ledger, study: Study) -> str | None:
    """Why the study is finished; None if it is not, or if its limits were raised since."""
    last = None
    for row in ledger.rows(kinds=["stopped"]):
        last = row.body
    if last is None or not last["final"]:
        return None
    return str(last["reason"]) if all(last.get(key) == value for key, value in limits(study).items()) else None


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


def _all_within(ledger: Ledger, space: Space) -> None:
    """Raises StudyMismatch if a trial is not in the space as it is now."""
    for row in ledger.trials().values():
        if wrong := space.problems(row.proposal.config):
            raise StudyMismatch(
                f"the changed space cannot be accepted: trial {row.id} is not in it ({wrong[0]}). Widen the space instead of "
                f"narrowing it, or start a new study under another name."
            )


def _accept(ledger: Ledger, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Notes that the study goes on with what its files say now."""
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
        raise _another(study, then, now, path)


def _same_table(study: Study, then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Whoever accepts another space accepts no other seed or training with it. Where its files lie is not compared: through Ray
    Client they are copied into a folder for each content."""
    old = study.from_json(then["study"])  # whose table may be older than some keys
    if _unplaced(old.to_json()) != _unplaced(now["study"]):
        raise _another(study, then, now, path)


def _unplaced(table: Mapping[str, Any]) -> dict[str, Any]:
    """What determines results, with all files of one kind alike."""
    def kind(name: str) -> str:
        return "a file" if name.endswith(".py") else name

    found = _determining(table)
    return {**found, "space": kind(found["space"]), "method": {**found["method"], "name": kind(found["method"]["name"])}}


def _another(study: Study, then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> StudyMismatch:
    changed = _difference(*(_determining(row["study"]) for row in (then, now))) or "a file that it names has changed"
    return StudyMismatch(
        f"a study '{study.name}' is in {path.parent} already, and it is another one:\n{changed}\nGive this one another name."
    )


def _determining(table: Mapping[str, Any]) -> dict[str, Any]:
    """What of a study's table determines its results."""
    return {key: value for key, value in table.items() if key not in ("name", "driver", "track", "budget")}


def _same_data(study: Study, then: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """The leaderboard pairs all trials of a study, so they must all be scored on the same episodes. What one of both does not
    say (an old ledger, data that are not on this machine) is not compared."""
    if (data := _other("data_digest", then, now)) is not None:
        raise StudyMismatch(
            f"the data of study '{study.name}' must be those with which {path} was begun (digest {data[0]}), but they are others "
            f"(digest {data[1]}), so that new scores could not be compared with the old ones. Put the data back "
            f"(METASEARCH_DATA, or what [tasks] names), or run the study under another name."
        )


def _note_other_bank(ledger: Ledger, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Of the same data, other episodes are a matter of versions, or of a processor that rounds otherwise: a study should survive
    both, and say so."""
    if (bank := _other("bank_digest", then, now)) is not None:
        told = ", ".join(f"{name} {version}" for name, version in then.get("versions", {}).items())
        what = (f"the validation episodes are not to the last bit those with which the study was begun (digest {bank[0]}, now "
                f"{bank[1]}; begun with {told or 'versions that the ledger does not say'}): comparisons episode by episode of "
                f"trials before and after are as exact as these are alike")
        log.warning("%s", what)
        ledger.append("note", {"what": what})


def _other(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """Both values of a key, if they are known and differ."""
    old, new = then.get(key), now.get(key)
    return None if old is None or new is None or old == new else (str(old), str(new))


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
