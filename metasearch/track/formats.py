"""A leaderboard as a table for people, as CSV, strict JSON or Parquet for programs."""
from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasearch.records import ERRORS

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

DIMS = 12  # dimensions that a row of a table names at most


def as_csv(frame: pd.DataFrame) -> str:
    """One line a row; missing values are empty."""
    return str(frame.drop(columns="config").to_csv(index=False))


def as_json(frame: pd.DataFrame) -> str:
    """A list of objects, each with its config as an object; missing values and numbers that are not finite are null."""
    return json.dumps(records(frame), indent=1, allow_nan=False)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One plain object a row, as `as_json` writes it."""
    found = []
    for record in frame.to_dict(orient="records"):
        config, chosen = json.loads(record.pop("config")), _plain(record.pop("found"))
        told = {"config": config, "found": None if chosen is None else json.loads(chosen)}
        found.append({**told, **{str(k): _plain(v) for k, v in record.items() if not str(k).startswith("config/")}})
    return found


def as_parquet(frame: pd.DataFrame) -> bytes:
    """`config` is JSON text, and so is a dimension whose values mix texts and numbers."""
    flat = frame.copy()
    flat.attrs = {}
    for name in flat.columns:
        if flat[name].dtype == object:
            flat[name] = flat[name].map(lambda value: None if value is None else json.dumps(value)).astype("str")
    buffer = io.BytesIO()
    flat.to_parquet(buffer, index=False)
    return buffer.getvalue()


def save(content: str | bytes, path: Path) -> Path:
    """Writes a file under another name and renames it: whoever reads it sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return path


def as_table(frame: pd.DataFrame, *, title: str | None = None) -> Table:
    """For a terminal (rich): accuracies in percent, errors positive, ± half of the 95 % interval, = for rows that cannot be told
    from the first; of a config, or of what a one-shot search found, the dimensions in which the rows differ. Cells are text: a
    name out of a file is no markup and steers no terminal. What else must be said stands in `captions`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = records(frame)
    columns: dict[str, list[str]] = {
        "#": [_cell(row["rank"]) for row in rows],
        "trial": [row["trial"] for row in rows],
        _heading(rows): [_score(row) for row in rows],
        "": ["=" if row["tied"] and row["rank"] != 1 else "" for row in rows],
    }
    if any(row["unit"] in ERRORS for row in rows):
        columns["median"] = ["" if row["median"] is None else _amount(row["median"], row["unit"]) for row in rows]
    configs = _trained(rows)
    varied = _varied(configs)
    columns["found" if any(row["found"] for row in rows) else "config"] = [_config(config, varied) for config in configs]
    if _costs_differ(frame):
        columns["front"] = ["*" if row["front"] else "" for row in rows]
    columns["params"] = [_short(row["params"]) for row in rows]
    columns["FLOPs"] = [_short(row["flops"]) for row in rows]
    if frame.attrs.get("front") == "latency_ms":
        columns["latency"] = ["" if row["latency_ms"] is None else f"{row['latency_ms']:.3g} ms" for row in rows]
    columns["time"] = [_clock(row["seconds"]) for row in rows]
    if len({row["step"] for row in rows if row["rank"] or row["status"] == "done"}) > 1:
        columns["step"] = [_cell(row["step"]) for row in rows]
    if any(row["norm"] for row in rows):
        columns["norm"] = [_cell(row["norm"]) for row in rows]
    if any(row["nets"] for row in rows):
        columns["nets"] = [_cell(row["nets"]) for row in rows]
    if any(row["supernet"] is not None for row in rows):
        columns["supernet"] = [_score({**row, "score": row["supernet"], "low": None, "status": ""}) for row in rows]
        columns["ranks"] = ["" if row["rank_correlation"] is None else f"{row['rank_correlation']:.2f}" for row in rows]

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for head in columns:
        right = head in ("#", "median", "params", "FLOPs", "latency", "time", "step", "supernet", "ranks")
        table.add_column(Text(head), justify="right" if right else "left", overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*(Text(_printable(cell)) for cell in cells))
    return table


def _costs_differ(frame: pd.DataFrame) -> bool:
    """Has the board a front that says more than which trial is the best?"""
    return int(frame.loc[frame["rank"].notna(), frame.attrs.get("front", "params")].nunique()) > 1


def captions(frame: pd.DataFrame) -> list[str]:
    """What a table leaves unsaid: what an interval covers, what the signs mean, what is missing."""
    said = []
    counts = sorted({int(n) for n in frame["episodes"].dropna()})
    if counts:
        episodes = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        said.append(
            f"± is a 95 % interval over {episodes} validation episodes; it covers neither seeds nor the choice of the best."
        )
    if _costs_differ(frame):
        cost = {"latency_ms": "latency", "flops": "FLOPs", "seconds": "time"}.get(front := frame.attrs.get("front", ""), front)
        said.append(f"* is on the front: no trial scores as high at a lower cost (in {cost or 'params'}).")
    if (frame["tied"].fillna(value=False) & (frame["rank"] != 1)).any():
        said.append("= cannot be told from the first: paired tests on the same episodes, 5 %, Holm.")
    if (frame["nets"] == "per task").any():
        said.append("per task: every task chose an architecture for itself; params and FLOPs are means over those nets. found is "
                    "that of the meta-parameters.")
    if (frame["found"].notna() & (frame["nets"] != "per task").fillna(value=True)).any():
        said.append("found: what a search chose and then trained by itself; the score is that of this training.")
    if frame["supernet"].notna().any():
        said.append("supernet: the score with the weights of the search. ranks: how far these rank architectures as trainings by "
                    "themselves do, from 1 (the same) over 0 (not at all) to -1.")
    if (frame["rank"].isna() & (frame["status"] == "done")).any():
        said.append("No rank: trained for fewer steps than the first.")
    units = list(dict.fromkeys(frame["unit"].dropna()))
    for unit in (unit for unit in units if unit != "accuracy"):
        whose = "" if len(units) == 1 else f" of {', '.join(_studies_in(frame, unit))}"
        said.append(f"Scores{whose} are {unit}{'; less is better' if unit in ERRORS else ''}.")
    if len(frame) < frame.attrs.get("rows", 0):
        said.append(f"{len(frame)} of {frame.attrs['rows']:,} rows (--top).")
    return said + missing(frame)


def missing(frame: pd.DataFrame) -> list[str]:
    """What is not on the board although it should be: ledger rows that MLflow has not seen, and of all studies those that cannot
    be read, and why."""
    said = [f"'{study}' is missing here: {why}." for study, why in frame.attrs.get("damaged", {}).items()]
    if unseen := frame.attrs.get("unseen"):
        behind = frame.attrs.get("behind", ())
        of = f" of {', '.join(behind)}" if behind else ""
        said.append(f"MLflow has not seen the last {unseen:,} ledger rows{of} yet: metasearch sync, or --source ledger.")
    return said


def _heading(rows: list[dict[str, Any]]) -> str:
    units = {row["unit"] for row in rows}
    return str(units.pop() or "score") if len(units) == 1 else "score"


def _score(row: Mapping[str, Any]) -> str:
    if row["score"] is None:
        return str(row["status"])
    half = None if row["low"] is None or row["high"] is None else (row["high"] - row["low"]) / 2
    return _amount(row["score"], row["unit"], half)


def _amount(score: float, unit: str | None, half: float | None = None) -> str:
    """An accuracy in percent, an error as small as it is."""
    if unit == "accuracy":
        return f"{100 * score:.1f}" + ("" if half is None else f" ± {100 * half:.1f}") + " %"
    return f"{score:.4g}" + ("" if half is None else f" ± {half:.2g}")


def _trained(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every row what was trained: what a search found; nothing where a search found nothing."""
    studies = {_study(row) for row in rows if row["found"]}
    return [row["found"] or ({} if _study(row) in studies else row["config"]) for row in rows]


def _studies_in(frame: pd.DataFrame, unit: str) -> list[str]:
    return list(dict.fromkeys(name.rpartition("/")[0] for name in frame.loc[frame["unit"] == unit, "trial"]))


def _study(row: Mapping[str, Any]) -> str:
    return str(row["trial"]).rpartition("/")[0]


def _varied(configs: list[dict[str, Any]]) -> list[str]:
    """The dimensions in which they differ; of a single one all."""
    paths = list(dict.fromkeys(path for config in configs for path in config))
    return [path for path in paths if len(configs) == 1 or len({json.dumps(config.get(path)) for config in configs}) > 1]


def _config(config: Mapping[str, Any], paths: list[str]) -> str:
    """ "learner=maml .inner_lr=0.1": a path that goes on from the one before it is written short."""
    said, before = [], ""
    for path in (path for path in paths if path in config):
        inside = before and path.startswith(f"{before}.")
        name = path.removeprefix(before) if inside else path
        before = before if inside else path
        said.append(f"{name}={_cell(config[path])}")
    more = f" and {len(said) - DIMS} more" if len(said) > DIMS else ""
    return " ".join(said[:DIMS]) + more


def _plain(value: Any) -> Any:
    """A cell as plain JSON."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _short(number: float | None) -> str:
    """1234567 -> 1.23M."""
    if number is None:
        return ""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def _clock(seconds: float | None) -> str:
    """75 -> 1:15, 4000 -> 1:06:40; below ten seconds 2.5 s."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
