"""Pre-training: the right gradient on the right data, a head of its own, resume, inheritance, sine landmarks, empty nets."""
from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.learners import Learner
from metasearch.learners.baseline_pp import BaselinePP
from metasearch.learners.centroid import Centroid
from metasearch.learners.fine_tune import FineTune
from metasearch.learners.joint import Joint
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.nets import Block, Net, Params
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.identity import identity
from metasearch.nets.mlp import mlp
from metasearch.objectives import Infeasible, Mode, Trial, parcel
from metasearch.objectives.evaluation import scores
from metasearch.objectives.optimizer import Optimizer, adam, by_prefix, clipped_norm, sgd
from metasearch.objectives.pretrain import Pretrain
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.train import Train
from metasearch.objectives.training import Setting, generator
from metasearch.records import Proposal, Report
from metasearch.tasks import Episode, TaskDistribution
from metasearch.tasks.blobs import Blobs
from metasearch.tasks.sinusoid import Sinusoid

BLOBS = Blobs(dimensions=6, train_classes=16)
SHAPE = BLOBS.shape(ways=3, shots=2, queries=2)
TUNE = FineTune(inner_lr=0.1, inner_steps=5)
RECIPE = Recipe(mlp((6,), 3, hidden=(8, 7)), TUNE, adam(0.01), meta_batch=2, steps=40, fit=Pretrain(batch=16))


def _train(recipe: Recipe, tasks: TaskDistribution = BLOBS, **more: Any) -> Train:
    shape = more.pop("shape", SHAPE)
    return Train(lambda config, shape: recipe, tasks, shape, **{"validation_episodes": 10, "mode": "vmap", **more})


def _trial(folder: Path, **given: Any) -> Trial:
    def save(step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
        return str(parcel.write(folder / f"{step}.safetensors", tensors, facts))

    return Trial(0, save=save, **given)


def _run(train: Train, trial: Trial, **proposal: Any) -> list[Report]:
    return list(train(Proposal({}, seed=7, **proposal), trial))


def _meta(path: str | Path | None) -> Params:
    tensors, _ = parcel.read(Path(path or ""))
    return {k.removeprefix("meta/"): v for k, v in tensors.items() if k.startswith("meta/")}


def _final(recipe: Recipe, folder: Path, tasks: TaskDistribution = BLOBS, **more: Any) -> Params:
    return _meta(_run(_train(recipe, tasks, **more), _trial(folder))[-1].checkpoint)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_one_step_is_that_of_an_ordinary_classifier(tmp_path: Path, head: str) -> None:
    """Written down again with torch's own cross entropy and autograd, on the pictures that `labelled` gives."""
    recipe = replace(RECIPE, optimizer=sgd(0.1), steps=1, fit=Pretrain(head, batch=16))  # type: ignore[arg-type]
    found = _final(recipe, tmp_path)
    steps = min(100, 32 * 2**20 // (4 * 16 * (6 + 16)))
    x, numbers = (t[:16] for t in BLOBS.labelled(16 * steps, "train", generator(7, "block 0")))
    start = TUNE.init(recipe.net, generator(7, "init"))
    bound = 1 / 7**0.5
    drawn = generator(7, "pretrain head")
    weight = torch.empty(16, 7).uniform_(-bound, bound, generator=drawn)
    bias = torch.empty(16).uniform_(-bound, bound, generator=drawn)
    leaves = {k: v.requires_grad_() for k, v in {**start, "pretrain/head/weight": weight, "pretrain/head/bias": bias}.items()}
    if head == "cosine":
        del leaves["pretrain/head/bias"]
    z = recipe.net.embed(leaves, x)
    if head == "linear":
        logits = F.linear(z, weight, bias)
    else:
        logits = 2 * F.cosine_similarity(z[:, None], weight[None], dim=-1)
    F.cross_entropy(logits, numbers).backward()  # type: ignore[no-untyped-call]
    assert set(found) == set(leaves)
    for k, v in leaves.items():
        assert v.grad is not None
        torch.testing.assert_close(found[k], (v - 0.1 * v.grad).detach(), rtol=1e-5, atol=1e-6)


def test_the_classifier_learns_all_training_classes(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=300)
    meta = _final(recipe, tmp_path)
    x, numbers = BLOBS.labelled(2000, "train", Generator().manual_seed(5))
    z = recipe.net.embed(meta, x)
    guessed = F.linear(z, meta["pretrain/head/weight"], meta["pretrain/head/bias"]).argmax(-1)
    assert float((guessed == numbers).float().mean()) > 0.7, "chance is 1/16"


def test_the_nets_own_head_stays_as_it_was_drawn(tmp_path: Path) -> None:
    """Under weight decay, too, which would shrink whatever the optimiser holds."""
    for learner in (FineTune(start="random"), BaselinePP()):
        recipe = replace(RECIPE, learner=learner, optimizer=adam(0.01, weight_decay=0.1), steps=5)
        meta, start = _final(recipe, tmp_path / type(learner).__name__), learner.init(recipe.net, generator(7, "init"))
        assert torch.equal(meta["net/head/weight"], start["net/head/weight"])
        assert not torch.equal(meta["net/layer1/weight"], start["net/layer1/weight"])


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_resumed_pretraining_ends_bit_for_bit_as_the_undisturbed_one(tmp_path: Path, keep: str) -> None:
    train = _train(replace(RECIPE, steps=220), keep=keep, report_every=60)  # blocks of data are of 100 steps
    whole = _run(train, _trial(tmp_path / "whole"))
    trial = _trial(tmp_path / "cut")
    for report in (reports := train(Proposal({}, seed=7), trial)):
        if report.step == 120:
            break
    reports.close()  # type: ignore[attr-defined]
    rest = _run(train, replace(trial, start=tmp_path / "cut" / "120.safetensors", own=True))
    assert rest[-1].episodes == whole[-1].episodes
    ours, theirs = (parcel.read(tmp_path / f / "220.safetensors")[0] for f in ("cut", "whole"))
    assert set(ours) == set(theirs)
    assert "meta/pretrain/head/weight" in ours
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_maml_begins_at_a_pretrained_parents_body(tmp_path: Path) -> None:
    """Body weights are the parent's bit for bit; the head, which it dropped, is MAML's own."""
    parent = _run(_train(RECIPE), _trial(tmp_path / "parent"))
    maml = replace(RECIPE, learner=MAML(0.1), optimizer=sgd(0.0), steps=100)
    maml = replace(maml, fit=Recipe.__dataclass_fields__["fit"].default)
    child = _run(_train(maml), _trial(tmp_path / "child", start=Path(parent[-1].checkpoint or "")), parent=0, until=41)
    ours, theirs, drawn = _meta(child[-1].checkpoint), _meta(parent[-1].checkpoint), MAML().init(maml.net, generator(7, "init"))
    for k in ours:
        assert torch.equal(ours[k], drawn[k] if k.startswith("net/head/") else theirs[k]), k
    assert not torch.equal(theirs["net/layer1/weight"], drawn["net/layer1/weight"])


def test_pretrained_weights_help_a_meta_training_of_one_step(tmp_path: Path) -> None:
    parent = _run(_train(replace(RECIPE, steps=300)), _trial(tmp_path / "parent"))
    metric = Recipe(mlp((6,), None, hidden=(8, 7)), Prototypical(), adam(1e-4), meta_batch=2, steps=1000)
    train = _train(metric, validation_episodes=100)
    warm = _run(train, _trial(tmp_path / "warm", start=Path(parent[-1].checkpoint or "")), parent=0, until=301)
    cold = _run(train, _trial(tmp_path / "cold"), until=1)
    assert warm[-1].score > cold[-1].score + 0.02  # type: ignore[operator]


def test_bfloat16_takes_nearly_the_step_of_float32_and_not_the_same(tmp_path: Path) -> None:
    net = conv4((1, 8, 8), None, Conv4(4, layers=2), mode="inductive")
    tasks = Blobs(side=8, train_classes=16)
    recipe = Recipe(net, TUNE, sgd(0.1), 2, 1, fit=Pretrain(batch=16))
    full, half = (
        _final(replace(recipe, precision=precision), tmp_path / precision, tasks, shape=tasks.shape(ways=3, shots=1, queries=1))
        for precision in ("float32", "bfloat16")
    )
    assert all(v.dtype == torch.float32 for v in half.values())
    assert "stat/conv1/norm/mean" in half, "an inductive norm is given its statistics"
    learnt = [k for k in full if not k.startswith("stat/")]
    assert any(not torch.equal(full[k], half[k]) for k in learnt)
    for k in learnt:
        torch.testing.assert_close(half[k], full[k], rtol=0.05, atol=0.02)


NORMED = conv4((1, 8, 8), None, Conv4(4, layers=2), mode="inductive")
LESS: dict[str, tuple[Recipe, TaskDistribution]] = {
    "more rows than an episode has": (replace(RECIPE, fit=Pretrain(batch=40)), BLOBS),
    "fewer rows": (replace(RECIPE, fit=Pretrain(batch=8)), BLOBS),
    "a batch norm": (replace(RECIPE, net=NORMED), Blobs(side=8, train_classes=16)),
    "a head of its own": (replace(RECIPE, net=mlp((1,), 1, hidden=(8, 7)), fit=Pretrain()), Sinusoid()),
}


@pytest.mark.parametrize("which", LESS)
def test_a_second_try_after_a_want_of_memory_keeps_less_and_computes_the_same(which: str) -> None:
    """What is kept: numbers that layers gave, that the gradient needs and that still lie in memory."""
    recipe, tasks = LESS[which]
    alive, most, seen = [0], [0], list[int]()

    def watched(block: Block) -> Block:
        def apply(params: Params, x: Tensor) -> Tensor:
            hidden = block.apply(params, x).tanh()
            alive[0] += hidden.numel()
            most[0] = max(alive[0], most[0])
            weakref.finalize(hidden, lambda size: alive.__setitem__(0, alive[0] - size), hidden.numel())
            return hidden.sin()  # whose gradient needs what it is the sine of

        return Block(block.key, apply)

    net, blocks = recipe.net, [watched(block) for block in recipe.net.blocks]
    net = Net.of(net.init, blocks, outputs=net.outputs or None, norm=net.norm, features=net.features)
    recipe = replace(recipe, net=net, optimizer=sgd(0.1))
    shape = tasks.shape(ways=1 if which == "a head of its own" else 3, shots=2, queries=2)
    found = []
    for chunk in (None, 1):
        train, meta = _train(recipe, tasks, shape=shape), recipe.learner.init(recipe.net, generator(7, "init"))
        assert isinstance(recipe.fit, Pretrain)
        course = recipe.fit._course(Setting(recipe, train, Trial(0, chunk=chunk), tasks, shape, 7, meta, 1))
        step, _ = course.begin(course.meta, course.state)
        alive[0] = most[0] = 0
        after, _, _ = step(course.meta, course.state, course.draw(0).select(slice(0, course.rows)), 0.0)
        seen.append(most[0])
        found.append(after)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(found[0][k], v) for k, v in meta.items())
    assert seen[1] < 0.9 * seen[0], seen


def test_rules_of_the_optimiser_by_prefix_reach_the_head(tmp_path: Path) -> None:
    """A head alone: linear probing."""
    rules: Optimizer = by_prefix({"net/": sgd(0.0), "pretrain/": sgd(0.1)})
    meta = _final(replace(RECIPE, optimizer=rules, steps=3), tmp_path)
    start = TUNE.init(RECIPE.net, generator(7, "init"))
    assert all(torch.equal(meta[k], v) for k, v in start.items())


def test_an_augmentation_is_given_minibatches_and_a_generator(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def noisy(episodes: Episode, drawn: Generator) -> Episode:
        seen.append(tuple(episodes.support_x.shape))
        return episodes._replace(support_x=episodes.support_x + torch.randn(episodes.support_x.shape, generator=drawn))

    plain, other = (_final(replace(RECIPE, steps=2, augment=a), tmp_path / str(a is None)) for a in (None, noisy))
    assert seen == [(100, 16, 6)]
    assert not torch.equal(plain["net/layer1/weight"], other["net/layer1/weight"])


def test_every_block_of_data_is_another(tmp_path: Path) -> None:
    blocks: list[Tensor] = []

    def watching(episodes: Episode, drawn: Generator) -> Episode:
        blocks.append(episodes.support_x)
        return episodes

    _run(_train(replace(RECIPE, steps=101, augment=watching)), _trial(tmp_path))
    assert len(blocks) == 2
    assert not torch.equal(blocks[0], blocks[1])


def test_without_a_batch_a_step_sees_as_many_inputs_as_its_episodes(tmp_path: Path) -> None:
    seen: list[int] = []

    def watching(episodes: Episode, drawn: Generator) -> Episode:
        seen.append(episodes.support_x.shape[1])
        return episodes

    _run(_train(replace(RECIPE, steps=1, augment=watching, fit=Pretrain())), _trial(tmp_path))
    assert seen == [2 * 3 * (2 + 2)]


@pytest.mark.parametrize(("fit", "said"), [
    (lambda: Pretrain(batch=0), "batch >= 1"), (lambda: Pretrain("round"), "'linear' or 'cosine'"),  # type: ignore[arg-type]
])
def test_wrong_fields_are_refused(fit: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit()


def test_tasks_without_lasting_classes_cannot_be_pretrained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Blobs, "class_count", TaskDistribution.class_count)
    with pytest.raises(Infeasible, match="Blobs has no classes that last"):
        _run(_train(RECIPE), Trial(0))


def test_a_cosine_head_for_values_is_refused() -> None:
    with pytest.raises(Infeasible, match="Sinusoid is of regression"):
        _run(_train(_sine(Joint(), 1, fit=Pretrain("cosine")), Sinusoid(), shape=WAVES), Trial(0))


def test_how_episodes_are_scored_is_measured_once_and_told(tmp_path: Path) -> None:
    asked: list[str] = []

    def mode(signature: str, measure: Any) -> Mode:
        seconds = measure()
        assert set(seconds) == {"loop", "vmap"}
        assert all(s > 0 for s in seconds.values())
        asked.append(signature)
        return "loop"

    for lr in (0.1, 0.2):
        recipe = replace(RECIPE, steps=1, learner=replace(TUNE, inner_lr=lr, inner_steps=int(30 * lr)))
        _run(_train(recipe, mode="auto"), _trial(tmp_path, mode=mode))
    assert len(asked) == 2
    assert len(set(asked)) == 1, "rates and steps are the same signature"


# sine waves -------------------------------------------------------------------------------------------------------------------

WAVES = Sinusoid().shape(ways=1, shots=10, queries=50)


def _sine(learner: Learner, steps: int, *, oracle: bool = False, **more: Any) -> Recipe:
    net = mlp(3 if oracle else 1, 1)
    return Recipe(net, learner, adam(1e-3), 25, steps, episode=WAVES._replace(x=(3 if oracle else 1,), queries=10), **more)


def test_on_regression_pretraining_is_joint_training(tmp_path: Path) -> None:
    tune = FineTune(inner_lr=0.01, inner_steps=1, start="kept")
    ours = _final(_sine(tune, 20, fit=Pretrain()), tmp_path / "a", Sinusoid(), shape=WAVES)
    theirs = _final(_sine(Joint(0.01, 1), 20), tmp_path / "b", Sinusoid(), shape=WAVES)
    assert set(ours) == set(theirs)
    for k, v in theirs.items():
        torch.testing.assert_close(ours[k], v, rtol=1e-4, atol=1e-5)


def test_a_learner_that_drops_the_head_of_a_regression_net_has_another_one_pretrained(tmp_path: Path) -> None:
    meta = _final(_sine(FineTune(start="zero"), 3, fit=Pretrain()), tmp_path, Sinusoid(), shape=WAVES)
    assert "net/head/weight" not in meta
    assert meta["pretrain/head/weight"].shape == (1, 40)


def _errors(meta: Params, learner: FineTune | Joint, tasks: Sinusoid, steps: int) -> Tensor:
    """Mean squared errors of 600 waves."""
    shape = WAVES._replace(x=tasks.input_shape)
    net = mlp(shape.x, 1)
    bank = tasks.bank("val", 600, seed=1, shape=shape)
    return -scores(net, replace(learner, inner_steps=steps), tasks, meta, bank.episodes, chunk=600)


def test_pretraining_on_sine_waves_finds_the_blind_optimum_and_no_more(tmp_path: Path) -> None:
    """The best blind answer costs 3.006: less than that, beyond the noise of 600 waves, means leakage. One step of fine-tuning
    leaves more than 2 (10,000 iterations: 2.4). Everything is seeded, so that there is no false alarm on one machine."""
    tune = FineTune(inner_lr=0.01, inner_steps=1, start="kept")
    meta = _final(_sine(tune, 1500, fit=Pretrain()), tmp_path, Sinusoid(), shape=WAVES)
    x = torch.linspace(-5, 5, 101)[:, None]
    blind = mlp(1, 1).apply(meta, x)
    assert float((blind + 1.623 * torch.cos(x)).abs().mean()) < 0.5, "-1.623 cos x is what it should have found"
    assert float((blind + 1.623 * torch.cos(x)).abs().mean()) < 0.5 * float(blind.abs().mean())
    before, after = (_errors(meta, tune, Sinusoid(), k) for k in (0, 1))
    error = float(before.std()) / 600**0.5
    assert abs(float(before.mean()) - 3.006) < 3 * error + 0.1
    assert float(before.mean()) > 3.006 - 3 * error
    assert 2.0 < float(after.mean()) < float(before.mean())


def test_who_is_told_the_wave_need_not_adapt(tmp_path: Path) -> None:
    """The oracle of MAML's sine waves: inputs (x, amplitude, phase); .007 after 10,000 iterations; .045 was measured here."""
    tasks = Sinusoid(oracle=True)
    meta = _final(_sine(Joint(), 1500, oracle=True), tmp_path, tasks, shape=WAVES._replace(x=(3,)))
    found = _errors(meta, Joint(), tasks, 0)
    assert float(found.mean()) < 0.15


# nets without weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["loop", "vmap", "auto", pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.parametrize("learner", [Centroid(), Prototypical()], ids=lambda x: type(x).__name__)
def test_a_net_without_weights_goes_all_the_way(tmp_path: Path, learner: Learner, mode: str) -> None:
    if mode == "compiled" and isinstance(learner, Prototypical):
        pytest.skip("one compilation is enough")
    recipe = Recipe(identity(6), learner, clipped_norm(adam(1e-3), 1.0), 2, 4)
    train = _train(recipe, mode=mode, report_every=2, keep="best")
    last = _run(train, _trial(tmp_path))[-1]
    assert last.score is not None
    assert last.score > 0.6
    assert last.metrics["params"] == 0
    assert _meta(last.checkpoint) == {}
    again = _run(train, _trial(tmp_path, start=tmp_path / "2.safetensors", own=True))[-1]
    assert again.score == last.score


def test_a_parcel_may_be_empty(tmp_path: Path) -> None:
    recipe = Recipe(identity(6), Centroid(), sgd(0.1), 1, 1)
    last = _run(_train(recipe), _trial(tmp_path))[-1]
    tensors, facts = parcel.read(Path(last.checkpoint or ""))
    assert tensors == {}
    assert facts["step"] == 1
    split = _run(_train(recipe), functools.partial(_trial, tmp_path)(devices=("cpu", "cpu")))[-1]
    assert split.score == last.score
