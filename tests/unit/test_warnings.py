"""A warning of our own code is an error; one of somebody else's is not ours to judge."""
from __future__ import annotations

import warnings

import pytest

WARN = compile("import warnings\nwarnings.warn('canary', category)", "somewhere.py", "exec")


@pytest.mark.parametrize("module", ["metasearch", "metasearch.driver.tune", "search_spaces.sine_mlp", "metasearch_user_x"])
@pytest.mark.parametrize("category", [UserWarning, DeprecationWarning, FutureWarning, RuntimeWarning])
def test_a_warning_of_our_own_code_is_an_error(module: str, category: type[Warning]) -> None:
    with pytest.raises(category, match="canary"):
        exec(WARN, {"__name__": module, "category": category})


def test_a_warning_of_other_code_is_a_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        exec(WARN, {"__name__": "torch.nn", "category": UserWarning})
    assert [str(one.message) for one in caught] == ["canary"]
