"""Search with an architecture for every task: a learner that adapts `arch/` keys, trained on the mixture like any other.

Elsken et al. "Meta-Learning of Neural Architectures for Few-Shot Learning." CVPR 2020 (learners/metanas.py) · Lian et al.
"Towards Fast Adaptation of Neural Architectures with Meta Learning." ICLR 2020 (learners/t_nas.py).

The trial's score is that of the discrete nets, one a task, each with the weights that its task adapted: the metric `per_task`
says so, and `params` and `flops` are means over those nets. What the mixture would have scored stands beside it. `found` is the
architecture of the meta-parameters; with `alone` it is trained from the beginning as after any one-shot search, and that is the
score. With `retrain`, as published for T-NAS, the nets of some tasks are trained anew, and each is scored on its own task.
"""
from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from metasearch import measure
from metasearch.learners import Learner, gradients
from metasearch.learners.metanas import MetaNAS
from metasearch.learners.t_nas import TNAS
from metasearch.nets import Params
from metasearch.nets.discrete import ARCH, EDGES, Choices, entropy
from metasearch.nets.head import headed
from metasearch.objectives import Diverged, Infeasible, Trial, augmenting
from metasearch.objectives.evaluation import predictions, scores
from metasearch.objectives.judged import Judged, told_before
from metasearch.objectives.limits import Canonical, candidates, some_within
from metasearch.objectives.one_shot import Last, by_itself, check_logits, mode_of, options_of, searched
from metasearch.objectives.optimizer import Optimizer
from metasearch.objectives.recipe import Recipe, RecipeOf
from metasearch.objectives.shared import narrowed
from metasearch.objectives.train import Train
from metasearch.objectives.training import generator, to
from metasearch.records import Config, Proposal, Report
from metasearch.space import Space
from metasearch.tasks import TaskShape

__all__ = ["LOOKED_AT", "PerTask", "adapting", "buildable"]

LOOKED_AT = 50  # tasks of the bank whose architectures are looked at
SIZES = ("params", "flops")


def adapting(
    relaxed: RecipeOf, learner: Learner, optimizer: Optimizer, shots: int | None, config: Config, shape: TaskShape
) -> Recipe:
    """The recipe of a space's mixture with another learner and outer optimiser, on training episodes of the study's ways.

    shots: of training episodes; None: as many as the space's recipe has. A net without a head is given one.
    Raises ValueError for a net that cannot have one.
    """
    made = relaxed(config, shape)
    episode = (made.episode or shape)._replace(ways=shape.ways)
    episode = episode if shots is None else episode._replace(shots=shots)
    net = headed(made.net, shape.ways)
    return Recipe(net, learner, optimizer, made.meta_batch, made.steps, episode, made.precision, made.augment)


def buildable(built: Callable[[Config], Recipe], space: Space, dims: Sequence[str], method: str) -> Recipe:
    """The recipe of a mixture, of a configuration that can be built. Raises ValueError, in words, if there is none among the
    first tries, or if the mixture does not begin one logit for every option."""
    recipe, last = None, ""
    for seed in range(20):
        try:
            recipe = built(space.sample(np.random.default_rng(seed)))
            break
        except Infeasible as error:
            last = str(error)
    if recipe is None:
        raise ValueError(
            f"{method} adapts to the supports of a task by gradient, but {last}. Methods that train every architecture by "
            "itself take any learner: random, regularized-evolution, reinforce or tpe."
        )
    check_logits(recipe, space, dims, method)
    return recipe


@dataclass(frozen=True, kw_only=True)
class PerTask:
    """search: trains the mixture; its recipe is `adapting`'s with a MetaNAS or TNAS. single: the recipe of one architecture, by
    the same way, for its size. space, dims: the space file's SPACE and RELAXED.
    alone:   how the found architecture is trained by itself; None: the score is that of the per-task nets.
    check:   with `alone`: so many architectures are drawn at random, scored with the mixture's weights, which tasks adapt as they
             do in the search, and trained by themselves for `check_steps` (objectives/judged.py).
    finalists: with `alone`: so many architectures, that of the meta-parameters and others drawn from its shares, are trained for
             `check_steps`, and the best by itself is taken.
    canonical: the space file's, if it has one: of architectures that mean the same one is trained.
    retrain: so many tasks' nets are trained by `retrained`, for `retrain_steps`.
    """

    search: Train
    single: RecipeOf
    space: Space
    dims: tuple[str, ...]
    alone: Train | None = None
    check: int = 0
    check_steps: int = 50
    finalists: int = 1
    canonical: Canonical | None = None
    retrain: int = 0
    retrained: Train | None = None

    @property
    def train(self) -> Train:
        """What made the trial's last parcel."""
        return self.alone or self.search

    def recipes(self, config: Config) -> tuple[Recipe, ...]:
        """All that a trial trains: the mixture, and with `alone` an architecture like that of this config. Raises Infeasible."""
        return (*self.search.recipes(config), *(() if self.alone is None else self.alone.recipes(config)))

    def check_study(self, method: str) -> None:
        """Raises ValueError, in words, if no configuration can be searched on these tasks."""
        recipe = buildable(self.search.built, self.space, self.dims, method)
        self.search.tasks.check(recipe.episode or self.search.shape, "train")

    def __call__(self, proposal: Proposal, trial: Trial) -> Iterator[Report]:
        if self.alone is None:
            yield from self._searched(proposal, trial)
            return
        begun = searched(trial)
        if begun is None:
            if trial.start is None and self.alone.limits:
                self.within_limits(proposal.config)  # or it raises Infeasible, before anything is trained
            end, told, config = yield from self._searched(proposal, trial)
            yield from by_itself(self.alone, proposal, trial, end, told, config, None)
        else:
            end, told, config = begun["searched"], begun["supernet"], begun["config"]
            yield from by_itself(self.alone, proposal, trial, end, told, config, trial.start)

    def _searched(
        self, proposal: Proposal, trial: Trial
    ) -> Generator[Report, None, tuple[int, dict[str, float], Config]]:
        """Reports of the search; returns (the step it ended at, its metrics, the architecture of the meta-parameters)."""
        recipe, last = self.search.built(proposal.config), Last(trial.save)
        step, told, config, meta = 0, dict[str, float](), dict(proposal.config), Params()
        known = {name: told_before(trial, name) for name in ("finalists", "ranked", "checked")}
        for report in self.search(proposal, replace(trial, save=last)):
            step, ended = report.step, "train_seconds" in report.metrics  # which only the reports of an end have
            told = {f"supernet/{k}" if k in SIZES or self.alone else k: v for k, v in report.metrics.items()}
            if ended:
                kept = "kept_step" in report.metrics
                meta = last.best if kept else last.meta
                config = self.found(recipe, proposal.config, meta)
                assert report.score is not None
                if kept or last.facts.get("best_score", report.score) <= report.score:  # or another one follows
                    told |= yield from self._nets(recipe, proposal, trial, meta, step)
            if self.alone is None:
                yield replace(report, metrics=told, found=config if ended else None, checkpoint=report.checkpoint or None)
            else:
                if report.score is not None:
                    told["supernet/score"] = report.score
                yield Report(step, told, checkpoint=report.checkpoint or None)
        if self.alone is not None:
            arch = {k: v for k, v in meta.items() if k.startswith(ARCH)}
            found, options = partial(self.found, recipe, proposal.config), self._options()
            seed = proposal.seed or 0
            ranked, gave_way = candidates(found, arch, options, self.alone, self.finalists, seed, self.canonical)
            ranked = known["ranked"] or ranked
            told |= {"supernet/gave_way": float(gave_way)} if gave_way else {}
            judged = Judged(self.alone, self.space, options, self.check, self.check_steps, self.canonical)
            so_far = Report(step, told)
            config = yield from judged.best(ranked, proposal, trial, so_far, last.again, known["finalists"])
            shared = partial(self._inherited, recipe, meta=meta, trial=trial)
            told |= yield from judged(shared, proposal, trial, so_far, last.again, known["checked"])
        return step, told, config

    def within_limits(self, config: Config) -> Config:
        """Any architecture, with `alone`, that keeps the study's limits. Raises Infeasible."""
        assert self.alone is not None
        recipe = self.search.built(config)
        begun = recipe.learner.init(recipe.net, generator(0, "init"))
        logits = {k: v for k, v in begun.items() if k.startswith(ARCH)}
        return some_within(partial(self.found, recipe, config), logits, self._options(), self.alone)

    def found(self, recipe: Recipe, config: Config, arch: Params) -> Config:
        """The architecture of these logits, at the place of the relaxed dimensions of `config`."""
        numbers = _choices(recipe).numbers({k: v for k, v in arch.items() if k.startswith(ARCH)})
        return self.space.normal({**config, **{path: values[numbers[path]] for path, values in self._options().items()}})

    def _inherited(self, recipe: Recipe, config: Config, meta: Params, trial: Trial) -> float:
        """The score of an architecture with the mixture's weights, of which tasks adapt those that it uses."""
        tasks, options = self.search.tasks, self._options()
        net = narrowed(recipe.net, {path: values.index(config[path]) for path, values in options.items()})
        weights = to({k: v for k, v in meta.items() if not k.startswith(ARCH)}, tasks.device)
        assert isinstance(recipe.learner, MetaNAS | TNAS)
        learner = replace(recipe.learner, choices=EDGES).at(1.0)  # nothing is left to choose, of a node's inputs either
        mode = mode_of(recipe, self.search)
        bank = augmenting.tested(recipe.augment, self.search.bank.episodes, augmenting.moments(tasks))
        return float(scores(net, learner, tasks, weights, bank, mode=mode, chunk=trial.chunk).mean())

    def _options(self) -> dict[str, tuple[Any, ...]]:
        return options_of(self.space, self.dims)

    # -- the nets of single tasks ---------------------------------------------------------------------------------------------

    def _nets(
        self, recipe: Recipe, proposal: Proposal, trial: Trial, meta: Params, step: int
    ) -> Generator[Report, None, dict[str, float]]:
        """What is worth telling of the architectures that tasks of the bank chose for themselves."""
        configs, mixed = self.adapted(recipe, proposal.config, meta)
        names = [repr(sorted(config.items())) for config in configs]
        known = dict(zip(names, configs, strict=True))
        sizes = {name: self._size(config) for name, config in known.items()}
        told = {f"per_task/{k}": v for k, v in {"architectures": float(len(known)), **mixed}.items()}
        mark = {} if self.alone else {"per_task": 1.0}
        if not self.alone:
            for i, name in enumerate(SIZES):
                counted = [size[i] for n in names if (size := sizes[n]) is not None]
                mark |= {name: float(np.mean(counted))} if counted else {}
        if self.retrain and self.retrained is not None:
            scores, trained = [], dict[str, tuple[float, ...] | None]()
            for i, name in enumerate(names[: self.retrain]):
                if name not in trained:
                    if trial.late:
                        break
                    trained[name] = self._anew(known[name], proposal, trial)
                    yield Report(step, {"per_task/retrained": float(i + 1)})
                each = trained[name]
                scores += [] if each is None else [each[i]]
            if scores:
                told |= {"per_task/retrained_score": float(np.mean(scores)), "per_task/retrained": float(len(scores))}
        return told | mark

    def adapted(self, recipe: Recipe, config: Config, meta: Params) -> tuple[list[Config], dict[str, float]]:
        """(the architecture of each of the first tasks of the bank; of their adapted mixtures the mean score, and the entropy of
        their shares: 0 where nothing is left to choose)."""
        tasks, learner = self.search.tasks, recipe.learner.at(1.0)
        assert isinstance(learner, MetaNAS | TNAS)
        soft = replace(learner, discrete="never").at_test()
        episodes = self.search.bank.episodes.select(slice(0, LOOKED_AT))
        episodes = augmenting.tested(recipe.augment, episodes, augmenting.moments(tasks))
        meta, configs, scores, open_ = to(meta, tasks.device), list[Config](), list[float](), list[float]()
        for i in range(episodes.count):
            e = episodes.select(i)
            with gradients.on_tape(graphs=False):
                task = soft.adapt(recipe.net, tasks.loss, meta, e.support_x, e.support_y)
                output = predictions(recipe.net, soft, meta, task, e.support_x, e.query_x, looped=True).detach()
            configs.append(self.found(recipe, config, task))
            scores.append(float(tasks.score(output, e.query_y)))
            open_.append(float(entropy(soft.mixed({k: v for k, v in task.items() if k.startswith(ARCH)}))))
        return configs, {"mixture_score": float(np.mean(scores)), "arch_entropy": float(np.mean(open_))}

    def _size(self, config: Config) -> tuple[int, int] | None:
        """(learnt numbers, operations) of one architecture's net; None if it cannot be built."""
        try:
            net = self.single(config, self.search.shape).net
        except ValueError:
            return None
        meta = net.init(generator(0, "init"))
        return measure.parameters(meta), measure.flops(net, meta, self.search.shape.x)

    def _anew(self, config: Config, proposal: Proposal, trial: Trial) -> tuple[float, ...] | None:
        """The scores on the bank of an architecture that is trained by itself; None if that did not succeed."""
        assert self.retrained is not None
        try:
            lent = replace(trial, save=None, start=None, own=False, deadline=None)
            return list(self.retrained(Proposal(config, seed=proposal.seed), lent))[-1].episodes
        except (Diverged, Infeasible):
            return None


def _choices(recipe: Recipe) -> Choices:
    learner = recipe.learner
    assert isinstance(learner, MetaNAS | TNAS)
    return learner.choices
