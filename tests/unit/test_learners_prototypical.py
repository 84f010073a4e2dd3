"""Prototypical networks against the algebra of distances."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.learners.prototypical import Prototypical, prototypes
from metasearch.nets import Net, NormMode, Params
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm, population
from metasearch.tasks import Episode

WAYS, DIMS = 4, 5


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _loss(output: Tensor, y: Tensor) -> Tensor:
    return -(y * output.log_softmax(-1)).sum(-1).mean()


IDENTITY = Net(lambda generator: {}, lambda params, x: x, features=DIMS)


def _episode(shots: int = 3, queries: int = 2) -> Episode:
    eye = torch.eye(WAYS, dtype=torch.float64)
    return Episode(
        _draw(WAYS * shots, DIMS), eye.repeat(shots, 1), _draw(WAYS * queries, DIMS, seed=1), eye.repeat(queries, 1),
    )


def _outputs(learner: Prototypical, e: Episode, net: Net = IDENTITY, meta: Params | None = None) -> Tensor:
    meta = meta or {}
    return learner.predict(net, meta, learner.adapt(net, _loss, meta, e.support_x, e.support_y), e.query_x)


def test_squared_distances_are_a_linear_classifier() -> None:
    """-|z - c|^2 = 2 c z - |c|^2 - |z|^2."""
    e = _episode()
    c = prototypes(e.support_x, e.support_y)
    linear = 2 * e.query_x @ c.T - c.square().sum(-1) - e.query_x.square().sum(-1, keepdim=True)
    assert torch.allclose(_outputs(Prototypical(), e), linear, atol=1e-12)


def test_prototypes_are_the_means_of_their_classes() -> None:
    e = _episode()
    c = prototypes(e.support_x, e.support_y)
    for k in range(WAYS):
        assert torch.allclose(c[k], e.support_x[e.support_y.argmax(-1) == k].mean(0), atol=1e-14)


def test_uneven_and_soft_labels_weigh_the_means() -> None:
    z = torch.tensor([[0.0], [1.0], [5.0]])
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(prototypes(z, y), torch.tensor([[0.5], [5.0]]))
    y = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    assert torch.allclose(prototypes(z, y), torch.tensor([[1 / 3], [11 / 3]]))


def test_with_one_shot_the_nearest_support_wins() -> None:
    e = _episode(shots=1)
    nearest = torch.cdist(e.query_x, e.support_x).argmin(-1)
    assert torch.equal(_outputs(Prototypical(), e).argmax(-1), nearest)


def test_showing_the_supports_twice_changes_nothing() -> None:
    e = _episode()
    twice = e._replace(support_x=e.support_x.repeat(2, 1), support_y=e.support_y.repeat(2, 1))
    assert torch.allclose(_outputs(Prototypical(), e), _outputs(Prototypical(), twice), atol=1e-12)


def test_translation_changes_euclid_not_at_all_and_scaling_cosine_not_at_all() -> None:
    e = _episode()
    moved = e._replace(support_x=e.support_x + 3, query_x=e.query_x + 3)
    scaled = e._replace(support_x=3 * e.support_x, query_x=3 * e.query_x)
    assert torch.allclose(_outputs(Prototypical(), e), _outputs(Prototypical(), moved), atol=1e-11)
    cosine = Prototypical("cosine", 10.0)
    assert torch.allclose(_outputs(cosine, e), _outputs(cosine, scaled), atol=1e-12)
    assert not torch.allclose(_outputs(Prototypical(), e), _outputs(Prototypical(), scaled))
    assert not torch.allclose(_outputs(cosine, e), _outputs(cosine, moved))


def test_the_scale_multiplies() -> None:
    e = _episode()
    assert torch.allclose(_outputs(Prototypical(scale=0.5), e), 0.5 * _outputs(Prototypical(), e))
    cosines = F.cosine_similarity(e.query_x[:, None], prototypes(e.support_x, e.support_y)[None], dim=-1)
    assert torch.allclose(_outputs(Prototypical("cosine", 7.0), e), 7 * cosines, atol=1e-12)


def test_the_gradient_at_a_prototype_is_its_formula() -> None:
    """dL/dc_k = 2 sum_q (p_k - [y_q = k]) (z_q - c_k), L summed over queries."""
    e = _episode()
    c = prototypes(e.support_x, e.support_y)
    found = torch.func.grad(lambda c: _loss(Prototypical().logits(e.query_x, c), e.query_y) * len(e.query_x))(c)
    p = Prototypical().logits(e.query_x, c).softmax(-1)
    formula = 2 * ((p - e.query_y)[:, :, None] * (e.query_x[:, None] - c)).sum(0)
    assert torch.allclose(found, formula, atol=1e-12)


def test_in_training_supports_and_queries_share_one_forward() -> None:
    """So their batch statistics are common, in every norm mode."""
    e = _episode()
    modes: tuple[NormMode, ...] = ("transductive", "semi", "inductive")
    for mode in modes:
        net = mlp(DIMS, None, hidden=(6,), norm=Norm("batch"), mode=mode)
        meta = {k: v.double() for k, v in net.init(Generator().manual_seed(0)).items()}
        z = net.apply(meta, torch.cat([e.support_x, e.query_x]))
        c = prototypes(z[: len(e.support_x)], e.support_y)
        expected = _loss(Prototypical().logits(z[len(e.support_x):], c), e.query_y)
        assert torch.equal(Prototypical().episode_loss(net, _loss, meta, e)[0], expected)


def test_a_transductive_net_is_tested_as_it_was_trained() -> None:
    e = _episode()
    net = mlp(DIMS, None, hidden=(6,), norm=Norm("batch"), mode="transductive")
    meta = {k: v.double() for k, v in net.init(Generator().manual_seed(0)).items()}
    tested = _loss(_outputs(Prototypical(), e, net, meta), e.query_y)
    assert torch.equal(tested, Prototypical().episode_loss(net, _loss, meta, e)[0])


def test_an_inductive_net_is_tested_with_prototypes_alone() -> None:
    e = _episode()
    net = mlp(DIMS, None, hidden=(6,), norm=Norm("batch"), mode="inductive")
    meta = {k: v.double() for k, v in net.init(Generator().manual_seed(0)).items()}
    meta |= population(net, meta, [torch.cat([e.support_x, e.query_x])])
    task = Prototypical().adapt(net, _loss, meta, e.support_x, e.support_y)
    assert set(task) == {"prototypes"}
    joint = Prototypical().episode_loss(net, _loss, {k: v for k, v in meta.items() if not k.startswith("stat/")}, e)[0]
    assert torch.allclose(_loss(_outputs(Prototypical(), e, net, meta), e.query_y), joint, atol=1e-12)


def test_a_distance_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'euclid' or 'cosine'"):
        Prototypical("manhattan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale"):
        Prototypical(scale=-1.0)
