"""`train`: what a trial does unless its method says otherwise: build the recipe of a config, fit it, score it on the bank."""
from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from metasearch.objectives import Infeasible, Mode, Trial, augmenting
from metasearch.objectives.recipe import Recipe, RecipeOf
from metasearch.records import Config, Proposal, Report
from metasearch.tasks import Bank, TaskDistribution, TaskShape

__all__ = ["Train"]


@dataclass(frozen=True)
class Train:
    """What all trials of a study share, and the Objective that trains one of them.

    recipe:   the space file's function. tasks, shape: episodes on which every trial is scored.
    validation_episodes, validation_seed: the bank; equal for all trials, so that scores are paired.
    steps, meta_batch: override the recipe's. keep: "best" goes back to the best validated step, "last" does not.
    report_every, checkpoint_every: in outer steps; None: ten times in a trial.
    mode: "auto" measures once per net shape and study. expected_trials: of the study's budget (a long study earns a compilation).
    limits: the most that an architecture may have of what measure.looks says of it ("params", "flops", "latency_ms"); a config
    beyond one is infeasible and is not trained.
    looks: False: only "params" and "flops" are measured (to count the operations of a mixture's inner loop takes long).
    facts: what the parcels should say of the study (plain JSON: the space's and the tasks' names and arguments).
    remarked: what a process has remarked upon already, for all trials (and all that is made of this by `replace`).
    """

    recipe: RecipeOf
    tasks: TaskDistribution
    shape: TaskShape
    validation_episodes: int = 200
    validation_seed: int = 0
    steps: int | None = None
    meta_batch: int | None = None
    keep: Literal["last", "best"] = "last"
    report_every: int | None = None
    checkpoint_every: int | None = None
    mode: Mode | Literal["auto"] = "auto"
    expected_trials: int = 1
    facts: dict[str, Any] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    looks: bool = True
    remarked: set[str] = field(default_factory=set, repr=False, compare=False)

    @cached_property
    def bank(self) -> Bank:
        """The validation episodes of the study, built once per process."""
        return self.tasks.bank("val", self.validation_episodes, seed=self.validation_seed, shape=self.shape)

    def built(self, config: Config) -> Recipe:
        """The recipe of a config under the study's overrides. Raises Infeasible for a config that means nothing trainable."""
        try:
            recipe = self.recipe(config, self.shape)
            for shape in (augmenting.given(recipe, recipe.episode or self.shape), augmenting.at_test(recipe, self.shape)):
                recipe.learner.check(self.tasks, shape)
        except ValueError as error:
            raise Infeasible(str(error)) from error
        return replace(recipe, steps=self.steps or recipe.steps, meta_batch=self.meta_batch or recipe.meta_batch)

    def recipes(self, config: Config) -> tuple[Recipe, ...]:
        """All that a trial of this config trains. Raises Infeasible."""
        return (self.built(config),)

    def __call__(self, proposal: Proposal, trial: Trial) -> Iterator[Report]:
        recipe = self.built(proposal.config)
        yield from recipe.fit(recipe, self, proposal, trial)

    def remark(self, words: str, *, about: str | None = None) -> None:
        """Something worth a line in the log of the study: of all that is said about the same thing (the words, if that is not
        named), the first."""
        if (about or words) in self.remarked:
            return
        self.remarked.add(about or words)
        logging.getLogger("metasearch.train").warning(words)
