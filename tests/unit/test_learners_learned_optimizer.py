"""The learned optimiser against SGD, closed forms and torch's own LSTM; unrolled training against the path it should follow."""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from metasearch import tasks as task_room
from metasearch.driver import launch
from metasearch.driver.study import Study
from metasearch.learners import _coordinates, inner
from metasearch.learners.learned_optimizer import LearnedOptimizer
from metasearch.learners.maml import MAML
from metasearch.nets import Net, Params
from metasearch.nets.linear_map import linear_map
from metasearch.nets.mlp import mlp
from metasearch.objectives import Infeasible, Trial, parcel
from metasearch.objectives.optimizer import adam, cosine, sgd
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.train import Train
from metasearch.objectives.training import generator
from metasearch.objectives.unroll import unroll
from metasearch.records import Config, Proposal, Report
from metasearch.tasks import Episode, TaskShape
from metasearch.trained import evaluate

TASKS = task_room.build("quadratics", {})
SHAPE = TASKS.shape(ways=1, shots=10, queries=10)


def _episode(seed: int = 1) -> Episode:
    drawn = TASKS.sample_episodes(1, split="train", shape=SHAPE, generator=Generator().manual_seed(seed))
    return drawn.select(0).map(Tensor.double)


def _meta(learner: LearnedOptimizer, net: Net) -> Params:
    return {k: v.double() for k, v in learner.init(net, Generator().manual_seed(0)).items()}


def _net() -> Net:
    return mlp(10, 1, hidden=(4,), act="tanh")


def test_an_output_of_zero_leaves_theta_where_it_is() -> None:
    learner, net, e = LearnedOptimizer(7), _net(), _episode()
    meta = {k: torch.zeros_like(v) if "/out/" in k else v for k, v in _meta(learner, net).items()}
    task = learner.adapt(net, TASKS.loss, meta, e.support_x, e.support_y)
    assert set(task) == {k for k in meta if k.startswith("net/")}
    assert all(torch.equal(task[k], meta[k]) for k in task)


def test_with_a_rate_for_its_core_it_is_sgd() -> None:
    learner, net, e = LearnedOptimizer(7, core="rate", scale=0.05), _net(), _episode()
    meta = _meta(learner, net)
    task = learner.adapt(net, TASKS.loss, meta, e.support_x, e.support_y)
    rate, start = float(meta["optimizer/rate"]), {k: meta[k] for k in task}
    wanted = inner.sgd_steps(lambda p: TASKS.loss(net.apply(p, e.support_x), e.support_y), start, lr=rate, steps=7)
    assert all(torch.allclose(task[k], wanted[k], atol=1e-14, rtol=0) for k in wanted)


def test_the_slope_of_the_sum_in_a_rate_is_its_closed_form() -> None:
    """theta_t = theta_0 - a (g_0 + ... + g_{t-1}), every g a constant: the slope is -sum_t grad f(theta_t) . (g_0 + ... )."""
    learner, net, e, a = LearnedOptimizer(6, core="rate", scale=0.1), linear_map(10, 1), _episode(), 0.1
    meta = {**_meta(learner, net), "optimizer/rate": torch.tensor(a, dtype=torch.float64)}
    theta = meta["net/head/weight"][0]

    def slope(w: Tensor) -> Tensor:
        return 2 / 10 * e.support_x.T @ (e.support_x @ w - e.support_y[:, 0])

    walked, total, expected = torch.zeros_like(theta), 0.0, 0.0
    for _ in range(6):
        walked = walked + slope(theta - a * walked)
        now = theta - a * walked
        total += float((e.support_x @ now - e.support_y[:, 0]).square().mean())
        expected -= float(slope(now) @ walked)
    grads, told = learner.episode_gradient(net, TASKS.loss, meta, e)
    assert float(grads["optimizer/rate"]) == pytest.approx(expected, rel=1e-12)
    assert float(told["loss"]) == pytest.approx(total / 6, rel=1e-12)


@pytest.mark.parametrize("p", [None, 5])
def test_updates_are_those_of_torchs_own_lstm(p: int | None) -> None:
    """Two layers of torch.nn.LSTM over the sequence of preprocessed gradients of each coordinate, then a linear layer."""
    learner, net, e = LearnedOptimizer(6, hidden=7, scale=0.3, p=p), _net(), _episode()
    meta = _meta(learner, net)
    theta = {k: v for k, v in meta.items() if k.startswith("net/")}
    layers = torch.nn.LSTM(1 if p is None else 2, 7, num_layers=2).double()
    with torch.no_grad():
        for n in (0, 1):
            for mine, theirs in (("weight_x", "weight_ih"), ("weight_h", "weight_hh"), ("bias", "bias_ih")):
                getattr(layers, f"{theirs}_l{n}").copy_(meta[f"optimizer/lstm{n + 1}/{mine}"])
            getattr(layers, f"bias_hh_l{n}").zero_()
    seen: list[Tensor] = []
    for _ in range(6):
        slope = torch.func.grad(lambda q: TASKS.loss(net.apply(q, e.support_x), e.support_y))(theta)
        g = _coordinates.flat(slope)
        seen.append(g[:, None] if p is None else _coordinates.log_and_sign(g, p))
        with torch.no_grad():
            out = layers(torch.stack(seen))[0][-1] @ meta["optimizer/out/weight"][0] + meta["optimizer/out/bias"]
        change = _coordinates.like(0.3 * out, theta)
        theta = {k: v + change[k] for k, v in theta.items()}
    found = learner.adapt(net, TASKS.loss, meta, e.support_x, e.support_y)
    assert all(torch.allclose(found[k], v, atol=1e-12, rtol=0) for k, v in theta.items())


def test_permuting_coordinates_permutes_updates() -> None:
    learner, net, e = LearnedOptimizer(9), linear_map(10, 1), _episode()
    order = torch.randperm(10, generator=generator(0, "order"))
    meta = _meta(learner, net)
    moved = {**meta, "net/head/weight": meta["net/head/weight"][:, order]}
    found = learner.adapt(net, TASKS.loss, meta, e.support_x, e.support_y)["net/head/weight"]
    again = learner.adapt(net, TASKS.loss, moved, e.support_x[:, order], e.support_y)["net/head/weight"]
    assert torch.allclose(again, found[:, order], atol=1e-12, rtol=0)


def test_the_optimiser_of_the_paper_has_5141_weights() -> None:
    for p, count in ((10, 5141), (None, 5061)):
        meta = LearnedOptimizer(p=p).init(linear_map(10, 1), Generator())
        assert sum(v.numel() for k, v in meta.items() if k.startswith("optimizer/")) == count


def test_what_means_nothing_is_refused() -> None:
    for wrong in ({"inner_steps": -1}, {"hidden": 0}, {"p": 0}, {"scale": -1.0}, {"core": "adam"}, {"test_steps": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LearnedOptimizer(**wrong)  # type: ignore[arg-type]


# unrolled training ------------------------------------------------------------------------------------------------------------


def recipe(config: Config, shape: TaskShape) -> Recipe:
    learner = LearnedOptimizer(5, test_steps=15, p=None, hidden=6)
    return Recipe(linear_map(shape.x, 1), learner, adam(0.003), 4, 13, fit=functools.partial(unroll, epoch=15))


TRAIN = Train(recipe, TASKS, SHAPE, validation_episodes=20, mode="vmap", report_every=1)


def _trial(folder: Path, **given: Any) -> Trial:
    def save(step: int, tensors: Any, facts: Any) -> str:
        return str(parcel.write(folder / f"{step}.safetensors", tensors, facts))

    return Trial(0, save=save, **given)


def _run(train: Train, trial: Trial) -> list[Report]:
    return list(train(Proposal({}, seed=7), trial))


def _with(change: Callable[[Recipe], Recipe]) -> Train:
    return replace(TRAIN, recipe=lambda config, shape: change(recipe(config, shape)))


def test_a_stretch_goes_on_where_the_last_one_ended_until_the_epoch_is_over(tmp_path: Path) -> None:
    """With an outer rate of 0, theta after k stretches is what k times 5 steps from theta_0 make; then all begins anew."""
    _run(_with(lambda r: replace(r, optimizer=sgd(0.0))), _trial(tmp_path))
    made = recipe({}, SHAPE)
    meta = {k: v for k, v in parcel.read(tmp_path / "13.safetensors")[0].items() if k.startswith("meta/")}
    own = {k.removeprefix("meta/"): v for k, v in meta.items()}
    for step in range(1, 14):
        epoch, stretches = (step - 1) // 3, (step - 1) % 3 + 1
        drawn = generator(7, f"block {epoch}")
        episodes = TASKS.sample_episodes(4, split="train", shape=SHAPE, generator=drawn)
        starts = [made.net.init(drawn) for _ in range(4)]
        found = parcel.read(tmp_path / f"{step}.safetensors")[0]["state/unroll/theta/net/head/weight"]
        for i in range(4):
            learner, e = replace(made.learner, inner_steps=5 * stretches), episodes.select(i)  # type: ignore[call-arg]
            wanted = learner.adapt(made.net, TASKS.loss, {**own, **starts[i]}, e.support_x, e.support_y)
            assert torch.allclose(found[i], wanted["net/head/weight"], atol=1e-6)


def test_a_trial_resumed_in_the_middle_of_an_epoch_ends_bit_for_bit_as_the_undisturbed_one(tmp_path: Path) -> None:
    whole = _run(TRAIN, _trial(tmp_path / "whole"))
    for stop in (3, 4, 8):
        reports: Iterator[Report] = TRAIN(Proposal({}, seed=7), _trial(tmp_path / f"cut{stop}"))
        for report in reports:
            if report.step == stop:
                break
        reports.close()  # type: ignore[attr-defined]
        start = tmp_path / f"cut{stop}" / f"{stop}.safetensors"
        rest = _run(TRAIN, _trial(tmp_path / f"cut{stop}", start=start, own=True))
        assert rest[-1].episodes == whole[-1].episodes
        ours, theirs = (parcel.read(tmp_path / f / "13.safetensors")[0] for f in (f"cut{stop}", "whole"))
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_optimiser_alone_is_learnt_on_functions_of_their_own(tmp_path: Path) -> None:
    _run(TRAIN, _trial(tmp_path / "vmap"))
    first, last = (parcel.read(tmp_path / "vmap" / f"{n}.safetensors")[0] for n in (1, 13))
    for k in (k for k in last if k.startswith("meta/")):
        assert torch.equal(first[k], last[k]) is k.startswith("meta/net/"), k
    assert len({tuple(v.flatten().tolist()) for v in last["state/unroll/theta/net/head/weight"]}) == 4


def test_any_net_and_any_episodes_will_do(tmp_path: Path) -> None:
    blobs = task_room.build("blobs", {})
    shape = blobs.shape(ways=3, shots=5, queries=5)

    def on_blobs(config: Config, shape: TaskShape) -> Recipe:
        net = mlp(shape.x, shape.ways, hidden=(8,))
        return Recipe(net, LearnedOptimizer(10), adam(0.01), 8, 40, fit=functools.partial(unroll, epoch=10))

    train = Train(on_blobs, blobs, shape, validation_episodes=50)
    before, after = (_run(replace(train, steps=n), Trial(0))[-1].score for n in (1, 40))
    assert before is not None
    assert after is not None
    assert after > max(before, 0.33) + 0.3


@pytest.mark.parametrize(("change", "said"), [
    (lambda r: replace(r, learner=MAML()), "the learner is MAML"),
    (lambda r: replace(r, learner=LearnedOptimizer(20)), "multiple of inner_steps=20, but got epoch=15"),
    (lambda r: replace(r, learner=LearnedOptimizer(0)), "`inner_steps >= 1` must hold, but got inner_steps=0"),
])
def test_what_cannot_be_unrolled_is_infeasible(change: Callable[[Recipe], Recipe], said: str) -> None:
    with pytest.raises(Infeasible, match=said):
        _run(_with(change), Trial(0))


SPACE = '''
from metasearch.learners.learned_optimizer import LearnedOptimizer
from metasearch.nets.linear_map import linear_map
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.space import Choice, Space

SPACE = Space({"steps": Choice((5,))})


def recipe(config, shape):
    return Recipe(linear_map(shape.x, 1), LearnedOptimizer(config["steps"], test_steps=15), adam(0.01), 4, 2)
'''


def test_it_is_evaluated_on_the_test_split_with_a_curve_from_0_steps_on(tmp_path: Path) -> None:
    (tmp_path / "learnt.py").write_text(SPACE)
    study = f"""
        name = "learnt"
        space = "{tmp_path / 'learnt.py'}"
        method = {{ name = "grid" }}
        tasks = {{ name = "quadratics", shots = 5, queries = 5 }}
        train = {{ mode = "vmap" }}
        validation = {{ episodes = 4 }}
        budget = {{ trials = 1 }}
        driver = {{ kind = "local" }}
        track = {{ enabled = false }}
    """
    launch.run(Study.from_text(study), home=tmp_path)
    found = evaluate("learnt/1", home=tmp_path, episodes=4, steps=2)
    assert [p.inner_steps for p in found.curve] == [0, 1, 2]
    assert all(p.mean is not None for p in found.curve)


# what it is for ---------------------------------------------------------------------------------------------------------------


def _by_hand(make: Callable[[list[Tensor]], torch.optim.Optimizer], e: Episode) -> float:
    """Mean f / 10 of functions after 100 steps of one of torch's optimisers, from where the learned one begins."""
    theta = (0.01 * torch.randn(e.count, 10, 1, generator=Generator().manual_seed(1))).requires_grad_()
    optimizer = make([theta])
    for _ in range(100):
        optimizer.zero_grad()
        (e.support_x @ theta - e.support_y).square().mean((1, 2)).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float((e.support_x @ theta.detach() - e.support_y).square().mean())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_a_few_minutes_of_training_it_beats_tuned_sgd_and_adam_on_quadratics() -> None:
    """After 100 steps on 128 functions that nobody has seen. Rates are tuned on as many others, eight to a decade."""
    def long(config: Config, shape: TaskShape) -> Recipe:
        optimizer = adam(5e-3, schedule=cosine(0.1))
        return Recipe(linear_map(shape.x, 1), LearnedOptimizer(test_steps=100), optimizer, 32, 3000, fit=unroll)

    train = Train(long, TASKS, SHAPE, validation_episodes=128, mode="compiled")
    score = _run(train, Trial(0))[-1].score
    assert score is not None
    tuning = TASKS.sample_episodes(128, split="train", shape=SHAPE, generator=Generator().manual_seed(3))
    for kind in (torch.optim.SGD, torch.optim.Adam):
        of = [functools.partial(kind, lr=10 ** (i / 8)) for i in range(-24, 5)]
        best = min(of, key=lambda make: found if (found := _by_hand(make, tuning)) == found else float("inf"))
        assert -score < _by_hand(best, train.bank.episodes), f"{kind.__name__} {best.keywords}"
