"""A space and a method whose trials do nothing: what is left is what the machinery costs."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metasearch import strategies
from metasearch.objectives import Objective, Trial
from metasearch.records import Proposal, Report
from metasearch.space import Float, Space
from metasearch.strategies import Strategy

SPACE = Space({"x": Float(0.0, 1.0)})


def method(study: Any) -> tuple[Strategy, Objective]:
    return strategies.build("random", study.space(), {}, seed=study.seed), nothing


def nothing(proposal: Proposal, trial: Trial) -> Iterator[Report]:
    yield Report(1, {}, score=float(proposal.config["x"]))
