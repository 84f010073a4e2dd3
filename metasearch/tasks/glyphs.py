"""Letters from the fonts that matplotlib ships: a real few-shot picture set on every machine, without a download.

A class is a letter of Unicode that 10 or more of 16 font faces have (DejaVu Sans, Mono, Serif and STIX, upright, bold, slanted);
its drawings are those faces with a small random affine change, 28x28, ink = 1. Letters are scaled to one size, so that c and C
are one letter. Splits are scripts: Latin and Greek train, Cyrillic validates, Armenian and Georgian test. Letters that look
alike, whatever their proportions, are one class, drawn as the first of them in the order of splits: so nothing in val or test
looks like a letter of an earlier split. Modifier and compatibility letters (those that NFKC replaces) are left out.
With matplotlib 3.11 these are 823 classes: 648 for train, 71 for val, 104 for test.
"""
from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metasearch.tasks import SPLITS, Split, _cache
from metasearch.tasks._images import ImageTasks, Pictures

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

Array = np.ndarray[Any, np.dtype[Any]]
Sources = Mapping[int, Sequence["Image | None"]]  # a letter's picture in each of FACES, None where a face lacks it

FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
)
COMPARED = FACES[:6]  # the upright faces, in which letters are compared
SCRIPTS: dict[str, Split] = {"LATIN": "train", "GREEK": "train", "CYRILLIC": "val", "ARMENIAN": "test", "GEORGIAN": "test"}
FEWEST_FACES = 10
ALIKE, ALIKE_IN_CASE = 0.935, 0.90  # mean cosine of two letters' pictures over COMPARED from which they count as one letter; of
# a capital and its small letter, which differ in the weight of their strokes. Both were chosen by looking at pairs.
VERSION = 6  # of the recipe below; part of the cache's key
SIDE, LETTER, FINE, POINTS = 28, 20, 2, 48  # pixels of a picture, of a letter's longer side; oversampling; size of the source


class Glyphs(ImageTasks):
    """drawings: pictures a class. shear, scale: an affine change of all pictures (what `shifted` turns on): x moves by `shear`
    times y, and a letter's longer side is 20 * `scale` pixels."""

    def __init__(self, drawings: int = 20, shear: float = 0.0, scale: float = 1.0) -> None:
        if not 2 <= drawings <= 1000:
            raise ValueError(f"`2 <= drawings <= 1000` must hold, but got drawings={drawings}")
        if not (abs(shear) <= 1.0 and 0.25 <= scale <= 1.25):
            raise ValueError(f"`-1 <= shear <= 1` and `0.25 <= scale <= 1.25` must hold, but got (shear={shear}, scale={scale})")
        self._arguments = (drawings, float(shear), float(scale))
        super().__init__(_pictures(drawings, float(shear), float(scale)), told={"tasks": "glyphs"})

    def shifted(self, strength: float = 1.0) -> Glyphs:
        """The same letters, leaning and smaller: at strength 1 sheared by 0.4 and scaled by 0.7."""
        drawings, shear, scale = self._arguments
        return Glyphs(drawings, shear + 0.4 * strength, scale * (1 - 0.3 * strength)).to(self.device)


def _pictures(drawings: int, shear: float, scale: float) -> Pictures:
    import PIL
    from PIL import features

    fonts = _fonts()
    sources = [hashlib.sha256(path.read_bytes()).hexdigest() for path in fonts]
    made_of = ("glyphs", VERSION, sources, PIL.__version__, features.version("freetype2"))
    letters, _ = _cache.kept("glyphs-letters", _cache.key(*made_of), lambda: {"codes": np.array(_letters(fonts), np.int64)})
    codes = letters["codes"].tolist()
    arrays, digest = _cache.kept(
        "glyphs", _cache.key(*made_of, drawings, shear, scale), lambda: _built(fonts, codes, drawings, shear, scale))
    splits = {s: [c for c, code in enumerate(codes) if SCRIPTS[_script(code)] == s] for s in SPLITS}
    names = [f"{chr(code)} {unicodedata.name(chr(code))}" for code in codes]
    return Pictures(arrays["images"], arrays["offsets"], names, splits, digest)


def _fonts() -> list[Path]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [folder / f"{face}.ttf" for face in FACES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"glyphs needs the fonts that matplotlib's own wheel ships, but {folder} lacks {', '.join(missing)}")
    return paths


def _letters(fonts: Sequence[Path]) -> list[int]:
    """The codes of all classes, those of train first."""
    has = [_covered(path) for path in fonts]
    letters = [c for c in sorted(set.union(*has)) if _script(c) and sum(c in h for h in has) >= FEWEST_FACES]
    return _unlike(letters, _sources(fonts[:len(COMPARED)], letters))


def _built(fonts: Sequence[Path], codes: Sequence[int], drawings: int, shear: float, scale: float) -> dict[str, Array]:
    sources = _sources(fonts, codes)
    images = np.stack([picture for c in codes for picture in _drawn(c, sources[c], drawings, shear, scale)])
    return {"images": images[:, None], "offsets": np.arange(len(codes) + 1, dtype=np.int64) * drawings}


def _covered(font: Path) -> set[int]:
    """The codes that a font has a glyph for; glyph 0 is the box that stands for a missing one."""
    from matplotlib.ft2font import FT2Font

    return {code for code, glyph in FT2Font(str(font)).get_charmap().items() if glyph}


def _sources(fonts: Sequence[Path], codes: Sequence[int]) -> Sources:
    from PIL import ImageFont

    has = [_covered(path) for path in fonts]
    faces = [ImageFont.truetype(str(path), POINTS, layout_engine=ImageFont.Layout.BASIC) for path in fonts]
    return {c: [_source(c, face) if c in h else None for face, h in zip(faces, has, strict=True)] for c in codes}


def _script(code: int) -> str:
    """The script of a letter that may be a class, by its Unicode name; "" for all other characters."""
    letter = chr(code)
    if unicodedata.category(letter) not in ("Lu", "Ll", "Lt", "Lo") or unicodedata.normalize("NFKC", letter) != letter:
        return ""
    script = unicodedata.name(letter).split()[0]
    return script if script in SCRIPTS else ""


def _source(code: int, face: FreeTypeFont) -> Image | None:
    """A letter in one face, cut to its ink; None if there is none."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = (round(edge) for edge in face.getbbox(chr(code), anchor="ls"))
    canvas = Image.new("L", (right - left + 8, bottom - top + 8))  # 4 pixels of air on every side: nothing is cut
    ImageDraw.Draw(canvas).text((4 - left, 4 - top), chr(code), font=face, fill=255, anchor="ls")
    box = canvas.getbbox()
    return None if box is None else canvas.crop(box)


def _placed(source: Image, matrix: Array, shift: Array) -> Array:
    """uint8 [28, 28]: the letter fitted into a box of LETTER pixels, changed by `matrix` [2, 2] about its centre, then moved by
    `shift` pixels, or less where it would leave the picture."""
    from PIL import Image

    half = np.array(source.size) / 2
    fit = matrix * (LETTER / max(source.size))  # source pixels -> pixels, about the centres
    room = np.maximum(SIDE / 2 - 1 - np.abs(fit) @ half, 0.0)
    (a, b), (c, d) = (fit * FINE).tolist()
    back = np.array([[d, -b], [-c, a]]) / (a * d - b * c)
    offset = half - back @ (FINE * (SIDE / 2 + np.clip(shift, -room, room)))
    data = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    fine = source.transform((SIDE * FINE, SIDE * FINE), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return np.asarray(fine.reduce(FINE))


def _unlike(letters: Sequence[int], sources: Sources) -> list[int]:
    """The letters that stay: in the order of splits and codes, each one that is not alike to one of its own script that stays
    already, nor to any earlier one of another script."""
    order = sorted(letters, key=lambda c: (SPLITS.index(SCRIPTS[_script(c)]), c))
    cosine = np.maximum(_cosines(order, sources, _kept_proportions), _cosines(order, sources, _same_proportions))
    small = np.array([chr(c).lower() for c in order])
    alike = cosine >= np.where(small[:, None] == small, ALIKE_IN_CASE, ALIKE)
    scripts = np.array([_script(c) for c in order])
    stay: list[int] = []
    for i, script in enumerate(scripts):
        if not alike[i, stay].any() and not alike[i, :i][scripts[:i] != script].any():
            stay.append(i)
    return [order[i] for i in stay]


def _cosines(order: Sequence[int], sources: Sources, look: Callable[[Image], Array]) -> Array:
    """[letters, letters]: the cosine of two letters' pictures, a mean over the compared faces that both have."""
    total, faces = np.zeros((len(order), len(order))), np.zeros((len(order), len(order)))
    for face in range(len(COMPARED)):
        there = [i for i, c in enumerate(order) if sources[c][face] is not None]
        looks = np.stack([look(s) for c in order if (s := sources[c][face]) is not None]).reshape(len(there), -1)
        grey = (looks >> 4).astype(np.float32)  # 16 levels: the dots are integers below 2^24, so exact on every machine
        dots = (grey @ grey.T).astype(np.float64)
        size = np.sqrt(np.diag(dots))
        total[np.ix_(there, there)] += dots / (size[:, None] * size)
        faces[np.ix_(there, there)] += 1
    return np.asarray(total / np.maximum(faces, 1))


def _kept_proportions(source: Image) -> Array:
    margin = (SIDE - LETTER) // 2
    return _placed(source, np.eye(2), np.zeros(2))[margin:-margin, margin:-margin]


def _same_proportions(source: Image) -> Array:
    from PIL import Image

    return np.asarray(source.resize((LETTER * FINE, LETTER * FINE), Image.Resampling.BOX).reduce(FINE))


def _drawn(code: int, sources: Sequence[Image | None], drawings: int, shear: float, scale: float) -> Iterator[Array]:
    """The drawings of a letter; they depend on the letter alone, not on which others there are."""
    rng = np.random.Generator(np.random.PCG64([VERSION, code]))
    faces = [s for s in sources if s is not None]
    for number in range(drawings):
        angle, lean = rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)
        stretch, shift = rng.uniform(0.85, 1.05, size=2), rng.uniform(-1.5, 1.5, size=2)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = turn @ np.array([[1.0, shear + lean], [0.0, 1.0]]) @ np.diag(stretch * scale)
        yield _placed(faces[number % len(faces)], matrix, shift)
