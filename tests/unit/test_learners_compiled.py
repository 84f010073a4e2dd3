"""Compiled: the numbers of eager, one program for all rates, and a compiled program that survives a reset on the disk."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor
from torch._dynamo.utils import counters

from metasearch.learners import Learner
from metasearch.learners.anil import ANIL
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.learners.reptile import Reptile
from metasearch.nets import Net, Params
from metasearch.nets.conv4 import VARIANTS, conv4
from metasearch.nets.mlp import mlp
from metasearch.tasks import Episode, TaskDistribution, TaskShape
from metasearch.tasks.blobs import Blobs
from metasearch.tasks.sinusoid import Sinusoid

Step = Callable[[Params, Episode, Params], Params]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _step(net: Net, learner: Learner, tasks: TaskDistribution) -> Step:
    """Rates enter as tensors, so that another value is no other program."""

    def step(meta: Params, episodes: Episode, rates: Params) -> Params:
        now = replace(learner, **rates)
        grads: Params = torch.func.vmap(lambda e: now.episode_gradient(net, tasks.loss, meta, e)[0])(episodes)
        return grads

    return step


def _drawn(learner: Learner, tasks: TaskDistribution, n: int, shape: TaskShape) -> Episode:
    generator = Generator().manual_seed(1)
    noise = {k: torch.randn(n, *s, generator=generator) for k, s in learner.noise(shape).items()}
    return tasks.sample_episodes(n, split="train", shape=shape, generator=generator)._replace(noise=noise)


def _rates(inner_lr: float) -> Params:
    return {"inner_lr": torch.tensor(inner_lr)}


def _close(a: Params, b: Params) -> None:
    """To 1e-5 of the whole gradient's largest entry: a bias in front of a batch norm has a gradient of 0 up to rounding."""
    largest = max(float(v.abs().max()) for v in b.values())
    for k in b:
        assert float((a[k] - b[k]).abs().max()) <= 1e-5 * max(largest, 1.0), k


@pytest.mark.slow
def test_maml_on_the_sine_net_compiles_once_for_all_rates_and_once_for_all_processes() -> None:
    tasks, net, learner = Sinusoid(), mlp(1, 1), MAML(0.01, 2)
    episodes = _drawn(learner, tasks, 25, TaskShape((1,), 1, 10, 10))
    meta = net.init(Generator().manual_seed(0))
    step = _step(net, learner, tasks)
    with torch.no_grad():
        compiled = torch.compile(step, dynamic=False, fullgraph=True)
        for rate in (0.01, 0.02, 0.5):
            _close(compiled(meta, episodes, _rates(rate)), step(meta, episodes, _rates(rate)))
        assert counters["stats"]["unique_graphs"] == 1, "another rate must not be another program"
        assert counters["inductor"]["fxgraph_cache_hit"] == 0

        torch._dynamo.reset()  # what a worker does between two trials
        counters.clear()
        again = torch.compile(_step(net, MAML(0.3, 2), tasks), dynamic=False, fullgraph=True)
        _close(again(meta, episodes, _rates(0.3)), step(meta, episodes, _rates(0.3)))
        hits = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
        assert hits >= 1, "after a reset the program must come from the disk"
        assert counters["inductor"]["fxgraph_cache_miss"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "learner", [ANIL(0.1, 2), Prototypical(), Reptile(0.01, 2, inner_batch=3, optimizer="sgd")], ids=lambda x: type(x).__name__
)
def test_other_learners_compile_to_the_numbers_of_eager(learner: Learner) -> None:
    tasks, shape = Blobs(dimensions=4), TaskShape((4,), 3, 2, 2)
    net = mlp(4, 3 if learner.head else None, hidden=(5,), act="tanh")
    meta, episodes = net.init(Generator().manual_seed(0)), _drawn(learner, tasks, 3, shape)
    floats = {k: torch.tensor(v) for k in ("inner_lr", "scale") if isinstance(v := getattr(learner, k, None), float)}
    step = _step(net, learner, tasks)
    with torch.no_grad():
        _close(torch.compile(step, dynamic=False, fullgraph=True)(meta, episodes, floats), step(meta, episodes, floats))


@pytest.mark.slow
def test_maml_on_conv4_compiles_to_the_numbers_of_eager() -> None:
    design = replace(VARIANTS["maml_omniglot"], channels=8, layers=2)
    tasks, net, learner = Blobs(side=12), conv4((1, 12, 12), 3, design), MAML(0.1, 1)
    episodes = _drawn(learner, tasks, 4, TaskShape((1, 12, 12), 3, 2, 2))
    meta = net.init(Generator().manual_seed(0))
    step = _step(net, learner, tasks)

    def check(rate: float) -> None:
        found: dict[str, Tensor] = compiled(meta, episodes, _rates(rate))
        _close(found, step(meta, episodes, _rates(rate)))

    with torch.no_grad():
        compiled = torch.compile(step, dynamic=False, fullgraph=True)
        check(0.1)
        check(0.2)
        assert counters["stats"]["unique_graphs"] == 1
