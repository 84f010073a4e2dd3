"""Figures are values: returned, in the task's own unit, and readable where numbers are missing or wild."""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from made_ledgers import make

from metasearch import draw
from metasearch.track.leaderboard import leaderboard, rows_from_ledger
from metasearch.track.plots import History, Tried
from metasearch.track.statistics import Interval
from metasearch.trained import Evaluation, Point, Wave

POINTS = [Point(k, -3.0 / (k + 1), -3.2 / (k + 1), -2.8 / (k + 1), -1.0, 0.0) for k in range(5)]
LOST = Point(5, None, None, None, -0.5, 0.02)


def wave(blow_up: float = 1.0) -> Wave:
    x = np.linspace(-5, 5, 200)
    predicted = {0: (0 * x).tolist(), 1: (blow_up * np.sin(x)).tolist()}
    return Wave([(0.0, 0.0), (1.0, 0.84)], x.tolist(), np.sin(x).tolist(), predicted)


def test_an_evaluation_is_drawn_with_errors_positive_and_a_row_of_waves_a_split(tmp_path: Path) -> None:
    interval, waves = Interval(-1, -2, 0, 600), [wave()] * 3
    half = Evaluation("s/1", "half", "mse", "d", interval, -1.0, 0.0, [-1.0], POINTS, waves)
    whole = Evaluation("s/1", "test", "mse", "d", interval, -1.0, 0.0, [-1.0], [*POINTS, LOST], waves, half)
    figure = draw.evaluation(whole, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert len(figure.axes) == 1 + 3 + 3
    curve = figure.axes[0].lines[0]
    assert curve.get_ydata().tolist() == pytest.approx([3.0, 1.5, 1.0, 0.75, 0.6, 0.5])  # at the end the median
    assert "2.0% of the episodes diverged" in figure.axes[0].get_title(loc="left")


def test_a_prediction_that_blew_up_leaves_the_true_wave_readable() -> None:
    low, high = draw.waves([wave(1e6)]).axes[0].get_ylim()
    assert -3 < low < -1
    assert 1 < high < 3


def test_accuracies_are_drawn_in_percent_and_rows_that_are_tied_in_colour(tmp_path: Path) -> None:
    board = leaderboard(rows_from_ledger(make(tmp_path / "made", 12)))
    axes = draw.intervals(board, top=5).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == board["trial"].head(5).tolist()
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in points] == pytest.approx((100 * board["score"].head(5)).tolist())
    assert [line.get_color() == draw.BLUE for line in points] == board["tied"].head(5).tolist()


def test_a_leaderboard_without_scores_is_an_empty_picture() -> None:
    assert draw.intervals(leaderboard([])).axes


def test_learning_curves_come_out_of_the_ledger(tmp_path: Path) -> None:
    curves = draw.curves_from_ledger(make(tmp_path / "made", 12))
    assert len(curves) == 12
    assert curves["made/1"] == [(step, pytest.approx(100 / (step + 1))) for step in (100.0, 200.0, 300.0)]
    axes = draw.learning_curves(curves, "train_loss", best="made/3").axes[0]
    assert len(axes.lines) == 12
    assert axes.get_legend() is not None
    assert draw.curves_from_ledger(tmp_path / "made", "nothing") == {}


def test_drawing_opens_no_window_and_keeps_no_figure() -> None:
    loaded = sys.modules.get("matplotlib.pyplot")
    before = len(loaded.get_fignums()) if loaded else 0
    draw.adaptation({"test": POINTS}, "accuracy")
    loaded = sys.modules.get("matplotlib.pyplot")
    assert (len(loaded.get_fignums()) if loaded else 0) == before


@pytest.mark.parametrize(("unit", "scores", "worst"), [
    ("accuracy", [0.2 + 0.001 * i for i in range(16)] + [0.62, 0.93], None),
    ("accuracy", [0.2] * 8 + [0.9], None),
    ("mse", [-4 - 0.01 * i for i in range(12)] + [-0.3], None),
    ("mse", [-4 - 0.01 * i for i in range(12)] + [-900.0], 900.0),
    ("mse", [-4 - 0.01 * i for i in range(12)] + [-0.3, -900.0], 900.0),
])
def test_the_best_trial_is_always_in_the_picture_and_one_that_blew_up_never(
    unit: str, scores: list[float], worst: float | None
) -> None:
    """Where most learn nothing, the few that do are what a search is after."""
    tried = tuple(Tried(i, "done", score, score - 0.01, score + 0.01, True) for i, score in enumerate(scores, start=1))
    low, high = draw.searched(History("s", unit, tried)).axes[0].get_ylim()
    best = max(scores) * (100 if unit == "accuracy" else -1)
    assert low < best < high
    assert worst is None or high < worst / 10


def test_where_no_inner_step_changes_anything_the_scores_of_the_episodes_are_drawn(tmp_path: Path) -> None:
    scores = [0.2 * (i % 5) for i in range(100)]
    found = Evaluation("s/1", "test", "accuracy", "d", Interval(0.4, 0.35, 0.45, 100), 0.4, 0.0, scores)
    axes = draw.evaluation(found, tmp_path / "spread.png").axes[0]
    assert sum(bar.get_height() for bar in axes.patches if hasattr(bar, "get_height") and bar.get_width() < 20) >= 100
    assert axes.lines[0].get_xdata()[0] == pytest.approx(40)
    assert axes.get_legend_handles_labels()[1] == ["test: 40 ± 5"]
