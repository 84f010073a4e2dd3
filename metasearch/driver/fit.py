"""Do the parts of a study fit each other? Everything is asked before any compute starts, and told all at once."""
from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

import numpy as np
from pydantic import ValidationError

from metasearch import plugins
from metasearch.driver import spending
from metasearch.driver.study_file import in_words
from metasearch.plugins import did_you_mean, loaded, reason

if TYPE_CHECKING:
    from metasearch.driver.study import Study
    from metasearch.driver.study_file import Source
    from metasearch.objectives import Objective
    from metasearch.objectives.recipe import Recipe
    from metasearch.records import Config
    from metasearch.space import Space
    from metasearch.strategies import Mutate, Strategy
    from metasearch.strategies.pba import Pba
    from metasearch.tasks import TaskDistribution, TaskShape

__all__ = ["checked", "loaded", "problems", "untestable"]

T = TypeVar("T")
NO_SPACE = "?"  # stands for a space that the study does not name
TRIES = 1000  # configurations that are tried before a space is said not to fit its tasks: as many as end a study
PATIENCE = 2.0  # seconds for that


def checked(source: Source) -> Study:
    """The study of a source, if everything about it is right.

    Raises StudyError with all that is not: unknown keys, values out of range, and what does not fit, even beside wrong keys.
    """
    from metasearch.driver.study import Study, StudyError

    found, study = list(source.wrong), None
    try:
        study = Study.model_validate(source.table)
    except ValidationError as error:
        found += in_words(error, Study, source)
        rest = _salvaged(source.table, [item["loc"] for item in error.errors()])
        with contextlib.suppress(ValidationError):
            study = Study.model_validate(rest)
    if study is not None:
        said = [f"space = '{NO_SPACE}'"]
        if study.tasks is None and "tasks" in source.table:  # it is there, but too wrong to be looked at
            said.append("tasks is missing")
        found += [problem for problem in problems(study) if not problem.startswith(tuple(said))]
    if found or study is None:
        raise StudyError(found, source.where)
    return study


def _salvaged(table: Mapping[str, Any], wrong: list[tuple[int | str, ...]]) -> dict[str, Any]:
    """The table without the keys that are wrong, so that the others can be looked at."""
    rest: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in table.items()}
    for path in wrong:
        first = str(path[0]) if path else ""
        inner = rest.get(first)
        if len(path) > 1 and isinstance(inner, dict) and path[1] in inner:
            del inner[path[1]]
        else:
            rest.pop(first, None)  # a whole table is wrong, or lacks what it needs
    rest = {"name": "unnamed", "space": NO_SPACE, **rest}
    if not set(rest.get("budget", ())) & {"trials", "coverage", "hours"}:
        rest["budget"] = {"trials": 1}
    return rest


def problems(study: Study) -> list[str]:
    """Every reason, in words, why a study cannot start. Loads what the names stand for, data included; trains nothing."""
    found: list[str] = []
    space = _space(study, found)
    strategy, uniform, objective = _method(study, space, found)
    tasks = _tasks(study, found)
    if space is not None and tasks is not None:
        _recipes(study, space, tasks, objective, found)
    _budget(study, strategy, uniform, found)
    _driver(study, found)
    return list(dict.fromkeys(found))


def _space(study: Study, found: list[str]) -> Space | None:
    module = _try(found, f"space = '{study.space_name}'", study.space_module, study.space_name)
    if module is None:
        return None
    if not study.has_own_method and not callable(getattr(module, "recipe", None)):
        found.append(f"space = '{study.space_name}' must define recipe(config, shape) -> Recipe, but it has none.")
    return _try(found, f"space = '{study.space_name}'", study.space, study.space_name)


def _method(study: Study, space: Space | None, found: list[str]) -> tuple[Strategy | None, bool, Objective | None]:
    """Does the strategy fit the space? Answers with it, if it can be built, whether it draws uniformly, so that coverage can be
    counted, and the objective, if the method has one of its own."""
    name, where = study.method.name, f"method.name = '{study.method.name}'"
    if study.has_own_method:
        kind = getattr(_try(found, where, lambda: plugins.module("methods", name), name), "Hyperparameters", None)
        wrong = [] if kind is None else _hyperparameters(study, kind)
        found += wrong
        pair = _try(found, where, study.pair, name) if space is not None and not wrong else None
        return (None, True, None) if pair is None else (pair[0], bool(pair[0].uniform), pair[1])
    from metasearch.strategies import Strategy
    from metasearch.strategies.pba import Pba

    kind = _try(found, where, lambda: plugins.find("strategies", name, Strategy), name)
    if kind is None:
        known = [*plugins.names("strategies"), *plugins.names("methods")]
        if name.replace("_", "-") not in plugins.names("strategies"):
            found[-1] = f"{where} is neither a strategy nor a method.{did_you_mean(name, known)}"
        return None, True, None  # unknown: coverage is not to blame
    wrong = _hyperparameters(study, kind.Hyperparameters)
    found += wrong
    if space is not None and not wrong:
        strategy = _try(found, where, study.strategy, name)
        if isinstance(strategy, Pba):
            found += _population(study, space, strategy)
        if strategy is not None and hasattr(study.space_module(), "mutations"):
            _try(found, f"space = '{study.space_name}'", partial(_mutated, strategy.mutate, space))
        return strategy, strategy is None or bool(strategy.uniform), None
    return None, bool(kind.uniform), None


def _population(study: Study, space: Space, strategy: Pba) -> list[str]:
    """A population that can never be what it was said to be: too few founders, or nothing in which they could change."""
    from metasearch.space import Choice

    members, trials, wrong = strategy.hyperparameters.population, study.budget.trials, list[str]()
    if trials is not None and trials < members:
        wrong.append(f"method.population = {members}, but budget.trials = {trials} founds no more than that. "
                     f"Set budget.trials to {members} (what goes on from founders costs none), or lower method.population.")
    if all(isinstance(leaf, Choice) or path.endswith(".count") for path, leaf in space.columns()):
        wrong.append(f"method.name = '{study.method.name}' explores numbers, but the space '{study.space_name}' has none. "
                     "Take random, regularized-evolution or reinforce.")
    return wrong


def _mutated(mutate: Mutate, space: Space, times: int = 5) -> None:
    """Raises ValueError if the space file's own mutation fails, or makes what is no config of the space."""
    rng = np.random.default_rng(0)
    for _ in range(times):
        parent = space.sample(rng)
        child, _ = mutate(parent, rng)
        if wrong := space.problems(child):
            raise ValueError(f"mutations(config, rng) makes what is no config of {parent}: {'; '.join(wrong)}")


def _hyperparameters(study: Study, kind: type[Any]) -> list[str]:
    """Unknown and wrongly typed hyper-parameters; their ranges are the strategy's own to check."""
    name, given = study.method.name, study.method.arguments
    hints = _hints(kind)
    known = [field.name for field in fields(kind)]
    wrong = [f"method.{key} is no hyper-parameter of {name}.{did_you_mean(key, known)}" for key in given if key not in known]
    for key in (k for k in known if k in given and k in hints):
        wrong += _mistyped(f"method.{key}", given[key], hints[key])
    wrong += [
        f"method.{f.name} is missing: {name} needs it." for f in fields(kind)
        if f.name not in given and f.default is MISSING and f.default_factory is MISSING
    ]
    return wrong


def _tasks(study: Study, found: list[str]) -> TaskDistribution | None:
    """The tasks, if they can give the study's episodes."""
    if study.tasks is None:
        if not study.has_own_method:
            known = ", ".join(plugins.names("tasks"))
            found.append(f"tasks is missing: add [tasks] with name = 'glyphs' or another of {known}.")
        return None
    from metasearch import tasks as room

    name, arguments = study.tasks.name, study.tasks.arguments
    wrong = _try(found, f"tasks.name = '{name}'", lambda: room.problems(name, arguments), name)
    if wrong is None or wrong:
        found += [f"tasks: {problem}" for problem in wrong or []]
        return None
    tasks = _try(found, f"tasks.name = '{name}'", study.tasks_distribution, name)
    if tasks is None:
        return None
    shape, before = study.shape(tasks), len(found)
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    for split in splits:
        _try(found, "tasks", partial(tasks.check, shape, split))
    if len(found) == before and (said := untestable(tasks, shape)) is not None and _has_test_classes(tasks):
        found.append(f"tasks: no trial could ever be evaluated: {said}")
    return tasks if len(found) == before else None


def untestable(tasks: TaskDistribution, shape: TaskShape) -> str | None:
    """Why the test split cannot give such episodes, in words; None: it can. The split stays sealed: nothing is drawn."""
    try:
        tasks.check(shape, "test")
    except ValueError as error:
        return str(error)
    return None


def _has_test_classes(tasks: TaskDistribution) -> bool:
    """Tasks may be without a test split, for who only searches."""
    try:
        return tasks.class_count("test") > 0
    except ValueError:
        return False


def _recipes(study: Study, space: Space, tasks: TaskDistribution, objective: Objective | None, found: list[str]) -> None:
    """Does any configuration mean something on these tasks? If none does (Conv-4 on vectors), every trial would be refused.

    objective: of a method of its own; None: `train`.
    """
    from metasearch.objectives import Infeasible, augmenting
    from metasearch.objectives.train import Train
    from metasearch.space import digest

    shape, recipe = study.shape(tasks), getattr(study.space_module(), "recipe", None)
    if not study.has_own_method and callable(recipe):
        objective = Train(recipe, tasks, shape, steps=study.train.steps)
    recipes: Callable[[Config], tuple[Recipe, ...]] | None = getattr(objective, "recipes", None)
    if recipes is None:
        return
    until, last, tried = time.monotonic() + PATIENCE, "", set[str]()
    for seed in range(TRIES):
        config = space.sample(np.random.default_rng(seed))
        if (name := digest(config)) in tried:
            continue
        tried.add(name)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                built = recipes(config)
            for one in built:
                augmenting.check(one, tasks, one.episode or shape)
            found += _too_long(study, built[-1].steps)
            return
        except Infeasible as error:
            last = str(error)
        except (Exception, SystemExit):
            return  # a config that breaks its recipe is a failed trial, not a wrong study
        if len(tried) == space.size:
            break
        if time.monotonic() > until:
            return  # slow, so nothing is known
    found.append(f"space = '{study.space_name}': no configuration fits these tasks: of {len(tried):,} none can be built. {last}")


def _too_long(study: Study, steps: int | None) -> list[str]:
    """A strategy that trains some trials for longer than a recipe's schedules last: a rate that falls to 0 would go below it."""
    steps, longest = study.train.steps or steps, study.method.arguments.get("max_steps")
    if steps is None or not isinstance(longest, int) or longest <= steps:
        return []
    return [
        f"method.max_steps = {longest}, but a trial has {steps} outer steps, over which its schedules stretch. "
        f"Set train.steps to {longest} or more, or lower method.max_steps."
    ]


def _budget(study: Study, strategy: Strategy | None, uniform: bool, found: list[str]) -> None:
    """Can the coverage be counted, and can it be reached among what the strategy draws from?"""
    if study.budget.coverage is not None and not uniform:
        found.append(
            f"budget.coverage counts uniform draws, and method '{study.method.name}' makes none. "
            "Use budget.trials or budget.hours, or the method random."
        )
    elif strategy is not None:
        _try(found, "budget", partial(spending.goal, study, strategy))


def _driver(study: Study, found: list[str]) -> None:
    """A trial that cannot be placed would wait for ever. Of a cluster elsewhere (an address) only Ray knows."""
    driver = study.driver
    if driver.address is not None and driver.kind == "local":
        found.append("driver.address needs driver.kind = 'ray', but got 'local'.")
    if driver.address is not None or (driver.kind == "ray" and os.environ.get("RAY_ADDRESS")):
        return
    cpus = os.cpu_count() or 1
    if driver.cpus > cpus:
        found.append(f"driver.cpus = {driver.cpus:g}, but this machine has {cpus}, so no trial could start. Lower cpus.")
    if driver.gpus > 0:
        import torch

        gpus = torch.cuda.device_count()
        if driver.gpus > gpus:
            found.append(f"driver.gpus = {driver.gpus:g}, but this machine has {gpus}, so no trial could start. Lower gpus.")


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except (NameError, TypeError):
        return {}  # an annotation that cannot be looked at: the constructor checks


def _mistyped(where: str, value: Any, hint: Any) -> list[str]:
    """The value as it came from TOML (a list for a tuple) against the type that is annotated."""
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        TypeAdapter(hint, config=ConfigDict(strict=True)).validate_json(json.dumps(value, default=str))
    except PydanticUserError:
        return []  # a type that pydantic does not know: the constructor checks
    except ValidationError:
        return [f"{where} must be {_spelled(hint)}, but got {value!r:.80}."]
    return []


def _spelled(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _try(found: list[str], where: str, call: Callable[[], T], file: str = "") -> T | None:
    """What `call` returns; if it raises, a problem in words, with the line of the user's own file if there is one."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        found.append(f"{where}: {reason(error, file)}")
        return None
