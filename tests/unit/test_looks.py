"""Cheap looks at an architecture: scores in closed form on nets small enough for it, and limits on what is trained."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Generator

from metasearch import measure, plugins
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm
from metasearch.objectives import Infeasible, Trial
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal
from metasearch.tasks import TaskShape
from metasearch.tasks.blobs import Blobs


def test_synflow_of_a_linear_chain_is_the_sum_over_its_paths() -> None:
    """Without biases R = 1' |W2| |W1| 1, and every layer of weights carries all of R: two layers of them give 2 R."""
    net = mlp(3, 2, hidden=(4,), act="identity")
    meta = {k: v if k.endswith("weight") else torch.zeros_like(v) for k, v in net.init(Generator().manual_seed(0)).items()}
    w1, w2 = meta["net/layer1/weight"].abs().double(), meta["net/head/weight"].abs().double()
    assert measure.synflow(net, meta, torch.zeros(1, 3)) == pytest.approx(math.log10(2 * float((w2 @ w1).sum())))


def test_synflow_switches_norms_off_and_back_on() -> None:
    net, plain = (conv4((1, 12, 12), 3, Conv4(4, layers=2, norm=Norm(kind))) for kind in ("batch", "none"))
    meta = net.init(Generator().manual_seed(0))
    x = torch.randn(5, 1, 12, 12, generator=Generator().manual_seed(1))
    before = net.apply(meta, x)
    assert measure.synflow(net, meta, x[:1]) == pytest.approx(measure.synflow(plain, meta, x[:1]))
    assert torch.equal(net.apply(meta, x), before)


def test_naswot_counts_units_that_agree() -> None:
    """Two inputs, four units of which one tells them apart: K = [[4, 3], [3, 4]], det 7."""
    net = mlp(1, None, hidden=(4,), act="relu")
    meta = net.init(Generator().manual_seed(0))
    meta["net/layer1/weight"] = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    meta["net/layer1/bias"] = torch.tensor([0.0, 1.0, 1.0, -1.0])
    assert measure.naswot(net, meta, torch.tensor([[1.0], [-1.0]])) == pytest.approx(math.log(7))
    same = torch.tensor([[1.0], [2.0]])
    assert measure.naswot(net, meta, same) == -math.inf, "inputs that it does not tell apart"


def test_synflow_follows_paths_through_activations_that_saturate() -> None:
    """A sum over pictures of ones soon is beyond 6: with ReLU6 itself no slope would be left."""
    bounded, plain = (conv4((1, 28, 28), 3, Conv4(32, norm=Norm("none"), act=act)) for act in ("relu6", "relu"))
    meta, x = plain.init(Generator().manual_seed(0)), torch.zeros(1, 1, 28, 28)
    meta = {k: 3 * v for k, v in meta.items()}
    assert math.isfinite(measure.synflow(plain, meta, x))
    assert measure.synflow(bounded, meta, x) == measure.synflow(plain, meta, x)
    ones = torch.ones(1, 1, 28, 28)
    assert not torch.equal(bounded.apply(meta, ones), plain.apply(meta, ones)), "and back again"


@pytest.mark.parametrize("name", [
    "conv_chain", "darts_cells", "evolving_nets", "hierarchical_motifs", "nasbench201", "nasbench_macro", "nasnet_cells",
])
def test_every_space_of_architectures_has_scores_that_cost_no_training(name: str) -> None:
    module, shape = plugins.module("spaces", name), TaskShape((1, 12, 12), 3, 1, 2)
    x = torch.randn(9, *shape.x, generator=Generator().manual_seed(0))
    told = []
    for seed in range(3):
        net = module.recipe(module.SPACE.sample(np.random.default_rng(seed)), shape).net
        meta = net.init(Generator().manual_seed(seed))
        assert math.isfinite(measure.synflow(net, meta, x[:1]))
        told.append(measure.naswot(net, meta, x))
    least = 1 if name == "evolving_nets" else 3  # many of its members are linear
    assert sum(math.isfinite(score) for score in told) >= least


def test_looks_leave_out_what_a_net_does_not_have() -> None:
    net = mlp(8, None, hidden=())
    tasks = Blobs()
    found = measure.looks(net, Prototypical(), tasks, {}, tasks.shape(ways=3, shots=1, queries=1), torch.zeros(2, 8))
    assert "synflow" not in found
    assert "naswot" not in found
    assert found["latency_ms"] >= 0


def _recipe(config: Config, shape: TaskShape) -> Recipe:
    return Recipe(mlp(shape.x, shape.ways), MAML(0.1, 1), adam(1e-2), meta_batch=2, steps=4)


def test_an_architecture_beyond_a_limit_is_infeasible_and_never_trained() -> None:
    tasks = Blobs()
    shape = tasks.shape(ways=3, shots=1, queries=2)
    wide = Train(_recipe, tasks, shape, validation_episodes=5, mode="vmap", limits={"params": 2123.0})
    # 8-40-40-3: 360 + 1640 + 123
    reports = list(wide(Proposal({}, seed=0), Trial(0)))
    assert reports[-1].metrics["params"] == 2123
    assert all(name in report.metrics for report in reports for name in ("params", "flops", "latency_ms", "synflow", "naswot"))
    tight = Train(_recipe, tasks, shape, validation_episodes=5, mode="vmap", limits={"params": 2122.0})
    with pytest.raises(Infeasible, match="params is 2123, but the study's limit is 2122"):
        next(tight(Proposal({}, seed=0), Trial(0)))
