"""Strategies that learn (tpe, gp, cma-es, nsga-ii): better than random, fair to failures, at home in conditional spaces."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from metasearch.records import Config, Outcome, Proposal, Status
from metasearch.space import Choice, Float, Int, Repeat, Space, digest
from metasearch.strategies import Strategy, build
from metasearch.strategies._optuna import ByColumn, ByPath, View

ALL = {"tpe": {}, "gp": {}, "cma-es": {}, "nsga-ii": {"objectives": ("score",), "population": 10}}
QUICK = {name: hyper for name, hyper in ALL.items() if name != "gp"}  # a gp costs a third of a second an ask

SQUARE = Space({f"x{i}": Float(-5.0, 5.0) for i in range(4)})
CONDITIONAL = Space({
    "learner": Choice({
        "maml": Space({"lr": Float(1e-3, 1.0, log=True), "steps": Int(1, 10)}),
        "protonet": Space({"temperature": Float(0.1, 10.0, log=True)}),
        "reptile": Space({"lr": Float(1e-4, 0.1, log=True), "k": Int(1, 64, log=True)}),
    }),
    "width": Int(8, 128, log=True),
    "activation": Choice(("relu", "elu", "gelu")),
})


def square(config: Config) -> float:
    return -sum((float(x) - 1.0) ** 2 for x in config.values())


def conditional(config: Config) -> float:
    """1 at maml, lr 0.05, 7 steps, width 40, elu; the other learners reach 0.7 and 0.5."""
    score = -0.3 * abs(math.log(float(config["width"]) / 40)) - 0.2 * (config["activation"] != "elu")
    if config["learner"] == "maml":
        return score + 1 - abs(math.log10(float(config["learner.lr"]) / 0.05)) - abs(int(config["learner.steps"]) - 7) / 10
    if config["learner"] == "protonet":
        return score + 0.7 - abs(math.log10(float(config["learner.temperature"])))
    return score + 0.5 - abs(math.log10(float(config["learner.lr"]) / 0.01))


def search(
    name: str, space: Space, score: Callable[[Config], float], trials: int, seed: int, hyper: Mapping[str, Any] | None = None
) -> list[float]:
    strategy, found = build(name, space, ALL.get(name, {}) if hyper is None else hyper, seed=seed), []
    for trial in range(trials):
        proposal = strategy.ask()
        if proposal is None:
            break
        found.append(score(proposal.config))
        strategy.tell(Outcome(trial, proposal, found[-1], {}, "done"))
    return found


def done(trial: int, proposal: Proposal, score: float | None = 0.0, status: Status = "done") -> Outcome:
    return Outcome(trial, proposal.stamped(trial), score if status == "done" else None, {}, status)


def ask(strategy: Strategy) -> Proposal:
    proposal = strategy.ask()
    assert proposal is not None
    return proposal


# -- better than random --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "trials", "seeds"), [("tpe", 60, 5), ("cma-es", 80, 7), ("gp", 16, 3)])
def test_models_beat_random_search_on_a_square(name: str, trials: int, seeds: int) -> None:
    """Every seed beats the median of random searches with three times the trials: if a model were no better than random
    search with the same number, that would happen with probability (about) 0.2 a seed, so 3e-4, 1e-5 and 8e-3 in all."""
    bar = float(np.median([max(search("random", SQUARE, square, 3 * trials, 100 + seed)) for seed in range(15)]))
    assert all(max(search(name, SQUARE, square, trials, seed)) > bar for seed in range(seeds))


@pytest.mark.parametrize(("name", "trials", "seeds"), [("tpe", 80, 3), ("cma-es", 120, 5), ("gp", 20, 1)])
def test_models_find_their_way_through_a_conditional_space(name: str, trials: int, seeds: int) -> None:
    """The best score is one that three in a thousand random configs reach; the later half is better than random ones are."""
    for seed in range(seeds):
        found = search(name, CONDITIONAL, conditional, trials, seed)
        assert max(found) > 0.6
        assert float(np.median(found[trials // 2:])) > 0.0  # random: -0.35


def test_cma_es_converges_to_the_optimum() -> None:
    """On a square, tenfold in every 100 trials or so; whole and categorical decisions as well."""
    mixed = Space({
        "x": Float(-5.0, 5.0), "y": Float(-5.0, 5.0), "lr": Float(1e-6, 1.0, log=True),
        "n": Int(0, 40), "big": Int(0, 10**6), "flag": Choice((False, True)), "op": Choice(("a", "b", "c", "d")),
    })

    def score(config: Config) -> float:
        far = square({"x": config["x"], "y": config["y"]}) - (math.log10(float(config["lr"])) + 3) ** 2
        far -= abs(int(config["n"]) - 31) / 10 + abs(int(config["big"]) / 1e6 - 0.7) * 5
        return far - (config["op"] != "c") - (config["flag"] is not True)

    best = [max(search("cma-es", mixed, score, 600, seed)) for seed in range(5)]
    assert float(np.median(best)) > -0.05  # the best of 600 random ones: -2.7


def test_cma_es_starts_at_the_best_of_what_it_was_told() -> None:
    strategy = build("cma-es", SQUARE, {"sigma": 0.02}, seed=0)
    for trial, x in enumerate((-4.0, 3.0, 0.0)):
        strategy.tell(done(trial, Proposal({f"x{i}": x for i in range(4)}), score=x))
    drawn = [list(map(float, ask(strategy).config.values())) for _ in range(20)]
    assert np.allclose(np.mean(drawn, axis=0), 3.0, atol=0.25)  # of standard deviation 0.2: more than 5 standard errors


def test_a_distribution_that_starts_anew_hears_nothing_of_what_the_old_one_drew() -> None:
    strategy = build("cma-es", SQUARE, {"population": 4}, seed=0)
    running = [ask(strategy) for _ in range(8)]
    strategy.tell(done(0, running[0], score=0.0))
    strategy._restart()  # type: ignore[attr-defined]
    for trial, proposal in enumerate(running[1:], 1):
        strategy.tell(done(trial, proposal, score=float(trial)))
    assert strategy._ended == [], "7 results would be more than a generation"  # type: ignore[attr-defined]


def test_cma_es_answers_what_it_knows_itself_and_starts_anew_when_it_has_converged() -> None:
    """In a space of 64 configs every one is proposed exactly once, though the distribution is long on one of them."""
    space = Space({f"op{i}": Choice(("a", "b", "c", "d")) for i in range(3)})
    found = search("cma-es", space, lambda config: -sum(v != "b" for v in config.values()), 200, 0)
    assert len(found) == 64
    assert 0 in found[:40]


# -- several objectives ----------------------------------------------------------------------------------------------------------


def test_nsga_ii_reaches_the_whole_pareto_front() -> None:
    """Leading ones against trailing zeros of 8 bits: the front is the 9 strings 1..10..0 of 256.

    160 draws without replacement would hold all 9 with probability (160/256)^9 = 1.5 %, at least 8 with 8 %; here it is all, or
    all but one, for three seeds (0.05 %).
    """
    assert all(_front_reached(seed) >= 8 for seed in range(3))


def _front_reached(seed: int) -> int:
    bits = Space({f"b{i}": Choice((0, 1)) for i in range(8)})
    strategy = build("nsga-ii", bits, {"objectives": ("ones", "-cost"), "population": 16}, seed=seed)
    front = set()
    for trial in range(160):
        proposal = ask(strategy)
        text = "".join(str(v) for v in proposal.config.values())
        ones, zeros = len(text) - len(text.lstrip("1")), len(text) - len(text.rstrip("0"))
        if ones + zeros == 8:
            front.add(text)
        strategy.tell(Outcome(trial, proposal, 0.0, {"ones": float(ones), "cost": float(-zeros)}, "done"))
    return len(front)


def test_a_minus_in_front_of_an_objective_minimises_it() -> None:
    for sign, better in (("-", min), ("", max)):
        strategy = build("nsga-ii", SQUARE, {"objectives": (f"{sign}size",), "population": 10}, seed=0)
        seen = []
        for trial in range(120):
            proposal = ask(strategy)
            seen.append(sum(map(float, proposal.config.values())))  # in -20..20, around 0
            strategy.tell(Outcome(trial, proposal, 0.5, {"size": seen[-1]}, "done"))
        assert abs(float(np.median(seen[-20:])) - better(-20.0, 20.0)) < 10


def test_a_missing_objective_is_told_in_words() -> None:
    with pytest.raises(ValueError, match=r"objectives has 'prams'\. Did you mean 'params'\?"):
        build("nsga-ii", SQUARE, {"objectives": ("score", "-prams")}, seed=0)
    strategy = build("nsga-ii", SQUARE, {"objectives": ("score", "-joules")}, seed=0)
    with pytest.raises(ValueError, match=r"trial 7 reports no joules\. It reports flops, params, score"):
        strategy.tell(Outcome(7, ask(strategy), 0.5, {"params": 3.0, "flops": 4.0}, "done"))


def test_a_net_without_a_zero_cost_score_is_a_bad_trial_and_no_error() -> None:
    """A net through which nothing flows has no SynFlow: minus infinity is not told."""
    strategy = build("nsga-ii", SQUARE, {"objectives": ("score", "synflow"), "population": 4}, seed=0)
    strategy.tell(Outcome(1, ask(strategy), 0.5, {"synflow": 3.0}, "done"))
    strategy.tell(Outcome(2, ask(strategy), 0.9, {"params": 0.0}, "done"))
    assert strategy.state_dict()["worst"] == [0.5, 3.0]
    assert sorted(values for _, _, values, _ in strategy.state_dict()["trials"] if values) == [[0.5, 3.0]] * 2


# -- failures ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "trials", "last", "seeds"), [("tpe", 50, 20, 3), ("gp", 20, 8, 1)])
def test_models_keep_away_from_what_diverges_and_not_from_what_failed_for_other_reasons(
    name: str, trials: int, last: int, seeds: int
) -> None:
    """Scores rise towards x = 0.5, and beyond it nothing works. Errors say nothing, so the models go on beyond."""

    def share(status: Status, seed: int) -> float:
        strategy, beyond = build(name, Space({"x": Float(0.0, 1.0), "y": Float(0.0, 1.0)}), {}, seed=seed), list[bool]()
        for trial in range(trials):
            proposal = ask(strategy)
            x = float(proposal.config["x"])
            beyond.append(x > 0.5)
            strategy.tell(done(trial, proposal, x, status if x > 0.5 else "done"))
        return float(np.mean(beyond[-last:]))

    assert np.mean([share("diverged", seed) for seed in range(seeds)]) < 0.5
    assert np.mean([share("error", seed) for seed in range(seeds)]) > 0.7


def test_cma_es_counts_what_diverges_as_worst_and_errors_not_at_all() -> None:
    strategy = build("cma-es", SQUARE, {"population": 20}, seed=0)
    statuses: list[Status] = ["done", "error", "diverged", "oom", "infeasible", "error"]
    for trial, status in enumerate(statuses):
        strategy.tell(done(trial, ask(strategy), 1.0, status))
    scores = [score for _, score in strategy._ended]  # type: ignore[attr-defined]
    assert scores == [1.0, -math.inf, -math.inf, -math.inf]


@pytest.mark.parametrize("name", ["tpe", "nsga-ii"])
def test_what_went_wrong_before_any_score_waits_for_the_worst_one(name: str) -> None:
    strategy = build(name, SQUARE, QUICK[name], seed=0)
    for trial in range(3):
        strategy.tell(done(trial, ask(strategy), status="diverged"))
    study: optuna.Study = strategy._study  # type: ignore[attr-defined]
    assert [t.state for t in study.trials] == [TrialState.RUNNING] * 3
    strategy.tell(done(3, ask(strategy), 5.0))
    strategy.tell(done(4, ask(strategy), 2.0))
    strategy.tell(done(5, ask(strategy), status="oom"))
    strategy.tell(done(6, ask(strategy), status="error"))
    assert [t.value for t in study.trials] == [5.0, 5.0, 5.0, 5.0, 2.0, 2.0, None]
    assert study.trials[6].state == TrialState.FAIL


# -- no config twice -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("lanes", [1, 5])
def test_a_finite_space_is_proposed_once_and_then_it_is_over(name: str, lanes: int) -> None:
    space = Space({"a": Choice({"x": Space({"n": Int(1, 12)}), "y": Space({})}), "b": Choice((1, 2, 3))})
    strategy, running, seen, trial = build(name, space, QUICK[name], seed=0), list[Proposal](), list[str](), 0
    while True:
        proposal = strategy.ask() if len(running) < lanes else None
        if proposal is not None:
            seen.append(digest(proposal.config))
            running.append(proposal)
        elif running:
            trial += 1
            ended = running.pop(0)
            strategy.tell(done(trial, ended, float(ended.config.get("a.n", 0))))
        else:
            break
    assert len(seen) == len(set(seen)) == space.size == 39
    assert strategy.ask() is None


@pytest.mark.parametrize("name", QUICK)
def test_what_was_told_from_elsewhere_is_not_proposed_again(name: str) -> None:
    space = Space({"n": Int(0, 29)})
    strategy = build(name, space, QUICK[name], seed=0)
    for n in range(20):
        strategy.tell(done(n, Proposal({"n": n}), float(n)))
    proposed = [ask(strategy) for _ in range(10)]
    assert sorted(int(p.config["n"]) for p in proposed) == list(range(20, 30))
    assert strategy.ask() is None


@pytest.mark.parametrize("name", QUICK)
def test_a_reused_result_is_learnt_from_once(name: str) -> None:
    """The driver answers a repeated config with the known score: a second copy would pull the model towards it."""
    strategy = build(name, SQUARE, QUICK[name], seed=0)
    proposal = ask(strategy)
    strategy.tell(done(1, proposal, 3.0))
    strategy.tell(replace(done(2, proposal, 3.0), status="reused"))
    other = replace(done(3, Proposal({f"x{i}": 0.5 for i in range(4)}), 9.0), status="reused")
    strategy.tell(other)  # reused from another study: news here
    if name == "cma-es":
        assert len(strategy._ended) == 1  # type: ignore[attr-defined]
        return
    values = [t.value for t in strategy._study.trials if t.state == TrialState.COMPLETE]  # type: ignore[attr-defined]
    assert values == [3.0, 9.0]


# -- Optuna ------------------------------------------------------------------------------------------------------------------


def test_pending_trials_are_running_in_optuna_with_their_parameters() -> None:
    for name in ("tpe", "gp", "nsga-ii"):
        strategy = build(name, CONDITIONAL, ALL[name], seed=0)
        proposals = [ask(strategy) for _ in range(4)]
        strategy.tell(done(0, proposals[2]))
        study: optuna.Study = strategy._study  # type: ignore[attr-defined]
        states = [t.state for t in study.trials]
        assert states == [TrialState.RUNNING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.RUNNING]
        assert all(t.params for t in study.trials)


@pytest.mark.parametrize("spelling", [ByPath, ByColumn])
def test_a_config_survives_as_parameters(spelling: Callable[[Space], ByPath | ByColumn]) -> None:
    """What is drawn and what is told from elsewhere are spelt alike: with a config's parameters, a trial draws that config."""
    real, whole, option = Float(1e-3, 1.0, log=True), Int(1, 9, log=True), Choice((True, 2))
    space = Space({
        "a": Choice({"x": Space({"v": real}), "y": Space({"v": whole}), "z": Space({"v": option})}),
        "layers": Repeat(Int(0, 2), Space({"op": Choice(("conv", "pool")), "w": Int(3, 3)})),
    })
    rng = np.random.default_rng(0)
    for _ in range(60):
        config = space.sample(rng)
        params = spelling(space).params(config)
        assert params.keys() <= spelling(space).distributions.keys()
        drawn = spelling(space).draw(optuna.trial.FixedTrial(params))  # type: ignore[arg-type]
        assert drawn.keys() == config.keys()
        assert all(type(drawn[path]) is type(v) and drawn[path] == pytest.approx(v) for path, v in config.items() if v != str(v))
        assert all(drawn[path] == v for path, v in config.items() if v == str(v))
    with pytest.raises(ValueError, match="must be one of its 3 options"):
        spelling(space).params({"a": "w", "layers.count": 0})


def test_options_that_share_a_sub_name_share_a_parameter_only_if_it_is_the_same_dimension() -> None:
    alike, other = Float(1e-3, 1.0, log=True), Float(1e-5, 1.0, log=True)
    spelling = ByPath(Space({"a": Choice({"x": Space({"v": alike}), "y": Space({"v": other}), "z": Space({"v": alike})})}))
    names = [set(spelling.params({"a": option, "a.v": 0.01})) for option in "xyz"]
    assert names == [{"a", "a.v"}, {"a", "a.v~1"}, {"a", "a.v"}]


def test_no_config_is_converted_again_at_an_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand trials stay affordable: what is drawn stays in Optuna's study, so an ask converts nothing."""
    converted: list[Config] = []
    params = ByPath.params
    monkeypatch.setattr(ByPath, "params", lambda self, config: (converted.append(config), params(self, config))[1])
    search("tpe", CONDITIONAL, conditional, 40, seed=0)
    assert converted == []


def test_gp_sees_the_best_and_a_spread_of_the_rest() -> None:
    strategy = build("gp", Space({"x": Float(0.0, 1.0)}), {}, seed=0)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=900)
    for trial, score in enumerate(scores):
        strategy.tell(done(trial, Proposal({"x": float(rng.random())}), float(score)))
    running = ask(strategy)
    seen = View(strategy._study, strategy.kept(300))._get_trials()  # type: ignore[attr-defined]
    told = [t.value for t in seen if t.value is not None]
    assert len(told) == 300
    assert sorted(told)[-100:] == sorted(scores.tolist())[-100:]
    place = {score: trial for trial, score in enumerate(scores.tolist())}
    quarters = np.bincount([place[v] // 225 for v in told], minlength=4)
    assert quarters.min() > 60
    assert [t.params for t in seen if t.state == TrialState.RUNNING] == [{"0:x": running.config["x"]}]


def test_optuna_says_nothing_and_its_settings_stay(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    search("tpe", CONDITIONAL, conditional, 14, seed=0)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before
