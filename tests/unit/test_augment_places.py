"""Where policies act in an episode: the right pictures change, and labels stay right."""
from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from metasearch.augment import Places, RandAugment, Schedule, Step, SubPolicies, at_place, fixed
from metasearch.augment.places import rotation_classes
from metasearch.objectives import augmenting
from metasearch.tasks import Episode, TaskShape
from metasearch.tasks._classes import cross_entropy
from metasearch.tasks._images import ImageTasks, Pictures

INVERT, FLIP, CUTMIX = fixed(Step("invert")), fixed(Step("flip")), fixed(Step("cutmix", 1.0, 1.0))
SIDE = 8
SHAPE = TaskShape((1, SIDE, SIDE), 3, 2, 4)


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def _tasks(channels: int = 1, **given: Any) -> ImageTasks:
    """Twelve classes of nine drawings of random levels; class c is told by its mean, which is about 15 + 18 c of 255."""
    rng = np.random.default_rng(0)
    images = 15 + 18 * (np.arange(108) // 9)[:, None, None, None] + rng.integers(-6, 7, (108, channels, SIDE, SIDE))
    splits: dict[Any, list[int]] = {"train": [0, 1, 2, 3, 4, 5, 6, 7], "val": [8, 9, 10, 11]}
    names = [f"c{c}" for c in range(12)]
    return ImageTasks(Pictures(images.astype(np.uint8), np.arange(13) * 9, names, splits, "d"), told={}, **given)


TASKS = _tasks()


def _episodes(n: int = 5, tasks: ImageTasks = TASKS, seed: int = 3) -> Episode:
    shape = SHAPE._replace(x=tasks.input_shape)
    return tasks.sample_episodes(n, split="train", shape=shape, generator=_generator(seed))


def _classes(x: Tensor) -> Tensor:
    """The classes of upright pictures."""
    return ((x.mean((-3, -2, -1)) * 255 - 15) / 18).round().long()


# the right pictures -----------------------------------------------------------------------------------------------------------


def test_support_and_query_change_their_own_pictures_alone() -> None:
    e = _episodes()
    support, query = Places(support=INVERT)(e, _generator()), Places(query=INVERT)(e, _generator())
    torch.testing.assert_close(support.support_x, 1 - e.support_x)
    torch.testing.assert_close(query.query_x, 1 - e.query_x)
    for found, same in ((support, ("support_y", "query_x", "query_y")), (query, ("support_x", "support_y", "query_y"))):
        assert all(torch.equal(getattr(found, name), getattr(e, name)) for name in same)


def test_shots_are_added_to_the_supports_and_to_nothing_else() -> None:
    e = _episodes()
    found = Places(shot=INVERT, copies=2)(e, _generator())
    assert found.support_x.shape == (5, 3 * 6, 1, SIDE, SIDE)
    assert torch.equal(found.support_x[:, :6], e.support_x)
    torch.testing.assert_close(found.support_x[:, 6:], 1 - e.support_x.repeat_interleave(2, 1))
    assert torch.equal(found.support_y, torch.cat([e.support_y, e.support_y.repeat_interleave(2, 1)], 1))
    assert torch.equal(found.query_x, e.query_x)
    assert Places(shot=INVERT, copies=2).shape(SHAPE) == SHAPE._replace(shots=6)
    both = Places(shot=FLIP, support=INVERT)(e, _generator())
    torch.testing.assert_close(both.support_x, torch.cat([1 - e.support_x, e.support_x.flip(-1)], 1))


def test_a_task_policy_does_one_thing_to_all_pictures_of_a_class() -> None:
    policy = SubPolicies(((Step("invert"),), (Step("identity"),)))
    e = _episodes(40)
    found = Places(task=policy)(e, _generator())
    pairs = ((found.support_x, e.support_x), (found.query_x, e.query_x))
    support, query = ((a - b).abs().amax((2, 3, 4)) > 1e-4 for a, b in pairs)
    inverted = torch.zeros(40, 3)
    for j in range(3):
        rows = [changed[e_y.argmax(-1) == j].view(40, -1) for changed, e_y in ((support, e.support_y), (query, e.query_y))]
        together = torch.cat(rows, 1)
        assert bool((together.all(1) | ~together.any(1)).all())
        inverted[:, j] = together[:, 0].float()
    assert 0 < float(inverted.mean()) < 1
    assert bool((inverted.amax(1) != inverted.amin(1)).any()), "classes of an episode are drawn one by one"
    assert torch.equal(found.support_y, e.support_y)


def test_a_task_policy_turns_a_class_by_one_angle() -> None:
    e = _episodes(20)
    found = Places(task=fixed(Step("turn")))(e, _generator())
    for i in range(20):
        for j in range(3):
            pairs = [(a[i][y[i].argmax(-1) == j], b[i][y[i].argmax(-1) == j]) for a, b, y in (
                (e.support_x, found.support_x, e.support_y), (e.query_x, found.query_x, e.query_y))]
            assert sum(all(torch.equal(a.rot90(k, (-2, -1)), b) for a, b in pairs) for k in (1, 2, 3)) == 1


# labels -----------------------------------------------------------------------------------------------------------------------

EVERYWHERE = {
    "support": Places(support=RandAugment()), "query": Places(query=RandAugment()), "shot": Places(shot=RandAugment(), copies=2),
    "task": Places(task=RandAugment()), "all": Places(FLIP, FLIP, FLIP, FLIP, copies=2, versions=2),
}


@pytest.mark.parametrize("place", EVERYWHERE)
def test_labels_stay_right_at_every_place(place: str) -> None:
    """Flips and turns keep a class's mean, which tells the class; other operations must at least leave the labels as they are."""
    e = _episodes(10)
    found = EVERYWHERE[place](e, _generator())
    each = e.map(lambda t: t.repeat_interleave(EVERYWHERE[place].versions, 0))
    assert torch.equal(found.query_y, each.query_y)
    assert torch.equal(found.support_y[:, :6], each.support_y)
    quiet = {"support": FLIP, "query": FLIP, "shot": FLIP, "task": fixed(Step("turn"))}
    found = (EVERYWHERE[place] if place == "all" else at_place(place, quiet[place]))(e, _generator())
    classes = {}
    for x, y in ((found.support_x, found.support_y), (found.query_x, found.query_y)):
        for i in range(len(x)):
            for row, label in zip(_classes(x[i]).tolist(), y[i].argmax(-1).tolist(), strict=True):
                assert classes.setdefault((i, label), row) == row
    assert len({(i, c) for (i, _), c in classes.items()}) == len(classes) == 3 * len(found.support_x)


@pytest.mark.parametrize("place", ["support", "query", "shot"])
def test_cutmix_mixes_labels_of_the_same_episode_as_it_mixes_pixels(place: str) -> None:
    e = _episodes(10)
    found = at_place(place, CUTMIX)(e, _generator())
    x, y = (found.query_x, found.query_y) if place == "query" else (found.support_x, found.support_y)
    level = ((x * 255 - 15) / 18).round().long()[:, :, 0]  # the class of every pixel
    mixed = 0
    for i in range(10):
        number = {int(_classes(e.support_x[i, r])): int(e.support_y[i, r].argmax()) for r in range(6)}
        for r in range(x.shape[1]):
            share = torch.zeros(3)
            for c in level[i, r].flatten().tolist():
                share[number[c]] += 1 / SIDE**2
            torch.testing.assert_close(y[i, r], share, atol=1e-5, rtol=0)
            mixed += int((share > 0).sum() > 1)
    assert mixed > 10


def test_the_loss_of_mixed_labels_is_the_mixture_of_losses() -> None:
    y = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    output = torch.randn(4, 3, generator=_generator())
    share = torch.tensor([0.3, 0.9, 0.5, 1.0])[:, None]
    torch.testing.assert_close(
        cross_entropy(output, share * y + (1 - share) * y.roll(1, 0)),
        torch.stack([share[i] * cross_entropy(output[i:i + 1], y[i:i + 1])
                     + (1 - share[i]) * cross_entropy(output[i:i + 1], y.roll(1, 0)[i:i + 1]) for i in range(4)]).mean())


# new classes ------------------------------------------------------------------------------------------------------------------


def test_turned_classes_are_four_times_as_many_with_other_labels() -> None:
    x, labels = _episodes(1).support_x[0], torch.tensor([0, 1, 2, 0, 1, 2])
    turned, numbers = rotation_classes(x, labels, 3)
    assert len(turned) == 24
    assert sorted(set(numbers.tolist())) == list(range(12))
    for k in range(4):
        assert torch.equal(turned[6 * k:6 * k + 6], x.rot90(k, (-2, -1)))
        assert torch.equal(numbers[6 * k:6 * k + 6], labels + 3 * k)


def _forms(found: Episode, e: Episode) -> list[dict[int, tuple[int, int]]]:
    """Of each episode: label -> (class, quarter turns), the same in support and query set."""
    told = []
    for i in range(e.count):
        forms: dict[int, tuple[int, int]] = {}
        for x, y, before in ((found.support_x, found.support_y, e.support_x), (found.query_x, found.query_y, e.query_x)):
            for picture, label in zip(x[i], y[i].argmax(-1).tolist(), strict=True):
                turns = [k for k in range(4) if any(torch.equal(picture, b.rot90(k, (-2, -1))) for b in before[i])]
                assert len(turns) == 1
                form = int(_classes(picture)), turns[0]
                assert forms.setdefault(label, form) == form
        told.append(forms)
    return told


def test_new_classes_are_distinct_forms_of_the_old_ones() -> None:
    """Each form of a class is as likely, and two forms of one class may meet. Chi-square with 3 degrees of freedom over turns:
    above 21.1 once in 10,000 seeds."""
    e = _episodes(100)
    found = Places(new_classes=1.0)(e, _generator())
    assert torch.equal(found.support_y, e.support_y)
    assert torch.equal(found.query_y, e.query_y)
    told = _forms(found, e)
    assert all(len(set(forms.values())) == 3 for forms in told)
    turns = torch.tensor([t for forms in told for _, t in forms.values()]).bincount(minlength=4).float()
    assert float(((turns - 75) ** 2 / 75).sum()) < 21.1
    assert any(len({c for c, _ in forms.values()}) < 3 for forms in told)


def test_new_classes_come_with_their_probability() -> None:
    e = _episodes(400)
    found = Places(new_classes=0.25)(e, _generator())
    changed = (found.query_x != e.query_x).flatten(1).any(1).float().mean()
    assert abs(float(changed) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 400)
    assert torch.equal(Places(new_classes=0.0)(e, _generator()).query_x, e.query_x)


def test_new_classes_need_even_episodes() -> None:
    e = _episodes()
    with pytest.raises(ValueError, match="equally many pictures of each class"):
        Places(new_classes=1.0)(e._replace(support_x=e.support_x[:, :5], support_y=e.support_y[:, :5]), _generator())


# schedules, versions, test time -------------------------------------------------------------------------------------------------


def test_a_schedule_goes_by_the_progress_of_each_episode() -> None:
    e = _episodes(4)
    found = Places(query=Schedule((INVERT, FLIP)), versions=2)(e, _generator(), torch.tensor([0.0, 0.4, 0.5, 0.9]))
    each = e.query_x.repeat_interleave(2, 0)
    torch.testing.assert_close(found.query_x[:4], 1 - each[:4])
    torch.testing.assert_close(found.query_x[4:], each[4:].flip(-1))
    with pytest.raises(ValueError, match="say at which point of it the episodes are seen"):
        Places(query=Schedule((INVERT, FLIP)))(e, _generator())


def test_versions_of_an_episode_are_side_by_side_and_differ() -> None:
    e = _episodes(4)
    found = Places(query=RandAugment(), versions=3)(e, _generator())
    assert found.count == 12
    assert torch.equal(found.support_x, e.support_x.repeat_interleave(3, 0))
    assert not torch.equal(found.query_x[0], found.query_x[1])


def test_further_shots_at_test_time_are_the_same_every_time() -> None:
    e = _episodes(6)
    places = Places(shot=RandAugment(), copies=2, query=INVERT, new_classes=1.0)
    found = places.tested(e)
    assert torch.equal(places.tested(e).support_x, found.support_x)
    assert torch.equal(places.tested(e.select(slice(0, 2))).support_x, found.support_x[:2])
    assert torch.equal(found.query_x, e.query_x)
    assert torch.equal(found.support_x[:, :6], e.support_x)
    twice = places.tested(e.map(lambda t: t[:1].expand_as(t)))
    assert not torch.equal(twice.support_x[0], twice.support_x[1]), "episodes do not share their changes"
    assert replace(places, at_test=False).tested(e) is e
    assert Places(query=INVERT).tested(e) is e


def test_further_shots_at_test_time_are_those_of_the_end_of_a_schedule() -> None:
    e = _episodes(3)
    found = Places(shot=Schedule((FLIP, INVERT))).tested(e)
    torch.testing.assert_close(found.support_x[:, 6:], 1 - e.support_x)


def test_normalised_episodes_are_augmented_as_their_pictures_are() -> None:
    tasks = _tasks(3, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    plain, normal = _episodes(3, _tasks(3)), _episodes(3, tasks)
    places = Places(RandAugment(), RandAugment(), RandAugment(), RandAugment())
    ours = places(normal, _generator(), moments=augmenting.moments(tasks))
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in tasks.moments)
    torch.testing.assert_close(ours.support_x * std + mean, places(plain, _generator()).support_x, atol=2e-3, rtol=0)
    assert augmenting.moments(TASKS) is None


# bad input ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("made", "said"), [
    (lambda: at_place("qurey", INVERT), "no place 'qurey' in an episode. Did you mean 'query'"),
    (lambda: at_place("shot", INVERT, copys=2), "places have no 'copys'. Did you mean 'copies'"),
    (lambda: Places(task=CUTMIX), r"cutmix mixes single pictures, so it cannot act on a whole class"),
    (lambda: Places(support="invert"), "support must be a policy, but is 'invert'"),  # type: ignore[arg-type]
    (lambda: at_place("query", None), "query must be a policy, but is None"),  # type: ignore[arg-type]
    (lambda: Places(at_test="no"), "at_test is true or false, but got 'no'"),  # type: ignore[arg-type]
    (lambda: Places(new_classes="0.5"), "a probability between 0 and 1, but got '0.5'"),  # type: ignore[arg-type]
    (lambda: Places(fill="0"), "a value between 0 and 1, but got '0'"),  # type: ignore[arg-type]
    (lambda: Places(copies=0), "`copies >= 1` and `versions >= 1` must hold"),
    (lambda: Places(versions=1.5), "for whole numbers, but got .copies=1, versions=1.5"),  # type: ignore[arg-type]
    (lambda: Places(query=fixed(Step("channel_permutation"))).check(TaskShape((5, 8, 8), 3, 1, 1), 10), "but these have 5"),
    (lambda: Places(new_classes=1.5), "a probability between 0 and 1, but got 1.5"),
    (lambda: Places(fill=2.0), "a value between 0 and 1, but got 2.0"),
    (lambda: Places(query=INVERT).check(TaskShape((6,), 3, 1, 1), 10), r"pictures \[C, H, W\], but the inputs of these"),
    (lambda: Places(new_classes=0.5).check(TaskShape((1, 8, 9), 3, 1, 1), 10), "only square pictures .* but these are 8 x 9"),
    (lambda: Places(query=Schedule((INVERT,), steps=5)).check(SHAPE, 6), "for 5 outer steps, but this training has 6"),
])
def test_what_cannot_be_is_refused_in_words(made: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made()
