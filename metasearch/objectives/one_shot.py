"""What every one-shot search does: train all architectures at once, choose one, and train that one as any other.

The weights learn on one part of the training classes, the choice is made on the other. The trial's score is that of the
architecture that was found, trained from the beginning; what the supernet itself scored, is a metric, which says little of what
comes out of it: `check` measures how much. How the supernet learns and what is chosen, is a subclass's (relaxed.py, shared.py).
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metasearch.learners import Learner
from metasearch.nets import Params
from metasearch.nets.discrete import ARCH
from metasearch.objectives import Infeasible, Mode, Trial, augmenting, parcel
from metasearch.objectives.episodic import block_steps, draw_block
from metasearch.objectives.evaluation import scores
from metasearch.objectives.judged import Judged, told_before
from metasearch.objectives.limits import Canonical, looks
from metasearch.objectives.recipe import Recipe, RecipeOf
from metasearch.objectives.train import Train
from metasearch.objectives.training import Course, Setting, Step, generator, only_learnt, to, training, within
from metasearch.records import Config, Proposal, Report
from metasearch.space import Choice, Space
from metasearch.tasks import Episode, TaskDistribution, TaskShape, concatenate

__all__ = [
    "ARCH", "Last", "OneShot", "by_itself", "check_logits", "mode_of", "options_of", "parted", "searched", "without_gradient",
]


@dataclass(frozen=True, kw_only=True)
class OneShot(ABC):
    """train:  how the found architecture is trained and scored; the supernet is validated on the same bank.
    relaxed, space, dims: the space file's `relaxed`, SPACE and RELAXED.
    steps:  outer steps of the search; None: as many as the recipe of the supernet has.
    share:  of the training classes, on which the weights learn.
    check:  so many architectures are drawn at random, scored with the supernet's weights, trained by themselves for
            `check_steps` outer steps, and the rank correlation of both scores is told ("supernet/rank_correlation").
    finalists: so many architectures that the search likes are trained for `check_steps`, and the best is taken.
    canonical: the space file's, if it has one: of architectures that mean the same one is trained.
    """

    train: Train
    relaxed: RecipeOf
    space: Space
    dims: tuple[str, ...]
    steps: int | None = None
    share: float = 0.5
    check: int = 0
    check_steps: int = 50
    finalists: int = 1
    canonical: Canonical | None = None

    def __post_init__(self) -> None:
        said = self.wrong()
        if self.steps is not None and self.steps < 1:
            said.append(f"`search_steps >= 1` must hold, but got search_steps={self.steps}")
        if not 0 < self.share < 1:
            said.append(f"`0 < share < 1` must hold, but got share={self.share}")
        if self.check < 0 or self.check == 1 or self.check_steps < 1:
            said.append(f"`check = 0` or `check >= 2`, and `check_steps >= 1` must hold, but got check={self.check}, "
                        f"check_steps={self.check_steps}")
        if self.finalists < 1:
            said.append(f"`finalists >= 1` must hold, but got finalists={self.finalists}")
        if said:
            raise ValueError("; ".join(said))

    def wrong(self) -> list[str]:
        """What is wrong with a subclass's own fields, in words."""
        return []

    @abstractmethod
    def start(self, setting: Setting) -> Params:
        """The state of the search at its beginning."""

    @abstractmethod
    def step(self, recipe: Recipe, mode: Mode, chunk: int | None, state: Params, seed: int) -> Step:
        """One outer step; it is given the episodes of the weights and, behind them, as many of the other classes. state: at which
        the search begins or goes on; seed: of the trial."""

    @abstractmethod
    def chosen(self, recipe: Recipe, proposal: Proposal, trial: Trial, last: Last) -> tuple[list[Config], dict[str, float]]:
        """The architectures that the search found, the best first, and what else is worth telling."""

    def within_limits(self, config: Config) -> Config:
        """Any architecture that keeps the study's limits, beside what is not relaxed in `config`. Raises Infeasible. Here what is
        searched makes none larger, as augmentations do not."""
        within(self.train.limits, looks(self.train, config))
        return config

    def __call__(self, proposal: Proposal, trial: Trial) -> Iterator[Report]:
        begun = searched(trial)
        if begun is None:
            if trial.start is None and self.train.limits:
                self.within_limits(proposal.config)  # or it raises Infeasible, before anything is trained
            end, told, config = yield from self._searched(proposal, trial)
            start = None
        else:
            end, told, config, start = begun["searched"], begun["supernet"], begun["config"], trial.start
        yield from by_itself(self.train, proposal, trial, end, told, config, start)

    # -- the search ----------------------------------------------------------------------------------------------------------

    def options(self) -> dict[str, tuple[Any, ...]]:
        """The options of every relaxed dimension, in the order of its logits."""
        return options_of(self.space, self.dims)

    def supernet(self, config: Config) -> Recipe:
        """The recipe of the mixture; the study's limits and number of steps are those of a single architecture."""
        recipe = replace(self.train, recipe=self.relaxed, steps=None).built(config)
        return replace(recipe, steps=self.steps or recipe.steps)

    def recipes(self, config: Config) -> tuple[Recipe, ...]:
        """All that a trial trains: the mixture, and an architecture like that of this config. Raises Infeasible."""
        return (self.supernet(config), *self.train.recipes(config))

    def check_mixture(self, config: Config, method: str) -> None:
        """Raises ValueError if the mixture has not one logit for every option of the relaxed dimensions, and none beside them."""
        try:
            recipe = self.supernet(config)
        except Infeasible:
            return  # another config may not be
        check_logits(recipe, self.space, self.dims, method)

    def check_learner(self, config: Config, method: str, instead: str) -> None:
        """Raises ValueError for a learner that moves its weights by something else than the gradient of a loss on queries, as
        Reptile does: then `method` has nothing to differentiate. instead: what to do about it."""
        try:
            learner = self.supernet(config).learner
        except Infeasible:
            return  # another config may not be
        if (why := without_gradient(learner, method)) is not None:
            raise ValueError(f"{why} {instead}")

    def check_classes(self, config: Config) -> None:
        """Raises ValueError if the parts of the training classes are too small for the episodes of the search."""
        try:
            shape = self.supernet(config).episode or self.train.shape
        except Infeasible:
            return  # another config may not be
        _halves(self.train.tasks, self.share, shape)

    def check_limits(self, config: Config) -> None:
        """Raises ValueError if no architecture keeps the study's limits. Latencies are those of the machine that trains, and
        where not all dimensions are relaxed, others of the same space may keep them: then trials say so."""
        limits = {name: most for name, most in self.train.limits.items() if name != "latency_ms"}
        if limits and {path for path, _ in self.space.columns()} == set(self.dims):
            try:
                replace(self, train=replace(self.train, limits=limits)).within_limits(config)
            except Infeasible as error:
                raise ValueError(str(error)) from error

    def _searched(
        self, proposal: Proposal, trial: Trial
    ) -> Generator[Report, None, tuple[int, dict[str, float], Config]]:
        """Reports of the search; returns (the step it ended at, its metrics, the config that was found)."""
        recipe, last = self.supernet(proposal.config), Last(trial.save)
        study = replace(self.train, recipe=self.relaxed, steps=recipe.steps, keep="last", limits={}, looks=False)
        report, told = Report(0), dict[str, float]()
        known = {name: told_before(trial, name) for name in ("finalists", "ranked", "checked")}
        for report in training(recipe, study, proposal, replace(trial, save=last), self._course):
            told = {f"supernet/{k}": v for k, v in report.metrics.items()}
            if report.score is not None:
                told["supernet/score"] = report.score
            yield Report(report.step, told, checkpoint=report.checkpoint or None)
        ranked, more = self.chosen(recipe, proposal, trial, last)
        told |= {f"supernet/{k}": v for k, v in more.items()}
        judged = Judged(self.train, self.space, self.options(), self.check, self.check_steps, self.canonical)
        best = known["ranked"] or judged.distinct(ranked)[: self.finalists]
        so_far = Report(report.step, told)
        config = yield from judged.best(best, proposal, trial, so_far, last.again, known["finalists"])
        shared = partial(self._inherited, recipe, meta=last.meta, trial=trial)
        told |= yield from judged(shared, proposal, trial, so_far, last.again, known["checked"])
        return report.step, told, config

    def _course(self, setting: Setting) -> Course:
        recipe, _, trial, tasks, shape, seed, meta, _ = setting
        try:
            parts = _halves(tasks, self.share, shape)
        except ValueError as error:
            raise Infeasible(str(error)) from error
        augmenting.one_version(recipe, "a one-shot search")
        rows, per_block = recipe.meta_batch, max(1, block_steps(shape, 2 * recipe.meta_batch, recipe.steps))

        def draw(number: int) -> Episode:
            """Of every step first the episodes of the weights, then those of alpha."""
            both = [draw_block(recipe, part, shape, per_block, 2 * seed + i, number) for i, part in enumerate(parts)]
            return _alternating(both[0], both[1], rows)

        def begin(meta: Params, state: Params) -> tuple[Step, Mode]:
            mode = self.mode(recipe)
            return self.step(recipe, mode, trial.chunk, state, seed), mode

        return Course(meta, self.start(setting), per_block, 2 * rows, draw, begin)

    def mode(self, recipe: Recipe) -> Mode:
        return mode_of(recipe, self.train)

    # -- is the mixture a judge of its parts? ----------------------------------------------------------------------------------

    def _inherited(self, recipe: Recipe, config: Config, meta: Params, trial: Trial) -> float:
        """The score of an architecture with the mixture's weights: its options by number, so that nothing else is computed."""
        tasks = self.train.tasks
        numbers = {f"{ARCH}{path}": torch.tensor(values.index(config[path])) for path, values in self.options().items()}
        meta = to({**meta, **numbers}, tasks.device)
        bank, mode = augmenting.tested(recipe.augment, self.train.bank.episodes, augmenting.moments(tasks)), self.mode(recipe)
        return float(scores(recipe.net, recipe.learner.at(1.0), tasks, meta, bank, mode=mode, chunk=trial.chunk).mean())


# -- the found one ---------------------------------------------------------------------------------------------------------------


def by_itself(
    train: Train, proposal: Proposal, trial: Trial, end: int, told: Mapping[str, float], config: Config, start: Path | None
) -> Iterator[Report]:
    """`train` on what was found, from the beginning; its steps are counted on from those of the search, which ended at `end`. A
    deadline cuts the search, not this: the score of a few steps would pass for that of a training.

    told: metrics of the search. start: its own parcel, if it had begun already (see `searched`)."""
    save = trial.save

    def later(step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
        assert save is not None
        return save(end + step, tensors, {**facts, "searched": end, "supernet": dict(told)})

    lent = replace(trial, start=start, own=start is not None, save=None if save is None else later, deadline=None)
    for report in train(Proposal(config, seed=proposal.seed), lent):
        yield replace(report, step=end + report.step, metrics={**report.metrics, **told}, found=config)


def searched(trial: Trial) -> dict[str, Any] | None:
    """The facts of the parcel that a trial goes on from, if it had found its architecture already."""
    if trial.start is None or not trial.own:
        return None
    facts = parcel.read(trial.start)[1]
    return facts if "searched" in facts else None


# -- small parts -----------------------------------------------------------------------------------------------------------------


class Last:
    """A trial's `save` that also keeps the last tensors and facts at hand."""

    def __init__(self, save: Callable[[int, Mapping[str, Tensor], Mapping[str, Any]], str] | None) -> None:
        self._save = save
        self.meta: Params = {}
        self.state: Params = {}
        self.best: Params = {}
        self.facts: dict[str, Any] = {}
        self._tensors: Mapping[str, Tensor] = {}

    def __call__(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
        self.meta, self.state, self.best = (
            {k[len(part):]: v for k, v in tensors.items() if k.startswith(part)} for part in ("meta/", "state/", "best/")
        )
        self.facts, self._tensors = dict(facts), tensors
        return "" if self._save is None else self._save(step, tensors, facts)

    def again(self, step: int, **facts: Any) -> str:
        """The last parcel once more, with further facts, which stay."""
        self.facts |= facts
        return "" if self._save is None else self._save(step, self._tensors, self.facts)


def mode_of(recipe: Recipe, train: Train) -> Mode:
    """How a mixture runs: it is never compiled, for its programs would be many."""
    return "loop" if recipe.learner.looped is not None or train.mode == "loop" else "vmap"


def options_of(space: Space, dims: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The options of every relaxed dimension, in the order of its logits."""
    columns = dict(space.columns())
    return {path: dim.values for path in dims if isinstance(dim := columns[path], Choice)}


def check_logits(recipe: Recipe, space: Space, dims: Sequence[str], method: str) -> None:
    """Raises ValueError, in words, if a mixture does not begin one logit for every option of every relaxed dimension, or begins
    some for other dimensions: nobody would choose what they learn."""
    begun, options = recipe.net.init(generator(0, "init")), options_of(space, dims)
    said = f"{method} needs `arch/<dim>`, one logit an option, for every dimension in RELAXED"
    lacking = [p for p in dims if p not in options or begun.get(f"{ARCH}{p}", torch.empty(0)).shape != (len(options[p]),)]
    if lacking or not dims:
        raise ValueError(
            f"{said}, but relaxed(config, shape) begins none for {', '.join(lacking) or 'any'}. metasearch/nets/mixture.py has "
            "edges that read them."
        )
    beside = [key for key in begun if key.startswith(ARCH) and key.removeprefix(ARCH) not in dims]
    if beside:
        raise ValueError(f"{said} and for no other, but relaxed(config, shape) begins {', '.join(beside)}: name them in RELAXED, "
                         "or read those dimensions from the config.")


def without_gradient(learner: Learner, method: str) -> str | None:
    """Why `method` has nothing to differentiate, in words; None: it has."""
    own = type(learner)
    if own.episode_gradient is Learner.episode_gradient or own.episode_loss is not Learner.episode_loss:
        return None
    return (f"{method} follows the gradient of the loss on queries, but {own.__name__} learns by none (it has an "
            "episode_gradient of its own).")


def parted(params: Params) -> tuple[Params, Params]:
    """(weights, arch): what is learnt."""
    free = only_learnt(params)
    return {k: v for k, v in free.items() if not k.startswith(ARCH)}, {k: v for k, v in free.items() if k.startswith(ARCH)}


def _alternating(a: Episode, b: Episode, rows: int) -> Episode:
    """rows of a, rows of b, the next rows of a, ..."""
    steps = a.count // rows
    order = torch.arange(2 * a.count).view(2, steps, rows).transpose(0, 1).flatten()
    return concatenate([a, b]).select(order.to(a.support_x.device))


def _halves(tasks: TaskDistribution, share: float, shape: TaskShape) -> list[TaskDistribution]:
    """The tasks of the weights and those of the architecture. Raises ValueError if one cannot give such episodes."""
    try:
        parts = [tasks.part(share, 0), tasks.part(share, 1)]
        for part in parts:
            part.check(shape, "train")
    except ValueError as error:
        more = "" if share == 0.5 else f" Or set another share: {share:g} of the classes are for the weights, 0.5 halves them."
        raise ValueError(f"weights and architecture learn on a part of the classes each, but {error}{more}") from error
    return parts
