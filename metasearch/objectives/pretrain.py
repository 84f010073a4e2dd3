"""Pre-training: ordinary supervised training on everything that the training tasks hold, as if there were no episodes.

Class tasks: a classifier of all training classes at once, by minibatches and cross entropy (Chen et al. ICLR 2019.
https://arxiv.org/abs/1904.04232; Ravi, Larochelle. ICLR 2017, section 5.1). Its head `pretrain/head/...` belongs to this course
and not to the net: no episode has that many classes. Regression: the net itself, on the points of many tasks in one pool, which
is joint training. What comes out is scored as every trial is, on the study's bank through the recipe's learner
(learners/fine_tune.py, learners/baseline_pp.py), and a meta-training may inherit its weights (`Proposal.parent`).
"""
from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from metasearch.augment import Places
from metasearch.learners import gradients
from metasearch.learners.baseline_pp import cosines, scale_for
from metasearch.nets import Apply, Net, Params, learnt
from metasearch.nets.init import weights
from metasearch.objectives import Infeasible, Mode, Trial, augmenting
from metasearch.objectives.episodic import BLOCK_BYTES, BLOCK_STEPS, block_steps, draw_block, in_precision
from metasearch.objectives.evaluation import scores
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.training import Course, Setting, Step, generator, to, training
from metasearch.records import Proposal, Report
from metasearch.tasks import Episode

if TYPE_CHECKING:
    from metasearch.objectives.train import Train

__all__ = ["Pretrain"]

PREFIX = "pretrain/head/"


@dataclass(frozen=True)
class Pretrain:
    """A `fit` for a Recipe: Recipe(..., fit=Pretrain(batch=64)).

    head:  of the classifier: "linear", or "cosine" (Baseline++: scale 2 up to 200 classes, 10 beyond).
    batch: pictures in one outer step; None: as many as `meta_batch` training episodes hold. Regression always pools these.

    The head learns with the body, under the recipe's optimiser. The net's own `net/head/...` is what is trained on regression
    tasks; on class tasks it stays as it was drawn. Runs on the first of a trial's devices. A trial's `chunk` changes what is kept
    in memory, not what is computed (see `_sparing`).
    """

    head: Literal["linear", "cosine"] = "linear"
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.head not in ("linear", "cosine"):
            raise ValueError(f"head is 'linear' or 'cosine', but got {self.head!r}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"`batch >= 1` must hold, but got batch={self.batch}")

    def __call__(self, recipe: Recipe, study: Train, proposal: Proposal, trial: Trial) -> Iterator[Report]:
        return training(recipe, study, proposal, trial, self._course)

    def _course(self, setting: Setting) -> Course:
        recipe, study, trial, tasks, shape, seed, meta, _ = setting
        if self.head == "cosine" and tasks.kind != "classes":
            what = f"{type(tasks).__name__} is of {tasks.kind}"
            raise Infeasible(f"a cosine head tells classes apart, but {what}. Use head='linear'.")
        own = tasks.kind == "regression" and "net/head/weight" in meta
        net = recipe.net if trial.chunk is None else _sparing(recipe.net, trial.chunk * _rows(setting))
        if own:
            output: Apply = net.apply
        else:
            outputs = shape.ways if tasks.kind == "regression" else _classes(setting)
            meta = {**meta, **to(self._drawn(recipe.net, outputs, seed), tasks.device)}
            output = self._behind(net.embed, scale_for(outputs))

        def trained(meta: Params) -> Params:
            return {k: v for k, v in meta.items() if learnt(k) and (own or not k.startswith("net/head/"))}

        def begin(meta: Params, state: Params) -> tuple[Step, Mode]:
            return _step(setting, output, trained), _scored(recipe, study, trial, meta)

        per_block, rows, draw = _pooled(setting) if tasks.kind == "regression" else _pictures(setting, self.batch)
        state, pooled = to(recipe.optimizer.init(trained(meta)), tasks.device), tasks.kind == "regression"
        return Course(meta, state, per_block, rows, draw, begin, episodes=pooled)

    def _drawn(self, net: Net, outputs: int, seed: int) -> Params:
        if net.features < 1:
            raise Infeasible("pre-training puts a head on the net's features, but the net does not say how many it has "
                             "(Net.features)")
        drawn = weights("head", (outputs, net.features), "torch", generator(seed, "pretrain head"))
        names = ("weight", "bias") if self.head == "linear" else ("weight",)
        return {f"{PREFIX}{name}": drawn[f"net/head/{name}"] for name in names}

    def _behind(self, embed: Apply, scale: float) -> Apply:
        def output(params: Params, x: Tensor) -> Tensor:
            z, weight = embed(params, x), params[f"{PREFIX}weight"]
            return cosines(z, weight, scale) if self.head == "cosine" else F.linear(z, weight, params[f"{PREFIX}bias"])

        return output


def _step(setting: Setting, output: Apply, trained: Callable[[Params], Params]) -> Step:
    """One step of the outer optimiser on one pool of inputs."""
    recipe, tasks = setting.recipe, setting.tasks

    def slope(meta: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Params]:
        def f(free: Params) -> tuple[Tensor, tuple[()]]:
            return tasks.loss(output({**meta, **free}, x), y), ()

        with gradients.on_tape():
            value, _, grads = gradients.value_and_gradient(f, trained(meta), differentiable=False)
        return value.detach(), grads

    def step(meta: Params, state: Params, pool: Episode, progress: float) -> tuple[Params, Params, dict[str, Tensor]]:
        x = torch.cat([pool.support_x.flatten(0, 1), pool.query_x.flatten(0, 1)])
        y = torch.cat([pool.support_y.flatten(0, 1), pool.query_y.flatten(0, 1)])
        value, grads = in_precision(recipe.precision, x.device, lambda meta: slope(meta, x, y), meta)
        with torch.no_grad():
            now, rates = torch.tensor(progress, device=x.device), to(recipe.optimizer.rates, x.device)
            new, state = recipe.optimizer.update(grads, state, trained(meta), rates, now)
        return {**meta, **new}, state, {"loss": value}

    return step


def _sparing(net: Net, rows: int) -> Net:
    """The same net for less memory: what its gradient needs is computed again when it is taken, for `rows` inputs at a time.

    A batch norm sees all rows at once. Such a net, and one that is given no more rows, is computed again block by block.
    """
    def again(apply: Apply, params: Params, x: Tensor) -> Tensor:
        return cast(Tensor, checkpoint(apply, params, x, use_reentrant=False, preserve_rng_state=False))

    def sparing(whole: Apply) -> Apply:
        """whole: the net, or its body."""
        def apply(params: Params, x: Tensor) -> Tensor:
            if net.norm == "none" and len(x) > rows:
                return torch.cat([again(whole, params, part) for part in torch.split(x, rows)])
            for block in net.blocks:
                x = again(block.apply, params, x)
            if not net.blocks:
                return again(whole, params, x)
            return x if net.head is None or whole is net.body else net.head(params, x)

        return apply

    return net._replace(apply=sparing(net.apply), body=None if net.body is None else sparing(net.body))


# data -------------------------------------------------------------------------------------------------------------------------

Data = tuple[int, int, Callable[[int], Episode]]  # steps in a block, rows of a block that a step reads, the blocks


def _pooled(setting: Setting) -> Data:
    """`meta_batch` episodes a step."""
    recipe, _, _, tasks, shape, seed, _, _ = setting
    augmenting.one_version(recipe, "pre-training")
    steps = block_steps(shape, recipe.meta_batch, recipe.steps)
    return steps, recipe.meta_batch, lambda number: draw_block(recipe, tasks, shape, steps, seed, number)


def _pictures(setting: Setting, batch: int | None) -> Data:
    """One minibatch a step, as an episode without queries whose ways are all classes."""
    recipe, _, _, tasks, shape, seed, _, _ = setting
    augmenting.one_version(recipe, "pre-training")
    if isinstance(recipe.augment, Places) and recipe.augment.new_classes:
        raise Infeasible("new classes are drawn for episodes, but pre-training reads minibatches over all classes. Set "
                         "new_classes=0, or let the tasks count turned classes.")
    if isinstance(recipe.augment, Places) and recipe.augment.query is not None:
        raise Infeasible("pre-training has no queries: all pictures of a minibatch are supports. Put the policy at the place "
                         "support.")
    rows = batch or recipe.meta_batch * _rows(setting)
    classes = _classes(setting)
    steps = max(1, min(BLOCK_STEPS, BLOCK_BYTES // (4 * rows * (math.prod(shape.x) + classes))))

    def draw(number: int) -> Episode:
        drawn = generator(seed, f"block {number}")
        x, numbers = tasks.labelled(steps * rows, "train", drawn)
        y = torch.zeros(steps * rows, classes, device=x.device).scatter_(1, numbers[:, None], 1.0)
        x, y = x.reshape(steps, rows, *x.shape[1:]), y.reshape(steps, rows, classes)
        block = Episode(x, y, x[:, :0], y[:, :0])
        return augmenting.augmented(recipe, tasks, block, drawn, first=number * steps)

    return steps, 1, draw


def _rows(setting: Setting) -> int:
    """Inputs of one training episode."""
    shape = setting.shape
    return (shape.ways if setting.tasks.kind == "classes" else 1) * (shape.shots + shape.queries)


def _classes(setting: Setting) -> int:
    try:
        return setting.tasks.class_count("train")
    except ValueError as error:
        raise Infeasible(str(error)) from error


# how episodes are scored ------------------------------------------------------------------------------------------------------


def _scored(recipe: Recipe, study: Train, trial: Trial, meta: Params) -> Mode:
    """In a loop or under a vmap; fine-tuning takes many steps, so it is worth a measurement a study and net shape."""
    if recipe.learner.looped is not None:
        return "loop"
    if study.mode != "auto":
        return study.mode
    told = {
        "scores": type(recipe.learner).__name__, "params": {k: list(v.shape) for k, v in meta.items()},
        "episode": list(study.shape), "device": torch.device(trial.devices[0]).type, "threads": trial.threads,
    }

    def seconds() -> Mapping[str, float]:
        found: dict[str, float] = {}
        tried: tuple[tuple[Mode, int], ...] = (("loop", 2), ("vmap", trial.chunk or 25))
        for mode, count in tried:
            episodes = study.bank.episodes.select(slice(0, count))
            begin = time.perf_counter()
            scores(recipe.net, recipe.learner.at(1.0), study.tasks, meta, episodes, mode=mode, chunk=trial.chunk)
            found[mode] = (time.perf_counter() - begin) / episodes.count
        return found

    return trial.mode(hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16], seconds)
