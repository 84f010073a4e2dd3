"""Sizes: counted by hand."""
from __future__ import annotations

import pytest
import torch
from torch import Generator

from metasearch import measure
from metasearch.learners import Learner
from metasearch.learners.anil import ANIL
from metasearch.learners.maml import MAML
from metasearch.learners.meta_lstm import MetaLSTM
from metasearch.learners.prototypical import Prototypical
from metasearch.learners.reptile import Reptile
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm, population
from metasearch.tasks import TaskShape
from metasearch.tasks.blobs import Blobs
from metasearch.tasks.sinusoid import Sinusoid


def test_the_sine_net_takes_3360_operations_a_point() -> None:
    """Two for each weight: 40 + 1,600 + 40."""
    net = mlp(1, 1)
    meta = net.init(Generator().manual_seed(0))
    assert measure.flops(net, meta, (1,)) == 2 * (40 + 1600 + 40)
    assert measure.parameters(meta) == 1761


def test_convolutions_are_counted() -> None:
    """2 x 9 x C x C' at each place: 28x28 then 14x14."""
    net = conv4((1, 28, 28), 5, Conv4(8, layers=2))
    meta = net.init(Generator().manual_seed(0))
    assert measure.flops(net, meta, (1, 28, 28)) == 2 * 9 * (1 * 8 * 784 + 8 * 8 * 196) + 2 * 8 * 49 * 5


def test_statistics_are_no_parameters() -> None:
    net = mlp(3, 2, norm=Norm("batch"), mode="inductive")
    meta = net.init(Generator().manual_seed(0))
    full = {**meta, **population(net, meta, [torch.randn(5, 3, generator=Generator().manual_seed(0))])}
    assert measure.parameters(full) == measure.parameters(meta) == sum(v.numel() for v in meta.values())


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_an_episode_of_maml_is_forwards_and_backwards_on_supports_and_a_forward_on_queries(steps: int) -> None:
    """A linear net: forward 2 w a row; backward 2 w for the weights, nothing for the inputs."""
    net, shape = mlp(4, 3, hidden=()), TaskShape((4,), ways=3, shots=2, queries=5)
    meta = net.init(Generator().manual_seed(0))
    found = measure.size(net, MAML(0.1, inner_steps=1, test_steps=steps), Blobs(dimensions=4), meta, shape)
    assert found.episode_flops == 2 * 12 * (steps * 2 * 6 + 15)


def test_regression_episodes_have_shots_rows() -> None:
    net, shape = mlp(1, 1, hidden=()), TaskShape((1,), ways=1, shots=10, queries=4)
    found = measure.size(net, MAML(0.1, 1), Sinusoid(), net.init(Generator().manual_seed(0)), shape)
    assert found.episode_flops == 2 * (10 + 10 + 4)


LEARNERS = [MAML(0.1, 5), ANIL(0.1, 5), Reptile(1e-3, 5, 2), Prototypical()]


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda x: type(x).__name__)
def test_sizes_of_a_picture_net_take_no_time(learner: Learner) -> None:
    net = conv4((3, 84, 84), 5 if learner.head else None, "maml_mini")
    tasks = Blobs(side=84)
    found = measure.size(net, learner, tasks, net.init(Generator().manual_seed(0)), TaskShape((3, 84, 84), 5, 1, 15))
    assert found.episode_flops >= (75 + 5) * found.flops


@pytest.mark.parametrize("learner", [MAML(0.1, 3), ANIL(0.1, 2), Reptile(test_steps=3), MetaLSTM(3)], ids=str)
def test_operations_of_an_episode_are_the_same_by_shapes_alone(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Blobs(side=12, train_classes=10)
    shape, net = tasks.shape(ways=3, shots=2, queries=2), conv4((1, 12, 12), 3, Conv4(4, layers=2))
    meta = learner.init(net, Generator().manual_seed(0))
    found = []
    for quick in (0.0, float("inf")):
        monkeypatch.setattr(measure, "QUICK", quick)
        found.append(measure.size(net, learner, tasks, meta, shape).episode_flops)
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("rows", [15, 10**9])
def test_a_net_with_constants_of_its_own_or_a_look_at_numbers_is_counted_too(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither goes with shapes alone, which have no numbers and are on no device; large episodes are counted by shapes."""
    monkeypatch.setattr(measure, "QUICK", 1e9 if rows == 15 else 0)
    plain = mlp(4, 3, hidden=())
    meta, shape = plain.init(Generator().manual_seed(0)), TaskShape((4,), ways=3, shots=2, queries=5)
    mean = torch.arange(3.0)
    for odd in (lambda z: z + mean, lambda z: z / 2 if float(z.detach().abs().max()) > 10 else z):
        net = plain._replace(apply=lambda p, x, odd=odd: odd(plain.apply(p, x)))
        found = [measure.size(one, MAML(0.1, 1), Blobs(dimensions=4), meta, shape) for one in (net, plain)]
        assert found[0] == found[1]
