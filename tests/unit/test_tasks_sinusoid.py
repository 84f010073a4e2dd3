"""The sine waves are those of the paper: its landmarks are met, its options mean what they say."""
from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from metasearch.tasks import Episode, Split
from metasearch.tasks.sinusoid import Sinusoid


def _draw(tasks: Sinusoid, n: int, *, split: Split = "train", shots: int = 10, queries: int = 10, seed: int = 0) -> Episode:
    shape = tasks.shape(ways=1, shots=shots, queries=queries)
    return tasks.sample_episodes(n, split=split, shape=shape, generator=Generator().manual_seed(seed))


@pytest.mark.parametrize("split", ["train", "val"])
def test_predicting_nothing_costs_4_252_and_the_best_blind_guess_3_006(split: Split) -> None:
    # 300,000 waves, one point each: independent; standard errors .011 and .008. Five of them: false alarm 6e-7 each.
    e = _draw(Sinusoid(), 300_000, split=split, shots=1, queries=1)
    assert float(e.query_y.square().mean()) == pytest.approx(4.252, abs=0.055)
    blind = -(2 / math.pi) * 2.55 * torch.cos(e.query_x)
    assert float((e.query_y - blind).square().mean()) == pytest.approx(3.006, abs=0.04)
    assert float((e.query_y + blind).square().mean()) > 6  # with + phase in place of - phase the guess has the wrong sign


def test_oracle_inputs_say_which_wave_it_is() -> None:
    e = _draw(Sinusoid(oracle=True), 500)
    for inputs, y in ((e.support_x, e.support_y), (e.query_x, e.query_y)):
        x, amplitude, phase = inputs.unbind(-1)
        torch.testing.assert_close(y[..., 0], amplitude * torch.sin(x - phase))
        assert bool((amplitude == amplitude[:, :1]).all())
        assert 0.1 <= float(amplitude.min()) < 0.15
        assert 4.95 < float(amplitude.max()) <= 5
        assert 0 <= float(phase.min()) < 0.05
        assert 3.09 < float(phase.max()) <= math.pi
        assert -5 <= float(x.min()) < -4.9
        assert 4.9 < float(x.max()) <= 5


def test_oracle_and_plain_episodes_are_the_same_waves() -> None:
    oracle, plain = _draw(Sinusoid(oracle=True), 50), _draw(Sinusoid(), 50)
    assert torch.equal(oracle.query_y, plain.query_y)
    assert torch.equal(oracle.query_x[..., :1], plain.query_x)


def test_supports_on_half_of_the_axis_are_the_same_waves_with_the_same_queries() -> None:
    whole, left, right = (_draw(Sinusoid().on(part), 200) for part in ("axis", "left", "right"))  # type: ignore[arg-type]
    assert float(left.support_x.max()) <= 0
    assert float(right.support_x.min()) >= 0
    assert float(whole.support_x.min()) < -4
    assert float(whole.support_x.max()) > 4
    for half in (left, right):
        assert torch.equal(half.query_x, whole.query_x)
        assert torch.equal(half.query_y, whole.query_y)


def test_shifted_waves_lie_outside_of_those_trained_on() -> None:
    shifted = Sinusoid().shifted()
    assert shifted.amplitude == pytest.approx((5.0, 9.9))
    assert shifted.phase == pytest.approx((math.pi, 2 * math.pi))
    assert Sinusoid().shifted(0.0).digest == Sinusoid().digest
    assert shifted.digest != Sinusoid().digest


def test_drawing_a_block_of_training_steps_leaves_no_gap_in_the_generator() -> None:
    generator, shape = Generator().manual_seed(0), Sinusoid().shape(ways=1, shots=10, queries=10)
    Sinusoid().sample_episodes(2500, split="train", shape=shape, generator=generator)
    other = Generator().manual_seed(0)
    torch.rand(2500 * (1 + 1 + 10 + 10), generator=other)
    assert float(torch.rand((), generator=generator)) == float(torch.rand((), generator=other))


@pytest.mark.parametrize(("arguments", "said"), [
    ({"amplitude_low": 6.0}, "low <= high"), ({"support": "up"}, "axis, left, right"),
])
def test_wrong_arguments_are_refused(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sinusoid(**arguments)  # type: ignore[arg-type]
