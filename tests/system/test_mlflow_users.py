"""MLflow with users, as cluster/mlflow/serve starts it: each sees and writes what the administrator grants, and whoever may
not is told so in words. A real server on a real PostgreSQL."""
from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_ledgers import make
from test_mlflow import closed_port
from test_mlflow_teams import answers, postgres  # noqa: F401

from metasearch.driver.doctor import examine
from metasearch.ledger import Ledger
from metasearch.track import outbox
from metasearch.track.leaderboard import leaderboard, rows_from_ledger, rows_from_mlflow
from metasearch.track.projection import study_id
from metasearch.track.store import TrackingError, connect

SERVE = Path(__file__).resolve().parents[2] / "cluster" / "mlflow" / "serve"
ADMIN = ("head", "a-password-of-a-test")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(postgres: str) -> Iterator[str]:  # noqa: F811
    import sqlalchemy as sql

    engine = sql.create_engine(postgres.replace("metasearch:of-a-test@", "admin@"), isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        db.execute(sql.text("CREATE ROLE mlflow LOGIN PASSWORD 'of-a-test'"))
        db.execute(sql.text("ALTER DATABASE mlflow OWNER TO mlflow"))
    engine.dispose()
    port = closed_port()
    with tempfile.TemporaryDirectory(prefix="msml-") as home, (Path(home) / "log").open("wb") as log:
        environment = {
            **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MLFLOW_RUN_FOLDER": home,
            "POSTGRES_PASSWORD": "of-a-test", "POSTGRES_HOST": postgres.partition("@")[2].partition("/")[0],
            "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN[0], "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-of-a-test", "MLFLOW_ARTIFACTS_DESTINATION": f"{home}/artifacts",
            "MLFLOW_HOST": "127.0.0.1", "MLFLOW_PORT": str(port), "MLFLOW_WORKERS": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        process = subprocess.Popen([SERVE], env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            answers(port, process, Path(home) / "log")
            assert stat.S_IMODE((Path(home) / "auth.ini").stat().st_mode) == 0o600
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(60)


@pytest.fixture
def be(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Whose name and password MLflow's client takes from the environment."""

    def be(name: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    return be


def test_users_read_and_write_what_they_are_granted_and_nothing_else(tmp_path: Path, server: str, be: Any) -> None:
    from mlflow.server import get_app_client

    be(*ADMIN)
    admin = get_app_client("basic-auth", server)
    ada, bob = ("ada", "ada-has-a-password"), ("bob", "bob-has-a-password")
    for user in (ada, bob):
        admin.create_user(*user)

    be(*ada)
    hers = make(tmp_path / "ada" / "red", 4, seed=0)
    assert outbox.follow(hers, server, None)
    wanted = leaderboard(rows_from_ledger(hers))
    pd.testing.assert_frame_equal(leaderboard(rows_from_mlflow("red", server)), wanted)
    (experiment,) = connect(server, create=False).search_experiments(filter_string="name = 'red'")

    be(*bob)
    assert rows_from_mlflow(None, server) == []
    with pytest.raises(TrackingError, match="has no study 'red'"):
        rows_from_mlflow("red", server)
    his = make(tmp_path / "bob" / "red", 4, seed=5)
    assert not outbox.follow(his, server, None), "the search itself would go on"
    with pytest.raises(TrackingError, match=r"bob may not do that there.*READ.*EDIT.*study of another name"):
        outbox.sync(his, server)
    named_otherwise = make(tmp_path / "bob" / "blue", 4, seed=5)
    assert outbox.follow(named_otherwise, server, None)
    assert {row.study for row in rows_from_mlflow(None, server)} == {"blue"}

    def may(permission: str) -> None:
        be(*ADMIN)
        if permission != "READ":
            admin.revoke_user_permission("bob", "experiment", experiment.experiment_id)
        admin.grant_user_permission("bob", "experiment", experiment.experiment_id, permission)
        be(*bob)

    may("READ")
    pd.testing.assert_frame_equal(leaderboard(rows_from_mlflow("red", server)), wanted)
    with pytest.raises(TrackingError, match="while writing red: bob may not do that there"):
        outbox.sync(his, server)
    pd.testing.assert_frame_equal(leaderboard(rows_from_mlflow("red", server)), wanted)
    may("EDIT")
    assert outbox.sync(hers, server).wrong == 0
    assert outbox.sync(his, server).wrong == 0
    with Ledger.open(hers / "ledger.sqlite") as ledger:
        identity = study_id(next(ledger.rows(kinds=["study"])))
    told = leaderboard(rows_from_mlflow("red", server, identity=identity))
    pd.testing.assert_frame_equal(told, wanted, obj="of two studies of one name the first")
    be(*ada)
    assert {row.study for row in rows_from_mlflow(None, server)} == {"red"}, "his other study is his"


def test_whoever_the_server_does_not_know_is_told_what_to_set(
    tmp_path: Path, server: str, be: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    be(ADMIN[0], "a-wrong-password")
    (mlflow,) = [check for check in examine(None, home=tmp_path) if check.name == "mlflow"]
    assert mlflow.state == "failed"
    assert "does not know this user or password. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in mlflow.said
    assert "a-wrong-password" not in json.dumps(mlflow.to_json())
    folder = make(tmp_path / "green", 2)
    assert not outbox.follow(folder, server, None)
    assert "does not know this user" in (outbox.read_cursor(folder).trouble or "")
    be(*ADMIN)
    assert outbox.sync(folder, server).runs == 3
