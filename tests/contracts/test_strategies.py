"""Every strategy, found by listing the folder, against every law on every space."""
from __future__ import annotations

from collections.abc import Callable

import pytest

from metasearch import plugins
from metasearch.testing import strategies
from metasearch.testing.strategies import Case

# A model that costs a third of a second an ask begins early, so that it is asked for one proposal in each play; on all but two
# spaces it is so in the slow tests.
SLOW = {"gp": ({"startup": 4}, 5)}  # hyper-parameters, asks
QUICK = ("one-point", "conditional", "finite-conditional")


def _parameters() -> list[object]:
    found = []
    for name in plugins.names("strategies"):
        hyperparameters, asks = SLOW.get(name, (None, 24))
        for case in strategies.cases(name, hyperparameters, asks=asks):
            marks = [pytest.mark.slow] if name in SLOW and case.space_name not in QUICK else []
            found.append(pytest.param(case, marks=marks, id=str(case)))
    return found


@pytest.mark.parametrize("law", strategies.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", _parameters())
def test_law_holds(case: Case, law: Callable[[Case], None]) -> None:
    law(case)
