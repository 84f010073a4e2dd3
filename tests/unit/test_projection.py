"""What MLflow should show is a fold over ledger rows: the same in whatever portions they come, finite, within MLflow's limits."""
from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_ledgers import make, study
from mlflow.utils.validation import _validate_metric_name, _validate_param_name

from metasearch.ledger import Ledger, Row
from metasearch.track.projection import STUDY, Change, Key, Projection, joined, scores_of, spelled, tag


def rows_of(*bodies: tuple[str, int | None, dict[str, Any]], blob: bytes | None = None) -> list[Row]:
    first = Row(1, 1000.0, "study", None, study(), None)
    return [first, *(Row(at, 1000.0 + at, kind, trial, body, blob) for at, (kind, trial, body) in enumerate(bodies, start=2))]


def proposal(config: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"config": config, "parent": None, "until": None, "moved": {}, "seed": 7, **more}


def ended(status: str = "done", **more: Any) -> dict[str, Any]:
    return {"trial": 1, "score": 0.5, "metrics": {"params": 10.0}, "status": status, "step": 100, "reason": None, "seconds": 1.0,
            "checkpoint": None, **more}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    with Ledger.open(make(tmp_path_factory.mktemp("home") / "made", 25) / "ledger.sqlite") as ledger:
        return list(ledger.rows())


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_changes_are_the_same_in_whatever_portions_the_rows_come(rows: list[Row], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1), max_size=10)))
    projection, found = Projection(), dict[Key, Change]()
    for first, last in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        for key, change in projection.take(rows[first:last]).items():
            found.setdefault(key, Change()).merge(change)
    assert {k: asdict(c) for k, c in found.items()} == {k: asdict(c) for k, c in Projection().take(rows).items()}


@pytest.mark.parametrize(("inherits", "best"), [(True, [1, 3, 2]), (False, [3, 2])])
def test_the_best_of_an_evolution_are_individuals_and_of_halving_the_longest(inherits: bool, best: list[int]) -> None:
    """3 goes on with 1's config: a promotion, or an individual of its own."""
    rows = rows_of(
        ("proposed", 1, proposal({"x": 1}, until=10)), ("ended", 1, ended(score=0.8)),
        ("proposed", 2, proposal({"x": 2}, parent=1, until=20)), ("ended", 2, ended(score=0.6)),
        ("proposed", 3, proposal({"x": 1}, parent=1, until=20)), ("ended", 3, ended(score=0.7)),
    )
    rows[0] = rows[0]._replace(body={**rows[0].body, "inherits": inherits})
    projection = Projection()
    found = projection.take(rows)
    assert [done.trial for done in projection.best(3)] == best
    assert (tag("superseded") in found[1].tags) != inherits
    assert (found[3].tags.get(tag("inherits")) == "true") == inherits


def test_numbers_that_are_not_finite_become_tags() -> None:
    found = Projection().take(rows_of(
        ("proposed", 1, proposal({"lr": 0.1})),
        ("report", 1, {"step": 5, "metrics": {"loss": float("inf"), "grad": float("nan"), "fine": 1.0}, "score": None}),
        ("ended", 1, ended("diverged", score=None, metrics={"flops": float("-inf")})),
    ))
    assert all(np.isfinite(point.value) for change in found.values() for point in change.points)
    assert found[1].tags[tag("not_finite.curve/loss")] == "inf at step 5"
    assert found[1].tags[tag("not_finite.curve/grad")] == "nan at step 5"
    assert found[1].tags[tag("not_finite.flops")] == "-inf at step 100"
    assert "curve/fine" in {point.key for point in found[1].points}


def test_a_trial_that_is_not_done_has_no_score() -> None:
    for status in ("diverged", "error", "oom", "reused", "infeasible"):
        found = Projection().take(rows_of(("proposed", 1, proposal({"lr": 0.1})), ("ended", 1, ended(status, score=0.99))))
        assert "score" not in {point.key for point in found[1].points}
        assert "best" not in {point.key for point in found[STUDY].points}


def test_a_row_says_that_every_task_had_a_net_of_its_own() -> None:
    for metrics, nets in (({"per_task": 1.0, "params": 10.0}, "per task"), ({"params": 10.0}, None)):
        found = Projection().take(rows_of(("proposed", 1, proposal({"lr": 0.1})), ("ended", 1, ended(metrics=metrics))))
        assert found[1].tags.get(tag("nets")) == nets


def test_configs_and_scores_travel_exactly_however_long() -> None:
    config = {"text": "x" * 9_000, "unicode": "ü→", "flag": True, "none": "None", "whole": 3, "lr": 0.1}
    scores = np.random.default_rng(0).random(10_000, dtype=np.float32)
    found = Projection().take(rows_of(("proposed", 1, proposal(config)), ("ended", 1, ended()), blob=scores.tobytes()))[1]
    assert json.loads(joined(found.tags, "config") or "") == config
    assert scores_of(joined(found.tags, "episodes") or "").tolist() == scores.tolist()
    assert max(map(len, found.tags.values())) <= 8_000
    assert max(map(len, found.params.values())) <= 6_000
    assert "9000 characters" in found.params["text"]
    assert found.params["flag"] == "true"
    assert {point.key for point in found.points} >= {"config/whole", "config/lr"}
    assert "config/flag" not in {point.key for point in found.points}


@pytest.mark.parametrize("name", [
    "config/cell.0.op", "a$b", "../../etc/x", "/abs", "a//b", "./a", "a/..", "é", "x" * 400, "", "..", ".", "a b:c",
    "lr (log)", "a/", "\n", "a\x1b[31m", "C:\\x", "-rf",
])
def test_every_name_becomes_one_that_mlflow_takes(name: str) -> None:
    _validate_metric_name(spelled(name))
    _validate_param_name(spelled(name))


def test_two_names_stay_two_and_good_names_stay_themselves() -> None:
    assert spelled("a$b") != spelled("a%b")
    assert spelled("learner.inner_lr") == "learner.inner_lr"


def test_steps_that_are_said_again_after_a_restart_are_points_once() -> None:
    again = [("report", 1, {"step": step, "metrics": {"loss": 1.0 / step}, "score": None}) for step in (10, 20, 10, 20, 30)]
    found = Projection().take(rows_of(("proposed", 1, proposal({"lr": 0.1})), *again))
    assert [point.step for point in found[1].points if point.key == "curve/loss"] == [10, 20, 30]


def test_the_segment_that_another_went_on_from_is_marked() -> None:
    same = {"lr": 0.1}
    found = Projection().take(rows_of(
        ("proposed", 1, proposal(same, until=100)), ("ended", 1, ended()),
        ("proposed", 2, proposal(same, parent=1, until=300)), ("ended", 2, ended(trial=2)),
        ("proposed", 3, proposal({"lr": 0.2}, parent=2)), ("ended", 3, ended(trial=3)),
    ))
    assert found[1].tags[tag("superseded")] == "2"
    assert tag("superseded") not in found[2].tags


def test_the_best_are_the_longest_and_then_the_highest_and_segments_count_once() -> None:
    projection = Projection()
    same = {"lr": 0.1}
    projection.take(rows_of(
        ("proposed", 1, proposal(same, until=100)), ("ended", 1, ended(score=0.9)),
        ("proposed", 2, proposal(same, parent=1, until=300)), ("ended", 2, ended(trial=2, score=0.5)),
        ("proposed", 3, proposal({"lr": 0.2}, until=300)), ("ended", 3, ended(trial=3, score=0.6)),
        ("proposed", 4, proposal({"lr": 0.3}, until=100)), ("ended", 4, ended(trial=4, score=0.8)),
    ))
    assert [done.trial for done in projection.best(10)] == [3, 2, 4]


def test_an_interruption_ends_running_runs_and_a_resume_revives_them() -> None:
    start = {"lane": "0", "attempt": 1, "start": None, "own": False}
    rows = rows_of(
        ("proposed", 1, proposal({"lr": 0.1})), ("started", 1, start),
        ("stopped", None, {"reason": "interrupted", "coverage": 0.1, "wanted": 0.9}),
        ("resumed", None, {}), ("started", 1, {**start, "attempt": 2}),
    )
    until_stop = Projection().take(rows[:4])
    assert (until_stop[1].status, until_stop[STUDY].status) == ("KILLED", "FINISHED")
    whole = Projection().take(rows)
    assert (whole[1].status, whole[STUDY].status, whole[1].tags[tag("attempts")]) == ("RUNNING", "RUNNING", "2")


def test_secrets_in_a_study_do_not_travel() -> None:
    body = study(uri="http://user:canary@host")
    found = Projection().take([Row(1, 1.0, "study", None, {**body, "code": "https://u:canary@git"}, None)])
    assert "canary" not in json.dumps([found[STUDY].tags, found[STUDY].params])


def test_an_evaluation_shows_its_numbers_and_its_curve_by_inner_step(tmp_path: Path) -> None:
    body = {
        "trial": "made/1", "split": "test", "unit": "accuracy", "interval": {"mean": 0.6, "low": 0.5, "high": 0.7, "n": 600},
        "median": 0.6, "diverged": 0.0, "episodes": 600, "seed": 0,
        "curve": [{"inner_steps": k, "mean": None if k == 2 else 0.2 * k, "low": 0.0, "high": 1.0, "median": 0.2, "diverged": 0.0}
                  for k in range(3)],
    }
    half = {**body, "split": "test, supports on the right half", "interval": {"mean": 0.3, "low": 0.2, "high": 0.4, "n": 600}}
    found = Projection().take(rows_of(("proposed", 1, proposal({"lr": 0.1})), ("evaluated", 1, {**body, "half": half})))[1]
    numbers = {(point.key, point.step): point.value for point in found.points}
    assert numbers["test/mean", 0] == 0.6
    assert numbers["test/by inner step/mean", 1] == 0.2
    assert ("test/by inner step/mean", 2) not in numbers
    assert numbers["test/by inner step/median", 2] == 0.2
    assert numbers["test/supports on the right half/mean", 0] == 0.3
    assert numbers["test/supports on the right half/by inner step/mean", 1] == 0.2


def test_a_promotion_that_diverged_takes_its_parents_place_in_the_best_too() -> None:
    """No board shows the parent any more, and no parcel of it is kept."""
    projection = Projection()
    found = projection.take(rows_of(
        ("proposed", 1, proposal({"x": 1}, until=10)), ("ended", 1, ended(score=0.9)),
        ("proposed", 2, proposal({"x": 2}, until=10)), ("ended", 2, ended(trial=2, score=0.5)),
        ("proposed", 3, proposal({"x": 1}, parent=1, until=30)), ("ended", 3, ended(trial=3, score=None, status="diverged")),
    ))
    assert [done.trial for done in projection.best(3)] == [2]
    assert [point.value for point in found[STUDY].points if point.key == "best"] == [0.9, 0.9, 0.5]
