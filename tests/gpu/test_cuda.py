"""On a GPU: the same numbers as on the CPU, in every mode, and parcels that any machine reads. Skipped where there is none."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from metasearch.augment import OPERATIONS, Places, RandAugment, Step, SubPolicies, TrivialAugment
from metasearch.learners import Learner
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.nets import Net, Params
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.mlp import mlp
from metasearch.objectives import Mode, Trial, parcel
from metasearch.objectives.episodic import mean_gradient
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal
from metasearch.tasks import TaskShape
from metasearch.tasks.blobs import Blobs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPE = TaskShape((1, 12, 12), 3, 2, 4)


def _net(learner: Learner) -> Net:
    return conv4(SHAPE.x, SHAPE.ways if learner.head else None, Conv4(8, layers=2, act="softplus", down="average"))


@pytest.mark.parametrize("mode", ["loop", "vmap", "compiled"])
@pytest.mark.parametrize("learner", [MAML(0.1, 2), Prototypical()], ids=lambda x: type(x).__name__)
def test_gradients_are_those_of_the_cpu(learner: Learner, mode: Mode) -> None:
    tasks, net = Blobs(side=12), _net(learner)
    meta = {k: v.double() for k, v in learner.init(net, Generator().manual_seed(0)).items()}
    episodes = tasks.sample_episodes(4, split="train", shape=SHAPE, generator=Generator().manual_seed(1)).map(Tensor.double)
    expected, _ = mean_gradient(learner, net, tasks.loss, meta, episodes, "loop", None)

    def gradient(meta: Params, episodes: object) -> Params:
        return mean_gradient(learner, net, tasks.loss, meta, episodes, mode, None)[0]  # type: ignore[arg-type]

    run = torch.compile(gradient, dynamic=False) if mode == "compiled" else gradient
    found = run({k: v.cuda() for k, v in meta.items()}, episodes.to("cuda"))
    for k, g in expected.items():
        assert found[k].is_cuda
        assert torch.allclose(found[k].cpu(), g, atol=1e-8), k


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_a_trial_trains_on_its_gpu_and_its_parcel_goes_on_anywhere(mode: Mode, tmp_path: Path) -> None:
    def recipe(config: Config, shape: TaskShape) -> Recipe:
        return Recipe(mlp(shape.x, shape.ways), MAML(0.1, 1), adam(1e-2), meta_batch=4, steps=20)

    def save(step: int, tensors: Params, facts: dict[str, object]) -> str:
        return str(parcel.write(tmp_path / f"{step}.safetensors", tensors, facts))

    tasks = Blobs()
    train = Train(recipe, tasks, tasks.shape(ways=3, shots=1, queries=5), validation_episodes=20, mode=mode, report_every=10)
    last = list(train(Proposal({}, seed=0), Trial(0, devices=("cuda:0",), save=save)))[-1]  # type: ignore[arg-type]
    assert last.score is not None
    own = Trial(0, start=tmp_path / "10.safetensors", own=True, save=save)  # type: ignore[arg-type]
    on_cpu = list(train(Proposal({}, seed=0), own))[-1]
    assert on_cpu.score == pytest.approx(last.score, abs=0.05)


def test_augmented_episodes_are_those_of_the_cpu() -> None:
    """Every operation, at every place. A value at the edge of a level may fall to its other side."""
    each = SubPolicies(tuple((Step(operation.name, 1.0, 0.7),) for operation in OPERATIONS))
    alone = SubPolicies(tuple(choice for choice in each.choices if choice[0].operation not in ("cutmix", "sample_pairing")))
    places = Places(each, each, RandAugment(), alone, copies=2, new_classes=0.5, versions=2)
    drawn = Blobs(side=12).sample_episodes(6, split="train", shape=SHAPE, generator=Generator().manual_seed(0))
    drawn = drawn._replace(support_x=drawn.support_x.sigmoid(), query_x=drawn.query_x.sigmoid())
    for act in (lambda e: places(e, Generator().manual_seed(1)), places.tested):
        ours, theirs = act(drawn.to("cuda")), act(drawn)
        for a, b in zip(ours[:4], theirs[:4], strict=True):
            assert a.is_cuda
            assert a.shape == b.shape
            assert float((a.cpu() - b).abs().mean()) < 1e-4
    x = drawn.query_x[0].cuda()
    assert float((TrivialAugment()(x, Generator().manual_seed(1)).cpu()
                  - TrivialAugment()(x.cpu(), Generator().manual_seed(1))).abs().mean()) < 1e-4
