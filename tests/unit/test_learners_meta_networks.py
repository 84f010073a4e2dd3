"""Meta Networks: layer augmentation, the memory of fast weights, and gradients as information."""
from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from metasearch.learners.meta_networks import MetaNetworks, augmented, cosine, log_and_sign, outputs
from metasearch.nets import Params
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm
from metasearch.tasks import Episode

NET = mlp(3, 2, hidden=(6, 5), act="tanh")
CONV = conv4((1, 4, 4), 2, Conv4(3, layers=2, norm=Norm("none")))
LEARNER = MetaNetworks(chunks=2, hidden=4)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _meta(learner: MetaNetworks = LEARNER) -> Params:
    return {k: v.double() for k, v in learner.init(NET, Generator().manual_seed(0)).items()}


def _loss(output: Tensor, y: Tensor) -> Tensor:
    return -(y * output.log_softmax(-1)).sum(-1).mean()


def _weights(meta: Params) -> Params:
    return {k: v for k, v in meta.items() if k.startswith("net/") and k.endswith("weight")}


X, QUERIES = _randn(4, 3), _randn(3, 3, seed=1)
Y = torch.eye(2, dtype=torch.float64)[[0, 1, 1, 0]]
EPISODE = Episode(X, Y, QUERIES, Y[:3])


def test_without_fast_weights_the_net_is_the_base_net() -> None:
    meta = _meta()
    nothing = {k: torch.zeros_like(v) for k, v in _weights(meta).items()}
    assert torch.equal(outputs(NET, meta, nothing, X), NET.apply(meta, X))
    params = {k: v.double() for k, v in CONV.init(Generator().manual_seed(0)).items()}
    nothing = {k: torch.zeros_like(v) for k, v in _weights(params).items()}
    x = _randn(2, 1, 4, 4)
    assert torch.equal(outputs(CONV, params, nothing, x), CONV.apply(params, x))


def test_activations_are_summed_not_weights() -> None:
    meta = _meta()
    fast = {k: _randn(*v.shape, seed=i) for i, (k, v) in enumerate(_weights(meta).items())}
    z = X
    for layer in ("layer1", "layer2"):
        slow = z @ meta[f"net/{layer}/weight"].T + meta[f"net/{layer}/bias"]
        z = slow.tanh() + (z @ fast[f"net/{layer}/weight"].T).tanh()
    assert torch.allclose(augmented(NET, meta, fast, X), z, atol=1e-14)
    head = z @ (meta["net/head/weight"] + fast["net/head/weight"]).T + meta["net/head/bias"]  # linear: both are the same
    assert torch.allclose(outputs(NET, meta, fast, X), head, atol=1e-13)
    summed = NET.apply({k: v + fast.get(k, 0) for k, v in meta.items()}, X)
    assert not torch.allclose(outputs(NET, meta, fast, X), summed, atol=1e-2)


def test_with_one_support_its_column_is_every_querys_fast_weights() -> None:
    meta = _meta()
    task = LEARNER.adapt(NET, _loss, meta, X[:1], Y[:1])
    wanted = outputs(NET, meta, {k: c[0] for k, c in task.columns.items()}, QUERIES)
    assert torch.allclose(LEARNER.predict(NET, meta, task, QUERIES), wanted, atol=1e-14)


def test_fast_weights_are_columns_weighted_by_the_similarity_of_keys() -> None:
    meta = _meta()
    task = LEARNER.adapt(NET, _loss, meta, X, Y)
    key_net = {f"net/{k[4:]}": v for k, v in meta.items() if k.startswith("key/")}
    keys = augmented(NET, key_net, task.key, QUERIES)
    attention = torch.nn.functional.cosine_similarity(keys[:, None], task.keys[None], dim=-1).softmax(1)
    for q in range(3):
        fast = {k: torch.einsum("m,m...->...", attention[q], c) for k, c in task.columns.items()}
        wanted = outputs(NET, meta, fast, QUERIES[q: q + 1])[0]
        assert torch.allclose(LEARNER.predict(NET, meta, task, QUERIES)[q], wanted, atol=1e-9)


def test_swapping_two_supports_swaps_their_columns_and_no_prediction() -> None:
    """The key net's LSTM sees their order; with one chunk nothing does."""
    meta, places = _meta(), torch.tensor([2, 1, 0, 3])
    one = MetaNetworks(chunks=1, hidden=4)
    a, b = one.adapt(NET, _loss, meta, X, Y), one.adapt(NET, _loss, meta, X[places], Y[places])
    assert all(torch.allclose(a.columns[k][places], b.columns[k], atol=1e-13) for k in a.columns)
    assert torch.allclose(a.keys[places], b.keys, atol=1e-13)
    assert torch.allclose(one.predict(NET, meta, a, QUERIES), one.predict(NET, meta, b, QUERIES), atol=1e-13)
    two = (LEARNER.adapt(NET, _loss, meta, X, Y), LEARNER.adapt(NET, _loss, meta, X[places], Y[places]))
    assert not torch.allclose(two[0].keys[places], two[1].keys, atol=1e-6)


def test_a_column_is_the_mlp_of_that_supports_gradient() -> None:
    meta = _meta()
    columns = LEARNER.columns(NET, _loss, meta, X, Y)
    grads = torch.func.grad(lambda p: _loss(NET.apply(p, X[2:3]), Y[2:3]))(meta)
    z = log_and_sign(grads["net/layer2/weight"].flatten(), 7.0)
    for layer in ("mlp1", "mlp2"):
        z = (z @ meta[f"fast/linear/{layer}/weight"].T + meta[f"fast/linear/{layer}/bias"]).relu()
    wanted = z @ meta["fast/linear/mlp_out/weight"].T + meta["fast/linear/mlp_out/bias"]
    assert torch.allclose(columns["net/layer2/weight"][2].flatten(), wanted.flatten(), atol=1e-13)


def test_permuted_labels_permute_predictions_when_both_heads_are_permuted() -> None:
    meta, places = _meta(), torch.tensor([1, 0])
    there = {k: v[places] if "/head/" in k else v for k, v in meta.items()}
    found = LEARNER.predict(NET, there, LEARNER.adapt(NET, _loss, there, X, Y[:, places]), QUERIES)
    before = LEARNER.predict(NET, meta, LEARNER.adapt(NET, _loss, meta, X, Y), QUERIES)
    assert torch.allclose(found, before[:, places], atol=1e-12)


def test_gradients_are_information_and_no_path() -> None:
    """The head of the key net acts through gradients alone, so nothing flows back to it; everything else is taught."""
    grads, _ = LEARNER.episode_gradient(NET, _loss, _meta(), EPISODE)
    silent = {k for k, g in grads.items() if not bool(g.any())}
    assert silent == {"key/head/weight", "key/head/bias"}


def test_convolutions_and_linear_layers_have_networks_of_their_own() -> None:
    params = LEARNER.init(CONV, Generator().manual_seed(0))
    groups = {k.split("/")[1] for k in params if k.startswith("fast/")}
    assert groups == {"conv", "linear"}
    assert {k.split("/")[1] for k in _meta() if k.startswith("fast/")} == {"linear"}


def test_a_convolutional_episode_is_the_same_under_vmap_and_on_the_tape() -> None:
    from metasearch.learners import gradients

    params = {k: v.double() for k, v in LEARNER.init(CONV, Generator().manual_seed(0)).items()}
    e = Episode(_randn(2, 4, 1, 4, 4), torch.stack([Y, Y]), _randn(2, 3, 1, 4, 4, seed=1), torch.stack([Y[:3], Y[1:]]))
    many, _ = torch.func.vmap(lambda e: LEARNER.episode_gradient(CONV, _loss, params, e))(e)
    with gradients.on_tape():
        one, _ = LEARNER.episode_gradient(CONV, _loss, params, e.select(1))
    assert all(torch.allclose(many[k][1], one[k], atol=1e-12) for k in one)


def test_preprocessing_is_the_published_table() -> None:
    g = torch.tensor([1.0, 1e-2, -1e-3, 1e-6, 0.0], dtype=torch.float64)
    wanted = torch.tensor([[0, 1], [-0.4605, 1], [-0.6908, -1], [-1, 0.0220], [-1, 0]], dtype=torch.float64)
    assert torch.allclose(log_and_sign(g, 10.0), wanted, atol=5e-5)


def test_the_cosine_of_nothing_is_nothing() -> None:
    assert not bool(cosine(torch.zeros(2, 3), torch.randn(4, 3, generator=Generator().manual_seed(0))).any())


def test_a_net_without_a_chain_or_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="no head"):
        LEARNER.init(mlp(3, None), Generator())
    with pytest.raises(ValueError, match="no chain"):
        LEARNER.init(NET._replace(blocks=()), Generator())
