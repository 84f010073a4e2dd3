"""Every strategy, found by listing the folder, against every law on every space."""
from __future__ import annotations

from collections.abc import Callable

import pytest

from metasearch import plugins
from metasearch.testing import strategies
from metasearch.testing.strategies import Case

# A model whose asks are dear begins early and is asked less often: TPE ten times in a play of one lane, three in one of eight;
# a Gaussian process, a third of a second an ask, once in each play, and on all but three spaces in the slow tests.
DEAR = {"tpe": ({"startup": 4}, 14), "gp": ({"startup": 4}, 5)}  # hyper-parameters, asks
SLOW = ("gp",)
QUICK = ("one-point", "conditional", "finite-conditional")


def _parameters() -> list[object]:
    found = []
    for name in plugins.names("strategies"):
        hyperparameters, asks = DEAR.get(name, (None, 24))
        for case in strategies.cases(name, hyperparameters, asks=asks):
            marks = [pytest.mark.slow] if name in SLOW and case.space_name not in QUICK else []
            found.append(pytest.param(case, marks=marks, id=str(case)))
    return found


@pytest.mark.parametrize("law", strategies.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", _parameters())
def test_law_holds(case: Case, law: Callable[[Case], None]) -> None:
    law(case)
