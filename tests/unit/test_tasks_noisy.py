"""Noisy supports: as many wrong labels as asked for, classes as unequal as asked for, and nothing else is touched."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from metasearch.hands import _inputs
from metasearch.learners.prototypical import Prototypical
from metasearch.nets.identity import identity
from metasearch.objectives import augmenting
from metasearch.tasks import Episode, build, open_test
from metasearch.tasks.noisy import Noisy
from metasearch.trained import Trained, _evaluated

BLOBS = {"name": "blobs"}


def _draw(arguments: dict[str, Any], n: int = 200, ways: int = 5, shots: int = 5) -> Episode:
    tasks = Noisy(BLOBS, **arguments)
    shape = tasks.shape(ways=ways, shots=shots, queries=3)
    return tasks.sample_episodes(n, split="train", shape=shape, generator=Generator().manual_seed(0))


def _wrong(noisy: Episode, clean: Episode) -> Tensor:
    return noisy.support_y.argmax(-1) != clean.support_y.argmax(-1)  # [n, M]


@pytest.mark.parametrize("wrong", ["uniform", "pair"])
def test_without_noise_they_are_the_clean_tasks_and_with_it_only_support_labels_change(wrong: str) -> None:
    clean = build("blobs", {})
    shape = clean.shape(ways=5, shots=5, queries=3)
    plain = clean.sample_episodes(200, split="train", shape=shape, generator=Generator().manual_seed(0))
    for flip in (0.0, 0.4):
        noisy = _draw({"flip": flip, "wrong": wrong})
        for a, b in ((noisy.support_x, plain.support_x), (noisy.query_x, plain.query_x), (noisy.query_y, plain.query_y)):
            assert torch.equal(a, b)
        assert torch.equal(_wrong(noisy, plain).sum(1), torch.full((200,), round(25 * flip)))


def test_every_label_keeps_its_supports() -> None:
    for flip in (0.3, 1.0):
        assert bool((_draw({"flip": flip}).support_y.sum(1) == 5).all())


def test_the_share_of_wrong_labels_is_right_on_average() -> None:
    """0.3 of 2 supports is none or one: one with probability 0.6. False alarms: less than one in a million (5 errors)."""
    share = _wrong(_draw({"flip": 0.3}, 2000, shots=2), _draw({}, 2000, shots=2)).float().mean(1)
    assert abs(float(share.mean()) - 0.3) < 5 * 0.5 * (0.6 * 0.4 / 2000) ** 0.5


def test_uniform_noise_takes_any_other_class_and_paired_noise_one() -> None:
    clean = _draw({}, 2000).support_y.argmax(-1)
    drawn = {wrong: _draw({"flip": 0.4, "wrong": wrong}, 2000) for wrong in ("uniform", "pair")}
    moves = {wrong: (e.support_y.argmax(-1) - clean) % 5 for wrong, e in drawn.items()}
    for wrong, move in moves.items():
        share = torch.bincount(move[move > 0], minlength=5)[1:] / (move > 0).sum()
        assert float((share - 0.25).abs().max()) < 0.05, f"{wrong}: every other class is as likely"
    kinds = {wrong: max(len(set(row.tolist()) - {0}) for row in move) for wrong, move in moves.items()}
    assert kinds == {"uniform": 2, "pair": 1}, "two supports of each class are wrong: in two ways, or in one"


def test_imbalanced_supports_have_the_ratio_asked_for_and_no_class_is_always_rare() -> None:
    tasks = Noisy(BLOBS, imbalance=8.0)
    assert tasks.counts(tasks.shape(ways=4, shots=15, queries=1)) == [32, 16, 8, 4]
    assert tasks.counts(tasks.shape(ways=5, shots=1, queries=1)) == [1] * 5
    y = _draw({"imbalance": 8.0}, 400, ways=4, shots=15).support_y.sum(1)  # [n, N]
    assert torch.equal(y.sort(-1).values, torch.tensor([4.0, 8, 16, 32]).expand(400, 4))
    assert float((y.mean(0) - 15).abs().max()) < 5 * 11 / 400**0.5


def test_no_label_is_lost_when_rare_classes_are_mislabelled() -> None:
    for flip in (0.2, 0.5, 1.0):
        y = _draw({"imbalance": 20.0, "flip": flip}, 500, ways=5, shots=3).support_y
        assert float(y.sum(1).min()) >= 1
        assert torch.equal(y.sum((1, 2)), torch.full((500,), 15.0))


def test_shifted_tasks_are_the_shifted_clean_ones_with_the_same_noise() -> None:
    with pytest.raises(ValueError, match="Blobs has no shifted tasks"):
        Noisy(BLOBS).shifted()
    tasks = Noisy({"name": "glyphs", "drawings": 2}, flip=0.4)
    moved = tasks.shifted()
    assert isinstance(moved, Noisy)
    assert (moved.flip, tasks.digest != moved.digest) == (0.4, True)
    assert tasks.digest == Noisy({"name": "glyphs", "drawings": 2}, flip=0.4).digest, "the tasks themselves stay as they were"


def test_pictures_stay_pictures_under_noise(tmp_path: Path) -> None:
    """A user's bytes are read, and policies bring pictures to 0..1, as those of the clean tasks are."""
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, own_split=np.array(["train"] * 4 + ["val"] * 2))
    grey = {"name": "glyphs", "drawings": 2}
    colour = {"name": "class-arrays", "path": str(tmp_path / "mine.npz"), "split": "own_split", "normalise": "train"}
    for table, pictures in ((grey, True), (colour, True), (BLOBS, False)):
        clean, noisy = build(str(table["name"]), {k: v for k, v in table.items() if k != "name"}), Noisy(table, flip=0.4)
        assert _inputs(noisy) == _inputs(clean)
        assert _inputs(noisy).pictures == pictures
        assert augmenting.moments(noisy) == augmenting.moments(clean)
        assert (augmenting.moments(noisy) is not None) == (table is colour)


def test_pairs_are_not_judged_by_wrong_labels() -> None:
    """A verifier that is never wrong would be said to be: there is no area under the curve instead of a wrong one."""
    for arguments, area in (({}, 1.0), ({"imbalance": 3.0}, 1.0), ({"flip": 0.4}, None)):
        tasks = Noisy({"name": "blobs", "separation": 30.0}, **arguments)
        shape = tasks.shape(ways=5, shots=5, queries=3)
        trained = Trained("noisy/1", {}, identity(shape.x), Prototypical(), {}, tasks, shape, 1)
        opened = open_test(tasks, lambda row: None)
        assert _evaluated(trained, tasks, opened, "test", 10, 0, 0, "loop", lambda words: None).verification == area


def test_what_ordinary_training_reads_is_clean() -> None:
    clean, noisy = build("blobs", {}), Noisy(BLOBS, flip=0.4)
    assert noisy.class_count("train") == clean.class_count("train")
    drawn = [tasks.labelled(20, "train", Generator().manual_seed(0)) for tasks in (clean, noisy)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


@pytest.mark.parametrize(("arguments", "law"), [
    ({"flip": 1.5}, "`0 <= flip <= 1` must hold, but got flip=1.5"),
    ({"imbalance": 0.5}, "`imbalance >= 1` must hold"),
    ({"tasks": {}}, "must name the clean tasks"),
    ({"tasks": {"name": "sinusoid"}}, "sinusoid is of regression"),
    ({"tasks": {"name": "blobs", "dimension": 3}}, "Did you mean 'dimensions'"),
    ({"wrong": "both"}, "must be 'uniform' or 'pair', but got 'both'"),
])
def test_what_means_nothing_is_refused_in_words(arguments: dict[str, Any], law: str) -> None:
    with pytest.raises(ValueError, match=law):
        build("noisy", {"tasks": BLOBS, **arguments})


def test_too_few_pictures_for_the_commonest_class_are_refused_with_the_reason() -> None:
    tasks = Noisy({"name": "glyphs", "drawings": 10}, imbalance=10.0)
    with pytest.raises(ValueError, match=r"at imbalance=10.0 the commonest class has \d+ supports: .* Lower shots"):
        tasks.check(tasks.shape(ways=5, shots=5, queries=3), "train")
