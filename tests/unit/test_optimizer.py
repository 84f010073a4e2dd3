"""The outer optimisers against torch.optim, step by step."""
from __future__ import annotations

import math

import pytest
import torch

from metasearch.objectives.optimizer import (
    Optimizer,
    adam,
    by_prefix,
    clipped,
    clipped_norm,
    constant,
    cosine,
    head,
    linear,
    sgd,
    steps_down,
)

PARAMS = {"net/a": (3, 4), "net/b": (4,), "lr/a": (1,)}


def _start() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {k: torch.randn(*s, generator=g, dtype=torch.float64) for k, s in PARAMS.items()}


def _gradients(step: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1 + step)
    return {k: torch.randn(*s, generator=g, dtype=torch.float64) for k, s in PARAMS.items()}


def _ours(rule: Optimizer, steps: int = 7) -> dict[str, torch.Tensor]:
    params = _start()
    state = rule.init(params)
    rates = {k: v.double() for k, v in rule.rates.items()}
    for i in range(steps):
        params, state = rule.update(_gradients(i), state, params, rates, torch.tensor(i / steps, dtype=torch.float64))
    return params


def _theirs(kind: type[torch.optim.Optimizer], steps: int = 7, **arguments: object) -> dict[str, torch.Tensor]:
    params = {k: v.clone().requires_grad_() for k, v in _start().items()}
    optimizer = kind(list(params.values()), **arguments)  # type: ignore[arg-type]
    for i in range(steps):
        for k, g in _gradients(i).items():
            params[k].grad = g
        optimizer.step()
    return {k: v.detach() for k, v in params.items()}


@pytest.mark.parametrize(("ours", "theirs"), [
    (sgd(0.125), (torch.optim.SGD, {"lr": 0.125})),
    (sgd(0.125, momentum=0.875, weight_decay=0.25), (torch.optim.SGD, {"lr": 0.125, "momentum": 0.875, "weight_decay": 0.25})),
    (sgd(0.125, momentum=0.875, nesterov=True), (torch.optim.SGD, {"lr": 0.125, "momentum": 0.875, "nesterov": True})),
    (adam(0.125), (torch.optim.Adam, {"lr": 0.125})),
    (adam(0.125, weight_decay=0.25), (torch.optim.Adam, {"lr": 0.125, "weight_decay": 0.25})),
    (adam(0.125, weight_decay=0.25, decoupled=True), (torch.optim.AdamW, {"lr": 0.125, "weight_decay": 0.25})),
    (adam(0.125, betas=(0.0, 0.99), eps=1e-3), (torch.optim.Adam, {"lr": 0.125, "betas": (0.0, 0.99), "eps": 1e-3})),
])
def test_rules_step_as_torch_optim_does(ours: Optimizer, theirs: tuple[type[torch.optim.Optimizer], dict[str, object]]) -> None:
    expected = _theirs(theirs[0], **theirs[1])
    for k, v in _ours(ours).items():
        torch.testing.assert_close(v, expected[k], rtol=1e-12, atol=1e-12)


def test_a_tensor_that_is_not_always_updated_has_a_count_of_its_own_as_in_torch() -> None:
    rule, late = adam(0.125), 4
    params = _start()
    state, rates = rule.init(params), {k: v.double() for k, v in rule.rates.items()}
    theirs = {k: v.clone().requires_grad_() for k, v in params.items()}
    optimizer = torch.optim.Adam(list(theirs.values()), lr=0.125)
    for step in range(9):
        grads = {k: g for k, g in _gradients(step).items() if k != "net/b" or step >= late}
        now = torch.tensor(0.0, dtype=torch.float64)
        changed, kept = rule.update(grads, state, {k: params[k] for k in grads}, rates, now)
        params, state = {**params, **changed}, {**state, **kept}
        for k, p in theirs.items():
            p.grad = grads.get(k)
        optimizer.step()
    for k, p in params.items():
        torch.testing.assert_close(p, theirs[k].detach(), rtol=1e-12, atol=1e-12)
    assert {k: int(state[f"count/{k}"]) for k in params} == {"net/a": 9, "net/b": 9 - late, "lr/a": 9}


def test_a_prefix_has_its_own_rule_and_the_longest_wins() -> None:
    found = _ours(by_prefix({"": sgd(0.5), "net/": adam(0.25), "net/b": sgd(0.125)}))
    torch.testing.assert_close(found["lr/a"], _ours(sgd(0.5))["lr/a"])
    torch.testing.assert_close(found["net/a"], _ours(adam(0.25))["net/a"])
    torch.testing.assert_close(found["net/b"], _ours(sgd(0.125))["net/b"])


def test_unmatched_keys_stay_as_they_are() -> None:
    found = _ours(by_prefix({"net/": sgd(0.5)}))
    torch.testing.assert_close(found["lr/a"], _start()["lr/a"])
    assert not torch.equal(found["net/a"], _start()["net/a"])


def test_clipping_is_elementwise_and_not_by_norm() -> None:
    params = {"net/a": torch.zeros(3)}
    rule = clipped(sgd(1.0), 10.0)
    new, _ = rule.update({"net/a": torch.tensor([30.0, -1.0, -11.0])}, {}, params, rule.rates, torch.tensor(0.0))
    assert new["net/a"].tolist() == [-10.0, 1.0, 10.0]


def test_schedules_begin_at_one_and_end_where_they_say() -> None:
    begin, half, end = (torch.tensor(p) for p in (0.0, 0.5, 1.0))
    for schedule, middle, last in [(cosine(0.1), 0.55, 0.1), (linear(0.2), 0.6, 0.2), (steps_down(3, 0.5), 0.25, 0.125)]:
        assert math.isclose(float(schedule(begin)), 1.0)
        assert math.isclose(float(schedule(half)), middle, rel_tol=1e-6)
        assert math.isclose(float(schedule(end)), last, rel_tol=1e-6, abs_tol=1e-7)
    assert constant(half) == 1.0


def test_a_vmap_over_rates_equals_separate_runs() -> None:
    """The door to fused trials: state, weights and rates may all have a leading dimension."""
    rates = torch.tensor([0.1, 0.01])
    rule = adam(1.0)
    params = {k: v.float() for k, v in _start().items()}
    grads = {k: v.float() for k, v in _gradients(0).items()}

    def once(lr: torch.Tensor) -> dict[str, torch.Tensor]:
        return rule.update(grads, rule.init(params), params, {**rule.rates, "lr": lr}, torch.tensor(0.0))[0]

    fused = torch.func.vmap(once)(rates)
    for i, lr in enumerate(rates):
        for k, v in once(lr).items():
            torch.testing.assert_close(fused[k][i], v)


def test_nesterov_without_momentum_and_bad_limits_are_errors_in_words() -> None:
    with pytest.raises(ValueError, match="momentum > 0"):
        sgd(0.1, nesterov=True)
    with pytest.raises(ValueError, match="must be positive"):
        clipped(sgd(0.1), 0.0)


def test_clipping_by_norm_scales_the_whole_gradient_as_torch_does() -> None:
    start, grads = _start(), {k: 10 * g for k, g in _gradients(0).items()}
    rule = clipped_norm(sgd(1.0), 0.25)
    moved, _ = rule.update(grads, rule.init(start), start, rule.rates, torch.zeros(()))
    theirs = [torch.nn.Parameter(v.clone()) for v in start.values()]
    for p, g in zip(theirs, grads.values(), strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(theirs, 0.25)
    for k, p in zip(start, theirs, strict=True):
        assert p.grad is not None
        assert torch.allclose(start[k] - moved[k], p.grad, atol=1e-6)
    small = {k: g * 1e-3 for k, g in _gradients(0).items()}
    untouched, _ = rule.update(small, rule.init(start), start, rule.rates, torch.zeros(()))
    assert all(torch.allclose(start[k] - untouched[k], small[k], atol=1e-7) for k in start), "short gradients stay as they are"


def test_the_names_of_a_rule_are_found_by_the_key_that_it_moves() -> None:
    rates = by_prefix({"": sgd(0.1), "net/": by_prefix({"net/a": sgd(0.1), "": sgd(0.2)}), "net/long/": sgd(0.3)}).rates
    found = {key: head(rates, key) for key in ("lr/x", "net/a/w", "net/b", "net/long/w")}
    assert found == {"lr/x": ":", "net/a/w": "net/:net/a:", "net/b": "net/::", "net/long/w": "net/long/:"}
    assert head(by_prefix({"net/": sgd(0.1)}).rates, "lr/x") is None
    assert head(by_prefix({"": sgd(0.1), "net/": by_prefix({"net/head": sgd(0.1)})}).rates, "net/body") is None
    assert head(sgd(0.1).rates, "lr/x") == head({}, "lr/x") == ""
