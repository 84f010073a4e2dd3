"""Many runs in an MLflow database in seconds: those of a study that was really sent, copied row by row under new names.

Curves (the table `metrics`) are not copied: no leaderboard reads them.
"""
from __future__ import annotations

import uuid
from typing import Any

TABLES = ("runs", "params", "latest_metrics", "tags")
NAMES = ("mlflow.runName", "metasearch.trial")


def multiply(url: str, study: str, times: int) -> int:
    """Copies the trials of `study`, in the database at a SQLAlchemy URL, until there are `times` as many; answers how many."""
    import sqlalchemy as sql

    engine = sql.create_engine(url)
    schema = sql.MetaData()
    schema.reflect(engine, only=TABLES)
    runs, tags = schema.tables["runs"], schema.tables["tags"]
    with engine.begin() as db:
        mine = tags.c.key == "metasearch.trial", tags.c.value.like(f"{study}/%")
        named = sql.select(tags.c.run_uuid, tags.c.value).where(*mine)
        trials = {row.run_uuid: int(row.value.rpartition("/")[2]) for row in db.execute(named)}
        first, last = min(trials.values()), max(trials.values())
        rows = {
            name: [dict(row) for row in db.execute(sql.select(table).where(table.c.run_uuid.in_(trials))).mappings()]
            for name, table in schema.tables.items() if name in TABLES
        }
        for copy in range(1, times):
            names = {run: f"{study}/{number + copy * (last - first + 1)}" for run, number in trials.items()}
            new = {run: uuid.uuid4().hex for run in trials}
            db.execute(runs.insert(), [_renamed(row, new, names) for row in rows["runs"]])
            for name in TABLES[1:]:
                db.execute(schema.tables[name].insert(), [_renamed(row, new, names) for row in rows[name]])
    engine.dispose()
    return len(trials) * times


def _renamed(row: dict[str, Any], new: dict[str, str], names: dict[str, str]) -> dict[str, Any]:
    run = row["run_uuid"]
    changed = {**row, "run_uuid": new[run]}
    if "name" in row:
        changed["name"] = names[run]
        changed["artifact_uri"] = row["artifact_uri"].replace(run, new[run])
    if row.get("key") in NAMES:
        changed["value"] = names[run]
    return changed
