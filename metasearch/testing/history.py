"""Does a study's history make sense? One function for all fault tests: whatever was killed, it must answer with no problems.

    assert problems(folder) == []
    assert proposals(folder) == proposals(undisturbed)
"""
from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metasearch.driver import letters
from metasearch.driver.director import trial_seed
from metasearch.driver.spending import USED
from metasearch.ledger import Ledger, Row, TrialRow
from metasearch.records import Outcome

__all__ = ["problems", "proposals", "results"]


def problems(
    folder: Path, *, effects: Mapping[int, Mapping[str, int]] | None = None, tracked: str | None = None, finished: bool = True
) -> list[str]:
    """What is wrong with the history in a study's folder, in words.

    effects:  how often each trial was seen to start and to end by what it left behind: {trial: {"start": 2, "end": 1}}.
    tracked:  MLflow's address, if the ledger must have arrived there.
    finished: whether the study has ended, so that nothing may be open and the budget must be used up.
    """
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        rows, trials, study = list(ledger.rows()), ledger.trials(), ledger.study()["study"]
        found = _rows(rows) + _transitions(rows) + _owners(rows) + _seeds(trials, study["seed"])
        told = [row.body["budget"] for row in rows if row.kind in ("resumed", "stopped") and "budget" in row.body]
        budget = {**study["budget"], **(told[-1] if told else {})}  # a resume may have raised it
        reasons = [row.body["reason"] for row in rows if row.kind == "stopped"]
        found += _letters(folder, trials) + _budget(trials, budget, finished=finished and reasons[-1:] == ["trials"])
        if effects is not None:
            found += _effects(trials, effects)
        if finished:
            found += [f"trial {t.id} never ended" for t in trials.values() if not t.ended]
            found += [] if any(r.kind == "stopped" and r.body["final"] for r in rows) else ["the study never stopped"]
        found += _leaderboard(folder, trials)
    if tracked is not None:
        found += _mlflow(folder, tracked)
    return found


def proposals(folder: Path) -> list[dict[str, Any]]:
    """Every proposal, in order."""
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        return [row.body for row in ledger.rows(kinds=["proposed"])]


def results(folder: Path) -> dict[int, tuple[str, float | None, int]]:
    """(status, score, step) of every ended trial."""
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        return {t.id: (t.status, t.outcome.score, t.outcome.step) for t in ledger.trials().values() if t.outcome is not None}


def _rows(rows: list[Row]) -> list[str]:
    found = [] if [r.seq for r in rows] == list(range(1, len(rows) + 1)) else ["the rows' numbers have gaps"]
    if [r.kind for r in rows].count("study") != 1 or rows[0].kind != "study":
        found.append("there must be one study row, and it must be the first")
    for row in rows:
        try:
            json.dumps(row.body, allow_nan=False)
        except ValueError:
            found.append(f"row {row.seq} is no strict JSON")
    return found


def _transitions(rows: list[Row]) -> list[str]:
    """proposed -> started (attempt 1, 2, ...) -> report ... -> ended, once; what is answered without a run ends unstarted.

    retry (once): of a started trial, which is then started again.
    """
    found: list[str] = []
    state: dict[int, str] = {}
    attempts: Counter[int] = Counter()
    again: set[int] = set()
    for row in rows:
        number = row.trial
        if number is None or row.kind not in ("proposed", "started", "report", "retry", "ended"):
            continue
        before = state.get(number)
        if row.kind == "proposed":
            ok = before is None and number == len(state) + 1
        elif row.kind == "started":
            attempts[number] += 1
            ok = before in ("proposed", "started", "report", "retry") and row.body["attempt"] == attempts[number]
        elif row.kind == "report":
            ok = before in ("started", "report")
        elif row.kind == "retry":
            ok = before in ("started", "report") and number not in again
            again.add(number)
        else:
            unstarted = row.body["status"] in ("infeasible", "reused", "error", "oom")
            ok = before in ("started", "report") or (before == "proposed" and unstarted)
        if not ok:
            found.append(f"row {row.seq}: trial {number} goes from {before} to {row.kind}")
        state[number] = row.kind
    return found


def _owners(rows: list[Row]) -> list[str]:
    """A lane holds one trial at a time, and a trial has one lane at a time (a lane that died, or a resume, gives it up)."""
    found: list[str] = []
    holds: dict[str, int] = {}
    for row in rows:
        if row.kind == "resumed":
            holds.clear()
        elif row.kind == "started" and row.trial is not None:
            lane = row.body["lane"]
            other = [name for name, trial in holds.items() if trial == row.trial and name != lane]
            if holds.get(lane, row.trial) != row.trial:
                found.append(f"row {row.seq}: {lane} starts trial {row.trial} while it holds {holds[lane]}")
            if other:
                found.append(f"row {row.seq}: trial {row.trial} starts on {lane} while {other[0]} holds it")
            holds[lane] = row.trial
        elif row.kind in ("retry", "ended"):
            holds = {lane: trial for lane, trial in holds.items() if trial != row.trial}
    return found


def _seeds(trials: Mapping[int, TrialRow], seed: int) -> list[str]:
    return [f"trial {t.id} has another's seed" for t in trials.values() if t.proposal.seed != trial_seed(seed, t.id)]


def _letters(folder: Path, trials: Mapping[int, TrialRow]) -> list[str]:
    """What a worker wrote about the end of a trial is what the ledger says."""
    found = []
    for path in sorted((folder / "letters").glob("[0-9]*.json")):
        number = int(path.stem)
        letter, row = letters.read(folder, number), trials.get(number)
        if letter is None or row is None:
            found.append(f"{path} is no letter of a trial")
        elif row.outcome is not None and letter.chunk == row.chunk and not _same(letter.outcome(row.proposal), row.outcome):
            found.append(f"trial {number}: the letter says {letter}, the ledger {row.outcome}")
    return found


def _same(a: Outcome, b: Outcome) -> bool:
    return Outcome.from_json(json.loads(json.dumps(a.to_json()))) == b


def _budget(trials: Mapping[int, TrialRow], budget: Mapping[str, Any], *, finished: bool) -> list[str]:
    used = sum(1 for t in trials.values() if t.proposal.parent is None and t.status in USED)
    wanted = budget.get("trials")
    if wanted is None:
        return []
    if used > wanted:
        return [f"{used} roots were run, but the budget pays for {wanted}"]
    return [f"only {used} of {wanted} roots were run"] if finished and used < wanted else []


def _effects(trials: Mapping[int, TrialRow], effects: Mapping[int, Mapping[str, int]]) -> list[str]:
    """A trial is seen to start and end at most as often as it was started; a trial that was started once, just once."""
    found = []
    for trial in trials.values():
        seen = effects.get(trial.id, {})
        starts, ends = seen.get("start", 0), seen.get("end", 0)
        if starts > trial.attempts or ends > starts:
            found.append(f"trial {trial.id}: {trial.attempts} attempts, but {starts} starts and {ends} ends were seen")
        if trial.status == "done" and (starts < 1 or ends < 1):
            found.append(f"trial {trial.id} is done, but {starts} starts and {ends} ends were seen")
    return found + [f"trial {n} was run, but the ledger does not know it" for n in effects if n not in trials]


def _leaderboard(folder: Path, trials: Mapping[int, TrialRow]) -> list[str]:
    from metasearch.track.leaderboard import rows_from_ledger

    shown = {row.trial: row for row in rows_from_ledger(folder)}
    found = []
    for number, row in shown.items():
        outcome, status = trials[number].outcome, trials[number].status
        score = outcome.score if outcome is not None and status == "done" else None
        if row.status not in (status, "running" if outcome is None else status) or row.score != score:
            found.append(f"the leaderboard shows trial {number} as {row.status} {row.score}, the ledger has {status} {score}")
    done = [t.outcome.score for t in trials.values() if t.outcome is not None and t.status == "done"]
    best = max((score for score in done if score is not None), default=None)
    seen = max((r.score for r in shown.values() if r.score is not None and r.status == "done"), default=None)
    return found + ([] if best == seen else [f"the best score is {best}, but the leaderboard's is {seen}"])


def _mlflow(folder: Path, uri: str) -> list[str]:
    from metasearch.track.leaderboard import rows_from_ledger, rows_from_mlflow

    here = {row.trial: row for row in rows_from_ledger(folder)}
    there = rows_from_mlflow(folder.name, uri=uri)
    found = [f"MLflow has {n} runs of trial {t}" for t, n in Counter(row.trial for row in there).items() if n > 1]
    for row in there:
        ours = here.pop(row.trial, None)
        if ours is None:
            found.append(f"MLflow has a trial {row.trial} that the ledger does not show")
        elif (row.status, row.config) != (ours.status, ours.config) or not _close(row.score, ours.score):
            found.append(f"MLflow has trial {row.trial} as {row.status} {row.score}, the ledger as {ours.status} {ours.score}")
        elif (row.episodes is None) != (ours.episodes is None) or (
            row.episodes is not None and ours.episodes is not None and not np.array_equal(row.episodes, ours.episodes)
        ):
            found.append(f"MLflow has other per-episode scores of trial {row.trial}")
    return found + [f"MLflow lacks trial {number}" for number in here]


def _close(a: float | None, b: float | None) -> bool:
    return a == b if a is None or b is None else math.isclose(a, b, rel_tol=1e-9)
