"""The LSTM cell against torch's own."""
from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from metasearch.nets import Params, lstm

INPUTS, HIDDEN = 3, 5


def _params(seed: int = 0, forget_bias: float = 0.0) -> Params:
    return lstm.init("cell", INPUTS, HIDDEN, Generator().manual_seed(seed), forget_bias=forget_bias)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def test_a_step_is_that_of_torchs_cell() -> None:
    params = {k: v.double() for k, v in _params().items()}
    theirs = torch.nn.LSTMCell(INPUTS, HIDDEN, dtype=torch.float64)
    theirs.load_state_dict({
        "weight_ih": params["cell/weight_x"], "weight_hh": params["cell/weight_h"], "bias_ih": params["cell/bias"],
        "bias_hh": torch.zeros(4 * HIDDEN, dtype=torch.float64),
    })
    ours = expected = (_draw(4, HIDDEN, seed=1), _draw(4, HIDDEN, seed=2))
    for t in range(3):
        x = _draw(4, INPUTS, seed=3 + t)
        ours, expected = lstm.step(params, "cell", x, ours), theirs(x, expected)
        for a, b in zip(ours, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-14)


def test_a_step_takes_one_row_or_many() -> None:
    params = {k: v.double() for k, v in _params().items()}
    x, h, c = _draw(4, INPUTS), _draw(4, HIDDEN, seed=1), _draw(4, HIDDEN, seed=2)
    many = lstm.step(params, "cell", x, (h, c))
    for i in range(4):
        for one, all_ in zip(lstm.step(params, "cell", x[i], (h[i], c[i])), many, strict=True):
            assert torch.allclose(one, all_[i], atol=1e-14)


def test_weights_begin_as_torchs_do() -> None:
    params = lstm.init("cell", 30, 100, Generator().manual_seed(0))
    assert {k: tuple(v.shape) for k, v in params.items()} == {
        "cell/weight_x": (400, 30), "cell/weight_h": (400, 100), "cell/bias": (400,),
    }
    for v in params.values():
        assert v.dtype == torch.float32
        assert 0.09 < float(v.abs().max()) <= 0.1


def test_the_forget_bias_is_added_to_the_forget_gate_alone() -> None:
    moved = _params(forget_bias=1.0)["cell/bias"] - _params()["cell/bias"]
    expected = torch.zeros(4, HIDDEN)
    expected[1] = 1.0
    assert torch.allclose(moved, expected.flatten(), atol=1e-6)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden=0"):
        lstm.init("cell", 1, 0, Generator())
