"""The kill test, a few kills of it: `python tests/system/kills.py --kills 200` does more."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_random_kills_of_driver_workers_and_nodes_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).parent / "kills.py"), "--kills", "6", "--home", str(tmp_path / "kills")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("6 kills (driver ")
    assert "lost 0, twice 0, disagreement 0" in done.stdout
