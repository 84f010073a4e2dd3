"""Meta-reinforcement learning: the walks, their rewards, advantages, and the trust region, against closed forms."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from metasearch.learners.maml_rl import MAMLRL, STD, Trajectories, advantages, log_probability, returns
from metasearch.nets import Params
from metasearch.nets.mlp import mlp
from metasearch.objectives import Trial, parcel
from metasearch.objectives.episodic import block_steps, draw_block
from metasearch.objectives.optimizer import adam
from metasearch.objectives.policy_search import Tasks, conjugate_gradient, policy_search, trust_region_step
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.train import Train
from metasearch.objectives.training import generator
from metasearch.records import Config, Proposal, Report
from metasearch.tasks import TaskShape
from metasearch.tasks.navigation import Navigation, rewarded, walk

HORIZON = 5
LEARNER = MAMLRL(inner_lr=0.2, horizon=HORIZON)
NET = mlp(2, 2, hidden=(4,), act="tanh")
SHAPE = TaskShape((2,), 2, 6 * HORIZON, 6 * HORIZON)


@pytest.fixture
def tasks() -> Tasks:
    return _tasks(LEARNER)


def _tasks(learner: MAMLRL, seed: int = 0, chunk: int | None = None) -> Tasks:
    meta = {k: v.double() for k, v in learner.init(NET, Generator().manual_seed(seed)).items()}
    e = Navigation(HORIZON).sample_episodes(3, split="train", shape=SHAPE, generator=Generator().manual_seed(1))
    return Tasks(learner, NET, meta, e.map(Tensor.double), chunk)


# walks ---------------------------------------------------------------------------------------------------------------


def test_a_walk_is_the_sum_of_its_clipped_actions() -> None:
    """Full speed to the right, half speed down."""
    way = walk(lambda at, time: torch.tensor([[9.0, -0.05]]), 1, 4, torch.zeros(()))
    expected = torch.tensor([[0.1, -0.05], [0.2, -0.1], [0.3, -0.15], [0.4, -0.2]])
    assert torch.allclose(way[0], expected)


def test_the_reward_is_minus_the_distance_and_ends_with_the_step_that_arrives() -> None:
    positions = torch.tensor([[[0.3, 0.0], [0.3, 0.395], [0.3, 0.2], [0.0, 0.0]]])
    goal = torch.tensor([0.3, 0.4]).expand(1, 4, 2)
    rewards, alive = rewarded(positions, goal)
    assert rewards[0].tolist() == pytest.approx([-0.4, -0.005, -0.2, -0.5], abs=1e-6)
    assert alive[0].tolist() == [1, 1, 0, 0], "the step into the box counts, those after it do not"
    score = Navigation(4).score(positions.view(-1, 2), goal.reshape(-1, 2))
    assert float(score) == pytest.approx(-0.405, abs=1e-6)


def test_standing_still_costs_the_horizon_times_the_distance() -> None:
    tasks = Navigation(100)
    bank = tasks.bank("val", 2000, seed=0, shape=tasks.shape(ways=2, shots=100, queries=100)).episodes
    still = torch.stack([tasks.score(torch.zeros(100, 2), y) for y in bank.query_y])
    # E|goal| on a square of half side 1/2: (sqrt 2 + asinh 1) / 6
    assert float(still.mean()) == pytest.approx(-100 * 0.38259786, rel=0.02)


def test_rows_that_are_no_whole_walks_are_refused() -> None:
    with pytest.raises(ValueError, match="positive multiples of the horizon 100"):
        Navigation().check(TaskShape((2,), 2, 20, 2000), "train")


def test_goals_of_shifted_tasks_lie_farther_away() -> None:
    shape, generator = TaskShape((2,), 2, 5, 5), Generator().manual_seed(0)
    goals = Navigation(5).shifted().sample_episodes(500, split="train", shape=shape, generator=generator).support_y
    assert 0.9 < float(goals.abs().max()) <= 1.0


# advantages ----------------------------------------------------------------------------------------------------------


def test_returns_are_discounted_sums_of_what_was_still_to_come() -> None:
    rewards, alive = torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert returns(rewards, alive, 0.5)[0].tolist() == [1 + 1 + 1, 2 + 2, 4, 0]


def test_the_baseline_explains_returns_that_are_linear_in_its_features() -> None:
    """Then nothing is left: before it is normalised an advantage is rounding. With noise it is that noise."""
    generator = Generator().manual_seed(0)
    states = torch.randn(40, 6, 2, generator=generator, dtype=torch.float64)
    alive = torch.ones(40, 6, dtype=torch.float64)
    time = torch.arange(6, dtype=torch.float64) / 100
    value = states[..., 0] - 2 * states[..., 1] ** 2 + 3 * time + 1
    after = torch.cat([value[:, 1:], torch.zeros(40, 1, dtype=torch.float64)], 1)
    noise = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    rewards = value - after + noise  # without a discount the returns are value + the sum of the noise to come
    found = advantages(states, rewards, alive, discount=1.0, trace=0.0)
    expected = (noise - noise.mean()) / noise.std(correction=0)
    # with trace 0 an advantage is its own step's surprise, up to how well 240 returns determine 8 coefficients
    assert float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1]) > 0.9


def test_advantages_have_mean_0_and_variance_1_over_the_steps_that_were_made() -> None:
    generator = Generator().manual_seed(0)
    states, rewards = torch.randn(8, 7, 2, generator=generator), torch.randn(8, 7, generator=generator)
    alive = (torch.arange(7) < torch.randint(1, 8, (8, 1), generator=generator)).float()
    found = advantages(states, rewards, alive, discount=0.99, trace=1.0)
    made = found[alive.bool()]
    assert float(made.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(made.std(correction=0)) == pytest.approx(1.0, abs=1e-4)
    assert float(found[~alive.bool()].abs().max()) == 0.0


def test_log_probabilities_are_torchs() -> None:
    generator = Generator().manual_seed(0)
    meta = LEARNER.init(NET, generator) | {STD: torch.tensor([-0.5, 0.3])}
    seen = Trajectories(*(torch.randn(3, 5, *s, generator=generator) for s in ((2,), (2,), (), ())))
    normal = torch.distributions.Normal(NET.apply(meta, seen.states.view(-1, 2)).view(3, 5, 2), meta[STD].exp())
    constant = torch.log(torch.tensor(2 * torch.pi))  # of two axes
    assert torch.allclose(log_probability(NET, meta, seen) - constant, normal.log_prob(seen.actions).sum(-1), atol=1e-5)


# the inner step and the surrogate ------------------------------------------------------------------------------------


def test_an_inner_step_is_vanilla_policy_gradient_on_data() -> None:
    """On walks that are fixed: theta + lr * mean(advantage * d log pi / d theta)."""
    meta = {k: v.double() for k, v in LEARNER.init(NET, Generator().manual_seed(0)).items()}
    e = Navigation(HORIZON).sample_episodes(1, split="train", shape=SHAPE, generator=Generator().manual_seed(1)).select(0)
    e = e.map(Tensor.double)
    seen = LEARNER.gathered(NET, meta, e.support_x, e.support_y)
    found = LEARNER.adapt(NET, Navigation(HORIZON).loss, meta, e.support_x, e.support_y)
    leaves = {k: v.clone().requires_grad_() for k, v in meta.items()}
    (log_probability(NET, leaves, seen) * seen.advantages * seen.alive).sum().div(seen.alive.sum()).backward()  # type: ignore[no-untyped-call]
    for k, v in meta.items():
        grad = leaves[k].grad
        assert grad is not None
        assert torch.allclose(found[k], v + 0.2 * grad, atol=1e-12)


def test_the_surrogate_at_the_old_policy_is_minus_the_mean_advantage_and_its_kl_is_0(tasks: Tasks) -> None:
    assert float(tasks.divergence(tasks.free)) == pytest.approx(0.0, abs=1e-14)
    after = tasks.after
    means = [(a * m).sum() / m.sum() for a, m in zip(after.advantages, after.alive, strict=True)]
    assert float(tasks.surrogate(tasks.free)) == pytest.approx(-float(torch.stack(means).mean()), abs=1e-12)


def _direction(tasks: Tasks, seed: int) -> Params:
    return {k: torch.randn(v.shape, generator=Generator().manual_seed(seed), dtype=v.dtype) for k, v in tasks.free.items()}


def test_the_surrogates_gradient_goes_through_the_inner_step() -> None:
    """It is a central difference of the surrogate; without the second derivative (a first-order inner step) it is not."""
    tasks = _tasks(replace(LEARNER, inner_lr=1.0))
    grads = torch.func.grad(tasks.surrogate)(tasks.free)
    way = _direction(tasks, 0)

    def value(h: float) -> float:
        return float(tasks.surrogate({k: v + h * way[k] for k, v in tasks.free.items()}))

    slope = float(sum((grads[k] * way[k]).sum() for k in way))
    assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-6)
    first = _first_order(tasks)  # the neighbour that takes theta' - theta for a constant
    flat = float(sum((first[k] * way[k]).sum() for k in way))
    assert abs(flat - slope) > 1e-3 * abs(slope), "the test needs an inner step whose curvature matters"


def _first_order(tasks: Tasks) -> Params:
    """d surrogate / d theta' in every task, averaged: what stops at the inner step."""
    def one(old: Params, old_log: Tensor, after: Trajectories) -> Params:
        def value(p: Params) -> Tensor:
            ratio = (log_probability(tasks.net, {**tasks.fixed, **p}, after) - old_log).exp()
            return -(ratio * after.advantages * after.alive).sum() / after.alive.sum()

        grads: Params = torch.func.grad(value)(old)
        return grads

    each = torch.func.vmap(one)(tasks.old, tasks.old_log, tasks.after)
    return {k: v.mean(0) for k, v in each.items()}


def test_the_divergence_is_torchs_kl_of_gaussians_old_to_new(tasks: Tasks) -> None:
    moved = {k: v + 0.1 * w for (k, v), w in zip(tasks.free.items(), _direction(tasks, 1).values(), strict=True)}
    expected = []
    for i in range(3):
        before = [Trajectories(*(v[i] for v in t)) for t in tasks.before]
        after = Trajectories(*(v[i] for v in tasks.after))
        new, old = tasks._adapted(moved, before), {k: v[i] for k, v in tasks.old.items()}
        states = after.states.reshape(-1, 2)
        pair = [torch.distributions.Normal(NET.apply(p, states), p[STD].exp()) for p in (old, new)]
        each = torch.distributions.kl_divergence(*pair).sum(-1).view(after.alive.shape)
        expected.append((each * after.alive).sum() / after.alive.sum())
    assert float(tasks.divergence(moved)) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-10)


# the trust region ----------------------------------------------------------------------------------------------------


def test_conjugate_gradients_solve_a_positive_system() -> None:
    generator = Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(6, dtype=torch.float64)
    right = torch.randn(6, generator=generator, dtype=torch.float64)
    found = conjugate_gradient(lambda v: {"a": matrix @ v["a"]}, {"a": right}, 12)["a"]
    assert torch.allclose(matrix @ found, right, atol=1e-8)


def test_the_step_goes_along_the_natural_gradient_to_the_rim_of_the_trust_region() -> None:
    """Dense Hessian of the KL, solved exactly; a plain gradient step points elsewhere."""
    tasks = _tasks(replace(LEARNER, inner_lr=0.05))
    start = tasks.free
    keys, shapes = list(start), [v.shape for v in start.values()]

    def unpacked(flat: Tensor) -> Params:
        parts = flat.split([s.numel() for s in shapes])
        return {k: p.view(s) for k, p, s in zip(keys, parts, shapes, strict=True)}

    flat = torch.cat([v.flatten() for v in start.values()])
    hessian = torch.autograd.functional.hessian(lambda f: tasks.divergence(unpacked(f)), flat)  # type: ignore[no-untyped-call]
    product, way = tasks.curvature(), torch.randn(len(flat), dtype=flat.dtype, generator=Generator().manual_seed(0))
    along = torch.cat([product(unpacked(way))[k].flatten() for k in keys])
    assert torch.allclose(along, hessian @ way, rtol=1e-9, atol=1e-12), "J^T F J is the Hessian where policies are the old ones"
    slope = torch.cat([g.flatten() for g in torch.func.grad(tasks.surrogate)(start).values()])
    damping = 1e-3
    natural = torch.linalg.solve(hessian + damping * torch.eye(len(flat), dtype=flat.dtype), slope)
    kl = 1e-6  # so small that the region is an ellipsoid and the first length is accepted
    found = trust_region_step(tasks, kl, 200, damping, 15)
    step = torch.cat([v.flatten() for v in found.values()]) - flat
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(step, -natural, dim=0)) > 1 - 1e-6
    assert float(cosine(step, -slope, dim=0)) < 0.99, "the test needs a curved region"
    assert 0.5 * kl < float(tasks.divergence(found)) <= kl


class Valley:
    """A surrogate -x + 2 x^2 and a divergence x^2 / 2, from x = 0."""

    def __init__(self) -> None:
        self.free = {"x": torch.zeros((), dtype=torch.float64)}

    def mean(self, gradient: Callable[[Valley], Params]) -> Params:
        return gradient(self)

    def surrogate(self, free: Params) -> Tensor:
        return 2 * free["x"] ** 2 - free["x"]

    def divergence(self, free: Params) -> Tensor:
        return 0.5 * free["x"] ** 2

    def curvature(self) -> Callable[[Params], Params]:
        return lambda v: v


def test_the_line_search_goes_back_until_the_surrogate_falls_or_leaves_all_as_it_is() -> None:
    """The rim is at x = 1, but beyond x = 1/2 the surrogate is above where it began: 0.8^4 is the first length below."""
    for backtracks, expected in ((15, 0.8**4), (5, 0.8**4), (4, 0.0)):
        found = trust_region_step(Valley(), 0.5, 10, 1e-12, backtracks)  # type: ignore[arg-type]
        assert float(found["x"]) == pytest.approx(expected, abs=1e-9)


def test_a_trust_region_step_lowers_the_surrogate_and_stays_inside(tasks: Tasks) -> None:
    start = tasks.free
    before = float(tasks.surrogate(start))
    found = trust_region_step(tasks, 0.01, 10, 1e-5, 15)
    assert any(not torch.equal(found[k], start[k]) for k in start)
    assert float(tasks.surrogate(found)) < before
    assert 0 < float(tasks.divergence(found)) <= 0.01


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_tasks_taken_chunk_by_chunk_take_the_same_step(chunk: int) -> None:
    """Values, gradients and where the trust region's step ends, of 3 tasks; also where the last chunk is a smaller one."""
    whole, parts = _tasks(LEARNER), _tasks(LEARNER, chunk=chunk)
    far = {k: v + 0.1 * w for (k, v), w in zip(whole.free.items(), _direction(whole, 2).values(), strict=True)}
    for each in (Tasks.surrogate, Tasks.divergence, lambda tasks, free: Tasks.clipped(tasks, 0.2, free)):
        torch.testing.assert_close(each(parts, far), each(whole, far))
        one, many = (t.mean(lambda part, each=each: torch.func.grad(partial(each, part))(far)) for t in (whole, parts))
        torch.testing.assert_close(many, one)
    one, many = (trust_region_step(t, 0.01, 4, 0.1, 15) for t in (whole, parts))  # so damped that rounding does not grow
    torch.testing.assert_close(many, one)


def test_no_gradient_goes_through_more_tasks_than_a_chunk_has() -> None:
    tasks, seen = _tasks(LEARNER, chunk=2), list[int]()

    def gradient(part: Tasks) -> Params:
        seen.append(len(part.old_log))
        return part.free

    tasks.mean(gradient)
    assert seen == [2, 1]


def test_ppo_clips_the_ratio(tasks: Tasks) -> None:
    """At the old policy it is the surrogate; far away its gradient vanishes where the ratio is beyond the clip."""
    assert float(tasks.clipped(0.2, tasks.free)) == pytest.approx(float(tasks.surrogate(tasks.free)), abs=1e-12)
    far = {k: v + 0.5 * w for (k, v), w in zip(tasks.free.items(), _direction(tasks, 2).values(), strict=True)}
    assert float(tasks.clipped(0.2, far)) > float(tasks.surrogate(far)) + 1e-6, "the clipped objective is a pessimistic bound"


def test_ppos_objective_is_the_pessimistic_one_of_its_equation_7(tasks: Tasks) -> None:
    """-mean of min(r A, clip(r) A) with ratios of torch's Gaussians; the clip alone (without the minimum) is another number."""
    far = {k: v + 0.5 * w for (k, v), w in zip(tasks.free.items(), _direction(tasks, 2).values(), strict=True)}
    whole, clip_alone = [], []
    for i in range(3):
        before, after = [Trajectories(*(v[i] for v in t)) for t in tasks.before], Trajectories(*(v[i] for v in tasks.after))
        states = after.states.reshape(-1, 2)
        new, old = (
            torch.distributions.Normal(NET.apply(p, states), p[STD].exp()).log_prob(after.actions.reshape(-1, 2)).sum(-1)
            for p in (tasks._adapted(far, before), {k: v[i] for k, v in tasks.old.items()})
        )
        a, made = after.advantages.flatten(), after.alive.flatten().bool()
        free, held = [float(r * v) for r, v in zip((new - old).exp()[made], a[made], strict=True)], []
        for r, v in zip((new - old).exp()[made], a[made], strict=True):
            held.append(float(v) * min(max(float(r), 0.8), 1.2))
        whole.append(-sum(map(min, free, held)) / len(free))
        clip_alone.append(-sum(held) / len(held))
    assert float(tasks.clipped(0.2, far)) == pytest.approx(sum(whole) / 3, rel=1e-9)
    assert abs(sum(whole) - sum(clip_alone)) > 0.01, "the test needs ratios beyond the clip on the wrong side"


def test_the_trajectories_behind_the_inner_step_are_the_adapted_policys_own() -> None:
    """Of the queries' noise; those before it are the initialisation's, of the supports'."""
    learner = replace(LEARNER, inner_steps=2)
    meta = {k: v.double() for k, v in learner.init(NET, Generator().manual_seed(0)).items()}
    episodes = Navigation(HORIZON).sample_episodes(2, split="train", shape=SHAPE, generator=Generator().manual_seed(1))
    episodes = episodes.map(Tensor.double)
    found, loss = Tasks(learner, NET, meta, episodes), Navigation(HORIZON).loss
    for i in range(2):
        e = episodes.select(i)
        for steps, x, y, seen in ((0, e.support_x, e.support_y, found.before[0]), (1, e.support_x, e.support_y, found.before[1]),
                                  (2, e.query_x, e.query_y, found.after)):
            policy = replace(learner, inner_steps=steps).adapt(NET, loss, meta, e.support_x, e.support_y)
            wanted = learner.gathered(NET, {**meta, **policy}, x, y)
            assert all(torch.allclose(a[i], b, atol=1e-10) for a, b in zip(seen, wanted, strict=True))


# a study of it -------------------------------------------------------------------------------------------------------


def _train(outer: str, steps: int) -> Train:
    def recipe(config: Config, shape: TaskShape) -> Recipe:
        fit = policy_search(outer)  # type: ignore[arg-type]
        return Recipe(mlp(2, 2, hidden=(8,)), replace(LEARNER, inner_lr=0.3), adam(1e-2), meta_batch=4, steps=steps, fit=fit)

    return Train(recipe, Navigation(HORIZON), SHAPE, validation_episodes=4, report_every=1, mode="vmap")


@pytest.mark.parametrize("outer", ["trpo", "ppo"])
def test_a_stopped_search_goes_on_as_if_nothing_had_happened(outer: str, tmp_path: Path) -> None:
    def save(step: int, tensors: Params, facts: dict[str, object]) -> str:
        return str(parcel.write(tmp_path / f"{step}.safetensors", tensors, facts))

    def run(**more: object) -> Iterator[Report]:
        return _train(outer, 4)(Proposal({}, seed=3), Trial(0, save=save, **more))  # type: ignore[arg-type]

    whole = list(run())[-1]
    expected, _ = parcel.read(tmp_path / "4.safetensors")
    again = list(run(start=tmp_path / "2.safetensors", own=True))[-1]
    found, _ = parcel.read(tmp_path / "4.safetensors")
    assert again.score == whole.score
    assert all(torch.equal(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize(("outer", "more"), [
    ("trpo", {"kl": 0.003}), ("trpo", {"kl": 0.03}), ("ppo", {"epochs": 3}), ("ppo", {"epochs": 6, "clip": 0.05}),
], ids=str)
def test_an_outer_step_of_the_fit_is_the_one_of_its_name(outer: str, more: dict[str, float], tmp_path: Path) -> None:
    """TRPO: to the trust region that was asked for. PPO: so many steps of Adam on the clipped objective, of one set of walks."""
    made = Recipe(mlp(2, 2, hidden=(8,)), replace(LEARNER, inner_lr=0.3), adam(0.03), meta_batch=4, steps=1,
                  fit=policy_search(outer, **more))  # type: ignore[arg-type]
    train = Train(lambda config, shape: made, Navigation(HORIZON), SHAPE, validation_episodes=2)

    def save(step: int, tensors: Params, facts: dict[str, object]) -> str:
        return str(parcel.write(tmp_path / "end.safetensors", tensors, facts))

    list(train(Proposal({}, seed=3), Trial(0, save=save)))
    found, _ = parcel.read(tmp_path / "end.safetensors")
    meta = made.learner.init(made.net, generator(3, "init"))
    block = draw_block(made, Navigation(HORIZON), SHAPE, block_steps(SHAPE, 4, 1), 3, 0)
    assert isinstance(made.learner, MAMLRL)
    tasks = Tasks(made.learner, made.net, meta, block.select(slice(0, 4)))
    if outer == "trpo":
        wanted = trust_region_step(tasks, more["kl"], 10, 1e-5, 15)
    else:
        leaves = {k: v.clone().requires_grad_() for k, v in tasks.free.items()}
        optimizer = torch.optim.Adam(leaves.values(), lr=0.03)
        for _ in range(int(more["epochs"])):
            optimizer.zero_grad()
            tasks.clipped(more.get("clip", 0.2), leaves).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        wanted = {k: v.detach() for k, v in leaves.items()}
    assert any(not torch.allclose(v, meta[k], atol=1e-3) for k, v in wanted.items())
    for k, v in wanted.items():
        torch.testing.assert_close(found[f"meta/{k}"], v, rtol=1e-3, atol=1e-5)


def test_policy_search_refuses_other_learners_and_bad_settings() -> None:
    with pytest.raises(ValueError, match="outer is 'trpo' or 'ppo'"):
        policy_search("a2c")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kl > 0"):
        policy_search(kl=0.0)
    with pytest.raises(ValueError, match="2 outputs"):
        LEARNER.init(mlp(2, 3), Generator().manual_seed(0))
    for std in (0, 0.0, -1.0):
        with pytest.raises(ValueError, match="std"):
            MAMLRL(std=std)
    with pytest.raises(ValueError, match="discount >= 0"):
        MAMLRL(discount=-0.5)


@pytest.mark.slow
def test_after_a_few_trust_region_steps_adapted_policies_find_their_goals() -> None:
    """20 walks of 100 steps, 20 tasks a step. Standing still costs 38.3; MAML's published return is -20.3."""
    def recipe(config: Config, shape: TaskShape) -> Recipe:
        return Recipe(mlp(2, 2, hidden=(100, 100)), MAMLRL(inner_lr=0.5), adam(1e-3), 20, 12, fit=policy_search())

    tasks = Navigation()
    shape = tasks.shape(ways=2, shots=2000, queries=2000)
    train = Train(recipe, tasks, shape, validation_episodes=40, report_every=12, mode="vmap")
    last = list(train(Proposal({}, seed=0), Trial(0)))[-1]
    assert last.score is not None
    assert last.score > -25
