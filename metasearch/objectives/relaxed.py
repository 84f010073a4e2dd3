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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from metasearch.learners import gradients
from metasearch.nets import Params, learnt
from metasearch.objectives import Diverged, Infeasible, Mode, Trial, parcel
from metasearch.objectives.episodic import block_steps, draw_block, mean_gradient
from metasearch.objectives.evaluation import scores
from metasearch.objectives.optimizer import Optimizer, adam
from metasearch.objectives.recipe import Recipe, RecipeOf
from metasearch.objectives.train import Train
from metasearch.objectives.training import Course, Setting, Step, only_learnt, to, training
from metasearch.records import Config, Proposal, Report
from metasearch.space import Choice, Space
from metasearch.tasks import Episode, TaskDistribution, TaskShape, concatenate

__all__ = ["Hypergradient", "Relaxed", "difference", "exact", "first", "rank_correlation", "strongest"]

Hypergradient = Literal["exact", "difference", "first"]
Value = Callable[[Params, Params], Tensor]  # (weights, arch) -> loss []
Slopes = Callable[[Params, Params], tuple[Params, Params]]  # (weights, arch) -> (d loss / d weights, d loss / d arch)
Ahead = Callable[[Params, Params], Params]  # (weights, d L_train / d weights) -> w'
ARCH = "arch/"


# -- the gradient in alpha -----------------------------------------------------------------------------------------------------


def exact(train: Value, val: Value, weights: Params, arch: Params, ahead: Ahead, *, tape: bool = False) -> Params:
    """Through `ahead`, by differentiating twice (eq. 7). tape: the losses are written for torch.autograd, not torch.func."""
    if tape:
        leaves = ({k: v.detach().requires_grad_() for k, v in part.items()} for part in (weights, arch))
        w, a = leaves
        found = torch.autograd.grad(train(w, a), list(w.values()), create_graph=True, materialize_grads=True)
        value = val(ahead(w, dict(zip(w, found, strict=True))), a)
        slopes = torch.autograd.grad(value, list(a.values()), materialize_grads=True)
        return dict(zip(a, slopes, strict=True))

    def looking_ahead(a: Params) -> Tensor:
        return val(ahead(weights, torch.func.grad(train)(weights, a)), a)

    found_: Params = torch.func.grad(looking_ahead)(arch)
    return found_


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


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's: Pearson's correlation of the ranks, ties sharing their mean rank; None where one side is constant."""
    x, y = (_ranks(np.asarray(values, dtype=float)) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else None


def _ranks(values: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    below = (values[None, :] < values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1)
    return np.asarray(below + (equal + 1) / 2)


# -- the objective ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Relaxed:
    """What a trial of `darts` does: search with the mixture, derive an architecture, train that one by `train`.

    train:    how the found architecture is trained and scored; the mixture is validated on the same bank.
    relaxed, space, dims, derive: the space file's `relaxed`, SPACE, RELAXED and, if it has one, `derive(shares) -> Config`.
    hypergradient: see above. xi: the rate of the step that is looked ahead; None: the weights' own first rate ("lr").
    arch:     the optimiser of alpha; published: Adam 3e-4, betas (.5, .999), weight decay 1e-3.
    steps:    outer steps of the search; None: as many as the recipe of the mixture has.
    share:    of the training classes, on which the weights learn.
    check:    so many architectures are drawn at random, scored with the mixture's weights, trained by themselves for
              `check_steps` outer steps, and the rank correlation of both scores is told ("supernet/rank_correlation").
    """

    train: Train
    relaxed: RecipeOf
    space: Space
    dims: tuple[str, ...]
    derive: Callable[[Mapping[str, Sequence[float]]], Config] | None = None
    hypergradient: Hypergradient = "exact"
    xi: float | None = None
    arch: Optimizer = field(default_factory=partial(adam, 3e-4, betas=(0.5, 0.999), weight_decay=1e-3))
    steps: int | None = None
    share: float = 0.5
    check: int = 0
    check_steps: int = 50

    def __post_init__(self) -> None:
        said = []
        if self.hypergradient not in get_args(Hypergradient):
            said.append(f"hypergradient is one of {', '.join(get_args(Hypergradient))}, but got {self.hypergradient!r}")
        if self.steps is not None and self.steps < 1:
            said.append(f"`steps >= 1` must hold, but got steps={self.steps}")
        if self.xi is not None and self.xi < 0:
            said.append(f"`xi >= 0` must hold, but got xi={self.xi}")
        if not 0 < self.share < 1:
            said.append(f"`0 < share < 1` must hold, but got share={self.share}")
        if self.check < 0 or self.check == 1 or self.check_steps < 1:
            said.append(f"`check = 0` or `check >= 2`, and `check_steps >= 1` must hold, but got check={self.check}, "
                        f"check_steps={self.check_steps}")
        if said:
            raise ValueError("; ".join(said))

    def __call__(self, proposal: Proposal, trial: Trial) -> Iterator[Report]:
        begun = _alone(trial)
        if begun is None:
            end, told, config = yield from self._searched(proposal, trial)
            start = None
        else:
            end, told, config, start = begun["searched"], begun["supernet"], begun["config"], trial.start
        yield from self._by_itself(proposal, trial, end, told, config, start)

    # -- the search ----------------------------------------------------------------------------------------------------------

    def options(self) -> dict[str, tuple[Any, ...]]:
        """The options of every relaxed dimension, in the order of its logits."""
        columns = dict(self.space.columns())
        return {path: dim.values for path in self.dims if isinstance(dim := columns[path], Choice)}

    def supernet(self, config: Config) -> Recipe:
        """The recipe of the mixture; the study's limits and number of steps are those of a single architecture."""
        recipe = replace(self.train, recipe=self.relaxed, steps=None).built(config)
        return replace(recipe, steps=self.steps or recipe.steps)

    def check_classes(self, config: Config) -> None:
        """Raises ValueError if the parts of the training classes are too small for the episodes of the search."""
        try:
            shape = self.supernet(config).episode or self.train.shape
        except Infeasible:
            return  # another config may not be
        halves(self.train.tasks, self.share, shape)

    def found(self, config: Config, arch: Params) -> Config:
        """The architecture of these logits, at the place of the relaxed dimensions of `config`."""
        shares = {path: arch[f"{ARCH}{path}"].double().softmax(-1).tolist() for path in self.dims}
        derived = strongest(shares, self.options()) if self.derive is None else self.derive(shares)
        return self.space.normal({**config, **derived})

    def _searched(
        self, proposal: Proposal, trial: Trial
    ) -> Generator[Report, None, tuple[int, dict[str, float], Config]]:
        """Reports of the search; returns (the step it ended at, its metrics, the config that was found)."""
        recipe, last = self.supernet(proposal.config), _Last(trial.save)
        study = replace(self.train, recipe=self.relaxed, steps=recipe.steps, keep="last", limits={})
        report, told = Report(0), dict[str, float]()
        for report in training(recipe, study, proposal, replace(trial, save=last), self._course):
            told = {f"supernet/{k}": v for k, v in report.metrics.items()}
            if report.score is not None:
                told["supernet/score"] = report.score
            yield Report(report.step, told, checkpoint=report.checkpoint or None)
        told["supernet/arch_entropy"] = float(_entropy(_parted(last.meta)[1]))
        config = self.found(proposal.config, last.meta)
        if self.check:
            pairs = []
            for i, sampled in enumerate(self._sampled(proposal)):
                pairs.append((self._inherited(recipe, sampled, last.meta, trial), self._short(sampled, proposal, trial)))
                yield Report(report.step, {**told, "supernet/checked": i + 1.0})
            correlation = rank_correlation(*zip(*pairs, strict=True))
            if correlation is not None:
                told["supernet/rank_correlation"] = correlation
        return report.step, told, config

    def _course(self, setting: Setting) -> Course:
        recipe, _, trial, tasks, shape, seed, meta, _ = setting
        try:
            parts = halves(tasks, self.share, shape)
        except ValueError as error:
            raise Infeasible(str(error)) from error
        rows, per_block = recipe.meta_batch, max(1, block_steps(shape, 2 * recipe.meta_batch, recipe.steps))

        def draw(number: int) -> Episode:
            """Of every step first the episodes of the weights, then those of alpha."""
            both = [draw_block(recipe, part, shape, per_block, 2 * seed + i, number) for i, part in enumerate(parts)]
            return _alternating(both[0], both[1], rows)

        def begin(meta: Params, state: Params) -> tuple[Step, Mode]:
            mode: Mode = "loop" if recipe.learner.looped is not None or self.train.mode == "loop" else "vmap"
            return self.step(recipe, mode, trial.chunk), mode

        weights, arch = _parted(meta)
        state = {f"weights/{k}": v for k, v in recipe.optimizer.init(weights).items()}
        state |= {f"{ARCH}{k}": v for k, v in self.arch.init(arch).items()}
        return Course(meta, to(state, tasks.device), per_block, 2 * rows, draw, begin)

    def step(self, recipe: Recipe, mode: Mode, chunk: int | None = None) -> Step:
        """One of alpha, then one of the weights."""
        net, learner0, loss, optimizer = recipe.net, recipe.learner, self.train.tasks.loss, recipe.optimizer

        def step(meta: Params, state: Params, episodes: Episode, progress: float) -> tuple[Params, Params, dict[str, Tensor]]:
            device = episodes.support_x.device
            now, learner = torch.tensor(progress, device=device), learner0.at(progress)
            rates, arch_rates = to(optimizer.rates, device), to(self.arch.rates, device)
            train, val = episodes.select(slice(0, recipe.meta_batch)), episodes.select(slice(recipe.meta_batch, None))
            weights, arch = _parted(meta)
            fixed = {k: v for k, v in meta.items() if not learnt(k)}
            own = {k[len("weights/"):]: v for k, v in state.items() if k.startswith("weights/")}
            theirs = {k[len(ARCH):]: v for k, v in state.items() if k.startswith(ARCH)}

            def slopes(part: Episode, w: Params, a: Params) -> tuple[Params, Params]:
                return _parted(mean_gradient(learner, net, loss, {**fixed, **w, **a}, part, mode, chunk)[0])

            def value(part: Episode, w: Params, a: Params) -> Tensor:
                def one(e: Episode) -> Tensor:
                    return learner.episode_loss(net, loss, {**fixed, **w, **a}, e)[0]

                if mode == "loop":
                    return torch.stack([one(part.select(i)) for i in range(part.count)]).mean()
                return torch.func.vmap(one, chunk_size=chunk)(part).mean()

            xi = self._xi(rates)
            ahead = partial(_ahead, own, rates, xi)
            with torch.no_grad():
                if self.hypergradient == "first":
                    slope = first(partial(slopes, val), weights, arch)
                elif self.hypergradient == "difference":
                    slope = difference(partial(slopes, train), partial(slopes, val), weights, arch, ahead, xi)
                elif mode == "loop":
                    with gradients.on_tape():
                        slope = exact(partial(value, train), partial(value, val), weights, arch, ahead, tape=True)
                else:
                    slope = exact(partial(value, train), partial(value, val), weights, arch, ahead)
                arch, theirs = self.arch.update({k: g.detach() for k, g in slope.items()}, theirs, arch, arch_rates, now)
                grads, metrics = mean_gradient(learner, net, loss, {**fixed, **weights, **arch}, train, mode, chunk)
                weights, own = optimizer.update(_parted(grads)[0], own, weights, rates, now)
            state = {f"weights/{k}": v for k, v in own.items()} | {f"{ARCH}{k}": v for k, v in theirs.items()}
            return {**fixed, **weights, **arch}, state, {**metrics, "arch_entropy": _entropy(arch)}

        return step

    def _xi(self, rates: Params) -> Tensor | float:
        if self.xi is not None:
            return self.xi
        if "lr" not in rates:
            raise Infeasible(f"the weights' optimiser has no one rate, but {', '.join(rates)}: say xi, the rate of the step "
                             "that is looked ahead")
        return rates["lr"]

    # -- is the mixture a judge of its parts? ----------------------------------------------------------------------------------

    def _sampled(self, proposal: Proposal) -> list[Config]:
        """Different architectures, uniform on the relaxed dimensions; fewer where there are fewer."""
        rng, options = np.random.default_rng([proposal.seed or 0, 8]), self.options()
        found: dict[str, Config] = {}
        for _ in range(100 * self.check):
            if len(found) == self.check:
                break
            drawn = {path: values[int(rng.integers(len(values)))] for path, values in options.items()}
            found.setdefault(repr(sorted(drawn.items())), self.space.normal({**proposal.config, **drawn}))
        return list(found.values())

    def _inherited(self, recipe: Recipe, config: Config, meta: Params, trial: Trial) -> float:
        """The score of an architecture with the mixture's weights: its options by number, so that nothing else is computed."""
        tasks = self.train.tasks
        numbers = {f"{ARCH}{path}": torch.tensor(values.index(config[path])) for path, values in self.options().items()}
        mode: Mode = "loop" if recipe.learner.looped is not None else "vmap"
        meta = to({**meta, **numbers}, tasks.device)
        bank = self.train.bank.episodes
        score = float(scores(recipe.net, recipe.learner.at(1.0), tasks, meta, bank, mode=mode, chunk=trial.chunk).mean())
        return score if math.isfinite(score) else -math.inf

    def _short(self, config: Config, proposal: Proposal, trial: Trial) -> float:
        """The score of an architecture after a short training of its own."""
        study = replace(self.train, steps=self.check_steps, keep="last", limits={})
        try:
            reports = list(study(Proposal(config, seed=proposal.seed), replace(trial, save=None, start=None, own=False)))
        except (Diverged, Infeasible):
            return -math.inf
        return -math.inf if reports[-1].score is None else reports[-1].score

    # -- the found one ---------------------------------------------------------------------------------------------------------

    def _by_itself(
        self, proposal: Proposal, trial: Trial, end: int, told: Mapping[str, float], config: Config, start: Path | None
    ) -> Iterator[Report]:
        """`train` on what was found, from the beginning; its steps are counted on from those of the search."""
        save = trial.save

        def later(step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
            assert save is not None
            return save(end + step, tensors, {**facts, "searched": end, "supernet": dict(told)})

        lent = replace(trial, start=start, own=start is not None, save=None if save is None else later)
        for report in self.train(Proposal(config, seed=proposal.seed), lent):
            yield replace(report, step=end + report.step, metrics={**report.metrics, **told}, found=config)


# -- small parts -----------------------------------------------------------------------------------------------------------------


def halves(tasks: TaskDistribution, share: float, shape: TaskShape) -> list[TaskDistribution]:
    """The tasks of the weights and those of the architecture. Raises ValueError if one cannot give such episodes."""
    try:
        parts = [tasks.part(share, 0), tasks.part(share, 1)]
        for part in parts:
            part.check(shape, "train")
    except ValueError as error:
        raise ValueError(f"weights and architecture learn on a part of the classes each, but {error}") from error
    return parts


class _Last:
    """A trial's `save` that also keeps the last meta-parameters at hand."""

    def __init__(self, save: Callable[[int, Mapping[str, Tensor], Mapping[str, Any]], str] | None) -> None:
        self._save = save
        self.meta: Params = {}

    def __call__(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
        self.meta = {k.removeprefix("meta/"): v for k, v in tensors.items() if k.startswith("meta/")}
        return "" if self._save is None else self._save(step, tensors, facts)


def _alone(trial: Trial) -> dict[str, Any] | None:
    """The facts of the parcel that a trial goes on from, if it had found its architecture already."""
    if trial.start is None or not trial.own:
        return None
    facts = parcel.read(trial.start)[1]
    return facts if "searched" in facts else None


def _parted(params: Params) -> tuple[Params, Params]:
    """(weights, arch): what is learnt."""
    free = only_learnt(params)
    return {k: v for k, v in free.items() if not k.startswith(ARCH)}, {k: v for k, v in free.items() if k.startswith(ARCH)}


def _ahead(state: Params, rates: Params, xi: Tensor | float, weights: Params, grads: Params) -> Params:
    """One step of gradient descent, with the momentum and the decay that the weights' optimiser has."""
    decay, mu = rates.get("weight_decay", 0.0), rates.get("momentum", 0.0)
    return {
        k: w - xi * (grads[k] + decay * w + (mu * state[f"momentum/{k}"] if f"momentum/{k}" in state else 0.0))
        for k, w in weights.items()
    }


def _alternating(a: Episode, b: Episode, rows: int) -> Episode:
    """rows of a, rows of b, the next rows of a, ..."""
    steps = a.count // rows
    order = torch.arange(2 * a.count).view(2, steps, rows).transpose(0, 1).flatten()
    return concatenate([a, b]).select(order.to(a.support_x.device))


def _entropy(arch: Params) -> Tensor:
    """Of the shares, 1 where they are equal, 0 where one has all: the mean over dimensions."""
    each = [-(a.softmax(-1) * a.log_softmax(-1)).sum() / math.log(len(a)) for a in arch.values() if len(a) > 1]
    return torch.stack(each).mean()
