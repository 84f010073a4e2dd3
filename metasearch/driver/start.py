"""`[train] start = "STUDY/NUMBER"`: every trial begins with the weights of a trial of another study, pre-trained ones, say.

The weights are copied into the new study's folder before its first trial, as a parcel of step 0: whatever becomes of the other
study, this one can be resumed. Trials inherit every tensor of the same key and shape (objectives/parcel.py: inherit), from
`net/...` to what a learner adds; all others begin as they are drawn, and so do the outer optimiser and the count of steps.
"""
from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metasearch.home import parcel_path, study_folder
from metasearch.ledger import Ledger, LedgerError

if TYPE_CHECKING:
    from torch import Tensor

    from metasearch.driver.study import Study

__all__ = ["PARCEL", "fetch", "problems"]

PARCEL = "start.safetensors"  # in the study's folder
TRIES, PATIENCE = 100, 2.0  # configurations (and seconds) before it is said that none inherits anything


def fetch(study: Study, home: Path, folder: Path) -> None:
    """Writes the study's PARCEL, if it has a `train.start`. Raises ValueError, parcel.BadParcel."""
    if study.train.start is not None:
        from metasearch.objectives import parcel

        tensors = {f"meta/{k}": v for k, v in weights(study.train.start, home).items()}
        parcel.write(folder / PARCEL, tensors, {"step": 0, "of": study.train.start})


def problems(study: Study, home: Path) -> list[str]:
    """Every reason, in words, why the study cannot begin with those weights."""
    if study.train.start is None:
        return []
    from metasearch.objectives.parcel import BadParcel
    from metasearch.objectives.train import Train

    where = f"train.start = '{study.train.start}'"
    try:
        theirs, objective = weights(study.train.start, home), study.objective()
    except (ValueError, OSError, LedgerError, BadParcel) as error:
        return [f"{where}: {error}"]
    if not isinstance(objective, Train):
        return [f"{where}: a trial of method '{study.method.name}' is a search of its own, which begins at nothing."]
    return [f"{where}: {problem}" for problem in _strange(study, objective, theirs)]


def weights(reference: str, home: Path) -> dict[str, Tensor]:
    """What the trial had learnt, by key: the weights of its score. Raises ValueError, parcel.BadParcel."""
    from metasearch.objectives import parcel

    name, slash, number = reference.rpartition("/")
    if not (slash and number.isascii() and number.isdecimal()):
        raise ValueError("a trial is named STUDY/NUMBER, such as pretraining/12")
    folder = study_folder(name, home)
    if not (folder / "ledger.sqlite").is_file():
        raise ValueError(f"there is no study '{name}' in {home}")
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        row = ledger.trials().get(int(number))
    if row is None:
        raise ValueError(f"study '{name}' has no trial {number}")
    path = None if row.checkpoint is None else parcel_path(folder, row.checkpoint)
    if row.status not in ("done", "reused") or path is None or not path.is_file():
        raise ValueError(f"the trial is {row.status} and has no weights to begin with. Choose one that is done and was not "
                         f"cleaned: metasearch leaderboard {name}")
    tensors, _ = parcel.read(path)
    prefix = parcel.scored(tensors, {} if row.outcome is None else row.outcome.metrics)
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _strange(study: Study, objective: object, theirs: dict[str, Tensor]) -> list[str]:
    """A problem, if no configuration has a tensor to inherit: every trial would begin at nothing, and nobody would notice."""
    from torch import Generator

    from metasearch.objectives import Infeasible
    from metasearch.objectives.train import Train

    assert isinstance(objective, Train)
    until, own = time.monotonic() + PATIENCE, {}
    for seed in range(TRIES):
        try:
            with contextlib.redirect_stdout(sys.stderr):
                recipe = objective.built(study.space().sample(np.random.default_rng(seed)))
                own = recipe.learner.init(recipe.net, Generator().manual_seed(0))
        except Infeasible:
            continue
        except (Exception, SystemExit):
            return []  # a config that breaks its recipe is a failed trial, not a wrong study
        if any(k in theirs and theirs[k].shape == v.shape for k, v in own.items() if v.dim() > 1):  # a bias is no knowledge
            return []
        if time.monotonic() > until:
            return []
    told, wanted = (", ".join(f"{k} {list(v.shape)}" for k, v in sorted(some.items()) if v.dim() > 1) for some in (theirs, own))
    return [f"nothing of it fits: its weights are {told[:400]}, but a trial here has {wanted[:400]}."]
