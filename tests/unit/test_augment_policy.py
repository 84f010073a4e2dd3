"""Policies draw what they say: probabilities, uniform sub-policies, counts, schedules; and they survive JSON."""
from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from metasearch import augment
from metasearch.augment import (
    Places,
    Plan,
    Policy,
    RandAugment,
    Schedule,
    Shared,
    Shuffled,
    Step,
    SubPolicies,
    TrivialAugment,
    UniformAugment,
    carry_out,
    fixed,
)
from metasearch.augment import plan as plans
from metasearch.augment.ops import NOISE, NUMBER, OPERATIONS, RANDAUGMENT
from metasearch.augment.plan import joined
from metasearch.augment.ranges import magnitudes

INVERT, FLIP, CUTMIX = Step("invert"), Step("flip"), Step("cutmix", 1.0, 1.0)


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _images(n: int = 32, channels: int = 3, side: int = 12) -> Tensor:
    return torch.rand(n, channels, side, side, generator=_generator(9))


def _chi_square(counts: Tensor, expected: Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def _share(policy: Policy, name: str, n: int = 4000) -> float:
    return float((policy.plan(n, _generator(), 0.0).operation == NUMBER[name]).any(0).float().mean())


# AutoAugment ------------------------------------------------------------------------------------------------------------------


def test_probability_0_never_applies_and_1_always() -> None:
    x = _images()
    never = fixed(Step("invert", 0.0), Step("rotate", 0.0, 1.0))
    assert torch.equal(never(x, _generator()), x)
    assert _share(fixed(Step("invert", 1.0)), "invert") == 1.0
    torch.testing.assert_close(fixed(INVERT, FLIP)(x, _generator()), (1 - x).flip(-1))


def test_a_probability_is_the_share_of_pictures() -> None:
    """5 standard errors: missed once in 1.7 million seeds."""
    share = _share(fixed(Step("invert", 0.3)), "invert", 20_000)
    assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 20_000)


def test_sub_policies_are_chosen_uniformly_for_each_picture() -> None:
    """Chi-square with 4 degrees of freedom: above 23.5 once in 10,000 seeds."""
    names = ("invert", "flip", "equalize", "autocontrast", "rotate")
    policy = SubPolicies(tuple((Step(name),) for name in names))
    drawn = policy.plan(10_000, _generator()).operation[0]
    counts = torch.tensor([int((drawn == NUMBER[name]).sum()) for name in names]).float()
    assert counts.sum() == 10_000
    assert _chi_square(counts, torch.full((5,), 2000.0)) < 23.5


def test_weights_are_the_shares_of_sub_policies() -> None:
    """Chi-square with 1 degree of freedom: above 15.1 once in 10,000 seeds."""
    policy = SubPolicies(((INVERT,), (FLIP,), (Step("equalize"),)), weights=(3.0, 1.0, 0.0))
    drawn = policy.plan(8000, _generator()).operation[0]
    counts = torch.tensor([int((drawn == NUMBER[name]).sum()) for name in ("invert", "flip", "equalize")]).float()
    assert counts[2] == 0
    assert _chi_square(counts[:2], torch.tensor([6000.0, 2000.0])) < 15.1


def test_the_two_steps_of_a_sub_policy_happen_in_order_and_independently() -> None:
    """Inverting, then solarizing all, is the identity; the other way round too, so order is seen with a hole."""
    x = torch.zeros(4, 1, 8, 8)
    hole = Step("cutout", 1.0, 0.9)
    after, before = (fixed(*steps)(x, _generator(), fill=0.5).amax((1, 2, 3)) for steps in ((INVERT, hole), (hole, INVERT)))
    assert bool((after == 1).all())
    assert bool((before == 1).all())
    assert not torch.equal(fixed(INVERT, hole)(x, _generator(), fill=0.25), fixed(hole, INVERT)(x, _generator(), fill=0.25))
    plan = fixed(Step("invert", 0.5), Step("flip", 0.5)).plan(8000, _generator())
    both = (plan.operation > 0).all(0).float().mean()
    assert abs(float(both) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 8000)


def test_levels_are_those_of_the_named_table() -> None:
    plan = fixed(Step("rotate", 1.0, 0.6), ranges="wide").plan(5, _generator())
    torch.testing.assert_close(plan.magnitude, torch.full((1, 5), 0.6 * 135))


def test_signs_are_drawn_evenly() -> None:
    x = torch.zeros(2000, 1, 9, 9)
    x[:, :, 4, 4] = 1
    moved = fixed(Step("translate_x", 1.0, 1.0), ranges="autoaugment")(x, _generator(), fill=0.0)
    left = moved[..., :4].sum((1, 2, 3)) > 0.5
    assert abs(float(left.float().mean()) - 0.5) < 5 * 0.5 / math.sqrt(2000)


# RandAugment, TrivialAugment, UniformAugment, PBA -----------------------------------------------------------------------------


def test_randaugment_draws_n_operations_with_replacement_at_one_level() -> None:
    """Chi-square with 13 degrees of freedom: above 41 once in 10,000 seeds; of pairs with 195: above 276."""
    plan = RandAugment(n=2, m=12).plan(14_000, _generator())
    numbers = torch.tensor([NUMBER[name] for name in RANDAUGMENT])
    place = (plan.operation[..., None] == numbers).long().argmax(-1)  # [2, n]
    for each in place:
        assert _chi_square(each.bincount(minlength=14).float(), torch.full((14,), 1000.0)) < 41
    pairs = (place[0] * 14 + place[1]).bincount(minlength=196).float()
    assert _chi_square(pairs, torch.full((196,), 14_000 / 196)) < 276
    torch.testing.assert_close(plan.magnitude, magnitudes("randaugment", plan.operation, torch.full((2, 14_000), 0.4)))


def test_trivialaugment_draws_one_operation_at_each_of_31_levels() -> None:
    """Chi-square with 30 degrees of freedom: above 67 once in 10,000 seeds."""
    plan = TrivialAugment(names=("rotate",)).plan(31_000, _generator())
    assert plan.operation.shape == (1, 31_000)
    level = (plan.magnitude[0] / 135 * 30).round().long()
    torch.testing.assert_close(plan.magnitude[0], level * 4.5)
    assert _chi_square(level.bincount(minlength=31).float(), torch.full((31,), 1000.0)) < 67


def test_uniformaugment_applies_each_of_two_with_probability_one_half() -> None:
    plan = UniformAugment(names=("rotate",)).plan(20_000, _generator())
    hits = (plan.operation > 0).sum(0).bincount(minlength=3).float()
    assert _chi_square(hits, torch.tensor([5000.0, 10_000.0, 5000.0])) < 18.4  # 2 degrees of freedom: once in 10,000 seeds
    assert 0.49 < float((plan.magnitude / 30)[plan.operation > 0].mean()) < 0.51


def test_pba_draws_how_many_and_takes_the_first_that_hit_in_random_order() -> None:
    """Chi-square with 2 and 5 degrees of freedom: above 18.4 and 25.7 once in 10,000 seeds."""
    names = ("invert", "flip", "equalize")
    sure = Shuffled(tuple(Step(name) for name in names))
    plan = sure.plan(20_000, _generator())
    counts = (plan.operation > 0).sum(0)
    assert _chi_square(counts.bincount(minlength=3).float(), torch.tensor([4000.0, 6000.0, 10_000.0])) < 18.4
    assert not bool(((plan.operation[0] == 0) & (plan.operation[1] > 0)).any())
    two = plan.operation[:, counts == 2]
    assert bool((two[0] != two[1]).all())  # each step once
    pairs = (two[0] * len(OPERATIONS) + two[1]).unique(return_counts=True)[1].float()
    assert len(pairs) == 6
    assert _chi_square(pairs, torch.full((6,), float(pairs.sum()) / 6)) < 25.7


def test_pba_passes_over_what_does_not_hit() -> None:
    rare = Shuffled((Step("invert", 0.0), Step("flip", 1.0)), counts=(0.0, 1.0))
    assert bool((rare.plan(500, _generator()).operation == NUMBER["flip"]).all())
    half = Shuffled((Step("invert", 0.5), Step("flip", 0.5)), counts=(0.0, 1.0)).plan(20_000, _generator())
    assert abs(float((half.operation == 0).float().mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 20_000)


def test_a_shared_draw_is_one_for_all_pictures_but_for_its_signs() -> None:
    plan = Shared(RandAugment(n=2, m=9)).plan(50, _generator())
    assert bool((plan.operation == plan.operation[:, :1]).all())
    assert bool((plan.magnitude == plan.magnitude[:, :1]).all())
    assert len(plan.noise.unique()) == 2 * 50 * NOISE
    x = _images()
    for seed in range(20):  # a round of one operation takes a shorter way
        plan = Shared(RandAugment()).plan(len(x), _generator(seed))
        alone = torch.cat([carry_out(plan.select(torch.tensor([i])), x[i:i + 1])[0] for i in range(len(x))])
        torch.testing.assert_close(carry_out(plan, x)[0], alone)


def test_a_shared_draw_is_one_for_each_outer_step_and_follows_a_schedule() -> None:
    """Training hands over many steps at once: pictures of the same progress are those of one step."""
    progress = (torch.arange(60) / 60).repeat_interleave(4)
    steps = Shared(TrivialAugment()).plan(240, _generator(), progress).operation.view(60, 4)
    assert bool((steps == steps[:, :1]).all())
    assert len(steps.unique()) > 5
    schedule = Shared(Schedule((fixed(Step("identity")), fixed(INVERT))))
    assert torch.equal(schedule.plan(240, _generator(), progress).operation[0] == NUMBER["invert"], progress >= 0.5)
    assert schedule.plan(0, _generator(), torch.zeros(0)).count == 0
    for policy in (schedule, schedule.policy):
        with pytest.raises(ValueError, match="one for each of 4 pictures, but got 3"):
            policy.plan(4, _generator(), torch.zeros(3))


def test_a_schedule_of_shared_policies_draws_once_a_step() -> None:
    """As a shared schedule does, so that what is drawn for a step does not depend on how many steps are drawn at once."""
    progress = (torch.arange(60).double() / 60).repeat_interleave(4)
    schedule = Schedule((Shared(RandAugment(1)), Shared(TrivialAugment())))
    plan = schedule.plan(240, _generator(), progress)
    for drawn in (plan.operation[0].view(60, 4), plan.magnitude[0].view(60, 4)):
        assert bool((drawn == drawn[:, :1]).all())
        assert min(len(half.unique()) for half in drawn[:, 0].split(30)) > 5
    assert len(schedule.plan(4, _generator(), 0.9).operation.unique()) == 1


def test_what_is_returned_is_never_what_was_given() -> None:
    x = _images()
    for policy in (fixed(Step("identity")), Shared(RandAugment(names=("identity",))), fixed(INVERT)):
        before = x.clone()
        policy(x, _generator()).zero_()
        assert torch.equal(x, before)


# schedules --------------------------------------------------------------------------------------------------------------------


def test_a_schedule_is_stretched_over_any_training() -> None:
    schedule = Schedule((fixed(INVERT), fixed(FLIP), fixed(Step("equalize"))), lengths=(2, 1, 1))
    for steps in (4, 8, 400):
        stages = schedule.stage(torch.arange(steps, dtype=torch.float64) / steps).tolist()
        assert stages == [0] * (steps // 2) + [1] * (steps // 4) + [2] * (steps // 4)
    assert schedule.stage(torch.tensor([0.0, 1.0])).tolist() == [0, 2]
    tenths = Schedule(tuple(fixed(INVERT) for _ in range(10)))
    assert tenths.stage(torch.arange(10) / 10).tolist() == list(range(10))
    assert schedule.at(0.6) == schedule.policies[1]


def test_a_schedule_treats_every_picture_by_its_own_progress() -> None:
    x = _images(6)
    schedule = Schedule((fixed(INVERT), fixed(FLIP)))
    found = schedule(x, _generator(), progress=torch.tensor([0.9, 0.0, 0.2, 0.5, 0.49, 1.0]))
    for i, flipped in enumerate((True, False, False, True, False, True)):
        torch.testing.assert_close(found[i], x[i].flip(-1) if flipped else 1 - x[i])


def test_a_schedule_that_is_not_to_be_stretched_refuses_another_length() -> None:
    schedule = Schedule((fixed(INVERT), fixed(FLIP)), steps=200)
    schedule.check(200)
    replace(schedule, steps=None).check(300)
    for steps in (100, 300):
        with pytest.raises(ValueError, match=f"for 200 outer steps, but this training has {steps}.*stretched"):
            schedule.check(steps)


def test_schedules_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="one number > 0 for each of 2 policies"):
        Schedule((fixed(INVERT), fixed(FLIP)), lengths=(1, 0))
    with pytest.raises(ValueError, match="one policy or more, none of them a schedule"):
        Schedule((Schedule((fixed(INVERT),)),))


# plans ------------------------------------------------------------------------------------------------------------------------


def test_a_plan_is_each_operation_on_its_own_pictures() -> None:
    """Every operation, twice, in random order, is what it is on one picture alone; the input stays as it was."""
    x = _images(2 * len(OPERATIONS))
    before, y = x.clone(), torch.eye(2 * len(OPERATIONS))
    number = torch.randperm(2 * len(OPERATIONS), generator=_generator()) % len(OPERATIONS)
    noise = torch.rand(1, len(number), NOISE, generator=_generator(1))
    plan = Plan(number[None], magnitudes("wide", number, torch.rand(len(number), generator=_generator(2)))[None], noise)
    found, labels = carry_out(plan, x, y)
    others = x[augment.ops.partners(noise[0])]
    for i, k in enumerate(number.tolist()):
        alone = OPERATIONS[k](x[i:i + 1], plan.magnitude[0, i:i + 1], noise[0, i:i + 1], others=others[i:i + 1])
        torch.testing.assert_close(found[i:i + 1], alone, msg=OPERATIONS[k].name)
    assert torch.equal(x, before)
    assert labels is not None
    mixed = (labels != y).any(1)
    assert set(number[mixed].tolist()) <= {NUMBER["cutmix"]}
    torch.testing.assert_close(labels.sum(1), torch.ones(len(number)))


def test_rounds_come_one_after_the_other_and_mix_what_the_last_one_left() -> None:
    """Every operation in random order: three rounds at once are each of them alone on what came before."""
    n = 6 * len(OPERATIONS)
    x, y = _images(n), torch.eye(6).repeat(len(OPERATIONS), 1)
    number = torch.stack([torch.randperm(n, generator=_generator(k)) % len(OPERATIONS) for k in range(3)])
    level = torch.rand(3, n, generator=_generator(4))
    plan = Plan(number, magnitudes("wide", number, level), torch.rand(3, n, NOISE, generator=_generator(5)))
    at_once = carry_out(plan, x, y, group=6)
    for k in range(3):
        x, mixed = carry_out(Plan(*(t[k:k + 1] for t in plan)), x, y, group=6)
        assert mixed is not None
        y = mixed
    torch.testing.assert_close(at_once, (x, y))


def test_pictures_that_drew_the_same_go_through_their_rounds_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """To no other result than all at once."""
    x = _images(10)
    for k in range(20):
        policy = Shared(RandAugment(3))
        at_once = policy(x, _generator(k))
        monkeypatch.setattr(plans, "CACHED", 3 * x[0].numel())
        assert torch.equal(policy(x, _generator(k)), at_once)
        monkeypatch.undo()


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_go_back_through_all_rounds(shared: bool) -> None:
    """To pictures and to magnitudes, against finite differences in float64; what was given stays as it was."""
    names = ("rotate", "brightness", "color", "sharpness", "translate_x", "contrast", "sample_pairing")
    x = 0.3 + 0.2 * _images(12).double()
    level = torch.full((3, 12), 0.4, dtype=torch.float64)
    policy = RandAugment(3, names=names)
    drawn = (Shared(policy) if shared else policy).plan(12, _generator(2))
    magnitude = magnitudes("autoaugment", drawn.operation, level) / 4

    def found(pictures: Tensor, m: Tensor) -> Tensor:
        return carry_out(Plan(drawn.operation, m, drawn.noise.double()), pictures)[0]

    before = x.clone()
    assert torch.autograd.gradcheck(found, (x.requires_grad_(), magnitude.requires_grad_()), fast_mode=True)
    assert torch.equal(x, before)
    for given in ((x.detach(), magnitude), (x, magnitude.detach())):
        assert found(*given).requires_grad


def test_an_empty_batch_stays_empty() -> None:
    for policy in (fixed(INVERT), RandAugment(), TrivialAugment(), Schedule((fixed(INVERT),)), Shuffled((INVERT, FLIP))):
        assert policy(_images(0), _generator(), progress=0.5).shape == (0, 3, 12, 12)


def test_whole_levels_come_back_as_whole_levels() -> None:
    x = (_images() * 255).round().to(torch.uint8)
    found = RandAugment()(x, _generator())
    assert found.dtype == torch.uint8
    torch.testing.assert_close(found.float() / 255, RandAugment()(x / 255, _generator()), atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("moments", [None, ([0.5] * 3, [0.25] * 3)])
def test_half_precision_comes_back_as_half_precision(dtype: torch.dtype, moments: Any) -> None:
    """Rounded once, at the end, whether pictures draw the same or not; and what was given stays as it was."""
    x = _images(200, side=40).to(dtype) if moments is None else ((_images(200, side=40) - 0.5) / 0.25).to(dtype)
    before = x.clone()
    for policy in (TrivialAugment(), RandAugment(3), Shared(RandAugment()), fixed(Step("posterize")), fixed(Step("identity"))):
        found = policy(x, _generator(1), moments=moments)
        assert found.dtype == dtype
        assert torch.equal(found, policy(x.float(), _generator(1), moments=moments).to(dtype))
        found.zero_()
        assert torch.equal(x, before)


def test_normalised_pictures_are_augmented_as_they_were_before() -> None:
    x, mean, std = _images(), [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    found = RandAugment()((x - m) / s, _generator(), moments=(mean, std))
    torch.testing.assert_close(found * s + m, RandAugment()(x, _generator()), atol=1e-5, rtol=0)


def test_cutmix_needs_labels_and_mixes_them_within_a_group() -> None:
    x, y = torch.arange(8.0)[:, None, None, None].expand(8, 1, 10, 10) / 8, torch.eye(8)
    found, labels = fixed(CUTMIX)(x, _generator(), y, group=4)
    for i in range(8):
        share = torch.tensor([float((found[i] - k / 8).abs().lt(1e-6).float().mean()) for k in range(8)])
        torch.testing.assert_close(labels[i], share)
        assert float(labels[i, i // 4 * 4:i // 4 * 4 + 4].sum()) == pytest.approx(1)
    assert bool(((labels > 0).sum(1) == 2).any())
    with pytest.raises(ValueError, match="cutmix mixes labels, but none were given"):
        fixed(CUTMIX)(x, _generator())


def test_colour_on_grey_pictures_is_named_and_harmless() -> None:
    policy = fixed(Step("color", 1.0, 1.0), Step("channel_permutation"), INVERT)
    assert policy.idle(1) == ("color", "channel_permutation")
    assert policy.idle(3) == ()
    x = _images(channels=1)
    torch.testing.assert_close(policy(x, _generator()), 1 - x)


def test_equal_generators_augment_equally_and_later_ones_otherwise() -> None:
    x, generator = _images(), _generator()
    first = TrivialAugment()(x, generator)
    assert torch.equal(first, TrivialAugment()(x, _generator()))
    assert not torch.equal(first, TrivialAugment()(x, generator))


def test_plans_side_by_side_are_each_for_its_own() -> None:
    one, two = fixed(INVERT, FLIP).plan(3, _generator()), fixed(Step("equalize")).plan(2, _generator())
    both = joined([one, two])
    assert both.operation.tolist() == [
        [NUMBER["invert"]] * 3 + [NUMBER["equalize"]] * 2, [NUMBER["flip"]] * 3 + [0, 0]]


# bad input ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("made", "said"), [
    (lambda: Step("rotatee"), "no operation 'rotatee'. Did you mean 'rotate'"),
    (lambda: Step("rotate", 1.1), "the probability of rotate must be between 0 and 1, but is 1.1"),
    (lambda: Step("rotate", 0.5, -0.1), "the magnitude of rotate, a level of its range, must be between 0 and 1, but is -0.1"),
    (lambda: Step("rotate", float("nan")), "must be between 0 and 1, but is nan"),
    (lambda: SubPolicies(()), "one sub-policy or more"),
    (lambda: SubPolicies(((INVERT,),), weights=(1.0, 2.0)), "one number >= 0 for each of 1"),
    (lambda: fixed(INVERT, ranges="autoaugmnt"), "no ranges 'autoaugmnt'. Did you mean 'autoaugment'"),
    (lambda: RandAugment(m=31), "`n >= 1` and `0 <= m <= 30` must hold, but got .n=2, m=31"),
    (lambda: RandAugment(names=("invert", "flp")), "no operation 'flp'. Did you mean 'flip'"),
    (lambda: TrivialAugment(names=()), "one operation or more"),
    (lambda: UniformAugment(probability=2), "between 0 and 1, but is 2"),
    (lambda: Shuffled((INVERT,), counts=(0.5, 0.4)), "which add to 1"),
    (lambda: Shuffled((INVERT,), counts=(float("nan"), 1.0)), "which add to 1"),
    (lambda: SubPolicies(((INVERT,), (FLIP,)), weights=(math.inf, 1.0)), "one number >= 0 for each of 2"),
    (lambda: SubPolicies((INVERT,)), "a sub-policy is a sequence of steps .*, but got Step"),  # type: ignore[arg-type]
    (lambda: SubPolicies((("rotate",),)), "a sub-policy is a sequence of steps"),  # type: ignore[arg-type]
    (lambda: Shuffled(("rotate",)), "a sub-policy is a sequence of steps"),  # type: ignore[arg-type]
    (lambda: Schedule(("rotate",)), "a schedule is made of policies, but got 'rotate'"),  # type: ignore[arg-type]
    (lambda: Schedule((Shared(Schedule((fixed(INVERT),))),)), "none of them a schedule"),
    (lambda: Schedule((fixed(INVERT),), (math.nan,)), "one number > 0 for each of 1"),
    (lambda: Shared(INVERT), "is made of policies, but got Step"),  # type: ignore[arg-type]
    (lambda: Step("rotate", "0.5"), "the probability of rotate must be between 0 and 1, but is '0.5'"),  # type: ignore[arg-type]
    (lambda: Step("rotate", 0.5, None), "must be between 0 and 1, but is None"),  # type: ignore[arg-type]
    (lambda: Step(["rotate"]), "there is no operation"),  # type: ignore[arg-type]
    (lambda: fixed(INVERT, ranges=["wide"]), "no ranges .*Did you mean 'wide'"),  # type: ignore[arg-type]
    (lambda: SubPolicies(INVERT), "one sub-policy or more, but got Step"),  # type: ignore[arg-type]
    (lambda: SubPolicies(((INVERT,),), weights=("1",)), "each of weights must be a number, but is '1'"),  # type: ignore[arg-type]
    (lambda: RandAugment(names="rotate"), "a sequence of one operation or more, but got 'rotate'"),  # type: ignore[arg-type]
    (lambda: Schedule((fixed(INVERT),), steps=0), "one outer step or more, but got steps=0"),
    (lambda: Schedule((fixed(INVERT),), steps=2.5), "steps must be a whole number, but is 2.5"),  # type: ignore[arg-type]
    (lambda: RandAugment(n=1.5), "n must be a whole number, but is 1.5"),  # type: ignore[arg-type]
])
def test_what_cannot_be_is_refused_in_words(made: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made()


@pytest.mark.parametrize(("shape", "said"), [((3, 8, 8), r"\[n, C, H, W\]"), ((4, 3, 8, 8), "plan is for 2 pictures, but got 4")])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        carry_out(fixed(INVERT).plan(2, _generator()), torch.zeros(shape))


X = _images()


@pytest.mark.parametrize(("pictures", "said"), [
    (255 * X, "floats in 0..1 or uint8, but these go from .* to 25.*Divide them by 255"),
    ((X - 0.5) / 0.2, "or say how they are normalised: moments="), (X * math.nan, "finite numbers"),
    (X.index_fill(2, torch.tensor([0]), math.nan), "finite numbers"),
    (X.half().index_fill(3, torch.tensor([0]), math.inf), "finite numbers"),
    (X[:, :0], "one channel and one pixel or more"), (X[..., :0], "one channel and one pixel or more"),
    ((255 * X).long(), "uint8, or floats in 0..1, but these are torch.int64"), (X > 0.5, "these are torch.bool"),
    (X.permute(0, 2, 3, 1), r"look like \[n, H, W, C\].*permute"), (X.numpy(), "a tensor .*, but got ndarray"),
])
def test_what_are_no_pictures_is_refused_instead_of_ruined(pictures: Any, said: str) -> None:
    for policy in (RandAugment(), fixed(INVERT)):
        with pytest.raises(ValueError, match=said):
            policy(pictures, _generator())


@pytest.mark.parametrize(("given", "said"), [
    ({"generator": 0}, "a torch.Generator of the CPU, but got 0"), ({"fill": 7.0}, "between 0 and 1, but got 7.0"),
    ({"group": 0}, "no whole number of groups of 0"), ({"moments": (0.5, 0.2)}, "a number for each of 3 channels"),
    ({"moments": ([0.5], [0.2])}, "a number for each of 3 channels"),
    ({"moments": ([0.5] * 3, [0.2, 0.2, 0.0])}, "standard deviations > 0"),
])
def test_what_a_policy_cannot_be_called_with_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RandAugment()(X, **{"generator": _generator(), **given})


def test_moments_may_be_tensors() -> None:
    told = (torch.tensor([0.5] * 3), torch.tensor([0.25] * 3)[:, None, None])
    found = RandAugment()((X - 0.5) / 0.25, _generator(), moments=told)  # type: ignore[arg-type]
    torch.testing.assert_close(found * 0.25 + 0.5, RandAugment()(X, _generator()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("labels", [torch.arange(32), torch.eye(32).long(), torch.eye(5), [0] * 32])
def test_labels_that_could_not_be_mixed_are_refused(labels: Tensor) -> None:
    """Whole numbers would be rounded to one of the two labels."""
    with pytest.raises(ValueError, match=r"labels are floats \[n, N\].*one_hot"):
        fixed(CUTMIX)(X, _generator(), labels)


def test_a_schedule_on_ones_own_pictures_wants_to_know_the_progress() -> None:
    """Without it, a schedule that begins with nothing would be nothing."""
    schedule = Schedule((fixed(Step("identity")), fixed(INVERT)))
    for policy in (schedule, Shared(schedule)):
        with pytest.raises(ValueError, match=r"changes over training: say .* progress=0..1"):
            policy(X, _generator())
        torch.testing.assert_close(policy(X, _generator(), progress=0.5), 1 - X)
    for progress in (-0.1, 30.0, math.nan):
        with pytest.raises(ValueError, match=r"share of training that is done, 0\.\.1, but got"):
            schedule(X, _generator(), progress=progress)


# devices ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_a_plan_of_the_cpu_is_carried_out_on_the_pictures_device(operation: augment.Operation) -> None:
    """The device `meta` has no values, but refuses tensors of the CPU as a GPU does."""
    x, y = X.to("meta"), torch.eye(32, device="meta")
    plan = joined([fixed(Step(operation.name), INVERT).plan(20, _generator()), RandAugment().plan(12, _generator())])
    pictures, labels = carry_out(plan, x, y, group=4, moments=([0.5] * 3, [0.2] * 3))
    assert labels is not None
    assert pictures.device.type == labels.device.type == "meta"
    noise = torch.rand(32, NOISE, device="meta")
    assert operation(x, noise[:, 0], noise).device.type == "meta"


# JSON -------------------------------------------------------------------------------------------------------------------------

SAVED: list[Policy] = [
    fixed(Step("rotate", 0.8, 0.6), INVERT), SubPolicies(((INVERT, FLIP), (), (Step("equalize", 0.1),)), (1.0, 2.0, 0.5), "dada"),
    Shuffled((INVERT, Step("cutout", 0.3, 0.9)), (0.5, 0.5), "wide"), RandAugment(3, 5.5, ("flip", "invert")), TrivialAugment(),
    UniformAugment(), Shared(TrivialAugment()), Schedule((RandAugment(), fixed(INVERT)), (1.0, 3.0), 40),
]


@pytest.mark.parametrize("policy", SAVED, ids=lambda p: type(p).__name__)
def test_a_policy_is_read_as_it_was_saved(policy: Policy, tmp_path: Path) -> None:
    path = augment.save(policy, tmp_path / "policy.json")
    again = augment.load(path)
    assert again == policy
    x = _images()
    assert torch.equal(again(x, _generator(), progress=0.9), policy(x, _generator(), progress=0.9))


@pytest.mark.parametrize(("one", "other"), [
    (Step("rotate", 1, 0), Step("rotate", 1.0, 0.0)), (RandAugment(2, 9), RandAugment(np.int64(2), 9.0)),  # type: ignore[arg-type]
    (SubPolicies([[Step("rotate", np.float32(0.5))]], [1]), SubPolicies(((Step("rotate", 0.5),),), (1.0,))),  # type: ignore
    (Schedule([fixed(INVERT)], [2]), Schedule((fixed(INVERT),), (2.0,))),  # type: ignore[arg-type]
    (Shuffled([INVERT], [0, 1]), Shuffled((INVERT,), (0.0, 1.0))),  # type: ignore[arg-type]
    (UniformAugment(2, 1, ["flip"]), UniformAugment(2, 1.0, ("flip",))),  # type: ignore[arg-type]
    (Places(query=TrivialAugment(["flip"]), new_classes=1, fill=0), Places(  # type: ignore[arg-type]
        query=TrivialAugment(("flip",)), new_classes=1.0, fill=0.0)),
])
def test_what_is_equal_is_saved_and_named_alike(one: Any, other: Any, tmp_path: Path) -> None:
    """However its numbers and sequences were written, as numpy draws them or as a user types them."""
    both = [fixed(each) if isinstance(each, Step) else each for each in (one, other)]
    assert both[0] == both[1]
    assert hash(both[0]) == hash(both[1])
    assert augment.content_hash(both[0]) == augment.content_hash(both[1])
    path = augment.save(both[0], tmp_path / "policy.json")
    assert (augment.load_places if isinstance(one, Places) else augment.load)(path) == both[1]


def test_places_are_read_as_they_were_saved(tmp_path: Path) -> None:
    places = Places(support=RandAugment(), shot=SAVED[0], copies=3, at_test=False, new_classes=0.25, versions=4, fill=0.5)
    path = augment.save(places, tmp_path / "places.json")
    assert augment.load_places(path) == places
    with pytest.raises(ValueError, match=r"at the places support, shot of an episode.*load_places"):
        augment.load(path)
    assert augment.load(augment.save(Places(query=SAVED[0]), path)) == SAVED[0]
    with pytest.raises(ValueError, match="without a place in an episode"):
        augment.load_places(augment.save(SAVED[0], path))


def _told(**changed: Any) -> dict[str, Any]:
    return {"format": 1, "kind": "rand-augment", "n": 2, **changed}


@pytest.mark.parametrize(("told", "said"), [
    (_told(format=2), "format must be 1, but is 2"),
    (_told(kind="rand-augmnt"), "no kind of policy 'rand-augmnt'. Did you mean 'rand-augment'"),
    (_told(mm=3), "has no 'mm'. Did you mean 'm'"),
    (_told(kind=["rand-augment"]), "no kind of policy"),
    (_told(n=1.5), "n must be a whole number, but is 1.5"),
    ({"format": 1, "kind": "sub-policies", "choices": [{"operation": "rotate"}]}, "a sub-policy is a sequence of steps"),
    ({"format": 1, "kind": "schedule", "policies": [{"operation": "rotate"}]}, "a schedule is made of policies"),
    (_told(m="9"), "m must be a number, but is '9'"), (_told(names=9), "a sequence of one operation or more, but got 9"),
    ({"format": 1, "kind": "sub-policies"}, "missing 1 required"),
    ({"format": 1, "kind": "sub-policies", "choices": [[{"operation": "rotate", "prob": 1}]]}, "has no 'prob'"),
    ({"format": 1, "kind": "sub-policies", "choices": [[{"operation": "rotat"}]]}, "Did you mean 'rotate'"),
    ({"format": 1, "kind": "places", "qurey": _told()}, "has no 'qurey'. Did you mean 'query'"),
    ([], "must be a table, but is list"),
])
def test_files_that_hold_no_policy_are_refused_in_words(told: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=said) as error:
        augment.load(path)
    assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="holds no policy"):
        augment.load(tmp_path / "none.json")


class Own(Policy):
    """A policy of a user's own."""

    operations = ("flip",)

    def plan(self, n: int, generator: Generator, progress: float | Tensor = 0.0) -> Plan:
        return Plan.nothing(1, n)


def test_a_policy_of_ones_own_says_that_no_file_can_hold_it(tmp_path: Path) -> None:
    for policy in (Own(), Shared(Own())):
        with pytest.raises(ValueError, match="Own cannot be saved: a file holds policies of these kinds: sub-policies"):
            augment.save(policy, tmp_path / "policy.json")
    assert not (tmp_path / "policy.json").exists()
