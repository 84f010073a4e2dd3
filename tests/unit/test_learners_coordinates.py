"""Preprocessing of gradients against the table of its published values; weights as one vector and back."""
from __future__ import annotations

import pytest
import torch

from metasearch.learners import _coordinates


@pytest.mark.parametrize(("g", "size", "sign"), [
    (1.0, 0.0, 1.0), (1e-2, -0.4605, 1.0), (-1e-3, -0.6908, -1.0), (1e-6, -1.0, 0.0220), (0.0, -1.0, 0.0), (-1e4, 0.921, -1.0),
])
def test_log_and_sign_has_its_published_values_at_p_10(g: float, size: float, sign: float) -> None:
    for dtype, close in ((torch.float32, 2e-4), (torch.float64, 5e-5)):
        found = _coordinates.log_and_sign(torch.tensor([g], dtype=dtype), 10)[0]
        assert found.tolist() == pytest.approx([size, sign], abs=close)


def test_log_and_sign_is_finite_everywhere_and_odd_in_its_sign() -> None:
    g = torch.tensor([0.0, 1e-38, 1e-8, 1e-4, 1.0, 1e8, 1e38])
    for p in (5, 10):
        found, mirrored = _coordinates.log_and_sign(g, p), _coordinates.log_and_sign(-g, p)
        assert bool(found.isfinite().all())
        assert torch.equal(found * torch.tensor([1.0, -1.0]), mirrored)


def test_weights_as_a_vector_come_back() -> None:
    params = {"a": torch.randn(2, 3), "b": torch.randn(()), "c": torch.randn(4)}
    back = _coordinates.like(_coordinates.flat(params), params)
    assert all(torch.equal(back[k], v) for k, v in params.items())
