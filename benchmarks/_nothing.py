"""A space and a method whose trials do nothing, or sleep: what is left is what the machinery costs."""
from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from metasearch import strategies
from metasearch.objectives import Objective, Trial
from metasearch.records import Proposal, Report
from metasearch.space import Float, Space
from metasearch.strategies import Strategy

SPACE = Space({"x": Float(0.0, 1.0)})


def method(study: Any) -> tuple[Strategy, Objective]:
    return strategies.build("random", study.space(), {}, seed=study.seed), Nothing(**study.method.arguments)


@dataclass(frozen=True)
class Nothing:
    """seconds: how long a trial sleeps, in as many pieces as it has reports."""

    seconds: float = 0.0
    reports: int = 1

    def __call__(self, proposal: Proposal, trial: Trial) -> Iterator[Report]:
        for step in range(1, self.reports + 1):
            if self.seconds:
                time.sleep(self.seconds / self.reports)
            metrics = {"loss": 1.0 / step, "accuracy": 0.5} if self.reports > 1 else {}
            yield Report(step, metrics, score=float(proposal.config["x"]))
