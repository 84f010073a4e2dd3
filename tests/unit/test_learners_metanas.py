"""MetaNAS and T-NAS: Reptile and MAML where the architecture stays; DARTS steps as torch.optim takes them; soft pruning; tasks
that need different architectures find them."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import relaxed_space
import seeing_space
import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, gradients
from metasearch.learners.maml import MAML
from metasearch.learners.metanas import MetaNAS
from metasearch.learners.reptile import Reptile
from metasearch.learners.t_nas import TNAS
from metasearch.nets import Net, Params
from metasearch.nets.discrete import Choices
from metasearch.nets.head import headed
from metasearch.records import Config
from metasearch.tasks import Episode, TaskShape
from metasearch.tasks.blobs import Blobs
from search_spaces import darts_cells

TASKS = Blobs(dimensions=5, train_classes=20, val_classes=10)
SHAPE = TASKS.shape(ways=3, shots=2, queries=3)
CONFIG: Config = {"a": "none", "b": "none", "width": 4}
NET = headed(relaxed_space.relaxed(CONFIG, SHAPE).net, 3)
CHOICES = Choices.of(dict.fromkeys(relaxed_space.RELAXED, relaxed_space.OPTIONS))
PAIRED = replace(CHOICES, inputs=(("a", "b"),), pairs=True)  # two inputs: one pair, so nothing is left out
ARCH = ("arch/a", "arch/b")


def _meta(seed: int = 0, spread: float = 1.0) -> Params:
    meta = {k: v.double() for k, v in NET.init(Generator().manual_seed(seed)).items()}
    g = Generator().manual_seed(seed + 1)
    return meta | {k: spread * torch.randn(4, generator=g, dtype=torch.float64) for k in ARCH}


def _episodes(learner: Learner, count: int = 1, seed: int = 3) -> Episode:
    g = Generator().manual_seed(seed)
    e = TASKS.sample_episodes(count, split="train", shape=SHAPE, generator=g).map(Tensor.double)
    return e._replace(noise={k: torch.randn(count, *s, generator=g).double() for k, s in learner.noise(SHAPE).items()})


def _net_with(arch: Params) -> Net:
    """The mixture as a net that has no architecture to learn."""
    return NET._replace(apply=lambda params, x: NET.apply({**params, **arch}, x))


def _close(a: Mapping[str, Tensor], b: Mapping[str, Tensor], **given: float) -> None:
    assert set(a) == set(b)
    torch.testing.assert_close(dict(a), dict(b), **{"rtol": 1e-10, "atol": 1e-12, **given})


# where the architecture stays -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("how", ["rate of 0", "warm-up"])
def test_metanas_with_an_architecture_that_stays_is_reptile(how: str, batch: int | None, optimizer: Any) -> None:
    common: dict[str, Any] = {"inner_lr": 0.05, "inner_steps": 4, "inner_batch": batch, "optimizer": optimizer}
    learner = (
        MetaNAS(**common, arch_lr=0.0, arch_decay=0.0, t_min=1.0, prune=0.0, searching=True) if how == "rate of 0"
        else MetaNAS(**common, arch_lr=0.5, warm_up=0.5).at(0.4)
    )
    assert isinstance(learner, MetaNAS)
    meta, e = _meta(), _episodes(learner).select(0)
    found, told = learner.episode_gradient(NET, TASKS.loss, meta, e)
    arch = {k: meta[k] for k in ARCH}
    right, also = Reptile(**common).episode_gradient(
        _net_with(arch), TASKS.loss, {k: v for k, v in meta.items() if k not in ARCH}, e
    )
    assert not any(found.pop(k).any() for k in ARCH)
    _close(found, right)
    assert float(told["loss"]) == pytest.approx(float(also["loss"]), rel=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("update", ["together", "alternately"])
def test_t_nas_with_an_architecture_that_stays_is_maml(update: Any, first_order: bool) -> None:
    """Its outer gradient in the architecture included."""
    learner = TNAS(inner_lr=0.2, arch_lr=0.0, inner_steps=3, first_order=first_order, update=update)
    meta, e = _meta(), _episodes(learner).select(0)
    right, _ = MAML(inner_lr=0.2, inner_steps=3, first_order=first_order).episode_gradient(NET, TASKS.loss, meta, e)
    found, _ = learner.episode_gradient(NET, TASKS.loss, meta, e)
    _close(found, right)
    assert all(found[k].any() for k in ARCH)


# inner steps ----------------------------------------------------------------------------------------------------------------


def _by_torch(learner: MetaNAS, meta: Params, x: Tensor, y: Tensor) -> Params:
    """The same inner loop with torch.optim and a softmax of our own: alpha first, then the weights with the new alpha."""
    p = {k: v.clone().requires_grad_() for k, v in meta.items()}
    alpha = [p[k] for k in ARCH]
    rate, other, decay = float(learner.inner_lr), float(learner.arch_lr), float(learner.arch_decay)
    if learner.optimizer == "adam":
        of_w = torch.optim.Adam([v for k, v in p.items() if k not in ARCH], lr=rate, betas=(0.0, 0.999))
        of_a: torch.optim.Optimizer = torch.optim.Adam(alpha, lr=other, betas=(0.0, 0.999), weight_decay=decay)
    else:
        of_w = torch.optim.SGD([v for k, v in p.items() if k not in ARCH], lr=rate)  # type: ignore[assignment]
        of_a = torch.optim.SGD(alpha, lr=other, weight_decay=decay)

    def value(temperature: float) -> Tensor:
        read = {k: (p[k][1:] / temperature).log_softmax(-1) for k in ARCH}  # none takes no part
        read = {k: torch.cat([torch.full((1,), -torch.inf, dtype=v.dtype), v]) for k, v in read.items()}
        return TASKS.loss(NET.apply({**p, **read}, x), y)

    for step in range(learner.inner_steps):
        t = float(learner.t_max - step * (learner.t_max - learner.t_min) / (learner.inner_steps - 1))
        for optimizer in (of_a, of_w):
            for v in p.values():
                v.grad = None
            value(t).backward()
            optimizer.step()
    return {k: v.detach() for k, v in p.items()}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_inner_steps_are_those_of_torchs_optimisers(optimizer: Any) -> None:
    """Of weights and of architecture, under a falling temperature; theta - W is what the outer loop is given, for both."""
    learner = MetaNAS(inner_lr=0.02, arch_lr=0.05, arch_decay=0.1, inner_steps=5, optimizer=optimizer, prune=0.0, t_min=0.1,
                      choices=CHOICES)
    meta, e = _meta(spread=0.1), _episodes(learner).select(0)
    right = _by_torch(learner, meta, torch.cat([e.support_x, e.query_x]), torch.cat([e.support_y, e.query_y]))
    found, told = learner.episode_gradient(NET, TASKS.loss, meta, e)
    expected = {k: meta[k] - right[k] for k in meta}
    for k in ARCH:
        assert float(found[k][0]) == 0.0, "none has not moved"
        expected[k][0] = 0.0
        assert found[k][1:].abs().min() > 1e-3
    _close(found, expected, rtol=1e-7, atol=1e-9)
    assert 0 <= float(told["arch_entropy"]) < 1


def test_the_outer_step_is_reptiles_and_not_a_gradient_on_pooled_tasks() -> None:
    """The mean over tasks of what each moved; a DARTS step on all tasks' data at once is another one."""
    learner = MetaNAS(inner_lr=0.02, arch_lr=0.1, inner_steps=5, arch_decay=0.0, prune=0.0, choices=CHOICES)
    meta, episodes = _meta(), _episodes(learner, 2)
    many, _ = torch.func.vmap(lambda e: learner.episode_gradient(NET, TASKS.loss, meta, e))(episodes)
    each = []
    for i in range(2):
        e = episodes.select(i)
        ends = _by_torch(learner, meta, torch.cat([e.support_x, e.query_x]), torch.cat([e.support_y, e.query_y]))
        each.append({k: (meta[k] - ends[k])[1:] for k in ARCH})
    x = torch.cat([episodes.support_x, episodes.query_x], 1).flatten(0, 1)
    y = torch.cat([episodes.support_y, episodes.query_y], 1).flatten(0, 1)
    pooled = _by_torch(learner, meta, x, y)
    for k in ARCH:
        mean = many[k].mean(0)[1:]
        torch.testing.assert_close(mean, (each[0][k] + each[1][k]) / 2, rtol=1e-8, atol=1e-10)
        assert float((mean - (meta[k] - pooled[k])[1:]).norm() / mean.norm()) > 0.01


@pytest.mark.parametrize("learner", [
    MetaNAS(inner_lr=0.05, arch_lr=0.1, choices=CHOICES), MetaNAS(inner_lr=0.05, arch_lr=0.1, choices=PAIRED, inner_batch=2),
    TNAS(inner_lr=0.1, arch_lr=30.0, choices=CHOICES),
    TNAS(inner_lr=0.1, arch_lr=30.0, update="alternately", first_order=False),
], ids=["metanas", "metanas-pairs", "t-nas", "t-nas-alternately"])
def test_a_task_adapts_its_architecture_and_gives_it_back(learner: Learner) -> None:
    meta, e = _meta(spread=0.1) | {"arch/pairs/0": torch.zeros(1, dtype=torch.float64)}, _episodes(learner).select(0)
    before = {k: v.clone() for k, v in meta.items()}
    task = learner.adapt(NET, TASKS.loss, meta, e.support_x, e.support_y)
    for k in (*ARCH, "net/a/see/weight", "net/head/weight"):
        assert float((task[k] - meta[k]).abs().nan_to_num(0, posinf=0).max()) > 1e-4, k
    assert all(torch.equal(meta[k], before[k]) for k in before)


def test_architecture_and_weights_may_learn_on_different_rows() -> None:
    """With one step the architecture has seen its half alone: changing the rows of the other leaves it as it is."""
    learner = MetaNAS(
        inner_lr=0.05, arch_lr=0.1, inner_steps=1, arch_rows="half", optimizer="sgd", prune=0.0, t_min=1.0, choices=CHOICES
    )
    meta, e = _meta(), _episodes(learner).select(0)
    moved = []
    for row in range(len(e.support_x) + len(e.query_x)):
        x = torch.cat([e.support_x, e.query_x])
        x[row] += 1.0
        other = e._replace(support_x=x[: len(e.support_x)], query_x=x[len(e.support_x):])
        ours, theirs = (learner.episode_gradient(NET, TASKS.loss, meta, one)[0] for one in (e, other))
        moved.append(not torch.equal(ours["arch/a"], theirs["arch/a"]))
    assert sum(moved) == len(moved) // 2
    both = replace(learner, arch_rows="all")
    ours, theirs = (both.episode_gradient(NET, TASKS.loss, meta, one)[0] for one in (e, other))
    assert not torch.equal(ours["arch/a"], theirs["arch/a"])


def test_t_nas_steps_are_as_written() -> None:
    """together: both from one gradient; alternately: the weights from a gradient at the new architecture."""
    meta, e = _meta(), _episodes(TNAS()).select(0)
    w = {k: v for k, v in meta.items() if k not in ARCH}

    def slopes(at: Params) -> Params:
        leaves = {k: v.clone().requires_grad_() for k, v in at.items()}
        TASKS.loss(NET.apply(leaves, e.support_x), e.support_y).backward()
        return {k: v.grad for k, v in leaves.items() if v.grad is not None}

    g = slopes(meta)
    a1 = {k: meta[k] - 5.0 * g[k] for k in ARCH}
    for update, at in (("together", meta), ("alternately", {**w, **a1})):
        later = slopes(at)
        expected = {**{k: w[k] - 0.1 * later[k] for k in w}, **a1}
        found = TNAS(inner_lr=0.1, arch_lr=5.0, inner_steps=1, update=update).adapt(  # type: ignore[arg-type]
            NET, TASKS.loss, meta, e.support_x, e.support_y
        )
        _close(found, expected)


@pytest.mark.parametrize("learner", [
    MetaNAS(inner_lr=0.02, arch_lr=0.1, inner_batch=4, choices=PAIRED), TNAS(inner_lr=0.1, arch_lr=3.0, inner_steps=2),
    TNAS(inner_lr=0.1, arch_lr=3.0, inner_steps=2, update="alternately", first_order=False),
], ids=["metanas", "t-nas", "t-nas-alternately"])
def test_a_loop_takes_the_steps_of_a_vmap(learner: Learner) -> None:
    meta, episodes = _meta(spread=0.1) | {"arch/pairs/0": torch.zeros(1, dtype=torch.float64)}, _episodes(learner, 3)
    many, told = torch.func.vmap(lambda e: learner.episode_gradient(NET, TASKS.loss, meta, e))(episodes)
    for i in range(3):
        with gradients.on_tape():
            found, also = learner.episode_gradient(NET, TASKS.loss, meta, episodes.select(i))
        _close({k: v[i] for k, v in many.items()}, found, rtol=1e-8)
        _close({k: v[i] for k, v in told.items()}, also, rtol=1e-8)


# outer gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["together", "alternately"])
def test_the_meta_gradient_of_the_architecture_is_right(update: Any) -> None:
    """Central differences of the query loss after three steps of weights and architecture; first order is another gradient."""
    learner = TNAS(inner_lr=0.2, arch_lr=3.0, inner_steps=3, first_order=False, update=update)
    meta, e = _meta(), _episodes(learner).select(0)
    found, _ = learner.episode_gradient(NET, TASKS.loss, meta, e)
    for k in ARCH:
        for i in range(4):
            step = 1e-5 * torch.eye(4, dtype=torch.float64)[i]
            up, down = (learner.episode_loss(NET, TASKS.loss, {**meta, k: meta[k] + s * step}, e)[0] for s in (1, -1))
            assert float(found[k][i]) == pytest.approx(float(up - down) / 2e-5, rel=1e-5, abs=1e-9)
    first, _ = replace(learner, first_order=True).episode_gradient(NET, TASKS.loss, meta, e)
    gap = torch.cat([first[k] - found[k] for k in ARCH]).norm() / torch.cat([found[k] for k in ARCH]).norm()
    assert float(gap) > 0.02


# one architecture in the end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [CHOICES, PAIRED], ids=["edges", "pairs"])
def test_soft_pruning_ends_in_the_net_that_predicts(choices: Choices) -> None:
    """With a cold end the mixture and the discrete net say the same; where T stays, they do not."""
    meta, e = _meta() | {"arch/pairs/0": torch.zeros(1, dtype=torch.float64)}, _episodes(MetaNAS()).select(0)
    gaps = []
    for t_min in (0.01, 1.0):
        learner = MetaNAS(inner_lr=0.02, arch_lr=0.05, inner_steps=20, t_min=t_min, choices=choices)
        soft, hard = replace(learner, discrete="never").at_test(), learner.at_test()
        task = soft.adapt(NET, TASKS.loss, meta, e.support_x, e.support_y)
        assert all(torch.equal(v, task[k]) for k, v in hard.adapt(NET, TASKS.loss, meta, e.support_x, e.support_y).items())
        outputs = [one.predict(NET, meta, task, e.query_x) for one in (soft, hard)]
        gaps.append(float((outputs[0] - outputs[1]).abs().max()))
        numbers = choices.numbers({k: v for k, v in task.items() if k.startswith("arch/")})
        config: Config = {**CONFIG, **{path: relaxed_space.OPTIONS[n] for path, n in numbers.items()}}
        single = headed(relaxed_space.recipe(config, SHAPE).net, 3)
        torch.testing.assert_close(single.apply(task, e.query_x), outputs[1], rtol=1e-12, atol=1e-12)
    assert gaps[0] < 1e-6 < 1e-2 < gaps[1]


def test_cells_with_pairs_of_inputs_are_adapted_and_end_as_cells_of_the_paper() -> None:
    """DARTS' cells: pairs move with the rest, every node of a task's cells has two inputs; the space's own net says the same."""
    shape = TaskShape((1, 4, 4), 2, 1, 1)
    stack = darts_cells.Stack(3, 2)  # a normal cell, two reductions
    net = headed(darts_cells.relaxed({}, shape, stack=stack).net, 2)
    choices = Choices.of(dict.fromkeys(darts_cells.RELAXED, darts_cells.PRIMITIVES), darts_cells.NODE_INPUTS, pairs=True)
    learner = MetaNAS(inner_lr=0.01, arch_lr=0.1, inner_steps=2, arch_decay=0.0, choices=choices)
    meta = {k: v.double() for k, v in learner.init(net, Generator().manual_seed(0)).items()}
    x, y = torch.randn(2, 1, 4, 4, generator=Generator().manual_seed(1), dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    with gradients.on_tape():
        moved, _ = learner.episode_gradient(net, TASKS.loss, meta, Episode(x, y, x + 0.1, y))
    assert all(bool(g.isfinite().all()) for g in moved.values())
    assert sum(bool(moved[f"arch/pairs/{i}"].any()) for i in range(8)) == 6, "a node of two inputs has one pair, so no choice"
    tested = learner.at_test()
    with gradients.on_tape(graphs=False):
        task = tested.adapt(net, TASKS.loss, meta, x, y)
    numbers = choices.numbers({k: v for k, v in task.items() if k.startswith("arch/")})
    config: Config = {path: darts_cells.PRIMITIVES[n] for path, n in numbers.items()}
    assert all(sum(config[path] != "none" for path in group) == 2 for group in darts_cells.NODE_INPUTS)
    single = headed(darts_cells.recipe(config, shape, stack=stack).net, 2)
    torch.testing.assert_close(single.apply(task, x), tested.predict(net, meta, task, x), rtol=1e-9, atol=1e-9)


def test_t_nas_tunes_the_weights_of_its_own_net_before_it_predicts() -> None:
    meta, e = _meta(), _episodes(TNAS()).select(0)
    learner = TNAS(inner_lr=0.1, arch_lr=10.0, inner_steps=2, test_steps=3, tune_steps=4, choices=CHOICES)
    tested = learner.at_test()
    task = tested.adapt(NET, TASKS.loss, meta, e.support_x, e.support_y)
    mixture = replace(learner, inner_steps=3).adapt(NET, TASKS.loss, meta, e.support_x, e.support_y)
    assert all(torch.equal(task[k], mixture[k]) for k in ARCH), "the architecture stays as it was adapted"
    hard = CHOICES.hard({k: task[k] for k in ARCH})
    start = {k: v for k, v in mixture.items() if k not in ARCH}
    right = MAML(0.1, 4).adapt(_net_with(hard), TASKS.loss, start, e.support_x, e.support_y)
    _close({k: task[k] for k in right}, right)
    torch.testing.assert_close(
        tested.predict(NET, meta, task, e.query_x), NET.apply({**task, **hard}, e.query_x), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(("wrong", "said"), [
    ({"t_min": 0.0}, "0 < t_min <= t_max"), ({"t_min": 2.0}, "0 < t_min <= t_max"), ({"prune": 1.0}, "prune < 1"),
    ({"arch_lr": -1.0}, "arch_lr >= 0"), ({"arch_rows": "third"}, "all, half"), ({"discrete": "maybe"}, "test, always, never"),
    ({"optimizer": "rmsprop"}, "adam, sgd"),
])
def test_wrong_values_are_refused_in_words(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MetaNAS(**wrong)


def test_wrong_values_of_t_nas_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="together, alternately"):
        TNAS(update="never")  # type: ignore[arg-type]


# tasks that need different architectures ------------------------------------------------------------------------------------


SEES = Choices.of(dict.fromkeys(seeing_space.RELAXED, seeing_space.OPTIONS))


@pytest.mark.parametrize("learner", [
    MetaNAS(inner_lr=0.02, arch_lr=0.1, inner_steps=10, warm_up=0.0, choices=SEES),
    TNAS(inner_lr=0.3, arch_lr=3.0, inner_steps=6, choices=SEES),
], ids=["metanas", "t-nas"])
def test_two_families_of_tasks_choose_two_architectures(learner: MetaNAS | TNAS) -> None:
    """Every task's classes differ in one half of the input; which one is to be found from its supports."""
    tasks = seeing_space.Halves("both")
    shape = tasks.shape(ways=3, shots=5, queries=5)
    net = headed(seeing_space.relaxed({}, shape).net, 3)
    meta, g = learner.init(net, Generator().manual_seed(0)), Generator().manual_seed(1)
    free = {k: v.clone().requires_grad_() for k, v in meta.items()}
    outer = torch.optim.Adam([{"params": [v for k, v in free.items() if not k.startswith("arch/")], "lr": 0.02},
                              {"params": [v for k, v in free.items() if k.startswith("arch/")], "lr": 0.0}])
    for _ in range(40):
        episodes = tasks.sample_episodes(8, split="train", shape=shape, generator=g)
        with torch.no_grad():
            now = {k: v.detach() for k, v in free.items()}
            grads, _ = torch.func.vmap(lambda e, now=now: learner.episode_gradient(net, tasks.loss, now, e))(episodes)
        for k, v in free.items():
            v.grad = grads[k].mean(0)
        outer.step()
    trained, tested = {k: v.detach() for k, v in free.items()}, learner.at_test()
    bank = tasks.bank("val", 60, seed=0, shape=shape).episodes
    chosen, scores, fixed = [], [], []
    for i in range(60):
        e = bank.select(i)
        with gradients.on_tape(graphs=False):
            task = tested.adapt(net, tasks.loss, trained, e.support_x, e.support_y)
            scores.append(float(tasks.score(tested.predict(net, trained, task, e.query_x).detach(), e.query_y)))
        chosen.append(SEES.numbers({"arch/sees": task["arch/sees"]})["sees"])
        centres = [e.support_y.argmax(-1) == c for c in range(3)]
        spread = torch.stack([e.support_x[c].mean(0) for c in centres]).var(0)
        within = torch.stack([e.support_x[c].var(0) for c in centres]).mean(0)
        fixed.append(1 if float((spread / within)[:4].mean()) > float((spread / within)[4:].mean()) else 2)
    right = sum(c == f for c, f in zip(chosen, fixed, strict=True))
    assert right >= 50, f"{right} of 60 tasks chose the half in which their classes differ; by chance 30 +- 4"
    assert 15 <= chosen.count(1) <= 45
    assert sum(scores) / 60 > 0.6
