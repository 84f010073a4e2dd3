"""Weight sharing: one sampled net a step, the others' weights get nothing; a controller that learns; resume is bit-equal."""
from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import relaxed_space
import torch
from torch import Generator, Tensor
from torch.utils.flop_counter import FlopCounterMode

from metasearch.driver.study import Study
from metasearch.methods.enas import Controlled
from metasearch.nets import Params
from metasearch.nets.nasbench import Cells
from metasearch.objectives import Infeasible, Trial, parcel
from metasearch.objectives.episodic import mean_gradient
from metasearch.objectives.judged import Judged
from metasearch.objectives.optimizer import Optimizer, adam, sgd
from metasearch.objectives.shared import CANDIDATE_EPISODES, FURTHER_EPISODES, Sampled, Shared, Uniform, narrowed, only
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal, Report
from metasearch.space import Choice, Int, Repeat, Space
from metasearch.strategies.reinforce import Reinforce
from metasearch.tasks import Episode, TaskShape
from metasearch.tasks.blobs import Blobs
from search_spaces import nasbench201

TASKS = Blobs(dimensions=5, train_classes=20, val_classes=10)
SHAPE = TASKS.shape(ways=3, shots=2, queries=3)
CONFIG: Config = {"a": "none", "b": "none", "width": 4}
TRAIN = Train(relaxed_space.recipe, TASKS, SHAPE, validation_episodes=20, mode="vmap", steps=10, report_every=5)
KNOBS = {"batch": 6, "lr": 0.02, "clip": 1.1, "entropy": 1e-4, "hidden": 16, "layers": 1, "init": 0.1, "decay": 0.9}
RANDOM = Shared(
    train=TRAIN, relaxed=relaxed_space.relaxed, space=relaxed_space.SPACE, dims=relaxed_space.RELAXED, steps=20, candidates=20,
)
ENAS = replace(RANDOM, sampler=partial(Controlled, KNOBS), every=2, aggregate=6)


def _trial(folder: Path | None = None, **given: Any) -> Trial:
    def save(step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
        assert folder is not None
        return str(parcel.write(folder / f"{step}.safetensors", tensors, facts))

    return Trial(0, save=None if folder is None else save, **given)


def _run(search: Shared, trial: Trial) -> list[Report]:
    return list(search(Proposal(dict(CONFIG), seed=7), trial))


def _begun(search: Shared) -> tuple[Any, Params, Params]:
    recipe = search.supernet(CONFIG)
    meta = recipe.learner.init(recipe.net, Generator().manual_seed(0))
    weights = {k: v for k, v in meta.items() if not k.startswith("arch/")}
    state = {f"weights/{k}": v for k, v in recipe.optimizer.init(weights).items()}
    return recipe, meta, state | {f"sampler/{k}": v for k, v in search.started(7).tensors().items()}


def test_operations_that_are_not_sampled_get_a_gradient_of_exactly_zero() -> None:
    recipe, meta, _ = _begun(RANDOM)
    episodes = TASKS.sample_episodes(4, split="train", shape=SHAPE, generator=Generator().manual_seed(0))
    net = narrowed(recipe.net, {"a": 2, "b": 0})
    weights = {k: v for k, v in meta.items() if not k.startswith("arch/")}
    for mode in ("vmap", "loop"):
        grads, _ = mean_gradient(recipe.learner, net, TASKS.loss, weights, episodes, mode, None)  # type: ignore[arg-type]
        for k, g in grads.items():
            assert bool(g.any()) == (k == "net/a/see/weight") or k == "net/a/see/bias"


def test_only_what_is_sampled_is_computed() -> None:
    """The weights of all other operations may be missing: in the toy, and in a cell of NAS-Bench-201."""
    recipe, meta, _ = _begun(RANDOM)
    alone = {k: v for k, v in meta.items() if k.startswith(("net/a/see", "net/b/blind"))}
    narrowed(recipe.net, {"a": 2, "b": 1}).apply(alone, torch.ones(2, 5))
    shape = TaskShape((1, 8, 8), 3, 1, 1)
    net = nasbench201.relaxed({}, shape, design=Cells(2, 1)).net
    config = dict.fromkeys(nasbench201.EDGES, "skip_connect") | {"e10": "nor_conv_1x1"}
    numbers = {edge: nasbench201.OPERATIONS.index(op) for edge, op in config.items()}
    params = {k: v for k, v in net.init(Generator().manual_seed(0)).items() if not k.startswith("arch/") and "_3x3" not in k}
    single = nasbench201.recipe(config, shape, design=Cells(2, 1)).net  # type: ignore[arg-type]
    own = {k: params[k] for k in single.init(Generator().manual_seed(0))}
    x = torch.randn(3, 1, 8, 8, generator=Generator().manual_seed(0))
    torch.testing.assert_close(narrowed(net, numbers).embed(params, x), single.embed(own, x))


def test_a_step_of_the_controller_leaves_the_shared_weights_bit_identical() -> None:
    """One step with rewards for the controller, and one without: the same weights; only the controller moved."""
    episodes = TASKS.sample_episodes(8, split="train", shape=SHAPE, generator=Generator().manual_seed(0))
    ends = []
    for search in (replace(ENAS, every=1), replace(ENAS, every=0)):
        recipe, meta, state = _begun(search)
        meta, state, _ = search.step(recipe, "vmap", None, state, 7)(meta, state, episodes, 0.0)
        ends.append((meta, state))
    assert all(torch.equal(ends[0][0][k], ends[1][0][k]) for k in ends[1][0])
    counts = [state["sampler/counts"] for _, state in ends]
    assert not torch.equal(counts[0], counts[1])


@pytest.mark.parametrize("optimizer", [sgd(0.1), sgd(0.1, momentum=0.9), adam(0.1)], ids=["sgd", "momentum", "adam"])
def test_a_fresh_architecture_every_step_and_the_weights_move_only_where_it_has_some(optimizer: Optimizer) -> None:
    """Not even by what they were moved before."""
    search = replace(RANDOM, train=TRAIN)
    recipe, meta, _ = _begun(search)
    recipe = replace(recipe, optimizer=optimizer)
    weights = {k: v for k, v in meta.items() if not k.startswith("arch/")}
    state = {f"weights/{k}": v for k, v in optimizer.init(weights).items()}
    state |= {f"sampler/{k}": v for k, v in search.started(7).tensors().items()}
    episodes = TASKS.sample_episodes(8, split="train", shape=SHAPE, generator=Generator().manual_seed(0))
    step, twin = search.step(recipe, "vmap", None, state, 7), search.started(7)
    seen = set()
    for i in range(8):
        config = twin.sample().config
        seen.add((config["a"], config["b"]))
        after, state, _ = step(meta, state, episodes, i / 8)
        moved = {k for k in meta if not torch.equal(meta[k], after[k])}
        assert moved <= {f"net/{p}/{config[p]}/{end}" for p in ("a", "b") for end in ("weight", "bias")}
        assert moved >= {f"net/{p}/{config[p]}/weight" for p in ("a", "b") if config[p] in ("see", "dim")}, "these learn"
        meta = after
    assert len(seen) > 4


@pytest.mark.parametrize("seed", range(3))
def test_a_step_of_the_shared_weights_costs_what_one_of_the_sampled_net_does(seed: int) -> None:
    """At most 1.3 times as much is allowed; a mixture of five operations would cost several times as much. In processor time a
    step with cells of DARTS is 1.05 to 1.25 of the net's own."""
    tasks = Blobs(side=8, train_classes=20)
    shape, design = tasks.shape(ways=3, shots=1, queries=2), Cells(2, 1)
    config = nasbench201.SPACE.sample(np.random.default_rng(seed))
    train = Train(partial(nasbench201.recipe, design=design), tasks, shape, validation_episodes=2, mode="loop", steps=10)
    search = Shared(train=train, relaxed=partial(nasbench201.relaxed, design=design), space=nasbench201.SPACE,
                    dims=nasbench201.RELAXED, steps=10, sampler=lambda space, seed: Always(config))
    recipe = search.supernet(config)
    meta = recipe.learner.init(recipe.net, Generator().manual_seed(0))
    weights = {k: v for k, v in meta.items() if not k.startswith("arch/")}
    state = {f"weights/{k}": v for k, v in recipe.optimizer.init(weights).items()} | {"sampler/count": torch.tensor(0.0)}
    episodes = tasks.sample_episodes(8, split="train", shape=recipe.episode or shape, generator=Generator().manual_seed(0))
    with FlopCounterMode(display=False) as ours:
        search.step(recipe, "loop", None, state, 0)(meta, state, episodes, 0.0)
    own = train.built(config)
    with FlopCounterMode(display=False) as alone:
        mean_gradient(own.learner, own.net, tasks.loss, own.learner.init(own.net, Generator().manual_seed(0)),
                      episodes.select(slice(0, 4)), "loop", None)
    assert 0 < alone.get_total_flops() <= ours.get_total_flops() <= 1.3 * alone.get_total_flops()


class Always(Uniform):
    """One architecture, always."""

    def __init__(self, config: Config) -> None:
        super().__init__(nasbench201.SPACE, 0)
        self._config = config

    def sample(self) -> Sampled:
        return Sampled(self._config)


@dataclass(frozen=True, kw_only=True)
class Watched(Shared):
    """Keeps the pictures on which architectures are scored."""

    seen: list[Tensor] = field(default_factory=list, compare=False)

    def _score(self, recipe: Any, learner: Any, meta: Params, config: Config, episodes: Episode, mode: Any, chunk: Any) -> float:
        self.seen.append(torch.cat([episodes.support_x.flatten(0, 1), episodes.query_x.flatten(0, 1)]))
        return super()._score(recipe, learner, meta, config, episodes, mode, chunk)


def test_rewards_and_candidates_are_of_classes_that_the_weights_have_not_seen() -> None:
    far = Blobs(dimensions=5, separation=1000.0, train_classes=20, val_classes=10)

    def classes(x: Tensor) -> set[int]:
        return set(torch.cdist(x, far._centres["train"]).argmin(-1).tolist())

    search = Watched(**{**vars(ENAS), "train": replace(TRAIN, tasks=far, steps=2), "share": 0.3, "steps": 4, "every": 1,
                        "aggregate": 2, "candidates": 2})
    _run(search, _trial())
    drawn = far.part(0.3, 0).sample_episodes(50, split="train", shape=SHAPE, generator=Generator().manual_seed(0))
    own = classes(drawn.query_x.flatten(0, 1))
    assert len(own) == 6
    assert not own & set.union(*(classes(x) for x in search.seen[:8])), "rewards"
    assert search.seen[8:]
    assert not own & set.union(*(classes(x) for x in search.seen[8:])), "candidates"


def test_the_controller_learns_which_operations_see() -> None:
    """The planted ones become more probable than by uniform sampling (1/4 a dimension); REINFORCE is at work, not chance."""
    search = replace(ENAS, steps=80, every=1, aggregate=8, sampler=partial(Controlled, {**KNOBS, "batch": 8, "lr": 0.03}))
    recipe, meta, state = _begun(search)
    step = search.step(recipe, "vmap", None, state, 7)
    episodes = TASKS.sample_episodes(8 * 80, split="train", shape=SHAPE, generator=Generator().manual_seed(1))
    rewards = []
    for i in range(80):
        meta, state, metrics = step(meta, state, episodes.select(slice(8 * i, 8 * i + 8)), i / 80)
        rewards.append(float(metrics["reward"]))
    end = search.started(7, state)
    drawn = [end.sample().config for _ in range(100)]
    sees = sum(bool({c["a"], c["b"]} & {"see", "dim"}) for c in drawn)
    assert sees > 90, "uniform: 75"
    assert sum(rewards[-20:]) > sum(rewards[:20])


@pytest.mark.parametrize("search", [RANDOM, ENAS], ids=["random", "enas"])
def test_what_is_found_is_trained_by_itself(search: Shared) -> None:
    last = _run(search, _trial())[-1]
    assert last.found is not None
    assert {last.found["a"], last.found["b"]} & {"see", "dim"}
    alone = list(TRAIN(Proposal(last.found, seed=7), _trial()))[-1]
    assert (last.score, last.episodes, last.step) == (alone.score, alone.episodes, 30)
    assert last.metrics["supernet/candidates"] <= 20


def test_when_time_is_up_what_is_found_is_trained_whole_and_nothing_else_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps would pass for the score of a training, and for a judgement of the shared weights."""
    search = replace(RANDOM, check=4, check_steps=6, finalists=3)
    late = _run(search, _trial(deadline=time.monotonic() - 1.0))
    assert next(r.step for r in late if r.score is None) == 1, "the search ends at once"
    assert late[-1].found is not None
    alone = list(TRAIN(Proposal(late[-1].found, seed=7), _trial()))[-1]
    assert (late[-1].score, late[-1].step) == (alone.score, 1 + 10)
    assert not {"supernet/checked", "supernet/finalists", "supernet/rank_correlation"} & {k for r in late for k in r.metrics}

    short, trained = Judged._alone, list[float]()

    def counted(self: Judged, config: Config, proposal: Proposal, trial: Trial) -> float:
        trained.append(short(self, config, proposal, trial))
        return trained[-1]

    # time is up while the fifth trains, the second of those that are checked
    monkeypatch.setattr(Trial, "late", property(lambda trial: trial.deadline is not None and len(trained) >= 5))
    monkeypatch.setattr(Judged, "_alone", counted)
    last = _run(search, _trial(deadline=time.monotonic() + 3600.0))[-1]
    assert len(trained) == 5
    assert "supernet/rank_correlation" not in last.metrics
    assert last.step == 20 + 10


@dataclass(frozen=True, kw_only=True)
class Lucky(Shared):
    """One candidate is the best on few episodes, another one on many."""

    counts: list[int] = field(default_factory=list, compare=False)

    def _score(self, recipe: Any, learner: Any, meta: Params, config: Config, episodes: Episode, mode: Any, chunk: Any) -> float:
        self.counts.append(episodes.count)
        few = episodes.count < 50
        return {("see", "none"): 0.9 if few else 0.2, ("none", "see"): 0.8}.get((str(config["a"]), str(config["b"])), 0.1)


def test_of_candidates_the_luckiest_on_few_episodes_is_not_taken() -> None:
    search = Lucky(**{**vars(RANDOM), "steps": 1, "candidates": 60, "train": replace(TRAIN, steps=1)})
    last = _run(search, _trial())[-1]
    assert last.found is not None
    assert (last.found["a"], last.found["b"]) == ("none", "see")
    assert last.metrics["supernet/candidate_score"] == pytest.approx(0.8)
    count = int(last.metrics["supernet/candidates"])
    assert search.counts == [CANDIDATE_EPISODES] * count + [FURTHER_EPISODES] * (count // 4)


@dataclass(frozen=True, kw_only=True)
class Misled(Shared):
    """The shared weights like blind architectures, and the better the blinder."""

    def _score(self, recipe: Any, learner: Any, meta: Params, config: Config, episodes: Episode, mode: Any, chunk: Any) -> float:
        return sum({"blind": 0.4, "none": 0.3, "dim": 0.2, "see": 0.1}[str(config[path])] for path in ("a", "b"))


def test_of_finalists_the_best_by_itself_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a stop among them, and then those before it are not trained again."""
    one = Misled(**{**vars(RANDOM), "steps": 2, "candidates": 60, "check_steps": 10})
    last = _run(one, _trial())[-1]
    assert last.found is not None
    assert (last.found["a"], last.found["b"]) == ("blind", "blind")
    search = replace(one, finalists=8, check=2)
    whole = _run(search, _trial(tmp_path / "whole"))
    assert [r.metrics["supernet/finalists"] for r in whole if "supernet/finalists" in r.metrics] == list(range(1, 9))
    assert whole[-1].found is not None
    assert {whole[-1].found["a"], whole[-1].found["b"]} & {"see", "dim"}
    assert whole[-1].score == max(
        list(TRAIN(Proposal(config, seed=7), _trial()))[-1].score or 0.0 for config in (last.found, whole[-1].found))

    trial, running = _trial(tmp_path / "cut"), search(Proposal(dict(CONFIG), seed=7), _trial(tmp_path / "cut"))
    report = next(r for r in running if r.metrics.get("supernet/finalists") == 3)
    trained, alone = list[Config](), Judged._alone
    monkeypatch.setattr(Judged, "_alone", lambda self, config, *rest: trained.append(config) or alone(self, config, *rest))
    assert report.checkpoint is not None
    chosen = Misled.chosen

    def otherwise(*given: Any) -> Any:
        """As after latencies that were measured once more."""
        ranked, told = chosen(*given)
        return ranked[::-1], told

    monkeypatch.setattr(Misled, "chosen", otherwise)
    rest = _run(search, replace(trial, start=Path(report.checkpoint), own=True))
    assert 5 <= len(trained) <= 5 + 2
    assert (rest[-1].found, rest[-1].score) == (whole[-1].found, whole[-1].score)
    assert rest[-1].metrics.get("supernet/rank_correlation") == whole[-1].metrics.get("supernet/rank_correlation")


def test_of_architectures_that_mean_the_same_one_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's two edges may change places: of 16 architectures 10 differ, whether they are finalists, drawn, or both."""
    def canonical(config: Config) -> Config:
        a, b = sorted(str(config[path]) for path in ("a", "b"))
        return {**config, "a": a, "b": b}

    trained, alone = list[tuple[Any, Any]](), Judged._alone

    def noted(self: Judged, config: Config, *rest: Any) -> float:
        trained.append((config["a"], config["b"]))
        return alone(self, config, *rest)

    monkeypatch.setattr(Judged, "_alone", noted)
    search = Misled(**{**vars(RANDOM), "steps": 2, "candidates": 200, "check_steps": 2, "finalists": 8, "check": 16})
    reports = _run(replace(search, canonical=canonical), _trial())
    assert [r.metrics["supernet/finalists"] for r in reports if "supernet/finalists" in r.metrics][-1] == 8
    assert [r.metrics["supernet/checked"] for r in reports if "supernet/checked" in r.metrics][-1] == 16
    assert len({tuple(sorted(pair)) for pair in trained[:8]}) == 8, "finalists differ"
    assert len(trained) == 10
    trained.clear()
    _run(search, _trial())
    assert len(trained) == 16, "what is a finalist and is drawn is trained once, too"


@pytest.mark.parametrize("search", [RANDOM, ENAS], ids=["random", "enas"])
def test_a_search_keeps_the_studys_limits(search: Shared) -> None:
    """What is searched is chosen among what the limit leaves: one that sees, and one that has no weights."""
    tight = replace(TRAIN, recipe=relaxed_space.sized, limits={"params": 24.0})
    last = _run(replace(search, train=tight), _trial())[-1]
    assert last.found is not None
    assert last.metrics["params"] <= 24
    assert sorted((last.found["a"], last.found["b"]))[0] == "none" or "see" not in last.found.values()
    with pytest.raises(Infeasible, match=r"the study's limits: the nearest has flops [0-9]+, and the limit is -1"):
        next(replace(search, train=replace(tight, limits={"flops": -1.0}))(Proposal(dict(CONFIG), seed=7), _trial()))


@dataclass(frozen=True, kw_only=True)
class Blindfolded(Shared):
    def within(self, sampled: Config) -> bool:
        return "see" not in sampled.values()


def test_for_the_controller_what_exceeds_a_limit_is_worst() -> None:
    """Without the limit "see" is as good as "dim"."""
    sampler = partial(Controlled, {**KNOBS, "batch": 8, "lr": 0.03})
    search = Blindfolded(**{**vars(ENAS), "steps": 60, "every": 1, "aggregate": 8, "sampler": sampler})
    recipe, meta, state = _begun(search)
    step = search.step(recipe, "vmap", None, state, 7)
    episodes = TASKS.sample_episodes(8 * 60, split="train", shape=SHAPE, generator=Generator().manual_seed(1))
    for i in range(60):
        meta, state, _ = step(meta, state, episodes.select(slice(8 * i, 8 * i + 8)), i / 60)
    end = search.started(7, state)
    drawn = [set(end.sample().config.values()) for _ in range(100)]
    assert sum("see" in ops for ops in drawn) < 22, "uniform: 44, and three standard errors are 15"
    assert sum("dim" in ops for ops in drawn) > 60


@pytest.mark.parametrize("cut", [5, 20, 25])
def test_a_stopped_search_ends_bit_for_bit_as_the_undisturbed_one(tmp_path: Path, cut: int) -> None:
    whole = _run(ENAS, _trial(tmp_path / "whole"))
    trial = _trial(tmp_path / "cut")
    generator: Iterator[Report] = ENAS(Proposal(dict(CONFIG), seed=7), trial)
    for report in generator:
        if report.step == cut:
            break
    generator.close()  # type: ignore[attr-defined]
    rest = _run(ENAS, replace(trial, start=tmp_path / "cut" / f"{cut}.safetensors", own=True))
    assert (rest[-1].score, rest[-1].episodes, rest[-1].found) == (whole[-1].score, whole[-1].episodes, whole[-1].found)
    for step in (20, 30):
        ours, theirs = (parcel.read(tmp_path / f / f"{step}.safetensors")[0] for f in ("cut", "whole"))
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[k].nan_to_num(-7), theirs[k].nan_to_num(-7)) for k in ours)
    assert any(k.startswith("state/sampler/mean/lstm0") for k in parcel.read(tmp_path / "cut" / "20.safetensors")[0])


def test_enas_holds_skip_connections_to_their_published_rate() -> None:
    """By its defaults, and where relaxed dimensions are skips: the sampler's space has them as items of a Repeat."""
    study = Study.from_json({
        "name": "t", "space": relaxed_space.__file__, "method": {"name": "enas"}, "budget": {"trials": 1},
        "tasks": {"name": "blobs", "dimensions": 5, "train_classes": 20, "ways": 3},
    })
    search = study.objective()
    assert isinstance(search, Shared)
    assert isinstance(search.sampler, partial)
    knobs = search.sampler.args[0]
    assert (knobs["skip_weight"], knobs["skip_target"]) == (0.8, 0.4)
    layers = [Space({"op": Choice(("a", "b")), **{f"skip_{j}": Choice((False, True)) for j in range(i)}}) for i in range(5)]
    space = Space({"width": Choice((3, 4)), "layer": Repeat(Int(5, 5), tuple(layers))})
    dims = tuple(path for path, _ in space.columns() if "skip_" in path)
    search = replace(search, space=space, dims=dims)
    assert [path for path, _ in only(space, dims).columns() if "skip_" in path] == list(dims)
    rates = []
    for weight in (0.0, 0.8):
        policy = replace(search, sampler=partial(Controlled, {**knobs, "lr": 0.02, "skip_weight": weight})).started(0)
        assert isinstance(policy, Controlled)
        for _ in range(40):
            policy.update([policy.sample() for _ in range(4)], [1.0] * 4)
        taken = [bool(v) for _ in range(100) for path, v in policy.sample().config.items() if "skip_" in path]
        rates.append(sum(taken) / len(taken))
    assert rates[0] == pytest.approx(0.5, abs=0.06)  # 1,000 skips: four standard errors
    assert rates[1] == pytest.approx(0.4, abs=0.06)
    with pytest.raises(ValueError, match="how many items that has is itself one"):
        replace(search, space=Space({"layer": Repeat(Int(1, 5), tuple(layers))}))


def test_a_samplers_memory_survives_as_tensors() -> None:
    for make in (Uniform, partial(Controlled, KNOBS)):
        one, other = make(relaxed_space.SPACE, 3), make(relaxed_space.SPACE, 3)
        for _ in range(3):
            drawn = [one.sample() for _ in range(6)]
            one.update(drawn, [float(d.config["a"] == "see") for d in drawn])  # type: ignore[arg-type]
        other.load(one.tensors())
        assert [one.sample().config for _ in range(5)] == [other.sample().config for _ in range(5)]


def test_every_setting_of_reinforces_controller_is_one_of_enas_with_its_published_values() -> None:
    def knobs(**given: Any) -> dict[str, Any]:
        study = Study.from_json({
            "name": "t", "space": relaxed_space.__file__, "method": {"name": "enas", **given}, "budget": {"trials": 1},
            "tasks": {"name": "blobs", "dimensions": 5, "train_classes": 20, "ways": 3},
        })
        search = study.objective()
        assert isinstance(search, Shared)
        assert isinstance(search.sampler, partial)
        return dict(search.sampler.args[0])

    own = {"batch": 10, "lr": 3.5e-3, "clip": 1.1, "entropy": 1e-4, "hidden": 64, "layers": 1, "init": 0.1, "decay": 0.99,
           "skip_weight": 0.8, "skip_target": 0.4}
    theirs = {field.name: field.default for field in fields(Reinforce.Hyperparameters)}
    assert knobs() == {**theirs, **own}
    other = {"power": 3.0, "temperature": 5.0, "clip": 2.5, "layers": 2}
    assert knobs(aggregate=3, **other) == {**theirs, **own, **other, "batch": 3}
    with pytest.raises(ValueError, match="0 < skip_target < 1"):
        knobs(skip_target=1.0)


def test_wrong_values_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="candidates >= 1"):
        replace(RANDOM, candidates=0, finalists=0)
    with pytest.raises(ValueError, match="finalists <= candidates"):
        replace(RANDOM, candidates=4, finalists=5)
