"""Ledgers of studies that never ran, written row by row as a driver writes them."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from metasearch.ledger import Ledger, episode_blob

LEARNERS = ("maml", "reptile", "protonet")


def study(name: str = "made", unit: str = "accuracy", **track: Any) -> dict[str, Any]:
    """The body of a ledger's first row."""
    return {
        "study": {
            "name": name, "seed": 0, "space": "maml-family", "method": {"name": "random"}, "tasks": {"name": "glyphs", "ways": 5},
            "budget": {"trials": 10}, "track": {"enabled": True, "uri": None, "top": 2, "pictures": 0, **track},
        },
        "unit": unit, "space_digest": "5" * 16, "data_digest": "d" * 16, "bank_digest": "b" * 16, "bank_episodes": 100,
        "versions": {"torch": "2.13.0"}, "code": "0123456789ab",
    }


def config(number: int, rng: np.random.Generator) -> dict[str, Any]:
    learner = LEARNERS[number % 3]
    made: dict[str, Any] = {
        "learner": learner, "learner.inner_lr": float(10 ** rng.uniform(-3, 0)), "net.width": int(rng.choice([16, 32, 64])),
        "first_order": bool(number % 2),
    }
    if learner == "maml":
        made["learner.inner_steps"] = int(rng.integers(1, 6))
    return made


def propose(
    ledger: Ledger, trial: int, config: dict[str, Any], *, parent: int | None = None, until: int | None = None
) -> dict[str, Any]:
    body = {"config": config, "parent": parent, "until": until, "moved": {}, "seed": 2**60 + trial}
    ledger.append("proposed", body, trial=trial)
    ledger.append("started", {"lane": "0", "process": "p", "attempt": 1, "start": None, "own": False}, trial=trial)
    return body


def report(ledger: Ledger, trial: int, step: int, **metrics: float) -> None:
    ledger.append("report", {"step": step, "metrics": metrics, "score": None, "checkpoint": None, "seconds": 0.5}, trial=trial)


def end(
    ledger: Ledger, trial: int, proposal: dict[str, Any], episodes: np.ndarray | None, *, status: str = "done", step: int = 300,
    checkpoint: str | None = None, metrics: dict[str, float] | None = None,
) -> None:
    done = episodes is not None
    ledger.append(
        "ended",
        {
            "trial": trial, "proposal": proposal, "score": float(np.mean(episodes)) if episodes is not None else None,
            "metrics": {"params": 100_000.0 + trial, "flops": 2.5e7, "norm/transductive": 1.0, **(metrics or {})} if done else {},
            "status": status, "step": step, "reason": None if status == "done" else f"the trial is {status}",
            "seconds": 1.5 + trial, "checkpoint": checkpoint, "elapsed": 9.0,
        },
        trial=trial, blob=None if episodes is None else episode_blob(episodes.tolist()),
    )


def fill(ledger: Ledger, trials: range, *, seed: int = 0, count: int = 100, parcels: Path | None = None) -> None:
    """Random search, as it were: every tenth trial diverges, every eleventh fails."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 0.1, count)
    for trial in trials:
        proposal = propose(ledger, trial, config(trial, rng))
        for step in (100, 200, 300):
            report(ledger, trial, step, train_loss=100 / (step + trial), gradient=0.1)
        scores = np.clip(0.6 + rng.normal(0, 0.05) + hard + rng.normal(0, 0.05, count), 0, 1).astype("<f4")
        if trial % 10 == 0:
            end(ledger, trial, proposal, None, status="diverged", step=200)
        elif trial % 11 == 0:
            end(ledger, trial, proposal, None, status="error", step=100)
        else:
            checkpoint = None
            if parcels is not None:
                checkpoint = str(parcels / str(trial) / "300.safetensors")
                Path(checkpoint).parent.mkdir(parents=True)
                Path(checkpoint).write_bytes(f"parcel of trial {trial}".encode())
            end(ledger, trial, proposal, scores, checkpoint=checkpoint)


def stop(ledger: Ledger) -> None:
    ledger.append("stopped", {"reason": "trials", "coverage": 0.5, "wanted": None, "final": True})


def one_shot(folder: Path, held: dict[str, Any], found: dict[str, Any]) -> None:
    """A study of two searches, of which the second failed; a trial decides what is not the same in `held` and `found`."""
    decides = sorted(key for key in held if held[key] != found[key])
    metrics = {"latency_ms": 0.5, "supernet/score": 0.4, "supernet/rank_correlation": -0.25}
    with Ledger.create(folder / "ledger.sqlite", {**study(folder.name), "held": decides}) as ledger:
        first = propose(ledger, 1, held)
        ledger.append("report", {"step": 5, "metrics": metrics, "score": 0.5, "found": found, "checkpoint": None}, trial=1)
        end(ledger, 1, first, np.linspace(0.4, 0.6, 100).astype("<f4"), step=5, metrics=metrics)
        end(ledger, 2, propose(ledger, 2, held), None, status="error")
        stop(ledger)


def make(
    folder: Path, trials: int, *, stopped: bool = True, unit: str = "accuracy", parcels: bool = False, seed: int = 0
) -> Path:
    """A study's folder with a ledger of so many trials; the folder's name is the study's."""
    with Ledger.create(folder / "ledger.sqlite", study(folder.name, unit)) as ledger, ledger.together():
        fill(ledger, range(1, trials + 1), seed=seed, parcels=folder / "parcels" if parcels else None)
        if stopped:
            stop(ledger)
    return folder
