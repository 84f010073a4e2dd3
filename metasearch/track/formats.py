"""A leaderboard as a table for people, as CSV, strict JSON or Parquet for programs."""
from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasearch.track.leaderboard import ERRORS

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

DIMS = 6  # dimensions that a table shows: those that differ between its rows


def as_csv(frame: pd.DataFrame) -> str:
    """One line a row; missing values are empty."""
    return str(frame.drop(columns="config").to_csv(index=False))


def as_json(frame: pd.DataFrame) -> str:
    """A list of objects, each with its config as an object; missing values and numbers that are not finite are null."""
    records = []
    for record in frame.to_dict(orient="records"):
        config = json.loads(record.pop("config"))
        records.append({"config": config, **{k: _plain(v) for k, v in record.items() if not k.startswith("config/")}})
    return json.dumps(records, indent=1, allow_nan=False)


def to_parquet(frame: pd.DataFrame, path: Path) -> Path:
    """Writes under another name and renames. `config` is JSON text, and so is a dimension whose values mix texts and numbers."""
    flat = frame.copy()
    flat.attrs = {}
    for name in flat.columns:
        if flat[name].dtype == object:
            flat[name] = flat[name].map(lambda value: None if value is None else json.dumps(value)).astype("str")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        flat.to_parquet(new, index=False)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return path


def as_table(frame: pd.DataFrame, *, top: int | None = None, title: str | None = None) -> Table:
    """For a terminal (rich): accuracies in percent, errors positive, ± half of the 95 % interval, = for rows that cannot be told
    from the first. Cells are text: a name out of a file can neither be markup nor steer the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = frame if top is None else frame.head(top)
    dims = _telling(shown)
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", caption_justify="left", pad_edge=False)
    table.caption = _caption(frame, shown, dims)
    units = list(dict.fromkeys(shown["unit"].dropna()))
    heads = ["", "trial", units[0] if len(units) == 1 else "score", "="]
    errors = any(unit in ERRORS for unit in units)
    heads += ["median"] * errors + _short_names(dims) + ["params", "FLOPs", "seconds", "step"]
    more = [name for name in ("norm", "status") if name == "norm" or (shown["status"] != "done").any()]
    more = [name for name in more if shown[name].notna().any()]
    for at, head in enumerate([*heads, *more]):
        right = at in (0, 2) or head in ("median", "params", "FLOPs", "seconds", "step")
        table.add_column(Text(_printable(head)), justify="right" if right else "left", overflow="fold")
    for record in shown.to_dict(orient="records"):
        tied = _plain(record["tied"]) is True and _plain(record["rank"]) != 1
        cells = [_cell(record["rank"]), record["trial"], _score(record), "=" if tied else ""]
        cells += [_number(record["median"])] * errors + [_cell(record[name]) for name in dims]
        cells += [_short(record["params"]), _short(record["flops"]), _number(record["seconds"], 3), _cell(record["step"])]
        cells += [_cell(record[name]) for name in more]
        table.add_row(*(Text(_printable(cell)) for cell in cells))
    return table


def _telling(frame: pd.DataFrame) -> list[str]:
    """The dimensions that tell the rows apart; of too many, those that most rows have."""
    dims = [name for name in frame.columns if name.startswith("config/")]
    differ = [name for name in dims if frame[name].map(str).nunique() > 1] if len(frame) > 1 else dims
    kept = sorted(differ, key=lambda name: -int(frame[name].notna().sum()))[:DIMS]
    return [name for name in dims if name in kept]


def _short_names(dims: list[str]) -> list[str]:
    """The last part of each path where that is enough to tell them apart."""
    paths = [name.removeprefix("config/") for name in dims]
    last = [path.rpartition(".")[2] for path in paths]
    return [part if last.count(part) == 1 else path for path, part in zip(paths, last, strict=True)]


def _caption(frame: pd.DataFrame, shown: pd.DataFrame, dims: list[str]) -> str:
    ranked = int(frame["rank"].notna().sum())
    counts = sorted({int(n) for n in shown["episodes"].dropna()})
    said = []
    if counts:
        episodes = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        said.append(f"±: 95 % interval over {episodes} episodes; not over seeds, nor over the choice of the best of {ranked}.")
    if shown["tied"].fillna(value=False).sum() > 1:
        said.append("=: cannot be told from the first (paired tests on the same episodes, Holm, 5 %).")
    if (shown["rank"].isna() & (shown["status"] == "done")).any():
        said.append("No rank: trained for fewer steps than the first.")
    hidden = sum(name.startswith("config/") for name in frame.columns) - len(dims)
    if hidden:
        said.append(f"{hidden} more dimension{'s' if hidden > 1 else ''}: --format csv.")
    if len(shown) < len(frame):
        said.append(f"{len(shown)} of {len(frame)} rows.")
    if frame.attrs.get("unseen"):
        said.append(f"MLflow has not seen the last {frame.attrs['unseen']:,} ledger rows yet.")
    return " ".join(said)


def _score(record: Mapping[Any, Any]) -> str:
    score, low, high = (_plain(record[name]) for name in ("score", "low", "high"))
    if score is None:
        return "-"
    percent = record["unit"] == "accuracy"
    factor, digits = (100.0, 1) if percent else (1.0, 4)
    half = "" if low is None or high is None else f" ± {(high - low) / 2 * factor:.{digits}f}"
    return f"{score * factor:.{digits}f}{half}{' %' if percent else ''}"


def _plain(value: Any) -> Any:
    """A cell as plain JSON."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> str:
    plain = _plain(value)
    if plain is None:
        return ""
    return f"{plain:.4g}" if isinstance(plain, float) else plain if isinstance(plain, str) else json.dumps(plain)


def _number(value: Any, digits: int = 4) -> str:
    plain = _plain(value)
    return "" if plain is None else f"{plain:.{digits}g}" if abs(plain) < 1e5 else f"{plain:,.0f}"


def _short(value: Any) -> str:
    """1234567 -> 1.23M."""
    plain = _plain(value)
    if plain is None:
        return ""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(plain) >= size:
            return f"{plain / size:.3g}{letter}"
    return f"{plain:.3g}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
