"""Training on augmented episodes: resumed, in every mode, by the hardest version, with further shots wherever it is scored."""
from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from metasearch import hands
from metasearch.augment import Places, Policy, RandAugment, Schedule, Step, fixed
from metasearch.examples import Inputs
from metasearch.hands import Adapted, Loaded
from metasearch.learners import Learner
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.learners.reptile import Reptile
from metasearch.nets.mlp import mlp
from metasearch.objectives import Infeasible, Trial, augmenting, parcel
from metasearch.objectives.episodic import draw_block, outer_step
from metasearch.objectives.optimizer import sgd
from metasearch.objectives.pretrain import Pretrain
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal, Report
from metasearch.tasks import Episode, TaskDistribution, TaskShape
from metasearch.tasks._classes import cross_entropy
from metasearch.tasks._images import ImageTasks, Pictures
from metasearch.tasks.blobs import Blobs
from metasearch.tasks.sinusoid import Sinusoid

INVERT, FLIP, CUTMIX = fixed(Step("invert")), fixed(Step("flip")), fixed(Step("cutmix", 1.0, 1.0))
POLICY: Policy = RandAugment(2, 9)
PLACES = Places(support=POLICY, query=Schedule((CUTMIX, POLICY)), shot=POLICY, task=fixed(Step("turn", 0.5)), new_classes=0.3,
                versions=2)
SHAPE = TaskShape((1, 8, 8), 3, 2, 4)


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _tasks() -> ImageTasks:
    images = np.random.default_rng(0).integers(0, 256, (108, 1, 8, 8), dtype=np.uint8)
    splits: dict[Any, list[int]] = {"train": list(range(8)), "val": list(range(8, 12))}
    return ImageTasks(Pictures(images, np.arange(13) * 9, [f"c{c}" for c in range(12)], splits, "d"), told={})


TASKS = _tasks()


def _made(augment: Any, learner: Learner | None = None, **given: Any) -> Recipe:
    learner = learner or Prototypical()
    net = mlp(SHAPE.x, SHAPE.ways if learner.head else None, hidden=(16,))
    return Recipe(net, learner, **{"optimizer": sgd(0.1), "meta_batch": 2, "steps": 8, "augment": augment, **given})


class Own(Blobs):
    """A user's own tasks, whose pictures come as floats with moments taken off."""

    moments = ([0.5], [0.25])


def test_pictures_of_ones_own_tasks_are_augmented_as_they_were_before_their_moments_were_taken_off() -> None:
    """Also as further shots of a finished learner."""
    drawn = Blobs(side=8).sample_episodes(4, split="train", shape=SHAPE, generator=_generator())
    plain = drawn._replace(support_x=drawn.support_x.sigmoid(), query_x=drawn.query_x.sigmoid())  # in 0..1
    given = plain._replace(support_x=(plain.support_x - 0.5) / 0.25, query_x=(plain.query_x - 0.5) / 0.25)
    recipe = _made(Places(query=POLICY, shot=POLICY))
    wanted, found = (augmenting.augmented(recipe, tasks, x, _generator(1)) for tasks, x in (
        (Blobs(side=8), plain), (Own(side=8), given)))
    tested = augmenting.tested(recipe.augment, given, augmenting.moments(Own(side=8)))
    for a, b in ((found.query_x, wanted.query_x), (found.support_x, wanted.support_x),
                 (tested.support_x, augmenting.tested(recipe.augment, plain, None).support_x)):
        torch.testing.assert_close(a * 0.25 + 0.5, b, atol=1e-5, rtol=0)
    assert float((found.query_x - given.query_x).abs().max()) > 0.1
    inputs = hands._inputs(Own(side=8))  # of a finished model, which is given them as the tasks give them
    assert (list(inputs.mean), list(inputs.std), inputs.pictures) == ([0.5], [0.25], False)
    assert torch.equal(inputs.read(given.support_x[0].numpy(), "supports"), given.support_x[0])


def _train(recipe: Recipe, tasks: TaskDistribution = TASKS, **given: Any) -> Train:
    shape = tasks.shape(ways=3, shots=2, queries=4)
    given = {"validation_episodes": 4, "mode": "vmap", "report_every": 4, **given}
    return Train(lambda config, shape: recipe, tasks, shape, **given)


def _save(folder: Path, step: int, tensors: Any, facts: Any) -> str:
    return str(parcel.write(folder / f"{step}.safetensors", tensors, facts))


def _run(train: Train, folder: Path, **given: Any) -> list[Report]:
    return list(train(Proposal({}, seed=7), Trial(0, save=functools.partial(_save, folder), **given)))


def test_an_augmented_trial_goes_on_bit_for_bit(tmp_path: Path) -> None:
    train = _train(_made(PLACES))
    whole = _run(train, tmp_path / "whole")
    cut: Iterator[Report] = train(Proposal({}, seed=7), Trial(0, save=functools.partial(_save, tmp_path / "cut")))
    next(cut)
    cut.close()  # type: ignore[attr-defined]
    rest = _run(train, tmp_path / "cut", start=tmp_path / "cut" / "4.safetensors", own=True)
    assert rest[-1].episodes == whole[-1].episodes
    _run(_train(_made(None)), tmp_path / "plain")
    ours, theirs, plain = (parcel.read(tmp_path / f / "8.safetensors")[0] for f in ("cut", "whole", "plain"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert not torch.equal(plain["meta/net/layer1/weight"], theirs["meta/net/layer1/weight"])


@pytest.mark.parametrize("learner", [Prototypical(), MAML(inner_lr=0.1), Reptile()], ids=["prototypical", "maml", "reptile"])
def test_loop_and_vmap_take_the_same_augmented_steps(learner: Learner) -> None:
    _agree(_made(PLACES, learner), ("loop", "vmap"))


@pytest.mark.slow
def test_a_compiled_step_finds_the_hardest_version_too() -> None:
    _agree(_made(PLACES), ("vmap", "compiled"))


def _agree(made: Recipe, modes: tuple[Any, ...]) -> None:
    block = draw_block(made, TASKS, SHAPE, 2, 0, 0)
    assert block.count == 2 * 2 * 2
    ends = []
    for mode in modes:
        meta = made.learner.init(made.net, _generator())
        state = made.optimizer.init(meta)
        step = outer_step(made, TASKS.loss, mode)
        for i in range(2):
            meta, state, _ = step(meta, state, block.select(slice(4 * i, 4 * i + 4)), i / 2)
        ends.append(meta)
    for k, v in ends[0].items():
        torch.testing.assert_close(ends[1][k], v, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_max_up_steps_along_the_version_of_the_largest_loss(mode: Any) -> None:
    """The others, or the mean of all, would give another step."""
    made = _made(Places(query=POLICY, versions=4), MAML(inner_lr=0.5))
    block, meta = draw_block(made, TASKS, SHAPE, 1, 0, 0), made.net.init(_generator())
    values = [made.learner.episode_loss(made.net, TASKS.loss, meta, block.select(i))[0] for i in range(8)]
    losses = torch.stack(values).detach().view(2, 4)
    chosen = block.select(losses.argmax(1) + torch.tensor([0, 4]))
    hardest = augmenting.hardest(made.learner, made.net, TASKS.loss, meta, block, 4, mode, None)
    assert torch.equal(hardest.query_x, chosen.query_x)
    plain = replace(made, augment=None)
    for devices in (("cpu",), ("cpu", "cpu")):
        ours, _, told = outer_step(made, TASKS.loss, mode, devices=devices)(meta, made.optimizer.init(meta), block, 0.0)
        theirs, _, _ = outer_step(plain, TASKS.loss, mode)(meta, made.optimizer.init(meta), chosen, 0.0)
        torch.testing.assert_close(told["loss"], losses.amax(1).mean(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert float(losses.amax(1).mean()) > float(losses.mean()) + 1e-3


def test_one_version_is_plain_augmentation_and_a_policy_draws_after_the_episodes() -> None:
    one, bare = (draw_block(_made(a), TASKS, SHAPE, 2, 0, 0) for a in (Places(query=POLICY, versions=1), None))
    assert one.count == bare.count == 4
    assert torch.equal(one.support_x, bare.support_x)
    assert torch.equal(one.query_y, bare.query_y)
    assert not torch.equal(one.query_x, bare.query_x)
    many = draw_block(_made(Places(query=POLICY, versions=3)), TASKS, SHAPE, 2, 0, 0)
    assert torch.equal(many.support_x, bare.support_x.repeat_interleave(3, 0))


def test_versions_of_an_episode_share_the_noise_of_their_learner() -> None:
    made = _made(Places(query=POLICY, versions=3, shot=FLIP), Reptile(inner_batch=4))
    noise = draw_block(made, TASKS, SHAPE, 2, 0, 0).noise
    wanted = made.learner.noise(SHAPE._replace(shots=4))
    assert noise.keys() == wanted.keys() == {"order"}
    for k, v in noise.items():
        assert v.shape == (12, *wanted[k])
        assert torch.equal(v, v[::3].repeat_interleave(3, 0))


def test_a_schedule_in_training_goes_by_the_outer_step() -> None:
    scheduled, bare = _made(Places(query=Schedule((INVERT, FLIP)))), _made(None)
    for number in (0, 1):
        ours, theirs = (draw_block(r, TASKS, SHAPE, 4, 0, number).query_x for r in (scheduled, bare))
        torch.testing.assert_close(ours, theirs.flip(-1) if number else 1 - theirs)
    ours, theirs = (draw_block(r, TASKS, SHAPE, 8, 0, 0).query_x for r in (scheduled, bare))  # one block over the change
    torch.testing.assert_close(ours, torch.cat([1 - theirs[:8], theirs[8:].flip(-1)]))


def test_further_shots_change_validation_and_only_with_at_test(tmp_path: Path) -> None:
    """At rate 0 all trials end with the same weights, so only the supports of validation can differ."""
    last = {}
    for name, places in {
        "none": None, "train": Places(shot=INVERT, at_test=False), "test": Places(shot=INVERT), "query": Places(query=INVERT),
    }.items():
        last[name] = _run(_train(_made(places, steps=1, optimizer=sgd(0.0)), validation_episodes=40), tmp_path / name)[-1]
    assert last["none"].episodes == last["train"].episodes == last["query"].episodes
    assert last["test"].episodes != last["none"].episodes
    train = {name: report.metrics["train_score"] for name, report in last.items()}
    assert train["none"] == train["train"] != train["test"]


def test_a_users_supports_get_the_further_shots_of_validation() -> None:
    recipe = _made(Places(shot=POLICY, copies=2))
    meta = recipe.net.init(_generator())
    e = TASKS.sample_episodes(1, split="val", shape=SHAPE, generator=_generator())
    x, y, asked = e.support_x[0], e.support_y[0].argmax(-1), e.query_x[0]

    def adapted(augment: object) -> Adapted:
        inputs = Inputs(SHAPE.x, True)
        model = Loaded("m", recipe.net, recipe.learner, meta, "classes", SHAPE, inputs, cross_entropy, False,
                       lambda n: (recipe.net, recipe.learner), augment)
        return model.adapt(x, y)

    def said(augment: object) -> Any:
        return adapted(augment).probabilities(asked)

    given = augmenting.tested(recipe.augment, e, None)
    task = recipe.learner.adapt(recipe.net, cross_entropy, meta, given.support_x[0], given.support_y[0])
    torch.testing.assert_close(said(recipe.augment), recipe.learner.predict(recipe.net, meta, task, asked).softmax(-1))
    assert torch.equal(said(recipe.augment), said(recipe.augment))
    assert not torch.allclose(said(recipe.augment), said(None))
    assert f"adapted to {len(x)} supports of" in repr(adapted(recipe.augment)), "the user's own, of which there are so many"


def test_grey_pictures_are_remarked_upon_once_in_a_study(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where policies, hence words, differ from trial to trial; and another study says it again."""
    def recipe(config: Config, shape: TaskShape) -> Recipe:
        return _made(Places(query=fixed(Step(str(config["operation"])), Step("invert"))))

    for name in ("one", "other"):
        study = Train(recipe, TASKS, SHAPE, steps=1, validation_episodes=1, mode="vmap")
        for operation in ("color", "channel_permutation", "color"):
            list(study(Proposal({"operation": operation}, seed=7), Trial(0)))
            list(replace(study, keep="last")(Proposal({"operation": operation}, seed=7), Trial(0)))
        said = [record.getMessage() for record in caplog.records if "the pictures are grey" in record.getMessage()]
        assert len(said) == ("one", "other").index(name) + 1
        assert "leave them as they are: query: color (said of the first" in said[-1]


@pytest.mark.parametrize(("given", "said"), [
    ({"augment": Places(query=Schedule((INVERT,), steps=5))}, "for 5 outer steps, but this training has 8"),
    ({"augment": Places(query=INVERT, versions=2), "learner": MAML(), "fit": Pretrain()}, r"MetaMaxUp .versions=2.*pre-training"),
    ({"augment": Places(new_classes=0.5), "learner": MAML(), "fit": Pretrain()}, "new classes are drawn for episodes"),
    ({"augment": Places(query=INVERT), "learner": MAML(), "fit": Pretrain()}, "pre-training has no queries.*place support"),
])
def test_trials_that_cannot_be_augmented_end_before_they_begin(given: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(Infeasible, match=said):
        _run(_train(_made(**given)), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(("tasks", "said"), [
    (Blobs(), r"pictures \[C, H, W\], but the inputs of these tasks are"),
    (Sinusoid(), "pictures of classes, but Sinusoid is of"),
])
def test_tasks_without_pictures_cannot_be_augmented(tasks: TaskDistribution, said: str) -> None:
    with pytest.raises(Infeasible, match=said):
        augmenting.check(_made(Places(query=INVERT)), tasks, tasks.shape(ways=1, shots=2, queries=2))


def test_pre_training_augments_its_minibatches(tmp_path: Path) -> None:
    seen: list[tuple[Episode, Episode]] = []

    class Watched(Places):
        def __call__(self, episodes: Episode, *given: Any) -> Episode:
            seen.append((episodes, super().__call__(episodes, *given)))
            return seen[-1][1]

    _run(_train(_made(Watched(support=Schedule((INVERT, FLIP))), MAML(), fit=Pretrain(batch=6))), tmp_path)
    (before, after), *_ = seen
    assert after.support_x.shape == before.support_x.shape
    assert before.support_x.shape[1] == 6
    torch.testing.assert_close(after.support_x[:4], 1 - before.support_x[:4])
    torch.testing.assert_close(after.support_x[4:8], before.support_x[4:8].flip(-1))


def test_any_function_of_episodes_and_a_generator_is_an_augmentation_too() -> None:
    def inverted(episodes: Episode, drawn: Generator) -> Episode:
        return episodes._replace(query_x=1 - episodes.query_x)

    ours, theirs = (draw_block(_made(a), TASKS, SHAPE, 2, 0, 0) for a in (inverted, None))
    torch.testing.assert_close(ours.query_x, 1 - theirs.query_x)
