"""How a trial learnt, and how a search went, as pictures: out of the ledger alone.

    learning(course(ledger, 12), title="glyphs/12", path=Path("curves.png"))
    searched(history(ledger), path=Path("history.png"))

Scores are drawn in their task's own unit: accuracies in percent, errors positive. Bars are 95 % intervals over episodes.
"""
from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasearch.budget import Coverage
from metasearch.ledger import Ledger, TrialRow
from metasearch.records import ERRORS, LOOKED_AT
from metasearch.space import Space, digest
from metasearch.track.figures import BLUE, GREEN, GREY, ORANGE, RED, blank, plain, unit_label, written
from metasearch.track.projection import unit
from metasearch.track.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Course", "History", "Tried", "course", "history", "learning", "searched"]

Points = tuple[tuple[float, float], ...]
MOST_BARS = 120  # a history of more trials draws no intervals
MOST_POINTS = 200  # of the curve of coverage
FAILED = {"diverged": ("x", "#444444"), "oom": ("s", "#CC79A7"), "error": ("^", ORANGE), "infeasible": ("v", "#56B4E9")}


@dataclass(frozen=True)
class Course:
    """One trial: (step, score) and (step, train loss). before: scores of what it goes on from (`origin`: the trials that it
    inherits from, or a supernet) and losses of it; interval: (step, low, high) of the score that it ended with."""

    trial: str
    unit: str
    scores: Points
    losses: Points
    before: tuple[Points, Points] = ((), ())
    origin: str = ""
    interval: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Tried:
    """One trial of a history. low, high: the interval, if it is drawn; whole: none that is done trained longer."""

    trial: int
    status: str
    score: float | None
    low: float | None
    high: float | None
    whole: bool


@dataclass(frozen=True)
class History:
    """All trials of a study, in the order of their numbers. coverage: (trial, probability that one of the top was tried by
    then); empty where no draw is uniform."""

    study: str
    unit: str
    tried: tuple[Tried, ...]
    coverage: Points = ()
    top: str = ""


def course(ledger: Ledger, trial: int) -> Course:
    """Raises KeyError if there is no such trial."""
    first, trials = ledger.study(), ledger.trials()
    row = trials[trial]
    scores, losses = _reported(ledger, row)
    before, origin = _reported(ledger, row, "supernet/"), "supernet"
    parent = row.proposal.parent
    while parent is not None and parent in trials and trials[parent].proposal.config == row.proposal.config:
        earlier = _reported(ledger, trials[parent])
        before, origin = (earlier[0] + before[0], earlier[1] + before[1]), "inherited"
        parent = trials[parent].proposal.parent
    interval = None
    if row.episodes is not None and len(row.episodes) > 1 and row.status == "done":
        found = mean_interval(row.episodes)
        step = float(row.outcome.step) if row.outcome is not None else 0.0
        interval = (step, found.low, found.high) if math.isfinite(found.low) else None
    return Course(f"{first['study']['name']}/{trial}", unit(first), scores, losses, before, origin, interval)


def _reported(ledger: Ledger, row: TrialRow, prefix: str = "") -> tuple[Points, Points]:
    """(step, score) and (step, train loss): after a restart steps are said again, and the last word counts. prefix: of the
    metrics of a supernet, which are told for its own steps alone."""
    scores: dict[float, float] = {}
    losses: dict[float, float] = {}
    for told in ledger.rows(kinds=["report"], trial=row.id):
        body, metrics = told.body, told.body.get("metrics") or {}
        score = metrics.get(f"{prefix}score") if prefix else body.get("score")
        if prefix and (body.get("score") is not None or "train_loss" in metrics):
            continue
        for kept, value in ((scores, score), (losses, metrics.get(f"{prefix}train_loss"))):
            if value is not None and math.isfinite(float(value)):
                kept[float(body["step"])] = float(value)
    if row.outcome is not None and row.outcome.score is not None and row.status == "done" and not prefix:
        scores[float(row.outcome.step)] = float(row.outcome.score)
    return tuple(sorted(scores.items())), tuple(sorted(losses.items()))


def history(ledger: Ledger) -> History:
    """Every trial so far, and the coverage if the study's method draws uniformly."""
    first = ledger.study()
    rows = list(ledger.trials().values())
    found, top = _covered(ledger, first, rows)
    lengths = {row.id: _length(row, individuals=bool(first.get("inherits"))) for row in rows}
    longest = max((lengths[row.id] for row in rows if row.status == "done"), default=0.0)
    tried = tuple(_tried(row, len(rows) <= MOST_BARS, whole=lengths[row.id] >= longest) for row in rows)
    return History(str(first["study"]["name"]), unit(first), tried, found, top)


def _length(row: TrialRow, *, individuals: bool) -> float:
    """To which step a trial trains, math.inf: to its recipe's end. individuals: trials that begin with others' weights compare,
    however long those have trained."""
    return math.inf if individuals or row.proposal.until is None else row.proposal.until


def _tried(row: TrialRow, barred: bool, *, whole: bool) -> Tried:
    score = row.outcome.score if row.outcome is not None and row.status in ("done", "reused") else None
    low = high = None
    if barred and score is not None and row.episodes is not None and len(row.episodes) > 1:
        interval = mean_interval(row.episodes)
        low, high = (interval.low, interval.high) if math.isfinite(interval.low) else (None, None)
    return Tried(row.id, row.status, score, low, high, whole)


def _covered(ledger: Ledger, first: dict[str, Any], rows: Sequence[TrialRow]) -> tuple[Points, str]:
    """The coverage after trials that count, if it comes to what the study's driver says itself; and the top that it is of."""
    said = _said(ledger)
    if said is None or "space" not in first:
        return (), ""
    coverage, top, confidence = said
    try:
        goal = Coverage(Space.from_json(first["space"]).size, top, confidence)
    except ValueError:
        return (), ""
    looked: set[str] = set()
    points: list[tuple[float, float]] = []
    for row in rows:
        if row.proposal.parent is None and row.status in LOOKED_AT and (name := digest(row.proposal.config)) not in looked:
            looked.add(name)
            points.append((float(row.id), len(looked)))
    every = max(1, math.ceil(len(points) / MOST_POINTS))  # of a smooth curve some points are enough
    points = [(trial, goal.reached(int(count))) for trial, count in [*points[:-1:every], *points[-1:]]]
    agrees = bool(points) and math.isclose(points[-1][1], coverage, abs_tol=1e-6)
    return (tuple(points), str(top)) if agrees else ((), "")


def _said(ledger: Ledger) -> tuple[float, Any, float] | None:
    """(coverage, top, wanted) as the driver last wrote them, or None."""
    try:
        told = json.loads((ledger.path.parent / "status.json").read_text())
        coverage, top, wanted = told["coverage"], told["top"], told["coverage_wanted"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if coverage is None or top is None else (float(coverage), top, float(wanted or 0.9))


# -- pictures ------------------------------------------------------------------------------------------------------------------


def learning(one: Course, *, title: str = "", path: Path | None = None) -> Figure:
    """The score, with the interval of the last one, and below it the loss of training, against outer steps."""
    two = bool(one.losses or one.before[1])
    made = blank(6.4, 4.6 if two else 3.0)
    panels = made.subplots(2 if two else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 2] if two else None)
    above = panels[0, 0]
    if one.before[0]:
        above.plot(*_columns(one.before[0], one.unit), "o--", color=GREY, ms=3, lw=1, label=one.origin)
    if one.scores:
        steps, values = _columns(one.scores, one.unit)
        above.plot(steps, values, "o-", color=BLUE, ms=4, lw=1.6, label="validation")
        if one.interval is not None:
            step, *ends = one.interval
            ends = sorted(_shown(end, one.unit) for end in ends)
            above.plot([step, step], ends, "_-", color=BLUE, ms=9, mew=1.6, lw=1.6)
            above.annotate(_told(one), (step, ends[1]), xytext=(0, 6), textcoords="offset points", ha="right", fontsize=8,
                           color=BLUE)
            above.margins(y=0.18)
    else:
        above.text(0.5, 0.5, "no score", transform=above.transAxes, ha="center", color=GREY)
    if one.before[0]:
        above.legend(frameon=False, fontsize=8)
    above.set_ylabel(unit_label(one.unit), fontsize=9)
    above.set_title(title or one.trial, fontsize=10, loc="left")
    plain(above)
    if two:
        below = panels[1, 0]
        for points, colour in ((one.before[1], GREY), (one.losses, ORANGE)):
            below.plot([step for step, _ in points], [loss for _, loss in points], ".-", ms=4, color=colour, lw=1.4)
        values = [loss for _, loss in (*one.before[1], *one.losses)]
        if min(values) > 0 and max(values) > 20 * min(values):
            below.set_yscale("log")
        below.set_ylabel("training loss", fontsize=9)
        plain(below)
    panels[-1, 0].set_xlabel("outer step", fontsize=9)
    return written(made, path)


def searched(one: History, *, path: Path | None = None) -> Figure:
    """Every trial's score by its number, the best so far, the statuses of those without a score, and the coverage below."""
    ratios = [4, 1] if one.coverage else [1]
    made = blank(8.0, 5.2 if one.coverage else 4.0)
    panels = made.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
    axes = panels[0, 0]
    _trials(axes, one)
    axes.set_ylabel(unit_label(one.unit), fontsize=9)
    done = sum(each.status == "done" for each in one.tried)
    axes.set_title(f"{one.study}: {len(one.tried):,} trials, {done:,} done", fontsize=10, loc="left")
    plain(axes)
    if one.coverage:
        below = panels[1, 0]
        numbers, values = zip(*one.coverage, strict=True)
        below.step([0.0, *numbers], [0.0, *values], where="post", color=GREEN, lw=1.6)
        below.set(ylim=(0, 1.05), ylabel="coverage")
        below.yaxis.label.set_size(9)
        said = f"probability that one of the top {one.top} was tried: {values[-1]:.3f}"
        below.set_title(said, fontsize=8, loc="left", color=GREY)
        plain(below)
    panels[-1, 0].set_xlabel("trial", fontsize=9)
    panels[-1, 0].xaxis.get_major_locator().set_params(integer=True)
    if axes.get_legend_handles_labels()[0]:
        made.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower center", ncols=6)
    return written(made, path)


def _trials(axes: Axes, one: History) -> None:
    scored = [each for each in one.tried if each.score is not None]
    small = 5.0 if len(scored) <= 60 else 3.5 if len(scored) <= 400 else 2.2
    for whole, label in ((True, "score"), (False, "score, stopped early")):
        here = [each for each in scored if each.whole is whole and each.status == "done"]
        if here:
            axes.plot([t.trial for t in here], [_shown(t.score, one.unit) for t in here], "o", ms=small, color=BLUE, mew=0.8,
                      mfc=BLUE if whole else "white", alpha=0.9 if len(scored) <= 400 else 0.5, label=label, zorder=3)
    reused = [each for each in scored if each.status == "reused"]
    if reused:
        axes.plot([t.trial for t in reused], [_shown(t.score, one.unit) for t in reused], "o", ms=small, mfc="none", mec=GREY,
                  label="reused", zorder=2)
    bars = [t for t in scored if t.low is not None and t.high is not None]
    if bars:
        axes.vlines([t.trial for t in bars], [_shown(t.low, one.unit) for t in bars], [_shown(t.high, one.unit) for t in bars],
                    color=BLUE, lw=1, alpha=0.35, zorder=2)
    _best(axes, one, [each for each in scored if each.status == "done"])
    if len(scored) > 3:
        ends = [_shown(end, one.unit) for t in bars for end in (t.low, t.high)]
        _cut_off(axes, [_shown(t.score, one.unit) for t in scored], ends, less=one.unit in ERRORS)
    failed = {status: [t.trial for t in one.tried if t.status == status] for status in FAILED}
    failed = {status: numbers for status, numbers in failed.items() if numbers}
    low, high = axes.get_ylim()
    axes.set_ylim(low - (high - low) * 0.04 * len(failed), high)
    for at, (status, numbers) in enumerate(failed.items()):  # on the lower edge, a line for each status: they have no score
        marker, colour = FAILED[status]
        axes.plot(numbers, [0.02 + 0.035 * at] * len(numbers), marker, ms=5 if len(one.tried) <= 200 else 2.2, color=colour,
                  label=f"{status} ({len(numbers):,})", clip_on=False, transform=axes.get_xaxis_transform(), zorder=4)


def _best(axes: Axes, one: History, done: Sequence[Tried]) -> None:
    """The best so far of those that trained longest: a step at every trial that is better than all before it."""
    done = [each for each in done if each.whole]
    numbers: list[float] = []
    values: list[float] = []
    best = -math.inf
    for each in done:
        assert each.score is not None
        if each.score > best:
            best = each.score
            numbers.append(each.trial)
            values.append(_shown(best, one.unit))
    if numbers:
        ends = [*numbers, one.tried[-1].trial], [*values, values[-1]]
        axes.step(*ends, where="post", color=RED, lw=1.5, label="best so far", zorder=1)
        axes.plot(numbers, values, "o", ms=6.5, mfc="none", mec=RED, mew=1.2, zorder=4)


def _cut_off(axes: Axes, values: Sequence[float], ends: Sequence[float], *, less: bool) -> None:
    """One trial that blew up must not flatten all others: what is far worse than their quartiles leaves the picture. What is
    better never does, for it is what a search is after. less: is it better?"""
    import numpy as np

    sign = -1.0 if less else 1.0  # larger is better in here
    better, all_of = [sign * v for v in values], [sign * v for v in (*values, *ends)]
    low, high = np.quantile(better, [0.25, 0.75])
    least = low - (4 * max(high - low, (max(better) - high) / 8) or 1.0)
    inside = [sign * v for v in all_of if v >= least]
    if len(inside) < len(all_of):
        room = 0.08 * (max(inside) - min(inside) or 1.0)
        axes.set_ylim(min(inside) - room, max(inside) + room)


def _columns(points: Points, unit: str) -> tuple[list[float], list[float]]:
    return [step for step, _ in points], [_shown(value, unit) for _, value in points]


def _shown(score: float | None, unit: str) -> float:
    """A score, which is larger-is-better inside, as people read it."""
    number = math.nan if score is None else -score + 0.0 if unit in ERRORS else score
    return 100 * number if unit == "accuracy" else number


def _told(one: Course) -> str:
    assert one.interval is not None
    step, low, high = one.interval
    value, half = _shown(dict(one.scores).get(step, (low + high) / 2), one.unit), (high - low) / 2
    return f"{value:.1f} ± {100 * half:.1f} %" if one.unit == "accuracy" else f"{value:.4g} ± {half:.2g}"

