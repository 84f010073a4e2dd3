"""What a test's child process does: run a small study, or go on with it; to be killed at any point.

    python killable.py STUDY_JSON HOME [CRASH_POINT:COUNT]
"""
from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TRIALS = 4


def table(*, space: str = "tiny_space.py", **changes: Any) -> dict[str, Any]:
    """Four trials of second-order MAML on sine waves, three reports and three parcels each."""
    study = {
        "name": "t", "space": str(HERE / space), "method": {"name": "random"},
        "tasks": {"name": "sinusoid", "shots": 5, "queries": 5},
        "train": {"report_every": 3, "checkpoint_every": 3, "mode": "vmap"}, "validation": {"episodes": 10},
        "budget": {"trials": TRIALS}, "driver": {"kind": "local"}, "track": {"enabled": False},
    }  # fmt: skip
    return {**study, **changes}


def run_or_resume(study: dict[str, Any], home: str, crash_at: str | None) -> None:
    """What a child does: run, or resume if the study is there; its exit code is the process's."""
    import torch

    from metasearch.driver import launch
    from metasearch.driver.study import Study

    torch.set_num_threads(1)
    os.environ.pop("METASEARCH_CRASH_AT", None)
    if crash_at is not None:
        os.environ["METASEARCH_CRASH_AT"] = crash_at
    if (Path(home) / "t" / "ledger.sqlite").exists():
        launch.resume("t", home=Path(home))
    else:
        launch.run(Study.from_json(study), home=Path(home))


if __name__ == "__main__":
    run_or_resume(json.loads(sys.argv[1]), sys.argv[2], (sys.argv[3:] or [None])[0])
