"""Is a mixture a judge of its parts? Some architectures are scored with its weights and by themselves, and the ranks compared.

Where it is not, a second look helps: the few that it likes best are trained for a while, and the best of those is taken.

Yu, Sciuto, Jaggi, Musat, Salzmann. "Evaluating the Search Phase of Neural Architecture Search." ICLR 2020.
https://arxiv.org/abs/1902.08142 (there: Kendall's tau; here: Spearman's)
"""
from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from metasearch.objectives import Diverged, Infeasible, Trial, parcel
from metasearch.objectives.limits import Canonical, meaning
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal, Report
from metasearch.space import Space

__all__ = ["Again", "Judged", "rank_correlation", "told_before"]

TRIES = 100  # draws in a row that may bring nothing new
Again = Callable[..., str]  # again(step, **facts): the search's last parcel once more, with these; "" where none is kept


@dataclass(frozen=True)
class Judged:
    """train, steps: how an architecture is trained by itself, and for how many outer steps. space, options: that are relaxed.
    count:  different architectures, uniform on the relaxed dimensions; fewer where there are fewer; 0: none.
    canonical: the space file's, if it has one. Of what means the same one is trained, and all have its score.

    What had been found out before a trial was stopped is given as `known`: the list that its parcel holds (see `told_before`).
    A trial whose deadline has passed begins no further one, and each that has begun is trained whole: scores after fewer steps
    would not compare.
    """

    train: Train
    space: Space
    options: Mapping[str, Sequence[Any]]
    count: int
    steps: int
    canonical: Canonical | None = None
    scores: dict[str, float] = field(default_factory=dict, compare=False, repr=False)  # of what was trained, by its meaning

    def __call__(
        self, shared: Callable[[Config], float], proposal: Proposal, trial: Trial, report: Report, again: Again,
        known: Sequence[Any] = (),
    ) -> Generator[Report, None, dict[str, float]]:
        """A report for every architecture, {"supernet/checked": so many}; returns {"supernet/rank_correlation": of all}, or {}
        where that does not exist. shared: the score of an architecture with the mixture's weights. report: the search's last.
        """
        pairs = [(_number(a), _number(b)) for a, b in known]
        for i, sampled in enumerate(self.sampled(proposal) if self.count else ()):
            if i >= len(pairs):
                if trial.late:
                    return {}
                pairs.append((_number(shared(sampled)), self.alone(sampled, proposal, trial)))
            self.scores.setdefault(meaning(sampled, self.canonical), pairs[i][1])
            kept = again(report.step, checked=[[_plain(v) for v in pair] for pair in pairs])
            yield Report(report.step, {**report.metrics, "supernet/checked": i + 1.0}, checkpoint=kept or None)
        correlation = rank_correlation(*zip(*pairs, strict=True)) if pairs else None
        return {} if correlation is None else {"supernet/rank_correlation": correlation}

    def best(
        self, configs: Sequence[Config], proposal: Proposal, trial: Trial, report: Report, again: Again, known: Sequence[Any] = ()
    ) -> Generator[Report, None, Config]:
        """The one of some architectures that is the best by itself, with a report for every one; the first of equals. A parcel
        holds them ("ranked"), for latencies that were measured once more might make it others."""
        scores = [_number(score) for score in known]
        for i, config in enumerate(configs if len(configs) > 1 else ()):
            if i >= len(scores):
                if trial.late:
                    break
                scores.append(self.alone(config, proposal, trial))
            self.scores.setdefault(meaning(config, self.canonical), scores[i])
            kept = again(report.step, finalists=[_plain(score) for score in scores], ranked=list(configs))
            yield Report(report.step, {**report.metrics, "supernet/finalists": i + 1.0}, checkpoint=kept or None)
        return configs[max(range(len(scores)), key=lambda i: (scores[i], -i))] if scores else configs[0]

    def sampled(self, proposal: Proposal) -> list[Config]:
        rng = np.random.default_rng([proposal.seed or 0, 8])
        found, misses = dict[str, Config](), 0
        while len(found) < self.count and misses < TRIES:
            drawn = {path: values[int(rng.integers(len(values)))] for path, values in self.options.items()}
            misses = misses + 1 if (name := repr(sorted(drawn.items()))) in found else 0
            found.setdefault(name, self.space.normal({**proposal.config, **drawn}))
        return list(found.values())

    def distinct(self, configs: Sequence[Config]) -> list[Config]:
        """Without those that mean the same as one before them."""
        found = dict[str, Config]()
        for config in configs:
            found.setdefault(meaning(config, self.canonical), config)
        return list(found.values())

    def alone(self, config: Config, proposal: Proposal, trial: Trial) -> float:
        """The score of an architecture that is trained for a while, if none that means the same was."""
        if (name := meaning(config, self.canonical)) not in self.scores:
            self.scores[name] = self._alone(config, proposal, trial)
        return self.scores[name]

    def _alone(self, config: Config, proposal: Proposal, trial: Trial) -> float:
        study = replace(self.train, steps=self.steps, keep="last", limits={})
        lent = replace(trial, save=None, start=None, own=False, deadline=None)
        try:
            reports = list(study(Proposal(config, seed=proposal.seed), lent))
        except (Diverged, Infeasible):
            return -math.inf
        return -math.inf if reports[-1].score is None else reports[-1].score


def told_before(trial: Trial, name: str) -> list[Any]:
    """"checked", "finalists" or "ranked" of the parcel that a trial goes on from. To be asked before the search goes on, for its
    next parcel may take the place of this one."""
    if trial.start is None or not trial.own:
        return []
    return list(parcel.read(trial.start)[1].get(name, []))


def _plain(score: float) -> float | None:
    """JSON has no word for infinity."""
    return score if math.isfinite(score) else None


def _number(score: float | None) -> float:
    return -math.inf if score is None or not math.isfinite(score) else score


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's: Pearson's correlation of the ranks, ties sharing their mean rank; None where one side is constant."""
    x, y = (_ranks(np.asarray(values, dtype=float)) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else None


def _ranks(values: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    below = (values[None, :] < values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1)
    return np.asarray(below + (equal + 1) / 2)
