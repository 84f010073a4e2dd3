"""Variables that were set for a while are afterwards what they were before, whatever happens inside."""
from __future__ import annotations

import os

import pytest

from metasearch.environment import environment


def test_variables_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_THERE", "before")
    monkeypatch.delenv("METASEARCH_GONE", raising=False)
    with environment({"METASEARCH_THERE": "inside", "METASEARCH_GONE": "inside"}):
        assert os.environ["METASEARCH_THERE"] == os.environ["METASEARCH_GONE"] == "inside"
    with pytest.raises(ZeroDivisionError), environment({"METASEARCH_THERE": "inside"}):
        _ = 1 / 0
    assert os.environ["METASEARCH_THERE"] == "before"
    assert "METASEARCH_GONE" not in os.environ
