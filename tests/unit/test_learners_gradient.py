"""The gradient of learners in its worlds: the tape, function transforms, and transforms inside transforms."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metasearch.learners import gradients, inner
from metasearch.learners._gradient import value_and_gradient
from metasearch.learners.maml import MAML
from metasearch.nets import Params
from metasearch.nets.mlp import mlp
from metasearch.tasks import Episode


def _power(n: int) -> Any:
    return lambda p: (p["x"] ** n, ())


def _x(value: float = 2.0) -> Params:
    return {"x": torch.tensor(value, dtype=torch.float64)}


@pytest.mark.parametrize("tape", [False, True])
def test_gradients_nest_three_deep(tape: bool) -> None:
    """x^5 at 2: 80, 160, 240; the innermost levels differentiate what depends on the outer ones."""

    def first(p: Params) -> tuple[Tensor, tuple[()]]:
        return value_and_gradient(_power(5), p, differentiable=True)[2]["x"], ()

    def second(p: Params) -> tuple[Tensor, tuple[()]]:
        return value_and_gradient(first, p, differentiable=True)[2]["x"], ()

    def third() -> float:
        return float(value_and_gradient(second, _x(), differentiable=False)[2]["x"])

    if tape:
        with gradients.on_tape():
            assert third() == 240
    else:
        assert third() == 240


@pytest.mark.parametrize("tape", [False, True])
def test_what_no_outer_parameter_reaches_can_be_differentiated_too(tape: bool) -> None:
    """d/dx [x * d(y^3)/dy] = 3 y^2: the inner parameters know nothing of x."""

    def outer(p: Params) -> tuple[Tensor, tuple[()]]:
        _, _, inner_grads = value_and_gradient(_power(3), _x(3.0), differentiable=True)
        return p["x"] * inner_grads["x"], ()

    if tape:
        with gradients.on_tape():
            found = value_and_gradient(outer, _x(), differentiable=False)[2]["x"]
    else:
        found = value_and_gradient(outer, _x(), differentiable=False)[2]["x"]
    assert float(found) == 27


def test_a_level_inside_a_level_keeps_its_own_tape() -> None:
    """x * d/dy [d/dy (y^3 x)] = 6 y x^2 = 72 at y = 3, x = 2; its derivative with respect to x is 12 y x = 72."""

    def outer(p: Params) -> tuple[Tensor, tuple[()]]:
        def slope(q: Params) -> tuple[Tensor, tuple[()]]:
            return value_and_gradient(lambda r: (r["x"] ** 3 * p["x"], ()), q, differentiable=True)[2]["x"], ()

        return p["x"] * value_and_gradient(slope, _x(3.0), differentiable=True)[2]["x"], ()

    value, _, grads = value_and_gradient(outer, _x(), differentiable=False)
    assert (float(value), float(grads["x"])) == (72, 72)


def test_an_unused_parameter_has_gradient_zero() -> None:
    params = {**_x(), "unused": torch.ones(3, dtype=torch.float64)}
    for tape in (False, True):
        if tape:
            with gradients.on_tape():
                grads = value_and_gradient(_power(2), params, differentiable=False)[2]
        else:
            grads = value_and_gradient(_power(2), params, differentiable=False)[2]
        assert torch.equal(grads["unused"], torch.zeros(3, dtype=torch.float64))


def test_first_order_steps_hang_on_the_start_by_the_identity_alone() -> None:
    """No second-order graph: d theta_k / d theta_0 is exactly 1, and the graph is k additions long, whatever the objective."""

    def objective(p: Params) -> Tensor:
        return (p["x"] ** 4).sin()

    with gradients.on_tape():
        start = {"x": torch.tensor(0.7, dtype=torch.float64, requires_grad=True)}
        end = inner.sgd_steps(objective, start, lr=0.1, steps=3, first_order=True)["x"]
        names, node = [], end.grad_fn
        while node is not None:
            names.append(type(node).__name__)
            node = node.next_functions[0][0] if node.next_functions else None
        assert names == ["AddBackward0"] * 3 + ["AccumulateGrad"]
        assert float(torch.autograd.grad(end, start["x"])[0]) == 1
        second = inner.sgd_steps(objective, start, lr=0.1, steps=3)["x"]
        assert float(torch.autograd.grad(second, start["x"])[0]) != 1


def test_evaluation_keeps_no_graph() -> None:
    net = mlp(2, 2)
    meta = net.init(torch.Generator().manual_seed(0))
    seen: list[Tensor] = []

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()

    with gradients.on_tape(graphs=False):
        task = MAML(0.1, 5).adapt(net, loss, meta, torch.ones(3, 2), torch.zeros(3, 2))
        seen += task.values()
    assert not any(t.requires_grad for t in seen)


def test_the_tape_is_left_when_an_exception_is() -> None:
    with pytest.raises(RuntimeError, match="on purpose"), gradients.on_tape():
        raise RuntimeError("on purpose")
    x = torch.func.vmap(lambda v: value_and_gradient(lambda p: (p["x"] ** 2, ()), {"x": v}, differentiable=False)[2]["x"])
    assert torch.equal(x(torch.tensor([1.0, 2.0])), torch.tensor([2.0, 4.0]))  # impossible on the tape


def test_a_rate_may_be_a_number_a_tensor_or_a_tensor_a_key() -> None:
    params = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}

    def objective(p: Params) -> Tensor:
        return p["a"].square().sum() / 2 + p["b"].square().sum() / 2  # gradient: the parameters themselves

    halved = {k: v / 2 for k, v in params.items()}
    for rate in (0.5, torch.tensor(0.5), {k: torch.full_like(v, 0.5) for k, v in params.items()}):
        out = inner.sgd_steps(objective, params, lr=rate, steps=1)
        assert all(torch.equal(out[k], halved[k]) for k in params)


def test_a_users_own_transform_around_a_learner_is_the_same_gradient() -> None:
    net = mlp(2, 1, hidden=(5,), act="tanh")
    generator = torch.Generator().manual_seed(0)
    meta = {k: v.double() for k, v in net.init(generator).items()}
    fields = [torch.randn(4, n, generator=generator, dtype=torch.float64) for n in (2, 1, 2, 1)]
    episode, learner = Episode(fields[0], fields[1], fields[2], fields[3]), MAML(0.1, 3)

    def loss(output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()

    ours, _ = learner.episode_gradient(net, loss, meta, episode)
    around = torch.func.grad(lambda m: learner.episode_loss(net, loss, m, episode)[0])(meta)
    forward = torch.func.jacfwd(lambda m: learner.episode_loss(net, loss, m, episode)[0])(meta)
    for k in meta:
        assert torch.allclose(ours[k], around[k], atol=1e-13, rtol=0)
        assert torch.allclose(ours[k], forward[k], atol=1e-13, rtol=0)
