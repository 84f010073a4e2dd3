"""MAML, FOMAML and ANIL against closed forms, each other, and two independent implementations."""
from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.learners import Learner, inner
from metasearch.learners.anil import ANIL
from metasearch.learners.fomaml import FOMAML
from metasearch.learners.maml import MAML
from metasearch.nets import Net, Params
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm
from metasearch.tasks import Episode

ALPHA = 0.05


def _mse(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().mean()


def _linear(d: int = 4) -> Net:
    """y = w x, without a bias: the quadratic whose inner loop has a closed form."""
    return Net(
        lambda generator: {"net/head/weight": torch.randn(1, d, generator=generator)},
        lambda params, x: x @ params["net/head/weight"].T,
    )


def _episode(inputs: int, outputs: int, rows: int = 7, seed: int = 1) -> Episode:
    generator = Generator().manual_seed(seed)
    sx, sy, qx, qy = (torch.randn(rows, n, generator=generator, dtype=torch.float64) for n in (inputs, outputs) * 2)
    return Episode(sx, sy, qx, qy)


def _meta(net: Net, seed: int = 0) -> Params:
    return {k: v.double() for k, v in net.init(Generator().manual_seed(seed)).items()}


def _gradient(learner: Learner, net: Net, meta: Params, episode: Episode) -> Params:
    return learner.episode_gradient(net, _mse, meta, episode)[0]


def _smooth() -> Net:
    return mlp(3, 2, hidden=(6, 5), act="tanh")


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_on_linear_regression_the_meta_gradient_is_its_closed_form(k: int) -> None:
    """theta_{j+1} = J theta_j + ..., J = I - alpha (2/n) X'X, so g = J^k g_Q(theta_k)."""
    net, e = _linear(), _episode(4, 1)
    meta = _meta(net)
    n = len(e.support_x)
    hessian = 2 / n * e.support_x.T @ e.support_x
    w = meta["net/head/weight"][0]
    for _ in range(k):
        w = w - ALPHA * (hessian @ w - 2 / n * e.support_x.T @ e.support_y[:, 0])
    g_query = 2 / n * e.query_x.T @ (e.query_x @ w - e.query_y[:, 0])
    jacobian = torch.eye(4, dtype=torch.float64) - ALPHA * hessian
    expected = torch.linalg.matrix_power(jacobian, k) @ g_query
    found = _gradient(MAML(ALPHA, k), net, meta, e)["net/head/weight"][0]
    assert float((found - expected).norm() / expected.norm()) < 1e-12
    first = _gradient(FOMAML(ALPHA, k), net, meta, e)["net/head/weight"][0]
    assert float((first - g_query).norm() / g_query.norm()) < 1e-12


def test_fomaml_differs_from_maml_by_alpha_times_the_hessian_times_the_gradient() -> None:
    net, e = _smooth(), _episode(3, 2)
    meta = _meta(net)
    second, first = (_gradient(learner, net, meta, e) for learner in (MAML(ALPHA, 1), FOMAML(ALPHA, 1)))

    def support_slope(p: Params) -> Params:
        slope: Params = torch.func.grad(lambda p: _mse(net.apply(p, e.support_x), e.support_y))(p)
        return slope

    curved: Params = torch.func.jvp(support_slope, (meta,), (first,))[1]
    for k in meta:
        assert torch.allclose(first[k] - second[k], ALPHA * curved[k], atol=1e-14, rtol=1e-12)
    assert any(float(curved[k].abs().max()) > 1e-3 for k in meta), "the test needs a curved loss"


@pytest.mark.parametrize("learner", [MAML(0.0, 3), FOMAML(0.0, 3), ANIL(0.0, 3)], ids=lambda x: type(x).__name__)
def test_a_rate_of_zero_is_multitask_learning(learner: Learner) -> None:
    net, e = _smooth(), _episode(3, 2)
    meta = _meta(net)
    plain = torch.func.grad(lambda p: _mse(net.apply(p, e.query_x), e.query_y))(meta)
    found = _gradient(learner, net, meta, e)
    assert all(torch.allclose(found[k], plain[k], atol=1e-15) for k in meta)


def test_five_steps_have_the_slope_of_a_central_difference() -> None:
    """Tanh, since the kinks of a ReLU break differences."""
    net, e, learner = _smooth(), _episode(3, 2), MAML(0.1, 5)
    meta = _meta(net)
    grads = _gradient(learner, net, meta, e)
    for seed in range(3):
        way = {k: torch.randn(v.shape, generator=Generator().manual_seed(seed), dtype=torch.float64) for k, v in meta.items()}

        def value(h: float, way: Params = way) -> float:
            return float(learner.episode_loss(net, _mse, {k: v + h * way[k] for k, v in meta.items()}, e)[0])

        slope = sum(float((grads[k] * way[k]).sum()) for k in meta)
        assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-8)


def test_fomaml_is_maml_of_first_order() -> None:
    net, e = _smooth(), _episode(3, 2)
    a, b = (_gradient(learner, net, _meta(net), e) for learner in (FOMAML(0.1, 3), MAML(0.1, 3, first_order=True)))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_norm_parameters_are_learnt_but_not_adapted() -> None:
    net, e = mlp(3, 2, hidden=(6,), act="tanh", norm=Norm("batch")), _episode(3, 2)
    meta = _meta(net)
    task = MAML(0.1, 2).adapt(net, _mse, meta, e.support_x, e.support_y)
    assert set(meta) - set(task) == {"net/layer1/norm/weight", "net/layer1/norm/bias"}
    grads = _gradient(MAML(0.1, 2), net, meta, e)
    assert float(grads["net/layer1/norm/weight"].abs().max()) > 0


def test_anil_adapts_the_head_alone_and_teaches_the_body() -> None:
    net, e = _smooth(), _episode(3, 2)
    meta = _meta(net)
    task = ANIL(0.1, 3).adapt(net, _mse, meta, e.support_x, e.support_y)
    assert set(task) == {"net/head/weight", "net/head/bias"}
    grads = _gradient(ANIL(0.1, 3), net, meta, e)
    assert all(float(grads[k].abs().max()) > 0 for k in meta)


def test_anil_is_maml_where_only_the_head_has_a_rate() -> None:
    """The body's gradient flows through the support features on which the head was adapted, too."""
    net, e = _smooth(), _episode(3, 2)
    meta = _meta(net)
    def by_masked_maml(m: Params) -> Tensor:
        rates = {k: torch.full_like(v, 0.1 if k.startswith("net/head/") else 0.0) for k, v in m.items()}
        fast = inner.sgd_steps(lambda p: _mse(net.apply(p, e.support_x), e.support_y), m, lr=rates, steps=3)
        return _mse(net.apply(fast, e.query_x), e.query_y)

    masked = torch.func.grad(by_masked_maml)(meta)
    found = _gradient(ANIL(0.1, 3), net, meta, e)
    assert all(torch.allclose(found[k], masked[k], atol=1e-14) for k in meta)


def test_anil_is_maml_when_everything_is_head() -> None:
    net, e = mlp(3, 2, hidden=()), _episode(3, 2)
    a, b = (_gradient(learner, net, _meta(net), e) for learner in (ANIL(0.1, 4), MAML(0.1, 4)))
    assert all(torch.allclose(a[k], b[k], atol=1e-15) for k in a)


def test_anil_computes_support_features_once() -> None:
    net, e, calls = _smooth(), _episode(3, 2), list[int]()
    body = net.body
    assert body is not None

    def counted(params: Params, x: Tensor) -> Tensor:
        calls.append(len(x))
        return body(params, x)

    ANIL(0.1, 5).adapt(net._replace(body=counted), _mse, _meta(net), e.support_x, e.support_y)
    assert calls == [7]


def test_anil_refuses_a_net_without_a_head() -> None:
    net, e = mlp(3, None), _episode(3, 2)
    with pytest.raises(ValueError, match="has none"):
        ANIL().adapt(net, _mse, _meta(net), e.support_x, e.support_y)


@pytest.mark.parametrize("learner", [MAML(), FOMAML(), ANIL()], ids=lambda x: type(x).__name__)
def test_at_test_changes_the_number_of_steps_and_nothing_else(learner: MAML | FOMAML | ANIL) -> None:
    assert learner.at_test() is learner
    assert replace(learner, test_steps=10).at_test() == replace(learner, test_steps=10, inner_steps=10)
    assert replace(learner, test_steps=0).at_test().inner_steps == 0


@pytest.mark.parametrize("kind", [MAML, FOMAML, ANIL])
def test_rates_and_steps_that_mean_nothing_are_refused(kind: type[MAML] | type[FOMAML] | type[ANIL]) -> None:
    for wrong in ({"inner_lr": -0.1}, {"inner_lr": float("nan")}, {"inner_steps": -1}, {"test_steps": -1}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))} >= 0` must hold"):
            kind(**wrong)
    kind(inner_lr=torch.tensor(-0.1))  # a tensor's values are its owner's: it may be traced, or learnt


# two independent implementations -----------------------------------------------------------------------------------------------


def _module(meta: Params) -> torch.nn.Sequential:
    layers = [torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)]
    module = torch.nn.Sequential(*layers).double()
    with torch.no_grad():
        for p, v in zip(module.parameters(), meta.values(), strict=True):
            p.copy_(v)
    return module


@pytest.mark.parametrize(("steps", "first_order"), [(1, False), (3, False), (3, True)])
def test_higher_has_the_same_meta_gradient(steps: int, first_order: bool) -> None:
    higher = pytest.importorskip("higher")
    net, e = _smooth(), _episode(3, 2)
    meta = _meta(net)
    module = _module(meta)
    optimizer = torch.optim.SGD(module.parameters(), lr=ALPHA)
    with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False, track_higher_grads=not first_order) as (f, steps_of):
        for _ in range(steps):
            steps_of.step(F.mse_loss(f(e.support_x), e.support_y))
        loss = F.mse_loss(f(e.query_x), e.query_y)
        wanted = list(f.parameters(time=-1 if first_order else 0))
        theirs = torch.autograd.grad(loss, wanted)
    ours = _gradient(MAML(ALPHA, steps, first_order=first_order), net, meta, e)
    assert all(torch.allclose(a, b, atol=1e-10, rtol=0) for a, b in zip(ours.values(), theirs, strict=True))


@pytest.mark.parametrize("steps", [1, 3])
def test_torchopt_has_the_same_meta_gradient(steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchopt = pytest.importorskip("torchopt")
    net, e = _smooth(), _episode(3, 2)
    meta = _meta(net)
    module = _module(meta)
    theirs = list(module.parameters())
    optimizer = torchopt.MetaSGD(module, lr=ALPHA)
    for _ in range(steps):
        optimizer.step(F.mse_loss(module(e.support_x), e.support_y))
    found = torch.autograd.grad(F.mse_loss(module(e.query_x), e.query_y), theirs)
    ours = _gradient(MAML(ALPHA, steps), net, meta, e)
    assert all(torch.allclose(a, b, atol=1e-10, rtol=0) for a, b in zip(ours.values(), found, strict=True))
