"""From a mixture to one architecture: what the keys `arch/<dim>` choose among, softly at a temperature, and for good.

Liu, Simonyan, Yang. "DARTS: Differentiable Architecture Search." ICLR 2019. https://arxiv.org/abs/1806.09055 (of the edges
into a node two are kept) · Elsken, Staffler, Metzen, Hutter. "Meta-Learning of Neural Architectures for Few-Shot Learning."
CVPR 2020. https://arxiv.org/abs/1911.11090 (soft pruning, of operations and of pairs of inputs)

Everything here is written for one task and runs under a vmap, so that every task of a batch may have its own architecture.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Generator, Tensor

from metasearch.nets import Params
from metasearch.nets.mixture import SPREAD

__all__ = ["ARCH", "EDGES", "PAIRS", "Choices", "Discrete", "entropy"]

Discrete = Literal["test", "always", "never"]  # when a learner predicts with one architecture rather than with the mixture

ARCH, PAIRS = "arch/", "arch/pairs/"
LEAST = 1e-30  # of a share whose logarithm is taken: far below rounding, far above what float32 can hold


@dataclass(frozen=True)
class Choices:
    """How logits [options] of every dimension become one architecture.

    none:   (dimension, number of its option `none`), for dimensions that have one. It is not chosen where something else is.
    inputs: groups of dimensions, the edges into one node; two of each keep an operation, `none` is all that the others do.
    pairs:  which two. False: those with the largest share of an operation (DARTS). True: a softmax over pairs of inputs
            decides, whose logits `arch/pairs/<number of the group>` [pairs] are learnt beside the others (MetaNAS).
    """

    none: tuple[tuple[str, int], ...] = ()
    inputs: tuple[tuple[str, ...], ...] = ()
    pairs: bool = False

    def __post_init__(self) -> None:
        known = {path for path, _ in self.none}
        lacking = sorted({path for group in self.inputs for path in group} - known)
        if lacking:
            raise ValueError(f"an input that is left out has the operation none, but {', '.join(lacking)} have no such option")

    @classmethod
    def of(
        cls, options: Mapping[str, Sequence[object]], inputs: Sequence[Sequence[str]] = (), *, pairs: bool = False
    ) -> Choices:
        """From the options of every dimension. Dimensions with nothing but `none` have no choice."""
        none = [(k, list(values).index("none")) for k, values in options.items() if "none" in values and len(values) > 1]
        return cls(tuple(none), tuple(tuple(group) for group in inputs), pairs)

    def begin(self, generator: Generator) -> Params:
        """What is learnt beside the mixture's own keys: nearly equal logits for the pairs of every group."""
        if not self.pairs:
            return {}
        return {
            f"{PAIRS}{i}": SPREAD * torch.randn(len(_pairs(group)), generator=generator) for i, group in enumerate(self.inputs)
        }

    def closed(self, arch: Params, *, temperature: float | Tensor, least: float | Tensor) -> Params:
        """The logits with -inf for `none`, and for options whose share at this temperature is below `least`: there is no way
        back, for their gradient is 0. The largest share stays open whatever `least` is."""
        open_ = {k: _without(a, self._none(k)) for k, a in arch.items()}
        return {k: a.masked_fill(~_kept(_shares(a, temperature), least), -torch.inf) for k, a in open_.items()}

    def mixed(self, arch: Params, *, temperature: float | Tensor, least: float | Tensor = 0.0) -> Params:
        """What a net reads from `arch/<dim>` when shares are softmax(logits / temperature), those below `least` left away.

        In a group, an edge's share of `none` is that of the pairs without it, so a node is sum over pairs of p_pair times the
        sum of the pair's two mixed operations (MetaNAS).
        """

        def shared(a: Tensor) -> Tensor:
            share = _shares(a, temperature)
            share = share * _kept(share.detach(), least)
            return share / share.sum(-1, keepdim=True)

        shares = _together(shared, arch)
        found = {k: share for k, share in shares.items() if not k.startswith(PAIRS)}
        for i, group in enumerate(self.inputs if self.pairs else ()):
            with_it, without = _memberships(shares[f"{PAIRS}{i}"], group)
            for j, path in enumerate(group):
                share, none = found[ARCH + path], self._none(ARCH + path)
                place = torch.arange(share.shape[-1], device=share.device) == none
                found[ARCH + path] = torch.where(place, without[j], with_it[j] * share)
        return _together(lambda share: share.clamp(min=LEAST).log(), found)

    def hard(self, arch: Params) -> Params:
        """What a net reads when one option of every dimension is chosen: 0 for it, -inf for all others."""
        chosen, strength = {}, {}
        for k, a in arch.items():
            if k.startswith(PAIRS):
                continue
            kept = _without(a, self._none(k))
            number = kept.argmax(-1)
            chosen[k] = torch.arange(a.shape[-1], device=a.device) == number
            strength[k] = _without(a.softmax(-1), self._none(k)).amax(-1)
        for i, group in enumerate(self.inputs):
            if self.pairs:
                pairs = arch[f"{PAIRS}{i}"]
                best = (torch.arange(pairs.shape[-1], device=pairs.device) == pairs.argmax(-1)).to(pairs.dtype)
                stays = _memberships(best, group)[0] > 0.5
            else:
                stays = _largest(torch.stack([strength[ARCH + path] for path in group]), 2)
            for j, path in enumerate(group):
                one = chosen[ARCH + path]
                nothing = torch.arange(one.shape[-1], device=one.device) == self._none(ARCH + path)
                chosen[ARCH + path] = torch.where(stays[j], one, nothing)
        return {k: torch.zeros_like(arch[k]).masked_fill(~one, -torch.inf) for k, one in chosen.items()}

    def numbers(self, arch: Params) -> dict[str, int]:
        """Of every dimension the number of the option that `hard` chooses."""
        return {k.removeprefix(ARCH): int(a.argmax(-1)) for k, a in self.hard(arch).items()}

    def _none(self, key: str) -> int:
        """The number of a key's option `none`, -1 if it has none."""
        return dict(self.none).get(key.removeprefix(ARCH), -1)


def entropy(logits: Params) -> Tensor:
    """Of the shares, 1 where they are equal, 0 where one has all: the mean over dimensions with a choice."""
    found = []
    for a in logits.values():
        if a.shape[-1] > 1:
            share = a.softmax(-1)
            found.append(torch.special.entr(share).sum(-1) / torch.log(torch.tensor(float(a.shape[-1]))).to(a))
    return torch.stack(found).mean()


EDGES = Choices()  # every dimension for itself


# -- small parts -------------------------------------------------------------------------------------------------------------


def _together(f: Callable[[Tensor], Tensor], tensors: Params) -> Params:
    """f of every tensor [options], called once for all that have equally many: f works on [n, options]."""
    sizes: dict[int, list[str]] = {}
    for k, v in tensors.items():
        sizes.setdefault(v.shape[-1], []).append(k)
    found = {
        k: v for keys in sizes.values()
        for k, v in zip(keys, f(torch.stack([tensors[k] for k in keys])).unbind(0), strict=True)
    }
    return {k: found[k] for k in tensors}


def _shares(a: Tensor, temperature: float | Tensor) -> Tensor:
    return (a / temperature).softmax(-1)


def _kept(share: Tensor, least: float | Tensor) -> Tensor:
    return (share >= least) | (share >= share.amax(-1, keepdim=True))


def _without(a: Tensor, number: int) -> Tensor:
    return a if number < 0 else a.masked_fill(torch.arange(a.shape[-1], device=a.device) == number, -torch.inf)


def _pairs(group: Sequence[str]) -> list[tuple[int, ...]]:
    """Which inputs each pair has; all of them where there are no more than two."""
    return list(combinations(range(len(group)), min(2, len(group))))


def _memberships(shares: Tensor, group: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Of every input of a group, [n] each: the shares of the pairs with it, and of those without it."""
    pairs = _pairs(group)
    inside = torch.tensor([[i in pair for pair in pairs] for i in range(len(group))], device=shares.device).to(shares.dtype)
    return (shares * inside).sum(-1), (shares * (1 - inside)).sum(-1)


def _largest(strength: Tensor, count: int) -> Tensor:
    """Whether each of [n] is among the `count` largest; of equal ones the first."""
    place = torch.arange(strength.shape[-1], device=strength.device)
    equal_before = (strength[None, :] == strength[:, None]) & (place[None, :] < place[:, None])
    return ((strength[None, :] > strength[:, None]) | equal_before).sum(-1) < count
