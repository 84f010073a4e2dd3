"""The augmentation that a search found: of a trial, of the lineage that a trial is the end of, of the best trials side by side.

    found = metasearch.policies.of_trial("pba/112")      # Places: for population based augmentation a schedule
    metasearch.augment.save(found, "schedule.json")      # on any machine: metasearch.augment.load_places("schedule.json")
    metasearch.policies.keep("pba/112")                  # a recipe may now say metasearch.augment.named("pba/112")
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from metasearch.augment import (
    Places,
    Policy,
    RandAugment,
    Schedule,
    Shared,
    Shuffled,
    Step,
    SubPolicies,
    TrivialAugment,
    UniformAugment,
    find,
    fixed,
    saved,
)
from metasearch.driver.study import Study
from metasearch.home import home_of, living_in, study_folder
from metasearch.ledger import Ledger, TrialRow
from metasearch.objectives import Infeasible
from metasearch.objectives.train import Train
from metasearch.records import Config
from metasearch.strategies.pba import Segment, lineage

__all__ = ["joined", "keep", "of_row", "of_trial", "places_of", "schedule", "searches", "side_by_side", "stages", "told"]

NOTHING = fixed(Step("identity"))


def of_trial(reference: str, *, home: Path | None = None, ended: bool = False) -> Places:
    """What the training episodes of the trial "STUDY/NUMBER" went through, from the first step of its lineage on.

    Raises ValueError for a reference that names no trial, for one without augmentation (or that searches for one, and has not
    found it), and, where it must have `ended`, for one that has not, or not well.
    """
    name, slash, number = reference.rpartition("/")
    if not (slash and number.isascii() and number.isdecimal()):
        raise ValueError(f"a trial is named STUDY/NUMBER, such as pba/112, but got {reference!r}")
    study, trials = _opened(name, home)
    if int(number) not in trials:
        raise ValueError(f"there is no trial {reference}: '{name}' has trials 1 to {max(trials, default=0)}")
    status = trials[int(number)].status
    if ended and status not in ("done", "reused"):
        raise ValueError(f"what recipes name must come from a trial that ended well, but {reference} is '{status}'. To name its "
                         f"policy all the same: metasearch.augment.keep(metasearch.policies.of_trial({reference!r}))")
    with living_in(home):
        searching = searches(study)
        found = of_row(trials, int(number), places_of(study), searching=searching)
    if found is None:
        raise ValueError(f"{reference} is '{status}' and has found no policy yet" if searching else
                         f"{reference} augments nothing: no policy is in its config")
    return found


def keep(reference: str, *, home: Path | None = None) -> str:
    """Keeps the policy of a trial where recipes find it by name (metasearch.augment.named); returns its content hash. Raises
    ValueError as `of_trial`, and for a trial that has not ended well."""
    return saved.keep(of_trial(reference, home=home, ended=True), reference, home=home)


def joined(name: str, *, best: int = 5, home: Path | None = None) -> Places:
    """The sub-policies of the best trials of a study side by side, at the place of the best one, from each alike: what
    AutoAugment ends with (five best policies of five sub-policies). Trials with another place, other ranges or another fill are
    passed over, and those with a policy that is there already."""
    return side_by_side(name, best=best, home=home)[0]


def side_by_side(name: str, *, best: int = 5, home: Path | None = None) -> tuple[Places, list[int]]:
    """What `joined` returns, and the numbers of the trials of which it is made, best first: fewer than `best`, maybe."""
    study, trials = _opened(name, home)
    with living_in(home):
        return _best(name, trials, _compared(trials, study), places_of(study), best)


def _compared(trials: Mapping[int, TrialRow], study: Study) -> list[TrialRow]:
    """Those that compare, best first: scores of segments and of lower rungs are no match for longer trainings, but where children
    inherit weights, all are individuals."""
    done = [row for row in trials.values() if row.outcome is not None and row.outcome.status == "done"]
    whole = study.strategy().inherits
    until = {row.id: math.inf if whole or row.proposal.until is None else row.proposal.until for row in done}
    longest = max(until.values(), default=0)
    return sorted((row for row in done if until[row.id] == longest), key=lambda row: -_score(row))


def _best(
    name: str, trials: Mapping[int, TrialRow], ranked: Sequence[TrialRow], of: Callable[[Config], Places | None], best: int
) -> tuple[Places, list[int]]:
    """ranked: best first."""
    whole = of_row(trials, ranked[0].id, of) if ranked else None
    if whole is not None and any(policy.changes for policy in whole.policies.values()):
        raise ValueError(f"what augmented the best trial of '{name}' changed while it trained, so it is a schedule, and there is "
                         f"nothing to put beside it. Name the trial: {name}/{ranked[0].id}")
    first: tuple[Places, str, str, float | None] | None = None  # and its place, its ranges and what lies around pictures
    taken: dict[int, SubPolicies] = {}
    for row in ranked:
        places = of(_config(row))
        if places is None or len(places.policies) != 1:
            continue
        (place, policy), = places.policies.items()
        if not isinstance(policy, SubPolicies) or policy in taken.values():
            continue
        first = first or (places, place, policy.ranges, places.fill)
        if (place, policy.ranges, places.fill) == first[1:]:
            taken[row.id] = policy
        if len(taken) == best:
            break
    if first is None:
        raise ValueError(f"no trial of '{name}' has sub-policies at one place, so that there is nothing to join. " + (
            f"Name a trial instead: {name}/{ranked[0].id} is the best of those that trained longest" if ranked else
            "None has ended well"))
    found, place, ranges, _ = first
    return replace(found, **{place: _together(list(taken.values()), ranges)}), list(taken)  # type: ignore[arg-type]


def _together(policies: Sequence[SubPolicies], ranges: str) -> SubPolicies:
    """Each policy as probable as another, however many sub-policies it has."""
    weights = [w / sum(own) for one in policies for own in [one.weights or (1.0,) * len(one.choices)] for w in own]
    alike = max(weights) - min(weights) < 1e-12
    return SubPolicies(tuple(choice for one in policies for choice in one.choices), () if alike else tuple(weights), ranges)


def searches(study: Study) -> bool:
    """Does each trial find a policy of its own, as those of dada do? Before it has, what was proposed means nothing."""
    return study.has_own_method and not isinstance(study.objective(), Train)


def of_row(
    trials: Mapping[int, TrialRow], number: int, of: Callable[[Config], Places | None], *, searching: bool = False
) -> Places | None:
    """Of a trial among its study's; None: it augments nothing, or is searching for what it will be (see `searches`)."""
    row = trials[number]
    if searching and (row.report is None or row.report.found is None):
        return None
    if row.proposal.parent is None:
        return of(_config(row))
    return schedule(lineage({n: one.proposal for n, one in trials.items()}, number), of)


def schedule(segments: Sequence[Segment], of: Callable[[Config], Places | None]) -> Places | None:
    """One policy after the other, at each place at which any of them acts; where none changes, that policy itself. All else
    (copies, versions, ...) is as in the last segment. None: nothing is augmented.

    Raises ValueError where a segment has a schedule of its own.
    """
    told = [of(one.config) or Places() for one in segments]
    found: dict[str, Policy] = {}
    for place in dict.fromkeys(place for places in told for place in places.policies):
        runs: list[tuple[Policy, int]] = []
        for places, one in zip(told, segments, strict=True):
            policy = places.policies.get(place, NOTHING)
            if runs and runs[-1][0] == policy:
                runs[-1] = policy, runs[-1][1] + one.steps
            else:
                runs.append((policy, one.steps))
        policies, lengths = zip(*runs, strict=True)
        found[place] = policies[0] if len(runs) == 1 else Schedule(policies, tuple(float(n) for n in lengths))
    return replace(told[-1], **found) if found else None  # type: ignore[arg-type]


def places_of(study: Study) -> Callable[[Config], Places | None]:
    """Of every config of a study, what its recipe does to episodes. Loads the study's tasks.

    Raises ValueError, when it is called, for a config whose recipe cannot be built, or augments by a function of its own.
    """
    objective = study.objective()
    train = objective if isinstance(objective, Train) else getattr(objective, "train", None)
    if not isinstance(train, Train):
        raise ValueError(f"the trials of '{study.name}' are not made by `train`, so they have no policies")

    def of(config: Config) -> Places | None:
        try:
            augment = train.built(config).augment
        except Infeasible as error:
            raise ValueError(f"the recipe of {config} cannot be built: {error}") from error
        if augment is not None and not isinstance(augment, Places):
            raise ValueError(f"the space '{study.space_name}' augments by a function of its own, which is no policy")
        return augment

    return of


def _opened(name: str, home: Path | None) -> tuple[Study, dict[int, TrialRow]]:
    with Ledger.open(study_folder(name, home_of(home)) / "ledger.sqlite") as ledger:
        return Study.from_json(ledger.study()["study"]), dict(ledger.trials())


def _config(row: TrialRow) -> Config:
    """What it found, if its objective searches; otherwise what it was given."""
    return row.proposal.config if row.report is None or row.report.found is None else row.report.found


def _score(row: TrialRow) -> float:
    assert row.outcome is not None
    return row.outcome.score if row.outcome.score is not None else float("-inf")


# for people -------------------------------------------------------------------------------------------------------------------


def told(places: Places, channels: int = 3) -> list[list[str]]:
    """A row for every operation: [operation, place, probability, magnitude, when]. A magnitude is a level 0..1 of its range;
    operations that have none say so, those that are never applied are left out (of a policy or sub-policy that applies none,
    "nothing" is said), and those that leave pictures of so many channels as they are say so too."""
    found = []
    for place, policy in places.policies.items():
        idle = policy.idle(channels)
        for operation, probability, magnitude, when in _rows(policy, ""):
            nothing = "nothing: the pictures are grey" if operation in idle else ""
            found.append([operation, place, probability, magnitude, ", ".join(filter(None, (when, nothing)))])
    if places.new_classes:
        found.append(["turned classes as new ones", "task", f"{places.new_classes:g}", "-", "of an episode"])
    if places.versions > 1:
        found.append(["MetaMaxUp", "task", "1", "-", f"the hardest of {places.versions} versions of an episode"])
    return found


def stages(policy: Policy) -> list[tuple[float, dict[str, tuple[float, float]]]]:
    """Of a schedule, for a picture: (the share of training at which a stage ends, operation -> (probability, magnitude)), the
    mean over its steps of that operation; of RandAugment and its like, the share of pictures that get it, and the mean level. A
    policy that does not change is one stage."""
    policy = policy.policy if isinstance(policy, Shared) else policy
    parts = policy.policies if isinstance(policy, Schedule) else (policy,)
    lengths = (policy.lengths if isinstance(policy, Schedule) else ()) or (1.0,) * len(parts)
    found, done = [], 0.0
    for part, length in zip(parts, lengths, strict=True):
        done += length / sum(lengths)
        found.append((min(done, 1.0), {name: _mean(steps) for name, steps in _by_operation(part).items()}))
    return found


def _by_operation(policy: Policy) -> dict[str, list[Step]]:
    found: dict[str, list[Step]] = {}
    for step in _steps(policy):
        found.setdefault(step.operation, []).append(step)
    return {name: each for name, each in found.items() if name != "identity"}


def _steps(policy: Policy) -> list[Step]:
    if isinstance(policy, Shared):
        return _steps(policy.policy)
    if isinstance(policy, SubPolicies):
        return [step for choice in policy.choices for step in choice]
    if isinstance(policy, Shuffled):
        return list(policy.steps)
    if isinstance(policy, RandAugment):
        return _alike(policy.names, policy.n, 1.0, policy.m / 30)
    if isinstance(policy, UniformAugment):
        return _alike(policy.names, policy.n, policy.probability, 0.5)
    return _alike(policy.names, 1, 1.0, 0.5) if isinstance(policy, TrivialAugment) else []


def _alike(names: Sequence[str], draws: int, probability: float, magnitude: float) -> list[Step]:
    """A step for every operation, as probable as it is in one draw or more out of so many."""
    each = {name: probability * names.count(name) / len(names) for name in names}
    return [Step(name, 1 - (1 - share) ** draws, magnitude) for name, share in each.items()]


def _mean(steps: Sequence[Step]) -> tuple[float, float]:
    """The mean probability, and the magnitude of what is applied."""
    applied = sum(step.probability for step in steps)
    magnitude = sum(step.probability * step.magnitude for step in steps) / applied if applied else 0.0
    return applied / len(steps), magnitude


def _rows(policy: Policy, when: str) -> Iterator[tuple[str, str, str, str]]:
    if isinstance(policy, Schedule):
        lengths = policy.lengths or (1.0,) * len(policy.policies)
        done = 0.0
        for part, length in zip(policy.policies, lengths, strict=True):
            start, done = done, done + 100 * length / sum(lengths)
            yield from _rows(part, f"{start:.0f}-{done:.0f} % of training")
    elif isinstance(policy, SubPolicies):
        weights = policy.weights or (1.0,) * len(policy.choices)
        for number, (choice, weight) in enumerate(zip(policy.choices, weights, strict=True), 1):
            share = f"sub-policy {number} ({weight / sum(weights):.0%})" if len(weights) > 1 else ""
            yield from _applied(choice, ", ".join(filter(None, (when, share))))
    elif isinstance(policy, Shuffled):
        yield from _applied(policy.steps, ", ".join(filter(None, (when, "in random order"))))
    elif isinstance(policy, Shared):
        yield from _rows(policy.policy, ", ".join(filter(None, (when, "the same for all pictures"))))
    else:
        yield ", ".join(policy.operations), "one as often as another", _numbers(policy), when


def _numbers(policy: Policy) -> str:
    """A policy's name and numbers, without the names of its operations."""
    told = [f"{name}={value:g}" for name, value in vars(policy).items() if isinstance(value, int | float)]
    return f"{type(policy).__name__}({', '.join(told)})"


def _applied(steps: Sequence[Step], when: str) -> list[tuple[str, str, str, str]]:
    return [_row(step, when) for step in steps if step.probability > 0] or [("nothing", "-", "-", when)]


def _row(step: Step, when: str) -> tuple[str, str, str, str]:
    return step.operation, f"{step.probability:g}", f"{step.magnitude:g}" if find(step.operation).unit else "-", when
