"""metasearch: distributed hyperparameter and architecture search for meta-learning.

    import metasearch

    study = metasearch.Study.from_toml("study.toml", ["budget.trials=20"])
    result = metasearch.run(study)
    metasearch.leaderboard(study.name)           # a pandas DataFrame
    metasearch.evaluate(f"{study.name}/{result.status.best_trial}")
    metasearch.load(f"{study.name}/{result.status.best_trial}").adapt(pictures, labels).predict(others)

Names are imported when they are first used: `import metasearch` itself takes milliseconds.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from metasearch.budget import Coverage
    from metasearch.driver.clean import Cleaned, clean
    from metasearch.driver.launch import Result, resume, run, status, sync
    from metasearch.driver.study import Study, StudyError
    from metasearch.hands import Adapted, Loaded, export, load
    from metasearch.ledger import Ledger
    from metasearch.records import Outcome, Proposal, Report
    from metasearch.space import Choice, Float, Int, Repeat, Space
    from metasearch.track.leaderboard import leaderboard
    from metasearch.trained import Evaluation, Trained, evaluate, restore

_HOME = {
    "Coverage": "budget",
    "Cleaned": "driver.clean", "clean": "driver.clean",
    "Result": "driver.launch", "resume": "driver.launch", "run": "driver.launch",
    "status": "driver.launch", "sync": "driver.launch",
    "Study": "driver.study", "StudyError": "driver.study",
    "Adapted": "hands", "Loaded": "hands", "export": "hands", "load": "hands",
    "Ledger": "ledger",
    "Outcome": "records", "Proposal": "records", "Report": "records",
    "Choice": "space", "Float": "space", "Int": "space", "Repeat": "space", "Space": "space",
    "leaderboard": "track.leaderboard",
    "Evaluation": "trained", "Trained": "trained", "evaluate": "trained", "restore": "trained",
}  # fmt: skip

__all__ = [
    "Adapted", "Choice", "Cleaned", "Coverage", "Evaluation", "Float", "Int", "Ledger", "Loaded", "Outcome", "Proposal", "Repeat",
    "Report", "Result", "Space", "Study", "StudyError", "Trained", "clean", "evaluate", "export", "leaderboard", "load",
    "restore", "resume", "run", "status", "sync",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'metasearch' has no attribute '{name}'")
    return getattr(importlib.import_module(f"metasearch.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
