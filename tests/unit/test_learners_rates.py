"""Meta-SGD, MAML++ and BOIL: what each becomes when a part is switched off, and the gradients of learnt rates in closed form."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, gradients
from metasearch.learners.anil import ANIL
from metasearch.learners.boil import BOIL
from metasearch.learners.maml import MAML
from metasearch.learners.maml_pp import MAMLPP, multi_step_weights
from metasearch.learners.meta_sgd import MetaSGD
from metasearch.nets import Net, Params, adapted
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm
from metasearch.tasks import Episode

ALPHA = 0.1
OFF = MAMLPP(ALPHA, 3, multi_step=False, learnt_rates=False, norms_per_step=False)


def _mse(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().mean()


def _episode(seed: int = 1) -> Episode:
    generator = Generator().manual_seed(seed)
    sx, sy, qx, qy = (torch.randn(7, n, generator=generator, dtype=torch.float64) for n in (3, 2) * 2)
    return Episode(sx, sy, qx, qy)


def _net(norm: str = "none") -> Net:
    return mlp(3, 2, hidden=(6, 5), act="tanh", norm=Norm(norm))  # type: ignore[arg-type]


def _meta(learner: Learner, net: Net, seed: int = 0) -> Params:
    return {k: v.double() for k, v in learner.init(net, Generator().manual_seed(seed)).items()}


def _gradient(learner: Learner, net: Net, meta: Params, episode: Episode) -> Params:
    return learner.episode_gradient(net, _mse, meta, episode)[0]


def _slope(net: Net, params: Params, x: Tensor, y: Tensor) -> Params:
    found: Params = torch.func.grad(lambda p: _mse(net.apply(p, x), y))(params)
    return found


# identities between learners -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
def test_meta_sgd_with_a_constant_rate_is_maml(steps: int) -> None:
    net, e, learner = _net(), _episode(), MetaSGD(ALPHA, ALPHA, steps)
    meta = _meta(learner, net)
    ours, theirs = _gradient(learner, net, meta, e), _gradient(MAML(ALPHA, steps), net, net_only(meta), e)
    assert all(torch.allclose(ours[k], theirs[k], rtol=1e-6, atol=1e-9) for k in theirs)


def net_only(meta: Params) -> Params:
    return {k: v for k, v in meta.items() if k.startswith("net/")}


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_maml_pp_with_everything_switched_off_is_maml(norm: str) -> None:
    net, e = _net(norm), _episode()
    meta = _meta(OFF, net)
    ours, theirs = _gradient(OFF, net, meta, e), _gradient(MAML(ALPHA, 3), net, meta, e)
    assert set(ours) == set(theirs), "nothing is learnt that MAML does not learn"
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-14) for k in theirs)


@pytest.mark.parametrize("part", [
    {"multi_step": True}, {"learnt_rates": True}, {"norms_per_step": True}, {"first_order_epochs": 50},
], ids=str)
def test_each_part_of_maml_pp_alone_makes_it_another_learner(part: dict[str, bool | int]) -> None:
    """What is learnt, or where the gradient points, differs from MAML's."""
    net, e = _net("batch"), _episode()
    learner = replace(OFF, **part).at(0.0)
    meta = _meta(learner, net)
    if part.get("norms_per_step"):  # at its beginning every step has the same norms: move one
        meta = {k: v + (0.1 if k.startswith("step/") else 0.0) for k, v in meta.items()}
    ours, theirs = _gradient(learner, net, meta, e), _gradient(MAML(ALPHA, 3), net, net_only(meta), e)
    assert any(not torch.allclose(ours[k], theirs[k], atol=1e-6) for k in theirs) or set(ours) > set(theirs)
    if "learnt_rates" not in part:
        assert any(not torch.allclose(ours[k], theirs[k], atol=1e-6) for k in theirs)


def test_boil_and_anil_adapt_complementary_parts() -> None:
    net, e = _net("batch"), _episode()
    meta = _meta(BOIL(), net)
    body = BOIL(0.5, 2).adapt(net, _mse, meta, e.support_x, e.support_y)
    head = ANIL(0.5, 2).adapt(net, _mse, meta, e.support_x, e.support_y)
    assert not set(body) & set(head)
    assert set(body) | set(head) == {k for k in meta if adapted(k)}
    assert all(not torch.equal(v, meta[k]) for k, v in body.items() if k.endswith("weight")), "all of the body moves"


# learnt rates --------------------------------------------------------------------------------------------------------


def test_the_gradient_of_meta_sgds_rates_is_minus_the_product_of_two_gradients() -> None:
    """dL/dA = -g_S * g_Q(theta'), exactly, for one step."""
    net, e, learner = _net(), _episode(), MetaSGD()
    meta = _meta(learner, net)
    theta = net_only(meta)
    g_support = _slope(net, theta, e.support_x, e.support_y)
    moved = {k: v - meta[f"lr/{k}"] * g_support[k] for k, v in theta.items()}
    g_query = _slope(net, moved, e.query_x, e.query_y)
    found = _gradient(learner, net, meta, e)
    for k in theta:
        assert torch.allclose(found[f"lr/{k}"], -g_support[k] * g_query[k], atol=1e-14)


def test_meta_sgds_rates_begin_where_they_should_and_may_turn_negative() -> None:
    meta = MetaSGD(0.005, 0.1).init(_net(), Generator().manual_seed(0))
    rates = torch.cat([v.flatten() for k, v in meta.items() if k.startswith("lr/")])
    assert 0.005 <= float(rates.min()) < 0.02
    assert 0.08 < float(rates.max()) <= 0.1
    net, e, learner = _net(), _episode(), MetaSGD()
    against = {k: -v if k.startswith("lr/") else v for k, v in _meta(learner, net).items()}
    before = _mse(net.apply(against, e.support_x), e.support_y)
    task = learner.adapt(net, _mse, against, e.support_x, e.support_y)
    after = _mse(learner.predict(net, against, task, e.support_x), e.support_y)
    assert float(after) > float(before), "a negative rate climbs: signs are not clamped"


def test_the_gradient_of_a_rate_of_maml_pp_is_minus_an_inner_product() -> None:
    """d L / d lr_{l,j} = -<g_j^l, dL/dtheta_{j+1}^l>, the last factor through the later steps."""
    net, e = _net(), _episode()
    learner = replace(OFF, learnt_rates=True)
    meta = _meta(learner, net)
    found = _gradient(learner, net, meta, e)
    theta = net_only(meta)
    for j in range(3):
        g = _slope(net, theta, e.support_x, e.support_y)
        theta = {k: v - ALPHA * g[k] for k, v in theta.items()}

        def rest(p: Params, left: int = 2 - j) -> Tensor:
            for _ in range(left):
                slope = _slope(net, p, e.support_x, e.support_y)
                p = {k: v - ALPHA * slope[k] for k, v in p.items()}
            return _mse(net.apply(p, e.query_x), e.query_y)

        behind: Params = torch.func.grad(rest)(theta)
        for k in theta:
            assert float(found[f"lr/{k}"][j]) == pytest.approx(-float((g[k] * behind[k]).sum()), rel=1e-6, abs=1e-10)


# the multi-step loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "weights"), [
    (0, [0.2] * 5), (5, [0.13333333] * 4 + [0.46666667]), (10, [0.06666667] * 4 + [0.73333333]),
    (14, [0.01333333] * 4 + [0.94666667]), (15, [0.006] * 4 + [0.976]),
])
def test_multi_step_weights_are_those_of_the_authors_code(epoch: int, weights: list[float]) -> None:
    """n = 5 steps, 15 epochs."""
    found = multi_step_weights(5, 15, float(epoch), like=torch.zeros((), dtype=torch.float64))
    assert found.tolist() == pytest.approx(weights, abs=1e-8)
    assert float(found.sum()) == pytest.approx(1.0)


def test_the_multi_step_loss_weighs_the_query_loss_after_every_step_and_ends_on_time() -> None:
    net, e = _net(), _episode()
    learner = replace(OFF, multi_step=True, multi_step_epochs=10)
    meta = _meta(learner, net)
    each = torch.stack([
        _mse(net.apply(MAML(ALPHA, k).adapt(net, _mse, meta, e.support_x, e.support_y), e.query_x), e.query_y) for k in (1, 2, 3)
    ])
    for progress in (0.0, 0.04):
        weights = multi_step_weights(3, 10, float(int(100 * progress)), like=each)
        assert float(learner.at(progress).episode_loss(net, _mse, meta, e)[0]) == pytest.approx(float(each @ weights))
    late = learner.at(0.1).episode_loss(net, _mse, meta, e)[0]
    assert float(late) == pytest.approx(float(each[-1])), "from epoch 10 on the last step alone counts"


def test_derivative_order_is_annealed_by_the_epoch() -> None:
    learner = MAMLPP(first_order_epochs=50)
    assert learner.at(0.0).first_order
    assert learner.at(0.49).first_order
    assert not learner.at(0.5).first_order
    assert not MAMLPP().at(0.0).first_order, "the released settings are second order from the start"


def test_norms_of_a_step_are_used_in_that_step_alone_and_never_adapted() -> None:
    net, e = _net("batch"), _episode()
    learner = replace(OFF, norms_per_step=True)
    meta = _meta(learner, net)
    rows = [k for k in meta if k.startswith("step/")]
    assert rows
    assert all(len(meta[k]) == 2 for k in rows), "three steps: two rows, and the net's own"
    task = learner.adapt(net, _mse, meta, e.support_x, e.support_y)
    for k in (k.removeprefix("step/") for k in rows):
        assert torch.equal(task[k], meta[k]), "queries see the norms of the last step"
    by_hand, at = net_only(meta), {}
    moved = {k: meta[k] + 0.3 * torch.randn(meta[k].shape, generator=Generator().manual_seed(2)).double() for k in rows}
    for j in range(3):
        norms = {k.removeprefix("step/"): v[j] if j < 2 else meta[k.removeprefix("step/")] for k, v in moved.items()}
        at = {**by_hand, **norms}
        g = _slope(net, at, e.support_x, e.support_y)
        by_hand = {k: v - ALPHA * g[k] if adapted(k) else v for k, v in by_hand.items()}
    found = learner.adapt(net, _mse, {**meta, **moved}, e.support_x, e.support_y)
    assert all(torch.allclose(found[k], by_hand[k], atol=1e-14) for k in by_hand if adapted(k))


def test_more_steps_at_test_repeat_the_last_rate_and_fewer_stop_early() -> None:
    net, e = _net("batch"), _episode()
    learner = MAMLPP(ALPHA, 2, test_steps=4, multi_step=False)
    meta = _meta(learner, net)
    meta = {k: v * torch.tensor([1.0, 0.5], dtype=torch.float64) if k.startswith("lr/") else v for k, v in meta.items()}
    theta: Params = {k: v for k, v in meta.items() if adapted(k)}
    rates = {k: [0.1, 0.05, 0.05, 0.05] for k in theta}
    for j in range(4):
        g = _slope(net, {**net_only(meta), **theta}, e.support_x, e.support_y)
        theta = {k: v - rates[k][j] * g[k] for k, v in theta.items()}
    found = learner.at_test().adapt(net, _mse, meta, e.support_x, e.support_y)
    assert all(torch.allclose(found[k], theta[k], atol=1e-7) for k in theta)
    none = replace(learner, inner_steps=0).adapt(net, _mse, meta, e.support_x, e.support_y)
    assert all(torch.equal(none[k], meta[k]) for k in theta)


def test_first_order_maml_pp_builds_no_second_order_graph() -> None:
    net, e = _net(), _episode()
    learner = replace(OFF, first_order=True)
    meta = {k: v.requires_grad_() for k, v in _meta(learner, net).items()}
    with gradients.on_tape():
        task = learner.adapt(net, _mse, meta, e.support_x, e.support_y)
    first = torch.autograd.grad(_mse(net.apply({**meta, **task}, e.query_x), e.query_y), list(meta.values()))
    slopes = _slope(net, {k: v.detach() for k, v in task.items()}, e.query_x, e.query_y)
    assert all(torch.allclose(a, slopes[k], atol=1e-14) for a, k in zip(first, meta, strict=True))


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (1, 0), (1, 0.5)])
def test_rates_of_meta_sgd_that_begin_nowhere_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low <= high"):
        MetaSGD(low, high)
