"""FUNCTIONS WHOSE WEIGHTS LIVE OUTSIDE: a Net is a pair of functions; its weights are an argument, one flat dict.

Keys say what becomes of a tensor: `net/...` is adapted in an inner loop, `net/**/norm/...` is learnt but not adapted,
`stat/...` (statistics of an inductive norm) is neither, and learners add their own (`lr/...`, `arch/...`).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Generator, Tensor

__all__ = ["Net", "NormMode", "Params", "adapted", "learnt"]

Params = dict[str, Tensor]
NormMode = Literal["none", "transductive", "semi", "inductive"]


class Net(NamedTuple):
    """init(generator) -> Params (float32, CPU); apply(params, x [M, ...]) -> [M, D].

    norm: how batch statistics are used when queries are classified. "none": no batch statistics anywhere (layer or group
    norms included); "transductive": those of all queries together; "semi": those of the support set and one query;
    "inductive": those that `stat/` keys hold. `apply` uses the statistics of its own batch as long as no `stat/` key is there.
    features: D without a head, so that a learner may put its own head on.
    """

    init: Callable[[Generator], Params]
    apply: Callable[[Params, Tensor], Tensor]
    norm: NormMode = "none"
    features: int = 0


def learnt(key: str) -> bool:
    """Does the outer loop change it?"""
    return not key.startswith("stat/")


def adapted(key: str) -> bool:
    """Does an inner loop change it?"""
    return key.startswith("net/") and "/norm/" not in key
