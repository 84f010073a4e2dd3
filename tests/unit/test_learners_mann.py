"""MANN: least recently used access step by step, what is seen when, and that its memory remembers."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from metasearch.learners import Learner
from metasearch.learners._embedding import standard
from metasearch.learners.mann import EPS, MANN, State, cosine, least_used
from metasearch.learners.prototypical import Prototypical
from metasearch.nets import Params, lstm
from metasearch.nets.mlp import mlp
from metasearch.objectives import Trial, parcel
from metasearch.objectives.episodic import mean_gradient, with_noise
from metasearch.objectives.optimizer import adam, by_prefix, clipped_norm
from metasearch.objectives.recipe import Recipe, RecipeOf
from metasearch.objectives.train import Train
from metasearch.objectives.training import generator
from metasearch.records import Config, Proposal
from metasearch.tasks import Episode, TaskShape
from metasearch.tasks.blobs import Blobs
from metasearch.track.statistics import accuracy_by_instance

SMALL = MANN(hidden=6, slots=7, width=4, heads=2, sharpness=2.0)
NET = mlp(3, 3, hidden=(5,), act="tanh")


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _meta(learner: MANN = SMALL) -> Params:
    return {k: v.double() for k, v in learner.init(NET, Generator().manual_seed(0)).items()}


def _labels(*labels: int) -> Tensor:
    return torch.eye(3, dtype=torch.float64)[list(labels)]


def _busy(learner: MANN = SMALL, seed: int = 0) -> State:
    """A state as it may be in the middle of a sequence."""
    return learner.begin(_randn(1)) | {
        "memory": _randn(learner.slots, learner.width, seed=seed), "usage": _randn(learner.slots, seed=seed + 1).abs(),
        "reads": _randn(learner.heads, learner.slots, seed=seed + 2).softmax(-1),
    }


def _accessed(learner: MANN, state: State, gate: float, seed: int = 0) -> tuple[State, Tensor, Tensor]:
    keys, written = _randn(learner.heads, learner.width, seed=seed + 5), _randn(learner.heads, learner.width, seed=seed + 6)
    gates = torch.full((learner.heads, 1), gate, dtype=torch.float64)
    return learner.access(state, keys, written, gates), keys, written


def test_a_closed_gate_writes_to_the_least_used_slots_alone() -> None:
    state = _busy()
    after, _, written = _accessed(SMALL, state, 0.0)
    first, second = state["usage"].argsort()[:2].tolist()
    assert torch.allclose(after["memory"][first], written[0], atol=1e-15)  # what was there is gone
    assert torch.allclose(after["memory"][second], state["memory"][second] + written[1], atol=1e-15)
    others = [i for i in range(SMALL.slots) if i not in (first, second)]
    assert torch.equal(after["memory"][others], state["memory"][others])


def test_an_open_gate_writes_to_where_was_read_last() -> None:
    state = _busy()
    after, _, written = _accessed(SMALL, state, 1.0)
    kept = state["memory"].clone()
    kept[int(state["usage"].argmin())] = 0  # the least used slot is emptied before the write, whatever the gate
    assert torch.allclose(after["memory"], kept + state["reads"].T @ written, atol=1e-14)


def test_reading_and_writing_weights_sum_to_one() -> None:
    state = _busy()
    for gate in (0.0, 0.3, 1.0):
        after, _, _ = _accessed(SMALL, state, gate)
        assert torch.allclose(after["reads"].sum(-1), torch.ones(2, dtype=torch.float64), atol=1e-14)
        used = after["usage"] - 0.95 * state["usage"]  # reads + writes of two heads
        assert float(used.sum()) == pytest.approx(4.0, abs=1e-12)
        assert float((used - after["reads"].sum(0)).sum()) == pytest.approx(2.0, abs=1e-12)


def test_reads_are_a_softmax_of_the_cosine_over_the_new_memory() -> None:
    after, keys, _ = _accessed(SMALL, _busy(), 0.3)
    similar = torch.nn.functional.cosine_similarity(keys[:, None], after["memory"][None], dim=-1)
    assert torch.allclose(cosine(keys, after["memory"]), similar, atol=1e-5)  # EPS beneath the root
    assert torch.allclose(after["reads"], (2.0 * cosine(keys, after["memory"])).softmax(-1), atol=1e-15)
    assert torch.allclose(after["r"], (after["reads"] @ after["memory"]).flatten(), atol=1e-15)


def test_an_empty_slot_is_like_nothing_and_its_cosine_can_be_differentiated() -> None:
    keys, memory = _randn(2, 4), torch.zeros(3, 4, dtype=torch.float64)
    assert not bool(cosine(keys, memory).any())
    slope = torch.func.grad(lambda m: cosine(keys, m).sum())(memory)
    assert torch.allclose(slope, keys.sum(0).expand(3, 4) / EPS**0.5, rtol=1e-12)


def test_least_used_come_in_order() -> None:
    usage = torch.tensor([0.3, 0.1, 0.2, 0.9])
    assert least_used(usage, 2).tolist() == [[False, True, False, False], [False, False, True, False]]
    assert torch.equal(torch.func.vmap(lambda u: least_used(u, 2))(usage[None])[0], least_used(usage, 2))


def test_a_slot_is_not_written_over_before_every_other_one_was() -> None:
    """Least *recently* used access: with closed gates and reads that say nothing, slots are taken in turn."""
    learner = replace(SMALL, heads=1, sharpness=0.0)
    state, taken = learner.begin(_randn(1)), list[int]()
    for t in range(3 * learner.slots):
        before = state["memory"]
        state, _, _ = _accessed(learner, state, 0.0, seed=t)
        taken.append(int((state["memory"] != before).any(dim=1).nonzero().item()))
    for t in range(len(taken) - learner.slots + 1):
        assert len(set(taken[t: t + learner.slots])) == learner.slots


def test_slots_that_are_read_are_kept() -> None:
    """A memory that is looked up again and again outlives many writes: what tells this memory from a ring buffer."""
    learner = replace(SMALL, heads=1, sharpness=200.0)
    kept = torch.tensor([[3.0, 0, 0, 0]], dtype=torch.float64)
    closed = torch.zeros(1, 1, dtype=torch.float64)
    state = learner.access(learner.begin(kept), kept, kept, closed)
    for t in range(3 * learner.slots):
        other = torch.cat([torch.zeros(1, 1, dtype=torch.float64), _randn(1, 3, seed=t)], dim=1)
        state = learner.access(state, kept, other, closed)
    assert torch.allclose(state["r"], kept[0], atol=1e-3)


def test_a_vector_that_was_written_is_recalled_by_its_key() -> None:
    learner = replace(SMALL, heads=1, width=8, slots=12, sharpness=200.0)
    items = torch.eye(8, dtype=torch.float64)
    state = learner.begin(items)
    closed = torch.zeros(1, 1, dtype=torch.float64)
    for item in items:
        state = learner.access(state, item[None], item[None], closed)
    for item in items:
        after = learner.access({**state, "usage": state["usage"]}, item[None], 0 * item[None], closed)
        assert torch.allclose(after["r"], item, atol=1e-6)


def test_a_label_is_seen_one_step_later() -> None:
    meta, x = _meta(), _randn(6, 3)
    before = SMALL.sequence(NET, meta, x, _labels(0, 1, 2, 0, 1, 2))
    for t in range(6):
        labels = [0, 1, 2, 0, 1, 2]
        labels[t] = (labels[t] + 1) % 3
        after = SMALL.sequence(NET, meta, x, _labels(*labels))
        assert torch.equal(after[: t + 1], before[: t + 1])
        assert bool((after[t + 1:] != before[t + 1:]).any(dim=1).all())


def test_an_item_changes_no_output_before_it_by_a_single_bit() -> None:
    meta, x, y = _meta(), _randn(6, 3), _labels(0, 1, 2, 0, 1, 2)
    before = SMALL.sequence(NET, meta, x, y)
    for t in range(6):
        moved = x.clone()
        moved[t] += 1
        after = SMALL.sequence(NET, meta, moved, y)
        assert torch.equal(after[:t], before[:t])
        assert bool((after[t:] != before[t:]).any(dim=1).all())


def test_a_query_is_the_item_that_comes_after_the_supports() -> None:
    meta, x, y, queries = _meta(), _randn(6, 3), _labels(0, 1, 2, 0, 1, 2), _randn(4, 3, seed=1)
    task = SMALL.adapt(NET, lambda output, y: output.sum(), meta, x, y)
    found = SMALL.predict(NET, meta, task, queries)
    for i, query in enumerate(queries):
        wanted = SMALL.sequence(NET, meta, torch.cat([x, query[None]]), torch.cat([y, _labels(0)]))[-1]
        assert torch.allclose(found[i], wanted, atol=1e-13)


def test_the_controller_is_the_shared_lstm_fed_with_what_was_read() -> None:
    """One product for all items is the same as an LSTM step on [item, label before, read]."""
    meta, x, y = _meta(), _randn(5, 3), _labels(0, 1, 2, 0, 1)
    z, late = NET.embed(meta, x), torch.cat([torch.zeros(1, 3, dtype=torch.float64), y[:-1]])
    state, wanted = SMALL.begin(z), []
    for t in range(5):
        before = state
        h, c = lstm.step(meta, "mann/controller", torch.cat([z[t], late[t], before["r"]]), (before["h"], before["c"]))
        told = meta["mann/interface/weight"] @ h + meta["mann/interface/bias"]
        keys, written, gates = told[:8].tanh().view(2, 4), told[8:16].tanh().view(2, 4), told[16:].sigmoid()[:, None]
        state = {"h": h, "c": c, **SMALL.access(before, keys, written, gates)}
        wanted.append(meta["mann/head/weight"] @ torch.cat([h, state["r"]]) + meta["mann/head/bias"])
    assert torch.allclose(SMALL.sequence(NET, meta, x, y), torch.stack(wanted), atol=1e-13)


def test_what_is_written_may_be_the_key() -> None:
    meta = _meta(replace(SMALL, write="key"))
    assert tuple(meta["mann/interface/weight"].shape) == (2 * 4 + 2, 6)
    learner = replace(SMALL, write="key", sharpness=1e4)
    closed = {**meta, "mann/interface/bias": torch.cat([meta["mann/interface/bias"][:8], torch.full((2,), -50.0).double()])}
    closed["mann/interface/weight"] = torch.cat([meta["mann/interface/weight"][:8], torch.zeros(2, 6).double()])
    state = learner.begin(_randn(1))
    after = learner.step(learner.weights(closed), _randn(24), state)
    keys = (closed["mann/interface/weight"][:8] @ after["h"] + closed["mann/interface/bias"][:8]).tanh()
    assert torch.allclose(after["r"], keys, atol=1e-4)  # each head finds its own key, just written


def test_the_loss_is_over_all_steps_of_the_episode_in_the_order_of_the_noise() -> None:
    meta, x, y = _meta(), _randn(6, 3), _labels(0, 1, 2, 2, 1, 0)
    order = torch.tensor([4, 0, 5, 1, 3, 2])
    noise = torch.empty(6, dtype=torch.float64).scatter(0, order, torch.arange(6, dtype=torch.float64))
    e = Episode(x[:2], y[:2], x[2:], y[2:], {"order": noise})

    def mse(output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()

    found = SMALL.episode_loss(NET, mse, meta, e)[0]
    assert torch.allclose(found, mse(SMALL.sequence(NET, meta, x[order], y[order]), y[order]), atol=1e-14)


def test_one_product_over_all_steps_is_the_sum_of_the_steps_gradients() -> None:
    meta, x, y = _meta(), _randn(6, 3), _labels(0, 1, 2, 2, 1, 0)
    e = Episode(x[:2], y[:2], x[2:], y[2:], {"order": _randn(6)})

    def mse(output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()

    ours, _ = SMALL.episode_gradient(NET, mse, meta, e)
    plain, _ = Learner.episode_gradient(SMALL, NET, mse, meta, e)
    assert ours.keys() == plain.keys()
    assert all(torch.allclose(ours[k], plain[k], atol=1e-13) for k in plain)


def test_the_published_network_has_the_published_widths() -> None:
    params = MANN().init(mlp(400, 5, hidden=()), Generator().manual_seed(0))
    assert tuple(params["mann/controller/weight_x"].shape) == (800, 400 + 5 + 160)
    assert tuple(params["mann/head/weight"].shape) == (5, 360)
    assert tuple(params["mann/interface/weight"].shape) == (324, 200)
    assert not any(k.startswith("net/") for k in params)  # pixels, and nothing else


def test_permuted_labels_permute_predictions_when_the_weights_that_touch_them_are_permuted() -> None:
    meta, x, y, places = _meta(), _randn(6, 3), _labels(0, 1, 2, 2, 1, 0), torch.tensor([2, 0, 1])
    there, of_x = dict(meta), meta["mann/controller/weight_x"]  # [4H, features 5 + labels 3 + what was read]
    there["mann/controller/weight_x"] = torch.cat([of_x[:, :5], of_x[:, 5:8][:, places], of_x[:, 8:]], dim=1)
    for key in ("mann/head/weight", "mann/head/bias"):
        there[key] = meta[key][places]
    found = SMALL.sequence(NET, there, x, y[:, places])
    assert torch.allclose(found, SMALL.sequence(NET, meta, x, y)[:, places], atol=1e-12)
    assert not torch.allclose(found, SMALL.sequence(NET, meta, x, y), atol=1e-4)


def test_normed_features_are_blind_to_what_all_features_have_in_common() -> None:
    """A shift and a scale of all features change nothing, nor does what the centre takes off; without the norm they do."""
    meta, x, y = _meta(), _randn(6, 3), _labels(0, 1, 2, 2, 1, 0)
    body = NET.body
    assert body is not None
    moved = NET._replace(body=lambda params, x: 3 * body(params, x) + 7)
    zero, centre = meta | {"mann/centre": torch.zeros(5).double()}, _randn(5)
    off = NET._replace(body=lambda params, x: body(params, x) + centre)
    for normed in (True, False):
        learner = replace(SMALL, normed=normed)
        wanted = learner.sequence(NET, zero, x, y)
        assert torch.allclose(learner.sequence(moved, zero, x, y), wanted, atol=1e-5) == normed
        assert torch.allclose(learner.sequence(off, meta | {"mann/centre": centre}, x, y), wanted, atol=1e-12) == normed
    rows = standard(_randn(4, 5))
    assert torch.allclose(rows.mean(1), torch.zeros(4).double(), atol=1e-14)
    assert torch.allclose(rows.square().mean(1), torch.ones(4).double(), atol=1e-5)  # EPS beneath the root


def test_no_gradient_goes_through_a_frozen_net_and_all_others_stay() -> None:
    meta, x, y = _meta(), _randn(6, 3), _labels(0, 1, 2, 2, 1, 0)
    e = Episode(x[:2], y[:2], x[2:], y[2:], {"order": _randn(6)})

    def mse(output: Tensor, y: Tensor) -> Tensor:
        return (output - y).square().mean()

    free, _ = SMALL.episode_gradient(NET, mse, meta, e)
    frozen, _ = replace(SMALL, frozen=True).episode_gradient(NET, mse, meta, e)
    assert free.keys() == frozen.keys()
    for k in free:
        assert torch.equal(frozen[k], torch.zeros_like(free[k]) if k.startswith("net/") else free[k])
        assert bool(free[k].any())


def test_a_frozen_net_keeps_a_parents_weights_to_the_last_bit(tmp_path: Path) -> None:
    """Although Adam's moments of the parent come with them."""
    tasks = Blobs(dimensions=4, train_classes=64)
    shape = TaskShape((4,), 3, 1, 2)

    def embedding(config: Config, shape: TaskShape) -> Recipe:
        return Recipe(mlp(shape.x, None, hidden=(6,)), Prototypical(), adam(1e-2), meta_batch=2, steps=3)

    def memory(config: Config, shape: TaskShape) -> Recipe:
        learner = replace(SMALL, normed=True, frozen=True)
        return Recipe(mlp(shape.x, 3, hidden=(6,)), learner, by_prefix({"mann/": adam(1e-2)}), meta_batch=2, steps=6)

    def trained(recipe: RecipeOf, name: str, start: Path | None) -> Params:
        def save(step: int, tensors: Params, facts: dict[str, object]) -> str:
            return str(parcel.write(tmp_path / name, tensors, facts))

        study = Train(recipe, tasks, shape, validation_episodes=2, mode="vmap")
        list(study(Proposal({}, seed=0), Trial(0, start=start, save=save)))  # type: ignore[arg-type]
        return {k: v for k, v in parcel.read(tmp_path / name)[0].items() if k.startswith("meta/")}

    theirs = trained(embedding, "a.safetensors", None)
    ours = trained(memory, "b.safetensors", tmp_path / "a.safetensors")
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    begun = replace(SMALL, normed=True).init(mlp((4,), 3, hidden=(6,)), generator(0, "init"))
    assert all(not torch.equal(ours[f"meta/{k}"], v) for k, v in begun.items())  # of both, nothing is as it was drawn


def test_sizes_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="3 heads and 2 slots"):
        MANN(heads=3, slots=2)
    with pytest.raises(ValueError, match="`width >= 1`"):
        MANN(width=0)
    with pytest.raises(ValueError, match="'add' or 'key'"):
        MANN(write="neither")  # type: ignore[arg-type]


def test_it_learns_to_bind_a_class_to_its_label_the_first_time_it_is_seen() -> None:
    """Three new classes of blobs, four drawings of each in a row: right from the second time on, and never better than a guess
    the first time (a third at the beginning, two thirds at the last new class: one half on the average)."""
    tasks, shape = Blobs(dimensions=8, separation=3.0, train_classes=512), TaskShape((8,), 3, 2, 2)
    net, learner = mlp((8,), 3, hidden=()), MANN(hidden=50, slots=8, width=20, heads=1, sharpness=10.0)
    generator, optimizer = Generator().manual_seed(1), clipped_norm(adam(1e-2), 10.0)
    meta = learner.init(net, Generator().manual_seed(0))
    state = optimizer.init(meta)
    for _ in range(250):
        episodes = tasks.sample_episodes(32, split="train", shape=shape, generator=generator)
        episodes = with_noise(learner, episodes, shape, generator)
        grads, _ = mean_gradient(learner, net, tasks.loss, meta, episodes, "vmap", None)
        meta, state = optimizer.update(grads, state, meta, optimizer.rates, torch.zeros(()))
    e = tasks.sample_episodes(200, split="val", shape=shape, generator=generator)
    x, y = torch.cat([e.support_x, e.query_x], 1), torch.cat([e.support_y, e.query_y], 1)
    with torch.no_grad():
        outputs = torch.stack([learner.sequence(net, meta, a, b) for a, b in zip(x, y, strict=True)])
    right = (outputs.argmax(-1) == y.argmax(-1)).numpy()
    by_instance = accuracy_by_instance(right, y.argmax(-1).numpy())
    assert by_instance[0] < 0.65
    assert all(by_instance[1:] > 0.7), by_instance
