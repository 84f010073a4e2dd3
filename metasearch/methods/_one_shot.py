"""What the methods share that search in one net which holds all architectures (metasearch/objectives/one_shot.py)."""
from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from metasearch.methods import Study


@dataclass(frozen=True, kw_only=True)
class Halved:
    """search_steps: outer steps of the search; None: those of the space's supernet. `train.steps` are those of what is found.
    share:        of the training classes, for the weights; the architecture is judged on the others. Published: half of them.
    """

    search_steps: int | None = None
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Checked(Halved):
    """check: so many random architectures are trained for `check_steps`, to see whether the supernet ranks them rightly; 0: none.
    finalists: so many architectures are trained for `check_steps`, and the best by itself is taken: those that shared weights
                  score best; of a mixture its strongest, and others drawn from its shares. 1: the choice is left to the supernet
                  (DARTS as published: one of each of four searches).
    """

    check: int = 8
    check_steps: int = 50
    finalists: int = 1


def arguments(study: Study, module: ModuleType, dims: tuple[str, ...], given: Checked) -> dict[str, Any]:
    """What every OneShot is built with. module, dims: of `relaxation`."""
    return {
        "train": study.training(), "relaxed": module.relaxed, "space": study.space(), "dims": dims, "steps": given.search_steps,
        "share": given.share, "check": given.check, "check_steps": given.check_steps, "finalists": given.finalists,
        "canonical": getattr(module, "canonical", None),
    }
