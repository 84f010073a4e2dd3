"""No secret is printed."""
from __future__ import annotations

import pytest

from metasearch.track.redact import redact
from metasearch.track.store import TrackingError


@pytest.mark.parametrize("text", [
    "http://user:canary@host:5000/x",
    "postgresql+psycopg2://user:can@canary@db/mlflow",
    "error at https://canary@host: refused",
    "https://host/path?access_token=canary&x=1",
    "https://host/?x-amz-signature=canary",
])
def test_secrets_in_addresses_are_hidden(text: str) -> None:
    assert "canary" not in redact(text)
    assert "host" in redact(text) or "db" in redact(text)


def test_values_of_secret_variables_are_hidden_and_names_of_files_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, f"canary-{name}")
        assert redact(f"said canary-{name} aloud") == "said *** aloud"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/token")
    assert redact("read /home/me/token") == "read /home/me/token"


def test_plain_text_is_left_alone() -> None:
    text = "sqlite:////tmp/x/mlflow.db, http://host:5000, me@example.com, a@b"
    assert redact(text) == text


def test_a_tracking_error_hides_secrets_by_itself() -> None:
    assert "canary" not in str(TrackingError("no answer from http://u:canary@h", passing=True))
