"""Fine-tuning, Baseline++, nearest centroid and joint training, against torch.optim, closed forms and published accuracies."""
from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch import measure
from metasearch import tasks as task_room
from metasearch.learners import Learner
from metasearch.learners.baseline_pp import BaselinePP, cosines, scale_for
from metasearch.learners.centroid import Centroid
from metasearch.learners.fine_tune import FineTune, Head
from metasearch.learners.joint import Joint
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.nets import Net, Params
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.identity import identity
from metasearch.nets.mlp import mlp
from metasearch.objectives.evaluation import scores
from metasearch.tasks import Episode, TaskDistribution, open_test
from metasearch.tasks.blobs import Blobs
from metasearch.tasks.class_arrays import ClassArrays
from metasearch.tasks.omniglot import Omniglot
from metasearch.tasks.sinusoid import Sinusoid


def _ce(output: Tensor, y: Tensor) -> Tensor:
    return -(y * output.log_softmax(-1)).sum(-1).mean()


def _net() -> Net:
    """Four blocks above one another, so that layers can be told apart."""
    return mlp(4, 3, hidden=(7, 6, 5, 5), act="tanh")


def _meta(learner: Learner, net: Net | None = None) -> Params:
    return {k: v.double() for k, v in learner.init(net or _net(), Generator().manual_seed(0)).items()}


def _episode(shots: int = 2) -> Episode:
    generator = Generator().manual_seed(1)
    e = Blobs(dimensions=4).sample_episodes(
        1, split="train", shape=Blobs(dimensions=4).shape(ways=3, shots=shots, queries=4), generator=generator)
    return e.map(Tensor.double).select(0)


def _by_torch(learner: FineTune, start: Params, groups: list[tuple[list[str], float]], steps: int) -> Params:
    """The same fine-tuning by torch.optim.SGD, one group of parameters a layer."""
    e, net = _episode(), _net()
    leaves = {k: v.clone().requires_grad_() for k, v in start.items()}
    options = {"momentum": float(learner.momentum), "dampening": float(learner.dampening),
               "weight_decay": float(learner.weight_decay)}
    optimizer = torch.optim.SGD([{"params": [leaves[k] for k in keys], "lr": lr} for keys, lr in groups], lr=0.0, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        _ce(net.apply(leaves, e.support_x), e.support_y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {k: v.detach() for k, v in leaves.items()}


def _layer(i: int) -> list[str]:
    return [f"net/layer{i}/weight", f"net/layer{i}/bias"] if i <= 4 else ["net/head/weight", "net/head/bias"]


@pytest.mark.parametrize("more", [
    {}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.9, "weight_decay": 1e-3}, {"weight_decay": 0.1},
], ids=str)
def test_fine_tuning_is_torch_sgd_with_a_rate_for_each_layer(more: dict[str, float]) -> None:
    """Rates 0.2, 0.1, 0.05, ... from the head down."""
    learner = FineTune(inner_lr=0.2, inner_steps=6, layer_decay=0.5, start="random", **more)  # type: ignore[arg-type]
    meta, e = _meta(learner), _episode()
    found = learner.adapt(_net(), _ce, meta, e.support_x, e.support_y)
    expected = _by_torch(learner, meta, [(_layer(i), 0.2 * 0.5 ** (5 - i)) for i in range(1, 6)], 6)
    assert set(found) == set(expected)
    for k, v in expected.items():
        torch.testing.assert_close(found[k], v, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("frozen", [0, 1, 3, 4, 9])
def test_frozen_layers_are_the_lowest_and_stay_bit_for_bit(frozen: int) -> None:
    learner = FineTune(inner_lr=0.2, inner_steps=4, frozen=frozen, start="random")
    meta, e = _meta(learner), _episode()
    found = {**meta, **learner.adapt(_net(), _ce, meta, e.support_x, e.support_y)}
    still = [i for i in range(1, 6) if all(torch.equal(found[k], meta[k]) for k in _layer(i))]
    assert still == list(range(1, min(frozen, 4) + 1))
    expected = _by_torch(learner, meta, [(_layer(i), 0.2) for i in range(min(frozen, 4) + 1, 6)], 4)
    for k, v in expected.items():
        torch.testing.assert_close(found[k], v, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("steps", "moved"), [(2, [5]), (3, [4, 5]), (4, [4, 5]), (5, [3, 4, 5]), (20, [2, 3, 4, 5])])
def test_gradual_unfreezing_goes_down_from_the_head(steps: int, moved: list[int]) -> None:
    """One more layer every 2 steps; the lowest is frozen for good."""
    learner = FineTune(inner_lr=0.2, inner_steps=steps, frozen=1, unfreeze_every=2, start="random")
    meta, e = _meta(learner), _episode()
    found = {**meta, **learner.adapt(_net(), _ce, meta, e.support_x, e.support_y)}
    assert [i for i in range(1, 6) if any(not torch.equal(found[k], meta[k]) for k in _layer(i))] == moved


def test_momentum_goes_on_when_a_layer_joins() -> None:
    """As torch.optim.SGD with gradients of frozen layers set to None."""
    learner = FineTune(inner_lr=0.1, inner_steps=6, unfreeze_every=2, start="random", momentum=0.9)
    meta, e = _meta(learner), _episode()
    leaves = {k: v.clone().requires_grad_() for k, v in meta.items()}
    optimizer = torch.optim.SGD(leaves.values(), lr=0.1, momentum=0.9)
    for step in range(6):
        optimizer.zero_grad()
        _ce(_net().apply(leaves, e.support_x), e.support_y).backward()  # type: ignore[no-untyped-call]
        for i in range(1, 5 - step // 2):
            for k in _layer(i):
                leaves[k].grad = None
        optimizer.step()
    found = {**meta, **learner.adapt(_net(), _ce, meta, e.support_x, e.support_y)}
    for k, v in leaves.items():
        torch.testing.assert_close(found[k], v.detach(), rtol=1e-12, atol=1e-14)


def test_gradual_unfreezing_is_one_stage_of_plain_tuning_after_another() -> None:
    learner = FineTune(inner_lr=0.2, inner_steps=7, unfreeze_every=3, layer_decay=0.5, start="random")
    meta, e = _meta(learner), _episode()
    found = learner.adapt(_net(), _ce, meta, e.support_x, e.support_y)
    expected = meta
    for lowest, steps in ((5, 3), (4, 3), (3, 1)):
        expected = _by_torch(learner, expected, [(_layer(i), 0.2 * 0.5 ** (5 - i)) for i in range(lowest, 6)], steps)
    for k, v in found.items():
        torch.testing.assert_close(v, expected[k], rtol=1e-12, atol=1e-14)


def test_a_frozen_body_is_run_once() -> None:
    calls: list[str] = []
    net = _net()
    blocks = tuple(b._replace(apply=lambda p, x, b=b: calls.append(b.key) or b.apply(p, x)) for b in net.blocks)
    learner, e = FineTune(inner_steps=5, frozen=3, start="random"), _episode()
    learner.adapt(net._replace(blocks=blocks), _ce, _meta(learner), e.support_x, e.support_y)
    assert calls == ["layer1", "layer2", "layer3", *["layer4"] * 5]


def test_fine_tuning_the_net_as_it_is_is_maml_without_meta_training() -> None:
    fine, maml, e = FineTune(inner_lr=0.2, inner_steps=3, start="kept"), MAML(0.2, 3), _episode()
    meta = _meta(fine)
    ours, theirs = (
        x.predict(_net(), meta, x.adapt(_net(), _ce, meta, e.support_x, e.support_y), e.query_x)  # type: ignore[attr-defined]
        for x in (fine, maml)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_prototype_head_begins_as_prototypical_networks() -> None:
    """Logits differ by |z|^2, which all classes share: equal probabilities; and so is its episodic training."""
    net, e = mlp(4, 3, hidden=(7, 5), act="tanh"), _episode()
    fine, metric = FineTune(inner_steps=0, start="prototypes"), Prototypical()
    meta = _meta(fine, net)
    assert set(meta) == {f"net/layer{i}/{name}" for i in (1, 2) for name in ("weight", "bias")}
    headless = mlp(4, None, hidden=(7, 5), act="tanh")
    ours = fine.predict(net, meta, fine.adapt(net, _ce, meta, e.support_x, e.support_y), e.query_x)
    theirs = metric.predict(headless, meta, metric.adapt(headless, _ce, meta, e.support_x, e.support_y), e.query_x)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), rtol=1e-12, atol=1e-14)
    g, h = (x.episode_gradient(n, _ce, meta, e)[0] for x, n in ((replace(fine, inner_steps=9), net), (metric, headless)))
    for k in g:
        torch.testing.assert_close(g[k], h[k], rtol=1e-10, atol=1e-13)


def test_a_zero_head_begins_without_an_opinion_and_learns() -> None:
    learner, e = FineTune(inner_lr=0.5, inner_steps=50, start="zero"), _episode()
    meta = _meta(learner)
    none = replace(learner, inner_steps=0).adapt(_net(), _ce, meta, e.support_x, e.support_y)
    assert float(_ce(learner.predict(_net(), meta, none, e.support_x), e.support_y)) == pytest.approx(math.log(3))
    task = learner.adapt(_net(), _ce, meta, e.support_x, e.support_y)
    assert float(_ce(learner.predict(_net(), meta, task, e.support_x), e.support_y)) < 0.3 * math.log(3)


def test_a_net_that_is_no_chain_counts_as_one_block() -> None:
    learner, e = FineTune(inner_lr=0.2, inner_steps=3, layer_decay=0.5, start="random"), _episode()
    whole = _net()._replace(blocks=())
    meta = _meta(learner)
    found = learner.adapt(whole, _ce, meta, e.support_x, e.support_y)
    body = [k for i in range(1, 5) for k in _layer(i)]
    expected = _by_torch(learner, meta, [(body, 0.1), (_layer(5), 0.2)], 3)
    for k, v in expected.items():
        torch.testing.assert_close(found[k], v, rtol=1e-12, atol=1e-14)
    frozen = replace(learner, frozen=1).adapt(whole, _ce, meta, e.support_x, e.support_y)
    assert all(torch.equal(frozen.get(k, meta[k]), meta[k]) for k in body)


def test_norm_parameters_are_not_tuned() -> None:
    net = conv4((1, 8, 8), 3, Conv4(4, layers=2))
    learner = FineTune(inner_steps=2)
    meta = learner.init(net, Generator().manual_seed(0))
    x, y = torch.randn(6, 1, 8, 8, generator=Generator().manual_seed(0)), torch.eye(3).repeat(2, 1)
    task = learner.adapt(net, _ce, meta, x, y)
    assert set(task) == {f"net/{k}/{n}" for k in ("conv1", "conv2", "head") for n in ("weight", "bias")}


def test_looks_at_a_net_whose_head_was_dropped_are_looks_at_its_body() -> None:
    whole, body, tasks = mlp(4, 3, hidden=(7, 5)), mlp(4, None, hidden=(7, 5)), Blobs(dimensions=4)
    learner, shape = FineTune(inner_steps=1), tasks.shape(ways=3, shots=1, queries=1)
    meta, x = learner.init(whole, Generator().manual_seed(0)), torch.randn(8, 4, generator=Generator().manual_seed(0))
    ours, theirs = (measure.looks(net, learner, tasks, meta, shape, x) for net in (whole, body))
    assert {k: v for k, v in ours.items() if k != "latency_ms"} == {k: v for k, v in theirs.items() if k != "latency_ms"}
    assert ours["flops"] == 2 * (4 * 7 + 7 * 5)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"inner_lr": -1.0}, "inner_lr >= 0"), ({"layer_decay": float("nan")}, "layer_decay >= 0"), ({"frozen": -1}, "frozen >= 0"),
    ({"unfreeze_every": -1}, "unfreeze_every >= 0"), ({"start": "cold"}, "zero, random, prototypes, kept"),
])
def test_wrong_fields_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FineTune(**wrong)  # type: ignore[arg-type]


def test_prototypes_are_of_classes_alone() -> None:
    """Values are no labels: their weighted means are no place for a head to begin at."""
    waves = Sinusoid()
    shape = waves.shape(ways=1, shots=5, queries=5)
    with pytest.raises(ValueError, match=r"means of classes, but Sinusoid is of regression\. Choose zero or kept"):
        FineTune().check(waves, shape)
    FineTune().check(Blobs(), Blobs().shape(ways=3, shots=1, queries=1))
    starts: tuple[Head, ...] = ("zero", "kept", "random")
    for start in starts:
        FineTune(start=start).check(waves, shape)


@pytest.mark.parametrize("learner", [FineTune(start="random"), FineTune(start="kept"), BaselinePP()], ids=str)
def test_a_drawn_head_needs_a_net_with_one(learner: Learner) -> None:
    with pytest.raises(ValueError, match="needs a net with a head"):
        learner.init(mlp(4, None), Generator().manual_seed(0))


# Baseline++ -------------------------------------------------------------------------------------------------------------------


def test_baseline_pp_compares_directions_alone() -> None:
    z, w = (torch.randn(n, 5, generator=Generator().manual_seed(n), dtype=torch.float64) for n in (4, 3))
    expected = 2 * F.cosine_similarity(z[:, None], w[None], dim=-1)
    torch.testing.assert_close(cosines(z, w, 2.0), expected)
    torch.testing.assert_close(cosines(3 * z, 0.2 * w, 2.0), expected)
    assert float(cosines(z, w, 10.0).abs().max()) <= 10
    assert [scale_for(n) for n in (5, 64, 200, 201, 4112)] == [2, 2, 2, 10, 10]


def test_baseline_pp_trains_its_head_as_torch_does_and_nothing_else() -> None:
    learner, e, net = BaselinePP(inner_lr=0.1, inner_steps=8), _episode(), _net()
    meta = _meta(learner)
    assert "net/head/weight" in meta
    assert "net/head/bias" not in meta
    w = meta["net/head/weight"].clone().requires_grad_()
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, dampening=0.9, weight_decay=1e-3)
    z = net.embed(meta, e.support_x)
    for _ in range(8):
        optimizer.zero_grad()
        _ce(2 * F.cosine_similarity(z[:, None], w[None], dim=-1), e.support_y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    task = learner.adapt(net, _ce, meta, e.support_x, e.support_y)
    assert set(task) == {"net/head/weight"}
    torch.testing.assert_close(task["net/head/weight"], w.detach(), rtol=1e-11, atol=1e-13)


def test_longer_features_do_not_win_in_baseline_pp() -> None:
    """A linear head takes the class whose features are longer; a cosine head does not see lengths."""
    net, y = identity(2), torch.eye(2)
    support = torch.tensor([[1.0, 0.1], [0.0, 30.0]])
    query = torch.tensor([[1.0, 0.6]])  # nearer in angle to the first class
    learner = BaselinePP(start="prototypes", inner_steps=20)
    assert int(learner.predict(net, {}, learner.adapt(net, _ce, {}, support, y), query).argmax()) == 0
    linear = support @ query[0]  # what a linear head at the class means says
    assert int(linear.argmax()) == 1


# nearest centroid -------------------------------------------------------------------------------------------------------------


def test_centroid_is_the_closed_form_on_raw_inputs() -> None:
    e, net = _episode(3), identity(4)
    means = torch.stack([e.support_x[e.support_y[:, c] == 1].mean(0) for c in range(3)])
    for distance, expected in (
        ("euclid", -torch.cdist(e.query_x, means) ** 2), ("cosine", F.cosine_similarity(e.query_x[:, None], means, dim=-1)),
    ):
        learner = Centroid(distance)  # type: ignore[arg-type]
        found = learner.predict(net, {}, learner.adapt(net, _ce, {}, e.support_x, e.support_y), e.query_x)
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="'manhattan'"):
        Centroid("manhattan")  # type: ignore[arg-type]


def test_nothing_is_learnt_by_a_centroid() -> None:
    net, e = mlp(4, None, hidden=(5,)), _episode()
    meta = _meta(Centroid(), net)
    grads, told = Centroid().episode_gradient(net, _ce, meta, e)
    assert set(grads) == set(meta)
    assert all(not g.any() for g in grads.values())
    assert float(told["loss"]) > 0


def test_the_identity_has_no_weights_and_keeps_what_it_is_given() -> None:
    net = identity((2, 3, 4))
    assert net.init(Generator().manual_seed(0)) == {}
    assert (net.features, net.maps, net.outputs) == (24, (2, 3, 4), 0)
    x = torch.randn(5, 2, 3, 4, generator=Generator().manual_seed(0))
    assert torch.equal(net.embed({}, x), x.flatten(1))
    assert measure.flops(net, {}, (2, 3, 4)) == 0
    with pytest.raises(ValueError, match="at least 1"):
        identity((2, 0))


def _pixels(tasks: TaskDistribution, ways: int, shots: int, episodes: int) -> float:
    shape = tasks.shape(ways=ways, shots=shots, queries=15)
    opened = open_test(tasks, lambda row: None)
    generator, means = Generator().manual_seed(0), []
    for _ in range(episodes // 100):
        drawn = opened.sample_episodes(100, shape=shape, generator=generator)
        means.append(scores(identity(shape.x), Centroid(), tasks, {}, drawn).mean())
    return float(torch.stack(means).mean())


# Five standard errors of our episodes and 600 of the reference's together: a false alarm in 6e-7.
@pytest.mark.parametrize(("ways", "shots", "episodes", "published", "within"), [
    (5, 1, 1000, 0.434, 0.022), (5, 5, 1000, 0.623, 0.023), (20, 1, 300, 0.238, 0.018),
])
def test_centroids_of_omniglot_pixels_give_the_known_accuracy(
    data: Path, ways: int, shots: int, episodes: int, published: float, within: float,
) -> None:
    assert _pixels(Omniglot(str(data / "omniglot")), ways, shots, episodes) == pytest.approx(published, abs=within)


@pytest.mark.parametrize(("normalise", "shots", "published"), [
    ("train", 1, 0.307), ("train", 5, 0.392), ("none", 1, 0.290), ("none", 5, 0.417),
])
def test_centroids_of_cifar_fs_pixels_give_the_known_accuracy(
    data: Path, normalise: str, shots: int, published: float,
) -> None:
    tasks = ClassArrays(str(data / "cifar" / "cifar100_100.npz"), normalise=normalise)  # type: ignore[arg-type]
    assert _pixels(tasks, 5, shots, 1000) == pytest.approx(published, abs=0.022)


# joint training ---------------------------------------------------------------------------------------------------------------


def test_predicting_nothing_costs_4252_and_the_best_blind_answer_3006() -> None:
    """E[a^2] / 2 = 4.252, and -(2/pi) 2.55 cos x leaves 3.006. Standard errors of 4,000 waves: .08; five of them."""
    tasks = Sinusoid()
    shape = tasks.shape(ways=1, shots=1, queries=50)
    e = tasks.sample_episodes(4000, split="train", shape=shape, generator=Generator().manual_seed(0))
    blind = -(2 / math.pi) * 2.55 * torch.cos(e.query_x)
    assert float(e.query_y.square().mean()) == pytest.approx(4.252, abs=0.4)
    assert float((e.query_y - blind).square().mean()) == pytest.approx(3.006, abs=0.3)
    worse = [float((e.query_y - c * torch.cos(e.query_x)).square().mean()) for c in (-1.3, -1.95)]
    assert min(worse) > float((e.query_y - blind).square().mean()), "1.623 is the best factor"


def test_joint_training_sees_supports_and_queries_alike_and_does_not_adapt() -> None:
    net, e = mlp(4, 3, hidden=(6,), act="tanh"), _episode()
    learner = Joint(inner_lr=0.1, inner_steps=5)
    meta = _meta(learner, net)
    swapped = e._replace(support_x=e.query_x, support_y=e.query_y, query_x=e.support_x, query_y=e.support_y)
    one, two, bare = (x.episode_gradient(net, _ce, meta, f)[0] for x, f in ((learner, e), (learner, swapped), (Joint(), e)))
    for k in one:
        torch.testing.assert_close(one[k], two[k], rtol=1e-12, atol=1e-14)
        assert torch.equal(one[k], bare[k]), "steps are for the test alone"


def test_joint_training_tunes_when_tested() -> None:
    net, e = mlp(4, 3, hidden=(6,), act="tanh"), _episode()
    meta = _meta(Joint(), net)
    outputs = []
    for learner in (Joint(0.1, 3), MAML(0.1, 3)):
        task = learner.adapt(net, _ce, meta, e.support_x, e.support_y)
        outputs.append(learner.predict(net, meta, task, e.query_x))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-14)


def test_joint_training_of_class_tasks_is_refused_before_it_starts() -> None:
    from metasearch.objectives import Infeasible
    from metasearch.objectives.optimizer import adam
    from metasearch.objectives.recipe import Recipe
    from metasearch.objectives.train import Train

    tasks = task_room.build("blobs", {})
    shape = tasks.shape(ways=5, shots=1, queries=1)
    with pytest.raises(Infeasible, match="Joint learns tasks of regression"):
        Train(lambda config, shape: Recipe(mlp(shape.x, 5), Joint(), adam(0.01), 1, 1), tasks, shape).built({})
