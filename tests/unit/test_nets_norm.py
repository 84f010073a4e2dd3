"""Norms: torch's own numbers, right derivatives under every order of transforms, population statistics."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch.nets import Net, Params
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.mlp import mlp
from metasearch.nets.native import native
from metasearch.nets.norm import Kind, Norm, population

KINDS: tuple[Kind, ...] = ("batch", "layer", "group", "instance")


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _params(channels: int = 4) -> Params:
    return {"net/a/norm/weight": _draw(channels, seed=1), "net/a/norm/bias": _draw(channels, seed=2)}


def _torchs(kind: Kind, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if kind == "batch":
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    groups = {"layer": 1, "group": 2, "instance": x.shape[1]}[kind]
    return F.group_norm(x, groups, weight, bias, eps)  # layer and instance norm over C and space are its two ends


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (5, 4, 7)])
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_says_what_torchs_says(kind: Kind, eps: float, shape: tuple[int, ...]) -> None:
    params, x = _params(), 3 + 2 * _draw(*shape)
    ours = Norm(kind, eps=eps, groups=2).apply(params, "a", x)
    theirs = _torchs(kind, x, params["net/a/norm/weight"], params["net/a/norm/bias"], eps)
    assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)


def test_a_layer_norm_of_vectors_is_torchs() -> None:
    params, x = _params(), _draw(5, 4)
    theirs = F.layer_norm(x, (4,), params["net/a/norm/weight"], params["net/a/norm/bias"])
    assert torch.allclose(Norm("layer").apply(params, "a", x), theirs, atol=1e-12, rtol=0)


def test_without_scale_there_is_no_gamma() -> None:
    norm = Norm("batch", scale=False)
    assert list(norm.init("a", 4)) == ["net/a/norm/bias"]
    out = norm.apply(_params(), "a", _draw(50, 4))
    assert torch.allclose(out.mean(0), _params()["net/a/norm/bias"], atol=1e-12)


def _inner_slope(kind: Kind) -> Callable[[Tensor, Tensor], Tensor]:
    """w [4, 3], x [5, 3, 2] -> [4, 3]: a gradient through a norm, so that its derivative is a second one."""
    params = _params()

    def loss(w: Tensor, x: Tensor) -> Tensor:
        z = torch.einsum("cd,mds->mcs", w, x)
        return torch.tanh(Norm(kind, groups=2).apply(params, "a", z)).square().mean()

    return lambda w, x: torch.func.grad(loss)(w, x)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_right_whatever_the_order_of_vmap_and_grad(kind: Kind) -> None:
    """torch's own layer and batch norms are silently wrong under grad(vmap(grad))."""
    w, xs = _draw(4, 3), _draw(6, 5, 3, 2)
    slope = _inner_slope(kind)

    def after_a_step(w: Tensor, x: Tensor) -> Tensor:
        return (w - slope(w, x)).pow(3).sum()

    def by_differences(x: Tensor) -> Tensor:
        found, h = torch.zeros_like(w), 1e-5
        for i in range(w.numel()):
            step = torch.zeros(w.numel(), dtype=torch.float64)
            step[i] = h
            there, back = (after_a_step(w + s * step.view_as(w), x) for s in (1, -1))
            found.view(-1)[i] = (there - back) / (2 * h)
        return found

    loop = torch.stack([torch.func.grad(after_a_step)(w, x) for x in xs])
    inside = torch.func.vmap(torch.func.grad(after_a_step), in_dims=(None, 0))(w, xs)
    outside = torch.func.grad(lambda w: torch.func.vmap(after_a_step, in_dims=(None, 0))(w, xs).sum())(w)
    assert torch.allclose(loop[0], by_differences(xs[0]), atol=1e-7)
    assert torch.allclose(inside, loop, atol=1e-12, rtol=0)
    assert torch.allclose(outside, loop.sum(0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [True, False])
def test_torchs_batch_norm_on_the_tape_has_the_same_first_and_second_derivatives(scale: bool) -> None:
    norm, x = Norm("batch", scale=scale), _draw(6, 4, 3, 3).requires_grad_()
    leaves = {k: v.requires_grad_() for k, v in _params().items() if scale or not k.endswith("weight")}

    def derivatives() -> list[Tensor]:
        value = torch.tanh(norm.apply(leaves, "a", x)).square().sum()
        first = torch.autograd.grad(value, [x, *leaves.values()], create_graph=True)
        cubes = torch.stack([g.pow(3).sum() for g in first]).sum()
        second = torch.autograd.grad(cubes, [x, *leaves.values()])
        return [value, *first, *second]

    plain = derivatives()
    with native():
        quick = derivatives()
    assert all(torch.allclose(a, b, atol=1e-10, rtol=1e-10) for a, b in zip(plain, quick, strict=True))


def test_one_value_a_channel_is_the_bias_on_the_tape_or_not() -> None:
    params = {k: v.float() for k, v in _params().items()}
    for inside in (False, True):
        if inside:
            with native():
                out = Norm("batch").apply(params, "a", torch.ones(1, 4))
        else:
            out = Norm("batch").apply(params, "a", torch.ones(1, 4))
        assert torch.allclose(out[0], params["net/a/norm/bias"], atol=1e-4)


def _nets() -> list[tuple[Net, tuple[int, ...]]]:
    return [
        (conv4((1, 12, 12), 3, Conv4(5, layers=3), mode="inductive"), (1, 12, 12)),
        (mlp(6, 3, hidden=(7, 5), norm=Norm("batch"), mode="inductive"), (6,)),
    ]


@pytest.mark.parametrize(("net", "shape"), _nets(), ids=["conv4", "mlp"])
def test_population_statistics_are_those_of_all_batches_at_once(net: Net, shape: tuple[int, ...]) -> None:
    params = {k: v.double() for k, v in net.init(Generator().manual_seed(0)).items()}
    batches = [(i + 1) * _draw(m, *shape, seed=i) + i for i, m in enumerate((4, 9, 6))]  # uneven, and not alike
    stat = population(net, params, batches)
    layers = sum(1 for k in params if k.endswith("norm/bias"))
    assert len(stat) == 2 * layers
    assert all(k.startswith("stat/") for k in stat)
    together = net.apply(params, torch.cat(batches))
    apart = torch.cat([net.apply({**params, **stat}, x) for x in batches])
    assert torch.allclose(apart, together, atol=1e-12, rtol=0)


def test_population_changes_nothing_and_needs_a_batch_norm() -> None:
    net = mlp(6, 3, norm=Norm("layer"), mode="inductive")
    params = net.init(Generator().manual_seed(0))
    assert net.norm == "none", "a net without batch statistics has no mode"
    assert population(net, params, [torch.ones(2, 6)]) == {}


def test_population_without_batches_is_refused() -> None:
    net, _ = _nets()[0]
    with pytest.raises(ValueError, match="at least one batch"):
        population(net, net.init(Generator().manual_seed(0)), [])


def test_inductive_statistics_are_used_on_the_tape_too() -> None:
    net, shape = _nets()[0]
    params = net.init(Generator().manual_seed(0))
    full = {**params, **population(net, params, [torch.randn(8, *shape, generator=Generator().manual_seed(1))])}
    x = torch.randn(3, *shape, generator=Generator().manual_seed(2))
    with native():
        inside = net.apply(full, x)
    assert torch.equal(inside, net.apply(full, x))
    assert torch.allclose(net.apply(full, x[:1]), inside[:1], atol=1e-5)
