"""Gradients in what augments, against finite differences in float64: through inner steps, and through DADA's one step ahead."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Generator, Tensor

from metasearch.augment import find
from metasearch.augment.ops import NOISE
from metasearch.driver.study import Study
from metasearch.learners import Learner, gradients
from metasearch.learners.anil import ANIL
from metasearch.learners.maml import MAML
from metasearch.nets import Params
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.norm import Norm
from metasearch.objectives import Mode, Trial, relax
from metasearch.objectives.dada import HIGHEST, PI, Dada, Drawn, M, P, Searched
from metasearch.objectives.episodic import draw_block
from metasearch.objectives.optimizer import sgd
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.relaxed import mean_loss
from metasearch.objectives.training import Setting
from metasearch.tasks import Episode, TaskShape
from metasearch.tasks.blobs import Blobs

SHAPE = TaskShape((1, 8, 8), 3, 1, 3)
TASKS = Blobs(side=8, separation=1.0, train_classes=20)
SMOOTH = Conv4(4, layers=2, act="silu", down="average", norm=Norm("none"))


def _episodes(count: int) -> Episode:
    drawn = TASKS.sample_episodes(count, split="train", shape=SHAPE, generator=Generator().manual_seed(0))
    return drawn._replace(support_x=_pictures(drawn.support_x), query_x=_pictures(drawn.query_x)).map(lambda t: t.double())


def _pictures(x: Tensor) -> Tensor:
    return 0.2 + 0.6 * (x / 4).sigmoid()


def _slope(f: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a scalar function."""
    found = torch.zeros_like(at)
    for i in range(at.numel()):
        one = torch.zeros_like(at).flatten()
        one[i] = step
        found.view(-1)[i] = (f(at + one.view_as(at)) - f(at - one.view_as(at))) / (2 * step)
    return found


# through inner steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", [MAML(0.3, 2), ANIL(0.3, 2)], ids=["maml", "anil"])
@pytest.mark.parametrize("name", ["rotate", "translate_x", "shear_y", "contrast", "brightness", "sharpness", "sample_pairing"])
def test_the_outer_loss_has_the_gradient_of_what_augments_the_supports(name: str, learner: Learner) -> None:
    """In the magnitude of an operation on the supports, from which two inner steps are taken: nothing on the way is cut off."""
    net, episode, operation = conv4(SHAPE.x, 3, SMOOTH), _episodes(1).select(0), find(name)
    meta = {k: v.double() for k, v in learner.init(net, Generator().manual_seed(1)).items()}
    noise = torch.rand(3, NOISE, generator=Generator().manual_seed(2), dtype=torch.float64)
    at = {"degrees": 13.0, "sides": 0.13, "slope": 0.17, "factor": 1.3, "weight": 0.3}[operation.unit]

    def loss(magnitude: Tensor) -> Tensor:
        x = operation(episode.support_x, magnitude, noise)
        return learner.episode_loss(net, TASKS.loss, meta, episode._replace(support_x=x))[0]

    magnitude = torch.full((3,), at, dtype=torch.float64)
    exact = torch.func.grad(loss)(magnitude)
    # degrees are small changes of a picture, so that a step of 1e-5 of them would be lost in the last digits
    torch.testing.assert_close(exact, _slope(loss, magnitude, 1e-4 if name == "rotate" else 1e-6), rtol=1e-4, atol=1e-9)
    assert float(exact.abs().max()) > 1e-7


# DADA's one step ahead --------------------------------------------------------------------------------------------------------


def _objective(estimator: str) -> Dada:
    study = Study.from_text(f"""
name = "dada"
space = "augmentation"
method = {{ name = "dada", search_steps = 3, xi = 0.2, estimator = "{estimator}" }}
tasks = {{ name = "blobs", side = 8, separation = 1.0, train_classes = 20, ways = 3, shots = 1, queries = 3 }}
train = {{ steps = 2, meta_batch = 2, mode = "vmap" }}
validation = {{ episodes = 4 }}
budget = {{ trials = 1 }}
""")
    found = study.objective()
    assert isinstance(found, Dada)
    return replace(found, arch=sgd(1e-3))  # whose step says what its gradient was


def _begun(objective: Dada, place: str) -> tuple[Recipe, Params, Params, Episode]:
    """The recipe of the search with MAML on a smooth net, meta and state with a control that is not 0, episodes; in float64."""
    config = {**objective.space.decode([0.0] * objective.space.width), "place": place}
    recipe, net = objective.supernet(config), conv4(SHAPE.x, 3, SMOOTH)
    searched, drawn = cast(Searched, recipe.augment), Generator().manual_seed(4)
    count = len(searched.pairs)

    def init(generator: Generator) -> Params:
        return {**net.init(generator), PI: 0.5 * torch.randn(count, generator=drawn), P: torch.randn(count, 2, generator=drawn),
                M: torch.full((count, 2), HIGHEST / 2)}

    recipe = replace(recipe, net=net._replace(init=init), learner=MAML(0.3, 2), optimizer=sgd(0.05), episode=SHAPE)
    meta = {k: v.double() for k, v in recipe.learner.init(recipe.net, Generator().manual_seed(1)).items()}
    state = objective.start(Setting(recipe, objective.train, Trial(0), objective.train.tasks, SHAPE, 7, meta, 3))
    for name in ("control/second", "control/level"):
        state[name] = torch.randn(state[name].shape, generator=drawn, dtype=torch.float64)
    episodes = draw_block(replace(recipe, meta_batch=4), TASKS, SHAPE, 1, 5, 0)
    pictures = episodes._replace(support_x=_pictures(episodes.support_x), query_x=_pictures(episodes.query_x))
    return recipe, meta, state, pictures.map(lambda t: t.double())


def _ahead(objective: Dada, recipe: Recipe, meta: Params, drawn: Drawn, episodes: Episode, shift: Tensor) -> Tensor:
    """The clean loss after a step of plain gradient descent on what was drawn, made brighter by `shift` [2] where applied."""
    train, val = episodes.select(slice(0, 2)), episodes.select(slice(2, None))
    weights = {k: v for k, v in meta.items() if not k.startswith("arch/")}
    more = sum((shift[j] for j in (0, 1) if drawn.on[j]), torch.zeros((), dtype=torch.float64))
    changed = drawn.hard(train)
    x, query = changed.support_x, changed.query_x
    rows = train.support_x.shape[1]
    if drawn.place == "query":
        query = query + more
    elif drawn.place == "shot":
        x = torch.cat([x[:, :rows], x[:, rows:] + more], 1)
    else:
        x = x + more

    def loss(w: Params, part: Episode) -> Tensor:
        return mean_loss(recipe.learner, recipe.net, objective.train.tasks.loss, w, part, "vmap", None)

    grads = torch.func.grad(loss)(weights, changed._replace(support_x=x, query_x=query))
    return loss({k: w - 0.2 * grads[k] for k, w in weights.items()}, val)


def _both_on(objective: Dada, recipe: Recipe, meta: Params) -> tuple[int, Drawn]:
    """A seed under which both operations of the first draw are applied, so that both magnitudes have a gradient."""
    for seed in range(100):
        drawn = Drawn.of(cast(Searched, recipe.augment), meta, seed, "looking ahead from 0", 0.5, None)
        if all(drawn.on) and find(drawn.names[0]).differentiable and not find(drawn.names[1]).pairs:
            return seed, drawn
    raise AssertionError


@pytest.mark.parametrize("mode", ["loop", "vmap"])
@pytest.mark.parametrize("place", ["support", "query", "shot"])
def test_a_magnitude_moves_along_the_finite_difference_of_the_loss_one_step_ahead(place: str, mode: Mode) -> None:
    """Twice through inner steps, once through the step ahead; straight through, a magnitude is a picture's brightness."""
    objective = _objective("relax")
    recipe, meta, state, episodes = _begun(objective, place)
    seed, drawn = _both_on(objective, recipe, meta)
    after, _, told = objective.step(recipe, mode, None, state, seed)(meta, state, episodes, 0.0)

    def loss(shift: Tensor) -> Tensor:
        return _ahead(objective, recipe, meta, drawn, episodes, shift)

    nothing = torch.zeros(2, dtype=torch.float64)
    wanted = torch.zeros_like(meta[M])
    wanted[drawn.number] = _slope(loss, nothing)
    torch.testing.assert_close((meta[M] - after[M]) / 1e-3, wanted, rtol=1e-4, atol=1e-8)
    assert float(wanted[drawn.number].abs().min()) > 1e-6
    torch.testing.assert_close(told["clean_loss"], loss(nothing))


def _by_hand(objective: Dada, meta: Params, state: Params, drawn: Drawn, f: Tensor) -> Params:
    """(f - c(z~)) d log P(b) + d c(z) - d c(z~), on the tape."""
    theta = {k: meta[name].detach().requires_grad_() for k, name in (("pi", PI), ("p", P))}
    phi = {k.removeprefix("control/"): v for k, v in state.items() if k.startswith("control/")}
    control, draws = relax.mlp(objective.temperature), relax.drawn(theta, drawn.u, drawn.v)
    given, z = (control(phi, {k: getattr(one, part) for k, one in draws.items()}) for part in ("given", "z"))
    b = draws["p"].hard
    score = theta["pi"].log_softmax(0)[drawn.number] + torch.distributions.Bernoulli(logits=theta["p"]).log_prob(b).sum()
    slopes = torch.autograd.grad((f - given).detach() * score + z - given, [theta["pi"], theta["p"]])
    return {PI: slopes[0], P: slopes[1]}


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_pairs_and_probabilities_move_along_relax_of_the_loss_one_step_ahead(mode: Mode) -> None:
    """With a control that is not 0, so that REINFORCE is another gradient."""
    objective = _objective("relax")
    recipe, meta, state, episodes = _begun(objective, "query")
    seed, drawn = _both_on(objective, recipe, meta)
    after, later, told = objective.step(recipe, mode, None, state, seed)(meta, state, episodes, 0.0)
    wanted = _by_hand(objective, meta, state, drawn, told["clean_loss"])
    for name in (PI, P):
        torch.testing.assert_close((meta[name] - after[name]) / 1e-3, wanted[name], rtol=1e-6, atol=1e-9)
    plain = _by_hand(objective, meta, {**state, "control/second": 0 * state["control/second"],
                                       "control/level": 0 * state["control/level"]}, drawn, told["clean_loss"])
    assert float((plain[PI] - wanted[PI]).abs().max()) > 0.01
    assert not torch.equal(later["control/second"], state["control/second"])  # the control learns too


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_relaxed_draws_move_along_the_gradient_through_the_step_ahead(mode: Mode) -> None:
    """"gumbel": of the loss one step ahead as a function of relaxed pictures, by the same pictures on one tape."""
    objective = _objective("gumbel")
    recipe, meta, state, episodes = _begun(objective, "query")
    seed, drawn = _both_on(objective, recipe, meta)
    after, _, _ = objective.step(recipe, mode, None, state, seed)(meta, state, episodes, 0.0)
    arch = {k: v.detach().requires_grad_() for k, v in meta.items() if k.startswith("arch/")}
    weights = {k: v.detach().requires_grad_() for k, v in meta.items() if not k.startswith("arch/")}
    train, val = episodes.select(slice(0, 2)), episodes.select(slice(2, None))
    loss = objective.train.tasks.loss
    with gradients.on_tape():
        value = mean_loss(recipe.learner, recipe.net, loss, weights, drawn.relaxed(train, mixed=True)(arch), "loop", None)
        grads = torch.autograd.grad(value, list(weights.values()), create_graph=True)
        stepped = {k: w - 0.2 * g for (k, w), g in zip(weights.items(), grads, strict=True)}
        clean = mean_loss(recipe.learner, recipe.net, loss, stepped, val, "loop", None)
        slopes = torch.autograd.grad(clean, list(arch.values()))
    for (k, before), slope in zip(arch.items(), slopes, strict=True):
        torch.testing.assert_close((before - after[k]) / 1e-3, slope, rtol=1e-5, atol=1e-9)


# the step of the weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["support", "query", "shot"])
def test_the_weights_move_on_episodes_that_a_second_draw_has_augmented(place: str) -> None:
    """Drawn from the pairs as they are after their own step."""
    objective = _objective("relax")
    recipe, meta, state, episodes = _begun(objective, place)
    train, searched = episodes.select(slice(0, 2)), cast(Searched, recipe.augment)

    def drawn(seed: int, arch: Params) -> Drawn:
        return Drawn.of(searched, arch, seed, "weights at 0", 0.5, None)

    seed = next(seed for seed in range(100) if all((one := drawn(seed, meta)).on) and "rotate" in one.names)
    after, _, _ = objective.step(recipe, "vmap", None, state, seed)(meta, state, episodes, 0.0)
    weights, again = {k: v for k, v in meta.items() if not k.startswith("arch/")}, drawn(seed, after)

    def slopes(part: Episode) -> Params:
        def loss(w: Params) -> Tensor:
            return mean_loss(recipe.learner, recipe.net, objective.train.tasks.loss, w, part, "vmap", None)

        found: Params = torch.func.grad(loss)(weights)
        return found

    moved = {k: (w - after[k]) / 0.05 for k, w in weights.items()}
    for k, wanted in slopes(again.hard(train)).items():
        torch.testing.assert_close(moved[k], wanted, rtol=1e-6, atol=1e-12)
    assert not any(torch.allclose(moved[k], plain, rtol=1e-3, atol=0) for k, plain in slopes(train).items())


def test_every_step_draws_anew() -> None:
    """The pair and what is applied, and the luck of every picture: both go by the number of the step and by what it is for."""
    objective = _objective("relax")
    recipe, meta, state, episodes = _begun(objective, "query")
    step = objective.step(recipe, "vmap", None, state, 3)
    found = [float(step(meta, state, episodes, number / recipe.steps)[2]["clean_loss"]) for number in range(3)]
    assert len(set(found)) > 1  # where nothing is applied, steps are alike
    rotated = replace(_both_on(objective, recipe, meta)[1], names=("rotate", "identity"), on=(True, True), levels=(0.9, 0.0))
    pictures = [replace(rotated, what=what).hard(episodes).query_x for what in ("weights at 0", "weights at 1", "looking at 1")]
    assert not any(torch.equal(pictures[i], pictures[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
