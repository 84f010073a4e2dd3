"""What a plan promises is what the study would do; and making it leaves nothing behind."""
from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import relaxed_space

from metasearch import cli
from metasearch.budget import Coverage
from metasearch.driver.messages import Ending, Line
from metasearch.driver.plan import Bought, Plan, Range, bought, plan, priced
from metasearch.driver.smoke import _shortened, _timed, _Whole, smoke
from metasearch.driver.study import Study
from metasearch.objectives.judged import Judged

LEARNERS = '''
from metasearch.learners.anil import ANIL
from metasearch.learners.maml import MAML
from metasearch.learners.reptile import Reptile
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.space import Choice, Float, Space

SPACE = Space({
    "learner": Choice({name: Space({"inner_lr": Float(1e-3, 1e-1, log=True)}) for name in ("maml", "anil", "reptile", "broken")}),
    "width": Choice((4, 8)),
})


def recipe(config, shape):
    rate = float(config["learner.inner_lr"])
    learner = {"maml": MAML(rate, 1), "anil": ANIL(rate, 1), "reptile": Reptile(rate, 2, 2)}[config["learner"]]
    if config["width"] == 8 and config["learner"] == "anil":
        raise ValueError("anil of width 8 means nothing")
    return Recipe(mlp(shape.x, shape.ways, hidden=[int(config["width"])]), learner, adam(1e-2), 2, steps=50)
'''


def sine(**changes: Any) -> Study:
    return Study.from_json({
        "name": "s", "space": "sine-mlp", "tasks": {"name": "sinusoid", "shots": 5, "queries": 5}, "budget": {"trials": 12},
        "train": {"steps": 40, "mode": "vmap"}, "validation": {"episodes": 4}, "driver": {"kind": "local"}, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan(sine(), home=tmp_path_factory.mktemp("home") / "studies", samples=5, smokes=2, gpu_hour=3.0)


def test_hours_are_those_of_all_trials_one_after_another(found: Plan) -> None:
    assert found.hours is not None
    assert [one.status for one in found.smokes] == ["done", "done"]
    whole = [one.seconds for one in found.smokes if one.seconds is not None]
    assert found.hours.expected == pytest.approx(12 * statistics.mean(whole) / 3600)
    assert found.hours.low == pytest.approx(12 * min(whole) / 3600)
    assert found.hours.high == pytest.approx(12 * max(whole) / 3600)
    for one in found.smokes:
        assert one.steps == 40
        assert one.pace is not None
        assert one.pace > 0


def test_the_coverage_is_that_of_the_trials_that_are_planned(found: Plan) -> None:
    space = sine().space()
    assert (found.planned, found.trials) == (12, 12)
    assert found.coverage == {"top": "1%", "wanted": None, "probability": Coverage(space.size, "1%", 0.9).reached(12)}


def test_quantiles_run_from_the_smallest_architecture_to_the_largest(found: Plan) -> None:
    assert {len(row) for row in found.sizes.values()} == {5}
    assert all(list(row) == sorted(row) for row in found.sizes.values())
    assert found.sizes["params"][0] > 0
    assert found.sizes["steps"] == (40.0,) * 5


def test_a_study_without_a_gpu_has_no_price_and_is_told_so(found: Plan) -> None:
    assert (found.gpu_hours, found.cost) == (None, None)
    assert any("driver.gpus = 0" in words for words in found.warnings)
    assert priced(Range(1, 2, 3), 2 * 0.25, 4.0) == (Range(0.5, 1, 1.5), Range(2, 4, 6))
    assert priced(None, 2.0, 4.0) == (None, None)


@pytest.mark.parametrize(("method", "trials", "warned"), [
    ({"name": "regularized-evolution", "population": 10, "sample": 2}, 10, True),
    ({"name": "regularized-evolution", "population": 10, "sample": 2}, 11, False),
    ({"name": "large-scale-evolution", "population": 10, "steps": 2, "evaluations": 40}, 10, False),  # children cost nothing
])
def test_a_population_that_the_budget_only_founds_is_told(
    method: dict[str, Any], trials: int, warned: bool, tmp_path: Path
) -> None:
    study = sine(method=method, budget={"trials": trials})
    warnings = plan(study, home=tmp_path, samples=1, smokes=0).warnings
    assert any("nothing would evolve" in words for words in warnings) == warned


def test_the_disk_holds_the_last_parcel_of_every_trial_and_two_of_the_running_one(found: Plan) -> None:
    parcels = [one.parcel for one in found.smokes]
    assert min(parcels) > 1000
    assert found.disk == int((12 + 2) * statistics.mean(parcels))


def test_parcels_that_do_not_fit_are_told_before_the_disk_is_full(tmp_path: Path) -> None:
    large = plan(sine(budget={"trials": 10**9}), home=tmp_path, samples=1, smokes=1)
    assert large.disk is not None
    assert large.disk > large.free
    assert any("are free" in words for words in large.warnings)


def test_a_trial_is_its_set_up_its_steps_and_its_validation() -> None:
    """Four steps of 0.5 s after 10 s of set-up, 3 s of validation: 100 steps take 10 + 50 + 3 s, and draw 5 blocks of 20."""

    def line(step: int, seconds: float) -> Line:
        return Line(step, {}, None, None, None, 0.0, seconds)

    lines = [line(1, 10.5), line(2, 11.0), line(3, 11.5), line(4, 15.0)]
    pace, rest = _timed(lines, Ending(1, "done", seconds=15.0), _Whole(100, 4))
    assert (pace, rest) == (0.5, 13.0)
    pace, rest = _timed(lines, Ending(1, "done", seconds=15.0), _Whole(100, 4, block=20, drawing=0.1))
    assert pace == pytest.approx(0.6)
    assert rest + 100 * pace == pytest.approx(63 + 8), "the first block's drawing was in the set-up already"
    _, best = _timed(lines, Ending(1, "done", seconds=15.0), _Whole(100, 4, validations=9))
    assert best == 13.0 + 9 * 3.0


def test_a_search_in_one_shot_counts_its_own_steps_too() -> None:
    """Three steps of the supernet at 2 s (validated for 1 s), then three of what was found at 0.5 s (validated for 1 s)."""
    seconds = [2.0, 4.0, 7.0, 7.5, 8.0, 9.5]
    lines = [Line(step, {}, None, None, None, 0.0, s) for step, s in enumerate(seconds, 1)]
    pace, rest = _timed(lines, Ending(1, "done", seconds=9.5), _Whole(10, 3, before=(30, 3)))
    assert pace == 0.5, "the last step is followed by a validation"
    assert rest == pytest.approx(9.5 - 3 * 0.5 + 27 * 2.0)
    checks = ((8, 50), (2, 20))
    _, more = _timed(lines, Ending(1, "done", seconds=9.5), _Whole(10, 3, before=(30, 3), checks=checks))
    assert more - rest == pytest.approx(8 * (50 * 0.5 + 2 * 1.0) + 2 * (20 * 0.5 + 2 * 1.0)), "each is validated, and looked at"


@pytest.mark.parametrize(("method", "kinds"), [
    ({"name": "darts", "check": 3, "check_steps": 70, "finalists": 5}, {(8, 70)}),
    ({"name": "darts", "check": 0}, {(0, 50)}),
    ({"name": "metanas", "alone": True, "check": 4, "check_steps": 70, "finalists": 3}, {(7, 70), (0, 0)}),
])
def test_what_a_search_trains_beside_what_it_finds_is_counted_and_not_tried(
    method: dict[str, Any], kinds: set[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.from_json({
        "name": "s", "space": relaxed_space.__file__, "budget": {"trials": 2}, "train": {"steps": 20, "mode": "vmap"},
        "method": {**method, "search_steps": 30}, "validation": {"episodes": 3}, "driver": {"kind": "local"},
        "tasks": {"name": "blobs", "dimensions": 5, "train_classes": 20, "ways": 3, "shots": 2, "queries": 3},
    })
    assert study.problems() == []
    proposal = study.strategy().ask()
    assert proposal is not None
    monkeypatch.setattr(Judged, "_alone", lambda *_: pytest.fail("trained to be judged"))
    _, _, whole = _shortened(study.objective(), proposal.config)
    assert whole is not None
    assert set(whole.checks) == kinds
    assert smoke(json.dumps(study.to_json()), proposal.config).status == "done"


@pytest.mark.parametrize(("arguments", "steps"), [
    ({"search_steps": 30}, 30), ({"search_steps": 30, "alone": True}, 20),
])
def test_a_search_with_an_architecture_for_every_task_is_tried_for_some_steps(arguments: dict[str, Any], steps: int) -> None:
    """Not for a tenth of the search, until its first report; and its hours are known."""
    study = Study.from_json({
        "name": "s", "space": relaxed_space.__file__, "budget": {"trials": 2}, "train": {"steps": 20, "mode": "vmap"},
        "method": {"name": "metanas", "inner_steps": 1, "test_steps": 1, **arguments}, "validation": {"episodes": 3},
        "tasks": {"name": "blobs", "dimensions": 5, "train_classes": 20, "ways": 3, "shots": 2, "queries": 3},
        "driver": {"kind": "local"},
    })
    assert study.problems() == []
    proposal = study.strategy().ask()
    assert proposal is not None
    done = smoke(json.dumps(study.to_json()), proposal.config)
    assert (done.status, done.steps) == ("done", steps)
    assert done.pace is not None
    assert done.rest is not None
    assert done.rest > 0 < done.pace
    assert done.parcel > 0


def test_promotions_cost_only_the_steps_beyond_those_of_the_lower_rung() -> None:
    """Hyperband, R = 9: 9 configurations for 1 step, 3 of them up to 3, 1 up to 9: 13 trials, 9 + 3 * 2 + 1 * 6 steps. With its
    other brackets (5 from 3 steps, 3 from 9): 22 trials, 69 steps of 17 configurations."""
    study = sine(method={"name": "hyperband", "min_steps": 1, "max_steps": 9, "eta": 3})
    assert bought(study, 9) == Bought(13, 21)
    assert bought(study, 17) == Bought(22, 69)
    assert bought(study, 17 * 10**6) == pytest.approx((22 * 10**6, 69 * 10**6), rel=0.02), "many are in proportion"
    assert bought(sine(), 27) == Bought(27, None)


def test_every_learner_is_tried_and_one_that_breaks_is_said_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from metasearch import tasks

    splits: list[str] = []
    drawn = tasks._drawn
    monkeypatch.setattr(tasks, "_drawn", lambda t, n, split, *rest: (splits.append(split), drawn(t, n, split, *rest))[1])
    (tmp_path / "space.py").write_text(LEARNERS)
    words = [f"space={tmp_path / 'space.py'}", "train.steps=50", "driver.kind=local", "budget.coverage=0.5"]
    assert cli.call(["plan", "sine", *words, "--samples", "4", "--smoke", "1", "--json"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    states = {one["config"]["learner"]: one["status"] for one in found["smokes"]}
    assert states == {"maml": "done", "anil": "done", "reptile": "done", "broken": "error"}
    assert "1 of 4 smoke runs failed" in said.err
    assert "KeyError: 'broken'" in said.err
    assert set(splits) == {"train", "val"}, "the test split was opened"
    assert not (tmp_path / "studies").exists(), "a plan left something behind"


def test_a_plan_for_people_is_three_tables(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train.steps=30", "validation.episodes=4", "driver.kind=local", "--samples", "3", "--smoke", "1"]
    assert cli.call(["plan", "sine", *words]) == 0
    out = capsys.readouterr().out
    for word in ("coverage", "one of the top 15%", "hours", "learnt numbers", "FLOPs of an episode", "smoke run", "ok"):
        assert word in out


def test_hours_alone_say_how_many_trials_there_is_time_for(tmp_path: Path) -> None:
    found = plan(sine(budget={"hours": 1.0}), home=tmp_path, samples=1, smokes=1)
    assert found.hours is not None
    (one,) = found.smokes
    assert one.seconds is not None
    assert found.planned == int(3600 / one.seconds)
    assert found.hours.expected <= 1.0


@pytest.mark.parametrize(("change", "said"), [
    ("driver.gpus=64", "driver.gpus = 64, but this machine has"),
    ("driver.cpus=4096", "driver.cpus = 4096, but this machine has"),
    ("driver.lanes=4096", "4096 lanes of 1 CPU are wanted, but"),
])
def test_a_share_that_no_machine_has_is_an_error_in_words(change: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["plan", "sine", change, "--smoke", "0", "--samples", "1"]) == 2
    assert said in capsys.readouterr().err


ODD = '''
from metasearch.learners.maml import MAML
from metasearch.nets.mlp import mlp
from metasearch.objectives import Infeasible
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.space import Choice, Space

SPACE = Space({"width": Choice((4, 8))})


def recipe(config, shape):
    if INFEASIBLE:
        raise Infeasible("too wide for this world")
    return Recipe(mlp(shape.x, shape.ways, hidden=[4]), MAML(1e30, 2), adam(1e-2), 2, steps=50)
'''
OWN = """
from metasearch import strategies
from metasearch.records import Report


def method(study):
    return strategies.build("random", study.space(), {}, seed=study.seed), objective


def objective(proposal, trial):
    yield Report(1, {}, score=1.0)
"""


def test_a_space_that_means_nothing_here_and_one_that_diverges_at_once_are_said(tmp_path: Path) -> None:
    for infeasible, said in ((True, "none of 3 configurations that were drawn means"), (False, "smoke runs diverged")):
        space = tmp_path / f"odd_{infeasible}.py"
        space.write_text(ODD.replace("INFEASIBLE", str(infeasible)))
        found = plan(sine(space=str(space)), home=tmp_path, samples=3, smokes=1)
        assert [words for words in found.warnings if said in words], found
        assert found.hours is None, "hours of trials that do not train are none"
        assert (found.infeasible == 3) == infeasible


def test_hours_that_only_an_objective_of_the_users_own_knows_are_not_invented(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    study = Study.from_json({
        "name": "s", "space": "sine-mlp", "method": {"name": str(tmp_path / "own.py")}, "budget": {"trials": 3},
        "driver": {"kind": "local"},
    })  # fmt: skip
    found = plan(study, home=tmp_path, samples=3, smokes=1)
    assert [one.status for one in found.smokes] == ["done"]
    assert (found.hours, found.cost) == (None, None)
    assert any("known to its own objective alone" in words for words in found.warnings)
