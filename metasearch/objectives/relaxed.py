"""One-shot search by gradient: all architectures at once as a mixture, whose shares learn on other classes than its weights.

Liu, Simonyan, Yang. "DARTS: Differentiable Architecture Search." ICLR 2019. https://arxiv.org/abs/1806.09055

min over alpha of L_val(w*(alpha), alpha), with w* approximated by one step of gradient descent from the present weights (eq. 6):
w' = w - xi (momentum + dL_train/dw + decay w). The gradient in alpha is d_alpha L_val(w', alpha) plus a term through w':

    "exact"       differentiated through that step
    "difference"  - xi (d_alpha L_train(w+, alpha) - d_alpha L_train(w-, alpha)) / (2 eps), w+- = w +- eps dL_val/dw',
                  eps = .01 / |dL_val/dw'| (eq. 8): no second derivative
    "first"       xi = 0: without that term, at the present weights

Here a training set is a distribution over tasks, so its two halves are two halves of the training *classes*; L is the mean over
episodes of the learner's outer loss. A step of alpha comes before each step of the weights, which are the recipe's optimiser's.
Then the architecture that is found is trained from the beginning as any other: the trial's score is that one's. What the mixture
itself scored, is a metric; it says little of what comes out of it, which `check` measures.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metasearch.learners import Learner, Loss, gradients
from metasearch.nets import Net, Params, learnt
from metasearch.objectives import Infeasible, Mode, Trial
from metasearch.objectives.episodic import in_precision, mean_gradient
from metasearch.objectives.limits import candidates, some_within
from metasearch.objectives.one_shot import ARCH, Last, OneShot, parted, without_gradient
from metasearch.objectives.optimizer import Optimizer, adam, head
from metasearch.objectives.recipe import Precision, Recipe
from metasearch.objectives.training import Setting, Step, to
from metasearch.records import Config, Proposal
from metasearch.tasks import Episode

__all__ = [
    "Hypergradient", "Relaxed", "check_rate", "difference", "exact", "exact_and_value", "first", "mean_loss", "rate_ahead",
    "step_ahead", "strongest",
]

Hypergradient = Literal["exact", "difference", "first"]
Value = Callable[[Params, Params], Tensor]  # (weights, arch) -> loss []
Slopes = Callable[[Params, Params], tuple[Params, Params]]  # (weights, arch) -> (d loss / d weights, d loss / d arch)
Ahead = Callable[[Params, Params], Params]  # (weights, d L_train / d weights) -> w'


# -- the gradient in alpha -----------------------------------------------------------------------------------------------------


def exact(train: Value, val: Value, weights: Params, arch: Params, ahead: Ahead, *, tape: bool = False) -> Params:
    """Through `ahead`, by differentiating twice (eq. 7). tape: the losses are written for torch.autograd, not torch.func."""
    return exact_and_value(train, val, weights, arch, ahead, tape=tape)[0]


def exact_and_value(
    train: Value, val: Value, weights: Params, arch: Params, ahead: Ahead, *, tape: bool = False
) -> tuple[Params, Tensor]:
    """Also the validation loss after the step."""
    if tape:
        leaves = ({k: v.detach().requires_grad_() for k, v in part.items()} for part in (weights, arch))
        w, a = leaves
        found = torch.autograd.grad(train(w, a), list(w.values()), create_graph=True, materialize_grads=True)
        value = val(ahead(w, dict(zip(w, found, strict=True))), a)
        slopes = torch.autograd.grad(value, list(a.values()), materialize_grads=True)
        return dict(zip(a, slopes, strict=True)), value.detach()

    def looking_ahead(a: Params) -> Tensor:
        return val(ahead(weights, torch.func.grad(train)(weights, a)), a)

    found_, value = torch.func.grad_and_value(looking_ahead)(arch)
    return found_, value.detach()


def difference(train: Slopes, val: Slopes, weights: Params, arch: Params, ahead: Ahead, xi: Tensor | float) -> Params:
    """The same up to the square of eps, from four gradients (eq. 8)."""
    after = ahead(weights, train(weights, arch)[0])
    v, slope = val(after, arch)
    norm = torch.stack([g.square().sum() for g in v.values()]).sum().sqrt()
    eps = 0.01 / norm.clamp(min=1e-12)  # where the loss is flat, v is 0 and so is the term
    _, above = train({k: w + eps * v[k] for k, w in weights.items()}, arch)
    _, below = train({k: w - eps * v[k] for k, w in weights.items()}, arch)
    return {k: slope[k] - xi * (above[k] - below[k]) / (2 * eps) for k in arch}


def first(val: Slopes, weights: Params, arch: Params) -> Params:
    return val(weights, arch)[1]


# -- what is found ---------------------------------------------------------------------------------------------------------------


def strongest(shares: Mapping[str, Sequence[float]], options: Mapping[str, Sequence[Any]]) -> Config:
    """Of every dimension the option with the largest share that is not `none`: that one only takes part in the search."""
    found: Config = {}
    for path, values in options.items():
        kept = [i for i, value in enumerate(values) if value != "none"] or list(range(len(values)))
        found[path] = values[max(kept, key=lambda i: (shares[path][i], -i))]
    return found


# -- the objective ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Relaxed(OneShot):
    """What a trial of `darts` does: search with the mixture, derive an architecture, train that one by `train`.

    derive:   the space file's own `derive(shares) -> Config`, if it has one.
    hypergradient: see above. xi: the rate of the step that is looked ahead; None: the weights' own first rate ("lr").
    warm_up:  share of the steps, the first, in which alpha stays: weights that have learnt nothing yet favour operations that
              have none (Chen et al., "Progressive DARTS", ICCV 2019, https://arxiv.org/abs/1904.12760: 10 of 25 epochs).
    arch:     the optimiser of alpha; published: Adam 3e-4, betas (.5, .999), weight decay 1e-3.
    """

    derive: Callable[[Mapping[str, Sequence[float]]], Config] | None = None
    hypergradient: Hypergradient = "exact"
    xi: float | None = None
    warm_up: float = 0.0
    arch: Optimizer = field(default_factory=partial(adam, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3))

    def wrong(self) -> list[str]:
        said = []
        if self.hypergradient not in get_args(Hypergradient):
            said.append(f"hypergradient is one of {', '.join(get_args(Hypergradient))}, but got {self.hypergradient!r}")
        if not 0 <= self.warm_up <= 1:
            said.append(f"`0 <= warm_up <= 1` must hold, but got warm_up={self.warm_up}")
        if self.xi is not None and self.xi < 0:
            said.append(f"`xi >= 0` must hold, but got xi={self.xi}")
        return said

    def check_derive(self, config: Config) -> None:
        """Raises ValueError if the space's own `derive` makes something else than an option for every relaxed dimension."""
        if self.derive is None:
            return
        level = {f"{ARCH}{path}": torch.zeros(len(values)) for path, values in self.options().items()}
        try:
            derived, found = self.derive(self.shares(level)), self.found(config, level)
        except Exception as error:  # a mistake in the space's file
            raise ValueError(f"derive(shares) of the space fails on equal shares: {type(error).__name__}: {error}") from error
        if left := [path for path in self.dims if path in found and path not in derived]:
            raise ValueError(f"derive(shares) must choose for every dimension in RELAXED, but leaves out {', '.join(left)}.")

    def start(self, setting: Setting) -> Params:
        if (why := without_gradient(setting.recipe.learner, "darts")) is not None:
            raise Infeasible(why)
        weights, arch = parted(setting.meta)
        state = {f"weights/{k}": v for k, v in setting.recipe.optimizer.init(weights).items()}
        return to(state | {f"{ARCH}{k}": v for k, v in self.arch.init(arch).items()}, setting.tasks.device)

    def chosen(self, recipe: Recipe, proposal: Proposal, trial: Trial, last: Last) -> tuple[list[Config], dict[str, float]]:
        arch = parted(last.meta)[1]
        found, seed = partial(self.found, proposal.config), proposal.seed or 0
        ranked, gave_way = candidates(found, arch, self.options(), self.train, self.finalists, seed, self.canonical)
        return ranked, {"arch_entropy": float(_entropy(arch)), **({"gave_way": float(gave_way)} if gave_way else {})}

    def within_limits(self, config: Config) -> Config:
        logits = {f"{ARCH}{path}": torch.empty(len(values)) for path, values in self.options().items()}
        return some_within(partial(self.found, config), logits, self.options(), self.train)

    def found(self, config: Config, arch: Params) -> Config:
        """The architecture of these logits, at the place of the relaxed dimensions of `config`."""
        shares = self.shares(arch)
        derived = strongest(shares, self.options()) if self.derive is None else self.derive(shares)
        return self.space.normal({**config, **derived})

    def shares(self, arch: Params) -> dict[str, list[float]]:
        return {path: arch[f"{ARCH}{path}"].double().softmax(-1).tolist() for path in self.dims}

    def step(
        self, recipe: Recipe, mode: Mode, chunk: int | None = None, state: Params | None = None, seed: int = 0
    ) -> Step:
        """One of alpha, but for the warm-up, then one of the weights."""
        net, learner0, loss, optimizer = recipe.net, recipe.learner, self.train.tasks.loss, recipe.optimizer

        def step(meta: Params, state: Params, episodes: Episode, progress: float) -> tuple[Params, Params, dict[str, Tensor]]:
            device = episodes.support_x.device
            now, learner = torch.tensor(progress, device=device), learner0.at(progress)
            rates, arch_rates = to(optimizer.rates, device), to(self.arch.rates, device)
            train, val = episodes.select(slice(0, recipe.meta_batch)), episodes.select(slice(recipe.meta_batch, None))
            weights, arch = parted(meta)
            fixed = {k: v for k, v in meta.items() if not learnt(k)}
            own = {k[len("weights/"):]: v for k, v in state.items() if k.startswith("weights/")}
            theirs = {k[len(ARCH):]: v for k, v in state.items() if k.startswith(ARCH)}

            def slopes(part: Episode, w: Params, a: Params, precision: Precision = recipe.precision) -> tuple[Params, Params]:
                return parted(mean_gradient(learner, net, loss, {**fixed, **w, **a}, part, mode, chunk, precision)[0])

            def value(part: Episode, w: Params, a: Params) -> Tensor:
                return mean_loss(learner, net, loss, {**fixed, **w, **a}, part, mode, chunk, recipe.precision)

            def slope() -> Params:
                if self.hypergradient == "first":
                    return first(partial(slopes, val), weights, arch)
                xi = rate_ahead(self.xi, rates)
                ahead = partial(step_ahead, own, rates, xi)
                if self.hypergradient == "difference":
                    # at weights so little apart that bfloat16 would round their difference away
                    full = partial(slopes, train, precision="float32")
                    return difference(full, partial(slopes, val), weights, arch, ahead, xi)
                if mode == "loop":
                    with gradients.on_tape():
                        return exact(partial(value, train), partial(value, val), weights, arch, ahead, tape=True)
                return exact(partial(value, train), partial(value, val), weights, arch, ahead)

            with torch.no_grad():
                if progress >= self.warm_up:
                    found = {k: g.detach() for k, g in slope().items()}
                    arch, theirs = self.arch.update(found, theirs, arch, arch_rates, now)
                meta = {**fixed, **weights, **arch}
                grads, metrics = mean_gradient(learner, net, loss, meta, train, mode, chunk, recipe.precision)
                weights, own = optimizer.update(parted(grads)[0], own, weights, rates, now)
            state = {f"weights/{k}": v for k, v in own.items()} | {f"{ARCH}{k}": v for k, v in theirs.items()}
            return {**fixed, **weights, **arch}, state, {**metrics, "arch_entropy": _entropy(arch)}

        return step


# -- small parts -----------------------------------------------------------------------------------------------------------------


def mean_loss(
    learner: Learner, net: Net, loss: Loss, meta: Params, part: Episode, mode: Mode, chunk: int | None,
    precision: Precision = "float32",
) -> Tensor:
    """The mean outer loss of some episodes, []."""
    if precision != "float32":
        return in_precision(
            precision, part.support_x.device, lambda m: mean_loss(learner, net, loss, m, part, mode, chunk), meta
        )

    def one(e: Episode) -> Tensor:
        return learner.episode_loss(net, loss, meta, e)[0]

    if mode == "loop":
        return torch.stack([one(part.select(i)) for i in range(part.count)]).mean()
    return torch.func.vmap(one, chunk_size=chunk)(part).mean()


def rate_ahead(xi: float | None, rates: Params) -> Tensor | float:
    """Of the step that is looked ahead. Raises Infeasible where it must be said."""
    if xi is not None:
        return xi
    if "lr" not in rates:
        raise Infeasible(f"the weights' optimiser has no one rate, but {', '.join(rates)}: say xi, the rate of the step "
                         "that is looked ahead")
    return rates["lr"]


def check_rate(xi: float | None, supernet: Callable[[Config], Recipe], config: Config) -> None:
    """Raises ValueError where every trial of a search that looks a step ahead would be refused: see `rate_ahead`."""
    try:
        rates = supernet(config).optimizer.rates
    except Infeasible:
        return  # another config may not be
    try:
        rate_ahead(xi, rates)
    except Infeasible as error:
        raise ValueError(str(error)) from error


def step_ahead(state: Params, rates: Params, xi: Tensor | float, weights: Params, grads: Params) -> Params:
    """One step of gradient descent, with the momentum and the decay that the weights' optimiser has. What none of its rules
    moves stays."""
    def ahead(k: str, w: Tensor) -> Tensor:
        if (rule := head(rates, k)) is None:
            return w
        decay, mu = rates.get(f"{rule}weight_decay", 0.0), rates.get(f"{rule}momentum", 0.0)
        return w - xi * (grads[k] + decay * w + mu * state.get(f"{rule}momentum/{k}", 0.0))

    return {k: ahead(k, w) for k, w in weights.items()}


def _entropy(arch: Params) -> Tensor:
    """Of the shares, 1 where they are equal, 0 where one has all: the mean over dimensions."""
    each = [-(a.softmax(-1) * a.log_softmax(-1)).sum() / math.log(len(a)) for a in arch.values() if len(a) > 1]
    return torch.stack(each).mean()
