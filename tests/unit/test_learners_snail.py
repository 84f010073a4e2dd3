"""SNAIL: causality, reach, attention, and that queries computed side by side are sequences of their own."""
from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from metasearch.learners.snail import SNAIL, attention, delayed, dense, visible
from metasearch.nets import Params
from metasearch.nets.mlp import mlp
from metasearch.tasks import Episode

SMALL = SNAIL(supports=6, keys=(4, 5, 6), values=(3, 4, 5), filters=4)
NET = mlp(3, 2, hidden=(6, 5), act="tanh")


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _meta(learner: SNAIL = SMALL) -> Params:
    return {k: v.double() for k, v in learner.init(NET, Generator().manual_seed(0)).items()}


def _labels(rows: int, ways: int = 2, seed: int = 0) -> Tensor:
    return torch.eye(ways, dtype=torch.float64)[torch.randint(ways, (rows,), generator=Generator().manual_seed(seed))]


def _by_definition(learner: SNAIL, meta: Params, z: Tensor, y: Tensor) -> Tensor:
    """One sequence z [T, D], y [T, N], item by item, every sum over the past written out."""
    x = torch.cat([z, y], dim=1)

    def layer(key: str, v: Tensor) -> Tensor:
        return meta[f"snail/{key}/weight"] @ v + meta[f"snail/{key}/bias"]

    for i in range(3):
        for d in learner.dilations if i else ():
            rows = []
            for t in range(len(x)):
                before = x[t - d] if t >= d else torch.zeros_like(x[t])
                f, g = layer(f"convolution{i}/{d}", torch.cat([x[t], before])).chunk(2)
                rows.append(torch.cat([x[t], f.tanh() * g.sigmoid()]))
            x = torch.stack(rows)
        rows = []
        for t in range(len(x)):
            q = layer(f"attention{i}/query", x[t])
            e = torch.stack([q @ layer(f"attention{i}/key", x[s]) / math.sqrt(len(q)) for s in range(t + 1)]).exp()
            read = sum((e[s] / e.sum() * layer(f"attention{i}/value", x[s]) for s in range(t + 1)), torch.zeros(()))
            rows.append(torch.cat([x[t], torch.as_tensor(read)]))
        x = torch.stack(rows)
    return torch.stack([layer("head", row) for row in x])


def test_permuted_labels_permute_predictions_when_the_weights_that_touch_them_are_permuted() -> None:
    """Every layer is given all that was there before it, labels included; nothing else may know which class is which."""
    meta, z, queries, y = _meta(), _randn(6, 5), _randn(4, 5, seed=1), _labels(6)
    places, there = torch.tensor([1, 0]), dict(meta)
    for key, weight in meta.items():
        if key.startswith("snail/") and key.endswith("weight"):
            halves = weight.chunk(2, dim=1) if "convolution" in key else (weight,)  # an item, and the one so many before it
            parts = [torch.cat([half[:, :5], half[:, 5:7][:, places], half[:, 7:]], dim=1) for half in halves]
            there[key] = torch.cat(parts, dim=1)
    for key in ("snail/head/weight", "snail/head/bias"):
        there[key] = there[key][places]
    found = SMALL.outputs(there, z, queries, y[:, places])
    assert torch.allclose(found, SMALL.outputs(meta, z, queries, y)[:, places], atol=1e-12)
    assert not torch.allclose(found, SMALL.outputs(meta, z, queries, y), atol=1e-3)


def test_queries_side_by_side_are_sequences_that_each_end_in_one_query() -> None:
    meta, z, queries, y = _meta(), _randn(6, 5), _randn(4, 5, seed=1), _labels(6)
    found = SMALL.outputs(meta, z, queries, y)
    for i, query in enumerate(queries):
        wanted = _by_definition(SMALL, meta, torch.cat([z, query[None]]), torch.cat([y, torch.zeros(1, 2, dtype=y.dtype)]))
        assert torch.allclose(found[:6], wanted[:6], atol=1e-12)
        assert torch.allclose(found[6 + i], wanted[6], atol=1e-12)


def test_an_item_changes_no_output_before_it_by_a_single_bit() -> None:
    meta, z, queries, y = _meta(), _randn(6, 5), _randn(3, 5, seed=1), _labels(6)
    before = SMALL.outputs(meta, z, queries, y)
    for t in range(6):
        moved = z.clone()
        moved[t] += 1
        after = SMALL.outputs(meta, moved, queries, y)
        assert torch.equal(after[:t], before[:t])
        assert bool((after[t:] != before[t:]).any(dim=1).all())  # itself, later ones and every query


def test_a_label_changes_no_output_before_it_and_every_later_one() -> None:
    meta, z, queries, y = _meta(), _randn(6, 5), _randn(3, 5, seed=1), _labels(6)
    before = SMALL.outputs(meta, z, queries, y)
    after = SMALL.outputs(meta, z, queries, torch.cat([y[:3], y[3:4].flip(1), y[4:]]))
    assert torch.equal(after[:3], before[:3])
    assert bool((after[3:] != before[3:]).any(dim=1).all())


@pytest.mark.parametrize(("supports", "depth"), [(1, 1), (3, 2), (4, 3), (5, 3), (25, 5), (100, 7)])
def test_temporal_convolutions_reach_over_the_whole_sequence_and_are_as_few_as_can_be(supports: int, depth: int) -> None:
    """Depths of the paper: 3 for 5-way 1-shot, 5 for 5-way 5-shot, 7 for 20-way 5-shot."""
    learner = SNAIL(supports=supports, filters=2)
    assert len(learner.dilations) == depth
    params: Params = {}
    width = 3
    for d in learner.dilations:
        params |= {f"{d}/weight": _randn(4, 2 * width, seed=d), f"{d}/bias": _randn(4, seed=d)}
        width += 2

    def last(x: Tensor, dilations: tuple[int, ...]) -> Tensor:
        for d in dilations:
            x = dense(params, str(d), x, supports, d)
        return x[-1].sum()

    x = _randn(supports + 1, 3)
    assert bool((torch.func.grad(last)(x, learner.dilations) != 0).all())  # the query's output depends on every item
    assert not bool((torch.func.grad(last)(x, learner.dilations[:-1]) != 0).all())


def test_attention_rows_are_distributions_over_the_past() -> None:
    meta, x, seen = _meta(), _randn(9, 7), visible(6, 3)
    _, weights = attention(meta, "snail/attention0", x, seen)
    assert torch.allclose(weights.sum(dim=1), torch.ones(9, dtype=torch.float64), atol=1e-14)
    assert bool(((weights > 0) == seen).all())
    assert bool((seen[:6, :6] == torch.ones(6, 6).tril().bool()).all())
    assert bool((seen[6:].sum(dim=1) == 7).all())  # all supports, and itself


def test_attention_is_torchs_own() -> None:
    meta, x, seen = _meta(), _randn(9, 7), visible(6, 3)
    layers = [f"snail/attention0/{name}" for name in ("query", "key", "value")]
    q, k, v = (x @ meta[f"{layer}/weight"].T + meta[f"{layer}/bias"] for layer in layers)
    theirs = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen)[0]
    assert torch.allclose(attention(meta, "snail/attention0", x, seen)[0], theirs, atol=1e-12)


def test_every_query_stands_behind_the_last_support() -> None:
    x = torch.arange(5.0)[:, None]  # three supports and two queries
    assert delayed(x, 3, 1).flatten().tolist() == [0, 0, 1, 2, 2]
    assert delayed(x, 3, 3).flatten().tolist() == [0, 0, 0, 0, 0]
    assert delayed(x + 1, 3, 3).flatten().tolist() == [0, 0, 0, 1, 1]
    assert delayed(x + 1, 3, 4).flatten().tolist() == [0, 0, 0, 0, 0]


def test_the_published_network_has_the_published_widths() -> None:
    net = mlp(3, 5, hidden=(64,))
    params = SNAIL(supports=5).init(net, Generator().manual_seed(0))
    shapes = {k: tuple(v.shape) for k, v in params.items() if k.endswith("weight")}
    assert shapes["snail/attention0/query/weight"] == (64, 69)
    assert shapes["snail/convolution1/1/weight"] == (256, 2 * 101)
    assert shapes["snail/attention1/value/weight"] == (128, 101 + 3 * 128)
    assert shapes["snail/attention2/key/weight"] == (512, 613 + 3 * 128)
    assert shapes["snail/head/weight"] == (5, 1253)
    assert not any(k.startswith("net/head/") for k in params)


def test_a_support_set_beyond_its_reach_is_refused_in_words() -> None:
    def episode(rows: int) -> Episode:
        return Episode(_randn(rows, 3), _labels(rows), _randn(2, 3), _labels(2))

    def adapt(e: Episode) -> object:
        return SMALL.adapt(NET, lambda output, y: output.sum(), _meta(), e.support_x, e.support_y)

    def train(e: Episode) -> object:
        return SMALL.episode_loss(NET, lambda output, y: output.sum(), _meta(), e)

    for use in (adapt, train):
        use(episode(7))
        with pytest.raises(ValueError, match=r"reach over 7 supports, but the episode has 8. Train with supports=8"):
            use(episode(8))


def test_sizes_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SNAIL(filters=0)
    with pytest.raises(ValueError, match="three attentions"):
        SNAIL(keys=(1, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the net has none"):
        SMALL.init(mlp(3, None), Generator())
