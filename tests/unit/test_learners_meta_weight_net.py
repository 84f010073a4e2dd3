"""Meta-Weight-Net against its own equation 6, its limits, and what its weights must come to on planted noise and imbalance."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Generator, Tensor

from metasearch.learners import gradients
from metasearch.learners.maml import MAML
from metasearch.learners.meta_weight_net import MetaWeightNet, sample_weights
from metasearch.nets import Net, Params, adapted
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam, by_prefix
from metasearch.tasks import Episode, _classes

LOSS = _classes.cross_entropy


def _episode(rows: int = 8, seed: int = 1) -> Episode:
    generator = Generator().manual_seed(seed)
    x = torch.randn(2, rows, 3, generator=generator, dtype=torch.float64)
    y = torch.eye(2, dtype=torch.float64)[torch.randint(2, (2, rows), generator=generator)]
    return Episode(x[0], y[0], x[1], y[1])


def _net() -> Net:
    return mlp(3, 2, hidden=(5,), act="tanh")


def _meta(learner: MetaWeightNet, net: Net, seed: int = 0) -> Params:
    return {k: v.double() for k, v in learner.init(net, Generator().manual_seed(seed)).items()}


@pytest.mark.parametrize("world", ["transforms", "tape"])
def test_the_slope_in_theta_is_equation_6(world: str) -> None:
    """-(lr/n) sum_i (g_outer . g_i) dV_i/dTheta, every factor by itself."""
    net, e, learner = _net(), _episode(), MetaWeightNet(0.3, 1, hidden=6)
    meta = _meta(learner, net)
    theta = {k: v for k, v in meta.items() if adapted(k)}
    rows = range(len(e.support_x))
    own = [torch.func.grad(lambda p, i=i: LOSS(net.apply(p, e.support_x[[i]]), e.support_y[[i]]))(theta) for i in rows]
    losses = torch.stack([LOSS(net.apply(theta, e.support_x[[i]]), e.support_y[[i]]) for i in rows])
    weights = sample_weights(meta, losses)
    fast = {k: v - 0.3 * sum(weights[i] * own[i][k] for i in rows) / len(rows) for k, v in theta.items()}
    outer = torch.func.grad(lambda p: LOSS(net.apply(p, e.query_x), e.query_y))(fast)
    agreement = torch.stack([sum((outer[k] * own[i][k]).sum() for k in theta) for i in rows])  # type: ignore[misc]
    slopes = torch.func.jacrev(lambda p: sample_weights(p, losses))({k: v for k, v in meta.items() if k.startswith("weight/")})
    if world == "tape":
        with gradients.on_tape():
            found, _ = learner.episode_gradient(net, LOSS, meta, e)
    else:
        found, _ = learner.episode_gradient(net, LOSS, meta, e)
    for k, slope in slopes.items():
        expected = -0.3 / len(rows) * torch.tensordot(agreement, slope, 1)
        assert torch.allclose(found[k], expected, atol=1e-15, rtol=1e-10)
        assert float(expected.abs().max()) > 0


def test_a_step_is_the_weighted_mean_of_slopes_and_weights_have_no_slope_of_their_own() -> None:
    net, e, learner = _net(), _episode(), MetaWeightNet(0.3, 1, hidden=6)
    meta = _meta(learner, net)
    task = learner.adapt(net, LOSS, meta, e.support_x, e.support_y)
    losses = torch.stack([LOSS(net.apply(meta, x[None]), y[None]) for x, y in zip(e.support_x, e.support_y, strict=True)])
    fixed = sample_weights(meta, losses)

    def weighted(p: Params) -> Tensor:
        log = net.apply(p, e.support_x).log_softmax(-1)
        return -(fixed * (e.support_y * log).sum(-1)).sum() / len(fixed)

    slope = torch.func.grad(weighted)({k: meta[k] for k in task})
    assert all(torch.allclose(task[k], meta[k] - 0.3 * slope[k], atol=1e-15) for k in task)


def test_with_weights_of_one_half_it_is_maml_at_half_the_rate() -> None:
    """Normalised weights would give MAML at the whole rate."""
    net, e, learner = _net(), _episode(), MetaWeightNet(0.4, 3)
    meta = _meta(learner, net)
    meta |= {k: torch.zeros_like(v) for k, v in meta.items() if k.startswith("weight/out/")}
    found, _ = learner.episode_gradient(net, LOSS, meta, e)
    maml, _ = MAML(0.2, 3).episode_gradient(net, LOSS, {k: v for k, v in meta.items() if adapted(k)}, e)
    assert all(torch.allclose(found[k], g, atol=1e-14) for k, g in maml.items())


# what is learnt on logistic regression ----------------------------------------------------------------------------------------


def _noisy_episodes(n: int, generator: Generator) -> Episode:
    """Two classes, told apart by the first coordinate; 40 % of the supports have the other class's label."""
    x, qx = (torch.randn(n, 40, 2, generator=generator) * 2 for _ in range(2))
    wrong = torch.rand(n, 40, generator=generator) < 0.4
    label = (x[..., 0] > 0) ^ wrong
    return Episode(x, torch.eye(2)[label.long()], qx, torch.eye(2)[(qx[..., 0] > 0).long()])


def _imbalanced_episodes(n: int, generator: Generator) -> Episode:
    """Two normal classes that overlap; 36 supports of one and 4 of the other, and as many queries of each."""
    def drawn(label: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 40, 2, generator=generator)
        x[..., 0] += 1.5 * (2 * label - 1)
        return x, torch.eye(2)[label.long().expand(n, 40)]

    return Episode(*drawn((torch.arange(40) < 4).float()), *drawn((torch.arange(40) % 2).float()))


def _trained(
    draw: Callable[[int, Generator], Episode], start: Params, learner: MetaWeightNet, steps: int, learnt: str
) -> Params:
    net, generator = mlp(2, 2, hidden=()), Generator().manual_seed(0)
    meta = {**learner.init(net, generator), **start}
    optimizer = by_prefix({learnt: adam(1e-2)})
    state = optimizer.init(meta)
    for _ in range(steps):
        each = partial(learner.episode_gradient, net, LOSS, meta)
        grads, _ = torch.func.vmap(each)(draw(10, generator))
        mean = {k: g.mean(0) for k, g in grads.items()}
        meta, state = optimizer.update(mean, state, meta, optimizer.rates, torch.zeros(()))
    return meta


def _weights(meta: Params, *losses: float) -> list[float]:
    return [float(v) for v in sample_weights(meta, torch.tensor(losses))]


def test_with_wrong_labels_weights_fall_with_the_loss() -> None:
    start = {"net/head/weight": torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), "net/head/bias": torch.zeros(2)}
    weights = _weights(_trained(_noisy_episodes, start, MetaWeightNet(1.0, 3), 150, ""), 0.01, 0.5, 1.0, 2.0, 4.0)
    assert weights == sorted(weights, reverse=True)
    assert weights[0] > 3 * weights[-1]


def test_with_a_rare_class_weights_rise_with_the_loss() -> None:
    """From weights that lean to the common class, as ordinary training on such data makes them; Theta alone is learnt."""
    start = {"net/head/weight": torch.tensor([[-1.5, 0.0], [1.5, 0.0]]), "net/head/bias": torch.tensor([1.5, -1.5])}
    meta = _trained(_imbalanced_episodes, start, MetaWeightNet(1.0, 3), 150, "weight/")
    weights = _weights(meta, 0.01, 0.5, 1.0, 2.0, 4.0)
    assert weights == sorted(weights)
    assert weights[-1] > 3 * weights[0]
    assert torch.equal(meta["net/head/bias"], start["net/head/bias"]), "an optimiser for the prefix weight/ learns V alone"
