"""What a user reads when MLflow says no."""
from __future__ import annotations

import pytest

from metasearch.track.store import TrackingError, said


@pytest.mark.parametrize(("code", "words"), [
    ("401", "does not know this user or password. Set MLFLOW_TRACKING_USERNAME"),
    ("403", "ada may not do that there. An administrator of the server can grant READ"),
    ("500", "failed with error code 500"),
])
def test_a_refusal_says_who_was_refused_and_the_way_out(monkeypatch: pytest.MonkeyPatch, code: str, words: str) -> None:
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    path = "/api/2.0/mlflow/runs/create"
    refused = MlflowException(f"API request to endpoint {path} failed with error code {code} != 200. Response body: '403'")
    with pytest.raises(TrackingError) as told, said("http://here", "writing red"):
        raise refused
    assert str(told.value).startswith("MLflow at http://here, while writing red: ")
    assert words in str(told.value)
