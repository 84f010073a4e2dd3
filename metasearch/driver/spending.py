"""What a study's budget pays for, and what is used up of it: counts of trials, coverage, and why a study ends."""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from metasearch.budget import Coverage
from metasearch.driver.study import Budget, Study
from metasearch.ledger import TrialRow
from metasearch.records import LOOKED_AT, Outcome, Proposal
from metasearch.strategies import Strategy

__all__ = ["FAILED", "USED", "Spending", "goal"]

INFEASIBLE = 1000  # so many proposals refused in a row end a study;
NEVER = 200  # so many are enough where none was ever feasible: with 95 % confidence fewer than 1.5 % of its proposals are
FAILED = frozenset({"error", "oom"})  # of these, what runs out of memory twice is the config's own fault, as if infeasible
USED = frozenset({"done", "diverged", "reused"})  # what uses up a trial of the budget; the rest is replaced


class Spending:
    """Counts proposals and ends in the order in which the ledger has them. A root is a trial that goes on from no other: it is
    what a budget of trials or coverage counts."""

    def __init__(self, study: Study, strategy: Strategy) -> None:
        self.study, self.strategy = study, strategy
        self.limit(study.budget)
        self.counts: Counter[str] = Counter()  # ended trials by status
        self.ended = 0
        self.used = 0  # roots
        self.best: TrialRow | None = None  # of a lineage only its last segment counts
        self._done: dict[int, TrialRow] = {}  # whose lineage nothing has gone on from
        self._open: set[int] = set()  # roots
        self._looked: set[str] = set()  # distinct root configs that were drawn, and that somebody looked at
        self._looking: Counter[str] = Counter()  # root configs on their way
        self._refused = 0  # infeasible ones in a row

    def limit(self, budget: Budget) -> None:
        """From here on the study has this budget."""
        self.study = self.study.model_copy(update={"budget": budget})
        self.goal = goal(self.study, self.strategy)
        self._needed = self.goal.needed if self.goal is not None and budget.coverage is not None else None

    def proposed(self, number: int, proposal: Proposal, name: str) -> None:
        """name: of the config, the same for equal ones."""
        if proposal.parent is None:
            self._open.add(number)
            self._looking[name] += 1

    def finished(self, row: TrialRow, name: str) -> None:
        """Counts an ended trial."""
        assert row.outcome is not None
        status, proposal = row.outcome.status, row.proposal
        self.counts[status] += 1
        self.ended += 1
        if proposal.parent is None:
            self._open.discard(row.id)
            self._looking[name] -= 1
            if not self._looking[name]:
                del self._looking[name]
            if status in USED:
                self.used += 1
            if status in LOOKED_AT and (self.strategy.uniform or proposal.drawn):
                self._looked.add(name)
        self._refused = self._refused + 1 if status == "infeasible" else 0
        self._gone_on(row)
        if status == "done":
            self._done[row.id] = row
            if self.best is None or self._rank(row) > self._rank(self.best):
                self.best = row

    def _gone_on(self, row: TrialRow) -> None:
        """A trial that went on with the config and the weights of its parent stands for it, even if it diverged: boards show no
        other, and no other keeps its weights."""
        parent = self._done.get(row.proposal.parent or 0)
        if parent is None or self.strategy.inherits or row.status not in LOOKED_AT:
            return
        if parent.proposal.config == row.proposal.config:
            del self._done[parent.id]
            if self.best is parent:
                self.best = max(self._done.values(), key=lambda one: (self._rank(one), -one.id), default=None)

    @property
    def planned(self) -> int | None:
        """Roots that the budget pays for."""
        limits = [n for n in (self.study.budget.trials, self._needed) if n is not None]
        return min(limits) if limits else None

    @property
    def coverage(self) -> float | None:
        """Of a strategy that adapts that of its random part; None where it drew nothing."""
        if self.goal is None and self._looked:
            size = self.strategy.drawn_from
            self.goal = Coverage(size, _top(size), 0.9)
        return None if self.goal is None else self.goal.reached(len(self._looked))

    @property
    def closed(self) -> bool:
        """Is every root of the budget used up or on its way?"""
        trials = self.study.budget.trials
        if trials is not None and self.used + len(self._open) >= trials:
            return True
        if self._needed is None:
            return False
        on_their_way = sum(name not in self._looked for name in self._looking)
        return len(self._looked) + on_their_way >= self._needed

    @property
    def closed_by(self) -> str:
        trials = self.study.budget.trials
        return "trials" if trials is not None and self.used >= trials else "coverage"

    def spent(self, elapsed: float) -> str | None:
        """Why nothing more at all is to be asked, children included. elapsed: seconds of all sessions."""
        hours = self.study.budget.hours
        if hours is not None and elapsed >= hours * 3600:
            return "hours"
        failed = self.counts["error"]
        if self.counts["done"] == 0 and self.study.driver.max_errors is None:
            failed += self.counts["oom"]  # where nothing ever fits, ten are enough
        if failed > self._errors_allowed:
            return "errors"
        if self._refused >= (NEVER if self._refused == self.ended else INFEASIBLE):
            return "infeasible"
        return None

    def never_met(self, trials: Iterable[TrialRow]) -> str:
        """Why a study ends in which nothing is feasible, and what to do."""
        refused: list[Outcome] = [t.outcome for t in trials if t.outcome is not None and t.status == "infeasible"]
        refused = refused[-self._refused:]
        said = []
        for name, most in self.study.limits.measured().items():
            found = [outcome.metrics[name] for outcome in refused if name in outcome.metrics]
            if found and min(found) > most:
                said.append(f"none meets limits.max_{name} = {most:,g}: the least was {min(found):,g}")
        if not said:
            said.append(f"the last one: {refused[-1].reason}")
        out = "Raise the limit" if self.study.limits.measured() else "Correct that"
        return (
            f"the last {self._refused} proposals were all infeasible; {'; '.join(said)}. {out}, or let the space offer what "
            f"fits, in a study of another name."
        )

    @property
    def _errors_allowed(self) -> int:
        """driver.max_errors, or a fifth of the plan; and if nothing ever works, ten are enough."""
        if self.study.driver.max_errors is not None:
            return self.study.driver.max_errors
        if self.counts["done"] == 0:
            return 9
        return max(9, (self.planned or self.ended) // 5)

    def _rank(self, row: TrialRow) -> tuple[float, float]:
        """Only equal lengths compare: a full training beats a shorter segment, then the score counts. Where children inherit, a
        length is that of a lineage, and only the score counts."""
        assert row.outcome is not None
        whole = row.proposal.until is None or self.strategy.inherits
        score = row.outcome.score
        return (math.inf if whole else float(row.proposal.until or 0)), -math.inf if score is None else score


def goal(study: Study, strategy: Strategy) -> Coverage | None:
    """What coverage means for this study: one of `top` (default: the best hundredth) of those configurations that its strategy
    draws from, with the wanted probability. Raises ValueError for what cannot be counted."""
    budget = study.budget
    if not strategy.uniform:
        if budget.coverage is not None:
            raise ValueError(
                f"budget.coverage counts uniform draws, and '{study.method.name}' makes none. Use budget.trials or budget.hours."
            )
        return None
    return Coverage(strategy.population, budget.top or _top(strategy.population), budget.coverage or 0.9)


def _top(size: int | float) -> int | str:
    return "1%" if math.isinf(size) or size >= 100 else 1
