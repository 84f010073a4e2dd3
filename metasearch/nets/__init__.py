"""FUNCTIONS WHOSE WEIGHTS LIVE OUTSIDE: a Net is a pair of functions; its weights are an argument, one flat dict.

Keys say what becomes of a tensor: `net/...` is adapted in an inner loop, `net/**/norm/...` is learnt but not adapted,
`stat/...` (statistics of an inductive norm) is neither, and learners add their own (`lr/...`, `arch/...`): learnt, not adapted,
but for an architecture where a learner says so (MetaNAS, T-NAS).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from torch import Generator, Tensor
from torch.nn.functional import linear

__all__ = ["Apply", "Block", "Net", "NormMode", "Params", "adapted", "learnt"]

Params = dict[str, Tensor]
NormMode = Literal["none", "transductive", "semi", "inductive"]


Apply = Callable[[Params, Tensor], Tensor]


class Block(NamedTuple):
    """One layer of a net: its keys are `net/<key>/...`; apply(params, x) -> the next layer's x."""

    key: str
    apply: Apply


class Net(NamedTuple):
    """init(generator) -> Params (float32, CPU); apply(params, x [M, ...]) -> [M, D].

    norm: how batch statistics are used when queries are classified. "none": no batch statistics anywhere (layer or group
    norms included); "transductive": those of all queries together; "semi": those of the support set and one query;
    "inductive": those that `stat/` keys hold. `apply` uses the statistics of its own batch as long as no `stat/` key is there.
    features: D without a head, so that a learner may put its own head on. maps: (C, H, W) with C * H * W = features where the
    features are feature maps laid flat; None for vectors.
    outputs: of the linear layer `net/head/...` in which the net ends; 0 where there is none.
    body, head: with such a layer, apply(params, x) = head(params, body(params, x)); body reads no key of the head. None without.
    blocks: the body as a chain of layers, first to last, for learners that treat layers one by one; empty if it is no chain.
    """

    init: Callable[[Generator], Params]
    apply: Apply
    norm: NormMode = "none"
    features: int = 0
    body: Apply | None = None
    head: Apply | None = None
    outputs: int = 0
    maps: tuple[int, int, int] | None = None
    blocks: tuple[Block, ...] = ()

    @classmethod
    def of(
        cls, init: Callable[[Generator], Params], blocks: Sequence[Block], *, outputs: int | None, norm: NormMode,
        features: int, maps: tuple[int, int, int] | None = None,
    ) -> Net:
        """A chain of blocks [M, *x] -> [M, features], with a linear layer (`net/head/weight`, `net/head/bias`) behind it if
        there are outputs."""
        chain = tuple(blocks)

        def body(params: Params, x: Tensor) -> Tensor:
            for block in chain:
                x = block.apply(params, x)
            return x

        if outputs is None:
            return cls(init, body, norm, features, maps=maps, blocks=chain)

        def whole(params: Params, x: Tensor) -> Tensor:
            return _head(params, body(params, x))

        return cls(init, whole, norm, features, body, _head, outputs, maps, chain)

    @property
    def embed(self) -> Apply:
        """[M, *x] -> [M, features], whether or not there is a head behind it."""
        return self.body or self.apply


def _head(params: Params, z: Tensor) -> Tensor:
    return linear(z, params["net/head/weight"], params["net/head/bias"])


def learnt(key: str) -> bool:
    """Does the outer loop change it?"""
    return not key.startswith("stat/")


def adapted(key: str) -> bool:
    """Does an inner loop change it?"""
    return key.startswith("net/") and "/norm/" not in key
