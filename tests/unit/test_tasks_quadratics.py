"""Quadratics are |W theta - y|^2 of uniform W and y, for supports and queries alike; the linear net makes them of episodes."""
from __future__ import annotations

import pytest
import torch
from torch import Generator

from metasearch.nets.linear_map import linear_map
from metasearch.tasks import build

TASKS = build("quadratics", {})
SHAPE = TASKS.shape(ways=1, shots=10, queries=10)


def test_the_loss_of_a_linear_net_is_f_over_the_rows_on_supports_and_queries_alike() -> None:
    net = linear_map(SHAPE.x, SHAPE.ways)
    params = net.init(Generator().manual_seed(0))
    assert {k: tuple(v.shape) for k, v in params.items()} == {"net/head/weight": (1, 10)}
    e = TASKS.sample_episodes(1, split="train", shape=SHAPE, generator=Generator().manual_seed(0)).select(0)
    f = (e.support_x @ params["net/head/weight"][0] - e.support_y[:, 0]).square().sum()
    assert float(TASKS.loss(net.apply(params, e.support_x), e.support_y)) == pytest.approx(float(f) / 10, rel=1e-6)
    on = [TASKS.loss(net.apply(params, x), y) for x, y in ((e.support_x, e.support_y), (e.query_x, e.query_y))]
    assert torch.equal(*on)
    assert net.body is not None
    assert net.head is not None
    assert torch.equal(net.head(params, net.body(params, e.query_x)), net.apply(params, e.query_x))


def test_entries_are_uniform_in_0_1_so_f_begins_at_a_third_a_row() -> None:
    """E y^2 = 1/3, var y^2 = 1/5 - 1/9; 5 standard errors miss less than once in a million."""
    e = TASKS.sample_episodes(1000, split="train", shape=SHAPE, generator=Generator().manual_seed(0))
    assert float(e.support_x.min()) >= 0
    assert float(e.support_x.max()) <= 1
    for entries, power, mean, variance in ((e.support_x, 1, 1 / 2, 1 / 12), (e.support_y, 2, 1 / 3, 1 / 5 - 1 / 9)):
        assert abs(float((entries**power).mean()) - mean) < 5 * (variance / entries.numel()) ** 0.5


def test_splits_are_different_functions() -> None:
    train, val = (
        TASKS.sample_episodes(3, split=s, shape=SHAPE, generator=Generator().manual_seed(0)) for s in ("train", "val")
    )
    assert not torch.equal(train.support_x, val.support_x)


def test_other_rows_for_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`queries == shots` \(they are the same equations\) must hold.*queries=15"):
        TASKS.check(SHAPE._replace(queries=15), "train")
    with pytest.raises(ValueError, match="dimensions=0"):
        build("quadratics", {"dimensions": 0})
    with pytest.raises(ValueError, match="`outputs >= 1`"):
        linear_map(3, 0)
