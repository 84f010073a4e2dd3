"""Reptile against its algebra: what its steps add up to, and torch's own optimisers."""
from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Generator, Tensor

from metasearch.learners import gradients
from metasearch.learners.fomaml import FOMAML
from metasearch.learners.reptile import Reptile
from metasearch.nets import Net, Params
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm
from metasearch.tasks import Episode, TaskShape


def _mse(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().mean()


def _net() -> Net:
    return mlp(3, 2, hidden=(6, 5), act="tanh")


def _meta(net: Net) -> Params:
    return {k: v.double() for k, v in net.init(Generator().manual_seed(0)).items()}


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _episode(support: int = 4, query: int = 4) -> Episode:
    return Episode(_draw(support, 3, seed=1), _draw(support, 2, seed=2), _draw(query, 3, seed=3), _draw(query, 2, seed=4))


def _slope(net: Net, meta: Params, x: Tensor, y: Tensor) -> Params:
    slope: Params = torch.func.grad(lambda p: _mse(net.apply(p, x), y))(meta)
    return slope


def test_two_steps_are_fomaml_plus_the_first_gradient() -> None:
    """(theta_0 - theta_2) / alpha = g_0(theta_0) + g_1(theta_1), and FOMAML's is the second, each on its own minibatch."""
    net, e, alpha = _net(), _episode(), 0.05
    meta = _meta(net)
    in_order = e._replace(noise={"order": torch.arange(8.0, dtype=torch.float64)[None].expand(4, 8)})
    moved, _ = Reptile(alpha, 2, inner_batch=4, optimizer="sgd").episode_gradient(net, _mse, meta, in_order)
    fomaml, _ = FOMAML(alpha, 1).episode_gradient(net, _mse, meta, e)
    first = _slope(net, meta, e.support_x, e.support_y)
    for k in meta:
        assert torch.allclose(moved[k] / alpha - fomaml[k], first[k], atol=1e-14, rtol=0)


def test_the_expansion_in_the_inner_rate_is_right_to_second_order() -> None:
    """Reptile = g0 + g1 - alpha H1 g0 + O(alpha^2) (all at theta_0): halving alpha quarters what is left (measured: 4.0)."""
    net, e = _net(), _episode()
    meta = _meta(net)
    in_order = e._replace(noise={"order": torch.arange(8.0, dtype=torch.float64)[None].expand(4, 8)})
    g0, g1 = _slope(net, meta, e.support_x, e.support_y), _slope(net, meta, e.query_x, e.query_y)
    curved: Params = torch.func.jvp(lambda p: _slope(net, p, e.query_x, e.query_y), (meta,), (g0,))[1]

    def residual(alpha: float) -> float:
        moved, _ = Reptile(alpha, 2, inner_batch=4, optimizer="sgd").episode_gradient(net, _mse, meta, in_order)
        rest = [moved[k] / alpha - (g0[k] + g1[k] - alpha * curved[k]) for k in meta]
        return float(torch.cat([r.flatten() for r in rest]).norm())

    errors = [residual(alpha) for alpha in (1e-2, 5e-3, 2.5e-3)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_full_outer_step_on_one_task_ends_in_its_trained_weights(optimizer: Literal["sgd", "adam"]) -> None:
    """eps = 1: theta - (theta - W) = W, where W is what torch's own optimiser trains to. Adam has beta1 = 0 and begins anew."""
    net, e = _net(), _episode()
    meta = _meta(net)
    weights = {k: v.clone().requires_grad_() for k, v in meta.items()}
    if optimizer == "sgd":
        theirs: torch.optim.Optimizer = torch.optim.SGD(weights.values(), lr=0.01)
    else:
        theirs = torch.optim.Adam(weights.values(), lr=0.01, betas=(0.0, 0.999), eps=1e-8)
    x, y = torch.cat([e.support_x, e.query_x]), torch.cat([e.support_y, e.query_y])
    for _ in range(6):
        theirs.zero_grad()
        _mse(net.apply(weights, x), y).backward()  # type: ignore[no-untyped-call]
        theirs.step()
    moved, metrics = Reptile(0.01, 6, optimizer=optimizer).episode_gradient(net, _mse, meta, e)
    assert all(torch.allclose(meta[k] - moved[k], weights[k].detach(), atol=1e-12, rtol=0) for k in meta)
    assert float(metrics["loss"]) > 0


def test_supports_and_queries_are_one_training_set() -> None:
    net, e = _net(), _episode(support=2, query=6)
    meta = _meta(net)
    other = Episode(
        torch.cat([e.support_x, e.query_x])[:5], torch.cat([e.support_y, e.query_y])[:5],
        torch.cat([e.support_x, e.query_x])[5:], torch.cat([e.support_y, e.query_y])[5:],
    )
    a, b = (Reptile(0.01, 4).episode_gradient(net, _mse, meta, x)[0] for x in (e, other))
    assert all(torch.allclose(a[k], b[k], atol=1e-14) for k in meta)


def test_norm_parameters_move_too() -> None:
    net, e = mlp(3, 2, hidden=(6,), act="tanh", norm=Norm("batch")), _episode()
    moved, _ = Reptile(0.01, 3).episode_gradient(net, _mse, _meta(net), e)
    assert all(float(moved[k].abs().max()) > 0 for k in moved if "/norm/" in k)


class _Rows:
    """A 'net' that notes which rows each minibatch held."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.net = Net(lambda generator: {"net/a": torch.zeros(1)}, self._apply)

    def _apply(self, params: Params, x: Tensor) -> Tensor:
        self.batches.append([int(v) for v in x[:, 0]])
        return x[:, :1] * 0 + params["net/a"]


@pytest.mark.parametrize(("kind", "ways"), [("classes", 3), ("regression", 1)])
def test_minibatches_walk_through_reshuffled_permutations_and_may_straddle_two(kind: str, ways: int) -> None:
    learner, shape = Reptile(0.1, 9, inner_batch=4, optimizer="sgd"), TaskShape((1,), ways, 3, 3)
    total = 6 * ways
    seen = _Rows()
    rows = torch.arange(float(total))[:, None]
    half = total // 2
    noise = {k: torch.randn(*s, generator=Generator().manual_seed(0)) for k, s in learner.noise(shape).items()}
    e = Episode(rows[:half], rows[:half] * 0, rows[half:], rows[half:] * 0, noise)
    with gradients.on_tape():
        learner.episode_gradient(seen.net, _mse, {"net/a": torch.zeros(1)}, e)
    walked = [row for batch in seen.batches for row in batch]
    assert len(walked) == 36
    passes = [walked[i:i + total] for i in range(0, 36 - total + 1, total)]
    assert all(sorted(one) == list(range(total)) for one in passes), "each pass holds every row once"
    assert len({tuple(one) for one in passes}) > 1, "and is shuffled anew"


def test_at_test_minibatches_of_sorted_rows_hold_many_classes() -> None:
    """Twenty-five supports sorted by class, minibatches of five: the fixed order strides over the classes."""
    seen = _Rows()
    learner = Reptile(0.1, 1, inner_batch=10, test_steps=5, test_batch=5, optimizer="sgd").at_test()
    rows = torch.arange(25.0)[:, None]
    with gradients.on_tape(graphs=False):
        learner.adapt(seen.net, _mse, {"net/a": torch.zeros(1)}, rows, rows * 0)
    assert sorted(row for batch in seen.batches for row in batch) == list(range(25))
    assert min(len({row // 5 for row in batch}) for batch in seen.batches) >= 4


def test_minibatches_without_their_noise_are_refused() -> None:
    net, e = _net(), _episode()
    with pytest.raises(ValueError, match="order"):
        Reptile(0.1, 2, inner_batch=2).episode_gradient(net, _mse, _meta(net), e)


def test_hyperparameters_that_mean_nothing_are_refused() -> None:
    for wrong, said in (
        ({"inner_lr": -1.0}, "inner_lr >= 0"), ({"inner_batch": 0}, "inner_batch >= 1"), ({"test_batch": 0}, "test_batch >= 1"),
        ({"optimizer": "adamw"}, "'adam' or 'sgd'"),
    ):
        with pytest.raises(ValueError, match=said):
            Reptile(**wrong)
