"""Matching networks against what attention must be, and what full context adds."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.learners.matching import Matching
from metasearch.nets import Net, NormMode, Params, lstm
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm, population
from metasearch.tasks import Episode

WAYS, DIMS = 4, 5
IDENTITY = Net(lambda generator: {}, lambda params, x: x, features=DIMS)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _loss(output: Tensor, y: Tensor) -> Tensor:
    return -(y * output.log_softmax(-1)).sum(-1).mean()


def _episode(shots: int = 3, queries: int = 2, ways: int = WAYS, dims: int = DIMS) -> Episode:
    eye = torch.eye(ways, dtype=torch.float64)
    return Episode(
        _draw(ways * shots, dims), eye.repeat(shots, 1), _draw(ways * queries, dims, seed=1), eye.repeat(queries, 1),
    )


def _outputs(learner: Matching, e: Episode, net: Net = IDENTITY, meta: Params | None = None) -> Tensor:
    meta = meta or {}
    return learner.predict(net, meta, learner.adapt(net, _loss, meta, e.support_x, e.support_y), e.query_x)


def _full_context(seed: int = 0) -> tuple[Matching, Params]:
    learner = Matching(embedding="full-context")
    return learner, {k: v.double() for k, v in learner.init(IDENTITY, Generator().manual_seed(seed)).items()}


@pytest.mark.parametrize(("ways", "floor"), [(5, 0.433), (20, 1.273)])
def test_bare_cosines_have_a_loss_that_they_cannot_fall_below(ways: int, floor: float) -> None:
    """Best is a support in the query's direction and all others in the opposite one: p = e / (e + (N-1) / e)."""
    eye = torch.eye(ways, dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0]] + [[-1.0, 0.0]] * (ways - 1), dtype=torch.float64)
    best = Episode(x, eye, x[:1], eye[:1])
    law = math.log1p((ways - 1) * math.exp(-2))
    assert law == pytest.approx(floor, abs=5e-4)
    assert float(_loss(_outputs(Matching(scale=1.0), best), best.query_y)) == pytest.approx(law, abs=1e-12)
    for seed in range(50):
        other = Episode(_draw(ways, 3, seed=seed), eye, _draw(1, 3, seed=100 + seed), eye[:1])
        assert float(_loss(_outputs(Matching(scale=1.0), other), other.query_y)) > law
    assert float(_loss(_outputs(Matching(), best), best.query_y)) < 1e-6, "ten times the cosines lift the cap"


@pytest.mark.parametrize(("ways", "floor"), [(5, 0.764), (20, 2.032)])
def test_bare_cosines_of_a_simplex_reach_a_higher_floor(ways: int, floor: float) -> None:
    """All classes at once: their directions can be no further apart than a simplex's, cos = -1 / (N-1)."""
    eye = torch.eye(ways, dtype=torch.float64)
    e = Episode(eye - 1 / ways, eye, eye - 1 / ways, eye)
    assert float(_loss(_outputs(Matching(scale=1.0), e), e.query_y)) == pytest.approx(floor, abs=5e-4)


@pytest.mark.parametrize("distance", ["cosine", "euclid"])
def test_attention_rows_sum_to_one_and_outputs_are_log_probabilities(distance: str) -> None:
    e, learner = _episode(), Matching(distance)  # type: ignore[arg-type]
    a = learner.attention(e.query_x, e.support_x)
    assert a.shape == (len(e.query_x), len(e.support_x))
    assert torch.allclose(a.sum(-1), torch.ones(len(a), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(_outputs(learner, e).exp(), a @ e.support_y, atol=1e-12)


@pytest.mark.parametrize("distance", ["cosine", "euclid"])
def test_one_shot_and_a_large_scale_is_the_nearest_neighbour(distance: str) -> None:
    e = _episode(shots=1, queries=8)
    near = F.cosine_similarity(e.query_x[:, None], e.support_x, dim=-1) if distance == "cosine" else -torch.cdist(
        e.query_x, e.support_x
    )
    expected = torch.eye(WAYS, dtype=torch.float64)[near.argmax(-1)]
    assert torch.allclose(_outputs(Matching(distance, 1e6), e).exp(), expected, atol=1e-9)  # type: ignore[arg-type]


def test_attention_weighs_each_support_by_itself_which_a_prototype_does_not() -> None:
    """Two supports of class 0 lie left and right of the query's direction; their mean lies on it, but neither is near."""
    eye = torch.eye(2, dtype=torch.float64)
    x = torch.tensor([[1.0, 4.0], [1.0, -4.0], [1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    e = Episode(x, eye[[0, 0, 1, 1]], torch.tensor([[1.0, 0.0]], dtype=torch.float64), eye[:1])
    assert int(_outputs(Matching(), e).argmax()) == 1
    assert int(F.cosine_similarity(e.query_x, torch.stack([x[:2].mean(0), x[2:].mean(0)])).argmax()) == 0


def test_logits_of_sums_are_the_cosines_of_a_class_together() -> None:
    e = _episode()
    cosines = F.cosine_similarity(e.query_x[:, None], e.support_x, dim=-1)
    expected = torch.stack([cosines[:, e.support_y[:, k] == 1].sum(-1) for k in range(WAYS)], -1)
    assert torch.allclose(_outputs(Matching(scale=1.0, logits="sum"), e), expected, atol=1e-12)


def test_soft_labels_share_a_supports_attention() -> None:
    e = _episode()
    soft = e._replace(support_y=_draw(len(e.support_x), WAYS, seed=2).softmax(-1))
    a = Matching().attention(e.query_x, e.support_x)
    assert torch.allclose(_outputs(Matching(), soft).exp(), a @ soft.support_y, atol=1e-12)


def test_full_context_of_zero_weights_is_the_simple_embedding() -> None:
    learner, meta = _full_context()
    e = _episode()
    zeros = {k: torch.zeros_like(v) for k, v in meta.items()}
    assert torch.allclose(_outputs(learner, e, meta=zeros), _outputs(Matching(), e), atol=1e-12)
    assert not torch.allclose(_outputs(learner, e, meta=meta), _outputs(Matching(), e), atol=1e-3)


def test_full_context_reads_a_sequence_and_simple_a_set() -> None:
    learner, meta = _full_context()
    e = _episode()
    turned = e._replace(support_x=e.support_x.flip(0), support_y=e.support_y.flip(0))
    assert torch.allclose(_outputs(Matching(), turned), _outputs(Matching(), e), atol=1e-12)
    assert not torch.allclose(_outputs(learner, turned, meta=meta), _outputs(learner, e, meta=meta), atol=1e-3)


def test_supports_in_context_are_those_of_torchs_bidirectional_lstm() -> None:
    learner, meta = _full_context()
    theirs = torch.nn.LSTM(DIMS, DIMS, bidirectional=True, dtype=torch.float64)
    zeros = torch.zeros(4 * DIMS, dtype=torch.float64)
    theirs.load_state_dict({
        f"{name}_l0{end}": value
        for way, end in (("forward", ""), ("backward", "_reverse"))
        for name, value in (("weight_ih", meta[f"fce/{way}/weight_x"]), ("weight_hh", meta[f"fce/{way}/weight_h"]),
                            ("bias_ih", meta[f"fce/{way}/bias"]), ("bias_hh", zeros))
    })
    e = _episode()
    states = theirs(e.support_x)[0].detach()
    g = learner.adapt(IDENTITY, _loss, meta, e.support_x, e.support_y)["supports"]
    assert torch.allclose(g, e.support_x + states[:, :DIMS] + states[:, DIMS:], atol=1e-12)


def test_queries_read_the_supports_as_the_equations_say() -> None:
    """Eq. 3 to 6 for one query, written out."""
    learner, meta = _full_context()
    e = _episode()
    g = learner.adapt(IDENTITY, _loss, meta, e.support_x, e.support_y)["supports"]
    x = e.query_x[0]
    h, c, r = torch.zeros_like(x), torch.zeros_like(x), g.mean(0)
    for _ in range(3):
        hat, c = lstm.step(meta, "fce/read", torch.cat([x, r]), (h, c))
        h = hat + x
        a = torch.stack([h @ row for row in g]).softmax(0)
        r = sum((w * row for w, row in zip(a, g, strict=True)), torch.zeros_like(x))
    expected = torch.log(learner.attention(h[None], g) @ e.support_y)[0]
    assert torch.allclose(_outputs(learner, e, meta=meta)[0], expected, atol=1e-12)


def test_in_training_supports_and_queries_share_one_forward_and_a_transductive_net_is_tested_so() -> None:
    e = _episode()
    modes: tuple[NormMode, ...] = ("transductive", "inductive")
    for mode in modes:
        net = mlp(DIMS, None, hidden=(6,), norm=Norm("batch"), mode=mode)
        meta = {k: v.double() for k, v in net.init(Generator().manual_seed(0)).items()}
        joint = Matching().episode_loss(net, _loss, meta, e)[0]
        if mode == "inductive":
            meta |= population(net, meta, [torch.cat([e.support_x, e.query_x])])
        assert torch.allclose(_loss(_outputs(Matching(), e, net, meta), e.query_y), joint, atol=1e-12)


def test_similarity_is_the_distance_that_attention_sees() -> None:
    a, b = _draw(3, DIMS), _draw(3, DIMS, seed=1)
    assert torch.allclose(Matching().similarity(IDENTITY, {}, a, b), F.cosine_similarity(a, b), atol=1e-12)
    assert torch.allclose(Matching("euclid").similarity(IDENTITY, {}, a, b), -(a - b).square().sum(-1), atol=1e-12)


@pytest.mark.parametrize(("arguments", "said"), [
    ({"distance": "manhattan"}, "'cosine' or 'euclid'"), ({"embedding": "fce"}, "'simple' or 'full-context'"),
    ({"logits": "mean"}, "'attention' or 'sum'"), ({"scale": -1.0}, "scale"), ({"reads": 0}, "reads >= 1"),
])
def test_a_wrong_option_is_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Matching(**arguments)  # type: ignore[arg-type]
