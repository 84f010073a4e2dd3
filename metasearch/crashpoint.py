"""Named places at which a test may end the process as `kill -9` would: METASEARCH_CRASH_AT=point:n, n counted from 1.

Every write that must survive a crash has a point before and after it, so that tests can stop the world between any two
of them. Without the variable a point is a no-op.
"""
from __future__ import annotations

import os
from collections import Counter

KINDS = (
    "study", "proposed", "started", "report", "retry", "ended", "mode", "opened", "evaluated", "note", "stopped", "resumed",
)  # fmt: skip
POINTS = frozenset(
    {f"ledger.{kind}" for kind in KINDS}  # before a row goes into its transaction
    | {"ledger.commit", "ledger.committed"}  # before and after a transaction becomes durable
    | {f"{file}.{when}" for file in ("letter", "parcel") for when in ("write", "rename", "written")}
    | {"parcel.delete"}
    | {"status.before", "status.after", "outbox.made", "outbox.before", "outbox.after", "outbox.pictured"}
)
_seen: Counter[str] = Counter()


def crashpoint(name: str) -> None:
    """Ends the process, without any clean-up, if the environment names this point and its count."""
    at = os.environ.get("METASEARCH_CRASH_AT")
    if not at:
        return
    if name not in POINTS:
        raise ValueError(f"'{name}' is no crash point: add it to metasearch/crashpoint.py, so that tests crash there too")
    point, _, count = at.partition(":")
    if point == name:
        _seen[name] += 1
        if _seen[name] == int(count or 1):
            os._exit(137)
