"""Controllers: what an LSTM over a space says of its probabilities, and how REINFORCE and PPO move it."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from metasearch.records import Config, Outcome, Proposal, Status
from metasearch.space import Choice, Float, Int, Leaf, Repeat, Space, digest
from metasearch.strategies import build
from metasearch.strategies._controller import Controller, Plan, Weights, discretised
from metasearch.strategies._draws import rng_of
from metasearch.strategies._policy_gradient import Adam, PolicyGradient, Sample

SMALL = Space({name: Choice(("a", "b", "c")) for name in "xyz"})
PAIR = Space({"first": Choice((0, 1, 2, 3)), "second": Choice((0, 1, 2, 3))})
SKIPS = Space({
    "net": Repeat(Int(1, 4), tuple(
        Space({"op": Choice(("conv", "pool")), **{f"skip_{j}": Choice((False, True)) for j in range(i)}}) for i in range(4)
    )),
    "head": Choice({"linear": Space({}), "cosine": Space({"scale": Int(1, 3)})}),
})


def made(name: str, space: Space, seed: int = 0, **hyperparameters: Any) -> PolicyGradient:
    strategy = build(name, space, hyperparameters, seed=seed)
    assert isinstance(strategy, PolicyGradient)
    return strategy


def wide(controller: Controller, seed: int = 0) -> Weights:
    """Weights far from 0, so that probabilities differ."""
    return {key: 15 * value for key, value in controller.init(Generator().manual_seed(seed)).items()}


def everything(space: Space) -> list[Config]:
    assert isinstance(space.size, int)
    return [space.unrank(i) for i in range(space.size)]


def samples_of(policy: PolicyGradient, configs: Sequence[Config], log_prob: float = 0.0) -> list[Sample]:
    return [Sample(config, policy.controller.plan(config), log_prob, 0) for config in configs]


# -- the controller ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [SMALL, SKIPS], ids=["flat", "conditional, repeated, skips"])
def test_probabilities_of_all_configs_sum_to_one(space: Space) -> None:
    controller = Controller(space)
    log_prob, _ = controller.log_probs(wide(controller), [controller.plan(config) for config in everything(space)])
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert float(log_prob.max() - log_prob.min()) > 1


def test_a_sample_knows_its_own_log_probability() -> None:
    controller = Controller(SKIPS)
    weights = wide(controller)
    drawn = [controller.sample(weights, rng_of(0, n)) for n in range(30)]
    log_prob, _ = controller.log_probs(weights, [plan for _, plan, _ in drawn])
    assert log_prob.tolist() == pytest.approx([known for _, _, known in drawn], abs=1e-12)
    assert all(controller.plan(config) == plan for config, plan, _ in drawn)


def test_samples_come_as_often_as_their_probability_says() -> None:
    """Chi-squared with 26 degrees of freedom: above 65 once in 40,000 seeds; the seed is fixed."""
    controller = Controller(SMALL)
    weights = {key: 5 * value for key, value in controller.init(Generator().manual_seed(1)).items()}
    n, counts = 2000, np.zeros(27)
    for i in range(n):
        counts[SMALL.rank(controller.sample(weights, rng_of(3, i))[0])] += 1
    plans = [controller.plan(config) for config in everything(SMALL)]
    expected = n * controller.log_probs(weights, plans)[0].exp().numpy()
    assert float(((counts - expected) ** 2 / expected).sum()) < 65


def test_layers_of_a_repeat_share_a_softmax_and_options_of_one_decide_nothing() -> None:
    space = Space({"layer": Repeat(Int(3, 3), Space({"op": Choice(("a", "b")), "k": Int(1, 2), "one": Choice((7,))}))})
    controller = Controller(space)
    assert [path for path, _ in controller.kinds] == ["layer.*.op", "layer.*.k"]
    assert len(controller.plan(space.unrank(0)).inputs) == 6


def test_a_skip_has_the_probability_of_the_paper() -> None:
    """P(j -> i) = sigmoid(v' tanh(W_prev h_j + W_curr h_i)), all skips of an item at one step."""
    controller = Controller(SKIPS)
    weights = wide(controller)
    config: Config = {
        "net.count": 3, "net.0.op": "conv", "net.1.op": "pool", "net.1.skip_0": True, "net.2.op": "conv", "net.2.skip_0": False,
        "net.2.skip_1": True, "head": "linear",
    }
    plan = controller.plan(config)
    # steps: 0 count, 1 op, 2 anchor of item 0, 3 op, 4 anchor of 1, 5 op, 6 anchor of 2, 7 head
    assert plan.skips == [(4, 2, 1), (6, 2, 0), (6, 4, 1)]
    assert plan.mixes == [(), (), (), (), (), (2,), (), (4,)][:len(plan.mixes)]
    h = controller._states(weights, [plan], len(plan.inputs))[0]
    by_hand = 0.0
    for here, there, taken in plan.skips:
        z = torch.tanh(weights["anchor/previous"] @ h[there] + weights["anchor/current"] @ h[here])
        p = float(torch.sigmoid(weights["anchor/v"] @ z))
        by_hand += math.log(p if taken else 1 - p)
    without = plan._replace(skips=[])
    both, _ = controller.log_probs(weights, [plan, without])
    assert float(both[0] - both[1]) == pytest.approx(by_hand, abs=1e-10)


def test_the_divergence_of_skips_is_that_of_enas() -> None:
    """KL(p || rate), summed over the skips of an item, averaged over the items that have some; p from the log-probabilities."""
    controller = Controller(SKIPS, hidden=9)
    weights = wide(controller)
    plan = controller.plan({
        "net.count": 3, "net.0.op": "conv", "net.1.op": "pool", "net.1.skip_0": True, "net.2.op": "conv", "net.2.skip_0": False,
        "net.2.skip_1": True, "head": "linear",
    })
    without = float(controller.log_probs(weights, [plan._replace(skips=[])])[0])

    def divergence(skip: tuple[int, int, int]) -> float:
        taken = (*skip[:2], 1)
        p = math.exp(float(controller.log_probs(weights, [plan._replace(skips=[taken])])[0]) - without)
        return p * math.log(p / 0.3) + (1 - p) * math.log((1 - p) / 0.7)

    one, two, three = map(divergence, plan.skips)
    short = controller.plan({"net.count": 1, "net.0.op": "conv", "head": "linear"})
    found = controller.skip_divergence(weights, [plan, short], 0.3)
    assert found.tolist() == pytest.approx([(one + (two + three)) / 2, 0.0], rel=1e-9)
    assert controller.skip_divergence(weights, [short], 0.3).tolist() == [0.0]
    assert Controller(SMALL).skip_divergence(Controller(SMALL).init(Generator()), [], 0.3).tolist() == []


def skip_rate(policy: PolicyGradient) -> float:
    rng = np.random.default_rng(0)
    with torch.no_grad():
        drawn = [policy.controller.sample(policy.weights, rng)[0] for _ in range(150)]
    skips = [value for config in drawn for path, value in config.items() if "skip_" in path]
    return sum(map(bool, skips)) / len(skips)


@pytest.mark.parametrize(("weight", "target", "low", "high"), [
    (0.0, 0.4, 0.45, 0.56), (0.8, 0.4, 0.34, 0.44), (0.8, 0.15, 0.08, 0.24),
])
def test_the_prior_moves_the_rate_of_skips(weight: float, target: float, low: float, high: float) -> None:
    """Rewards that say nothing: without the prior a controller stays where it began, at 1/2 (some 600 skips: 0.02)."""
    policy = made("reinforce", SKIPS, batch=4, lr=0.02, hidden=12, layers=1, skip_weight=weight, skip_target=target)
    for _ in range(60):
        drawn = [policy.sample() for _ in range(4)]
        policy.update(drawn, [1.0] * 4)
    assert low < skip_rate(policy) < high


def test_the_prior_holds_against_rewards_that_want_every_skip() -> None:
    rates = []
    for weight in (0.0, 0.8):
        policy = made("reinforce", SKIPS, batch=4, lr=0.02, hidden=12, layers=1, skip_weight=weight)
        for _ in range(60):
            drawn = [policy.sample() for _ in range(4)]
            skips = [[bool(v) for k, v in sample.config.items() if "skip_" in k] for sample in drawn]
            policy.update(drawn, [0.5 * sum(taken) / max(1, len(taken)) for taken in skips])
        rates.append(skip_rate(policy))
    assert rates[0] > 0.9
    assert rates[1] < 0.75


def test_impossible_priors_are_refused() -> None:
    for wrong in ({"skip_weight": -1.0}, {"skip_target": 0.0}, {"skip_target": 1.0}):
        with pytest.raises(ValueError, match="0 < skip_target < 1"):
            made("reinforce", SKIPS, **wrong)


def test_what_was_skipped_to_changes_what_follows() -> None:
    controller = Controller(SKIPS)
    weights = wide(controller)
    base: Config = {"net.count": 2, "net.0.op": "conv", "net.1.op": "pool", "net.1.skip_0": False, "head": "linear"}
    states = []
    for taken in (False, True):
        plan = controller.plan({**base, "net.1.skip_0": taken})
        states.append(controller._states(weights, [plan], len(plan.inputs))[0, -1])
    assert float((states[0] - states[1]).abs().max()) > 1e-3


def test_what_follows_skips_reads_the_mean_of_a_learnt_vector_and_the_chosen_states() -> None:
    """As in ENAS: the sum over the chosen anchors, divided by one more than there are."""
    controller = Controller(SKIPS)
    weights = wide(controller)
    plan = controller.plan({
        "net.count": 3, "net.0.op": "conv", "net.1.op": "pool", "net.1.skip_0": True, "net.2.op": "conv", "net.2.skip_0": True,
        "net.2.skip_1": True, "head": "linear",
    })
    assert plan.mixes[-1] == (2, 4), "both earlier anchors, before the head is decided"
    h = controller._states(weights, [plan], len(plan.inputs))[0]
    states = controller._zeros(1)
    for at in range(len(plan.inputs)):
        x = weights["embedding"][plan.inputs[at]]
        x = torch.stack([x, *(h[i] for i in plan.mixes[at])]).mean(0)
        states = controller._stepped(weights, x[None], states)
        assert h[at].tolist() == pytest.approx(states[-1][0][0].tolist(), abs=1e-12)


def test_entropy_is_that_of_the_decisions_on_the_way() -> None:
    controller = Controller(Space({"x": Choice(("a", "b", "c"))}))
    weights = wide(controller)
    log_prob, entropy = controller.log_probs(weights, [controller.plan({"x": option}) for option in "abc"])
    assert entropy.tolist() == pytest.approx([-float((log_prob.exp() * log_prob).sum())] * 3)


def test_gradients_are_those_of_finite_differences() -> None:
    controller = Controller(SKIPS, hidden=5)
    weights = {key: value.requires_grad_() for key, value in wide(controller).items()}
    plans = [controller.sample({k: v.detach() for k, v in weights.items()}, rng_of(1, n))[1] for n in range(3)]

    def total(*values: Tensor) -> Tensor:
        log_prob, entropy = controller.log_probs(dict(zip(weights, values, strict=True)), plans)
        return log_prob.sum() + 0.1 * entropy.sum()

    assert torch.autograd.gradcheck(total, tuple(weights.values()), fast_mode=True)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reinforce", "ppo"])
def test_a_continuous_dimension_without_bins_is_refused_by_name(name: str) -> None:
    space = Space({"head": Choice({"maml": Space({"lr": Float(0.1, 1.0)})}), "steps": Int(1, 1000), "few": Int(1, 9)})
    with pytest.raises(ValueError, match=rf"^{name} decides .*'head\.lr', 'steps'\. Set `bins`.* or use tpe, cma-es"):
        build(name, space, {}, seed=0)
    proposal = build(name, space, {"bins": 5}, seed=0).ask()
    assert proposal is not None
    space.validate(proposal.config)


def test_bins_are_evenly_spaced_values_with_both_ends() -> None:
    space = Space({"lr": Float(1e-4, 1.0, log=True), "layers": Repeat(Int(0, 200), Space({"n": Int(1, 1000)}))})
    coarse = discretised(space, 3, "it")
    lr = coarse.dims["lr"]
    assert isinstance(lr, Choice)
    assert lr.values == pytest.approx((1e-4, 1e-2, 1.0))
    layers = coarse.dims["layers"]
    assert isinstance(layers, Repeat)
    assert layers.count == Int(0, 200)
    n = layers.bodies[0].dims["n"]
    assert isinstance(n, Choice)
    assert (n.values[0], n.values[-1]) == (1, 1000)


@pytest.mark.parametrize(("name", "wrong"), [
    ("reinforce", {"batch": 0}), ("reinforce", {"lr": 0.0}), ("reinforce", {"decay": 1.0}), ("reinforce", {"power": 0.0}),
    ("reinforce", {"hidden": 0}), ("reinforce", {"temperature": 0.0}), ("ppo", {"epsilon": 1.0}), ("ppo", {"passes": 0}),
    ("ppo", {"layers": 0}), ("ppo", {"bins": 1}),
])
def test_wrong_hyperparameters_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        build(name, SMALL, wrong, seed=0)


# -- REINFORCE ---------------------------------------------------------------------------------------------------------


def test_reinforce_finds_a_planted_optimum_in_about_230_updates() -> None:
    """8 decisions of 4 options, R = (share that matches)^3, batches of 8, Adam 6e-4, decay .95: 225, 228, 229 (seeds 0-2)."""
    space = Space({f"d{i}": Choice(tuple("abcd")) for i in range(8)})
    policy = made("reinforce", space)
    needed = 0
    while (policy.baseline or 0) <= 0.95 and needed < 300:
        drawn = [policy.sample() for _ in range(8)]
        policy.update(drawn, [(sum(map(str.__eq__, sample.config.values(), "abcdabdc")) / 8) ** 3 for sample in drawn])
        needed += 1
    assert 180 < needed < 260


def enumerated(policy: PolicyGradient, rewards: Sequence[float], configs: Sequence[Config]) -> Weights:
    """-sum_a P(a) R(a) grad log P(a), as the gradient of -sum_a P(a) R(a)."""
    weights = {key: value.clone().requires_grad_() for key, value in policy.weights.items()}
    log_prob, _ = policy.controller.log_probs(weights, [policy.controller.plan(config) for config in configs])
    expected = -(log_prob.exp() * torch.tensor(rewards, dtype=torch.float64)).sum()
    found = torch.autograd.grad(expected, list(weights.values()), materialize_grads=True)
    return dict(zip(weights, found, strict=True))


def test_the_expected_gradient_is_that_of_the_expected_reward() -> None:
    """Over all 27 configs, weighted with their probabilities: exact. The mean over 4,000 samples is 9 % of its length away."""
    policy = made("reinforce", SMALL, init=0.5)
    configs = everything(SMALL)
    rewards = [1.0 + (i * 7) % 5 for i in range(27)]
    exact = enumerated(policy, rewards, configs)
    log_prob, _ = policy.controller.log_probs(policy.weights, [policy.controller.plan(config) for config in configs])
    shares = log_prob.detach().exp()
    weighted = policy.gradient(samples_of(policy, configs), 27 * shares * torch.tensor(rewards, dtype=torch.float64))
    for key, value in exact.items():
        assert weighted[key] == pytest.approx(value, abs=1e-12)
    drawn = [policy.sample() for _ in range(4000)]
    mean = sum(s * r for s, r in zip(shares.tolist(), rewards, strict=True))  # a baseline changes no expectation
    advantages = torch.tensor([rewards[SMALL.rank(sample.config)] - mean for sample in drawn], dtype=torch.float64)
    sampled = policy.gradient(drawn, advantages)
    size = math.sqrt(sum(float((value**2).sum()) for value in exact.values()))
    error = math.sqrt(sum(float(((sampled[key] - value) ** 2).sum()) for key, value in exact.items()))
    assert error < 0.15 * size


def test_a_constant_reward_has_zero_expected_gradient() -> None:
    policy = made("reinforce", SMALL, init=0.5)
    for value in enumerated(policy, [3.0] * 27, everything(SMALL)).values():
        assert float(value.abs().max()) < 1e-12


def test_the_baseline_is_of_rewards_before_the_batch() -> None:
    policy = made("reinforce", SMALL, batch=2)
    start = {key: value.clone() for key, value in policy.weights.items()}
    policy.update([policy.sample(), policy.sample()], [0.2, 0.4])
    assert policy.baseline == pytest.approx(0.3)
    assert all(bool((policy.weights[key] == value).all()) for key, value in start.items())  # nothing came before
    drawn = [policy.sample(), policy.sample()]
    expected = Adam(start).step(start, policy.gradient(drawn, torch.tensor([1.0 - 0.3, 0.6 - 0.3]).double()), 6e-4)
    policy.update(drawn, [1.0, 0.6])
    assert policy.baseline == pytest.approx(0.95 * 0.3 + 0.05 * 0.8)
    for key, value in expected.items():
        assert policy.weights[key] == pytest.approx(value, abs=1e-7)


def test_adam_is_torchs() -> None:
    weights = {"w": torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)}
    other = weights["w"].clone().requires_grad_()
    adam, reference = Adam(weights), torch.optim.Adam([other], lr=0.1)
    for n in range(5):
        gradient = torch.tensor([0.1, -1.0, 10.0], dtype=torch.float64) * (n - 2)
        other.grad = gradient
        reference.step()
        weights = adam.step(weights, {"w": gradient}, 0.1)
    assert weights["w"] == pytest.approx(other.detach(), abs=1e-6)


class Independent:
    """What a controller would be without memory: one softmax for each decision, whatever was decided before."""

    def __init__(self, controller: Controller) -> None:
        self._of = controller
        self.kinds: tuple[tuple[str, Leaf], ...] = controller.kinds

    def init(self, generator: Generator) -> Weights:
        return {str(kind): torch.zeros(4, dtype=torch.float64) for kind in range(len(self.kinds))}

    def plan(self, config: Config) -> Plan:
        return self._of.plan(config)

    def sample(self, weights: Weights, rng: np.random.Generator) -> tuple[Config, Plan, float]:
        chosen = [int(rng.choice(4, p=weights[str(kind)].softmax(0).numpy())) for kind in range(len(self.kinds))]
        config: Config = {path: option for (path, _), option in zip(self.kinds, chosen, strict=True)}
        plan = self.plan(config)
        return config, plan, float(self.log_probs(weights, [plan])[0])

    def log_probs(self, weights: Weights, plans: Sequence[Plan]) -> tuple[Tensor, Tensor]:
        logs = torch.stack([weights[str(kind)].log_softmax(0) for kind in range(len(self.kinds))])  # [decisions, 4]
        log_prob = [torch.stack([logs[kind, option] for _, kind, option in plan.softmaxes]).sum() for plan in plans]
        return torch.stack(log_prob), (-(logs.exp() * logs).sum()).expand(len(plans))


def expected_reward_of_copying(independent: bool) -> float:
    """After 300 updates: R = 1 where the second decision is the first plus one; a bonus of entropy keeps the first open.

    Best without memory: both uniform, so that R = 1/4 and the bonus .3 * 2 log 4. With memory R = .9 and .3 * (log 4 + ...).
    """
    policy = made("reinforce", PAIR, lr=0.01, entropy=0.3, init=0.3)
    if independent:
        policy.controller = Independent(policy.controller)  # type: ignore[assignment]
        policy._begin()
    right = [float(config["second"] == (int(config["first"]) + 1) % 4) for config in everything(PAIR)]
    for _ in range(300):
        drawn = [policy.sample() for _ in range(8)]
        policy.update(drawn, [right[PAIR.rank(sample.config)] for sample in drawn])
    plans = [policy.controller.plan(config) for config in everything(PAIR)]
    log_prob, _ = policy.controller.log_probs(policy.weights, plans)
    return float((log_prob.exp() * torch.tensor(right, dtype=torch.float64)).sum())


def test_the_lstm_learns_a_decision_that_hangs_on_another_and_independent_logits_do_not() -> None:
    assert expected_reward_of_copying(independent=False) > 0.8
    assert expected_reward_of_copying(independent=True) < 0.5


# -- PPO ---------------------------------------------------------------------------------------------------------------


def clipped_share(name: str, advantage: float, moved: float) -> float:
    """Largest entry of the gradient for a sample whose log-probability has grown by `moved` since it was drawn."""
    policy = made(name, SMALL, init=0.5, entropy=0.0)
    config = SMALL.unrank(5)
    now = float(policy.controller.log_probs(policy.weights, [policy.controller.plan(config)])[0])
    gradient = policy.gradient(samples_of(policy, [config], now - moved), torch.tensor([advantage]).double())
    return max(float(value.abs().max()) for value in gradient.values())


def test_ppo_does_not_move_a_sample_further_and_reinforce_does() -> None:
    """A ratio above 1 + epsilon of a good sample, or below 1 - epsilon of a bad one, has no gradient; the others have."""
    assert clipped_share("ppo", 1.0, 0.3) == 0
    assert clipped_share("ppo", -1.0, -0.3) == 0
    assert clipped_share("reinforce", 1.0, 0.3) > 0
    assert clipped_share("reinforce", -1.0, -0.3) > 0
    assert clipped_share("ppo", -1.0, 0.3) > 0
    assert clipped_share("ppo", 1.0, -0.3) > 0
    assert clipped_share("ppo", 1.0, 0.1) > 0


def test_with_one_pass_over_fresh_samples_ppo_is_reinforce() -> None:
    same: dict[str, Any] = {"hidden": 20, "layers": 1, "init": 0.1, "lr": 0.01, "entropy": 0.0, "batch": 5}
    one, two = made("ppo", SMALL, passes=1, **same), made("reinforce", SMALL, **same)
    for _ in range(5):
        for policy in (one, two):
            drawn = [policy.sample() for _ in range(5)]
            policy.update(drawn, [float(SMALL.rank(sample.config)) for sample in drawn])
    for key, value in two.weights.items():
        assert one.weights[key] == pytest.approx(value, abs=1e-9)


def test_many_passes_of_ppo_stay_near_where_reinforce_runs_away() -> None:
    """After 100 steps on one batch: under PPO the good sample's log-probability has grown by about the clip."""
    grown = {}
    for name in ("ppo", "reinforce"):
        policy = made(name, SMALL, hidden=20, layers=1, init=0.1, lr=0.01, entropy=0.0)
        policy.baseline = 0.0
        sample = policy.sample()
        for _ in range(100):
            weights = policy._adam.step(policy.weights, policy.gradient([sample], torch.ones(1).double()), 0.01)
            policy.weights = weights
        grown[name] = float(policy.controller.log_probs(policy.weights, [sample.plan])[0]) - sample.log_prob
    assert grown["ppo"] < 1.0
    assert grown["reinforce"] > 2.5


# -- asked and told ----------------------------------------------------------------------------------------------------


def ended(trial: int, proposal: Proposal, score: float | None, status: Status = "done") -> Outcome:
    return Outcome(trial, proposal, score, {}, status)


def test_with_trials_in_parallel_every_sample_is_applied_and_its_age_counted() -> None:
    space = Space({f"d{i}": Choice((0, 1, 2, 3)) for i in range(6)})
    policy = made("reinforce", space, batch=4)
    running = [policy.ask() for _ in range(10)]
    for trial in range(1, 41):
        proposal = running.pop(0)
        assert proposal is not None
        policy.tell(ended(trial, proposal, float(space.rank(proposal.config))))
        if trial <= 30:
            running.append(policy.ask())
    assert policy.issued == policy.applied == 40
    assert policy.updates == 10
    # ten run at a time, four make an update: a sample is 0 updates old to 3 when it is used
    assert 0 < policy.stale <= 3 * 40


def test_a_failure_is_rewarded_with_the_worst_and_an_error_with_nothing() -> None:
    policy = made("reinforce", SMALL, batch=1)
    rewards: list[float] = []
    update = policy.update

    def noted(samples: Sequence[Sample], given: Sequence[float]) -> None:
        rewards.extend(given)
        update(samples, given)

    policy.update = noted  # type: ignore[method-assign]
    stream: list[tuple[float | None, Status]] = [
        (None, "diverged"), (2.0, "done"), (1.0, "done"), (None, "oom"), (9.0, "error"), (math.nan, "done"), (3.0, "reused"),
    ]
    for trial, (score, status) in enumerate(stream, 1):
        proposal = policy.ask()
        assert proposal is not None
        policy.tell(ended(trial, proposal, score, status))
    left_out_first = [r for i, r in enumerate(rewards) if i == 0 or r != rewards[i - 1]]
    assert left_out_first == [2.0, 1.0, 3.0]
    assert 9.0 not in rewards


def test_a_cubed_reward_keeps_its_sign() -> None:
    policy = made("reinforce", SMALL, batch=1, power=3.0)
    assert [policy._reward(ended(1, Proposal({}), score)) for score in (0.5, -2.0, 1e300)] == [0.125, -8.0, 1e100]


def test_no_config_is_trained_twice_and_the_whole_space_is_found() -> None:
    policy = made("reinforce", SMALL, batch=2, lr=0.05)
    found = []
    while (proposal := policy.ask()) is not None:
        found.append(SMALL.rank(proposal.config))
        policy.tell(ended(len(found), proposal, 1.0 if found[-1] == 4 else 0.0))
    assert sorted(found) == list(range(27))
    assert policy.restarts > 0  # it converged on the way
    assert policy.applied > 27  # what it drew again was rewarded from memory


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (1, 3), (8, 1), (8, 3)])
def test_a_controller_that_has_converged_begins_anew_however_many_work(batch: int, workers: int) -> None:
    """Its own samples are what is tried, not configs at random that nobody learns from."""
    space = Space({f"d{i}": Choice((0, 1, 2, 3)) for i in range(4)})
    policy = made("reinforce", space, batch=batch, lr=0.3, hidden=8, layers=1)
    running: list[tuple[int, Proposal]] = []
    blind, rng = 0, np.random.default_rng(0)
    for trial in range(1, 101):
        proposal = policy.ask()
        assert proposal is not None
        blind += not policy._running[digest(proposal.config)]
        running.append((trial, proposal))
        while len(running) >= workers:
            number, done = running.pop(int(rng.integers(len(running))))
            policy.tell(ended(number, done, sum(done.config[f"d{i}"] == i for i in range(4)) / 4))
    assert policy.restarts >= 2
    assert blind <= 20


def test_outcomes_from_elsewhere_are_known_but_move_nothing() -> None:
    policy = made("reinforce", SMALL, batch=1)
    start = {key: value.clone() for key, value in policy.weights.items()}
    for i in range(20):
        policy.tell(ended(900 + i, Proposal(SMALL.unrank(i)), float(i)))
    assert policy.updates == 0
    assert all(bool((policy.weights[key] == value).all()) for key, value in start.items())
    proposal = policy.ask()
    assert proposal is not None
    assert SMALL.rank(proposal.config) >= 20
