"""FUNCTIONS WHOSE WEIGHTS LIVE OUTSIDE: a Net is a pair of functions; its weights are an argument, one flat dict.

Keys say what becomes of a tensor: `net/...` is adapted in an inner loop, `net/**/norm/...` is learnt but not adapted,
`stat/...` (statistics of an inductive norm) is neither, and learners add their own (`lr/...`, `arch/...`).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Generator, Tensor
from torch.nn.functional import linear

__all__ = ["Apply", "Net", "NormMode", "Params", "adapted", "learnt"]

Params = dict[str, Tensor]
NormMode = Literal["none", "transductive", "semi", "inductive"]


Apply = Callable[[Params, Tensor], Tensor]


class Net(NamedTuple):
    """init(generator) -> Params (float32, CPU); apply(params, x [M, ...]) -> [M, D].

    norm: how batch statistics are used when queries are classified. "none": no batch statistics anywhere (layer or group
    norms included); "transductive": those of all queries together; "semi": those of the support set and one query;
    "inductive": those that `stat/` keys hold. `apply` uses the statistics of its own batch as long as no `stat/` key is there.
    features: D without a head, so that a learner may put its own head on.
    body, head: where a net ends in a linear layer `net/head/...`, apply(params, x) = head(params, body(params, x)); body reads
    no key of the head. None where there is no such layer.
    """

    init: Callable[[Generator], Params]
    apply: Apply
    norm: NormMode = "none"
    features: int = 0
    body: Apply | None = None
    head: Apply | None = None

    @classmethod
    def of(cls, init: Callable[[Generator], Params], body: Apply, *, headed: bool, norm: NormMode, features: int) -> Net:
        """A body [M, *x] -> [M, features] with a linear layer (`net/head/weight`, `net/head/bias`) behind it, or without."""
        if not headed:
            return cls(init, body, norm, features)
        return cls(init, lambda params, x: _head(params, body(params, x)), norm, features, body, _head)


def _head(params: Params, z: Tensor) -> Tensor:
    return linear(z, params["net/head/weight"], params["net/head/bias"])


def learnt(key: str) -> bool:
    """Does the outer loop change it?"""
    return not key.startswith("stat/")


def adapted(key: str) -> bool:
    """Does an inner loop change it?"""
    return key.startswith("net/") and "/norm/" not in key
