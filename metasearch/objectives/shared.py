"""One-shot search by sampling: every step trains one sampled architecture, and all share the weights that they have in common.

Pham, Guan, Zoph, Le, Dean. "Efficient Neural Architecture Search via Parameter Sharing." ICML 2018.
https://arxiv.org/abs/1802.03268 · with uniform samples: Li, Talwalkar. "Random Search and Reproducibility for Neural Architecture
Search." UAI 2019. https://arxiv.org/abs/1902.07638

A sampled architecture is a whole number for every relaxed dimension, so that nothing else is computed, and operations that were
not sampled get a gradient of exactly zero. A sampler that learns (a controller) is given rewards: the scores of `aggregate`
further samples with the shared weights as they are, all on the same episodes of the other classes. ENAS alternates epochs of
both; here, where there are no epochs, `every` steps of the weights are followed by one of the controller. In the end the best
of `candidates` samples is trained by itself, or the best of `finalists` of them that were trained for a while. Samples beyond the
study's limits are as bad as the worst for the controller, and are no candidates.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from metasearch.learners import Learner
from metasearch.nets import Apply, Block, Net, Params, learnt
from metasearch.objectives import Mode, Trial, augmenting
from metasearch.objectives.episodic import mean_gradient
from metasearch.objectives.evaluation import scores
from metasearch.objectives.limits import excess, meaning, some_within
from metasearch.objectives.one_shot import ARCH, Last, OneShot, parted
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.training import Setting, Step, generator, to
from metasearch.records import Config, Proposal, Report
from metasearch.space import Dim, Repeat, Space, digest
from metasearch.tasks import Episode

__all__ = ["Drawn", "Sampler", "Shared", "Uniform", "narrowed", "only"]

WEIGHTS, SAMPLER = "weights/", "sampler/"
CANDIDATE_EPISODES, FURTHER_EPISODES = 20, 80  # of every candidate, and of the best quarter
TRIES = 100  # samples for every candidate, where limits leave few


class Drawn(Protocol):
    @property
    def config(self) -> Config: ...


class Sampler(Protocol):
    """Draws architectures, and may learn from rewards; `tensors` hold all of its memory, and survive a stop."""

    def sample(self) -> Drawn: ...
    def update(self, drawn: Sequence[Any], rewards: Sequence[float]) -> None: ...
    def tensors(self) -> Params: ...
    def load(self, tensors: Params) -> None: ...


@dataclass(frozen=True)
class Sampled:
    config: Config


class Uniform:
    """Every architecture alike; learns nothing."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed, self._count = space, seed, 0

    def sample(self) -> Sampled:
        self._count += 1
        return Sampled(self._space.sample(np.random.default_rng([self._seed, self._count])))

    def update(self, drawn: Sequence[Any], rewards: Sequence[float]) -> None:
        pass

    def tensors(self) -> Params:
        return {"count": torch.tensor(float(self._count), dtype=torch.float64)}

    def load(self, tensors: Params) -> None:
        self._count = int(tensors["count"])


def narrowed(net: Net, numbers: Mapping[str, int]) -> Net:
    """A supernet with one option of every relaxed dimension: the others are not computed, and `arch/` keys are not needed."""
    arch: dict[str, Any] = {f"arch/{path}": number for path, number in numbers.items()}

    def fixed(apply: Apply) -> Apply:
        return lambda params, x: apply({**params, **arch}, x)

    blocks = tuple(Block(block.key, fixed(block.apply)) for block in net.blocks)
    return net._replace(apply=fixed(net.apply), body=None if net.body is None else fixed(net.body), blocks=blocks)


def only(space: Space, paths: Collection[str]) -> Space:
    """The space of some of its decisions. Those of a Repeat stay items of one, so that a controller knows skip connections.

    Raises ValueError for decisions in a Repeat whose count is one, too, and for those that an option opens.
    """
    held: set[str] = set()
    found = _only(space, paths, "", held)
    if opened := [path for path in paths if path not in held]:
        raise ValueError(f"RELAXED names {', '.join(opened)} below an option of another decision, where samples are not drawn: "
                         f"name decisions that stand by themselves or in a Repeat of a fixed count")
    return found


def _only(space: Space, paths: Collection[str], prefix: str, held: set[str]) -> Space:
    found: dict[str, Dim] = {}
    for name, dim in space.dims.items():
        path = prefix + name
        if isinstance(dim, Repeat):
            bodies = tuple(_only(body, paths, f"{path}.{i}.", held) for i, body in enumerate(dim.bodies))
            if any(body.dims for body in bodies):
                if dim.count.low != dim.count.high:
                    said = f"RELAXED names decisions of '{path}', but how many items that has is itself one"
                    raise ValueError(f"{said}: fix its count")
                found[name] = Repeat(dim.count, bodies)
        elif path in paths:
            found[name] = dim
            held.add(path)
    return Space(found)


@dataclass(frozen=True, kw_only=True)
class Shared(OneShot):
    """What a trial of `enas` or `random-sharing` does.

    sampler:    sampler(the space of the relaxed dimensions, seed). every: steps of the weights before one of the sampler; 0: it
                is given no rewards. aggregate: samples in one step of the sampler. candidates: samples among which to choose.
    """

    sampler: Callable[[Space, int], Sampler] = Uniform
    every: int = 0
    aggregate: int = 10
    candidates: int = 10
    held: Config = field(default_factory=dict)  # of a trial: its config, for the dimensions that are not relaxed
    known: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)  # what `within` said of an architecture

    def __call__(self, proposal: Proposal, trial: Trial) -> Iterator[Report]:
        yield from OneShot.__call__(replace(self, held=dict(proposal.config), known={}), proposal, trial)

    def wrong(self) -> list[str]:
        try:
            only(self.space, self.dims)
        except ValueError as error:
            return [str(error)]
        if self.finalists > self.candidates:
            return ["`finalists <= candidates` must hold, for they are the best of these, but got "
                    f"finalists={self.finalists}, candidates={self.candidates}"]
        if self.every >= 0 and self.aggregate >= 1 and self.candidates >= 1:
            return []
        told = f"every={self.every}, aggregate={self.aggregate}, candidates={self.candidates}"
        return [f"`every >= 0`, `aggregate >= 1` and `candidates >= 1` must hold, but got {told}"]

    def started(self, seed: int, state: Params | None = None) -> Sampler:
        """The sampler of a trial, as a state of the search has it."""
        sampler = self.sampler(only(self.space, self.dims), seed)
        if state is not None:
            sampler.load({k[len(SAMPLER):]: v for k, v in state.items() if k.startswith(SAMPLER)})
        return sampler

    def start(self, setting: Setting) -> Params:
        weights, _ = parted(setting.meta)
        state = {f"{WEIGHTS}{k}": v for k, v in setting.recipe.optimizer.init(weights).items()}
        return to(state, setting.tasks.device) | _kept(self.started(setting.seed))

    def within(self, sampled: Config) -> bool:
        """Whether a sampled architecture can be built by itself and keeps the study's limits; True where there are none."""
        if not self.train.limits:
            return True
        config = self.space.normal({**self.held, **sampled})
        if (key := digest(config)) not in self.known:
            self.known[key] = excess(self.train, config) <= 0
        return self.known[key]

    def within_limits(self, config: Config) -> Config:
        def strongest(logits: Params) -> Config:
            chosen = {path: values[int(logits[f"{ARCH}{path}"].argmax())] for path, values in self.options().items()}
            return self.space.normal({**config, **chosen})

        logits = {f"{ARCH}{path}": torch.empty(len(values)) for path, values in self.options().items()}
        return some_within(strongest, logits, self.options(), self.train, none=True)

    def numbers(self, config: Config) -> dict[str, int]:
        return {path: values.index(config[path]) for path, values in self.options().items()}

    def step(self, recipe: Recipe, mode: Mode, chunk: int | None, state: Params, seed: int) -> Step:
        sampler, optimizer, loss = self.started(seed, state), recipe.optimizer, self.train.tasks.loss

        def step(meta: Params, state: Params, episodes: Episode, progress: float) -> tuple[Params, Params, dict[str, Tensor]]:
            device = episodes.support_x.device
            learner, rates = recipe.learner.at(progress), to(optimizer.rates, device)
            train, other = episodes.select(slice(0, recipe.meta_batch)), episodes.select(slice(recipe.meta_batch, None))
            weights, _ = parted(meta)
            fixed = {k: v for k, v in meta.items() if not learnt(k)}
            own = {k[len(WEIGHTS):]: v for k, v in state.items() if k.startswith(WEIGHTS)}
            net = narrowed(recipe.net, self.numbers(sampler.sample().config))
            with torch.no_grad():
                grads, metrics = mean_gradient(learner, net, loss, {**fixed, **weights}, train, mode, chunk, recipe.precision)
                moved = _moved(grads)  # what was not sampled stays as it is, momentum and all, and costs nothing
                some = {k: w for k, w in weights.items() if k in moved}
                after, kept = optimizer.update(grads, own, some, rates, torch.tensor(progress, device=device))
                weights, own = {**weights, **after}, {**own, **kept}
            number = round(progress * recipe.steps) + 1
            if self.every and number % self.every == 0:
                drawn = [sampler.sample() for _ in range(self.aggregate)]
                rewards = [
                    self._score(recipe, learner, {**fixed, **weights}, one.config, other, mode, chunk)
                    if self.within(one.config) else -math.inf for one in drawn
                ]
                finite = [reward for reward in rewards if math.isfinite(reward)]
                if finite:  # an architecture whose outputs are not finite, or beyond a limit, is as bad as the worst
                    rewards = [max(reward, min(finite)) for reward in rewards]
                    sampler.update(drawn, rewards)
                metrics = {**metrics, "reward": torch.tensor(sum(finite) / max(1, len(finite)))}
            state = {f"{WEIGHTS}{k}": v for k, v in own.items()} | _kept(sampler)
            return {**meta, **weights}, state, metrics

        return step

    def chosen(self, recipe: Recipe, proposal: Proposal, trial: Trial, last: Last) -> tuple[list[Config], dict[str, float]]:
        """Some samples by their scores on episodes of the other classes, which the weights have not seen. What is among the best
        quarter by few episodes is looked at on more: the best of many by few would be the luckiest."""
        seed, shape = proposal.seed or 0, recipe.episode or self.train.shape
        sampler, meta = self.started(seed, last.state), to(last.meta, self.train.tasks.device)
        drawn, noise = self._candidates(sampler), generator(seed, "candidates")
        tasks = self.train.tasks.part(self.share, 1)

        def looked_at(keys: Collection[str], count: int) -> dict[str, float]:
            episodes = tasks.sample_episodes(count, split="train", shape=shape, generator=noise)
            episodes = augmenting.tested(recipe.augment, episodes, augmenting.moments(self.train.tasks))
            learner, mode = recipe.learner.at(1.0), self.mode(recipe)
            return {key: self._score(recipe, learner, meta, drawn[key], episodes, mode, trial.chunk) for key in keys}

        found = looked_at(drawn, CANDIDATE_EPISODES)
        ranked = sorted(found, key=lambda key: -found[key])
        configs = {key: self.space.normal({**proposal.config, **drawn[key]}) for key in ranked}
        best, different = list[str](), set[str]()
        for key in ranked:
            if best and len(best) >= len(found) // 4 and len(different) >= self.finalists:
                break
            best.append(key)
            different.add(meaning(configs[key], self.canonical))
        if len(best) > 1:
            again, few, more = looked_at(best, FURTHER_EPISODES), CANDIDATE_EPISODES, FURTHER_EPISODES
            found |= {key: (few * found[key] + more * again[key]) / (few + more) for key in best}
            best.sort(key=lambda key: -found[key])
        told = {"candidates": float(len(found))}
        told |= {"candidate_score": found[best[0]]} if math.isfinite(found[best[0]]) else {}
        return [configs[key] for key in best], told

    def _candidates(self, sampler: Sampler) -> dict[str, Config]:
        """Samples within the study's limits; where there are none, an architecture that is. Raises Infeasible."""
        drawn, within = dict[str, Config](), 0
        for _ in range((TRIES if self.train.limits else 1) * self.candidates):
            config = sampler.sample().config
            if self.within(config):
                drawn[repr(sorted(config.items()))] = config
                within += 1
            if within == self.candidates:
                break
        if not drawn:
            config = self.within_limits(self.held)
            drawn[repr(config)] = {path: config[path] for path in self.dims}
        return drawn

    def _score(
        self, recipe: Recipe, learner: Learner, meta: Params, config: Config, episodes: Episode, mode: Mode, chunk: int | None
    ) -> float:
        """Of an architecture with the shared weights as they are; -inf where its outputs are not finite."""
        net, weights = narrowed(recipe.net, self.numbers(config)), {k: v for k, v in meta.items() if not k.startswith("arch/")}
        found = float(scores(net, learner, self.train.tasks, weights, episodes, mode=mode, chunk=chunk).mean())
        return found if math.isfinite(found) else -math.inf


def _moved(grads: Params) -> set[str]:
    """The keys whose gradient is not zero."""
    norms = torch.stack([g.norm() for g in grads.values()]) if grads else torch.empty(0)
    return {k for k, moves in zip(grads, (norms != 0).tolist(), strict=True) if moves}


def _kept(sampler: Sampler) -> Params:
    return {f"{SAMPLER}{k}": v for k, v in sampler.tensors().items()}
