"""Siamese networks: the symmetry of twins, the balance of their pairs, and the published net."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.learners.siamese import Siamese, pair_weights
from metasearch.measure import parameters
from metasearch.nets import Net, Params
from metasearch.nets.koch import koch
from metasearch.nets.mlp import mlp
from metasearch.tasks import Episode

WAYS, DIMS = 3, 5
DISTANCES = ("l1", "l2", "cosine")


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _loss(output: Tensor, y: Tensor) -> Tensor:
    return -(y * output.log_softmax(-1)).sum(-1).mean()


def _net() -> Net:
    return mlp(DIMS, None, hidden=(6, 4), act="softplus")


def _meta(learner: Siamese, net: Net, seed: int = 0) -> Params:
    """As it begins, but with weights of all signs and a bias."""
    meta = {k: v.double() for k, v in learner.init(net, Generator().manual_seed(seed)).items()}
    return meta | {"twins/weight": _draw(len(meta["twins/weight"]), seed=7), "twins/bias": torch.tensor([0.3]).double()}


def _episode(shots: int = 2, queries: int = 3) -> Episode:
    eye = torch.eye(WAYS, dtype=torch.float64)
    return Episode(
        _draw(WAYS * shots, DIMS), eye.repeat(shots, 1), _draw(WAYS * queries, DIMS, seed=1), eye.repeat(queries, 1),
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_order_of_twins_does_not_matter(distance: str) -> None:
    net, learner = _net(), Siamese(distance)  # type: ignore[arg-type]
    meta, a, b = _meta(learner, net), _draw(4, DIMS), _draw(4, DIMS, seed=1)
    assert torch.allclose(learner.similarity(net, meta, a, b), learner.similarity(net, meta, b, a), atol=1e-14)


def test_an_input_is_its_own_twin_as_surely_as_the_bias_says() -> None:
    for distance in ("l1", "l2"):
        net, learner = _net(), Siamese(distance)  # type: ignore[arg-type]
        meta, a = _meta(learner, net), _draw(4, DIMS)
        assert torch.equal(learner.similarity(net, meta, a, a), meta["twins/bias"].sigmoid().expand(4))


def test_p_is_the_sigmoid_of_a_weighted_l1_distance() -> None:
    net, learner = _net(), Siamese()
    meta, a, b = _meta(learner, net), _draw(4, DIMS), _draw(4, DIMS, seed=1)
    apart = (net.apply(meta, a) - net.apply(meta, b)).abs()
    expected = [float((apart[i] @ meta["twins/weight"] + 0.3).sigmoid()) for i in range(4)]
    assert learner.similarity(net, meta, a, b).tolist() == pytest.approx(expected, abs=1e-7)


def test_twins_share_their_gradient_which_is_the_sum_of_both_branches() -> None:
    net, learner = _net(), Siamese()
    meta, a, b = _meta(learner, net), _draw(4, DIMS), _draw(4, DIMS, seed=1)
    left = {k: v.clone().requires_grad_() for k, v in meta.items() if k.startswith("net/")}
    right = {k: v.detach().clone().requires_grad_() for k, v in left.items()}
    two = learner.logits(meta, net.apply(left, a), net.apply(right, b)).sigmoid().sum()
    branches = torch.autograd.grad(two, [*left.values(), *right.values()])
    shared = torch.func.grad(lambda p: learner.similarity(net, {**meta, **p}, a, b).sum())({k: meta[k] for k in left})
    for k, first, second in zip(left, branches[: len(left)], branches[len(left):], strict=True):
        assert torch.allclose(shared[k], first + second, atol=1e-12)


@pytest.mark.parametrize(("shots", "queries"), [(1, 5), (2, 3)])
def test_half_of_the_weight_is_on_same_pairs_and_half_on_different_ones(shots: int, queries: int) -> None:
    e = _episode(shots, queries)
    y = torch.cat([e.support_y, e.query_y])
    same, different = pair_weights(y)
    assert float(same.sum()) == pytest.approx(0.5, abs=1e-12)
    assert float(different.sum()) == pytest.approx(0.5, abs=1e-12)
    labels = y.argmax(-1)
    for i in range(len(y)):
        for j in range(len(y)):
            alike = bool(labels[i] == labels[j])
            assert (float(same[i, j]) > 0) == (alike and i != j)
            assert (float(different[i, j]) > 0) == (not alike)
    assert len(set(same[same > 0].tolist())) == len(set(different[different > 0].tolist())) == 1, "equal weights"


def test_the_outer_loss_is_the_cross_entropy_of_those_pairs() -> None:
    net, learner = _net(), Siamese()
    meta, e = _meta(learner, net), _episode()
    x, labels = torch.cat([e.support_x, e.query_x]), torch.cat([e.support_y, e.query_y]).argmax(-1)
    of_same, of_different = [], []
    for i in range(len(x)):
        for j in range(i):
            p = learner.similarity(net, meta, x[i: i + 1], x[j: j + 1])
            alike = labels[i] == labels[j]
            (of_same if alike else of_different).append(F.binary_cross_entropy(p, alike.double()[None]))
    expected = (torch.stack(of_same).mean() + torch.stack(of_different).mean()) / 2
    assert torch.allclose(learner.episode_loss(net, lambda output, y: output.sum(), meta, e)[0], expected, atol=1e-7)


def test_a_query_takes_the_class_of_its_likeliest_support() -> None:
    """Not of the class that is likeliest on the average."""
    net, learner = Net(lambda generator: {}, lambda params, x: x, features=1), Siamese()
    meta = {"twins/weight": -torch.ones(1).double(), "twins/bias": torch.zeros(1).double()}
    eye = torch.eye(2, dtype=torch.float64)
    x = torch.tensor([[0.1], [9.0], [1.0], [1.0]], dtype=torch.float64)
    task = learner.adapt(net, _loss, meta, x, eye[[0, 0, 1, 1]])
    out = learner.predict(net, meta, task, torch.zeros(1, 1, dtype=torch.float64))
    assert torch.allclose(out, torch.tensor([[-0.1, -1.0]], dtype=torch.float64), atol=1e-14)


def test_koch_s_net_with_its_metric_has_38951745_parameters() -> None:
    net = koch()
    params = Siamese().init(net, Generator().manual_seed(0))
    assert parameters(params) == 38_951_745
    assert net.features == 4096
    assert {k: tuple(v.shape) for k, v in params.items() if v.dim() == 4} == {
        "net/conv1/weight": (64, 1, 10, 10), "net/conv2/weight": (128, 64, 7, 7), "net/conv3/weight": (128, 128, 4, 4),
        "net/conv4/weight": (256, 128, 4, 4),
    }
    assert params["net/full/weight"].shape == (4096, 9216)
    assert float(params["net/conv2/weight"].std()) == pytest.approx(0.01, rel=0.02)
    assert float(params["net/full/weight"].std()) == pytest.approx(0.2, rel=0.02)
    assert float(params["net/full/bias"].mean()) == pytest.approx(0.5, abs=0.002)
    out = net.apply(params, torch.zeros(2, 1, 105, 105))
    assert out.shape == (2, 4096)
    assert bool(((out >= 0) & (out <= 1)).all())


def test_koch_s_net_refuses_pictures_that_are_too_small() -> None:
    with pytest.raises(ValueError, match="28x28"):
        koch((1, 28, 28))
    with pytest.raises(ValueError, match="mlp for vectors"):
        koch((7,))


def test_a_distance_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'l1', 'l2' or 'cosine'"):
        Siamese("hamming")  # type: ignore[arg-type]
