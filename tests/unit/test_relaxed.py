"""One-shot search by gradient: the hypergradient is right, halves are apart, the best operation wins, resume is bit-equal."""
from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import relaxed_space
import torch
from torch import Generator, Tensor

from metasearch.learners.maml import MAML
from metasearch.nets import Params
from metasearch.nets.mlp import mlp
from metasearch.objectives import Diverged, Infeasible, Mode, Trial, parcel
from metasearch.objectives.episodic import mean_gradient
from metasearch.objectives.judged import Judged, rank_correlation
from metasearch.objectives.limits import candidates
from metasearch.objectives.optimizer import Optimizer, adam, by_prefix, sgd
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.relaxed import Hypergradient, Relaxed, difference, exact, first, step_ahead, strongest
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal, Report
from metasearch.tasks import Episode, TaskShape
from metasearch.tasks.blobs import Blobs
from search_spaces import darts_cells

TASKS = Blobs(dimensions=5, train_classes=20, val_classes=10)
SHAPE = TASKS.shape(ways=3, shots=2, queries=3)
CONFIG: Config = {"a": "none", "b": "none", "width": 4}
TRAIN = Train(relaxed_space.recipe, TASKS, SHAPE, validation_episodes=20, mode="vmap", steps=20, report_every=5)
SEARCH = Relaxed(
    train=TRAIN, relaxed=relaxed_space.relaxed, space=relaxed_space.SPACE, dims=relaxed_space.RELAXED, steps=20, arch=adam(0.01),
)


def _trial(folder: Path | None = None, **given: Any) -> Trial:
    def save(step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
        assert folder is not None
        return str(parcel.write(folder / f"{step}.safetensors", tensors, facts))

    return Trial(0, save=None if folder is None else save, **given)


def _run(search: Relaxed, trial: Trial) -> list[Report]:
    return list(search(Proposal(dict(CONFIG), seed=7), trial))


# the hypergradient ------------------------------------------------------------------------------------------------------------

Value = Callable[[Params, Params], Tensor]


def _quadratic(seed: int) -> Value:
    """w' A w + w' B a + a' C a + b'w + c'a."""
    g = Generator().manual_seed(seed)
    a, b, c, d, e = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((4, 4), (4, 3), (3, 3), (4,), (3,)))
    return lambda w, p: w["w"] @ (a @ w["w"] + b @ p["arch/p"] + d) + p["arch/p"] @ (c @ p["arch/p"] + e)


def _smooth(seed: int) -> Value:
    """A net of tanh whose hidden layer is weighted by a softmax."""
    g = Generator().manual_seed(seed)
    x, y = torch.randn(6, 2, generator=g, dtype=torch.float64), torch.randn(6, generator=g, dtype=torch.float64)

    def value(w: Params, p: Params) -> Tensor:
        hidden = torch.tanh(0.3 * x @ w["w"].view(2, 2)) @ torch.diag(p["arch/p"].softmax(-1)[:2])
        return ((hidden.sum(-1) - y) ** 2).mean()

    return value


def _slopes(value: Value) -> Callable[[Params, Params], tuple[Params, Params]]:
    return torch.func.grad(value, argnums=(0, 1))  # type: ignore[no-any-return]


def _start() -> tuple[Params, Params]:
    g = Generator().manual_seed(5)
    return {"w": torch.randn(4, generator=g, dtype=torch.float64)}, {"arch/p": torch.randn(3, generator=g, dtype=torch.float64)}


def _ahead(xi: float) -> Callable[[Params, Params], Params]:
    return lambda w, g: {k: w[k] - xi * (g[k] + 0.01 * w[k]) for k in w}


@pytest.mark.parametrize("tape", [False, True])
@pytest.mark.parametrize(("make", "most"), [(_quadratic, 1e-12), (_smooth, 1e-6)], ids=["quadratic", "smooth"])
def test_the_difference_is_the_exact_gradient(make: Callable[[int], Value], most: float, tape: bool) -> None:
    """A difference that is scaled wrongly by eps, or dropped, is off by far more."""
    (w, a), train, val = _start(), make(1), make(2)
    right = exact(train, val, w, a, _ahead(0.1), tape=tape)["arch/p"]
    near = difference(_slopes(train), _slopes(val), w, a, _ahead(0.1), 0.1)["arch/p"]
    assert float((near - right).norm() / right.norm()) < most
    assert float((first(_slopes(val), w, a)["arch/p"] - right).norm() / right.norm()) > 0.01, "the second order matters here"


def test_the_exact_gradient_is_that_of_the_loss_after_one_step() -> None:
    """Central differences of L_val(w'(alpha), alpha) itself."""
    (w, a), train, val = _start(), _smooth(1), _smooth(2)

    def after(p: Tensor) -> Tensor:
        arch = {"arch/p": p}
        return val(_ahead(0.1)(w, torch.func.grad(train)(w, arch)), arch)

    found = exact(train, val, w, a, _ahead(0.1))["arch/p"]
    for i in range(3):
        e = 1e-5 * torch.eye(3, dtype=torch.float64)[i]
        assert float(found[i]) == pytest.approx(float(after(a["arch/p"] + e) - after(a["arch/p"] - e)) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("make", [_quadratic, _smooth])
def test_first_order_is_a_step_of_no_length(make: Callable[[int], Value]) -> None:
    (w, a), train, val = _start(), make(1), make(2)
    torch.testing.assert_close(first(_slopes(val), w, a), exact(train, val, w, a, lambda w, g: w), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first(_slopes(val), w, a), difference(_slopes(train), _slopes(val), w, a, _ahead(0.0), 0.0))


# one outer step ---------------------------------------------------------------------------------------------------------------


def _episodes(count: int) -> Episode:
    e = TASKS.sample_episodes(count, split="train", shape=SHAPE, generator=Generator().manual_seed(3))
    return e.map(Tensor.double)


def _after(search: Relaxed, mode: Mode = "vmap", steps: int = 1, **recipe: Any) -> Params:
    """The parameters after a step in float64; episodes of weights and alpha are the halves of each batch."""
    made = replace(search.supernet(CONFIG), **recipe)
    meta = {k: v.double() for k, v in made.learner.init(made.net, Generator().manual_seed(0)).items()}
    weights = {k: v for k, v in meta.items() if not k.startswith("arch/")}
    arch = {k: v for k, v in meta.items() if k.startswith("arch/")}
    state = {f"weights/{k}": v for k, v in made.optimizer.init(weights).items()}
    state |= {f"arch/{k}": v for k, v in search.arch.init(arch).items()}
    step = search.step(made, mode)
    for i in range(steps):
        meta, state, _ = step(meta, state, _episodes(8 * steps).select(slice(8 * i, 8 * i + 8)), i / steps)
    return meta


@pytest.mark.parametrize("how", ["exact", "difference", "first"])
def test_a_loop_takes_the_step_of_a_vmap(how: Hypergradient) -> None:
    search = replace(SEARCH, hypergradient=how, arch=sgd(1.0))
    torch.testing.assert_close(_after(search, "loop"), _after(search, "vmap"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", [sgd(0.2), sgd(0.2, momentum=0.9, weight_decay=0.01), adam(0.1)])
def test_exact_and_difference_take_nearly_the_same_steps_and_first_another(optimizer: Any) -> None:
    """Two steps, so that there is a momentum to look ahead with."""
    found = {
        how: torch.cat([
            v for k, v in _after(replace(SEARCH, hypergradient=how, arch=sgd(1.0), xi=0.5), steps=2, optimizer=optimizer).items()
            if k.startswith("arch/")
        ]) for how in ("exact", "difference", "first")
    }
    assert float((found["exact"] - found["difference"]).norm()) < 1e-4 * float((found["exact"] - found["first"]).norm())


@pytest.mark.parametrize("how", ["exact", "difference", "first"])
def test_in_the_warm_up_alpha_stays_and_the_weights_learn(how: Hypergradient) -> None:
    """Four of four steps, as if alpha had a rate of 0; or three, and then it moves."""
    search = replace(SEARCH, hypergradient=how, arch=sgd(1.0))
    made = search.supernet(CONFIG)
    begin = {k: v.double() for k, v in made.learner.init(made.net, Generator().manual_seed(0)).items()}
    after = {warm_up: _after(replace(search, warm_up=warm_up), steps=4) for warm_up in (0.0, 0.7, 0.8)}
    still = _after(replace(search, arch=sgd(0.0)), steps=4)
    assert any(not torch.equal(after[0.8][key], value) for key, value in begin.items())
    for key in begin:
        assert torch.equal(after[0.8][key], still[key])
        if key.startswith("arch/"):
            assert torch.equal(after[0.8][key], begin[key])
            assert not torch.equal(after[0.7][key], after[0.0][key])


@pytest.mark.parametrize("warm_up", [-0.1, 1.1])
def test_a_warm_up_is_a_share_of_the_search(warm_up: float) -> None:
    with pytest.raises(ValueError, match=r"0 <= warm_up <= 1.*warm_up="):
        replace(SEARCH, warm_up=warm_up)


def test_first_order_is_xi_0() -> None:
    """Bit for bit the weights, and alpha up to rounding."""
    one = _after(replace(SEARCH, hypergradient="first"))
    other = _after(replace(SEARCH, hypergradient="exact", xi=0.0))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_alpha_takes_its_step_before_the_weights_take_theirs() -> None:
    """As in the authors' code: alpha at the present weights, on the one half; then the weights at the new alpha, on the other."""
    after = _after(replace(SEARCH, hypergradient="first", arch=sgd(0.5)), optimizer=sgd(0.25))
    made, both = SEARCH.supernet(CONFIG), _episodes(8)
    meta = {k: v.double() for k, v in made.learner.init(made.net, Generator().manual_seed(0)).items()}
    for half, lr, mine in ((slice(4, 8), 0.5, True), (slice(0, 4), 0.25, False)):
        grads, _ = mean_gradient(made.learner, made.net, TASKS.loss, meta, both.select(half), "vmap", None)
        meta = {k: v - lr * grads[k] if k.startswith("arch/") == mine else v for k, v in meta.items()}
    torch.testing.assert_close(after, meta, rtol=1e-12, atol=1e-14)


def test_the_weights_optimiser_never_touches_alpha_and_alphas_never_the_weights() -> None:
    still = _after(replace(SEARCH, arch=sgd(0.0)), optimizer=sgd(0.5, weight_decay=0.1))
    only = _after(SEARCH, optimizer=sgd(0.0))
    made = SEARCH.supernet(CONFIG)
    begun = {k: v.double() for k, v in made.learner.init(made.net, Generator().manual_seed(0)).items()}
    for k, v in begun.items():
        assert torch.equal(still[k], v) == k.startswith("arch/")
        assert torch.equal(only[k], v) != k.startswith("arch/")


def test_second_order_runs_through_a_learner_with_an_inner_loop() -> None:
    def relaxed(config: Config, shape: TaskShape) -> Any:
        made = relaxed_space.relaxed(config, shape)
        head = mlp(4, 3, hidden=())

        def init(generator: Generator) -> Params:
            return made.net.init(generator) | head.init(generator)

        def apply(params: Params, x: Tensor) -> Tensor:
            return head.apply(params, made.net.apply(params, x))

        return replace(made, net=made.net._replace(init=init, apply=apply), learner=MAML(inner_lr=0.1, inner_steps=2))

    search = replace(SEARCH, relaxed=relaxed, arch=sgd(1.0))
    ends = {
        (how, mode): _after(replace(search, hypergradient=how, xi=0.3), mode)  # type: ignore[arg-type]
        for how in ("exact", "difference") for mode in ("loop", "vmap")
    }
    for end in ends.values():
        torch.testing.assert_close(end, ends["exact", "loop"], rtol=1e-4, atol=1e-6)


# the search -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exact", "difference", "first"])
def test_the_planted_operation_wins_and_is_trained_by_itself(how: Hypergradient) -> None:
    reports = _run(replace(SEARCH, hypergradient=how, steps=60, arch=adam(0.03)), _trial())
    last = reports[-1]
    assert last.found == {"a": "see", "b": "see", "width": 4}
    assert last.step == 60 + 20, "steps go on behind those of the search"
    assert len(last.episodes or ()) == 20
    assert last.score == pytest.approx(sum(last.episodes) / 20, rel=1e-5)  # type: ignore[arg-type]
    assert all(r.score is None and r.found is None for r in reports if r.step <= 60), "no score of the mixture is a trial's"
    assert "supernet/score" in last.metrics
    assert last.metrics["supernet/arch_entropy"] < 0.999


def test_the_score_is_that_of_a_training_of_the_found_config_alone() -> None:
    last = _run(SEARCH, _trial())[-1]
    assert last.found is not None
    alone = list(TRAIN(Proposal(last.found, seed=7), _trial()))[-1]
    assert (last.score, last.episodes) == (alone.score, alone.episodes)
    assert last.score != last.metrics["supernet/score"]


def test_weights_and_architecture_learn_on_different_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    far = Blobs(dimensions=5, separation=1000.0, train_classes=20, val_classes=10)
    seen: list[set[int]] = [set(), set()]
    inner = Relaxed.step

    def step(self: Relaxed, recipe: Any, mode: Mode, *rest: Any) -> Any:
        def spied(meta: Params, state: Params, episodes: Episode, progress: float) -> Any:
            for mine, part in zip(seen, (slice(0, 4), slice(4, 8)), strict=True):
                x = episodes.select(part).query_x.flatten(0, 1)
                mine |= set(torch.cdist(x, far._centres["train"]).argmin(-1).tolist())
            return inner(self, recipe, mode, *rest)(meta, state, episodes, progress)

        return spied

    monkeypatch.setattr(Relaxed, "step", step)
    _run(replace(SEARCH, train=replace(TRAIN, tasks=far), share=0.3), _trial())
    assert not seen[0] & seen[1]
    assert (len(seen[0]), len(seen[1])) == (6, 14)


@pytest.mark.parametrize("cut", [5, 15, 20, 30])
def test_a_stopped_search_ends_bit_for_bit_as_the_undisturbed_one(tmp_path: Path, cut: int) -> None:
    """During the search, at its end, and while the found one is trained."""
    whole = _run(SEARCH, _trial(tmp_path / "whole"))
    trial = _trial(tmp_path / "cut")
    generator: Iterator[Report] = SEARCH(Proposal(dict(CONFIG), seed=7), trial)
    for report in generator:
        if report.step == cut:
            break
    generator.close()  # type: ignore[attr-defined]
    rest = _run(SEARCH, replace(trial, start=tmp_path / "cut" / f"{cut}.safetensors", own=True))
    clocks = {k for k in rest[-1].metrics if "latency" in k or "seconds" in k}
    assert {k: v for k, v in rest[-1].metrics.items() if k not in clocks} == {
        k: v for k, v in whole[-1].metrics.items() if k not in clocks}
    assert (rest[-1].score, rest[-1].episodes, rest[-1].found) == (whole[-1].score, whole[-1].episodes, whole[-1].found)
    for step in (20, 40):
        ours, theirs = (parcel.read(tmp_path / f / f"{step}.safetensors")[0] for f in ("cut", "whole"))
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert any(k.startswith("state/arch/first/") for k in parcel.read(tmp_path / "cut" / "20.safetensors")[0])


# what is found ----------------------------------------------------------------------------------------------------------------


def test_none_is_never_found_even_with_the_largest_share() -> None:
    logits = {f"arch/{path}": torch.tensor([9.0, 0.0, 1.0, 0.5]) for path in relaxed_space.RELAXED}
    assert SEARCH.found(CONFIG, logits) == {"a": "see", "b": "see", "width": 4}
    assert strongest({"a": [1.0]}, {"a": ("none",)}) == {"a": "none"}, "unless there is nothing else"


@pytest.mark.parametrize(("most", "found", "gave_way"), [
    (48, ("see", "see"), 0), (40, ("see", "blind"), 1), (23, ("blind", "blind"), 2), (7, ("blind", "blind"), 2),
])
def test_what_is_beyond_a_limit_gives_way_where_it_costs_least(most: int, found: tuple[str, str], gave_way: int) -> None:
    """Below "see" of b there is "dim", which is as large, so it is "blind": 1 against 2 of a. Two that are blind have 16."""
    train = replace(TRAIN, recipe=relaxed_space.sized, limits={"params": float(most)})
    logits = {"arch/a": torch.tensor([9.0, 0.0, 2.0, -1.0]), "arch/b": torch.tensor([9.0, 0.0, 1.0, 0.5])}
    (config,), changed = candidates(partial(SEARCH.found, CONFIG), logits, SEARCH.options(), train)
    assert ((config["a"], config["b"]), changed) == (found, gave_way)
    assert candidates(partial(SEARCH.found, CONFIG), logits, SEARCH.options(), TRAIN)[1] == 0, "without limits none does"


def test_further_finalists_are_drawn_from_the_shares() -> None:
    """Of nine pairs without "none", the strongest aside: 2,000 draws against the product of the shares, standard errors of 4."""
    g = Generator().manual_seed(0)
    logits = {f"arch/{path}": torch.randn(4, generator=g) for path in ("a", "b")}
    some = [i for i, option in enumerate(relaxed_space.OPTIONS) if option != "none"]
    of = {path: dict(zip((relaxed_space.OPTIONS[i] for i in some), logits[f"arch/{path}"][some].softmax(0).tolist(), strict=True))
          for path in ("a", "b")}
    every = {pair: of["a"][pair[0]] * of["b"][pair[1]] for pair in itertools.product(of["a"], of["b"])}
    best = max(every, key=lambda pair: every[pair])
    count = Counter[tuple[Any, Any]]()
    for seed in range(2000):
        (first, other), gave_way = candidates(partial(SEARCH.found, CONFIG), logits, SEARCH.options(), TRAIN, 2, seed)
        assert ((first["a"], first["b"]), gave_way) == (best, 0)
        count[other["a"], other["b"]] += 1
    left = 1 - every.pop(best)
    for pair, share in every.items():
        p = share / left
        assert abs(count[pair] - 2000 * p) < 4 * (2000 * p * (1 - p)) ** 0.5, pair


def test_finalists_differ_are_the_same_for_the_same_seed_and_keep_limits() -> None:
    level = {f"arch/{path}": torch.zeros(4) for path in ("a", "b")}
    some = [option for option in relaxed_space.OPTIONS if option != "none"]
    found, _ = candidates(partial(SEARCH.found, CONFIG), level, SEARCH.options(), TRAIN, 20)
    assert {(c["a"], c["b"]) for c in found} == set(itertools.product(some, some))
    assert len(found) == 9, "there are no more"
    assert candidates(partial(SEARCH.found, CONFIG), level, SEARCH.options(), TRAIN, 4)[0] == found[:4]
    assert candidates(partial(SEARCH.found, CONFIG), level, SEARCH.options(), TRAIN, 4, seed=1)[0] != found[:4]
    small = replace(TRAIN, recipe=relaxed_space.sized, limits={"params": 32.0})
    found, _ = candidates(partial(SEARCH.found, CONFIG), level, SEARCH.options(), small, 20)
    assert {(c["a"], c["b"]) for c in found} == {pair for pair in itertools.product(some, some) if "blind" in pair}


def test_finalists_do_not_mean_the_same() -> None:
    """The two edges may change places: of nine pairs six differ."""
    level = {f"arch/{path}": torch.zeros(4) for path in ("a", "b")}
    found, _ = candidates(partial(SEARCH.found, CONFIG), level, SEARCH.options(), TRAIN, 9,
                          canonical=lambda c: {**c, "a": min(str(c["a"]), str(c["b"])), "b": max(str(c["a"]), str(c["b"]))})
    assert len({tuple(sorted((str(c["a"]), str(c["b"])))) for c in found}) == len(found) == 6


def test_with_a_derivation_of_its_own_a_space_has_finalists_too() -> None:
    logits = {f"arch/{path}": torch.randn(8, generator=Generator().manual_seed(i)) for i, path in enumerate(darts_cells.RELAXED)}
    search = replace(SEARCH, space=darts_cells.SPACE, dims=darts_cells.RELAXED, derive=darts_cells.derive)
    config = dict.fromkeys(darts_cells.RELAXED, "none")
    found, _ = candidates(partial(search.found, config), logits, search.options(), TRAIN, 6)
    assert len({repr(sorted(c.items())) for c in found}) == 6
    assert found[0] == search.found(config, logits)
    for c in found:
        assert sum(c[f"normal_e5{source}"] != "none" for source in range(5)) == 2


def test_of_darts_finalists_the_best_by_itself_is_taken() -> None:
    """At first the shares say nothing: the likeliest one of them is as blind as not."""
    search = replace(SEARCH, steps=1, finalists=9, check_steps=10)
    reports = _run(search, _trial())
    assert [r.metrics["supernet/finalists"] for r in reports if "supernet/finalists" in r.metrics] == list(range(1, 10))
    last = reports[-1]
    assert last.found is not None
    every = [Proposal({**CONFIG, "a": a, "b": b}, seed=7) for a, b in itertools.product(relaxed_space.OPTIONS[1:], repeat=2)]
    short = replace(TRAIN, steps=10, keep="last")
    scores = {repr(sorted(one.config.items())): list(short(one, _trial()))[-1].score for one in every}
    assert scores[repr(sorted(last.found.items()))] == max(scores.values())


def test_a_search_ends_within_the_studys_limits() -> None:
    """Which both operations that see are beyond."""
    tight = replace(TRAIN, recipe=relaxed_space.sized, limits={"params": 24.0, "flops": 1e9})
    search = replace(SEARCH, steps=60, arch=adam(0.03), train=tight)
    last = _run(search, _trial())[-1]
    assert last.metrics["params"] <= 24
    assert last.metrics["supernet/gave_way"] >= 1


def test_a_search_that_no_architecture_could_end_is_refused_before_anything_is_trained() -> None:
    search = replace(SEARCH, train=replace(TRAIN, recipe=relaxed_space.sized, limits={"params": 15.0}))
    with pytest.raises(Infeasible, match=r"nearest has params 16, and the limit is 15\. Raise the limit") as raised:
        next(search(Proposal(dict(CONFIG), seed=7), _trial()))
    assert raised.value.metrics == {"params": 16.0}, "of which the study that ends for it tells the least"
    assert next(replace(search, train=replace(search.train, limits={"params": 16.0}))(Proposal(dict(CONFIG), seed=7), _trial()))


def test_where_the_strongest_cannot_be_mended_another_one_is_found() -> None:
    """Otherwise it might win among finalists that keep the limits, and the whole search be lost."""
    def one_of_two(logits: Params) -> Config:
        see = float(logits["arch/a"][2] - logits["arch/b"][2]) > 0
        return {**CONFIG, "a": "see" if see else "blind", "b": "see" if see else "blind"}

    tight = replace(TRAIN, recipe=relaxed_space.sized, limits={"params": 16.0})
    logits = {"arch/a": torch.tensor([0.0, -1.0, 1.0, -2.0]), "arch/b": torch.tensor([0.0, 1.0, 0.5, -1.0])}
    for count in (1, 2):
        found, _ = candidates(one_of_two, logits, {}, tight, count)
        assert [(c["a"], c["b"]) for c in found] == [("blind", "blind")]
    (config,), _ = candidates(one_of_two, logits, {}, replace(tight, limits={"params": 15.0}), 3)
    assert config["a"] == "see", "where none keeps them, the strongest"


def test_more_finalists_than_architectures_are_not_sought_for_ever() -> None:
    level, began = {f"arch/{path}": torch.zeros(4) for path in ("a", "b")}, time.monotonic()
    found, _ = candidates(partial(SEARCH.found, CONFIG), level, SEARCH.options(), TRAIN, 1_000_000)
    assert len(found) == 9
    drawn = Judged(TRAIN, SEARCH.space, SEARCH.options(), 1_000_000, 1).sampled(Proposal(dict(CONFIG), seed=7))
    assert len(drawn) == 16
    assert time.monotonic() - began < 10


def test_the_spaces_own_derivation_is_used_where_it_has_one() -> None:
    logits = {f"arch/{path}": torch.zeros(8) for path in darts_cells.RELAXED}
    logits["arch/normal_e20"][0], logits["arch/normal_e21"][5] = 9.0, 1.0
    search = replace(SEARCH, space=darts_cells.SPACE, dims=darts_cells.RELAXED, derive=darts_cells.derive)
    found = search.found(dict.fromkeys(darts_cells.RELAXED, "none"), logits)
    assert found["normal_e21"] == "sep_conv_5x5"
    assert found["normal_e20"] != "none"
    assert sum(found[f"normal_e5{source}"] != "none" for source in range(5)) == 2


def test_a_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    g = Generator().manual_seed(0)
    for _ in range(20):
        a, b = torch.randint(4, (8,), generator=g).tolist(), torch.randn(8, generator=g).tolist()
        assert rank_correlation(a, b) == pytest.approx(float(spearmanr(a, b).statistic), abs=1e-12)
    assert rank_correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_the_check_ranks_sampled_architectures_by_mixture_and_by_themselves() -> None:
    reports = _run(replace(SEARCH, steps=60, arch=adam(0.03), check=8, check_steps=10), _trial())
    assert [r.metrics["supernet/checked"] for r in reports if "supernet/checked" in r.metrics] == list(range(1, 9))
    assert 0.3 < reports[-1].metrics["supernet/rank_correlation"] <= 1.0, "blind and seeing operations are told apart"


def test_a_check_that_diverged_is_kept_as_the_worst(tmp_path: Path) -> None:
    def exploding(config: Config, shape: TaskShape) -> Recipe:
        return replace(relaxed_space.recipe(config, shape), optimizer=sgd(math.inf))

    search = replace(SEARCH, check=2, check_steps=3, train=replace(SEARCH.train, recipe=exploding))
    with pytest.raises(Diverged):
        _run(search, _trial(tmp_path))
    parcels = [parcel.read(file)[1] for file in tmp_path.iterdir()]
    assert [[one[1] for one in facts["checked"]] for facts in parcels if "checked" in facts] == [[None, None]]


def test_what_was_checked_before_a_stop_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = replace(SEARCH, check=4, check_steps=3)
    whole = _run(search, _trial(tmp_path / "whole"))
    trial, checked = _trial(tmp_path / "cut"), 0.0
    running = search(Proposal(dict(CONFIG), seed=7), trial)
    while checked < 2:
        report = next(running)
        checked = report.metrics.get("supernet/checked", 0.0)
    running.close()
    trained, short = list[Config](), Judged._alone
    monkeypatch.setattr(Judged, "_alone", lambda self, config, *rest: trained.append(config) or short(self, config, *rest))
    assert report.checkpoint is not None
    rest = _run(search, replace(trial, start=Path(report.checkpoint), own=True))
    assert len(trained) == 2
    assert rest[-1].score == whole[-1].score
    assert rest[-1].found == whole[-1].found
    assert rest[-1].metrics["supernet/rank_correlation"] == whole[-1].metrics["supernet/rank_correlation"]


@pytest.mark.parametrize(("wrong", "said"), [
    ({"hypergradient": "second"}, "exact, difference, first"), ({"share": 1.0}, "share"), ({"check": 1}, "check"),
    ({"finalists": 0}, "finalists"),
    ({"steps": 0}, "steps"), ({"xi": -1.0}, "xi"),
])
def test_wrong_values_are_refused_in_words(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(SEARCH, **wrong)


@pytest.mark.parametrize("wrap", [lambda rule: rule, lambda rule: by_prefix({"": rule, "none/": sgd(9.0)})])
def test_the_step_ahead_is_a_step_of_the_weights_optimiser(wrap: Callable[[Optimizer], Optimizer]) -> None:
    """With its momentum and its decay, whether it is one rule or one of several."""
    rule = wrap(sgd(0.1, momentum=0.9, weight_decay=0.5))
    weights, grads = {"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 0.5])}
    state = {k: torch.full_like(v, 1.5) for k, v in rule.init(weights).items()}
    real, _ = rule.update(grads, state, weights, rule.rates, torch.tensor(0.0))
    torch.testing.assert_close(step_ahead(state, rule.rates, 0.1, weights, grads), real)


def test_the_step_ahead_leaves_what_no_rule_moves() -> None:
    weights = {"net/w": torch.ones(2), "rest": torch.ones(2)}
    ahead = step_ahead({}, by_prefix({"net/": sgd(0.1)}).rates, 0.1, weights, {k: torch.ones(2) for k in weights})
    assert torch.equal(ahead["rest"], weights["rest"])
    assert not torch.equal(ahead["net/w"], weights["net/w"])
