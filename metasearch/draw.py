"""Curves, searches and architectures as pictures: matplotlib figures, returned and never shown.

    figure = intervals(metasearch.leaderboard("glyphs"))
    figure.savefig("board.png")
    architecture(metasearch.graph.drawn(module, config), path=Path("cell.svg"))
    searched(history(ledger), path=Path("history.png"))

Figures are made without pyplot: no window opens, and nothing stays in memory. Scores are drawn in their task's own unit:
accuracies in percent, errors positive. Bars and bands are 95 % intervals over episodes.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasearch.ledger import Ledger
from metasearch.records import ERRORS
from metasearch.track.architecture import picture as architecture
from metasearch.track.figures import BLUE, GREEN, GREY, LINES, ORANGE, RED, blank, plain, unit_label, written
from metasearch.track.plots import course, history, learning, searched

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from metasearch.trained import Evaluation, Point, Wave

__all__ = [
    "adaptation", "architecture", "course", "curves_from_ledger", "evaluation", "history", "intervals", "learning",
    "learning_curves", "searched", "waves",
]


def evaluation(found: Evaluation, path: Path | None = None) -> Figure:
    """What `metasearch evaluate` found: the adaptation curve (of learners without inner steps how the episodes' scores spread),
    and on sine three tasks before and after adaptation, with the supports all over the axis and on one half of it. Written to
    `path` (.png, .svg, .pdf) if one is given."""
    parts = [one for one in (found, found.half) if one is not None]
    drawn = [one for one in parts if one.waves]
    rows = len(drawn) + 1
    figure = blank(9.5 if drawn else 5.5, 3.2 * rows)
    grid = figure.add_gridspec(rows, 3)
    above = figure.add_subplot(grid[0, :])
    if any(one.curve for one in parts):
        _adaptation(above, {one.split: one.curve for one in parts}, found.unit, found.trial)
    else:
        _spread(above, parts, found.trial)
    for at, one in enumerate(drawn, start=1):
        axes = [figure.add_subplot(grid[at, column]) for column in range(len(one.waves))]
        _waves(axes, one.waves, one.split)
    return written(figure, path)


def adaptation(curves: Mapping[str, Sequence[Point]], unit: str, *, title: str = "", path: Path | None = None) -> Figure:
    """Score by number of inner steps, a line for each entry; where some episodes diverged, an open marker shows the median."""
    figure = blank(5.5, 3.6)
    _adaptation(figure.add_subplot(), curves, unit, title)
    return written(figure, path)


def waves(found: Sequence[Wave], *, title: str = "", path: Path | None = None) -> Figure:
    """Sine tasks side by side: supports, the true curve, and the prediction after 0, 1, 10 inner steps."""
    figure = blank(3.2 * len(found), 3.2)
    _waves([figure.add_subplot(1, len(found), at + 1) for at in range(len(found))], found, title)
    return written(figure, path)


def learning_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], metric: str, *, best: str | None = None, path: Path | None = None
) -> Figure:
    """One line a trial: (step, value) points by trial name. `best` is drawn on top, in colour."""
    figure = blank(6, 3.8)
    axes = figure.add_subplot()
    few = len(curves) <= len(LINES)
    for at, (name, points) in enumerate(curves.items()):
        if name == best or not points:
            continue
        colour, strength = (LINES[at % len(LINES)], 0.9) if few else (GREY, max(0.15, min(0.6, 12 / len(curves))))
        axes.plot(*zip(*points, strict=True), color=colour, alpha=strength, lw=1, label=name if few else None)
    if best is not None and curves.get(best):
        axes.plot(*zip(*curves[best], strict=True), color=RED, lw=2, label=f"{best} (best)")
    axes.set_xlabel("outer step")
    axes.set_ylabel(metric)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    plain(axes)
    return written(figure, path)


def intervals(frame: pd.DataFrame, *, top: int = 20, path: Path | None = None) -> Figure:
    """The best rows of a leaderboard with their intervals, best on top; those that cannot be told from the first in colour."""
    shown = frame[frame["score"].notna()].head(top)
    unit = str(shown["unit"].iloc[0]) if len(shown) else "score"
    figure = blank(6, 1.2 + 0.27 * max(len(shown), 3))
    axes = figure.add_subplot()
    records = shown.astype({"tied": "object"}).to_dict(orient="records")
    for at, row in enumerate(records):
        score, low, high = (_read(row[name], unit) for name in ("score", "low", "high"))
        colour = BLUE if row["tied"] is True else GREY
        if math.isfinite(low) and math.isfinite(high):
            axes.plot([low, high], [at, at], color=colour, lw=2, solid_capstyle="butt")
        axes.plot([score], [at], "o", color=colour, ms=5)
    axes.set_yticks(range(len(shown)), list(shown["trial"]), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(unit_label(unit))
    axes.set_title("blue: cannot be told from the first (paired tests, Holm, 5 %)", fontsize=8, loc="left", color=GREY)
    plain(axes)
    return written(figure, path)


def curves_from_ledger(folder: Path, metric: str = "train_loss") -> dict[str, list[tuple[float, float]]]:
    """(step, value) points of every trial of a study that reported this metric ("score" too), by the trial's name."""
    curves: dict[str, list[tuple[float, float]]] = {}
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        name = str(ledger.study()["study"]["name"])
        for row in ledger.rows(kinds=["report"]):
            value = row.body.get("score") if metric == "score" else row.body["metrics"].get(metric)
            points = curves.setdefault(f"{name}/{row.trial}", [])
            if value is not None and (not points or row.body["step"] > points[-1][0]):  # after a restart steps are said again
                points.append((float(row.body["step"]), float(value)))
    return {trial: points for trial, points in curves.items() if points}


# -- parts of pictures ----------------------------------------------------------------------------------------------------


def _adaptation(axes: Axes, curves: Mapping[str, Sequence[Point]], unit: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    lost = 0.0
    for colour, (name, points) in zip(LINES, curves.items(), strict=False):
        if not points:
            continue
        steps = [p.inner_steps for p in points]
        values = [_own(p.median if p.mean is None else p.mean, unit) for p in points]
        axes.plot(steps, values, "-", color=colour, lw=1.5, label=name)
        whole = [(p.inner_steps, *(_own(v, unit) for v in (p.mean, p.low, p.high))) for p in points if p.mean is not None]
        for step, mean, low, high in whole:
            axes.plot([step, step], [low, high], color=colour, lw=1.5, alpha=0.6)
            axes.plot([step], [mean], "o", color=colour, ms=4)
        for p in points:
            if p.mean is None:
                axes.plot([p.inner_steps], [_own(p.median, unit)], "o", mfc="white", color=colour, ms=5)
        lost = max(lost, *(p.diverged for p in points))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("inner steps")
    axes.set_ylabel(unit_label(unit))
    said = f"; open: the median, up to {lost:.1%} of the episodes diverged" if lost else ""
    axes.set_title(f"{title}{said}", fontsize=9, loc="left")
    if len(curves) > 1 or not title:
        axes.legend(frameon=False, fontsize=8)
    plain(axes)


def _spread(axes: Axes, found: Sequence[Evaluation], title: str) -> None:
    """How many episodes have which score, with the mean and its interval."""
    for colour, one in zip(LINES, found, strict=False):
        values = [_own(score, one.unit) for score in one.scores if math.isfinite(score)]
        mean, low, high = (_own(value, one.unit) for value in one.interval[:3])
        if values:
            axes.hist(values, bins=min(30, max(5, len(values) // 10)), color=colour, alpha=0.35)
        if math.isfinite(mean):
            axes.axvspan(min(low, high), max(low, high), color=colour, alpha=0.3, lw=0)
            axes.axvline(mean, color=colour, lw=1.5, label=f"{one.split}: {mean:.4g} ± {abs(high - low) / 2:.2g}")
    axes.set_xlabel(unit_label(found[0].unit))
    axes.set_ylabel("episodes")
    axes.set_title(title, fontsize=9, loc="left")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)
    plain(axes)


def _waves(axes: Sequence[Axes], found: Sequence[Wave], title: str) -> None:
    for at, (one, wave) in enumerate(zip(axes, found, strict=True)):
        one.plot(wave.x, wave.truth, color="black", lw=1, ls=":", label="truth")
        for colour, (steps, predicted) in zip((GREY, ORANGE, BLUE, GREEN), wave.predicted.items(), strict=False):
            one.plot(wave.x, predicted, color=colour, lw=1.5, label=f"{steps} step{'' if steps == 1 else 's'}")
        one.plot(*zip(*wave.support, strict=True), "^", color=RED, ms=5, label="support")
        reach = max(map(abs, [*wave.truth, *(y for _, y in wave.support)]))
        one.set_ylim(-1.6 * reach - 0.2, 1.6 * reach + 0.2)  # what diverged leaves the picture, the wave stays readable
        plain(one)
        if at == 0:
            one.legend(frameon=False, fontsize=7, loc="upper left", ncols=2)
            one.set_title(title, fontsize=9, loc="left")


def _own(score: float | None, unit: str) -> float:
    """A score, which is larger-is-better inside, as people read it."""
    return _read(None if score is None else -score if unit in ERRORS else score, unit)


def _read(value: Any, unit: str) -> float:
    """A number of a leaderboard, which has its own sign already: percent for accuracies, NaN for what is missing."""
    number = float(value) if isinstance(value, int | float) else math.nan
    return 100 * number if unit == "accuracy" else number
