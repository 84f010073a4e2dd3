"""The leaderboard: a pure function of rows, which come out of MLflow or out of a ledger.

    leaderboard("glyphs", where="learner.inner_lr < 0.1", top=10)     # a pandas DataFrame
    leaderboard(rows_from_ledger(folder))                             # the same from rows

One row is one lineage: a segment that another one went on from (the same config, its parent's weights) is not shown. Only
trials that are done are ranked; whole trainings come before those stopped early, and only equally long ones are compared. Where
children are configs of their own that inherit weights (large-scale evolution), every trial is an individual: all are compared.
"Cannot be told from the first" is a paired test on the same episodes with Holm's correction, never overlapping intervals.
"""
from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from metasearch.home import home_of, study_folder
from metasearch.ledger import Ledger, LedgerError
from metasearch.plugins import did_you_mean
from metasearch.records import ERRORS, LOOKED_AT, Config
from metasearch.track.projection import SEQ, is_number, joined, nets_of, norm_mode, scores_of, spelled, study_id, tag, unit
from metasearch.track.redact import redact
from metasearch.track.statistics import mean_interval, tail, told_from_first
from metasearch.track.store import PAGE, TrackingError, connect, pages, patience, resolved, said, tracking_uri
from metasearch.track.where import COLUMNS, NUMBERS, TEXTS, Comparison, mlflow_filter, parse, trial_name

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run

ALPHA = 0.05
READING = 30  # seconds that a server may take for one page
Cost = Literal["params", "flops", "latency_ms", "seconds"]
COSTS: tuple[Cost, ...] = ("params", "flops", "latency_ms", "seconds")
LAST = (
    "params", "flops", "latency_ms", "seconds", "step", "status", "norm", "nets", "supernet", "rank_correlation", "unit", "seed",
    "parent", "until", "reason",
)
LATENCY, SUPERNET, RANKS = "latency_ms", "supernet/score", "supernet/rank_correlation"  # metrics; in MLflow points of curves


@dataclass(frozen=True)
class Row:
    """One trial. score: larger is better, None unless it is done; episodes: its scores on the bank, in the bank's order.

    superseded: the trial that went on with this one's config and weights, or None. inherits: its study's trials are
    individuals, and `until` is no rung. nets: "per task" if every task has an architecture of its own; params and flops are
    then means.

    found: of a one-shot search the architecture that it chose: the score is that of this one, and what `config` says in the
    dimensions that were searched means nothing. supernet: its score with the weights of the search; rank_correlation: how far
    those weights rank architectures as trainings by themselves do.
    """

    study: str
    trial: int
    config: Config
    status: str
    score: float | None = None
    episodes: NDArray[np.float32] | None = None
    step: int | None = None
    until: int | None = None
    parent: int | None = None
    superseded: int | None = None
    inherits: bool = False
    params: float | None = None
    flops: float | None = None
    latency_ms: float | None = None
    seconds: float | None = None
    seed: int | None = None
    norm: str | None = None
    nets: str | None = None
    found: Config | None = None
    supernet: float | None = None
    rank_correlation: float | None = None
    unit: str = "score"
    bank: str | None = None
    reason: str | None = None

    @property
    def name(self) -> str:
        return f"{self.study}/{self.trial}"

    @property
    def ranked(self) -> bool:
        return self.status == "done" and self.score is not None and math.isfinite(self.score)

    @property
    def order(self) -> tuple[Any, ...]:
        """Best first: whole trainings, then longer ones, then by score; what is not ranked comes last."""
        score = self.score if self.ranked and self.score is not None else -math.inf
        return not self.ranked, self.rung is not None, -(self.rung or 0), -score, self.trial

    @property
    def rung(self) -> int | None:
        """The length of training at which it compares; None: a whole one."""
        return None if self.inherits else self.until

    @cached_property
    def shown(self) -> dict[str, Any]:
        """Its numbers and words as tables show them: an error is positive, and its interval is turned round with it."""
        sign = -1.0 if self.unit in ERRORS else 1.0
        low = high = median = None
        if self.episodes is not None and len(self.episodes) and self.ranked:
            _, low, high, _ = mean_interval(self.episodes)
            median = tail(self.episodes).median
        low, high = (high, low) if sign < 0 else (low, high)
        return {
            "score": _times(sign, self.score if self.ranked else None), "low": _times(sign, low), "high": _times(sign, high),
            "median": _times(sign, median), "episodes": len(self.episodes) if self.episodes is not None and self.ranked else None,
            **{name: getattr(self, name) for name in LAST}, "supernet": _times(sign, self.supernet),
        }


# -- the function ---------------------------------------------------------------------------------------------------------


def leaderboard(
    rows: str | Iterable[Row] | None, *, where: str | None = None, sort: str | None = None, top: int | None = None,
    home: Path | None = None, uri: str | None = None, source: str = "mlflow", front: Cost = "params",
) -> pd.DataFrame:
    """Ranked rows as a DataFrame: rank, trial, score, low, high, median, episodes, tied, front, config/<path>..., params, ...,
    config and found (JSON).

    rows: rows, or a study's name (None: all studies of an MLflow), which is read from `source`, "mlflow" or "ledger".
    tied: cannot be told from the first of its study at 5 % (<NA>: not comparable: other episodes, or another length).
    front: on the Pareto front of score and a cost ("params", "flops", "latency_ms" or "seconds"), among the ranked rows of its
    study: none of them scores as high at a lower cost, or higher at as low a one.
    where: see where.py. sort: a column or a dimension, best or smallest first; "-params": largest first. top: so many rows.
    Accuracies are fractions, errors are positive. attrs: front, rows (of the whole board), source, unseen (ledger rows
    that MLflow has not seen; None: not known), of all studies also behind (the names of those whose rows these are) and damaged
    (the ledgers that cannot be read: {study: why}).
    Raises WhereError, ValueError for an unknown key, TrackingError if MLflow does not answer, LedgerError.
    """
    if top is not None and top < 0:
        raise ValueError(f"top must be a number of rows, 0 or more, but got {top}")
    attrs: dict[str, Any] = {"source": "rows", "unseen": None}
    if rows is None or isinstance(rows, str):
        rows, attrs = _read(rows, where, sort, home, uri, source)
    elif where is not None:
        rows = filtered(list(rows), where)
    if front not in COSTS:
        raise ValueError(f"a front is one of score and {', '.join(COSTS)}, but got {front!r:.80}")
    whole = _frame(ranked(rows), sort, front)
    found = whole if top is None else whole.head(top)
    found.attrs = {**attrs, "rows": len(whole), "front": front}
    return found


def ranked(rows: Iterable[Row]) -> list[tuple[Row, int | None, bool | None]]:
    """(row, its rank, whether it cannot be told from the first), best first, study by study.

    Ranks are those of the longest trainings of a study; shorter ones follow in order, without a rank. Rows that another row went
    on from, and answers that were reused, are left out.
    """
    rows = list(rows)
    here = {(row.study, row.trial): row for row in rows}
    gone_on = {
        (row.study, row.parent) for row in rows
        if row.parent is not None and not row.inherits and row.status in LOOKED_AT and (row.study, row.parent) in here
        and here[row.study, row.parent].config == row.config
    }
    left = [row for row in rows if row.superseded is None and row.status != "reused" and (row.study, row.trial) not in gone_on]
    studies = dict.fromkeys(row.study for row in rows)
    return [entry for study in studies for entry in _ranked_study(sorted((r for r in left if r.study == study), key=_order))]


def _order(row: Row) -> tuple[Any, ...]:
    return row.order


def _ranked_study(rows: list[Row]) -> list[tuple[Row, int | None, bool | None]]:
    if not rows or not rows[0].ranked:
        return [(row, None, None) for row in rows]
    first = rows[0]
    equal = [row for row in rows if row.ranked and row.rung == first.rung]
    paired = [row for row in equal[1:] if _paired(first, row)]
    p_values: dict[int, float] = {}
    if first.episodes is not None:
        told = told_from_first(first.episodes, [row.episodes for row in paired if row.episodes is not None], best_of=len(equal))
        p_values = {row.trial: float(p) for row, p in zip(paired, told, strict=True)}
    tied = {first.trial: True} | {trial: p > ALPHA for trial, p in p_values.items()}
    rank = {row.trial: at for at, row in enumerate(equal, start=1)}
    return [(row, rank.get(row.trial), tied.get(row.trial)) for row in rows]


def _paired(first: Row, row: Row) -> bool:
    return (
        first.episodes is not None and row.episodes is not None and len(first.episodes) == len(row.episodes)
        and first.bank is not None and first.bank == row.bank
    )


def on_front(entries: list[tuple[Row, int | None, bool | None]], cost: Cost) -> list[bool | None]:
    """Of every row, whether it is on the Pareto front of its study; None for rows without a rank or without the cost."""
    costs = [getattr(row, cost) for row, _, _ in entries]
    found: list[bool | None] = [None] * len(entries)
    for study in dict.fromkeys(row.study for row, _, _ in entries):
        mine = [i for i, (row, rank, _) in enumerate(entries) if row.study == study and rank is not None and costs[i] is not None]
        best, so_far = -math.inf, math.inf
        for i in sorted(mine, key=lambda i: (costs[i], -(entries[i][0].score or 0.0))):
            score = entries[i][0].score or 0.0
            found[i] = score > best or (score == best and costs[i] == so_far)
            if score > best:
                best, so_far = score, costs[i]
    return found


def _frame(entries: list[tuple[Row, int | None, bool | None]], sort: str | None, front: Cost = "params") -> pd.DataFrame:
    import pandas as pd

    paths = list(dict.fromkeys(path for row, _, _ in entries for path in row.config))
    columns: dict[str, list[Any]] = {
        "rank": [rank for _, rank, _ in entries],
        "trial": [row.name for row, _, _ in entries],
        **{name: [row.shown[name] for row, _, _ in entries] for name in ("score", "low", "high", "median", "episodes")},
        "tied": [tied for _, _, tied in entries],
        "front": on_front(entries, front),
        **{f"config/{path}": [row.config.get(path) for row, _, _ in entries] for path in paths},
        **{name: [row.shown[name] for row, _, _ in entries] for name in LAST},
    }
    frame = pd.DataFrame({name: _column(name, values) for name, values in columns.items()})
    frame["config"] = pd.Series([json.dumps(row.config) for row, _, _ in entries], dtype="str")
    frame["found"] = pd.Series([None if row.found is None else json.dumps(row.found) for row, _, _ in entries], dtype="str")
    if sort is not None:
        frame = _sorted(frame, sort)
    return frame.reset_index(drop=True)


_TYPES = {
    **dict.fromkeys(("rank", "episodes", "step", "seed", "parent", "until"), "Int64"),
    **dict.fromkeys(("tied", "front"), "boolean"),
    **dict.fromkeys(("score", "low", "high", "median", "params", "flops", "latency_ms", "seconds"), "float64"),
    **dict.fromkeys(("supernet", "rank_correlation"), "float64"),
    **dict.fromkeys(("trial", "status", "norm", "nets", "unit", "reason"), "str"),
}


def _column(name: str, values: list[Any]) -> pd.Series[Any]:
    """A column whose type does not depend on which rows are in it."""
    import pandas as pd

    if name in _TYPES:
        return pd.Series(values, dtype=_TYPES[name])
    there = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in there):
        return pd.Series(values, dtype="boolean")
    if all(is_number(value) for value in there):
        whole = all(isinstance(value, int) and abs(value) < 2**63 for value in there)
        return pd.Series(values, dtype="Int64" if whole else "float64")
    if all(isinstance(value, str) for value in there):
        return pd.Series(values, dtype="str")
    return pd.Series(values, dtype="object")


def _sorted(frame: pd.DataFrame, sort: str) -> pd.DataFrame:
    """By a column or a dimension: the best score, or the smallest value, first; with a minus before it the other way round."""
    key, backwards = sort.removeprefix("-"), sort.startswith("-")
    column = key if key in frame.columns else f"config/{key}"
    if column not in frame.columns:
        known = [name.removeprefix("config/") for name in frame.columns if name != "config"]
        raise ValueError(f"the leaderboard cannot be sorted by '{key}'.{did_you_mean(key, known)}")
    if frame.empty:
        return frame
    if column in ("rank", "score"):
        best_first = frame  # it comes in this order
        return best_first.iloc[::-1] if backwards else best_first
    keys = {"trial": _by_number, **({column: _numbers_first} if frame[column].dtype == object else {})}
    return frame.sort_values(column, ascending=not backwards, na_position="last", kind="stable", key=keys.get(column))


def _by_number(trials: pd.Series[Any]) -> pd.Series[Any]:
    """"glyphs/2" before "glyphs/10"."""
    named = trials.str.rpartition("/")
    return named[0].rank(method="dense") * 1e9 + named[2].astype("int64")


def _numbers_first(values: pd.Series[Any]) -> pd.Series[Any]:
    """The places of values that are partly numbers and partly texts: the numbers in their order, then the texts."""
    there = sorted({_comparable(value) for value in values if value is not None})
    place = {value: at for at, value in enumerate(there)}
    return values.map(lambda value: None if value is None else place[_comparable(value)]).astype("Float64")


def _comparable(value: Any) -> tuple[bool, float, str]:
    return (False, float(value), "") if is_number(value) else (True, 0.0, str(value))


# -- rows out of a ledger -------------------------------------------------------------------------------------------------


def rows_from_ledger(folder: Path, *, where: str | None = None) -> list[Row]:
    """Every trial of the ledger in a study's folder. Raises LedgerError, WhereError."""
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        about, trials = ledger.study(), ledger.trials()
    name, named, bank = str(about["study"]["name"]), unit(about), about.get("bank_digest")
    rows = []
    for trial in trials.values():
        outcome, proposal = trial.outcome, trial.proposal
        metrics: Mapping[str, float] = outcome.metrics if outcome else {}
        rows.append(Row(
            study=name, trial=trial.id, config=proposal.config, status=trial.status, until=proposal.until, parent=proposal.parent,
            score=outcome.score if outcome and trial.status == "done" else None, episodes=trial.episodes,
            step=outcome.step if outcome else None, seconds=trial.seconds if outcome else None,
            params=metrics.get("params"), flops=metrics.get("flops"), norm=norm_mode(metrics), nets=nets_of(metrics),
            seed=proposal.seed, unit=named, bank=bank, reason=outcome.reason if outcome else None,
            inherits=bool(about.get("inherits")), found=trial.report.found if trial.report else None,
            latency_ms=metrics.get(LATENCY), supernet=metrics.get(SUPERNET), rank_correlation=metrics.get(RANKS),
        ))
    rows = _superseded(rows)
    return rows if where is None else filtered(rows, where)


def _superseded(rows: list[Row]) -> list[Row]:
    """The rows, each with the trial that went on from it, so that a filter may drop that one without bringing this one up."""
    by_trial = {row.trial: row for row in rows}
    by_parent = {
        row.parent: row.trial for row in rows
        if row.parent in by_trial and not row.inherits and row.status in LOOKED_AT and by_trial[row.parent].config == row.config
    }
    return [replace(row, superseded=by_parent.get(row.trial)) for row in rows]


def filtered(rows: Sequence[Row], where: str) -> list[Row]:
    """The rows that meet a filter, as MLflow would choose them."""
    dims: dict[str, set[str]] = {}
    for row in rows:
        for path, value in row.config.items():
            dims.setdefault(path, set()).add("number" if is_number(value) else "string")
    comparisons = parse(where, dims)
    return [row for row in rows if all(_holds(c, row) for c in comparisons)]


def _holds(c: Comparison, row: Row) -> bool:
    if c.source == "dim":
        return c.holds(row.config.get(c.key))
    if c.source == "trial":
        return (row.name == trial_name(c, row.study)) == (c.op == "=")
    return c.holds(row.shown[c.key])


# -- rows out of MLflow ---------------------------------------------------------------------------------------------------


def rows_from_mlflow(
    name: str | None, uri: str, where: str | None = None, sort: str | None = None, top: int | None = None,
    identity: str | None = None,
) -> list[Row]:
    """Every trial of a study (None: of all studies), filtered by the server, page by page.

    identity: of several studies of one name the one with this `study_id`; otherwise the newest.
    sort: as in `leaderboard`. top: read only so many, the first as the server orders them (ties are then tested, and segments
    seen, among them alone).
    Raises TrackingError if MLflow does not answer or has no such study, WhereError for a filter that cannot be understood.
    """
    client = connect(uri, create=False)
    rows: dict[tuple[str, int], Row] = {}
    with patience(READING), said(uri, "reading the leaderboard"):
        studies = _studies(client, name, uri, identity)
        dims: dict[str, set[str]] = {}  # of all of them: a row that lacks one meets no comparison with it
        for study in studies:
            for path, kinds in json.loads(joined(study.data.tags, "dims") or "{}").items():
                dims.setdefault(path, set()).update(kinds)
        comparisons = None if where is None else parse(where, dims)
        for study in studies:
            tags = study.data.tags
            own, negated = tags[tag("study")], tags.get(tag("unit")) in ERRORS
            # MLflow sorts all runs again for every page, by a metric forty times as long as by a column of its own
            order = "attributes.start_time ASC" if top is None else _order_by(sort, dims, negated)
            query = f"tags.`mlflow.parentRunId` = '{study.info.run_id}'"
            if comparisons is not None:
                query += " and " + mlflow_filter(comparisons, own, negated=negated)
            found = pages(
                client.search_runs, experiment_ids=[study.info.experiment_id], filter_string=query,
                max_results=PAGE if top is None else min(PAGE, top), order_by=[order],
            )
            for run in found:
                row = _row(run)
                rows.setdefault((row.study, row.trial), row)  # pages may overlap while the study runs
                if top is not None and len(rows) >= top:
                    break
    return list(rows.values())


def unseen(name: str, folder: Path, uri: str) -> int | None:
    """How many rows of the ledger in `folder` MLflow has not seen; None if there is no ledger here."""
    if not (folder / "ledger.sqlite").is_file():
        return None
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        last, identity = ledger.last, study_id(next(ledger.rows(kinds=["study"])))
    client = connect(uri, create=False)
    with patience(READING), said(uri, "counting rows"):
        runs = _studies(client, name, uri, identity)
    seen = [int(run.data.tags.get(SEQ, 0)) for run in runs if run.data.tags.get(tag("study_id")) == identity]
    return max(0, last - max(seen, default=0))


def _studies(client: MlflowClient, name: str | None, uri: str, identity: str | None) -> list[Run]:
    """The run of each study; of several studies of one name the one with this identity, or else the newest."""
    from mlflow.entities import ViewType

    wanted = f"tags.`{tag('kind')}` = 'study'"
    there = list(pages(client.search_experiments, view_type=ViewType.ACTIVE_ONLY, filter_string=wanted, max_results=PAGE))
    chosen = there if name is None else [e for e in there if e.name == name]
    if name is not None and not chosen:
        raise TrackingError(
            f"MLflow at {uri} has no study '{name}'.{did_you_mean(name, (e.name for e in there))} "
            f"If it has a ledger here: metasearch sync {name}", passing=False,
        )
    found = []
    for experiment in chosen:
        runs = list(pages(client.search_runs, experiment_ids=[experiment.experiment_id], filter_string=wanted, max_results=PAGE,
                          order_by=["attributes.start_time DESC"]))
        same = [run for run in runs if run.data.tags.get(tag("study_id")) == identity]
        found += (same or runs)[:1]
    return found


def _order_by(sort: str | None, dims: Mapping[str, set[str]], negated: bool) -> str:
    """What the server orders by; the leaderboard sorts again, so that this decides only which rows come first."""
    named, descending = (sort or "score").removeprefix("-"), (sort or "").startswith("-")
    key = named.removeprefix("config/")
    if key in dims and named not in {*COLUMNS, "rank"}:
        column = f"metrics.`{spelled(f'config/{key}')}`" if "number" in dims[key] else f"params.`{spelled(key)}`"
    elif key in ("score", "rank"):
        column, descending = "metrics.`score`", not descending
    elif key in NUMBERS:
        column = f"metrics.`{NUMBERS[key]}`"
    elif key in TEXTS:
        column = f"tags.`{tag(TEXTS[key])}`"
    else:
        column = "attributes.start_time"
    return f"{column} {'DESC' if descending else 'ASC'}"


def _row(run: Run) -> Row:
    tags, metrics = run.data.tags, run.data.metrics
    study, _, number = tags[tag("trial")].rpartition("/")
    episodes, found, status = joined(tags, "episodes"), joined(tags, "found"), tags.get(tag("status"), "proposed")
    return Row(
        study=study, trial=int(number), config=json.loads(joined(tags, "config") or "{}"), status=status,
        score=metrics.get("score") if status == "done" else None, episodes=None if episodes is None else scores_of(episodes),
        step=_int(tags.get(tag("step"))), until=_int(tags.get(tag("until"))), parent=_int(tags.get(tag("parent"))),
        superseded=_int(tags.get(tag("superseded"))), seed=_int(tags.get(tag("seed"))), params=metrics.get("params"),
        flops=metrics.get("flops"), seconds=metrics.get("seconds"), norm=tags.get(tag("norm")), nets=tags.get(tag("nets")),
        bank=tags.get(tag("bank_digest")), unit=tags.get(tag("unit"), "score"), reason=tags.get(tag("reason")),
        inherits=tags.get(tag("inherits")) == "true", found=None if found is None else json.loads(found),
        latency_ms=metrics.get(f"curve/{LATENCY}"), supernet=metrics.get(f"curve/{SUPERNET}"),
        rank_correlation=metrics.get(f"curve/{RANKS}"),
    )


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)


def _times(sign: float, value: float | None) -> float | None:
    return None if value is None else sign * value


# -- rows by a study's name -----------------------------------------------------------------------------------------------


def _read(
    name: str | None, where: str | None, sort: str | None, home: Path | None, uri: str | None, source: str
) -> tuple[list[Row], dict[str, Any]]:
    home = home_of(home)
    folder = None if name is None else study_folder(name, home)
    if source == "ledger":
        found, damaged = [], dict[str, str]()
        for one in [folder] if folder is not None else sorted(path.parent for path in home.glob("*/ledger.sqlite")):
            try:
                found += rows_from_ledger(one)
            except LedgerError as error:
                if folder is not None:
                    raise
                damaged[one.name] = str(error)  # the others are whole
        if damaged and not found:
            raise LedgerError("; ".join(damaged.values()))
        attrs = {"source": f"ledger in {folder or home}", "unseen": 0, "damaged": damaged}
        return found if where is None else filtered(found, where), attrs
    if source != "mlflow":
        raise ValueError(f"rows come from 'mlflow' or from a 'ledger', but source is {source!r}")
    own_uri, identity = _own(folder)
    uri = uri or tracking_uri(own_uri, home)
    rows = rows_from_mlflow(name, uri, where, sort, identity=identity)
    attrs = {"source": f"MLflow at {redact(uri)}"}
    if name is not None and folder is not None:
        return rows, {**attrs, "unseen": unseen(name, folder, uri)}
    waiting = _waiting(home, uri)
    return rows, {**attrs, "unseen": sum(waiting.values()), "behind": sorted(waiting)}


def _waiting(home: Path, uri: str) -> dict[str, int]:
    """Of every study in a home that reports to this MLflow, by its name, how many rows of its ledger that has not seen; of those
    of which it has seen all, nothing. What cannot be read is left out."""
    from mlflow.entities import ViewType

    found, client, wanted = dict[str, int](), connect(uri, create=False), f"tags.`{tag('kind')}` = 'study'"
    with patience(READING), said(uri, "counting rows"):
        there = pages(client.search_experiments, view_type=ViewType.ACTIVE_ONLY, filter_string=wanted, max_results=PAGE)
        ids = [experiment.experiment_id for experiment in there]
        runs = list(pages(client.search_runs, experiment_ids=ids, filter_string=wanted, max_results=PAGE)) if ids else []
    seen = {run.data.tags.get(tag("study_id")): int(run.data.tags.get(SEQ, 0)) for run in runs}
    for file in sorted(home.glob("*/ledger.sqlite")):
        try:
            with Ledger.open(file) as ledger:
                last, first = ledger.last, next(ledger.rows(kinds=["study"]))
        except (LedgerError, OSError, sqlite3.Error, StopIteration):
            continue
        track = first.body["study"].get("track") or {}
        here = track.get("enabled", True) and resolved(tracking_uri(track.get("uri"), home)) == resolved(uri)
        if here and (left := last - seen.get(study_id(first), 0)) > 0:
            found[file.parent.name] = left
    return found


def _own(folder: Path | None) -> tuple[str | None, str | None]:
    """The address that the study itself names, and its identity, if its ledger is here."""
    if folder is None or not (folder / "ledger.sqlite").is_file():
        return None, None
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        first = next(ledger.rows(kinds=["study"]))
    return (first.body["study"].get("track") or {}).get("uri"), study_id(first)
