"""Parts of tests of the director: a study of the counting method, lanes that are calls, a strategy that says a list."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metasearch.driver.director import Director
from metasearch.driver.messages import Assignment, Ending, Line
from metasearch.driver.study import Study
from metasearch.ledger import Ledger
from metasearch.records import Proposal
from metasearch.strategies import Strategy

HERE = Path(__file__).parent.parent / "system"


def study(trials: int | None = 5, *, space: Path = HERE / "counting_space.py", **tables: Any) -> Study:
    """A study of the counting method; `method` may hold an inner strategy."""
    method = {"name": str(HERE / "counting.py"), "parcels": False, **tables.pop("method", {})}
    budget = tables.pop("budget", {"trials": trials})
    driver = {"kind": "local", **tables.pop("driver", {})}
    told = {"method": method, "budget": budget, "driver": driver, "track": {"enabled": False}, **tables}
    return Study.from_json({"name": "t", "space": str(space), **told})


def kill(director: Director) -> None:
    """What kill -9 leaves behind: nothing is closed in order."""
    director.ledger.close()
    director._lock.close()


def done(said: Assignment, score: float | None = None) -> Ending:
    value = float(said.proposal.config["x"]) if score is None else score  # type: ignore[arg-type]
    blob = np.float32([value - 1, value + 1]).tobytes()
    step = said.proposal.until or 3
    return Ending(said.trial, "done", score=value, metrics={"loss": 0.5}, step=step, seconds=1.0, episodes=blob, chunk=said.chunk)


def line(step: int, checkpoint: str | None = None) -> Line:
    return Line(step, {"loss": 1.0 / step}, 0.5, checkpoint, None, time.time(), float(step))


def to_the_end(director: Director, lane: str = "a", process: str = "1", judge: Any = done, said: Any = None) -> list[int]:
    """Works as one lane until there is nothing more; the numbers of the trials it ran."""
    ran = []
    said = director.next(lane, process) if said is None else said
    while isinstance(said, Assignment):
        ran.append(said.trial)
        said = director.next(lane, process, judge(said))
    assert said is None
    return ran


def rows(folder: Path, *kinds: str) -> list[Any]:
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        return list(ledger.rows(kinds=kinds or None))


class Scripted(Strategy):
    """Proposes a list."""

    inherits = False

    def __init__(self, proposals: list[Proposal], *, children: bool = False) -> None:
        self.script = list(proposals)
        self.told: list[tuple[int, str, float | None]] = []
        self.children = children  # type: ignore[misc]

    def ask(self) -> Proposal | None:
        if self.script and self.script[0].parent is None and self.closed:
            return None
        return self.script.pop(0) if self.script else None

    def tell(self, outcome: Any) -> None:
        self.told.append((outcome.trial, outcome.status, outcome.score))


def config(x: int) -> dict[str, Any]:
    return {"x": x, "y": 0, "kind": "a"}


def scripted(folder: Path, script: list[Proposal], monkeypatch: pytest.MonkeyPatch, trials: int = 5, **more: Any) -> Director:
    monkeypatch.setattr(Study, "strategy", lambda self: Scripted(list(script), **more))
    return Director(study(trials), folder)


INNER = {
    "random": {"name": "random"},
    "grid": {"name": "grid"},
    "tpe": {"name": "tpe"},
    "asha": {"name": "asha", "min_steps": 1, "max_steps": 9, "eta": 3},
}
