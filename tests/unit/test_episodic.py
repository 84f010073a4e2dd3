"""The trainer: modes agree, a resumed trial is the undisturbed one, divergence ends a trial with a step and a reason."""
from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metasearch import tasks as task_room
from metasearch.learners import Learner
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.learners.relation import Relation
from metasearch.learners.siamese import Siamese
from metasearch.nets import Net, Params
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm
from metasearch.objectives import Diverged, Infeasible, Mode, Trial, parcel
from metasearch.objectives.episodic import block_steps, draw_block, outer_step
from metasearch.objectives.evaluation import outputs, scores, similarities
from metasearch.objectives.optimizer import adam, sgd
from metasearch.objectives.pretrain import Pretrain
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.train import Train
from metasearch.objectives.training import _go_on
from metasearch.records import Config, Proposal, Report
from metasearch.tasks import Episode, TaskShape
from metasearch.tasks.blobs import Blobs

TASKS = task_room.build("sinusoid", {})
SHAPE = TASKS.shape(ways=1, shots=5, queries=5)


def recipe(config: Config, shape: TaskShape) -> Recipe:
    net = mlp(shape.x, shape.ways, hidden=(20, 20), act="tanh")
    learner = MAML(inner_lr=float(config.get("inner_lr", 0.02)))
    return Recipe(net, learner, adam(0.01), meta_batch=4, steps=40)


TRAIN = Train(recipe, TASKS, SHAPE, validation_episodes=20, mode="vmap", report_every=10)


def _save(folder: Path, step: int, tensors: Any, facts: Any) -> str:
    return str(parcel.write(folder / f"{step}.safetensors", tensors, facts))


def _trial(folder: Path, **given: Any) -> Trial:
    return Trial(0, save=functools.partial(_save, folder), **given)


def _run(train: Train, trial: Trial, config: Config | None = None, **proposal: Any) -> list[Report]:
    return list(train(Proposal(config or {}, seed=7, **proposal), trial))


def test_training_improves_the_score(tmp_path: Path) -> None:
    short, long = _run(replace(TRAIN, steps=1), _trial(tmp_path)), _run(replace(TRAIN, steps=400), _trial(tmp_path))
    assert long[-1].score > short[-1].score + 0.5  # type: ignore[operator]
    assert long[-1].step == 400
    assert len(long[-1].episodes or ()) == 20
    assert long[-1].score == pytest.approx(sum(long[-1].episodes) / 20, rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_resumed_trial_ends_bit_for_bit_as_the_undisturbed_one(tmp_path: Path, keep: str) -> None:
    train = replace(TRAIN, keep=keep)  # type: ignore[arg-type]
    whole = _run(train, _trial(tmp_path / "whole"))
    trial = _trial(tmp_path / "cut")
    generator: Iterator[Report] = train(Proposal({}, seed=7), trial)
    for report in generator:
        if report.step == 20:
            break
    generator.close()  # type: ignore[attr-defined]
    rest = _run(train, replace(trial, start=tmp_path / "cut" / "20.safetensors", own=True))
    assert rest[-1].score == whole[-1].score
    assert rest[-1].episodes == whole[-1].episodes
    ours, theirs = (parcel.read(tmp_path / f / "40.safetensors")[0] for f in ("cut", "whole"))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_resumed_trial_reports_at_the_steps_of_the_undisturbed_one(tmp_path: Path) -> None:
    train = replace(TRAIN, keep="best", report_every=None)  # ten times in a trial: what is validated decides what is kept
    parent = _run(train, _trial(tmp_path / "parent"), until=4)
    for start, until in ((None, 40), (Path(parent[-1].checkpoint or ""), 34)):
        whole = _run(train, _trial(tmp_path / f"whole-{until}", start=start), until=until, parent=0)
        cut = next(r for r in whole if r.step > 20)
        rest = _trial(tmp_path / "rest", start=tmp_path / f"whole-{until}" / f"{cut.step}.safetensors", own=True)
        again = _run(train, rest, until=until, parent=0)
        assert [r.step for r in again] == [r.step for r in whole if r.step > cut.step]
        assert again[-1].score == whole[-1].score


def _told(report: Report) -> dict[str, float]:
    return {k: v for k, v in report.metrics.items() if not k.endswith(("seconds", "_ms"))}


@pytest.mark.parametrize("every", [10, 15])
def test_the_last_report_says_the_loss_of_the_steps_before_it_after_an_interruption_too(tmp_path: Path, every: int) -> None:
    """Also where a trial is taken up behind its last step, because the report was lost and the parcel was not."""
    train, single = replace(TRAIN, report_every=every), replace(TRAIN, report_every=1)
    whole = _run(train, _trial(tmp_path))
    losses = [r.metrics["train_loss"] for r in _run(single, Trial(0))]
    last = 40 % every or every
    assert whole[-1].metrics["train_loss"] == pytest.approx(sum(losses[-last:]) / last, rel=1e-5)
    for step in (every, 40):
        again = _run(train, _trial(tmp_path / "again", start=tmp_path / f"{step}.safetensors", own=True))
        assert _told(again[-1]) == _told(whole[-1])
        assert again[-1].score == whole[-1].score


def test_a_report_says_the_mean_of_all_losses_since_the_last_one(tmp_path: Path) -> None:
    """However many they are."""
    losses = [r.metrics["train_loss"] for r in _run(replace(TRAIN, report_every=1, steps=130), Trial(0))]
    told = [r.metrics["train_loss"] for r in _run(replace(TRAIN, report_every=120, steps=130), Trial(0))]
    assert told == [pytest.approx(sum(losses[:120]) / 120, rel=1e-5), pytest.approx(sum(losses[120:]) / 10, rel=1e-5)]


def test_until_ends_a_segment_and_a_child_goes_on_from_its_parents_step(tmp_path: Path) -> None:
    first = _run(TRAIN, _trial(tmp_path / "a"), until=10)
    assert first[-1].step == 10
    child = _run(TRAIN, _trial(tmp_path / "b", start=Path(first[-1].checkpoint or "")), until=20, parent=0)
    assert [r.step for r in child] == [20]
    alone = _run(TRAIN, _trial(tmp_path / "c"), until=20)
    # the child saw the same blocks of episodes from the same state, so it is the run that was never cut
    assert child[-1].score == alone[-1].score


def test_what_the_optimiser_knew_of_a_tensor_comes_along_with_the_tensor(tmp_path: Path) -> None:
    """A layer that is new in a child, or of another shape, begins anew, and so do its moments and its count."""
    meta = {f"net/{k}/weight": torch.ones(3, 2) for k in ("kept", "wider", "new")}
    state = {f"weights/{k}": v for k, v in adam(0.01).init(meta).items()}
    theirs = {**meta, "net/wider/weight": torch.ones(2, 2)}
    del theirs["net/new/weight"]
    rule = adam(0.01)
    known = rule.init(theirs)
    for _ in range(5):
        theirs, known = rule.update(theirs, known, theirs, rule.rates, torch.tensor(0.0))
    tensors = {f"meta/{k}": v for k, v in theirs.items()} | {f"state/weights/{k}": v for k, v in known.items()}
    child = Proposal({}, parent=1, until=9)
    found, after, _ = _go_on(Trial(2), tensors, {}, meta, state, child, torch.device("cpu"))
    assert torch.equal(found["net/kept/weight"], theirs["net/kept/weight"])
    counts = {k: float(after[f"weights/count/net/{k}/weight"]) for k in ("kept", "wider", "new")}
    assert counts == {"kept": 5, "wider": 0, "new": 0}
    assert torch.equal(after["weights/first/net/kept/weight"], known["first/net/kept/weight"])

    older = {k: v for k, v in tensors.items() if "/count/" not in k} | {"state/weights/count": torch.tensor(5.0)}
    _, after, _ = _go_on(Trial(2), older, {}, meta, state, child, torch.device("cpu"))
    assert float(after["weights/count/net/kept/weight"]) == 5, "parcels used to have one count for all"
    assert float(after["weights/count/net/new/weight"]) == 0


def test_a_restart_instead_of_a_promotion_would_be_noticed(tmp_path: Path) -> None:
    first = _run(TRAIN, _trial(tmp_path / "a"), until=30)
    child = _run(TRAIN, _trial(tmp_path / "b", start=Path(first[-1].checkpoint or "")), until=40, parent=0)
    restarted = _run(TRAIN, _trial(tmp_path / "c"), until=10)
    assert child[-1].score != restarted[-1].score


def test_divergence_ends_a_trial_with_step_and_reason(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"step \d+: the outer loss is (nan|inf)") as caught:
        _run(replace(TRAIN, steps=2000), _trial(tmp_path), {"inner_lr": 1e25})
    assert 1 <= caught.value.step <= 60, "and not after 2,000 steps"


def test_loop_vmap_and_compiled_take_the_same_steps() -> None:
    made = recipe({}, SHAPE)
    episodes = draw_block(made, TASKS, SHAPE, 3, 0, 0)
    ends: dict[Mode, dict[str, torch.Tensor]] = {}
    for mode in ("loop", "vmap", "compiled"):
        meta = made.net.init(torch.Generator().manual_seed(0))
        state = made.optimizer.init(meta)
        step = outer_step(made, TASKS.loss, mode)  # type: ignore[arg-type]
        for i in range(3):
            meta, state, _ = step(meta, state, episodes.select(slice(4 * i, 4 * i + 4)), i / 3)
        ends[mode] = meta  # type: ignore[index]
    for mode in ("vmap", "compiled"):
        for k, v in ends["loop"].items():
            torch.testing.assert_close(ends[mode][k], v, rtol=1e-3, atol=1e-5)  # type: ignore[index]


@pytest.mark.slow
def test_another_inner_rate_hits_the_compiled_program() -> None:
    """Rates are tensors for the compiler: three trials, one compilation."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    made = recipe({}, SHAPE)
    episodes = draw_block(made, TASKS, SHAPE, 1, 0, 0)
    step = outer_step(made, TASKS.loss, "compiled")
    meta = made.net.init(torch.Generator().manual_seed(0))
    step(meta, made.optimizer.init(meta), episodes, 0.0)
    first = counters["stats"]["unique_graphs"]
    assert first >= 1
    for progress in (0.25, 0.5):
        step(meta, made.optimizer.init(meta), episodes, progress)
    assert counters["stats"]["unique_graphs"] == first
    assert sum(counters["graph_break"].values()) == 0


def test_two_devices_take_the_step_of_one() -> None:
    made = recipe({}, SHAPE)
    episodes = draw_block(made, TASKS, SHAPE, 1, 0, 0).select(slice(0, 3))  # uneven: 2 + 1
    meta = made.net.init(torch.Generator().manual_seed(0))
    one, _, m1 = outer_step(made, TASKS.loss, "vmap")(meta, made.optimizer.init(meta), episodes, 0.0)
    two, _, m2 = outer_step(made, TASKS.loss, "vmap", devices=("cpu", "cpu"))(meta, made.optimizer.init(meta), episodes, 0.0)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(m1["loss"], m2["loss"])


def test_the_mode_is_asked_for_once_and_measured_only_when_nobody_knows(tmp_path: Path) -> None:
    asked: list[str] = []

    def known(signature: str, measure: Any) -> Mode:
        asked.append(signature)
        return "loop"

    def unknown(signature: str, measure: Any) -> Mode:
        seconds = measure()
        assert set(seconds) == {"loop", "vmap"}, "a run of forty steps never earns a compilation"
        assert all(s > 0 for s in seconds.values())
        asked.append(signature)
        return min(seconds, key=lambda m: seconds[m])  # type: ignore[return-value]

    train = replace(TRAIN, mode="auto")
    _run(train, _trial(tmp_path, mode=known))
    _run(train, _trial(tmp_path, mode=unknown))
    _run(train, _trial(tmp_path, mode=known), {"inner_lr": 0.05})
    assert len(asked) == 3
    assert len(set(asked)) == 1, "another rate is the same signature"


def test_keep_best_ends_with_a_report_that_names_the_step_it_went_back_to(tmp_path: Path) -> None:
    # a rate that is fine at first and then too large: the last step is not the best
    def worsening(config: Config, shape: TaskShape) -> Recipe:
        return replace(recipe(config, shape), optimizer=sgd(0.02, schedule=lambda p: torch.where(p < 0.5, 1.0, -3.0)))

    reports = _run(replace(TRAIN, recipe=worsening, keep="best"), _trial(tmp_path))
    best = max(reports[:-1], key=lambda r: r.score if r.score is not None else -1e9)
    assert reports[-1].metrics["kept_step"] == best.step < 40
    assert reports[-1].score == pytest.approx(best.score)
    assert reports[-2].score < reports[-1].score  # type: ignore[operator]


@pytest.mark.parametrize("better", [True, False])
def test_keep_best_leaves_a_parcel_with_the_weights_of_the_score(tmp_path: Path, better: bool) -> None:
    """Whether or not the last step is the best, and also after a trial that was taken up at its very end."""
    def turning(config: Config, shape: TaskShape) -> Recipe:
        after = 1.0 if better else -3.0
        return replace(recipe(config, shape), optimizer=sgd(0.02, schedule=lambda p: torch.where(p < 0.5, 1.0, after)))

    train = replace(TRAIN, recipe=turning, keep="best")
    whole = _run(train, _trial(tmp_path))
    assert ("kept_step" not in whole[-1].metrics) == better
    for _ in range(2):
        tensors, facts = parcel.read(tmp_path / "40.safetensors")
        assert any(k.startswith("best/") for k in tensors) == ("best_score" in facts) == (not better)
        prefix = parcel.scored(tensors, whole[-1].metrics)
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        made = turning({}, SHAPE)
        found = scores(made.net, made.learner.at(1.0), TASKS, weights, train.bank.episodes)
        assert found.mean().item() == pytest.approx(whole[-1].score)
        again = _run(train, _trial(tmp_path, start=tmp_path / "40.safetensors", own=True))
        assert len(again) == (1 if better else 2)
        for ours, theirs in zip(again, whole[-len(again):], strict=True):
            assert ours.score == pytest.approx(theirs.score)
            assert _told(ours) == pytest.approx(_told(theirs))


def test_same_seed_same_episodes_whatever_the_block() -> None:
    made = recipe({}, SHAPE)
    again = draw_block(made, TASKS, SHAPE, 2, 5, 3)
    torch.testing.assert_close(draw_block(made, TASKS, SHAPE, 2, 5, 3), again)
    assert not torch.equal(draw_block(made, TASKS, SHAPE, 2, 5, 4).support_x, again.support_x)
    assert not torch.equal(draw_block(made, TASKS, SHAPE, 2, 6, 3).support_x, again.support_x)
    assert block_steps(SHAPE, 4, 40) == 100
    assert block_steps(TaskShape((3, 84, 84), 60, 5, 15), 4, 40) == 1


def test_a_config_that_the_recipe_refuses_is_infeasible() -> None:
    def refusing(config: Config, shape: TaskShape) -> Recipe:
        raise ValueError("a square net needs square pictures")

    with pytest.raises(Infeasible, match="square"):
        _run(replace(TRAIN, recipe=refusing), Trial(0))


def test_a_config_whose_training_episodes_the_tasks_cannot_give_is_infeasible() -> None:
    """Unless its training draws none: pre-training reads single pictures, and says only how many by the shape of episodes."""
    few = task_room.build("blobs", {"train_classes": 12})
    shape = few.shape(ways=5, shots=1, queries=2)

    def wide(config: Config, shape: TaskShape) -> Recipe:
        net = mlp(shape.x, None, norm=Norm() if "norm" in config else None, mode=config.get("norm", "none"))  # type: ignore[arg-type]
        made = Recipe(net, Prototypical(), adam(0.01), 1, 2, shape._replace(ways=20))
        return replace(made, fit=Pretrain()) if config["pretrained"] else made

    train = Train(wide, few, shape, validation_episodes=4, mode="vmap")
    configs: list[Config] = [{"pretrained": False}, {"pretrained": True, "norm": "inductive"}]
    for refused in configs:
        with pytest.raises(Infeasible, match=r"cannot be drawn: .*12 classes"):
            _run(train, Trial(0), refused)
    assert _run(train, Trial(0), {"pretrained": True})[-1].score is not None


def test_the_norm_mode_decides_what_a_query_may_see() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 1, 8, 8, generator=generator)
    y = torch.eye(2)[torch.tensor([[0, 1, 0, 1]] * 2)]
    query_x, labels = torch.randn(2, 6, 1, 8, 8, generator=generator), torch.randint(2, (2, 6), generator=generator)
    episodes = Episode(x, y, query_x, torch.eye(2)[labels])
    alone = episodes._replace(query_x=episodes.query_x[:, :1], query_y=episodes.query_y[:, :1])
    def first(mode: str, which: Episode) -> torch.Tensor:
        net = conv4((1, 8, 8), None, Conv4(8, layers=2), mode=mode)  # type: ignore[arg-type]
        meta = net.init(torch.Generator().manual_seed(1))
        return torch.cat([o[:, 0] for o, _ in outputs(net, Prototypical(), TASKS, meta, which, mode="loop")])

    torch.testing.assert_close(first("semi", episodes), first("semi", alone))
    assert not torch.allclose(first("transductive", episodes), first("transductive", alone))


def test_scores_are_the_same_in_a_loop_and_under_vmap() -> None:
    made = recipe({}, SHAPE)
    meta = made.net.init(torch.Generator().manual_seed(0))
    bank = TASKS.bank("val", 30, seed=0, shape=SHAPE)
    loop = scores(made.net, made.learner, TASKS, meta, bank.episodes, mode="loop")
    mapped = scores(made.net, made.learner, TASKS, meta, bank.episodes, mode="vmap", chunk=7)
    torch.testing.assert_close(loop, mapped, rtol=1e-4, atol=1e-5)
    assert loop.shape == (30,)
    assert scores(made.net, made.learner, TASKS, meta, bank.episodes.select(slice(0, 0)), mode="loop").shape == (0,)


@pytest.mark.parametrize(("shots", "queries", "chunk"), [(1, 15, None), (5, 15, None), (5, 15, 2), (3, 1, None), (1, 60, 1)])
def test_under_semi_a_net_is_given_no_more_at_once_than_in_the_other_modes(shots: int, queries: int, chunk: int | None) -> None:
    """Nor much less, and the scores are those of one query after another."""
    generator, n = torch.Generator().manual_seed(0), 30
    m, q = 2 * shots, 2 * queries
    y, query_y = (torch.eye(2).repeat(n, k, 1) for k in (shots, queries))
    x, query_x = (torch.randn(n, k, 3, generator=generator) for k in (m, q))
    rows: list[int] = []

    def normed(params: Params, z: torch.Tensor) -> torch.Tensor:
        seen = z
        while torch._C._functorch.is_batchedtensor(seen):
            seen = torch._C._functorch.get_unwrapped(seen)
        rows.append(seen.numel() // 3)
        return (z - z.mean(0)) / z.std(0, correction=0)

    net = Net(lambda generator: {}, normed, features=3, norm="semi")
    tasks, episodes = task_room.build("blobs", {}), Episode(x, y, query_x, query_y)
    mapped = scores(net, Prototypical(), tasks, {}, episodes, mode="vmap", chunk=chunk)
    most = (chunk or 25) * (m + q)
    assert most / 4 < max(rows) <= most
    torch.testing.assert_close(mapped, scores(net, Prototypical(), tasks, {}, episodes, mode="loop"))


def test_a_query_is_compared_with_one_support_of_its_class_and_one_of_another() -> None:
    class Spy(Prototypical):
        """Says whether the second numbers of two inputs, their classes, are equal; notes the first ones."""

        def similarity(self, net: Net, meta: Params, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            seen.append((a[:, 0], b[:, 0]))
            return (a[:, 1] == b[:, 1]).float()

    labels, asked = torch.arange(3).repeat(4), torch.arange(3).repeat(2)
    eye = torch.eye(3)
    support_x = torch.stack([torch.arange(12.0), labels.float()], 1)
    query_x = torch.stack([torch.arange(6.0), asked.float()], 1)
    episodes = Episode(*(t[None].repeat(50, 1, 1) for t in (support_x, eye[labels], query_x, eye[asked])))
    net = Net(lambda generator: {}, lambda params, x: x, features=2)

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    found = similarities(net, Spy(), {}, episodes, seed=0)
    assert found is not None
    said, same = found
    assert same.dtype == torch.bool
    assert torch.equal(said.bool(), same), "pairs said to be of one class are"
    assert int(same.sum()) == len(same) // 2 == 50 * 6
    assert all(torch.equal(b, torch.arange(6.0).repeat(2)) for _, b in seen), "every query twice"
    assert len({float(x) for a, _ in seen for x in a}) == 12, "every support has its turn"
    first, seen = seen, []
    similarities(net, Spy(), {}, episodes, seed=0)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, seen, strict=True)), "equal seeds draw equal pairs"


PAIRED: list[tuple[Learner, Net]] = [
    (Siamese(), mlp(3, None, hidden=(8, 8), norm=Norm(), mode="semi")),
    (Prototypical(), mlp(3, None, hidden=(8, 8), norm=Norm(), mode="semi")),
    (Relation(hidden=4), conv4((1, 8, 8), None, Conv4(4, layers=2), mode="semi")),
]


@pytest.mark.parametrize(("learner", "net"), PAIRED, ids=lambda x: type(x).__name__)
def test_under_semi_a_pair_is_compared_by_the_support_set_and_its_query_alone(learner: Learner, net: Net) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (3,) if isinstance(learner, Siamese | Prototypical) else (1, 8, 8)
    labels, asked = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0, 1, 0])
    e = Episode(torch.randn(1, 4, *x, generator=generator), torch.eye(2)[labels][None],
                torch.randn(1, 6, *x, generator=generator), torch.eye(2)[asked][None])
    meta = learner.init(net, torch.Generator().manual_seed(1))

    def twins(which: Net, queries: int) -> torch.Tensor:
        few = e._replace(query_x=e.query_x[:, :queries], query_y=e.query_y[:, :queries])
        found = similarities(which, learner, meta, few, seed=0)
        assert found is not None
        return found[0][:queries]  # those of one class come first, drawn row by row

    together = twins(net, 6)
    assert len(set(together.tolist())) == 6, "pairs differ"
    for queries in (1, 3):
        torch.testing.assert_close(twins(net, queries), together[:queries])
        open_net = net._replace(norm="transductive")
        assert not torch.allclose(twins(open_net, queries), twins(open_net, 6)[:queries]), "there they see each other"


def test_under_semi_a_pairs_embedding_has_the_statistics_of_the_support_set_and_its_query() -> None:
    """By hand, for a net that is one batch norm and nearness by squared distance."""
    generator = torch.Generator().manual_seed(0)
    support_x, query_x = torch.randn(4, 3, generator=generator), torch.randn(2, 3, generator=generator)
    y = torch.eye(4)
    net = Net(lambda generator: {}, lambda params, x: (x - x.mean(0)) / x.std(0, correction=0), features=3, norm="semi")
    found = similarities(net, Prototypical(), {}, Episode(*(t[None] for t in (support_x, y, query_x, y[[2, 0]]))), seed=0)
    assert found is not None
    for said, place, query in zip(found[0][:2], (2, 0), query_x, strict=True):
        z = net.apply({}, torch.cat([support_x, query[None]]))
        torch.testing.assert_close(said, -(z[place] - z[-1]).square().sum())


def test_learners_that_compare_no_pairs_have_no_similarities() -> None:
    made = recipe({}, SHAPE)
    bank = TASKS.bank("val", 2, seed=0, shape=SHAPE).episodes
    assert similarities(made.net, MAML(), {}, bank, seed=0) is None
    assert similarities(made.net._replace(norm="semi"), MAML(), {}, bank, seed=0) is None
    one = bank._replace(support_y=bank.support_y[..., :1], query_y=bank.query_y[..., :1])
    assert similarities(made.net, Prototypical(), {}, one, seed=0) is None, "one class has no different pairs"


class Counting(Prototypical):
    """Tells counts, and yes or no, among its metrics."""

    def episode_loss(self, net: Net, loss: Any, meta: Params, episode: Episode) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        value, metrics = super().episode_loss(net, loss, meta, episode)
        return value, {**metrics, "rows": torch.ones(7, dtype=torch.long).sum(), "all": (episode.query_x < 99).all()}


class CountedBlobs(Blobs):
    def score(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (output.argmax(-1) == y.argmax(-1)).sum()


@pytest.mark.parametrize("mode", ["loop", "vmap"])
def test_counts_are_metrics_and_scores_like_any_other(mode: Mode) -> None:
    tasks = CountedBlobs(dimensions=4)
    shape = tasks.shape(ways=3, shots=1, queries=2)
    recipe = Recipe(mlp(4, None, hidden=(5,)), Counting(), adam(0.01), meta_batch=2, steps=2)
    train = Train(lambda config, shape: recipe, tasks, shape, validation_episodes=4, mode=mode)
    last = _run(train, Trial(0))[-1]
    assert last.metrics["rows"] == 7
    assert last.metrics["all"] == 1
    assert last.score == sum(last.episodes or ()) / 4
    assert set(last.episodes or ()) <= set(range(7))
