"""Relation networks: which pairs the module sees, in which order, and what its scores are trained to be."""
from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from metasearch.learners.relation import Relation, pairs, summed
from metasearch.nets import Net, NormMode, Params
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.tasks import Episode

WAYS, SIDE = 3, 8


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _loss(output: Tensor, y: Tensor) -> Tensor:
    return -(y * output.log_softmax(-1)).sum(-1).mean()


def _net(mode: NormMode = "transductive") -> Net:
    return conv4((1, SIDE, SIDE), None, Conv4(4, layers=2, pooled=1), mode=mode)  # maps 4 x 4 x 4


def _meta(learner: Relation, net: Net) -> Params:
    return {k: v.double() for k, v in learner.init(net, Generator().manual_seed(0)).items()}


def _episode(shots: int = 2, queries: int = 3) -> Episode:
    eye = torch.eye(WAYS, dtype=torch.float64)
    size = (1, SIDE, SIDE)
    return Episode(
        _draw(WAYS * shots, *size), eye.repeat(shots, 1), _draw(WAYS * queries, *size, seed=1), eye.repeat(queries, 1),
    )


def _outputs(learner: Relation, net: Net, meta: Params, e: Episode) -> Tensor:
    return learner.predict(net, meta, learner.adapt(net, _loss, meta, e.support_x, e.support_y), e.query_x)


def test_a_pair_is_a_class_and_a_query_with_the_class_varying_fastest() -> None:
    classes, z = _draw(WAYS, 4, 2, 2), _draw(5, 4, 2, 2, seed=1)
    both = pairs(classes, z)
    assert both.shape == (5 * WAYS, 2 * 4, 2, 2)
    for q in range(5):
        for k in range(WAYS):
            assert torch.equal(both[q * WAYS + k], torch.cat([classes[k], z[q]]))


def test_a_class_is_the_sum_of_its_supports_feature_maps() -> None:
    z, y = _draw(6, 4, 2, 2), torch.eye(WAYS, dtype=torch.float64).repeat(2, 1)
    assert torch.allclose(summed(z, y), z[:3] + z[3:], atol=1e-14)


@pytest.mark.parametrize("ways", [5, 20])
def test_the_best_constant_has_a_squared_error_of_n_minus_1_over_n_squared(ways: int) -> None:
    """A module whose last layer is only a bias gives one score to all; the best of them is 1/N."""
    net, learner = _net(), Relation()
    eye = torch.eye(ways, dtype=torch.float64)
    e = Episode(_draw(ways, 1, SIDE, SIDE), eye, _draw(ways, 1, SIDE, SIDE, seed=1), eye)
    meta = _meta(learner, net)
    meta["relation/head/weight"] = torch.zeros_like(meta["relation/head/weight"])

    def error(score: float) -> float:
        bias = torch.logit(torch.tensor([score], dtype=torch.float64))
        return float(learner.episode_loss(net, _loss, {**meta, "relation/head/bias": bias}, e)[0])

    assert error(1 / ways) == pytest.approx((ways - 1) / ways**2, abs=1e-12)
    assert min(error(0.9 / ways), error(1.1 / ways)) > error(1 / ways)


def test_permuting_classes_permutes_columns() -> None:
    net, learner = _net(), Relation()
    meta, e, places = _meta(learner, net), _episode(), torch.tensor([2, 0, 1])
    moved = _outputs(learner, net, meta, e._replace(support_y=e.support_y[:, places]))
    assert torch.allclose(moved, _outputs(learner, net, meta, e)[:, places], atol=1e-12)


def test_outputs_are_scores_between_0_and_1_that_need_not_sum_to_1() -> None:
    net, learner = _net(), Relation()
    out = _outputs(learner, net, _meta(learner, net), _episode())
    assert out.shape == (WAYS * 3, WAYS)
    assert bool(((out > 0) & (out < 1)).all())
    assert not torch.allclose(out.sum(-1), torch.ones(len(out), dtype=torch.float64), atol=1e-2)


def test_the_outer_loss_is_a_squared_error_whatever_the_tasks_loss_is() -> None:
    net, learner = _net(), Relation()
    meta, e = _meta(learner, net), _episode()
    found = learner.episode_loss(net, lambda output, y: output.sum() * 1e3, meta, e)[0]
    assert torch.allclose(found, (_outputs(learner, net, meta, e) - e.query_y).square().mean(), atol=1e-12)


def test_with_cross_entropy_outputs_are_the_scores_logits() -> None:
    net, bare = _net(), Relation(objective="cross-entropy")
    meta, e = _meta(bare, net), _episode()
    out = _outputs(bare, net, meta, e)
    assert torch.allclose(out.sigmoid(), _outputs(Relation(), net, meta, e), atol=1e-12)
    assert torch.allclose(bare.episode_loss(net, _loss, meta, e)[0], _loss(out, e.query_y), atol=1e-12)


def test_the_comparison_is_learnt_where_a_prototypes_is_given() -> None:
    """With other weights in the module alone, the same embeddings are ranked otherwise."""
    net, learner = _net(), Relation()
    meta, e = _meta(learner, net), _episode()
    other = {k: -v if k == "relation/head/weight" else v for k, v in meta.items()}
    assert torch.equal(_outputs(learner, net, other, e).argmax(-1), _outputs(learner, net, meta, e).argmin(-1))


def test_similarity_is_the_relation_with_a_single_support() -> None:
    net, learner = _net("none")._replace(norm="none"), Relation()
    meta, e = _meta(learner, net), _episode(shots=1, queries=1)
    apart = conv4((1, SIDE, SIDE), None, Conv4(4, layers=2, pooled=1), mode="inductive")
    meta |= {f"stat/conv{i}/norm/{part}": torch.ones(4, dtype=torch.float64) for i in (1, 2) for part in ("mean", "var")}
    out = _outputs(learner, apart, meta, e)
    assert torch.allclose(learner.similarity(apart, meta, e.support_x, e.query_x), out.diagonal(), atol=1e-12)


def test_the_module_of_the_papers_encoder_has_its_sizes() -> None:
    """Omniglot: 5 x 5 maps, padded, 1 x 1 in the end; miniImageNet: 19 x 19, not padded, 3 x 3 in the end."""
    for x_shape, flat in (((1, 28, 28), 64), ((3, 84, 84), 64 * 9)):
        net = conv4(x_shape, None, "relation")
        params = Relation().init(net, Generator().manual_seed(0))
        assert params["relation/conv1/weight"].shape == (64, 128, 3, 3)
        assert params["relation/conv2/weight"].shape == (64, 64, 3, 3)
        assert params["relation/layer1/weight"].shape == (8, flat)
        assert params["relation/head/weight"].shape == (1, 8)


def test_features_without_space_are_compared_by_the_linear_layers_alone() -> None:
    keys = Relation().init(conv4((1, 28, 28), None, "protonet"), Generator().manual_seed(0))
    assert {k: tuple(v.shape) for k, v in keys.items() if k.startswith("relation/")} == {
        "relation/layer1/weight": (8, 128), "relation/layer1/bias": (8,),
        "relation/head/weight": (1, 8), "relation/head/bias": (1,),
    }


def test_an_inductive_query_does_not_see_the_others_in_the_module_either() -> None:
    net, learner = _net("inductive"), Relation()
    meta, e = _meta(learner, net), _episode()
    meta |= {f"stat/conv{i}/norm/{part}": torch.ones(4, dtype=torch.float64) for i in (1, 2) for part in ("mean", "var")}
    together = _outputs(learner, net, meta, e)
    alone = torch.cat([_outputs(learner, net, meta, e._replace(query_x=x[None])) for x in e.query_x])
    assert torch.allclose(alone, together, atol=1e-12)


@pytest.mark.parametrize(("arguments", "said"), [
    ({"objective": "hinge"}, "'mse' or 'cross-entropy'"), ({"hidden": 0}, "hidden >= 1"),
])
def test_a_wrong_option_is_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Relation(**arguments)  # type: ignore[arg-type]
