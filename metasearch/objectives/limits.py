"""From a mixture's logits to architectures that keep a study's [limits]: the strongest, and others drawn from its shares.

A search that ended in an architecture beyond a limit would be lost, for nothing of it has been trained by itself. So the weakest
of its decisions give way. One that cannot end otherwise is refused before it begins.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch

from metasearch import measure
from metasearch.nets import Params
from metasearch.nets.discrete import ARCH
from metasearch.objectives import Infeasible
from metasearch.objectives.train import Train
from metasearch.objectives.training import generator, to
from metasearch.records import Config
from metasearch.space import digest

__all__ = ["Canonical", "candidates", "excess", "looks", "meaning", "some_within"]

Canonical = Callable[[Config], Config]  # of a space's file: the one representative of all configs that mean the same

FAR = 40.0  # what is taken from the logits of stronger options
TRIES = 100  # draws in a row that may bring nothing new
STARTS = 3  # architectures at random from which one within the limits is sought


def excess(train: Train, config: Config) -> float:
    """By which part of a limit an architecture is beyond it, the worst of all limits; <= 0: it keeps them. Infinite for what
    cannot be built."""
    if not train.limits:
        return -1.0
    found = _measured(train, config)
    return max((found[name] - most) / max(abs(most), 1e-12) for name, most in train.limits.items()) if found else math.inf


def _measured(train: Train, config: Config) -> dict[str, float]:
    """What the study limits, of one architecture; {} for what cannot be built."""
    try:
        return looks(train, config)
    except Infeasible:
        return {}


def looks(train: Train, config: Config) -> dict[str, float]:
    """What a study's limits are about, of the architecture of a config. Raises Infeasible for what cannot be built."""
    recipe, device = train.built(config), train.tasks.device
    meta = to(recipe.learner.init(recipe.net, generator(0, "init")), device)
    each: dict[str, Callable[[], float]] = {
        "params": lambda: measure.parameters(meta), "flops": lambda: measure.flops(recipe.net, meta, train.shape.x),
        "latency_ms": lambda: measure.latency(recipe.net, meta, torch.zeros(1, *train.shape.x, device=device)),
    }
    return {name: float(each[name]()) for name in train.limits}


def some_within(
    found: Callable[[Params], Config], logits: Params, options: Mapping[str, Sequence[Any]], train: Train, *, none: bool = False
) -> Config:
    """Any architecture that keeps the study's limits, by the decisions that bring random ones nearer to them.

    logits: whatever they are, only their shapes count. none: whether `none` may be chosen.
    Raises Infeasible, with what comes nearest, where there seems to be none: a search would be lost at its end.
    """
    noise, nearest = generator(0, "some within"), list[tuple[float, Config]]()
    for _ in range(STARTS):
        start = {k: torch.randn(v.shape, generator=noise) for k, v in logits.items()}
        config = found(_within(found, start, options, lambda one: excess(train, one), none=none)[0])
        if (far := excess(train, config)) <= 0:
            return config
        nearest.append((far, config))
    least = _measured(train, min(nearest, key=itemgetter(0))[1])
    said = ", ".join(f"{name} {least[name]:g}, and the limit is {most:g}" for name, most in train.limits.items()
                     if name in least and least[name] > most)
    raise Infeasible(
        "no architecture that was looked at keeps the study's limits: the nearest "
        f"{f'has {said}' if said else 'cannot be built'}. Raise the limit, or let the space offer what fits", least,
    )


def meaning(config: Config, canonical: Canonical | None) -> str:
    """Equal for configs that mean the same."""
    try:
        return digest(config if canonical is None else canonical(dict(config)))
    except Exception:  # a mistake in the space's file, which the driver logs: this config then stands for itself
        return digest(config)


def candidates(
    found: Callable[[Params], Config], logits: Params, options: Mapping[str, Sequence[Any]], train: Train, count: int = 1,
    seed: int = 0, canonical: Canonical | None = None,
) -> tuple[list[Config], int]:
    """(the architecture of these logits and up to count - 1 others, within the study's limits; so many decisions gave way for
    the first): fewer where TRIES draws in a row bring no other one. The others are drawn from the shares, option by option, so
    that they differ where the mixture is undecided: with Gumbel noise on the logits the largest one is that of an option with the
    probability of its share.

    found: from logits `arch/<dim>` [options] to an architecture. Where no change helps the first, another takes its place; it is
    returned, beyond a limit, only if none of those that are drawn keeps them. No two of them mean the same (`canonical`).
    """
    known = dict[str, float]()

    def beyond(config: Config) -> float:
        if (key := digest(config)) not in known:
            known[key] = excess(train, config)
        return known[key]

    kept, gave_way = _within(found, logits, options, beyond)
    first = found(kept)
    chosen = {meaning(first, canonical): first} if beyond(first) <= 0 else {}
    noise, misses = generator(seed, "finalists"), 0
    while len(chosen) < count and misses < TRIES:
        drawn = {k: v - torch.empty(v.shape).exponential_(generator=noise).log().to(v) for k, v in logits.items()}
        config = found(_within(found, drawn, options, beyond)[0])
        new = beyond(config) <= 0 and (name := meaning(config, canonical)) not in chosen
        misses = 0 if new else misses + 1
        if new:
            chosen[name] = config
    return list(chosen.values()) or [first], gave_way


def _within(
    found: Callable[[Params], Config], logits: Params, options: Mapping[str, Sequence[Any]], beyond: Callable[[Config], float],
    *, none: bool = False,
) -> tuple[Params, int]:
    """(logits whose architecture keeps the limits, so many decisions gave way): of the changes after which it is less far beyond
    them, always the one that costs the least."""
    gave_way = 0
    while (far := beyond(config := found(logits))) > 0:
        by_cost = sorted(_changed(logits, config, options, none=none), key=itemgetter(0))
        better = next((other for _, other in by_cost if beyond(found(other)) < far), None)
        if better is None:
            break
        logits, gave_way = better, gave_way + 1
    return logits, gave_way


def _changed(
    logits: Params, config: Config, options: Mapping[str, Sequence[Any]], *, none: bool
) -> Iterator[tuple[float, Params]]:
    """(what it costs, the logits) of every change of one decision to a weaker option. Where nothing is chosen, nothing is
    weaker."""
    for path, values in options.items():
        key = f"{ARCH}{path}"
        mine = float(logits[key][list(values).index(config[path])])
        for v, value in zip(logits[key].tolist(), values, strict=True):
            if mine - FAR / 2 < v < mine and (none or "none" not in (value, config[path])):
                yield mine - v, {**logits, key: torch.where(logits[key] > v, logits[key] - FAR, logits[key])}
