"""The augmentation that a search found: of a trial, of the lineage that a trial is the end of, of the best trials side by side.

    found = metasearch.policies.of_trial("pba/112")      # Places: for population based augmentation a schedule
    metasearch.augment.save(found, "schedule.json")      # on any machine: metasearch.augment.load_places("schedule.json")
    metasearch.policies.keep("pba/112")                  # a recipe may now say metasearch.augment.named("pba/112")
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from metasearch.augment import Places, Policy, Schedule, Step, SubPolicies, fixed, saved
from metasearch.driver.study import Study
from metasearch.home import home_of, study_folder
from metasearch.ledger import Ledger, TrialRow
from metasearch.objectives import Infeasible
from metasearch.objectives.train import Train
from metasearch.records import Config
from metasearch.strategies.pba import Segment, lineage

__all__ = ["joined", "keep", "of_row", "of_trial", "places_of", "schedule"]

NOTHING = fixed(Step("identity"))


def of_trial(reference: str, *, home: Path | None = None) -> Places:
    """What the training episodes of the trial "STUDY/NUMBER" went through, from the first step of its lineage on.

    Raises ValueError for a reference that names no trial, and for one without augmentation.
    """
    study, trials, number = _opened(reference, home)
    found = of_row(trials, number, places_of(study))
    if found is None:
        raise ValueError(f"{reference} augments nothing: no policy is in its config")
    return found


def keep(reference: str, *, home: Path | None = None) -> str:
    """Keeps the policy of a trial where recipes find it by name (metasearch.augment.named); returns its content hash."""
    return saved.keep(of_trial(reference, home=home), reference, home=home)


def joined(name: str, *, best: int = 5, home: Path | None = None) -> Places:
    """The sub-policies of the best trials of a study side by side, at the place of the best one, from each alike: what
    AutoAugment ends with (five best policies of five sub-policies). Trials with another place are passed over."""
    study, trials, _ = _opened(f"{name}/0", home)
    of = places_of(study)
    ranked = sorted((row for row in trials.values() if row.outcome is not None and row.outcome.status == "done"),
                    key=lambda row: -_score(row))
    choices: list[tuple[Step, ...]] = []
    first: Places | None = None
    taken = 0
    for row in ranked:
        places = of(_config(row))
        if places is None or len(places.policies) != 1 or taken == best:
            continue
        (place, policy), = places.policies.items()
        if isinstance(policy, SubPolicies) and (first is None or place in first.policies):
            first, taken = first or places, taken + 1
            choices += policy.choices
    if first is None:
        raise ValueError(f"no trial of '{name}' has sub-policies at one place, so that there is nothing to join")
    (place, policy), = first.policies.items()
    assert isinstance(policy, SubPolicies)
    return replace(first, **{place: SubPolicies(tuple(choices), ranges=policy.ranges)})  # type: ignore[arg-type]


def of_row(trials: Mapping[int, TrialRow], number: int, of: Callable[[Config], Places | None]) -> Places | None:
    """Of a trial among its study's; None: it augments nothing."""
    row = trials[number]
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


def _opened(reference: str, home: Path | None) -> tuple[Study, dict[int, TrialRow], int]:
    name, slash, number = reference.rpartition("/")
    if not (slash and number.isascii() and number.isdecimal()):
        raise ValueError(f"a trial is named STUDY/NUMBER, such as pba/112, but got {reference!r}")
    with Ledger.open(study_folder(name, home_of(home)) / "ledger.sqlite") as ledger:
        study, trials = Study.from_json(ledger.study()["study"]), dict(ledger.trials())
    if int(number) and int(number) not in trials:
        raise ValueError(f"there is no trial {reference}: '{name}' has trials 1 to {max(trials, default=0)}")
    return study, trials, int(number)


def _config(row: TrialRow) -> Config:
    """What it found, if its objective searches; otherwise what it was given."""
    return row.proposal.config if row.report is None or row.report.found is None else row.report.found


def _score(row: TrialRow) -> float:
    assert row.outcome is not None
    return row.outcome.score if row.outcome.score is not None else float("-inf")
