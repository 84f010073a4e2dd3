"""The leaderboard is a function of rows: who is ranked, who is compared with whom, and how it is written down."""
from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_ledgers import config, end, make, one_shot, propose, stop, study
from rich.console import Console

from metasearch.cli import board
from metasearch.ledger import Ledger, LedgerError
from metasearch.track.formats import as_csv, as_json, as_parquet, as_table, captions, save
from metasearch.track.leaderboard import Row, _order_by, leaderboard, ranked, rows_from_ledger
from metasearch.track.where import WhereError, mlflow_filter, parse

RNG = np.random.default_rng(0)
HARD = RNG.normal(0, 0.1, 300)


def row(trial: int, score: float | None = None, status: str = "done", **more: Any) -> Row:
    """A trial whose per-episode scores have about this mean."""
    episodes = None if score is None or not math.isfinite(score) else (score + HARD + RNG.normal(0, 0.05, 300)).astype("<f4")
    given: dict[str, Any] = {
        "study": "s", "trial": trial, "config": {"lr": 0.1 * trial}, "status": status, "unit": "accuracy", "bank": "b",
        "episodes": episodes, "score": score if episodes is None else float(episodes.mean()),
    }
    return Row(**{**given, **more})


def text(frame: pd.DataFrame) -> str:
    """What a person sees."""
    file = io.StringIO()
    Console(file=file, width=250, color_system=None).print(as_table(frame))
    return "\n".join([file.getvalue(), *captions(frame)])


# -- who is ranked --------------------------------------------------------------------------------------------------------


def test_the_best_score_is_first_whatever_the_order_of_the_rows() -> None:
    rows = [row(t, 0.5 + 0.02 * t) for t in range(1, 9)]
    board = leaderboard(rows)
    assert board["trial"].tolist() == [f"s/{t}" for t in range(8, 0, -1)]
    assert board["rank"].tolist() == list(range(1, 9))
    pd.testing.assert_frame_equal(board, leaderboard(reversed(rows)), check_like=True)


def test_where_children_inherit_every_trial_is_an_individual_and_a_deeper_lineage_is_no_better() -> None:
    """Large-scale evolution: 2 is a mutant of 1, 3 trains 1 on as it is. With rungs (asha) the same rows are segments of two."""
    rows = [
        row(1, 0.8, config={"x": 1}, until=10), row(2, 0.6, config={"x": 2}, parent=1, until=20),
        row(3, 0.7, config={"x": 1}, parent=1, until=20), row(4, 0.5, config={"x": 3}, parent=2, until=30),
    ]
    individuals = leaderboard([replace(one, inherits=True) for one in rows])
    assert individuals["trial"].tolist() == ["s/1", "s/3", "s/2", "s/4"]
    assert individuals["rank"].tolist() == [1, 2, 3, 4]
    rungs = leaderboard(rows)
    assert rungs["trial"].tolist() == ["s/4", "s/3", "s/2"]
    assert rungs["rank"].isna().tolist() == [False, True, True]


def test_a_damaged_ledger_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make(tmp_path / name, 5)
    (tmp_path / "b" / "ledger.sqlite").write_bytes(b"SQLite format 3" + bytes(5000))
    board = leaderboard(None, home=tmp_path, source="ledger")
    assert set(board["trial"].str.split("/").str[0]) == {"a", "c"}
    assert list(board.attrs["damaged"]) == ["b"]
    said = text(board)
    assert "'b' is missing here: the ledger" in said
    assert "cannot be read" in said
    with pytest.raises(LedgerError, match="cannot be read"):
        leaderboard("b", home=tmp_path, source="ledger")


@pytest.mark.parametrize("score", [1e9, math.inf, math.nan, None])
@pytest.mark.parametrize("status", ["diverged", "oom", "error", "infeasible", "running", "proposed"])
def test_what_is_not_done_is_never_on_top(status: str, score: float | None) -> None:
    board = leaderboard([row(1, score, status), row(2, 0.3), row(3, score, status)])
    assert board["trial"][0] == "s/2"
    assert board["rank"].isna().tolist() == [False, True, True]
    assert board["score"].isna().tolist() == [False, True, True]


def test_a_score_that_is_not_finite_is_never_on_top() -> None:
    assert leaderboard([row(1, math.inf), row(2, 0.3), row(3, math.nan)])["trial"][0] == "s/2"


def test_a_study_without_a_single_success_has_rows_and_no_ranks() -> None:
    board = leaderboard([row(1, None, "error"), row(2, None, "diverged")])
    assert board["rank"].isna().all()
    assert len(board) == 2
    assert len(leaderboard([])) == 0
    assert text(leaderboard([]))


def test_errors_are_shown_positive_with_the_smallest_first_and_their_interval_the_right_way_round() -> None:
    board = leaderboard([row(t, -0.1 * t, unit="mse") for t in (3, 1, 2)])
    assert board["trial"].tolist() == ["s/1", "s/2", "s/3"]
    assert (board["score"] > 0).all()
    assert (board["low"] < board["score"]).all()
    assert (board["score"] < board["high"]).all()


def test_each_study_is_ranked_by_itself() -> None:
    board = leaderboard([row(1, 0.3, study="a"), row(1, 0.9, study="b"), row(2, 0.4, study="a")])
    assert list(zip(board["trial"], board["rank"], strict=True)) == [("a/2", 1), ("a/1", 2), ("b/1", 1)]


# -- lineages -------------------------------------------------------------------------------------------------------------


def test_a_lineage_is_one_row_its_last_segment() -> None:
    same = {"config": {"lr": 0.1}}
    rows = [row(1, 0.4, until=100, **same), row(2, 0.5, until=300, parent=1, **same), row(3, 0.6, until=900, parent=2, **same)]
    assert leaderboard(rows)["trial"].tolist() == ["s/3"]


def test_a_child_with_another_config_is_a_row_of_its_own() -> None:
    assert len(leaderboard([row(1, 0.4), row(2, 0.5, parent=1)])) == 2


def test_a_segment_that_failed_leaves_its_parent_and_one_that_diverged_does_not() -> None:
    same = {"config": {"lr": 0.1}}
    parent = row(1, 0.4, until=100, **same)
    assert leaderboard([parent, row(2, None, "error", until=300, parent=1, **same)])["rank"].notna().sum() == 1
    assert leaderboard([parent, row(2, None, "running", until=300, parent=1, **same)])["rank"][0] == 1
    diverged = leaderboard([parent, row(2, None, "diverged", until=300, parent=1, **same)])
    assert diverged["trial"].tolist() == ["s/2"]
    assert diverged["rank"].isna().all()


def test_only_equally_long_trainings_are_compared() -> None:
    board = leaderboard([row(1, 0.9, until=100), row(2, 0.6, until=900), row(3, 0.5, until=900), row(4, 0.2)])
    assert board["trial"].tolist() == ["s/4", "s/2", "s/3", "s/1"]  # a whole training, then the longer ones
    assert board["rank"].isna().tolist() == [False, True, True, True]
    board = leaderboard([row(1, 0.9, until=100), row(2, 0.6, until=900), row(3, 0.601, until=900)])
    assert board["rank"].dropna().tolist() == [1, 2]
    assert board["tied"].isna().tolist() == [False, False, True]


def test_reused_answers_are_left_out() -> None:
    assert leaderboard([row(1, 0.5), row(2, 0.5, "reused")])["trial"].tolist() == ["s/1"]


def test_asha_in_a_ledger_is_one_row_a_config(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "ledger.sqlite", study()) as ledger:
        for trial in (1, 2, 3):
            end(ledger, trial, propose(ledger, trial, {"lr": 0.1 * trial}, until=100), 0.5 + 0.01 * trial + HARD, step=100)
        end(ledger, 4, propose(ledger, 4, {"lr": 0.1 * 3}, parent=3, until=300), 0.4 + HARD, step=300)
        stop(ledger)
    board = leaderboard(rows_from_ledger(tmp_path))
    assert board["trial"].tolist() == ["made/4", "made/2", "made/1"]
    assert board["rank"].tolist()[0] == 1
    rows = rows_from_ledger(tmp_path, where="step < 200")  # drops the segment of 300 steps, and brings nothing up in its place
    assert leaderboard(rows)["trial"].tolist() == ["made/2", "made/1"]


# -- who is compared with whom --------------------------------------------------------------------------------------------


def test_close_rows_cannot_be_told_from_the_first_and_far_ones_can() -> None:
    board = leaderboard([row(1, 0.70), row(2, 0.699), row(3, 0.60), row(4, 0.50)])
    assert board["tied"].tolist() == [True, True, False, False]


def test_rows_on_other_episodes_are_not_compared() -> None:
    board = leaderboard([row(1, 0.70), row(2, 0.699, bank="other"), row(3, 0.5, bank=None), row(4, 0.4, episodes=None)])
    assert board["tied"].isna().tolist() == [False, True, True, True]


def test_how_many_rows_are_shown_changes_no_verdict() -> None:
    rows = [row(t, 0.6 + 0.003 * t) for t in range(1, 31)]
    with pytest.raises(ValueError, match="0 or more"):
        leaderboard(rows, top=-1)
    whole, few = leaderboard(rows), leaderboard(rows, top=5)
    pd.testing.assert_frame_equal(whole.head(5), few)


# -- filters and order ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return rows_from_ledger(make(tmp_path_factory.mktemp("home") / "made", 40))


@pytest.mark.parametrize(("where", "meets"), [
    ("learner.inner_lr < 0.1", lambda r: r.config["learner.inner_lr"] < 0.1),
    ("config/learner.inner_lr<1e-1", lambda r: r.config["learner.inner_lr"] < 0.1),
    ("learner = maml and learner.inner_steps >= 3", lambda r: r.config.get("learner.inner_steps", 0) >= 3),
    ("learner != 'maml'", lambda r: r.config["learner"] != "maml"),
    ("learner.inner_steps != 3", lambda r: r.config.get("learner.inner_steps", 3) != 3),
    ("first_order = true", lambda r: r.config["first_order"]),
    ("net.width == 32", lambda r: r.config["net.width"] == 32),
    ("score > 60%", lambda r: r.status == "done" and r.score > 0.6),
    ("status = diverged", lambda r: r.status == "diverged"),
    ("trial = 7", lambda r: r.trial == 7),
    ("trial != made/7", lambda r: r.trial != 7),
    ("params > 100020 and norm = transductive", lambda r: (r.params or 0) > 100_020),
])
def test_a_filter_keeps_the_rows_that_meet_it(rows: list[Row], where: str, meets: Any) -> None:
    kept = leaderboard(rows, where=where)
    expected = [r.name for r, _, _ in ranked([r for r in rows if meets(r)])]
    assert 0 < len(expected) < len(rows)
    assert kept["trial"].tolist() == expected


@pytest.mark.parametrize(("where", "words"), [
    ("learner.inner_lrr < 1", "Did you mean 'learner.inner_lr'"),
    ("scor > 1", "Did you mean 'score'"),
    ("score >", "middle of a comparison"),
    ("score ! 3", "cannot be read"),
    ("score < best", "is a number"),
    ("score < nan", "no number"),
    ("learner < maml", "= and != only"),
    ("score > 0.5 or score < 0.2", "no `or`"),
    ("score > 0.5 score < 1", "`and`"),
    ("score > 0.5 and", "`and`"),
    ("  ", "empty"),
    ("score > 0.5; drop table runs", "`and`|no number|is a number"),
    ("learner = 'ma\"ml'' or 1=1", "cannot be read"),
])
def test_a_filter_that_cannot_be_understood_is_refused_in_words(rows: list[Row], where: str, words: str) -> None:
    with pytest.raises(WhereError, match=words):
        leaderboard(rows, where=where)


def test_no_value_of_a_filter_leaves_its_quotes() -> None:
    dims = {"op": {"string"}}
    assert mlflow_filter(parse('op = "it\'s"', dims), "s", negated=False) == "params.`op` = \"it's\""
    assert mlflow_filter(parse("op = 'say \"x\"'", dims), "s", negated=False) == "params.`op` = 'say \"x\"'"


def test_filters_on_errors_compare_what_tables_show() -> None:
    rows = [row(t, -0.1 * t, unit="mse") for t in (1, 2, 3)]
    assert leaderboard(rows, where="score < 0.25")["trial"].tolist() == ["s/1", "s/2"]
    assert mlflow_filter(parse("score < 0.25 and low >= 0.1", {}), "s", negated=True) == (
        "metrics.`score` > -0.25 and metrics.`score_high` <= -0.1"
    )


def test_rows_are_sorted_by_any_column_or_dimension(rows: list[Row]) -> None:
    assert leaderboard(rows, sort="learner.inner_lr")["config/learner.inner_lr"].is_monotonic_increasing
    assert leaderboard(rows, sort="-params")["params"].dropna().is_monotonic_decreasing
    assert leaderboard(rows, sort="seconds", top=3)["seconds"].tolist() == sorted(r.seconds for r in rows if r.seconds)[:3]
    assert leaderboard(rows, sort="-score")["rank"].dropna().is_monotonic_decreasing
    with pytest.raises(ValueError, match=r"Did you mean 'learner\.inner_lr'"):
        leaderboard(rows, sort="learner.inner_l")


# -- formats --------------------------------------------------------------------------------------------------------------


def test_json_is_strict_and_holds_the_configs_as_they_were(rows: list[Row]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    records = json.loads(as_json(leaderboard(rows)), parse_constant=refuse)
    configs = {r.name: r.config for r in rows}
    assert all(record["config"] == configs[record["trial"]] for record in records)
    assert records[-1]["score"] is None
    assert all(type(record["config"]["first_order"]) is bool for record in records)


def test_csv_reads_back(rows: list[Row]) -> None:
    board = leaderboard(rows)
    back = pd.read_csv(io.StringIO(as_csv(board)))
    assert back["trial"].tolist() == board["trial"].tolist()
    assert np.allclose(back["score"], board["score"], equal_nan=True)


def test_parquet_reads_back_also_where_a_dimension_mixes_texts_and_numbers() -> None:
    board = leaderboard([row(1, 0.5, config={"size": "auto", "flag": True}), row(2, 0.4, config={"size": 3, "op": "None"})])
    back = pd.read_parquet(io.BytesIO(as_parquet(board)))
    assert [json.loads(text) for text in back["config"]] == [{"size": "auto", "flag": True}, {"size": 3, "op": "None"}]
    assert back["config/size"].tolist() == ['"auto"', "3"]
    assert back["config/op"].tolist()[1] == "None"
    assert back["score"].tolist() == board["score"].tolist()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(as_csv(leaderboard([row(1, 0.5)])), tmp_path / "new" / "board.csv")
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save(as_csv(leaderboard([row(1, 0.6)])), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["board.csv"]


def test_the_type_of_a_column_does_not_depend_on_its_rows() -> None:
    some, none = leaderboard([row(1, 0.5, params=3.0, seed=2**62)]), leaderboard([row(1, None, "error")])
    shared = [name for name in some.columns if not name.startswith("config/")]
    assert some[shared].dtypes.tolist() == none[shared].dtypes.tolist()
    assert some["seed"][0] == 2**62


def test_the_table_shows_percent_intervals_and_who_cannot_be_told_apart() -> None:
    shown = text(leaderboard([row(1, 0.70), row(2, 0.699), row(3, 0.5), row(4, None, "diverged")]))
    assert "%" in shown
    assert "±" in shown
    assert "cannot be told from the first" in shown
    assert "neither seeds nor the choice of the best" in shown
    assert [line.split()[0] for line in shown.splitlines() if "s/" in line][:3] == ["1", "2", "3"]
    assert "diverged" in shown


def test_the_table_of_errors_shows_the_median() -> None:
    assert "median" in text(leaderboard([row(1, -0.5, unit="mse"), row(2, -0.6, unit="mse")]))


def test_names_in_a_table_are_neither_markup_nor_control_characters() -> None:
    shown = text(leaderboard([row(1, 0.5, config={"[red]x": "\x1b[31mboo"}), row(2, 0.4, config={"[red]x": "[bold]plain"})]))
    assert "\x1b" not in shown
    assert "[bold]plain" in shown
    assert "[red]x" in shown


def test_the_table_says_what_mlflow_has_not_seen() -> None:
    board = leaderboard([row(1, 0.5)])
    board.attrs["unseen"] = 12
    assert "has not seen the last 12 ledger rows" in text(board)


def test_a_table_of_many_dimensions_names_those_that_differ_and_not_too_many() -> None:
    rng = np.random.default_rng(0)
    fixed = {f"fixed.{i}": i for i in range(50)}
    shown = text(leaderboard([row(t, 0.5, config={**config(t, rng), **fixed}) for t in range(1, 7)]))
    assert "learner=maml .inner_lr=" in shown
    assert "fixed" not in shown
    shown = text(leaderboard([row(t, 0.5, config={f"cell.{i}": i * t for i in range(50)}) for t in (1, 2)]))
    assert "and 37 more" in shown or "and 38 more" in shown


def test_a_table_that_shows_a_part_says_of_how_many() -> None:
    assert "2 of 5 rows" in text(leaderboard([row(t, 0.5) for t in range(1, 6)], top=2))


# -- the front ------------------------------------------------------------------------------------------------------------


def test_a_row_is_on_the_front_if_none_scores_as_high_at_a_lower_cost() -> None:
    """Against the definition, pair by pair, with ties in both."""
    rng = np.random.default_rng(1)
    rows = [
        row(t, score=s, episodes=None, params=float(p), flops=float(rng.integers(5)))
        for t, (s, p) in enumerate(zip(rng.integers(8, size=40) / 8, rng.integers(6, size=40), strict=True), 1)
    ]
    for cost in ("params", "flops"):
        board = leaderboard(rows, front=cost)  # type: ignore[arg-type]
        for one in board.itertuples():
            mine = (one.score, -getattr(one, cost))
            better = [
                o for o in board.itertuples()
                if o.score >= mine[0] and -getattr(o, cost) >= mine[1] and (o.score, -getattr(o, cost)) != mine
            ]
            assert one.front == (not better), (one.trial, cost)


def test_a_front_is_of_ranked_rows_of_one_study() -> None:
    rows = [
        row(1, 0.5, params=10.0), row(2, 0.9, params=100.0), row(3, 0.4, params=20.0), row(4, 0.99, "diverged", params=1.0),
        row(5, 0.2, params=5.0, until=3), row(1, 0.1, study="other", params=1000.0),
    ]
    board = leaderboard(rows).set_index("trial")
    assert board["front"].dropna().to_dict() == {"s/2": True, "s/1": True, "s/3": False, "other/1": True}
    assert "* is on the front" in text(leaderboard(rows[:3]))
    with pytest.raises(ValueError, match="score and params, flops, latency_ms, seconds"):
        leaderboard(rows, front="size")  # type: ignore[arg-type]


def test_a_front_may_be_of_latency() -> None:
    rows = [row(i, score, params=9.0 - i, latency_ms=float(i)) for i, score in ((1, 0.5), (2, 0.6), (3, 0.4))]
    board = leaderboard(rows, front="latency_ms")
    assert board.set_index("trial")["front"].to_dict() == {"s/1": True, "s/2": True, "s/3": False}
    assert "in latency" in text(board)
    assert "2 ms" in text(board)
    assert "in params" in text(leaderboard(rows))


# -- what a search found --------------------------------------------------------------------------------------------------


def test_the_row_of_a_one_shot_search_says_what_it_found_and_whether_sharing_told_the_truth(tmp_path: Path) -> None:
    """What was proposed in the dimensions that are searched is nobody's choice."""
    held = {"op": "held", "width": 3}
    one_shot(tmp_path, held, {"op": "conv", "width": 3})
    board = leaderboard(rows_from_ledger(tmp_path))
    first, second = json.loads(as_json(board))
    assert (first["found"], first["config"], second["found"]) == ({"op": "conv", "width": 3}, held, None)
    assert [first[name] for name in ("supernet", "rank_correlation", "latency_ms")] == [0.4, -0.25, 0.5]
    said = text(board)
    assert "op=conv" in said
    assert "held" not in said
    for words in ("40.0 %", "-0.25", "found: what a search chose", "supernet: the score with the weights of the search"):
        assert words in said
    error = leaderboard([row(1, -0.5, unit="mse", supernet=-0.7, found={"lr": 1.0})])
    assert error["supernet"].tolist() == [0.7]
    assert "found" not in text(leaderboard([row(1, 0.5)]))


def test_small_errors_are_as_small_as_they_are() -> None:
    shown = text(leaderboard([replace(row(t, unit="mse"), score=score) for t, score in ((1, -2.5e-6), (2, -4e-5))]))
    assert "2.5e-06" in shown
    assert "4e-05" in shown


def test_of_several_units_each_is_shown_in_its_own_and_named() -> None:
    rows = [row(1, 0.9), row(1, -2.0, unit="mse", study="waves")]
    shown = text(leaderboard(rows))
    assert "Scores of waves are mse; less is better." in shown
    (accuracy,) = (line for line in shown.splitlines() if " s/1 " in line)
    assert accuracy.count("%") == 2, "its median is in percent, too"


@pytest.mark.parametrize("front", ["flops", "seconds", "latency_ms"])
def test_a_front_of_any_cost_is_shown(front: Any) -> None:
    """Also where all nets have equally many parameters."""
    rows = [row(t, 0.9 - 0.1 * t, params=1000.0, **{front: 10.0 - t}) for t in (1, 2, 3)]
    shown = text(leaderboard(rows, front=front))
    assert sum("*" in line for line in shown.splitlines()) == 4, "three rows, and the line that says what it means"
    assert "front" not in text(leaderboard(rows))


def test_a_bare_key_is_the_column_and_config_leads_to_the_dimension() -> None:
    """In filters, in MLflow's and in an order alike."""
    rows = [row(t, 0.5 + 0.1 * t, config={"norm": norm, "step": t}, norm="transductive", step=100 - t)
            for t, norm in enumerate(("batch", "layer"), start=1)]
    assert len(leaderboard(rows, where="norm = transductive")) == 2
    assert leaderboard(rows, where="config/norm = batch")["trial"].tolist() == ["s/1"]
    assert leaderboard(rows, where="step > 50")["trial"].tolist() == leaderboard(rows, sort="rank")["trial"].tolist()
    assert leaderboard(rows, where="config/step > 1")["trial"].tolist() == ["s/2"]
    assert leaderboard(rows, sort="step")["trial"].tolist() == ["s/2", "s/1"]
    assert leaderboard(rows, sort="config/step")["trial"].tolist() == ["s/1", "s/2"]
    dims = {"norm": {"string"}, "step": {"number"}}
    assert "tags" in mlflow_filter(parse("norm = batch", dims), "s", negated=False)
    assert "params" in mlflow_filter(parse("config/norm = batch", dims), "s", negated=False)
    assert "DESC" not in _order_by("step", dims, negated=False)
    assert _order_by("step", dims, negated=False) != _order_by("config/step", dims, negated=False)
    with pytest.raises(WhereError, match="'score' is no key"):
        leaderboard(rows, where="config/score > 0.5")


def test_trials_are_sorted_by_number_and_numbers_among_texts_too() -> None:
    rows = [row(t, 0.5, config={"x": x}) for t, x in zip((1, 2, 10, 11), (10, 9, "auto", 100), strict=True)]
    rows += [row(3, 0.5, study="other", config={})]
    assert leaderboard([], sort="trial").empty
    board = leaderboard(rows, sort="trial")
    assert board["trial"].tolist() == ["other/3", "s/1", "s/2", "s/10", "s/11"]
    assert leaderboard(rows, sort="x")["config/x"].tolist()[:4] == [9, 10, 100, "auto"]
    assert leaderboard(rows, sort="-x")["config/x"].tolist()[:4] == ["auto", 100, 10, 9]


def test_the_filter_of_a_large_number_is_written_as_mlflow_reads_it() -> None:
    for number, told in (("1e16", "1e16"), ("1e-7", "1e-07"), ("2.5e20", "2.5e20")):
        assert mlflow_filter(parse(f"flops < {number}", {}), "s", negated=False).endswith(f"< {told}")


@pytest.mark.parametrize("rows", [[], [row(1, 0.5)]])
@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_what_mlflow_has_not_seen_is_said_with_every_format(
    form: Any, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    frame = leaderboard(rows)
    frame.attrs |= {"unseen": 12, "behind": ["s"]}
    board.write(frame, form, None)
    assert "has not seen the last 12 ledger rows of s yet" in " ".join(capsys.readouterr().err.split())
