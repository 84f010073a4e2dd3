"""The DNA of large-scale evolution: eleven mutations, and what is inherited through them."""
from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from metasearch.driver import launch
from metasearch.driver.study import Study
from metasearch.ledger import Ledger
from metasearch.nets.evolving import Layer, evolving, fitted
from metasearch.objectives.parcel import inherit
from metasearch.records import Config
from metasearch.space import items
from metasearch.strategies.large_scale_evolution import simplest
from metasearch.tasks import TaskShape
from search_spaces import evolving_nets
from search_spaces.evolving_nets import DNA, MUTATIONS, SPACE

SHAPE = TaskShape((1, 28, 28), 5, 1, 3)
CONV = Layer(channels=6)


def _params(config: Config, seed: int) -> dict[str, torch.Tensor]:
    return evolving_nets.recipe(config, SHAPE).net.init(Generator().manual_seed(seed))


def _grown(steps: int, seed: int = 0) -> Config:
    rng = np.random.default_rng(seed)
    config = simplest(SPACE)
    for _ in range(steps):
        config, _ = evolving_nets.mutations(config, rng)
    return config


def _layers(*layers: Layer) -> Config:
    return DNA(1e-3, 0, layers).config()


def _same(moved: dict[str, str], parent: Config, child: Config) -> dict[str, bool]:
    """Of each tensor of the child: whether it is, bit by bit, one of its parent's."""
    theirs, own = _params(parent, 1), _params(child, 2)
    got = inherit(theirs, own, moved)
    return {key: any(value.shape == other.shape and torch.equal(value, other) for other in theirs.values())
            for key, value in got.items() if value.any()}  # zeros of a norm say nothing


def test_evolution_begins_with_a_linear_layer() -> None:
    config = simplest(SPACE)
    assert config["layers.count"] == 0
    assert config["learning_rate"] == pytest.approx(1e-3)
    assert set(_params(config, 0)) == {"net/weights0/out/weight", "net/weights0/out/bias"}


def test_after_an_insertion_in_the_middle_every_untouched_layer_is_bit_equal() -> None:
    """Strides keep the last shape: a new layer of stride 1 changes nobody's shape."""
    parent = _layers(CONV, replace(CONV, stride=2), replace(CONV, act=False), CONV)
    dna = DNA(1e-3, 0, (CONV, replace(CONV, stride=2), replace(CONV, act=False), CONV))
    made = evolving_nets._inserted(dna, 2, CONV)
    assert made is not None
    child, moved = made[0].config(), made[1]
    theirs, own = _params(parent, 1), _params(child, 2)
    got = inherit(theirs, own, moved)
    for new, old in {0: 0, 1: 1, 3: 2, 4: 3}.items():
        for name in ("weight", "bias"):
            assert torch.equal(got[f"net/weights0/layers.{new}/{name}"], theirs[f"net/weights0/layers.{old}/{name}"])
    assert torch.equal(got["net/weights0/out/weight"], theirs["net/weights0/out/weight"])
    assert torch.equal(got["net/weights0/layers.2/weight"], own["net/weights0/layers.2/weight"])  # the new one is new
    without = inherit(theirs, own, {})  # the simplest neighbour: by key and shape alone, layers get others' weights
    assert not torch.equal(without["net/weights0/layers.3/weight"], theirs["net/weights0/layers.2/weight"])


def test_a_removal_leaves_the_other_layers_bit_equal() -> None:
    dna = DNA(1e-3, 0, (CONV, Layer(), CONV, CONV))
    after, moved = evolving_nets._removed(dna, 0)
    assert moved == {"layers.0": "layers.1", "layers.1": "layers.2", "layers.2": "layers.3"}
    theirs, own = _params(dna.config(), 1), _params(after.config(), 2)
    got = inherit(theirs, own, moved)
    assert torch.equal(got["net/weights0/layers.2/weight"], theirs["net/weights0/layers.3/weight"])


def test_reset_weights_inherits_nothing_and_the_others_all_that_fits() -> None:
    parent = _grown(40)
    dna = DNA(float(parent["learning_rate"]), int(parent["weights"]), ())
    assert evolving_nets.reset_weights(dna, np.random.default_rng(0)) == (replace(dna, weights=dna.weights + 1), {})
    child = {**parent, "weights": int(parent["weights"]) + 1}
    assert not any(_same({}, parent, child).values())
    rated = {**parent, "learning_rate": float(parent["learning_rate"]) * 0.9}
    assert all(_same({}, parent, rated).values())


def test_all_ten_mutations_happen_and_none_is_a_silent_no_op() -> None:
    rng, seen = np.random.default_rng(0), Counter[str]()
    config = simplest(SPACE)
    originals = dict(MUTATIONS)

    def watched(name: str) -> evolving_nets.Callable[..., object]:
        def change(dna: DNA, rng: np.random.Generator) -> object:
            made = originals[name](dna, rng)
            seen[name] += made is not None and made[0] != dna
            return made

        return change

    try:
        MUTATIONS.update({name: watched(name) for name in originals})  # type: ignore[misc]
        for step in range(600):
            child, _ = evolving_nets.mutations(config, rng)
            assert child != config
            assert not SPACE.problems(child)
            config = simplest(SPACE) if step % 60 == 59 else child
    finally:
        MUTATIONS.update(originals)
    assert len(originals) == 10
    assert all(seen[name] > 0 for name in originals), seen


def test_a_mutation_is_known_by_what_it_left_behind() -> None:
    rng = np.random.default_rng(1)
    for seed in range(20):
        parent = _grown(3 * seed, seed)
        layers = tuple(map(evolving_nets._read, items(parent, "layers")))
        dna = DNA(float(parent["learning_rate"]), int(parent["weights"]), layers)
        for name, change in MUTATIONS.items():
            made = change(dna, rng)
            if made is not None and made[0] != dna:
                assert evolving_nets.between(parent, made[0].config()) == name
        assert evolving_nets.between(parent, dict(parent)) == "identity"


@pytest.mark.slow
def test_all_eleven_mutations_are_in_the_ledger_of_a_real_study(tmp_path: Path) -> None:
    """300 nets of which each trains for one step; among 288 children the rarest, removing a skip, comes some ten times."""
    study = Study.from_json({
        "name": "t", "space": "evolving-nets", "seed": 1, "budget": {"trials": 12}, "validation": {"episodes": 2},
        "method": {"name": "large-scale-evolution", "steps": 1, "evaluations": 300, "population": 12},
        "tasks": {"name": "blobs", "side": 8, "ways": 3, "queries": 2}, "train": {"mode": "loop", "meta_batch": 1},
        "driver": {"kind": "local"}, "track": {"enabled": False},
    })
    result = launch.run(study, home=tmp_path)
    with Ledger.open(result.folder / "ledger.sqlite") as ledger:
        trials = ledger.trials()
        proposed = [row.body for row in ledger.rows(kinds=["proposed"])]
    assert len(proposed) == 300
    seen = Counter(
        evolving_nets.between(trials[one["parent"]].proposal.config, one["config"])
        for one in proposed if one["parent"] is not None
    )
    assert set(seen) == {*MUTATIONS, "identity"}, seen
    assert len(seen) == 11
    inserted = [one for one in proposed if one["moved"]]
    assert inserted, "layers that moved are in the ledger, so that their weights follow"
    assert {trial.status for trial in trials.values()} <= {"done", "diverged", "infeasible"}


def test_numbers_change_by_at_most_a_factor_of_two() -> None:
    rng = np.random.default_rng(0)
    dna = DNA(1e-3, 0, (replace(CONV, channels=20),))
    rates = [evolving_nets.alter_learning_rate(dna, rng)[0].learning_rate for _ in range(300)]  # type: ignore[index]
    assert 0.5e-3 <= min(rates) < 0.55e-3
    assert 1.8e-3 < max(rates) <= 2e-3
    channels = [evolving_nets.alter_channels(dna, rng)[0].layers[0].channels for _ in range(300)]  # type: ignore[index]
    assert (min(channels), max(channels)) == (10, 40)


def test_skips_go_on_reading_what_they_read_when_layers_come_and_go() -> None:
    """An identity put anywhere changes no number, whatever skips there are; taking it away gives the first net back."""
    rng = np.random.default_rng(3)
    layers = (CONV, replace(CONV, skip=1), Layer(skip=2), replace(CONV, stride=2, skip=2), replace(CONV, skip=1))
    dna = DNA(1e-3, 0, layers)
    x = torch.randn(4, 1, 28, 28, generator=Generator().manual_seed(0))
    params = _params(dna.config(), 1)
    output = evolving_nets.recipe(dna.config(), SHAPE).net.apply(params, x)
    for place in range(len(layers) + 1):
        made = evolving_nets._inserted(dna, place, Layer())
        assert made is not None
        child = made[0].config()
        got = inherit(params, _params(child, 2), made[1])
        torch.testing.assert_close(evolving_nets.recipe(child, SHAPE).net.apply(got, x), output)
        assert evolving_nets._removed(made[0], place)[0] == dna
    assert evolving_nets.add_skip(dna, rng) is None  # every layer that can have one has one


def test_shapes_that_conflict_are_brought_to_the_primary_ones() -> None:
    x = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    assert torch.equal(fitted(x, (2, 2, 2)), x[:, :2, ::2, ::2])
    wider = fitted(x, (5, 8, 4))
    assert torch.equal(wider[:, :3, ::2], x)
    assert not wider[:, 3:].any()
    net = evolving((1, 28, 28), 8, [Layer(4, stride=4), Layer(2, skip=1)], "w")
    assert net.apply(net.init(Generator().manual_seed(0)), torch.randn(2, 1, 28, 28)).shape == (2, 8)


def test_a_study_hands_the_spaces_own_mutations_to_its_strategy() -> None:
    study = Study.model_validate({
        "name": "grow", "space": "evolving-nets", "tasks": {"name": "blobs", "side": 28}, "budget": {"trials": 4},
        "method": {"name": "large-scale-evolution", "steps": 5, "evaluations": 40, "population": 4},
    })
    parent = evolving_nets.SPACE.sample(np.random.default_rng(0))
    for seed in range(5):
        ours, wanted = (f(parent, np.random.default_rng(seed)) for f in (study.strategy().mutate, evolving_nets.mutations))
        assert ours == wanted
