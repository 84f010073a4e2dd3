"""What MLflow should show of a ledger: a fold over its rows, without MLflow.

One run for the study and one a trial below it. A row becomes changes of runs (tags, params, points of curves, an end). The
changes are the same in whatever portions the rows are read, so sending some of them twice does no harm.

Numbers that are not finite are never sent as numbers (MLflow stores an infinity as 1.797e308): a tag names them. MLflow
cuts params at 6,000 characters and compares them as strings only: so configs and per-episode scores also travel exactly,
as tags in pieces, and numeric dimensions also as metrics `config/<path>`.
"""
from __future__ import annotations

import base64
import hashlib
import json
import math
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metasearch.ledger import Row
from metasearch.records import LOOKED_AT, Config
from metasearch.track.redact import redact
from metasearch.track.statistics import mean_interval

PIECE = 4_000  # characters a tag; MLflow's limit is 8,000
PARAM = 6_000  # characters a param
PICTURES = 5  # of studies whose ledgers were begun before there were pictures
FACTS = ("space_digest", "data_digest", "bank_digest", "code")  # of the study row, on every run
NORM = "norm/"  # metrics are numbers: {"norm/transductive": 1.0} says how the net used batch statistics
STUDY = None  # the study's own run, among the trials' numbers

SEQ = "metasearch.seq"  # the tag that says which ledger row a run has seen last
Key = int | None  # a trial's number, or STUDY


class Point(NamedTuple):
    """One point of a curve; `at` in milliseconds since the epoch."""

    key: str
    value: float
    at: int
    step: int


@dataclass
class Change:
    """What some rows change in one run; seq is the last of these rows. start and end in milliseconds since the epoch."""

    start: int | None = None  # given: the run begins here
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    status: str | None = None  # MLflow's: RUNNING, FINISHED, FAILED, KILLED
    end: int | None = None
    seq: int = 0

    @property
    def bare(self) -> bool:
        """Is there nothing in it but the number of a row?"""
        return self.start is None and self.status is None and not (self.tags or self.params or self.points)

    def merge(self, later: Change) -> None:
        self.start = later.start if self.start is None else self.start
        self.tags |= later.tags
        self.params |= later.params
        self.points += later.points
        if later.status is not None:
            self.status, self.end = later.status, later.end
        self.seq = max(self.seq, later.seq)


@dataclass(frozen=True)
class Done:
    """A trial that is done, as far as the choice of the best needs it."""

    trial: int
    score: float
    until: int | None
    parcel: str | None

    @property
    def order(self) -> tuple[bool, int, float]:
        """Whole trials before those that were stopped early, longer ones before shorter ones, then by score."""
        return self.until is None, self.until or 0, self.score


class Projection:
    """Feed it every row of a ledger, from the first on; `take` gives what they change. It remembers what later rows need."""

    def __init__(self) -> None:
        self.name = ""
        self.study_id = ""
        self.top = 0  # the parcels of the best so many trials become artifacts
        self.pictures = 0  # so many of the best trials are drawn
        self.inherits = False  # children are configs of their own (strategies: `inherits`)
        self.held: frozenset[str] = frozenset()  # dimensions that trials decide by themselves (strategies: `held`)
        self.stopped = False
        self.done: dict[int, Done] = {}
        self._common: dict[str, str] = {}
        self._open: set[int] = set()
        self._proposals: dict[int, tuple[str, int | None, int | None]] = {}  # digest of the config, parent, until
        self._found: dict[int, Config] = {}  # of trials that run, what they decided last
        self._steps: dict[int, int] = {}
        self._counts: Counter[str] = Counter()
        self._best: Done | None = None
        self._dims: dict[str, set[str]] = {}
        self._modes = 0
        self._opened = 0
        self._by_kind: dict[str, Callable[[Row], Iterator[tuple[Key, Change]]]] = {
            "study": self._study, "proposed": self._proposed, "started": self._started, "report": self._report,
            "retry": self._retry, "ended": self._ended, "mode": self._mode, "opened": self._test_opened,
            "evaluated": self._evaluated, "stopped": self._stopped, "resumed": self._resumed,
        }

    def take(self, rows: Iterable[Row]) -> dict[Key, Change]:
        """What these rows change, by trial number (STUDY: the study's own run)."""
        changes: dict[Key, Change] = {}
        for row in rows:
            for key, change in self._by_kind.get(row.kind, _nothing)(row):
                change.seq = row.seq
                changes.setdefault(key, Change()).merge(change)
        return changes

    def run_name(self, key: Key) -> str:
        return self.name if key is STUDY else f"{self.name}/{key}"

    @property
    def ended(self) -> int:
        """So many trials have ended."""
        return sum(self._counts.values())

    def best(self, count: int) -> list[Done]:
        """The best trials, best first; of a lineage only its last segment."""
        return sorted(self.done.values(), key=lambda d: (d.order, -d.trial), reverse=True)[:count]

    # -- one method a kind of row -------------------------------------------------------------------------------------

    def _study(self, row: Row) -> Iterator[tuple[Key, Change]]:
        study = row.body.get("study", {})
        self.name = str(study["name"])
        self.study_id = study_id(row)
        self.inherits = bool(row.body.get("inherits"))
        self.held = frozenset(row.body.get("held") or ())
        self.top = int((study.get("track") or {}).get("top", 3))
        self.pictures = int((study.get("track") or {}).get("pictures", PICTURES))
        self._common = {
            tag("study"): self.name,
            tag("study_id"): self.study_id,
            tag("unit"): unit(row.body),
            **({tag("inherits"): "true"} if self.inherits else {}),
            **{tag(fact): redact(str(row.body[fact])) for fact in FACTS if row.body.get(fact) is not None},
        }
        tags = {**self._common, tag("kind"): "study", tag("status"): "running"}
        tags |= pieces("versions", row.body.get("versions", {}))
        if study.get("seed") is not None:
            tags[tag("seed")] = str(study["seed"])
        yield STUDY, Change(_ms(row), tags, _params(_flat(study)), status="RUNNING")

    def _proposed(self, row: Row) -> Iterator[tuple[Key, Change]]:
        trial, body = _number(row), row.body
        config: Config = body["config"]
        self._open.add(trial)
        self._proposals[trial] = (_digest(config), body.get("parent"), body.get("until"))
        tags = {
            **self._common,
            tag("kind"): "trial",
            tag("trial"): self.run_name(trial),
            tag("status"): "proposed",
            **{tag(key): str(body[key]) for key in ("seed", "parent", "until") if body.get(key) is not None},
            **pieces("config", config),
        }
        decided = {key: value for key, value in config.items() if key not in self.held}
        yield trial, _with_points(Change(_ms(row), tags, _params(decided)), _numbers(decided), row, step=0)
        yield from self._new_dims(config)

    def _new_dims(self, config: Config) -> Iterator[tuple[Key, Change]]:
        kinds = [(key, "number" if is_number(value) else "string") for key, value in config.items()]
        if new := [(key, kind) for key, kind in kinds if kind not in self._dims.get(key, ())]:
            for key, kind in new:
                self._dims.setdefault(key, set()).add(kind)
            yield STUDY, Change(tags=pieces("dims", {key: sorted(self._dims[key]) for key in sorted(self._dims)}))

    def _started(self, row: Row) -> Iterator[tuple[Key, Change]]:
        tags = {tag("status"): "running", tag("attempts"): str(row.body.get("attempt", 1))}
        yield _number(row), Change(tags=tags, status="RUNNING")

    def _report(self, row: Row) -> Iterator[tuple[Key, Change]]:
        trial, body = _number(row), row.body
        change = Change()
        if body.get("found"):
            self._found[trial], change = body["found"], Change(tags=pieces("found", body["found"]))
        step = int(body["step"])
        if step > self._steps.get(trial, -1):  # after a restart, and at the end with keep="best", a step is said again
            self._steps[trial] = step
            curves = {f"curve/{key}": value for key, value in (body.get("metrics") or {}).items() if not key.startswith(NORM)}
            if body.get("score") is not None:
                curves["curve/score"] = body["score"]
            change = _with_points(change, curves, row, step=step)
        yield trial, change

    def _retry(self, row: Row) -> Iterator[tuple[Key, Change]]:
        """It ran out of memory, and is tried once more."""
        body = row.body
        tags = {tag("status"): "proposed", tag("retry"): str(body["cause"]), tag("chunk"): str(body["chunk"])}
        if body.get("reason"):
            tags[tag("retry_reason")] = _cut(redact(str(body["reason"])), PIECE)
        yield _number(row), Change(tags=tags)

    def _ended(self, row: Row) -> Iterator[tuple[Key, Change]]:
        trial, body = _number(row), row.body
        status, step, metrics = body["status"], int(body.get("step") or 0), body.get("metrics") or {}
        digest, parent, until = self._proposals.get(trial, ("", None, None))
        self._open.discard(trial)
        self._counts[status] += 1
        tags = {tag("status"): status, tag("step"): str(step)}
        if body.get("reason"):
            tags[tag("reason")] = _cut(redact(str(body["reason"])), PIECE)
        if (norm := norm_mode(metrics)) is not None:
            tags[tag("norm")] = norm
        if (nets := nets_of(metrics)) is not None:
            tags[tag("nets")] = nets
        numbers: dict[str, Any] = {"step": step, "seconds": body.get("seconds")}
        numbers |= {key: metrics[key] for key in ("params", "flops") if key in metrics}
        decided = {key: value for key, value in self._found.pop(trial, {}).items() if key in self.held}
        numbers |= _numbers(decided)  # not before: a param is said once, and the trial might have decided anew
        if status == "done" and body.get("score") is not None:
            numbers["score"] = body["score"]
            numbers |= _interval(row.blob)
        if row.blob:
            tags |= text_pieces("episodes", base64.b64encode(row.blob).decode("ascii"))
        end = "FINISHED" if status in ("done", "reused") else "FAILED"
        yield trial, _with_points(Change(tags=tags, params=_params(decided), status=end, end=_ms(row)), numbers, row, step=step)

        if parent is not None and not self.inherits and status in LOOKED_AT and self._proposals.get(parent, ("",))[0] == digest:
            gone = self.done.pop(parent, None)
            if gone is not None and gone is self._best:
                self._best = max(self.done.values(), key=lambda d: (d.order, -d.trial), default=None)
            yield parent, Change(tags={tag("superseded"): str(trial)})  # this one went on with its parent's config and weights
        if status == "done" and body.get("score") is not None:
            self.done[trial] = Done(trial, float(body["score"]), None if self.inherits else until, body.get("checkpoint"))
            if self._best is None or self.done[trial].order > self._best.order:
                self._best = self.done[trial]
        ended = sum(self._counts.values())
        totals: dict[str, Any] = {f"trials/{status}": self._counts[status], "trials/ended": ended}
        if self._best is not None:
            totals["best"] = self._best.score
        yield STUDY, _with_points(Change(), totals, row, step=ended)

    def _mode(self, row: Row) -> Iterator[tuple[Key, Change]]:
        self._modes += 1
        choice = f"{row.body.get('mode')}: {row.body.get('signature')}"
        yield STUDY, Change(tags={tag(f"mode.{self._modes}"): _cut(choice, PIECE)})

    def _test_opened(self, row: Row) -> Iterator[tuple[Key, Change]]:
        self._opened += 1
        yield STUDY, Change(tags={tag("test_opened"): str(self._opened)})

    def _evaluated(self, row: Row) -> Iterator[tuple[Key, Change]]:
        """The sealed test: its numbers, and the adaptation curve by inner step, under the name of the split."""
        key = row.trial if row.trial in self._proposals else STUDY
        yield key, _tested(row.body, row)
        if row.body.get("half"):
            yield key, _tested(row.body["half"], row)

    def _stopped(self, row: Row) -> Iterator[tuple[Key, Change]]:
        self.stopped = True
        for trial in sorted(self._open):
            yield trial, Change(status="KILLED", end=_ms(row))  # RUNNING again when a resumed study starts it
        tags = {tag("status"): "stopped"}
        if row.body.get("reason"):
            tags[tag("stopped")] = _cut(redact(str(row.body["reason"])), PIECE)
        numbers = {key: row.body[key] for key in ("coverage", "wanted") if is_number(row.body.get(key))}
        change = Change(tags=tags, status="FINISHED", end=_ms(row))
        yield STUDY, _with_points(change, numbers, row, step=sum(self._counts.values()))

    def _resumed(self, row: Row) -> Iterator[tuple[Key, Change]]:
        self.stopped = False
        yield STUDY, Change(tags={tag("status"): "running"}, status="RUNNING")


def _tested(told: Mapping[str, Any], row: Row) -> Change:
    split, body = told.get("split", "test").replace(", ", "/"), {**told, **(told.get("interval") or {})}
    numbers = {f"{split}/{name}": body.get(name) for name in ("mean", "low", "high", "episodes", "median", "diverged")}
    change = _with_points(Change(), numbers, row, step=0)
    for point in body.get("curve") or []:
        here = {f"{split}/by inner step/{name}": point.get(name) for name in ("mean", "low", "high", "median", "diverged")}
        change.merge(_with_points(Change(), here, row, step=int(point["inner_steps"])))
    return change


def _nothing(row: Row) -> Iterator[tuple[Key, Change]]:
    return iter(())


# -- names and values -----------------------------------------------------------------------------------------------------


def tag(name: str) -> str:
    return f"metasearch.{name}"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def spelled(name: str) -> str:
    """A name that MLflow takes for a metric or a param; one that had to be changed gets a hash, so that two stay two."""
    plain = re.fullmatch(r"[A-Za-z0-9_\-. :/]{1,250}", name) is not None
    if plain and posixpath.normpath(name) == name and not name.startswith((".", "/")):
        return name
    clean = re.sub(r"[^A-Za-z0-9_\-. :]", "_", name)[:200].lstrip(".")
    return f"{clean}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def said(value: object) -> str:
    """A value as a param: strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def text_pieces(name: str, text: str) -> dict[str, str]:
    """A long text as tags metasearch.<name>.0, .1, ..."""
    return {tag(f"{name}.{i}"): text[at : at + PIECE] for i, at in enumerate(range(0, max(len(text), 1), PIECE))}


def pieces(name: str, value: object) -> dict[str, str]:
    return text_pieces(name, json.dumps(value, separators=(",", ":"), ensure_ascii=True))


def joined(tags: Mapping[str, str], name: str) -> str | None:
    """The text that `text_pieces` cut, or None."""
    found: list[str] = []
    while (piece := tags.get(tag(f"{name}.{len(found)}"))) is not None:
        found.append(piece)
    return "".join(found) if found else None


def scores_of(text: str) -> NDArray[np.float32]:
    """Per-episode scores out of their base64 text."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def norm_mode(metrics: Mapping[str, float]) -> str | None:
    """How a trial's net used batch statistics, out of its metrics."""
    return next((key.removeprefix(NORM) for key, value in metrics.items() if key.startswith(NORM) and value), None)


def nets_of(metrics: Mapping[str, float]) -> str | None:
    """"per task" where every task chose an architecture for itself, so that score and sizes are of many nets."""
    return "per task" if metrics.get("per_task") else None


def study_id(first: Row) -> str:
    """Tells two studies of one name apart: a hash of the ledger's first row and its time."""
    return hashlib.sha256(f"{first.at!r} {json.dumps(first.body, sort_keys=True)}".encode()).hexdigest()[:16]


def unit(body: Mapping[str, Any]) -> str:
    """What a score of this study is called: "accuracy", "mse", ... `body` is that of the ledger's study row."""
    return str(body.get("unit") or "score")


def _digest(config: Config) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _ms(row: Row) -> int:
    return round(row.at * 1000)


def _number(row: Row) -> int:
    assert row.trial is not None, f"row {row.seq} ({row.kind}) names no trial"
    return row.trial


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit - 100]}... cut, {len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _numbers(config: Config) -> dict[str, Any]:
    return {f"config/{key}": value for key, value in config.items() if is_number(value)}


def _params(values: Mapping[str, object]) -> dict[str, str]:
    return {spelled(key): _cut(redact(said(value)), PARAM) for key, value in values.items()}


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None and value != {}:
            flat[f"{prefix}{key}"] = value
    return flat


def _with_points(change: Change, numbers: Mapping[str, Any], row: Row, *, step: int) -> Change:
    """The change with these numbers as points; those that are not finite as a tag instead."""
    for key, value in numbers.items():
        if value is None:
            continue
        number = float(value)
        if math.isfinite(number):
            change.points.append(Point(spelled(key), number, _ms(row), step))
        else:
            change.tags[_cut(tag(f"not_finite.{spelled(key)}"), 250)] = f"{number} at step {step}"
    return change


def _interval(blob: bytes | None) -> dict[str, float]:
    if not blob:
        return {}
    _, low, high, count = mean_interval(np.frombuffer(blob, dtype="<f4"))
    sides = {"score_low": low, "score_high": high} if math.isfinite(low) else {}
    return {**sides, "episodes": count}
