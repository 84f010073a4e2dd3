"""The LSTM meta-learner against SGD, FOMAML, and a second writing of its equations, one coordinate at a time."""
from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from metasearch.learners import _coordinates, inner
from metasearch.learners.fomaml import FOMAML
from metasearch.learners.maml import MAML
from metasearch.learners.meta_lstm import MetaLSTM
from metasearch.nets import Net, Params
from metasearch.nets.mlp import mlp
from metasearch.tasks import Episode

LR = 0.1


def _mse(output: Tensor, y: Tensor) -> Tensor:
    return (output - y).square().mean()


def _net() -> Net:
    return mlp(3, 2, hidden=(4,), act="tanh")


def _episode(inputs: int = 3, outputs: int = 2, rows: int = 7) -> Episode:
    generator = Generator().manual_seed(1)
    sx, sy, qx, qy = (torch.randn(rows, n, generator=generator, dtype=torch.float64) for n in (inputs, outputs) * 2)
    return Episode(sx, sy, qx, qy)


def _meta(learner: MetaLSTM, net: Net) -> Params:
    """As it begins, but with gates that differ from each other and from coordinate to coordinate."""
    meta = {k: v.double() for k, v in learner.init(net, Generator().manual_seed(0)).items()}
    generator = Generator().manual_seed(5)
    strong = {k: v + torch.randn(v.shape, generator=generator).double() for k, v in meta.items() if not k.startswith("net/")}
    return {**meta, **strong, "gates/forget/bias": meta["gates/forget/bias"], "gates/input/bias": torch.tensor([-2.0]).double()}


def _constant(meta: Params) -> Params:
    """f = 1 (to the last bit of a double) and i = LR."""
    gates = {f"gates/{gate}/weight": torch.zeros_like(meta[f"gates/{gate}/weight"]) for gate in ("forget", "input")}
    biases = {"gates/forget/bias": 50.0, "gates/input/bias": math.log(LR / (1 - LR))}
    return {**meta, **gates, **{k: torch.tensor([b], dtype=torch.float64) for k, b in biases.items()}}


@pytest.mark.parametrize("recurrent", ["logit", "gate"])
def test_with_constant_gates_it_is_sgd(recurrent: str) -> None:
    net, e, learner = _net(), _episode(), MetaLSTM(5, recurrent=recurrent)  # type: ignore[arg-type]
    meta = _constant(_meta(learner, net))
    found = learner.adapt(net, _mse, meta, e.support_x, e.support_y)
    start = {k: meta[k] for k in found}
    sgd = inner.sgd_steps(lambda p: _mse(net.apply(p, e.support_x), e.support_y), start, lr=LR, steps=5)
    assert all(torch.allclose(found[k], sgd[k], atol=1e-14, rtol=0) for k in sgd)


def test_the_gradient_of_the_learner_is_a_constant_to_the_outer_loop() -> None:
    """So with constant gates the outer gradient is FOMAML's, not MAML's."""
    net, e, learner = _net(), _episode(), MetaLSTM(3)
    meta = _constant(_meta(learner, net))
    found, _ = learner.episode_gradient(net, _mse, meta, e)
    start = {k: v for k, v in meta.items() if k.startswith("net/")}
    first, _ = FOMAML(LR, 3).episode_gradient(net, _mse, start, e)
    second, _ = MAML(LR, 3).episode_gradient(net, _mse, start, e)
    assert all(torch.allclose(found[k], first[k], atol=1e-14) for k in first)
    assert any(not torch.allclose(found[k], second[k], atol=1e-4) for k in first)


@pytest.mark.parametrize("recurrent", ["logit", "gate"])
def test_steps_are_those_of_the_equations_coordinate_by_coordinate(recurrent: str) -> None:
    """Written a second time, with torch's own LSTM cell and one coordinate after the other."""
    net, e, learner = _net(), _episode(), MetaLSTM(4, hidden=5, recurrent=recurrent)  # type: ignore[arg-type]
    meta = _meta(learner, net)
    cell = torch.nn.LSTMCell(4, 5).double()
    theta = {k: v for k, v in meta.items() if k.startswith("net/")}
    with torch.no_grad():
        for mine, theirs in (("weight_x", cell.weight_ih), ("weight_h", cell.weight_hh), ("bias", cell.bias_ih)):
            theirs.copy_(meta[f"lstm/{mine}"])
        cell.bias_hh.zero_()
    c = _coordinates.flat(theta).tolist()
    gate = {name: [0.0] * len(c) for name in ("forget", "input")}
    state: list[tuple[Tensor, Tensor] | None] = [None] * len(c)
    for _ in range(4):
        now = _coordinates.like(torch.tensor(c, dtype=torch.float64), theta)
        grads, value = torch.func.grad_and_value(lambda p: _mse(net.apply(p, e.support_x), e.support_y))(now)
        told = _coordinates.log_and_sign(value, 10).tolist()
        for j, g in enumerate(_coordinates.flat(grads).tolist()):
            own = _coordinates.log_and_sign(torch.tensor(g, dtype=torch.float64), 10).tolist()
            x = torch.tensor([told + own], dtype=torch.float64)
            with torch.no_grad():
                h, memory = cell(x) if state[j] is None else cell(x, state[j])
            state[j] = (h, memory)
            sigmoid = {}
            for name in gate:
                past = gate[name][j] if recurrent == "logit" else 1 / (1 + math.exp(-gate[name][j]))
                read = torch.tensor([*h[0].tolist(), c[j], past], dtype=torch.float64)
                logit = float(meta[f"gates/{name}/weight"][0] @ read + meta[f"gates/{name}/bias"])
                gate[name][j], sigmoid[name] = logit, 1 / (1 + math.exp(-logit))
            c[j] = sigmoid["forget"] * c[j] - sigmoid["input"] * g
    found = _coordinates.flat(learner.adapt(net, _mse, meta, e.support_x, e.support_y))
    assert torch.allclose(found, torch.tensor(c, dtype=torch.float64), atol=1e-12, rtol=0)


def test_permuting_coordinates_permutes_updates() -> None:
    """A linear net's weights in another order, with its inputs in that order: the gates are shared by all coordinates."""
    net = Net(lambda g: {"net/head/weight": torch.randn(1, 6, generator=g)}, lambda p, x: x @ p["net/head/weight"].T)
    e, learner, order = _episode(6, 1), MetaLSTM(6), torch.tensor([3, 0, 5, 1, 4, 2])
    meta = _meta(learner, net)
    moved = {**meta, "net/head/weight": meta["net/head/weight"][:, order]}
    found = learner.adapt(net, _mse, meta, e.support_x, e.support_y)["net/head/weight"]
    again = learner.adapt(net, _mse, moved, e.support_x[:, order], e.support_y)["net/head/weight"]
    assert torch.allclose(again, found[:, order], atol=1e-13, rtol=0)


def test_gates_begin_open_to_the_past_and_nearly_closed_to_the_gradient() -> None:
    net, learner = _net(), MetaLSTM()
    sizes = {k: v.numel() for k, v in learner.init(net, Generator()).items() if not k.startswith("net/")}
    assert sum(sizes.values()) == 4 * 20 * (4 + 20 + 1) + 2 * (20 + 1 + 1 + 1)
    for seed in range(20):
        meta = learner.init(net, Generator().manual_seed(seed))
        forget, step = (float(meta[f"gates/{gate}/bias"].sigmoid()) for gate in ("forget", "input"))
        assert 0.982 - 1e-4 <= forget <= 0.9934
        assert 0.0066 <= step <= 0.018
        small = [k for k in sizes if not k.endswith("gates/forget/bias") and not k.endswith("gates/input/bias")]
        assert max(float(meta[k].abs().max()) for k in small) <= 0.01


def test_what_means_nothing_is_refused() -> None:
    for wrong in ({"inner_steps": -1}, {"hidden": 0}, {"p": 0}, {"recurrent": "both"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MetaLSTM(**wrong)  # type: ignore[arg-type]
