"""An autoregressive LSTM controller: a distribution over the configs of any discretisable space, as functions on a dict.

Zoph, Le. "Neural Architecture Search with Reinforcement Learning." ICLR 2017. https://arxiv.org/abs/1611.01578 (section 3)

It walks `space.active(config)`: what is embedded is the decision before, and each *kind* of decision has a softmax layer of
its own. A kind is a path without the numbers of Repeat's items, so that all layers of a net share weights (`layers.*.width`)
and only the state of the LSTM tells them apart. Decisions with one option are not decided.

Anchor points (section 3.3): in a Repeat whose bodies are a tuple, `skip_<j>: Choice((False, True))` in the body of item i > j
says whether item i takes item j's output. All skips of an item are decided at one step of the LSTM, its anchor:
P(j -> i) = sigmoid(v' tanh(W_prev h_j + W_curr h_i)), with the states h at the anchors. The next input is then the mean of a
learnt vector and the h_j that were chosen, as in ENAS (https://arxiv.org/abs/1802.03268).
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import linear, logsigmoid

from metasearch.records import Config, Value
from metasearch.space import Choice, Float, Int, Leaf, Repeat, Space

__all__ = ["MOST_OPTIONS", "Controller", "Plan", "Weights", "discretised", "one_thread"]

Weights = dict[str, Tensor]
State = tuple[Tensor, Tensor]  # h and c of a layer, [m, H] each
MOST_OPTIONS = 64  # of an Int; one with more needs bins
START, ANCHOR = 0, 1  # rows of the embedding: before the first decision, and after a decision about skips
ITEM = re.compile(r"\.\d+(?=\.)")
SKIP = re.compile(r"(.+)\.(\d+)\.skip_(\d+)")


class Plan(NamedTuple):
    """What a config is to the LSTM: lists that are filled while it is walked. A step is a number of a step of the LSTM."""

    inputs: list[int]  # of every step: a row of the embedding
    mixes: list[tuple[int, ...]]  # of every step: the anchors whose states are averaged with that row
    softmaxes: list[tuple[int, int, int]]  # (step, kind, option)
    skips: list[tuple[int, int, int]]  # (anchor of item i, anchor of item j, whether i takes j's output)


Choose = Callable[[Plan, int | tuple[int, int], str, Leaf], int]
# (the plan so far, a kind or the two anchors of a skip, path, decision) -> number of the option


@dataclass(frozen=True)
class Controller:
    """hidden, layers: of the LSTM; embeddings have `hidden` entries too. spread: weights begin uniform in +-spread.

    temperature, clip: logits are divided by the one, and become clip * tanh(logits) (ENAS) where clip is above 0.

        controller = Controller(space)
        weights = controller.init(torch.Generator().manual_seed(0))
        config, plan, log_prob = controller.sample(weights, rng)
        log_probs, entropies = controller.log_probs(weights, [plan])  # [m] each, with gradients
    """

    space: Space  # a finite one, see `discretised`
    hidden: int = 35
    layers: int = 2
    spread: float = 0.08
    temperature: float = 1.0
    clip: float = 0.0
    kinds: tuple[tuple[str, Leaf], ...] = field(init=False, repr=False)
    _numbers: Mapping[tuple[str, Leaf], int] = field(init=False, repr=False)
    _marked: tuple[str, ...] = field(init=False, repr=False)  # paths of Repeats with anchors

    def __post_init__(self) -> None:
        kinds: dict[tuple[str, Leaf], int] = {}
        marked: dict[str, None] = {}
        for path, leaf in self.space.columns():
            if found := _skip(path, leaf):
                marked[found[0]] = None
            elif _options(leaf) > 1:
                kinds.setdefault((ITEM.sub(".*", path), leaf), len(kinds))
        object.__setattr__(self, "kinds", tuple(kinds))
        object.__setattr__(self, "_numbers", kinds)
        object.__setattr__(self, "_marked", tuple(marked))

    # -- weights -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _rows(self) -> list[int]:
        """The first row of the embedding that belongs to each kind."""
        rows = [2]
        for _, leaf in self.kinds:
            rows.append(rows[-1] + _options(leaf))
        return rows

    def init(self, generator: Generator) -> Weights:
        """float64, on the CPU."""

        def uniform(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float64).uniform_(-self.spread, self.spread, generator=generator)

        size = self.hidden
        weights = {"embedding": uniform(self._rows[-1], size)}
        for layer in range(self.layers):
            weights |= {
                f"lstm{layer}/weight_x": uniform(4 * size, size), f"lstm{layer}/weight_h": uniform(4 * size, size),
                f"lstm{layer}/bias": uniform(4 * size),
            }
        for kind, (_, leaf) in enumerate(self.kinds):
            options = _options(leaf)
            weights |= {f"softmax{kind}/weight": uniform(options, size), f"softmax{kind}/bias": uniform(options)}
        if self._marked:
            weights |= {f"anchor/{name}": uniform(size, size) for name in ("previous", "current")}
            weights["anchor/v"] = uniform(size)
        return weights

    # -- the walk ----------------------------------------------------------------------------------------------------------

    def _walk(self, choose: Choose) -> tuple[Config, Plan]:
        """Makes a config, decision by decision, and the plan of it."""
        config: Config = {}
        plan = Plan([], [], [], [])
        anchors: dict[str, dict[int, int]] = {path: {} for path in self._marked}  # item -> the step of its anchor
        row, inside = START, None
        mix: tuple[int, ...] = ()

        def step() -> int:
            plan.inputs.append(row)
            plan.mixes.append(mix)
            return len(plan.inputs) - 1

        for path, leaf in self.space.active(config):
            if self._marked:
                left, inside = inside, self._item(path)
                if left is not None and left != inside and left[1] not in anchors[left[0]]:  # an item without skips
                    anchors[left[0]][left[1]] = step()
                    row, mix = ANCHOR, ()
            if found := _skip(path, leaf):
                repeat, item, earlier = found
                for number in range(item + 1):  # an item before it may have had nothing to decide
                    if number not in anchors[repeat]:
                        anchors[repeat][number] = step()
                        row, mix = ANCHOR, ()
                here, there = anchors[repeat][item], anchors[repeat][earlier]
                option = choose(plan, (here, there), path, leaf)
                plan.skips.append((here, there, option))
                mix = (*mix, there) if option else mix
            elif _options(leaf) == 1:
                option = 0
            else:
                kind = self._numbers[ITEM.sub(".*", path), leaf]
                at = step()
                option = choose(plan, kind, path, leaf)
                plan.softmaxes.append((at, kind, option))
                row, mix = self._rows[kind] + option, ()
            config[path] = leaf.values[option] if isinstance(leaf, Choice) else leaf.low + option
        return config, plan

    def _item(self, path: str) -> tuple[str, int] | None:
        for repeat in self._marked:
            if path.startswith(f"{repeat}.") and (number := path[len(repeat) + 1:].partition(".")[0]).isdecimal():
                return repeat, int(number)
        return None

    def plan(self, config: Mapping[str, Value]) -> Plan:
        """Raises ValueError for a config that is not of the space."""
        self.space.validate(config)
        return self._walk(lambda plan, asked, path, leaf: _rank(leaf, config[path]))[1]

    # -- probabilities -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, weights: Weights, rng: np.random.Generator) -> tuple[Config, Plan, float]:
        """A config, its plan and the logarithm of its probability."""
        states: list[Tensor] = []  # of the last layer, [1, H] each
        lstm = self._zeros(1)
        total = 0.0

        def choose(plan: Plan, asked: int | tuple[int, int], path: str, leaf: Leaf) -> int:
            nonlocal lstm, total
            for at in range(len(states), len(plan.inputs)):
                x = weights["embedding"][plan.inputs[at]][None]
                if plan.mixes[at]:
                    x = (x + sum(states[i] for i in plan.mixes[at])) / (1 + len(plan.mixes[at]))
                lstm = self._stepped(weights, x, lstm)
                states.append(lstm[-1][0])
            if isinstance(asked, int):
                logs = self._logits(weights, asked, states[-1])[0].log_softmax(0)
            else:
                score = self._score(weights, states[asked[0]], states[asked[1]])
                logs = torch.cat([logsigmoid(-score), logsigmoid(score)])
            known = logs.tolist()
            option, u = 0, rng.random()
            while option < len(known) - 1 and (u := u - math.exp(known[option])) >= 0:
                option += 1
            total += known[option]
            return option

        config, plan = self._walk(choose)
        return config, plan, total

    def log_probs(self, weights: Weights, plans: Sequence[Plan]) -> tuple[Tensor, Tensor]:
        """log P of every config [m], and the sum of the entropies of the decisions on its way [m]."""
        m, steps = len(plans), max((len(plan.inputs) for plan in plans), default=0)
        log_prob = torch.zeros(m, dtype=torch.float64)
        entropy = torch.zeros(m, dtype=torch.float64)
        if not steps:
            return log_prob, entropy
        h = self._states(weights, plans, steps)
        made = torch.tensor([(row, *one) for row, plan in enumerate(plans) for one in plan.softmaxes]).reshape(-1, 4)
        for kind in sorted({kind for plan in plans for _, kind, _ in plan.softmaxes}):
            row, at, _, option = made[made[:, 2] == kind].unbind(1)
            logs = self._logits(weights, kind, h[row, at]).log_softmax(-1)  # [n, options]
            log_prob = log_prob.index_add(0, row, logs.gather(1, option[:, None])[:, 0])
            entropy = entropy.index_add(0, row, -(logs.exp() * logs).sum(1))
        skips = [(row, *one) for row, plan in enumerate(plans) for one in plan.skips]
        if skips:
            row, here, there, taken = torch.tensor(skips).unbind(1)
            score = self._score(weights, h[row, here], h[row, there])  # [n]
            yes, no = logsigmoid(score), logsigmoid(-score)
            log_prob = log_prob.index_add(0, row, torch.where(taken == 1, yes, no))
            entropy = entropy.index_add(0, row, -(yes.exp() * yes + no.exp() * no))
        return log_prob, entropy

    def skip_divergence(self, weights: Weights, plans: Sequence[Plan], rate: float) -> Tensor:
        """How far the skip connections of every config are from being drawn with probability `rate`, [m]: KL(p || rate), summed
        over the skips of an item and averaged over the items that have some, as in the code of ENAS. 0 without skips."""
        steps = max((len(plan.inputs) for plan in plans), default=0)
        found = torch.zeros(len(plans), dtype=torch.float64)
        skips = [(row, here, there) for row, plan in enumerate(plans) for here, there, _ in plan.skips]
        if not skips:
            return found
        h = self._states(weights, plans, steps)
        row, here, there = torch.tensor(skips).unbind(1)
        score = self._score(weights, h[row, here], h[row, there])  # [n]
        yes, no = logsigmoid(score), logsigmoid(-score)
        divergence = yes.exp() * (yes - math.log(rate)) + no.exp() * (no - math.log(1 - rate))
        items = torch.tensor([max(1, len({here for here, _, _ in plan.skips})) for plan in plans])
        return found.index_add(0, row, divergence) / items

    def _states(self, weights: Weights, plans: Sequence[Plan], steps: int) -> Tensor:
        """Of the last layer after every step, [m, steps, H]; what is behind the end of a shorter plan is never read."""
        inputs = torch.tensor([plan.inputs + [START] * (steps - len(plan.inputs)) for plan in plans])
        embedded = weights["embedding"][inputs]  # [m, steps, H]
        lstm = self._zeros(len(plans))
        states: list[Tensor] = []
        for at in range(steps):
            x = embedded[:, at]
            mixed = [(row, plan.mixes[at]) for row, plan in enumerate(plans) if at < len(plan.mixes) and plan.mixes[at]]
            if mixed:
                share = torch.zeros(len(plans), at, dtype=torch.float64)
                for row, chosen in mixed:
                    share[row, list(chosen)] = 1.0
                x = (x + (share[:, :, None] * torch.stack(states, 1)).sum(1)) / (1 + share.sum(1, keepdim=True))
            lstm = self._stepped(weights, x, lstm)
            states.append(lstm[-1][0])
        return torch.stack(states, 1)

    def _zeros(self, m: int) -> list[State]:
        zeros = torch.zeros(m, self.hidden, dtype=torch.float64)
        return [(zeros, zeros)] * self.layers

    def _stepped(self, weights: Weights, x: Tensor, state: list[State]) -> list[State]:
        """x [m, H], one (h, c) a layer -> the next ones. Hochreiter, Schmidhuber, 1997; gates in the order i, f, g, o."""
        after: list[State] = []
        for layer, (h, c) in enumerate(state):
            gates = linear(x, weights[f"lstm{layer}/weight_x"], weights[f"lstm{layer}/bias"])
            i, f, g, o = (gates + linear(h, weights[f"lstm{layer}/weight_h"])).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            after.append((x, c))
        return after

    def _logits(self, weights: Weights, kind: int, h: Tensor) -> Tensor:
        """[n, H] -> [n, options of the kind]."""
        return self._squashed(linear(h, weights[f"softmax{kind}/weight"], weights[f"softmax{kind}/bias"]))

    def _score(self, weights: Weights, here: Tensor, there: Tensor) -> Tensor:
        """States [n, H] at the anchors of items i and j -> logits [n] of j -> i."""
        mixed = (linear(there, weights["anchor/previous"]) + linear(here, weights["anchor/current"])).tanh()
        return self._squashed(mixed @ weights["anchor/v"])

    def _squashed(self, logits: Tensor) -> Tensor:
        logits = logits / self.temperature
        return self.clip * logits.tanh() if self.clip else logits


def discretised(space: Space, bins: int | None, strategy: str) -> Space:
    """The finite space that a controller decides over: the same paths, a Float or a wide Int only with `bins` values.

    Raises ValueError that names every dimension that is too fine, and the methods that need no bins.
    """
    if bins is not None and bins < 2:
        raise ValueError(f"`bins >= 2` must hold, but got bins={bins}")
    if bins is None:
        fine = dict.fromkeys(ITEM.sub(".*", path) for path, leaf in space.columns() if _too_fine(path, leaf))
        if fine:
            named = ", ".join(f"'{path}'" for path in fine)
            raise ValueError(
                f"{strategy} decides between options, but has more than {MOST_OPTIONS} values to decide between in {named}. "
                "Set `bins` (how many of them it tells apart), or use tpe, cma-es, gp or regularized-evolution."
            )
    return Space({name: _coarse(dim, bins) for name, dim in space.dims.items()})


def _too_fine(path: str, leaf: Leaf) -> bool:
    """The count of a Repeat is never: its items are decided one by one anyway."""
    return isinstance(leaf, Float) or (isinstance(leaf, Int) and leaf.size > MOST_OPTIONS and not path.endswith(".count"))


def _coarse(dim: Leaf | Repeat, bins: int | None) -> Leaf | Repeat:
    if isinstance(dim, Repeat):
        bodies = (dim.body,) if isinstance(dim.body, Space) else dim.body
        coarse = tuple(Space({name: _coarse(below, bins) for name, below in body.dims.items()}) for body in bodies)
        return Repeat(dim.count, coarse[0] if isinstance(dim.body, Space) else coarse)
    if isinstance(dim, Choice):
        if not dim.spaces:
            return dim
        opened = (Space({name: _coarse(below, bins) for name, below in space.dims.items()}) for space in dim.spaces)
        return Choice(dict(zip((str(value) for value in dim.values), opened, strict=True)))
    if bins is not None and _too_fine("", dim):
        return Choice(tuple(dict.fromkeys(dim.decode(i / (bins - 1)) for i in range(bins))))
    return dim


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums are then taken in one order on every machine; nets this small gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _options(leaf: Leaf) -> int:
    assert not isinstance(leaf, Float)
    return len(leaf.values) if isinstance(leaf, Choice) else leaf.size


def _rank(leaf: Leaf, value: Value) -> int:
    assert not isinstance(leaf, Float)
    return leaf.index(value) if isinstance(leaf, Choice) else leaf.rank(value)


def _skip(path: str, leaf: Leaf) -> tuple[str, int, int] | None:
    """(path of the Repeat, item, earlier item) of a decision about a skip connection; None for any other."""
    if not isinstance(leaf, Choice) or leaf.spaces or leaf.values != (False, True):
        return None
    found = SKIP.fullmatch(path)
    if found is None or int(found[3]) >= int(found[2]):
        return None
    return found[1], int(found[2]), int(found[3])
