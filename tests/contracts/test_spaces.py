"""Every search space, found by listing the folder, and the template, against every law."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from metasearch import plugins
from metasearch.testing import space_template, spaces

FILES = [*plugins.names("spaces"), str(Path(space_template.__file__))]


@pytest.mark.parametrize("law", spaces.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", FILES, ids=lambda name: Path(name).stem)
def test_law_holds(name: str, law: Callable[[ModuleType], None]) -> None:
    law(plugins.module("spaces", name))
