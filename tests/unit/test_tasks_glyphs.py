"""Glyphs are what they say: letters, whole, unlike one another, split by script."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from metasearch.tasks import SPLITS
from metasearch.tasks import glyphs as module
from metasearch.tasks.glyphs import SCRIPTS, Glyphs


@pytest.fixture(scope="module")
def glyphs() -> Glyphs:
    return Glyphs()


def _scripts(glyphs: Glyphs, split: Any) -> set[str]:
    return {glyphs.names[c].split()[1] for c in glyphs._classes[split].tolist()}


def test_there_are_at_least_800_classes_and_enough_of_them_in_every_split(glyphs: Glyphs) -> None:
    counts = {split: glyphs.classes(split) for split in SPLITS}
    assert sum(counts.values()) >= 800
    assert min(counts["val"], counts["test"]) >= 60  # 20-way, with room to choose


def test_scripts_belong_to_one_split(glyphs: Glyphs) -> None:
    for split in SPLITS:
        assert _scripts(glyphs, split) == {script for script, at in SCRIPTS.items() if at == split}


def test_every_drawing_is_a_whole_letter(glyphs: Glyphs) -> None:
    pictures = glyphs._images[:, 0].numpy()
    assert pictures.shape[1:] == (28, 28)
    assert (pictures.reshape(len(pictures), -1).sum(axis=1) > 255 * 10).all()  # no blank, no speck
    assert not pictures[:, [0, -1]].any()  # nothing is cut off
    assert not pictures[:, :, [0, -1]].any()


def test_no_drawing_is_there_twice(glyphs: Glyphs) -> None:
    assert len({picture.tobytes() for picture in glyphs._images.numpy()}) == len(glyphs._images)


def test_letters_alike_are_one_class() -> None:
    fonts = module._fonts()[:len(module.COMPARED)]
    letters = [ord(c) for c in "AaBCcOoSsXxАаВвСсОоЖж"]  # Latin, then Cyrillic
    stay = module._unlike(letters, module._sources(fonts, letters))
    assert "".join(map(chr, stay)) == "ABCOSXaЖ"  # a differs from A; c, x, Cyrillic A, ... look like a letter before them


@pytest.mark.parametrize("family", [
    "AΑА", "BΒВв", "CcСсϹϲ", "EΕЕ", "HΗНн", "IΙІ", "KΚКк", "MΜМ", "OoΟοОоՕօ", "PΡР", "SsЅѕ", "TΤТт", "XxΧхХ", "YΥҮ", "Vv", "Zz",
    "ƷӠʒӡ", "Шш", "Ии", "Ъъ", "Яя", "Əә", "Ww",
])
def test_of_letters_that_look_the_same_to_a_person_one_is_there(glyphs: Glyphs, family: str) -> None:
    there = [name[0] for name in glyphs.names if name[0] in family]
    assert len(there) <= 1, there


def test_modifier_and_compatibility_letters_are_left_out() -> None:
    assert [module._script(ord(c)) for c in "aαжաა"] == ["LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN"]
    for letter in "\u02b0\ufb01\u017f\u212a\u2126\u211d\u00aa1+\u037a\u05d0":
        assert module._script(ord(letter)) == "", letter


def test_a_letters_drawings_do_not_depend_on_the_others() -> None:
    fonts = module._fonts()
    few = module._built(fonts, [ord("A"), ord("g")], 5, 0.0, 1.0)["images"]
    one = module._built(fonts, [ord("g")], 5, 0.0, 1.0)["images"]
    assert np.array_equal(few[5:], one)


def test_shifted_glyphs_lean_and_are_smaller() -> None:
    source = module._sources(module._fonts()[:1], [ord("I")])[ord("I")]
    plain = np.stack(list(module._drawn(ord("I"), source, 20, 0.0, 1.0))).astype(float)
    shifted = np.stack(list(module._drawn(ord("I"), source, 20, 0.4, 0.7))).astype(float)

    def height(pictures: Any) -> float:
        return float((pictures.max(axis=2) > 100).sum(axis=1).mean())

    def lean(pictures: Any) -> float:  # how far x moves with y, by least squares over the ink
        y, x = np.mgrid[:28, :28] - 13.5
        return float(np.mean([(p * x * y).sum() / (p * y * y).sum() for p in pictures - 0.0]))

    assert height(shifted) == pytest.approx(0.7 * height(plain), rel=0.1)
    assert lean(shifted) - lean(plain) == pytest.approx(0.4, abs=0.1)


def test_nearest_centroids_of_pixels_are_well_above_chance_and_far_from_right(glyphs: Glyphs) -> None:
    """So there is something to learn. 5-way 1-shot: about .63; five standard errors of 400 episodes are .05."""
    shape = glyphs.shape(ways=5, shots=1, queries=5)
    e = glyphs.sample_episodes(400, split="val", shape=shape, generator=Generator().manual_seed(0))
    support, query = (torch.nn.functional.normalize(x.flatten(2), dim=-1) for x in (e.support_x, e.query_x))
    guessed = torch.bmm(query @ support.mT, e.support_y).argmax(dim=-1)
    assert 0.5 < float((guessed == e.query_y.argmax(dim=-1)).float().mean()) < 0.75
