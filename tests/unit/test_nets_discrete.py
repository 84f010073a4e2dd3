"""From shares to one architecture: DARTS' rule, soft pruning, pairs of inputs; the same under a vmap."""
from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Generator, Tensor

from metasearch.nets import Params
from metasearch.nets.discrete import Choices, entropy
from metasearch.nets.head import headed
from metasearch.nets.mlp import mlp
from search_spaces import darts_cells

OPTIONS = dict.fromkeys(darts_cells.RELAXED, darts_cells.PRIMITIVES)
DARTS = Choices.of(OPTIONS, darts_cells.NODE_INPUTS)
PAIRS = Choices.of(OPTIONS, darts_cells.NODE_INPUTS, pairs=True)
EDGES = Choices.of({"a": ("none", "x", "y"), "b": ("x", "none"), "c": ("x", "y")})


def _logits(choices: Choices, seed: int, count: int | None = None) -> Params:
    g = Generator().manual_seed(seed)
    lead = () if count is None else (count,)
    keys = {f"arch/{path}": 8 for path in OPTIONS} | {k: len(v) for k, v in choices.begin(g).items()}
    return {k: 3 * torch.randn(*lead, n, generator=g, dtype=torch.float64) for k, n in keys.items()}


def _shares(logits: Params) -> Params:
    return {k: a.softmax(-1) for k, a in logits.items()}


def test_the_rule_for_two_inputs_is_that_of_the_space() -> None:
    for seed in range(50):
        logits = _logits(DARTS, seed)
        shares = {path: logits[f"arch/{path}"].softmax(-1).tolist() for path in OPTIONS}
        found = {path: darts_cells.PRIMITIVES[n] for path, n in DARTS.numbers(logits).items()}
        assert found == darts_cells.derive(shares)


def test_none_is_not_chosen_where_something_else_is() -> None:
    logits = {"arch/a": torch.tensor([9.0, 0.0, 1.0]), "arch/b": torch.tensor([0.0, 9.0]), "arch/c": torch.tensor([0.0, 9.0])}
    assert EDGES.numbers(logits) == {"a": 2, "b": 0, "c": 1}
    assert Choices.of({"a": ("none",)}).numbers({"arch/a": torch.zeros(1)}) == {"a": 0}, "unless there is nothing else"


@pytest.mark.parametrize("choices", [DARTS, PAIRS], ids=["largest", "pairs"])
def test_what_is_chosen_is_one_option_and_two_inputs(choices: Choices) -> None:
    shares = _shares(choices.hard(_logits(choices, 1)))
    assert set(shares) == {f"arch/{path}" for path in OPTIONS}
    assert all(sorted(share.tolist()) == [0.0] * 7 + [1.0] for share in shares.values())
    for group in darts_cells.NODE_INPUTS:
        assert sum(float(shares[f"arch/{path}"][0]) == 0 for path in group) == 2


def test_without_temperature_and_none_a_mixture_is_the_softmax() -> None:
    logits = {"arch/c": torch.tensor([0.3, -2.0], dtype=torch.float64)}
    torch.testing.assert_close(_shares(Choices().mixed(logits, temperature=1.0)), _shares(logits), rtol=1e-14, atol=1e-14)
    warmer = _shares(Choices().mixed(logits, temperature=10.0))
    torch.testing.assert_close(warmer["arch/c"], (logits["arch/c"] / 10).softmax(-1), rtol=1e-14, atol=1e-14)


def test_as_temperature_falls_the_mixture_becomes_what_is_chosen() -> None:
    gaps = []
    for temperature in (1.0, 0.1, 0.001):
        logits = PAIRS.closed(_logits(PAIRS, 2), temperature=1.0, least=0.0)
        soft, hard = _shares(PAIRS.mixed(logits, temperature=temperature)), _shares(PAIRS.hard(logits))
        gaps.append(max(float((soft[k] - hard[k]).abs().max()) for k in hard))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-12


def test_a_node_is_the_sum_over_pairs_of_inputs() -> None:
    """sum over pairs of p_pair (f_i + f_j) = sum over edges of what the edge's shares of operations say."""
    logits = PAIRS.closed(_logits(PAIRS, 3), temperature=1.0, least=0.0)
    shares = _shares(PAIRS.mixed(logits, temperature=0.7))
    values = torch.randn(8, generator=Generator().manual_seed(0), dtype=torch.float64)
    values[0] = 0.0  # none adds nothing
    for i, group in enumerate(darts_cells.NODE_INPUTS):
        alone = [(logits[f"arch/{path}"] / 0.7).softmax(-1) @ values for path in group]
        p = (logits[f"arch/pairs/{i}"] / 0.7).softmax(-1)
        right = sum(p[n] * (alone[a] + alone[b]) for n, (a, b) in enumerate(combinations(range(len(group)), 2)))
        assert float(sum(shares[f"arch/{path}"] @ values for path in group)) == pytest.approx(float(right), abs=1e-12)


def test_what_is_closed_has_no_way_back() -> None:
    """No gradient, and no share, at any later temperature; the largest stays open whatever the threshold."""
    logits = {"arch/a": torch.tensor([5.0, 1.0, 0.9]), "arch/b": torch.tensor([1.0, 5.0]), "arch/c": torch.tensor([0.0, 3.0])}
    closed = EDGES.closed(logits, temperature=0.1, least=0.01)
    assert {k: a.isfinite().tolist() for k, a in closed.items()} == {
        "arch/a": [False, True, True], "arch/b": [True, False], "arch/c": [False, True]}
    assert EDGES.closed(logits, temperature=0.1, least=0.99)["arch/a"].isfinite().any()

    def value(a: Params) -> Tensor:
        shares = _shares(EDGES.mixed(a, temperature=0.5, least=0.01))
        return torch.stack([(share * torch.arange(len(share))).sum() for share in shares.values()]).sum()

    slope = torch.func.grad(value)(closed)
    assert all(bool(g.isfinite().all()) for g in slope.values())
    assert slope["arch/a"].ne(0).tolist() == [False, True, True]
    assert not slope["arch/c"].any()


def test_all_tasks_of_a_batch_choose_for_themselves() -> None:
    many = _logits(PAIRS, 4, count=5)
    for do in (PAIRS.hard, lambda a: PAIRS.mixed(a, temperature=0.3, least=0.01),
               lambda a: PAIRS.closed(a, temperature=0.3, least=0.05)):
        together = torch.func.vmap(do)(many)
        for i in range(5):
            one = do({k: v[i] for k, v in many.items()})
            torch.testing.assert_close({k: v[i] for k, v in together.items()}, one, rtol=1e-12, atol=1e-12)
    numbers = [PAIRS.numbers({k: v[i] for k, v in many.items()}) for i in range(5)]
    assert len({tuple(n.values()) for n in numbers}) == 5


def test_entropy_is_1_of_equal_shares_and_0_of_a_choice() -> None:
    assert float(entropy({"a": torch.zeros(4), "b": torch.zeros(1)})) == pytest.approx(1.0)
    assert float(entropy({"a": torch.tensor([0.0, -torch.inf, -torch.inf])})) == 0.0


def test_inputs_need_an_option_that_does_nothing() -> None:
    with pytest.raises(ValueError, match="b have no such option"):
        Choices.of({"a": ("none", "x"), "b": ("x", "y")}, [("a", "b")])


# a head behind features -----------------------------------------------------------------------------------------------------


def test_a_head_is_a_linear_layer_behind_the_features() -> None:
    net = mlp((6,), None, hidden=(5,))
    whole = headed(net, 3)
    params, x = whole.init(Generator().manual_seed(0)), torch.randn(4, 6)
    assert set(params) - set(net.init(Generator().manual_seed(0))) == {"net/head/weight", "net/head/bias"}
    z = net.apply(params, x)
    torch.testing.assert_close(whole.apply(params, x), z @ params["net/head/weight"].T + params["net/head/bias"])
    assert whole.body is not None
    assert whole.head is not None
    torch.testing.assert_close(whole.head(params, whole.body(params, x)), whole.apply(params, x))
    assert headed(whole, 3) is whole
    with pytest.raises(ValueError, match="3 outputs, but 5"):
        headed(whole, 5)
    with pytest.raises(ValueError, match="how many features"):
        headed(net._replace(features=0), 3)
