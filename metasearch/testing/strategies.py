"""The contract of a strategy: what every one must hold, whatever it does with scores.

    from metasearch.testing import strategies
    strategies.check("tpe")                                    # all laws on all spaces; raises AssertionError in words
    strategies.check("path/to/mine.py", {"population": 20})    # a file of your own

or, one test a law and space, with pytest:

    @pytest.mark.parametrize("case", strategies.cases("path/to/mine.py"), ids=str)
    @pytest.mark.parametrize("law", strategies.LAWS, ids=lambda law: law.__name__)
    def test_contract(law, case):
        law(case)

The laws are checked in a play: a small driver without clocks, whose scores are a function of the proposal, and whose order of
calls is a function of a seed. They are exact, so there are no false alarms.
"""
from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from metasearch import plugins
from metasearch.records import STATUSES, Config, Outcome, Proposal, Status
from metasearch.space import Choice, Float, Int, Repeat, Space, digest
from metasearch.strategies import Strategy, build

__all__ = ["LAWS", "SPACES", "Case", "Play", "cases", "check", "outcome_of", "play"]

SPACES: dict[str, Space] = {
    "one-point": Space({"only": Choice(("this",)), "n": Int(3, 3)}),
    "finite": Space({"op": Choice(("conv", "pool")), "n": Int(1, 4), "bias": Choice((True, False)), "k": Choice((1, 3, 5))}),
    "infinite": Space({"lr": Float(1e-4, 1.0, log=True), "momentum": Float(0.0, 0.99), "steps": Int(1, 1000, log=True)}),
    "conditional": Space({
        "learner": Choice({
            "maml": Space({"inner_lr": Float(1e-3, 1.0, log=True), "steps": Int(1, 5)}),
            "reptile": Space({
                "inner_lr": Float(1e-4, 0.1, log=True),
                "norm": Choice({"none": Space({}), "batch": Space({"eps": Float(0, 1)})}),
            }),
            "protonet": Space({}),
        }),
        "width": Choice((16, 32, 64)),
    }),
    "finite-conditional": Space({
        "cell": Choice({
            "plain": Space({"n": Int(1, 3)}),
            "deep": Space({"n": Int(4, 9, log=True), "skip": Choice((False, True))}),
        }),
        "head": Choice(("linear", "cosine")),
    }),
    "repeat": Space({
        "layers": Repeat(Int(0, 3), Space({"op": Choice(("conv3", "conv5", "skip")), "rate": Float(0.0, 0.5)})),
        "skips": Repeat(Int(1, 2), (Space({}), Space({"from": Choice((0, 1))}))),
    }),
}


@dataclass(frozen=True)
class Case:
    """A strategy, by name, on a space. asks: how many proposals a play asks for."""

    strategy: str
    space_name: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    asks: int = 24

    def __str__(self) -> str:
        return f"{self.strategy}-{self.space_name}"

    @property
    def space(self) -> Space:
        return SPACES[self.space_name]

    def build(self, seed: int = 0) -> Strategy:
        return build(self.strategy, self.space, self.hyperparameters, seed=seed)


def cases(strategy: str, hyperparameters: Mapping[str, Any] | None = None, *, asks: int = 24) -> list[Case]:
    """One for each space. hyperparameters: by default the strategy's own `example`."""
    if hyperparameters is None:
        hyperparameters = plugins.find("strategies", strategy, Strategy).example
    return [Case(strategy, name, dict(hyperparameters), asks) for name in SPACES]


def check(strategy: str, hyperparameters: Mapping[str, Any] | None = None) -> None:
    """All laws on all spaces. Raises AssertionError that says which does not hold, and where."""
    for case in cases(strategy, hyperparameters):
        for law in LAWS:
            try:
                law(case)
            except AssertionError as error:
                raise AssertionError(f"{case}: {law.__name__}: {error}") from error


# -- the play ----------------------------------------------------------------------------------------------------------------


Event = tuple[Literal["ask"], Proposal | None] | tuple[Literal["tell"], Outcome]


@dataclass
class Play:
    """What happened: every ask with its answer and every tell, in order."""

    strategy: Strategy
    events: list[Event] = field(default_factory=list)

    @property
    def proposals(self) -> list[Proposal]:
        return [what for kind, what in self.events if kind == "ask" and isinstance(what, Proposal)]

    @property
    def finished(self) -> bool:
        """The last answer was None although nothing was running."""
        return bool(self.events) and self.events[-1] == ("ask", None)


def outcome_of(space: Space, trial: int, proposal: Proposal, status: Status = "done") -> Outcome:
    """A smooth score with a little that depends on everything, larger for more steps; None for what went wrong."""
    u = space.encode(proposal.config)
    noise = int(digest(proposal.config)[:4], 16) / 2**16
    score = -float(((u - 0.3) ** 2).sum()) + 0.01 * noise - 1.0 / (1 + (proposal.until or 1000))
    metrics = {"params": 1000.0 + 100.0 * float(u.sum()), "flops": 1e6 * (1.0 + noise), "seconds": 1.0}
    stamped = proposal.stamped(1000 + trial)
    if status in ("done", "reused"):
        return Outcome(trial, stamped, score, metrics, status, proposal.until or 1000)
    return Outcome(trial, stamped, None, metrics if status == "diverged" else {}, status, 0, f"a play says {status}")


def play(
    case: Case,
    *,
    strategy: Strategy | None = None,
    seed: int = 0,
    lanes: int = 1,
    status: Callable[[int], Status] = lambda trial: "done",
    first: int = 0,
    told_order: int = 0,
    nags: int = 0,
) -> Play:
    """Keeps `lanes` trials running until `case.asks` were asked and ended, or nothing more comes.

    status: of each trial. first: the number of the first trial, less one. told_order: the seed of the order in which running
    trials end. nags: so many times more it is asked whenever the answer is None; raises AssertionError if that is answered.
    """
    strategy = case.build(seed) if strategy is None else strategy
    told = Play(strategy)
    order = random.Random(told_order)
    running: list[tuple[int, Proposal]] = []
    asked = 0
    while True:
        proposal = None
        if asked < case.asks and len(running) < lanes:
            proposal = strategy.ask()
            for _ in range(nags if proposal is None else 0):
                _hold(strategy.ask() is None, "asked again, with nothing told in between, it answered something else")
            told.events.append(("ask", proposal))
        if proposal is not None:
            asked += 1
            running.append((first + asked, proposal))
        elif running:
            trial, ended = running.pop(order.randrange(len(running)))
            outcome = outcome_of(case.space, trial, ended, status(trial))
            strategy.tell(outcome)
            told.events.append(("tell", outcome))
        else:
            return told


def _replayed(strategy: Strategy, events: list[Event]) -> Iterator[tuple[Proposal | None, Proposal | None]]:
    """(what was answered then, what is answered now) for every ask; outcomes come from their JSON, as from a ledger."""
    for kind, what in events:
        if kind == "ask":
            assert what is None or isinstance(what, Proposal)
            yield what, strategy.ask()
        else:
            assert isinstance(what, Outcome)
            strategy.tell(Outcome.from_json(json.loads(json.dumps(what.to_json()))))


def _hold(law: bool, said: str) -> None:
    if not law:
        raise AssertionError(said)


def _mixed(trial: int) -> Status:
    return STATUSES[trial % len(STATUSES)]


# -- the laws ----------------------------------------------------------------------------------------------------------------


def proposals_are_valid(case: Case) -> None:
    """Configs are valid, children go on from a trial that ended, in its config or another, to later steps."""
    for lanes in (1, 8):
        ended: dict[int, Proposal] = {}
        for kind, what in play(case, lanes=lanes, first=40, told_order=lanes).events:
            if kind == "tell":
                assert isinstance(what, Outcome)
                ended[what.trial] = what.proposal
            elif isinstance(what, Proposal):
                said = case.space.problems(what.config)
                _hold(not said, f"{what.config} is no config of the space: {'; '.join(said)}")
                _hold(what.seed is None, f"the driver stamps seeds, but ask gave {what.seed}")
                until = what.until
                _hold(until is None or (type(until) is int and until >= 1), f"until must be steps, but is {until!r}")
                if what.parent is not None:
                    _hold(case.build().children, f"{what} has a parent, so the class must say `children = True`")
                    _hold(what.parent in ended, f"parent {what.parent} is no trial that has ended")
                    before = ended[what.parent].until
                    _hold(before is None or until is None or until > before, f"until {until} is not after {before}")


def proposals_survive_json(case: Case) -> None:
    """A proposal read back from its JSON is equal, types included."""
    for proposal in play(case).proposals:
        back = Proposal.from_json(json.loads(json.dumps(proposal.to_json(), allow_nan=False)))
        _hold(back == proposal and repr(back) == repr(proposal), f"{proposal} came back from JSON as {back}")


def same_seed_same_proposals(case: Case) -> None:
    """Two of the same seed answer alike; in an infinite space another seed answers otherwise."""
    one, two, other = (play(case, seed=seed).proposals for seed in (5, 5, 6))
    _hold(one == two, "the same seed and the same calls gave other proposals")
    if case.space.size == math.inf:
        _hold(one != other, "two seeds gave the same proposals")


def replay_is_equal(case: Case) -> None:
    """Rebuilt by replaying what was asked and told, with trials in parallel, failures and a warm start among them."""
    for lanes in (1, 8):
        strategy = case.build()
        warm = [("tell", outcome) for outcome in _elsewhere(case, 3)]
        for _, outcome in warm:
            strategy.tell(outcome)
        events: list[Event] = [*warm, *play(case, strategy=strategy, lanes=lanes, status=_mixed).events]  # type: ignore[list-item]
        for number, (then, now) in enumerate(_replayed(case.build(), events)):
            _hold(then == now, f"ask {number} answered {then}, but replayed {now}")


def snapshot_is_replay(case: Case) -> None:
    """For strategies with snapshots: one loaded from a snapshot, taken at any time, goes on as the one that it was taken from."""
    if case.build().state_dict() is None:
        return
    events = play(case, lanes=4, status=_mixed).events
    for cut in {0, min(6, len(events) - 1), len(events) // 2, len(events) - 1}:
        strategy, loaded = case.build(), case.build()
        _hold(all(then == now for then, now in _replayed(strategy, events[:cut])), "a replay answered otherwise")
        loaded.load_state_dict(_through_json(strategy.state_dict()))
        for then, now in _replayed(loaded, events[cut:]):
            _hold(then == now, f"after load_state_dict(state_dict()) it answered {now}, but without {then}")


def scores_do_not_matter_unless_adaptive(case: Case) -> None:
    """`adaptive = False`: proposals depend on no score, status, order of ends, number of lanes or warm start."""
    if case.build().adaptive:
        return
    strategy = case.build()
    for outcome in _elsewhere(case, 5):
        strategy.tell(outcome)
    alone = play(case).proposals
    others = [
        play(case, lanes=8, told_order=1).proposals, play(case, status=lambda trial: "error").proposals,
        play(case, status=_mixed, lanes=3).proposals, play(case, strategy=strategy).proposals,
    ]
    _hold(all(other == alone for other in others), "it says `adaptive = False`, but what was told changed its proposals")


def every_failure_is_accepted(case: Case) -> None:
    """All trials ending in the same way, then a mixture of all ways, then good ones: it goes on proposing valid configs."""
    for status in STATUSES:
        for proposal in play(case, status=lambda trial, status=status: status, lanes=2).proposals:  # type: ignore[misc]
            _hold(not case.space.problems(proposal.config), f"after {status} it proposed {proposal.config}")
    strategy = case.build()
    for i, how in enumerate((_mixed, lambda trial: "done")):
        for proposal in play(case, strategy=strategy, status=how, lanes=4, first=100 * i).proposals:
            _hold(not case.space.problems(proposal.config), f"after failures it proposed {proposal.config}")


def odd_scores_are_accepted(case: Case) -> None:
    """NaN, infinities, None and metrics that are not numbers come from a trial that is "done", too."""
    strategy = case.build()
    odd = (math.nan, math.inf, -math.inf, None, 1e300, -1e300)
    for trial in range(1, len(odd) + 1):
        proposal = strategy.ask()
        if proposal is not None:
            outcome = outcome_of(case.space, trial, proposal)
            strategy.tell(replace(outcome, score=odd[trial - 1], metrics={**outcome.metrics, "params": math.nan}))
    for proposal in play(case, strategy=strategy, first=100).proposals:
        _hold(not case.space.problems(proposal.config), f"after odd scores it proposed {proposal.config}")


def parallel_asks_differ(case: Case) -> None:
    """`adaptive = False` in a finite space: it never waits, and of eight pending proposals no two are the same."""
    strategy = case.build()
    if strategy.adaptive or case.space.size == math.inf:
        return
    running = [proposal.config for proposal in (strategy.ask() for _ in range(8)) if proposal is not None]
    _hold(len(running) >= min(8, case.space.size), f"with {len(running)} running it had nothing more to ask")
    _hold(len(set(map(digest, running))) == len(running), "the same was proposed twice while the first was still running")


def uniform_never_repeats(case: Case) -> None:
    """`uniform = True` in a finite space: every config of the population once, then finished (the first 2,000 are looked at)."""
    strategy = case.build()
    if not strategy.uniform or not isinstance(strategy.population, int):
        return
    asks = min(strategy.population + 1, 2000)
    found = [digest(p.config) for p in play(replace(case, asks=asks), lanes=8).proposals]
    _hold(len(set(found)) == len(found), "a config came twice")
    _hold(len(found) == min(strategy.population, asks), f"{len(found)} of {strategy.population} configs came")


def finished_is_for_ever(case: Case) -> None:
    """None while nothing runs is the end: it stays None, and the space of one config ends."""
    whole = play(case)
    if case.space.size == 1:
        _hold(whole.finished or whole.strategy.repeats, "a space of one config never ended")
    if whole.finished:
        _hold(all(whole.strategy.ask() is None for _ in range(3)), "it answered None while nothing ran, and then went on")


def none_changes_nothing(case: Case) -> None:
    """Asking again after None is answered None again, and changes nothing that follows."""
    for lanes in (1, 8):
        quiet = play(case, lanes=lanes).proposals
        _hold(play(case, lanes=lanes, nags=3).proposals == quiet, "asks that were answered None changed what followed")


def closed_means_children_only(case: Case) -> None:
    """With the budget of roots spent, a strategy with children answers with children or None, and comes to an end."""
    strategy = case.build()
    if not strategy.children:
        return
    play(replace(case, asks=case.asks // 2), strategy=strategy, lanes=3)
    strategy.closed = True
    rest = play(replace(case, asks=1000), strategy=strategy, lanes=3, first=500)
    _hold(all(p.parent is not None for p in rest.proposals), "it proposed a root although it was closed")
    _hold(rest.finished, "closed, it never came to an end")


def warm_starts_are_accepted(case: Case) -> None:
    """Outcomes that it never asked for, of every status, before the first ask, in between, and twice."""
    strategy = case.build()
    elsewhere = _elsewhere(case, 8)
    for outcome in elsewhere[:6]:
        strategy.tell(outcome)
    seen = play(replace(case, asks=4), strategy=strategy, lanes=2).proposals
    for outcome in (*elsewhere[6:], *elsewhere[:2]):
        strategy.tell(outcome)
    seen += play(case, strategy=strategy, lanes=2, first=100).proposals
    for proposal in seen:
        _hold(not case.space.problems(proposal.config), f"after a warm start it proposed {proposal.config}")
        _hold(proposal.parent is None or proposal.parent < 900, "it goes on from a trial that is not of this study")


def no_shared_random_numbers(case: Case) -> None:
    """It neither uses nor changes the random states of `random`, numpy and torch that everybody shares."""
    import torch

    states = []
    played = []
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        for shared in (1, 2):
            random.seed(shared)
            np.random.seed(shared)
            torch.manual_seed(shared)
            states.append((random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()))
            played.append(play(case, lanes=2).proposals)
            after = (random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist())
            _hold(after == states[-1], "it drew from, or seeded, random numbers that everybody shares")
        _hold(played[0] == played[1], "its proposals depend on random numbers that everybody shares")
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def what_it_was_given_stays(case: Case) -> None:
    """Configs are nobody's but the asker's: changing one that was answered changes nothing."""

    def spoil(config: Config) -> None:
        for path in config:
            config[path] = "spoilt"

    clean = play(case).proposals
    strategy = case.build()
    spoilt = []
    for trial in range(1, case.asks + 1):
        proposal = strategy.ask()
        if proposal is None:
            break
        outcome = outcome_of(case.space, trial, replace(proposal, config=dict(proposal.config)))
        spoilt.append(replace(proposal, config=dict(proposal.config)))
        spoil(proposal.config)
        strategy.tell(outcome)
    _hold(spoilt == clean, "changing a config that ask had answered changed what followed")


def unknown_hyperparameters_are_refused(case: Case) -> None:
    try:
        build(case.strategy, case.space, {**case.hyperparameters, "no_such_knob": 1}, seed=0)
    except ValueError as error:
        _hold("no_such_knob" in str(error), f"the error should name it, but says: {error}")
    else:
        raise AssertionError("an unknown hyper-parameter was taken")


def _elsewhere(case: Case, number: int) -> list[Outcome]:
    """Outcomes of another study, of every status."""
    rng = np.random.default_rng(99)
    return [outcome_of(case.space, 900 + i, Proposal(case.space.sample(rng)), STATUSES[i % len(STATUSES)]) for i in range(number)]


def _through_json(state: Any) -> Any:
    """A snapshot as it comes back from disk: lists for tuples; tensors stay."""
    if isinstance(state, Mapping):
        return {str(key): _through_json(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_through_json(value) for value in state]
    return json.loads(json.dumps(state)) if isinstance(state, bool | int | float | str | None) else state


LAWS: tuple[Callable[[Case], None], ...] = (
    proposals_are_valid,
    proposals_survive_json,
    same_seed_same_proposals,
    replay_is_equal,
    snapshot_is_replay,
    scores_do_not_matter_unless_adaptive,
    every_failure_is_accepted,
    odd_scores_are_accepted,
    parallel_asks_differ,
    uniform_never_repeats,
    finished_is_for_ever,
    none_changes_nothing,
    closed_means_children_only,
    warm_starts_are_accepted,
    no_shared_random_numbers,
    what_it_was_given_stays,
    unknown_hyperparameters_are_refused,
)
