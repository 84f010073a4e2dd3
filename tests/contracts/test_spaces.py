"""Every search space, found by listing the folder, and the template, against every law."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from metasearch import plugins
from metasearch.testing import space_template, spaces

FILES = [*plugins.names("spaces"), str(Path(space_template.__file__))]


# Nets of published sizes are trained by one law in every run, and by the others in slow tests.
LARGE = {"nasbench201", "nasbench-macro"}
LONG = {spaces.a_training_step_gives_finite_scores, spaces.a_vmap_and_a_loop_give_the_same_gradient}


def _parameters() -> list[object]:
    found = []
    for name in FILES:
        for law in spaces.LAWS:
            marks = [pytest.mark.slow] if name in LARGE and law in LONG else []
            found.append(pytest.param(name, law, marks=marks, id=f"{Path(name).stem}-{law.__name__}"))
    return found


@pytest.mark.parametrize(("name", "law"), _parameters())
def test_law_holds(name: str, law: Callable[[ModuleType], None]) -> None:
    law(plugins.module("spaces", name))
