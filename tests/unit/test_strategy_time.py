"""What every strategy costs, found by listing the folder: processor time, coming back after a kill, memory."""
from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from metasearch import plugins
from search_spaces.nasbench201 import SPACE

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import strategy_time

STRATEGIES = [name for name in plugins.names("strategies") if name != "gp"]  # whose asks cost up to seconds


@pytest.mark.parametrize("name", STRATEGIES)
def test_200_proposals_cost_at_most_six_seconds(name: str, tmp_path: Path) -> None:
    """A tenth of what 2,000 may cost; most need a hundredth. `cost` raises if what comes back is not what was killed."""
    found = strategy_time.cost(name, 200, partial(strategy_time.smooth, SPACE), tmp_path / "t")
    assert found.proposals >= 190
    assert found.strategy < 6
    assert found.reopening < 2


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_2000_proposals_cost_at_most_a_minute_and_come_back_in_two_seconds(name: str, tmp_path: Path) -> None:
    found = strategy_time.cost(name, 2000, partial(strategy_time.smooth, SPACE), tmp_path / "t")
    assert found.proposals >= 1990
    assert found.strategy < 60
    assert found.reopening < 2
    assert found.memory < 20, "MiB for the second thousand"
