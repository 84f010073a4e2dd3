"""CAVIA: the context alone is adapted; beside the inputs it is literally so; behind a block it scales and shifts channels."""
from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from metasearch.learners.cavia import CAVIA
from metasearch.nets import Net, Params
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.identity import identity
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm
from metasearch.tasks import Episode


def _mse(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().mean()


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def _episode() -> Episode:
    return Episode(_normal(0, 4, 3), _normal(1, 4, 2), _normal(2, 5, 3), _normal(3, 5, 2), {})


def _meta(learner: CAVIA, net: Net) -> Params:
    return {k: v.double() for k, v in learner.init(net, Generator().manual_seed(7)).items()}


@pytest.mark.parametrize("steps", [1, 3])
def test_a_context_beside_the_inputs_is_a_net_with_more_inputs(steps: int) -> None:
    """Another net, with 3 + 2 inputs, and phi written behind every row of x: outputs and all outer gradients are the same."""
    learner, e = CAVIA(0.5, steps, context=2), _episode()
    net, wide = (mlp(inputs, 2, hidden=(6, 5), act="tanh") for inputs in (3, 5))
    meta = _meta(learner, net)
    first = torch.cat([meta["net/layer1/weight"], meta["context/shift"]], 1)
    theta = {k: v.clone() for k, v in {**meta, "net/layer1/weight": first}.items() if k != "context/shift"}
    theta = {k: v.requires_grad_() for k, v in theta.items()}
    phi = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def f(x: Tensor, phi: Tensor) -> Tensor:
        return wide.apply(theta, torch.cat([x, phi.expand(len(x), -1)], 1))

    for _ in range(steps):
        phi = phi - 0.5 * torch.autograd.grad(_mse(f(e.support_x, phi), e.support_y), phi, create_graph=True)[0]
    value = _mse(f(e.query_x, phi), e.query_y)
    slopes = dict(zip(theta, torch.autograd.grad(value, list(theta.values())), strict=True))
    grads, told = learner.episode_gradient(net, _mse, meta, e)
    torch.testing.assert_close(told["loss"], value.detach())
    torch.testing.assert_close(learner.adapt(net, _mse, meta, e.support_x, e.support_y)["phi"], phi.detach())
    grads["net/layer1/weight"] = torch.cat([grads["net/layer1/weight"], grads.pop("context/shift")], 1)
    for k, g in slopes.items():
        torch.testing.assert_close(grads[k], g, rtol=1e-9, atol=1e-12)


def test_film_scales_and_shifts_every_channel_behind_its_block() -> None:
    """Written down again for two convolutions and a norm, with a context in the middle and one at the end."""
    net = conv4((1, 8, 8), 3, Conv4(4, layers=2, norm=Norm("layer")))
    x, phi = _normal(0, 3, 1, 8, 8), _normal(1, 6)
    for block in (0, -1):
        learner = CAVIA(by="film", block=block, context=6)
        meta = _meta(learner, net)
        z, scale, shift = x, 1 + meta["context/scale"] @ phi, meta["context/shift"] @ phi
        for i, one in enumerate(net.blocks):
            z = one.apply(meta, z)
            if i == block % 2:
                maps = z.view(3, 4, -1)
                z = (maps * scale[:, None] + shift[:, None]).view(z.shape)
        assert net.head is not None
        torch.testing.assert_close(learner.predict(net, meta, {"phi": phi}, x), net.head(meta, z))


@pytest.mark.parametrize("by", ["concat", "film"])
def test_the_context_begins_at_nothing_and_is_all_that_is_adapted(by: str) -> None:
    learner, net, e = CAVIA(by=by, inner_steps=2), mlp(3, 2, hidden=(6, 5), act="tanh"), _episode()  # type: ignore[arg-type]
    meta = _meta(learner, net)
    task = learner.adapt(net, _mse, meta, e.support_x, e.support_y)
    assert {k: tuple(v.shape) for k, v in task.items()} == {"phi": (5,)}
    assert not torch.equal(learner.predict(net, meta, task, e.query_x), net.apply(meta, e.query_x))
    unknown = CAVIA(by=by, inner_steps=0).adapt(net, _mse, meta, e.support_x, e.support_y)  # type: ignore[arg-type]
    torch.testing.assert_close(learner.predict(net, meta, unknown, e.query_x), net.apply(meta, e.query_x))
    grads, _ = learner.episode_gradient(net, _mse, meta, e)
    assert all(g.abs().max() > 0 for g in grads.values()), "everything else is learnt, the way that the context enters included"


def test_what_has_no_place_for_a_context_is_refused() -> None:
    for learner, net in ((CAVIA(), identity(3)), (CAVIA(by="film", block=2), mlp(3, 2)), (CAVIA(), mlp(3, 2, hidden=()))):
        with pytest.raises(ValueError, match="CAVIA's context enters"):
            learner.init(net, Generator())
    with pytest.raises(ValueError, match="'concat' or 'film', but got 'add'"):
        CAVIA(by="add")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="context >= 1"):
        CAVIA(context=0)
