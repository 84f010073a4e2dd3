"""Every search space, found by listing the folder, and the template, against every law."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from metasearch import plugins
from metasearch.testing import space_template, spaces

FILES = [*plugins.names("spaces"), str(Path(space_template.__file__))]

# Nets of published sizes are trained by one law in every run and by the others in slow tests, larger ones in slow tests alone:
# unit tests (test_search_spaces.py, test_spaces_hierarchical.py) hold smaller nets to the same laws.
TRAINING = {spaces.a_training_step_gives_finite_scores, spaces.a_vmap_and_a_loop_give_the_same_gradient}
LONGEST = {spaces.a_training_step_gives_finite_scores}
LARGER = ("conv-chain", "darts-cells", "hierarchical-motifs", "nasnet-cells")
LONG = {
    **dict.fromkeys(("nasbench201", "nasbench-macro"), TRAINING),
    **dict.fromkeys(("navigation", "quadratics"), LONGEST),  # their episodes are long
    "pretraining": {spaces.the_same_seed_trains_the_same},  # test_pretrain.py resumes bit for bit
    **dict.fromkeys(LARGER, TRAINING | {spaces.the_same_seed_trains_the_same}),
}


def _parameters() -> list[object]:
    found = []
    for name in FILES:
        for law in spaces.LAWS:
            marks = [pytest.mark.slow] if law in LONG.get(name, ()) else []
            found.append(pytest.param(name, law, marks=marks, id=f"{Path(name).stem}-{law.__name__}"))
    return found


@pytest.mark.parametrize(("name", "law"), _parameters())
def test_law_holds(name: str, law: Callable[[ModuleType], None]) -> None:
    law(plugins.module("spaces", name))
