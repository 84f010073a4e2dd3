"""Letters from the fonts that matplotlib ships: a real few-shot picture set on every machine, without a download.

A class is a letter of Unicode that 10 or more of 16 font faces have (DejaVu Sans, Mono, Serif and STIX, upright, bold, slanted);
its drawings are those faces with a small random affine change, 28x28, ink = 1. Letters are scaled to one size, as in a box of a
form, so that c and C are one letter. Splits are scripts: Latin and Greek train, Cyrillic validates, Armenian and Georgian test.
Within a script, letters that look alike are one class (drawn as the first of them); a letter of val or test that looks like one
of an earlier split is left out. Modifier and compatibility letters (those that NFKC replaces) are left out.
"""
from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metasearch.tasks import SPLITS, Split, _cache
from metasearch.tasks._images import ImageTasks, Pictures

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

FACES = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold",
    "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
)
COMPARED = FACES[:6]  # the upright faces, in which letters are compared
SCRIPTS: dict[str, Split] = {"LATIN": "train", "GREEK": "train", "CYRILLIC": "val", "ARMENIAN": "test", "GEORGIAN": "test"}
FEWEST_FACES = 10
ALIKE = 0.93  # mean cosine of two letters' pictures over COMPARED from which they count as one
VERSION = 1  # of the recipe below; part of the cache's key
SIDE, LETTER, FINE, POINTS = 28, 20, 3, 72  # pixels of a picture, of a letter's longer side; oversampling; size of the source


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
    key = _cache.key("glyphs", VERSION, sources, PIL.__version__, features.version("freetype2"), drawings, shear, scale)
    arrays, digest = _cache.kept("glyphs", key, lambda: _built(fonts, drawings, shear, scale))
    codes, split = arrays["codes"].tolist(), arrays["split"].tolist()
    splits = {name: [c for c, s in enumerate(split) if s == i] for i, name in enumerate(SPLITS)}
    return Pictures(arrays["images"], arrays["offsets"], [f"{chr(c)} {unicodedata.name(chr(c))}" for c in codes], splits, digest)


def _fonts() -> list[Path]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [folder / f"{face}.ttf" for face in FACES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"glyphs needs the fonts that matplotlib's own wheel ships, but {folder} lacks {', '.join(missing)}")
    return paths


def _built(fonts: Sequence[Path], drawings: int, shear: float, scale: float) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    has = [{code for code, glyph in FT2Font(str(path)).get_charmap().items() if glyph} for path in fonts]
    faces = [ImageFont.truetype(str(path), POINTS, layout_engine=ImageFont.Layout.BASIC) for path in fonts]
    letters = [c for c in sorted(set.union(*has)) if _script(c) and sum(c in h for h in has) >= FEWEST_FACES]
    sources = {c: [_source(c, face) if c in h else None for face, h in zip(faces, has, strict=True)] for c in letters}
    chosen = _unlike(letters, sources)
    images = np.stack([picture for c in chosen for picture in _drawn(c, sources[c], drawings, shear, scale)])
    return {
        "images": images[:, None], "offsets": np.arange(len(chosen) + 1, dtype=np.int64) * drawings,
        "codes": np.array(chosen, dtype=np.int64), "split": np.array([SPLITS.index(SCRIPTS[_script(c)]) for c in chosen]),
    }


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

    canvas = Image.new("L", (4 * POINTS, 4 * POINTS))
    ImageDraw.Draw(canvas).text((POINTS, 2.5 * POINTS), chr(code), font=face, fill=255, anchor="ls")
    box = canvas.getbbox()
    return None if box is None else canvas.crop(box)


def _placed(source: Image, matrix: np.ndarray[Any, np.dtype[Any]], shift: tuple[float, float]) -> np.ndarray[Any, np.dtype[Any]]:
    """uint8 [28, 28]: the letter fitted into a box of LETTER pixels, then changed by `matrix` [2, 2] about its centre, and moved."""
    from PIL import Image

    whole = matrix * (LETTER * FINE / max(source.size))  # source pixels -> fine pixels, about the centres
    back = np.linalg.inv(whole)
    middle = np.array([SIDE * FINE / 2 + FINE * shift[0], SIDE * FINE / 2 + FINE * shift[1]])
    offset = np.array([source.width / 2, source.height / 2]) - back @ middle
    data = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    fine = source.transform((SIDE * FINE, SIDE * FINE), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return np.asarray(fine.reduce(FINE))


def _unlike(letters: Sequence[int], sources: dict[int, list[Image | None]]) -> list[int]:
    """The letters that stay: in the order of splits and codes, each one that is not alike to one that stays already.

    Only letters of one script are merged, and only those of earlier splits keep a letter of another script out.
    """
    order = sorted(letters, key=lambda c: (SPLITS.index(SCRIPTS[_script(c)]), c))
    total, faces = np.zeros((len(order), len(order))), np.zeros((len(order), len(order)))
    for face in range(len(COMPARED)):
        there = [i for i, c in enumerate(order) if sources[c][face] is not None]
        flat = np.stack([_placed(s, np.eye(2), (0.0, 0.0)) for c in order if (s := sources[c][face]) is not None])
        dots = (flat := flat.reshape(len(there), -1).astype(np.float64)) @ flat.T  # sums of integers: exact on every machine
        size = np.sqrt(np.diag(dots))
        total[np.ix_(there, there)] += dots / (size[:, None] * size)
        faces[np.ix_(there, there)] += 1
    alike = total >= ALIKE * np.maximum(faces, 1)
    stay: list[int] = []
    for i, code in enumerate(order):
        script = _script(code)
        if not any(alike[i, j] and (_script(order[j]) == script or SCRIPTS[_script(order[j])] != SCRIPTS[script]) for j in stay):
            stay.append(i)
    return [order[i] for i in stay]


def _drawn(
    code: int, sources: Sequence[Image | None], drawings: int, shear: float, scale: float,
) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
    """The drawings of a letter; they depend on the letter alone, not on which others there are."""
    rng = np.random.Generator(np.random.PCG64([VERSION, code]))
    faces = [s for s in sources if s is not None]
    for number in range(drawings):
        angle, lean = rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)
        stretch, shift = rng.uniform(0.85, 1.05, size=2), rng.uniform(-1.5, 1.5, size=2)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        matrix = turn @ np.array([[1.0, shear + lean], [0.0, 1.0]]) @ np.diag(stretch * scale)
        yield _placed(faces[number % len(faces)], matrix, (float(shift[0]), float(shift[1])))
