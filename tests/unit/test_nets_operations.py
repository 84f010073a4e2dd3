"""Primitive operations: shapes, sizes that papers and code state, and gradients under a vmap."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.nets import Params
from metasearch.nets.norm import Norm
from metasearch.nets.operations import OPERATIONS, operation

NORM = Norm("batch")


def _made(name: str, before: int = 4, after: int = 4, stride: int = 1) -> tuple[Params, Tensor, Tensor]:
    op = operation(name, "cell.0", before, after, stride, NORM)
    params = op.init(Generator().manual_seed(0))
    x = torch.randn(3, before, 7, 10, generator=Generator().manual_seed(1))
    return params, x, op.apply(params, x)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("before", "after"), [(4, 4), (4, 6), (6, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_operation_gives_the_shape_that_it_states(name: str, before: int, after: int, stride: int) -> None:
    params, _, y = _made(name, before, after, stride)
    assert y.shape == (3, after, -(-7 // stride), -(-10 // stride))
    assert all(key.startswith(f"net/cell.0/{name}/") for key in params)
    again = operation(name, "cell.0", before, after, stride, NORM).init(Generator().manual_seed(0))
    assert list(again) == list(params)
    assert all(torch.equal(again[k], v) for k, v in params.items())


@pytest.mark.parametrize(("name", "weights"), [
    ("none", 0), ("skip_connect", 0), ("avg_pool_3x3", 0), ("max_pool_3x3", 0), ("max_pool_7x7", 0),
    ("nor_conv_1x1", 16 * 16), ("nor_conv_3x3", 9 * 16 * 16),
    ("sep_conv_3x3", 2 * (9 * 16 + 16 * 16)), ("sep_conv_5x5", 2 * (25 * 16 + 16 * 16)), ("dil_conv_3x3", 9 * 16 + 16 * 16),
    ("one_sep_conv_3x3", 9 * 16 + 16 * 16), ("depthwise_conv_3x3", 9 * 16), ("conv_7x1_1x7", 2 * 7 * 16 * 16),
])
def test_sizes_are_those_of_the_authors_operations(name: str, weights: int) -> None:
    """At 16 channels, norms left out."""
    params = operation(name, "e", 16, 16, 1, NORM).init(Generator().manual_seed(0))
    assert sum(v.numel() for k, v in params.items() if "/norm/" not in k) == weights


def test_operations_without_weights_are_what_their_names_say() -> None:
    _, x, y = _made("skip_connect")
    assert torch.equal(x, y)
    assert not _made("none")[2].any()
    _, x, y = _made("avg_pool_3x3")
    torch.testing.assert_close(y[:, :, 0, 0], x[:, :, :2, :2].mean((2, 3)))  # padding is not counted
    _, x, y = _made("max_pool_5x5")
    assert torch.equal(y[:, :, 3, 5], x[:, :, 1:6, 3:8].amax((2, 3)))


def test_a_convolution_is_relu_then_convolution_then_norm() -> None:
    params, x, y = _made("nor_conv_3x3", 4, 6, 2)
    z = F.conv2d(F.relu(x), params["net/cell.0/nor_conv_3x3/weight"], stride=2, padding=1)
    torch.testing.assert_close(y, F.batch_norm(z, None, None, training=True))


def test_a_factorized_reduction_sees_even_and_odd_places() -> None:
    params, x, _ = _made("skip_connect", 4, 6, 2)
    op = operation("skip_connect", "cell.0", 4, 6, 2, Norm("none"))
    bumped = x.clone().abs()
    bumped[:, :, 3, 3] += 5.0  # an odd place: the first half of the channels does not see it
    before, after = op.apply(params, x.abs()), op.apply(params, bumped)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:, 1, 1], after[:, 3:, 1, 1])


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_of_gradients_under_a_vmap_are_those_of_a_loop(name: str) -> None:
    op = operation(name, "e", 4, 4, 2, NORM)
    params = {k: v.double() for k, v in op.init(Generator().manual_seed(0)).items()}
    xs = torch.randn(2, 3, 4, 6, 6, generator=Generator().manual_seed(1), dtype=torch.float64)

    def inner(p: Params, x: Tensor) -> Tensor:
        return (op.apply(p, x) ** 3).sum()

    def outer(p: Params, x: Tensor) -> Tensor:
        steps = torch.func.grad(inner)(p, x)
        return inner({k: v - 0.01 * steps[k] for k, v in p.items()}, x)

    if not params:
        return
    many = torch.func.vmap(torch.func.grad(outer), in_dims=(None, 0))(params, xs)
    for i, x in enumerate(xs):
        one = torch.func.grad(outer)(params, x)
        for k, v in one.items():
            torch.testing.assert_close(many[k][i], v)


def test_an_unknown_operation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"sep_conv_3x3.*'sep_conv_9x9'"):
        operation("sep_conv_9x9", "e", 4, 4, 1, NORM)
