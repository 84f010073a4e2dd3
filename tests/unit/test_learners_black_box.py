"""Black-box adaptation: what the order of supports, labels and queries may and may not do."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from metasearch.learners.black_box import BlackBox
from metasearch.nets import Net, Params
from metasearch.nets.mlp import mlp
from metasearch.tasks import Episode, TaskShape
from metasearch.tasks.sinusoid import Sinusoid

NET = mlp(3, 3, hidden=(6,), act="tanh")
BOTH = [BlackBox("lstm", 5), BlackBox("mean", 5)]


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _meta(learner: BlackBox, net: Net = NET) -> Params:
    return {k: v.double() for k, v in learner.init(net, Generator().manual_seed(0)).items()}


def _outputs(learner: BlackBox, x: Tensor, y: Tensor, queries: Tensor, meta: Params | None = None) -> Tensor:
    known = meta or _meta(learner)
    return learner.predict(NET, known, learner.adapt(NET, lambda output, y: output.sum(), known, x, y), queries)


X, QUERIES = _randn(6, 3), _randn(4, 3, seed=1)
Y = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 2, 0, 1]]


def test_a_mean_sees_no_order_and_an_lstm_does() -> None:
    places = torch.tensor([3, 0, 5, 1, 4, 2])
    lstm, mean = BOTH
    assert torch.allclose(_outputs(mean, X[places], Y[places], QUERIES), _outputs(mean, X, Y, QUERIES), atol=1e-14)
    assert not torch.allclose(_outputs(lstm, X[places], Y[places], QUERIES), _outputs(lstm, X, Y, QUERIES), atol=1e-4)


def test_a_mean_does_not_change_when_the_support_set_is_there_twice() -> None:
    twice = _outputs(BOTH[1], torch.cat([X, X]), torch.cat([Y, Y]), QUERIES)
    assert torch.allclose(twice, _outputs(BOTH[1], X, Y, QUERIES), atol=1e-14)


def test_what_is_kept_of_two_support_sets_together_is_the_mean_of_what_is_kept_of_each() -> None:
    """Weighted by their sizes; a sum, a maximum or an LSTM does something else."""
    mean, meta = BOTH[1], _meta(BOTH[1])
    z = NET.embed(meta, X)
    first, rest, whole = (mean.read(meta, z[part], Y[part])["h"] for part in (slice(2), slice(2, 6), slice(6)))
    assert torch.allclose(whole, (2 * first + 4 * rest) / 6, atol=1e-14)
    assert not torch.allclose(first, rest, atol=1e-3)


@pytest.mark.parametrize("learner", BOTH, ids=lambda x: x.aggregate)
def test_permuted_labels_permute_predictions_when_the_weights_that_touch_them_are_permuted(learner: BlackBox) -> None:
    meta, places = _meta(learner), torch.tensor([2, 0, 1])
    there = dict(meta)
    for key in ("black_box/head/weight", "black_box/head/bias"):
        there[key] = meta[key][places]
    key = "black_box/lstm/weight_x" if learner.aggregate == "lstm" else "black_box/pair/weight"
    there[key] = torch.cat([meta[key][:, :6], meta[key][:, 6:][:, places]], dim=1)
    found = _outputs(learner, X, Y[:, places], QUERIES, there)
    assert torch.allclose(found, _outputs(learner, X, Y, QUERIES)[:, places], atol=1e-14)


@pytest.mark.parametrize("learner", BOTH, ids=lambda x: x.aggregate)
def test_without_labels_all_label_assignments_look_alike(learner: BlackBox) -> None:
    """So nothing but chance is left: predictions come from the labels of the support set, and from nowhere else."""
    swapped = Y[:, [1, 0, 2]]
    assert torch.equal(_outputs(learner, X, 0 * Y, QUERIES), _outputs(learner, X, 0 * swapped, QUERIES))
    assert not torch.allclose(_outputs(learner, X, Y, QUERIES), _outputs(learner, X, swapped, QUERIES), atol=1e-4)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("learner", BOTH, ids=lambda x: x.aggregate)
def test_normed_features_are_blind_to_what_all_features_have_in_common(learner: BlackBox, normed: bool) -> None:
    learner = replace(learner, normed=normed)
    body, centre = NET.body, _randn(6, seed=4)
    assert body is not None

    def outputs(net: Net, meta: Params) -> Tensor:
        e = Episode(X, Y, QUERIES, Y[:4], {})
        by_two = learner.predict(net, meta, learner.adapt(net, lambda output, y: output.sum(), meta, X, Y), QUERIES)
        loss, _ = learner.episode_loss(net, lambda output, y: (output - by_two).square().sum(), meta, e)
        assert float(loss) < 1e-20  # both ways of use see the same
        return by_two

    meta = _meta(learner)
    moved = outputs(NET._replace(body=lambda params, x: 3 * body(params, x) + 7), meta)
    off = outputs(NET._replace(body=lambda params, x: body(params, x) + centre), meta | {"black_box/centre": centre})
    assert torch.allclose(moved, outputs(NET, meta), atol=1e-4) == normed
    assert torch.allclose(off, outputs(NET, meta), atol=1e-12) == normed


@pytest.mark.parametrize("learner", BOTH, ids=lambda x: x.aggregate)
def test_no_gradient_goes_through_a_frozen_net_and_all_others_stay(learner: BlackBox) -> None:
    meta, e = _meta(learner), Episode(X, Y, QUERIES, Y[:4], {})

    def mse(output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()

    free, _ = learner.episode_gradient(NET, mse, meta, e)
    frozen, _ = replace(learner, frozen=True).episode_gradient(NET, mse, meta, e)
    assert free.keys() == frozen.keys()
    for k in free:
        assert torch.equal(frozen[k], torch.zeros_like(free[k]) if k.startswith("net/") else free[k])
        assert bool(free[k].any())


@pytest.mark.parametrize("learner", BOTH, ids=lambda x: x.aggregate)
def test_the_order_of_the_queries_says_nothing(learner: BlackBox) -> None:
    found = _outputs(learner, X, Y, QUERIES)
    assert torch.allclose(_outputs(learner, X, Y, QUERIES.flip(0)), found.flip(0), atol=1e-14)


def test_the_lstm_is_torchs_own_over_the_pairs_and_a_query_without_label() -> None:
    learner = BOTH[0]
    meta = _meta(learner)
    theirs = torch.nn.LSTM(9, 5, batch_first=True).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(meta["black_box/lstm/weight_x"])
        theirs.weight_hh_l0.copy_(meta["black_box/lstm/weight_h"])
        theirs.bias_ih_l0.copy_(meta["black_box/lstm/bias"])
        theirs.bias_hh_l0.zero_()
    z = NET.embed(meta, torch.cat([X, QUERIES[:1]]))
    sequence = torch.cat([z, torch.cat([Y, torch.zeros(1, 3, dtype=torch.float64)])], dim=1)
    h = theirs(sequence[None])[0][0, -1].detach()
    wanted = meta["black_box/head/weight"] @ h + meta["black_box/head/bias"]
    assert torch.allclose(_outputs(learner, X, Y, QUERIES)[0], wanted, atol=1e-13)


@pytest.mark.parametrize("learner", [BlackBox("lstm", 24), BlackBox("mean", 64)], ids=lambda x: x.aggregate)
def test_it_learns_sine_waves_better_than_any_fixed_guess(learner: BlackBox) -> None:
    """Predicting 0 everywhere has an error of E[A^2] / 2 = 4.25; 120 steps halve it (2.2)."""
    tasks, net = Sinusoid(), mlp((1,), 1, hidden=(32,), act="tanh")
    shape, generator = TaskShape((1,), 1, 10, 10), Generator().manual_seed(0)
    free = {k: v.requires_grad_() for k, v in learner.init(net, generator).items()}
    outer = torch.optim.Adam(free.values(), lr=1e-2)
    losses = []
    for _ in range(120):
        e = tasks.sample_episodes(16, split="train", shape=shape, generator=generator)
        meta = {k: v.detach() for k, v in free.items()}
        grads, metrics = torch.func.vmap(lambda e, meta=meta: learner.episode_gradient(net, tasks.loss, meta, e))(e)
        for k, v in free.items():
            v.grad = grads[k].mean(0)
        outer.step()
        losses.append(float(metrics["loss"].mean()))
    assert sum(losses[-20:]) / 20 < 2.8


def test_options_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="'lstm' or 'mean'"):
        BlackBox("sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`hidden >= 1`"):
        BlackBox(hidden=0)
