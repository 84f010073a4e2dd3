"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each; 28x28.

Lake, Salakhutdinov, Tenenbaum. "Human-level concept learning through probabilistic program induction." Science 2015.
Read in its official layout, images_background and images_evaluation as folders or zip archives
(ALPHABET/characterNN/CCCC_DD.png), 105x105 or already 28x28. Pictures are resized as MAML's code did, by PIL's
`resize(LANCZOS)` on the 1-bit picture: PIL takes the nearest pixel for 1-bit pictures, whatever filter is asked for.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from torch import Generator

from metasearch.tasks import SPLITS, Split, TaskShape, _archive, _cache, _classes
from metasearch.tasks._archive import DataError
from metasearch.tasks._images import Array, ImageTasks, Pictures, turned

if TYPE_CHECKING:
    from metasearch.tasks.glyphs import Glyphs

PARTS = {"images_background": 964, "images_evaluation": 659}  # characters in each
GET = ("Download images_background.zip and images_evaluation.zip from https://github.com/brendenlake/omniglot (folder python) "
       "into METASEARCH_DATA/omniglot, zipped or not.")
LAYOUT = re.compile(r"(?:^|/)([^/]+)/(character\d+)/\d+_\d+\.png$")

# Vinyals et al. 2016, in the lists that Prototypical Networks' code ships: whole alphabets, but for one, Gurmukhi, whose first 41
# characters are in train and whose last 4 are in test. All alphabets that are in neither tuple are in train.
VINYALS_VAL = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
VINYALS_TEST = (
    "Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti",
    "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG",
)
VINYALS_TEST_CHARACTERS = tuple(("Gurmukhi", f"character{n}") for n in (42, 43, 44, 45))


class Omniglot(ImageTasks):
    """x is [1, 28, 28] in 0..1 with ink = 1.

    root:      the folder that holds both parts; default METASEARCH_DATA/omniglot.
    split:     "vinyals": 1028 / 172 / 423 characters. "lake": the background set trains, the evaluation set tests, nothing
               validates (964 / 0 / 659). "lake-val": the same, but Vinyals' five validation alphabets validate (792 / 172 / 659).
    rotations: by multiples of 90 degrees: "none"; "new-classes" (Prototypical Networks, Reptile); "per-class" (MAML, MAML++);
               "per-episode" (Relation Networks).
    rotate:    "all" splits, or "train" alone (Reptile, MAML++).
    within:    where the classes of an episode come from: "all", or one "alphabet" (Lake's task), drawn uniformly out of those
               that have enough for the ways; turned classes count where they are classes. `alphabets` says which those are.
    invert:    ink = 1, as in MAML and Prototypical Networks; False: ink = 0, as in Reptile and Relation Networks.
    partial:   accept a part of the data set, such as one of the small background sets.
    *_sha256:  checksums of the two archives; compared before anything else is read.
    """

    def __init__(
        self, root: str | None = None, split: Literal["vinyals", "lake", "lake-val"] = "vinyals",
        rotations: Literal["none", "new-classes", "per-class", "per-episode"] = "none", rotate: Literal["all", "train"] = "all",
        invert: bool = True, partial: bool = False, background_sha256: str | None = None, evaluation_sha256: str | None = None,
        within: Literal["all", "alphabet"] = "all", train_classes: int | None = None,
    ) -> None:
        if split not in ("vinyals", "lake", "lake-val"):
            raise ValueError(f"split must be vinyals, lake or lake-val, but got {split!r}")
        if within not in ("all", "alphabet"):
            raise ValueError(f"within must be all or alphabet, but got {within!r}")
        folder = _archive.found(root, "omniglot", "omniglot", GET)
        arrays, digest = _read(folder, (background_sha256, evaluation_sha256), partial, rotations != "none")
        splits: dict[Split, list[int]] = {name: [] for name in SPLITS}
        classes = _cache.told(arrays["classes"])
        for number, (part, alphabet, character) in enumerate(classes):
            splits[_split(split, part, alphabet, character)].append(number)
        if train_classes is not None:
            splits["train"] = _few(splits["train"], train_classes)
        images = arrays["images"] if invert else 255 - arrays["images"]
        names = [f"{alphabet}/{character}" for _, alphabet, character in classes]
        super().__init__(
            Pictures(images, arrays["offsets"], names, splits, digest, turned=rotations != "none"),
            told={"tasks": "omniglot", "invert": invert} | ({} if within == "all" else {"within": within}),
            rotations=rotations, rotated=SPLITS if rotate == "all" else ("train",),
        )

        self.within = within
        self._members: dict[Split, dict[str, Array]] = {}  # alphabet -> places of its classes in the split's list
        for name in SPLITS:
            found: dict[str, list[int]] = {}
            for place, number in enumerate(splits[name]):
                found.setdefault(classes[number][1], []).append(place)
            self._members[name] = {alphabet: np.array(places) for alphabet, places in sorted(found.items())}

    def alphabets(self, split: Split, ways: int = 1) -> dict[str, int]:
        """Those with so many classes, and how many they have; rotated ones count where they are classes."""
        base = len(self._classes[split])
        forms = self.classes(split) // base if base else 1
        return {name: forms * len(places) for name, places in self._members[split].items() if forms * len(places) >= ways}

    def _part(self, share: float, which: Literal[0, 1]) -> Self:
        mine = super()._part(share, which)
        chosen = _classes.part(len(self._classes["train"]), share, which)
        left = {name: np.flatnonzero(np.isin(chosen, places)) for name, places in self._members["train"].items()}
        mine._members = {**self._members, "train": {name: places for name, places in left.items() if len(places)}}
        return mine

    def _together(self, split: Split) -> bool:
        """Are the classes of an episode all of one alphabet?"""
        return self.within == "alphabet"

    def check(self, shape: TaskShape, split: Split) -> None:
        super().check(shape, split)
        if self._together(split) and not self.alphabets(split, shape.ways):
            largest = sorted(self.alphabets(split).items(), key=lambda one: -one[1])
            told = ", ".join(f"{name} {count}" for name, count in largest)
            raise ValueError(f"{split} has no alphabet with the {shape.ways} classes that {shape.ways} ways within one alphabet "
                             f"need; they have: {told}. Lower ways to {largest[0][1]}, or take rotations = 'new-classes'.")

    def _chosen(self, n: int, split: Split, ways: int, generator: Generator) -> Array:
        if not self._together(split):
            return super()._chosen(n, split, ways, generator)
        left = [self._members[split][name] for name in self.alphabets(split, ways)]
        forms = self.classes(split) // len(self._classes[split])
        alphabet = (len(left) * _classes.uniform(generator, n)).astype(np.int64)
        sizes = np.array([len(places) for places in left])[alphabet]  # [n]
        drawn = _classes.distinct(forms * sizes, ways, generator)  # [n, N]: turn * size + place in the alphabet
        turn, place = np.divmod(drawn, sizes[:, None])
        chosen = np.array([left[a][row] for a, row in zip(alphabet, place, strict=True)], dtype=np.int64).reshape(n, ways)
        return turn * len(self._classes[split]) + chosen

    def shifted(self, strength: float = 1.0) -> Glyphs:
        """Printed letters in place of handwritten ones; for a strength over 1, sheared and scaled ones."""
        from metasearch.tasks.glyphs import Glyphs

        letters = Glyphs().to(self.device)
        return letters if strength <= 1 else letters.shifted(strength - 1)


def _few(classes: Sequence[int], wanted: int) -> list[int]:
    if not 1 <= wanted <= len(classes):
        raise ValueError(f"train_classes must be between 1 and the {len(classes)} characters that there are, but got {wanted}")
    return [classes[place] for place in _classes.part(len(classes), wanted / len(classes), 0)]


def _split(rule: str, part: str, alphabet: str, character: str) -> Split:
    if rule == "vinyals":
        if alphabet in VINYALS_TEST or (alphabet, character) in VINYALS_TEST_CHARACTERS:
            return "test"
        return "val" if alphabet in VINYALS_VAL else "train"
    if part == "images_evaluation":
        return "test"
    return "val" if rule == "lake-val" and alphabet in VINYALS_VAL else "train"


def _read(folder: Path, checksums: Sequence[str | None], partial: bool, turn: bool) -> _cache.Kept:
    """images [P, 1, 28, 28] with ink = 255 (or [4 P, ...], turned), offsets, classes: (part, alphabet, character) each."""
    paths = {part: path for part in PARTS if (path := _there(folder, part)) is not None}
    missing = [part for part in PARTS if part not in paths]
    if not paths or (missing and not partial):
        raise _archive.DataMissing(f"{folder} has neither {missing[0]} nor {missing[0]}.zip. {GET}")
    sums = dict(zip(PARTS, checksums, strict=True))
    key = _cache.key("omniglot", 2, {part: _archive.fingerprint(path, sums[part]) for part, path in paths.items()})
    kept = _cache.kept("omniglot", key, lambda: _decoded(paths))
    if not partial:
        characters = Counter(part for part, _, _ in _cache.told(kept.arrays["classes"]))
        for part, expected in PARTS.items():
            if characters[part] != expected:
                raise DataError(f"{paths[part]} must have {expected} characters, but has {characters[part]}. Set partial = true "
                                f"to use a part of Omniglot.")
    if not turn:
        return kept
    images = kept.arrays["images"]
    return _cache.kept("omniglot-turned", key, lambda: {**kept.arrays, "images": turned(images)})


def _there(folder: Path, part: str) -> Path | None:
    return next((path for path in (folder / part, folder / f"{part}.zip") if path.exists()), None)


def _decoded(paths: Mapping[str, Path]) -> dict[str, Array]:
    pictures: list[Array] = []
    counts: dict[tuple[str, str, str], int] = {}
    for part, path in paths.items():
        with _archive.opened(path) as source:
            listed = sorted((m[1], m[2], name) for name in source.names if (m := LAYOUT.search(name)))
            for alphabet, character, name in listed:
                pictures.append(_picture(source.read(name), f"{path}: {name}"))
                counts[part, alphabet, character] = counts.get((part, alphabet, character), 0) + 1
    if not pictures:
        raise DataError(f"{next(iter(paths.values()))} must hold ALPHABET/characterNN/CCCC_DD.png, but holds none. {GET}")
    return {
        "images": np.stack(pictures)[:, None], "offsets": np.cumsum([0, *counts.values()], dtype=np.int64),
        "classes": _cache.text(list(counts)),
    }


def _picture(data: bytes, where: str, side: int = 28) -> Array:
    """uint8 [side, side], ink = 255."""
    from PIL import Image

    image = _archive.picture(data, where)
    if image.mode not in ("1", "L"):
        image = image.convert("L")
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    return 255 - np.asarray(image.convert("L"))
