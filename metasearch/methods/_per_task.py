"""What the methods share whose tasks have architectures of their own (metasearch/objectives/per_task.py)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import ModuleType

import torch
from torch import Generator

from metasearch.learners import Learner
from metasearch.methods import Study
from metasearch.nets.discrete import ARCH, Choices
from metasearch.objectives.one_shot import options_of
from metasearch.objectives.optimizer import Optimizer
from metasearch.objectives.per_task import PerTask, adapting
from metasearch.strategies import Strategy
from metasearch.strategies._seeds import Seeds

TRIES = 10  # random logits on which two rules must agree


def choices_of(study: Study, module: ModuleType, dims: Sequence[str], *, pairs: bool) -> Choices:
    """How a space's logits become an architecture: of each group of NODE_INPUTS, the edges into one node, two are kept.

    Raises ValueError for NODE_INPUTS that are not of RELAXED, and for a rule of the space's own (`derive`) that is another
    one: it is code for one architecture, and cannot run inside every task.
    """
    inputs = tuple(tuple(group) for group in getattr(module, "NODE_INPUTS", ()))
    options = options_of(study.space(), dims)
    unknown = sorted({path for group in inputs for path in group} - set(dims))
    if unknown:
        raise ValueError(f"NODE_INPUTS of the space '{study.space_name}' must be of RELAXED, but {', '.join(unknown)} are not.")
    rule, derive = Choices.of(options, inputs), getattr(module, "derive", None)
    for seed in range(TRIES):
        if derive is None:
            break
        drawn = Generator().manual_seed(seed)
        logits = {path: torch.randn(len(values), generator=drawn, dtype=torch.float64) for path, values in options.items()}
        numbers = rule.numbers({f"{ARCH}{path}": v for path, v in logits.items()})
        shares = {path: v.softmax(-1).tolist() for path, v in logits.items()}
        if derive(shares) != {path: options[path][n] for path, n in numbers.items()}:
            raise ValueError(
                f"{study.method.name} chooses an architecture inside every task: of every dimension the strongest option "
                f"that is not none, on two edges of each group of NODE_INPUTS. But derive(shares) of the space "
                f"'{study.space_name}' has another rule. Say NODE_INPUTS there as search_spaces/darts_cells.py "
                "does, or take darts, which asks derive once."
            )
    return replace(rule, pairs=pairs and bool(inputs))


def per_task(
    study: Study, module: ModuleType, dims: tuple[str, ...], learner: Learner, optimizer: Optimizer, *, shots: int | None,
    steps: int | None, alone: bool, check: int, check_steps: int, finalists: int, retrain: int, retrain_steps: int,
) -> tuple[Strategy, PerTask]:
    """The strategy and the objective. Raises ValueError, in words, for what cannot work."""
    train, name = study.training(), study.method.name
    if steps is not None and steps < 1:
        raise ValueError(f"`search_steps >= 1` must hold, but got search_steps={steps}")
    if shots is not None and shots < 1:
        raise ValueError(f"`shots >= 1` must hold, but got shots={shots}")
    if retrain < 0 or retrain_steps < 1:
        raise ValueError(f"`retrain >= 0` and `retrain_steps >= 1` must hold, but got retrain={retrain}, {retrain_steps=}")
    if check < 0 or check == 1 or check_steps < 1:
        raise ValueError(f"`check = 0` or `check >= 2`, and `check_steps >= 1` must hold, but got {check=}, {check_steps=}")
    if finalists < 1 or (finalists > 1 and not alone):
        raise ValueError(
            f"`finalists >= 1` must hold, and with more than one `alone = true`, for they are trained by themselves; but got "
            f"{finalists=}, {alone=}"
        )
    if train.limits and not alone:
        raise ValueError(
            f"[limits] are of one architecture, but with {name} every task chooses its own. Leave them away, or set "
            "alone = true: then the found architecture is trained by itself, within them."
        )
    built = partial(adapting, module.relaxed, learner, optimizer, shots)
    search = replace(
        train, recipe=built, limits={}, looks=False, keep="last" if alone else train.keep,
        steps=steps or (None if alone else train.steps), mode="vmap" if train.mode == "compiled" else train.mode,
        expected_trials=0,  # a mixture is never compiled, for its programs would be many
    )
    objective = PerTask(
        search=search, single=partial(adapting, module.recipe, learner, optimizer, shots), space=study.space(), dims=dims,
        alone=train if alone else None, check=check, check_steps=check_steps, finalists=finalists, retrain=retrain,
        canonical=getattr(module, "canonical", None),
        retrained=replace(train, steps=retrain_steps, keep="last", limits={}) if retrain else None,
    )
    objective.check_study(name)
    return Seeds(study.space(), dims, seed=study.seed), objective
