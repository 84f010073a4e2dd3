"""One-shot search for augmentations: how probable which pair of operations is, learns by gradient beside the weights.

Li, Hu, Wang, Hospedales, Robertson, Yang. "DADA: Differentiable Automatic Data Augmentation." ECCV 2020.
https://arxiv.org/abs/2003.03780

Every pair of two operations is a sub-policy, with a logit (pi), two probabilities (p) and two magnitudes (m). A step of the
weights trains on episodes that one drawn sub-policy has augmented. A step of pi, p and m before it looks one such step ahead
(objectives/relaxed.py): f is the loss, after it, on *clean* episodes of the other classes. Draws have no gradient:

    "relax"   pi and p by RELAX (objectives/relax.py), whose control is a layer on the relaxed draws
    "gumbel"  pi and p by relaxed draws straight through: pictures are a mixture whose other parts weigh nothing

m has the gradient of a brightness straight through in both: image' = stop(image - m) + m. With magnitudes "exact", which was not
published, it has the operation's own, through what comes after it, wherever the operation is differentiable in its magnitude
(augment/ops.py); the other operations keep the brightness's.

The released code differs from the paper in what would bias pi: the score of the pair is multiplied by the number of Bernoulli
variables, the control also learns from the hypergradient, with the other sign, and the rate of the step ahead is left out.
Here it is the estimator of the paper.

In the end as many of the most probable pairs as the space's policies have, with their p and m rounded to its levels, are what a
new training uses: the trial's score is that one's.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from typing import Literal, get_args

import torch
from torch import Generator, Tensor

from metasearch.augment import PLACES, Places, Plan, Policy, Step, SubPolicies, find, ranges
from metasearch.augment.plan import Moments
from metasearch.learners import gradients
from metasearch.nets import Params, learnt
from metasearch.objectives import Infeasible, Mode, Trial, augmenting, relax
from metasearch.objectives import training as loop
from metasearch.objectives.episodic import mean_gradient
from metasearch.objectives.one_shot import ARCH, Last, OneShot, parted, without_gradient
from metasearch.objectives.optimizer import Optimizer, adam
from metasearch.objectives.recipe import Recipe, RecipeOf
from metasearch.objectives.relaxed import exact_and_value, mean_loss, rate_ahead, step_ahead
from metasearch.records import Config, Proposal
from metasearch.space import Choice, Dim, Int, Repeat, Space
from metasearch.tasks import Episode, TaskShape

__all__ = ["Dada", "Estimator", "Magnitudes", "Searched", "clean", "searchable"]

Estimator = Literal["relax", "gumbel"]
Magnitudes = Literal["straight-through", "exact"]
WEIGHTS, CONTROL, CONTROL_STATE = "weights/", "control/", "control state/"
PI, P, M = f"{ARCH}pi", f"{ARCH}p", f"{ARCH}m"
TENTHS = {"probability": 10, "magnitude": 9}  # the highest that a config can say of a step, as AutoAugment's can
HIGHEST = TENTHS["magnitude"] / 10


@dataclass(frozen=True)
class Searched:
    """Stands in a recipe where its policy would: episodes are drawn as they are, and augmented at `place` when they are used.

    pairs: of operations; count: of sub-policies that a config has. ranges: what their levels mean. around: all else that the
    recipe does to episodes (copies, fill, what acts at other places), of which the search sees one version.
    """

    place: str
    pairs: tuple[tuple[str, str], ...]
    count: int
    ranges: str = "autoaugment"
    around: Places = field(default_factory=Places)

    def __call__(self, episodes: Episode, generator: Generator) -> Episode:
        return episodes


def clean(recipe_of: RecipeOf, space: Space, path: str, config: Config, shape: TaskShape) -> Recipe:
    """The recipe of a config without its augmentation, and with the logits of all that there could be.

    path: the Choice of places. Raises ValueError where the config's option of it opens no sub-policies of two operations, or such
    as what is found cannot be written into, or the recipe does not use them, in tenths, at the place that the option names; and
    where one of the operations cannot act on these pictures.
    """
    recipe, option = recipe_of(config, shape), str(config[path])
    names, count = searchable(space, path, option)
    places, policy = _placed(recipe, path, option)
    _in_tenths(policy, config, f"{path}.sub", count)
    around = replace(places, versions=1, **{option: None})  # type: ignore[arg-type]
    try:
        any_of = SubPolicies(tuple((Step(name),) for name in names))
        replace(around, **{option: any_of}).check_pictures(shape)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"dada tries every operation that {path} = {option} opens: {error}") from error
    return _searching(recipe, Searched(option, tuple(combinations(names, 2)), count, policy.ranges, around))


def searchable(space: Space, path: str, option: str) -> tuple[tuple[str, ...], int]:
    """The operations of the sub-policies that an option opens, and how many of these a config has. Raises ValueError where
    `Dada.found` could not write into them what it found, or would mean something else by it."""
    dim = space.dims[path]
    assert isinstance(dim, Choice)
    subs = dim.spaces[dim.index(option)].dims.get("sub") if dim.spaces else None
    steps = subs.bodies[0].dims.get("step") if isinstance(subs, Repeat) else None
    named = steps.bodies[0].dims.get("operation") if isinstance(steps, Repeat) else None
    if not (isinstance(subs, Repeat) and isinstance(steps, Repeat) and isinstance(named, Choice)) or len(steps.bodies) != 2:
        raise ValueError(f"dada searches for sub-policies of two operations, but {path} = {option} opens none")
    at, said = f"{path}.sub", []
    for name, repeat in ((at, subs), (f"{at}.0.step", steps)):
        low, most = repeat.count.low, repeat.count.high
        if low < most:
            said.append(f"{name} must be a Repeat of a fixed number, Int({most}, {most}), but has {low} to {most}")
        if any(body != repeat.bodies[0] for body in repeat.bodies):
            said.append(f"{name} must have the same dimensions in all of its items, but they differ")
    if len(named.values) < 2 or named.width > 1:
        said.append(f"{at}.0.step.0.operation must be a Choice of two names or more that open nothing, but is {named}")
    for name, most in TENTHS.items():
        level = steps.bodies[0].dims.get(name)
        if not _holds(level, most):
            said.append(f"{at}.0.step.0.{name} must be Int(0, {most}), tenths, but is {level}")
    if said:
        raise ValueError(f"dada writes what it found into the sub-policies of {path} = {option}, so {'; '.join(said)}. "
                         f"search_spaces/_policies.py makes such: sub_policies(operations). Methods that want scores only search "
                         f"others, too: autoaugment, pba, random or regularized-evolution.")
    return tuple(find(str(name)).name for name in named.values), subs.count.high


def _holds(dim: Dim | None, most: int) -> bool:
    """Are 0, 1, ..., `most` its values, and nothing else?"""
    return isinstance(dim, Int | Choice) and dim.size == most + 1 and not any(dim.problem(k) for k in range(most + 1))


def _placed(recipe: Recipe, path: str, option: str) -> tuple[Places, SubPolicies]:
    """What a recipe does to episodes, and its sub-policies at the place that `path` names. Raises ValueError if it has none."""
    places = recipe.augment
    policy = places.policies.get(option) if isinstance(places, Places) else None
    if not isinstance(places, Places) or not isinstance(policy, SubPolicies):
        raise ValueError(f"dada searches at the place that {path} names, one of {', '.join(PLACES)}, but with {path} = {option} "
                         f"the recipe has no sub-policies at a place of that name. Name the options of {path} as their places.")
    return places, policy


def _in_tenths(policy: SubPolicies, config: Config, at: str, count: int) -> None:
    """Raises ValueError if a step under `at` is not in the recipe's policy, with its levels as tenths: what is found would then
    mean something else in the training that follows."""
    there = [step for choice in policy.choices for step in choice]
    for i in range(count):
        for j in (0, 1):
            name, probability, magnitude = (config[f"{at}.{i}.step.{j}.{what}"] for what in ("operation", *TENTHS))
            wanted = Step(str(name), int(probability) / 10, int(magnitude) / 10)
            if wanted.probability and not any(_alike(step, wanted) for step in there):
                found = next((step for step in there if find(step.operation) == find(wanted.operation)), "no such step")
                raise ValueError(f"dada writes tenths into {at}: probability {probability} and magnitude {magnitude} stand for "
                                 f"{wanted}, but the recipe makes {found} of them. search_spaces/_policies.py has what makes "
                                 f"policies of tenths: policy(config, path)")


def _alike(one: Step, other: Step) -> bool:
    """The same in effect: not every operation has a magnitude."""
    operation = find(one.operation)
    return operation == find(other.operation) and math.isclose(one.probability, other.probability) and (
        not operation.unit or math.isclose(one.magnitude, other.magnitude, abs_tol=1e-9))


def _searching(recipe: Recipe, searched: Searched) -> Recipe:
    count, init = len(searched.pairs), recipe.net.init

    def begin(generator: Generator) -> Params:
        """pi alike, p one half, m in the middle of its range: as published."""
        logits = {PI: torch.full((count,), 1e-3), P: torch.zeros(count, 2), M: torch.full((count, 2), HIGHEST / 2)}
        return {**init(generator), **logits}

    return replace(recipe, net=recipe.net._replace(init=begin), augment=searched)


@dataclass(frozen=True, kw_only=True)
class Dada(OneShot):
    """What a trial of `dada` does: search with `relaxed` (see `clean`), and train what is found by `train`.

    path: the Choice of places. estimator, magnitudes: see above. temperature: of the relaxed draws. hidden: of the control. xi:
    the rate of the step that is looked ahead; None: the weights' own. arch, control: optimisers of pi, p, m and of the control.
    """

    path: str
    estimator: Estimator = "relax"
    magnitudes: Magnitudes = "straight-through"
    temperature: float = 0.5
    hidden: int = 100
    xi: float | None = None
    arch: Optimizer = field(default_factory=partial(adam, 5e-3, betas=(0.5, 0.999)))
    control: Optimizer = field(default_factory=partial(adam, 5e-3, betas=(0.5, 0.999)))

    def wrong(self) -> list[str]:
        said = []
        if self.estimator not in get_args(Estimator):
            said.append(f"estimator is one of {', '.join(get_args(Estimator))}, but got {self.estimator!r}")
        if self.magnitudes not in get_args(Magnitudes):
            said.append(f"magnitudes is one of {', '.join(get_args(Magnitudes))}, but got {self.magnitudes!r}")
        if not 0 < self.temperature < math.inf or self.hidden < 1:
            said.append(f"`0 < temperature < inf` and `hidden >= 1` must hold, but got {self.temperature} and {self.hidden}")
        if self.xi is not None and not 0 <= self.xi < math.inf:
            said.append(f"`0 <= xi < inf` must hold, but got xi={self.xi}")
        if self.check:
            said.append("`check` compares architectures that share weights, but dada searches for augmentations: leave it at 0")
        return said

    def start(self, setting: loop.Setting) -> Params:
        learner, searched = setting.recipe.learner, setting.recipe.augment
        assert isinstance(searched, Searched)
        if (why := without_gradient(learner, "dada")) is not None:
            raise Infeasible(why)
        if (searched.place == "shot" or searched.around.shot is not None) and learner.noise(setting.shape):
            raise Infeasible(f"{type(learner).__name__} draws noise for each picture of an episode, and dada adds further shots "
                             f"after it is drawn. Take no policy at the place shot, or autoaugment, which adds them before.")
        weights, arch = parted(setting.meta)
        phi = relax.mlp_init({"pi": arch[PI], "p": arch[P]}, self.hidden, loop.generator(setting.seed, "control"))
        state = {f"{WEIGHTS}{k}": v for k, v in setting.recipe.optimizer.init(weights).items()}
        state |= {f"{ARCH}{k}": v for k, v in self.arch.init(arch).items()}
        state |= {f"{CONTROL}{k}": v for k, v in phi.items()}
        return loop.to(state | {f"{CONTROL_STATE}{k}": v for k, v in self.control.init(phi).items()}, setting.tasks.device)

    def step(self, recipe: Recipe, mode: Mode, chunk: int | None, state: Params, seed: int) -> loop.Step:
        """One of pi, p and m (and of the control), then one of the weights on episodes that are augmented anew."""
        candidates, net, loss, optimizer = recipe.augment, recipe.net, self.train.tasks.loss, recipe.optimizer
        assert isinstance(candidates, Searched)
        control, moments = relax.mlp(self.temperature), augmenting.moments(self.train.tasks)

        def draw(arch: Params, what: str, progress: float) -> Drawn:
            return Drawn.of(candidates, arch, seed, what, self.temperature, moments, progress)

        def step(
            meta: Params, state: Params, episodes: Episode, progress: float
        ) -> tuple[Params, Params, dict[str, Tensor]]:
            device = episodes.support_x.device
            now, learner = torch.tensor(progress, device=device), recipe.learner.at(progress)
            rates, arch_rates, control_rates = (loop.to(o.rates, device) for o in (optimizer, self.arch, self.control))
            train, val = episodes.select(slice(0, recipe.meta_batch)), episodes.select(slice(recipe.meta_batch, None))
            weights, arch = parted(meta)
            fixed = {k: v for k, v in meta.items() if not learnt(k)}
            own, theirs, phi, phis = (_under(state, part) for part in (WEIGHTS, ARCH, CONTROL, CONTROL_STATE))
            number = round(progress * recipe.steps)

            def value(part: Episode, w: Params) -> Tensor:
                return mean_loss(learner, net, loss, {**fixed, **w}, part, mode, chunk, recipe.precision)

            ahead = partial(step_ahead, own, rates, rate_ahead(self.xi, rates))
            with torch.no_grad():
                one = draw(arch, f"looking ahead from {number}", progress)
                pictures = one.relaxed(train, mixed=self.estimator == "gumbel", exact=self.magnitudes == "exact")
                part = {M: arch[M]} if self.estimator == "relax" else arch
                if mode == "loop":
                    with gradients.on_tape():
                        slope, f = exact_and_value(
                            lambda w, a: value(pictures(a), w), lambda w, a: value(val, w), weights, part, ahead, tape=True)
                else:
                    slope, f = exact_and_value(
                        lambda w, a: value(pictures(a), w), lambda w, a: value(val, w), weights, part, ahead)
                if self.estimator == "relax":
                    slope = {**slope, **one.score(arch, phi, f, control)}
                    found = relax.control_slope(_theta(arch), phi, one.u, one.v, f, control)
                    phi, phis = self.control.update(found, phis, phi, control_rates, now)
                slope = {k: g.detach() for k, g in slope.items()}
                arch, theirs = self.arch.update(slope, theirs, arch, arch_rates, now)
                arch = {**arch, M: arch[M].clamp(0, HIGHEST)}
                again = draw(arch, f"weights at {number}", progress)
                grads, metrics = mean_gradient(
                    learner, net, loss, {**fixed, **weights}, again.hard(train), mode, chunk, recipe.precision)
                weights, own = optimizer.update(parted(grads)[0], own, weights, rates, now)
            told = {WEIGHTS: own, ARCH: theirs, CONTROL: phi, CONTROL_STATE: phis}
            state = {f"{part}{k}": v for part, values in told.items() for k, v in values.items()}
            return {**fixed, **weights, **arch}, state, {**metrics, "clean_loss": f, "arch_entropy": _entropy(arch[PI])}

        return step

    def chosen(self, recipe: Recipe, proposal: Proposal, trial: Trial, last: Last) -> tuple[list[Config], dict[str, float]]:
        assert isinstance(recipe.augment, Searched)
        arch = parted(last.meta)[1]
        return [self.found(proposal.config, recipe.augment, arch)], {"arch_entropy": float(_entropy(arch[PI]))}

    def found(self, config: Config, searched: Searched, arch: Params) -> Config:
        """The config with the most probable pairs for its sub-policies, most probable first."""
        pi, p, m = arch[PI].tolist(), arch[P].sigmoid().tolist(), arch[M].tolist()
        best = sorted(range(len(pi)), key=lambda k: (-pi[k], k))[:searched.count]
        told: Config = {}
        for i in range(searched.count):
            k = best[i % len(best)]
            for j, name in enumerate(searched.pairs[k]):
                at = f"{self.path}.sub.{i}.step.{j}"
                told |= {f"{at}.operation": name, f"{at}.probability": min(max(round(10 * p[k][j]), 0), 10),
                         f"{at}.magnitude": min(max(round(10 * m[k][j]), 0), 9)}
        return self.space.normal({**config, **told})


# one sub-policy ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """A sub-policy that was drawn for all episodes of a step: `names`, which of them are applied (`on`), at which levels.

    u, v: the noise of the draw; number: of the pair; seed, what: of the pictures' own noise; progress: of the search, 0..1, for
    what else acts on the episodes.
    """

    searched: Searched
    number: int
    names: tuple[str, str]
    on: tuple[bool, bool]
    levels: tuple[float, float]
    u: Params
    v: Params
    seed: int
    what: str
    temperature: float
    moments: Moments | None
    progress: float = 0.0

    @classmethod
    def of(
        cls, searched: Searched, arch: Params, seed: int, what: str, temperature: float, moments: Moments | None,
        progress: float = 0.0,
    ) -> Drawn:
        theta = _theta(arch)
        u, v = relax.uniforms(theta, loop.generator(seed, what))
        draws = relax.drawn(theta, u, v)
        number = int(draws["pi"].hard.argmax())
        first, second = (bool(b) for b in draws["p"].hard[number].tolist())
        low, high = arch[M][number].clamp(0, HIGHEST).tolist()
        return cls(searched, number, searched.pairs[number], (first, second), (low, high), u, v, seed, what, temperature, moments,
                   progress)

    @property
    def place(self) -> str:
        return self.searched.place

    def score(self, arch: Params, phi: Params, value: Tensor, control: relax.Control) -> Params:
        """RELAX of pi and p."""
        found = relax.relax(_theta(arch), phi, self.u, self.v, value, control)
        return {PI: found["pi"], P: found["p"]}

    def hard(self, episodes: Episode, on: tuple[bool, bool] | None = None, level: Tensor | None = None) -> Episode:
        """Augmented; by the same noise, whichever are applied. level: the same levels [2] again, for a gradient to go back to."""
        steps = tuple(Step(*told) for told in zip(self.names, map(float, on or self.on), self.levels, strict=True))
        policy = SubPolicies((steps,), ranges=self.searched.ranges)
        here = {self.place: policy if level is None else Sloped(policy, level)}
        places = replace(self.searched.around, **here)  # type: ignore[arg-type]
        return places(episodes, loop.generator(self.seed, f"pictures {self.what}"), self.progress, self.moments)

    def relaxed(self, episodes: Episode, *, mixed: bool, exact: bool = False) -> Callable[[Params], Episode]:
        """The augmented episodes as a function of what is learnt: values are those of `hard`, gradients are relaxed.

        mixed: also in pi (the pictures times the pair's weight, which is 1) and in p (between applied and not). exact: in a
        magnitude by the operation's own derivative, where it has one.
        """
        plain = self.hard(episodes)
        turned = [self.hard(episodes, (self.on[0] ^ (j == 0), self.on[1] ^ (j == 1))) for j in (0, 1)] if mixed else []
        rows = episodes.support_x.shape[1]

        def pictures(arch: Params) -> Episode:
            level = arch[M][self.number]  # [2]
            now = self.hard(episodes, level=level) if exact else plain
            stepped = [j for j in (0, 1) if self.on[j] and not (exact and find(self.names[j]).differentiable)]
            shift = sum(level[j] - level[j].detach() for j in stepped)
            weight: Tensor | float = 1.0
            draws: dict[str, relax.Draw] = {}
            if mixed:
                draws = relax.drawn(_theta(arch), self.u, self.v)
                soft = (draws["pi"].z / self.temperature).softmax(-1)[self.number]
                weight = 1 + soft - soft.detach()

            def through(x: Tensor, others: list[Tensor]) -> Tensor:
                found = x * weight + self._as_brightness(shift, x)
                for j, other in enumerate(others):
                    share = (draws["p"].z[self.number, j] / self.temperature).sigmoid()
                    step = x - other if self.on[j] else other - x  # from not applied to applied
                    found = found + (share - share.detach()) * step
                return found

            x, query = now.support_x, now.query_x
            if self.place in ("support", "task"):
                x = through(x, [one.support_x for one in turned])
            if self.place == "shot":
                x = torch.cat([x[:, :rows], through(x[:, rows:], [one.support_x[:, rows:] for one in turned])], 1)
            if self.place in ("query", "task"):
                query = through(query, [one.query_x for one in turned])
            return now._replace(support_x=x, query_x=query)

        return pictures

    def _as_brightness(self, shift: Tensor | int, x: Tensor) -> Tensor | int:
        """Of values 0..1, as the pictures are normalised."""
        if isinstance(shift, int) or self.moments is None:
            return shift
        return shift / torch.as_tensor(self.moments[1], dtype=x.dtype, device=x.device).view(-1, 1, 1)


@dataclass(frozen=True, eq=False)
class Sloped(Policy):
    """What `policy`, of one sub-policy, draws, as a function of its levels [steps]."""

    policy: SubPolicies
    level: Tensor

    @property
    def operations(self) -> tuple[str, ...]:
        return self.policy.operations

    def plan(self, n: int, generator: Generator, progress: float | Tensor = 0.0) -> Plan:
        drawn = self.policy.plan(n, generator, progress)
        level = self.level.cpu()[:, None].expand(drawn.operation.shape)
        return drawn._replace(magnitude=ranges.magnitudes(self.policy.ranges, drawn.operation, level))


# small parts ------------------------------------------------------------------------------------------------------------------


def _theta(arch: Params) -> Params:
    return {"pi": arch[PI], "p": arch[P]}


def _under(state: Params, prefix: str) -> Params:
    return {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}


def _entropy(pi: Tensor) -> Tensor:
    """1 where all pairs are equally probable."""
    return -(pi.softmax(-1) * pi.log_softmax(-1)).sum() / math.log(max(2, len(pi)))
