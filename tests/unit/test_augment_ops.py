"""The operations on pictures against pillow, by which AutoAugment is defined, and kornia, at every level of every table."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import kornia
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Generator, Tensor

from metasearch.augment import OPERATIONS, find
from metasearch.augment.ops import AUTOAUGMENT, NOISE, NUMBER, RANDAUGMENT, partners
from metasearch.augment.ranges import RANGES, check, magnitudes

LEVELS = {"autoaugment": 10, "randaugment": 30, "wide": 30, "dada": 10}
AFFINE = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
ENHANCED = ("contrast", "color", "brightness", "sharpness")
PLUS, MINUS = torch.full((NOISE,), 0.75), torch.full((NOISE,), 0.25)  # noise that draws that sign


def _pictures(channels: int, height: int = 24, width: int = 24) -> Tensor:
    """uint8 [6, C, H, W]: noise, a slope, rings, few levels, one level but for a pixel, one level."""
    rng = np.random.default_rng(channels)
    y, x = np.mgrid[:height, :width]
    rings = 127 + 120 * np.sin(np.hypot(x - 9, y - 13) / 2)
    planes = [
        rng.integers(0, 256, (channels, height, width)), np.stack([(5 * x + 3 * y + 40 * c) % 256 for c in range(channels)]),
        np.stack([np.roll(rings, 3 * c, 1) for c in range(channels)]), rng.integers(0, 4, (channels, height, width)) * 60 + 20,
        np.full((channels, height, width), 90), np.full((channels, height, width), 200),
    ]
    planes[4][:, 3, 4] = 91
    return torch.from_numpy(np.stack(planes).astype(np.uint8))


def _pil(picture: Tensor) -> Image.Image:
    array = picture.numpy()
    return Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0))


def _tensor(image: Image.Image) -> Tensor:
    array = np.asarray(image)
    return torch.from_numpy(array[None].copy() if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _levels(ranges: str, name: str) -> Tensor:
    """The magnitude of every published level of a table."""
    count = LEVELS[ranges]
    return magnitudes(ranges, torch.full((count + 1,), NUMBER[name]), torch.arange(count + 1) / count)


def _cases(names: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(ranges, name, channels, id=f"{ranges}-{name}-{'grey' if channels == 1 else 'colour'}")
        for ranges in RANGES for name in names for channels in (1, 3)
    ]


def _all(operation: str, pictures: Tensor, magnitude: Tensor, noise: Tensor = PLUS, **others: Any) -> Tensor:
    """Every picture at every magnitude: [levels, pictures, C, H, W]."""
    many = pictures.repeat(len(magnitude), 1, 1, 1)
    each = magnitude.repeat_interleave(len(pictures)).to(pictures.dtype if pictures.is_floating_point() else torch.float32)
    found = find(operation)(many, each, noise.to(each.dtype).expand(len(many), NOISE), **others)
    return found.unflatten(0, (len(magnitude), len(pictures)))


# pillow ---------------------------------------------------------------------------------------------------------------------


def _matrix(name: str, v: float, width: int, height: int) -> tuple[float, ...]:
    """As AutoAugment gives it to Image.transform."""
    if name == "rotate":
        cos, sin = math.cos(math.radians(v)), math.sin(math.radians(v))
        x, y = width / 2, height / 2
        return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y
    return {"shear_x": (1, v, 0, 0, 1, 0), "shear_y": (1, 0, 0, v, 1, 0), "translate_x": (1, 0, v * width, 0, 1, 0),
            "translate_y": (1, 0, 0, 0, 1, v * height)}[name]


@pytest.mark.parametrize(("ranges", "name", "channels"), _cases(AFFINE))
@pytest.mark.parametrize("noise", [PLUS, MINUS], ids=["plus", "minus"])
def test_affine_operations_are_pillows(ranges: str, name: str, channels: int, noise: Tensor) -> None:
    """Pillow cuts fractions off, and at the border it repeats the outermost pixel where we go over into the fill: so it is
    compared where all four neighbours are in the picture (1 level), and where none is (exactly)."""
    pictures, sign = _pictures(channels, 20, 26)[:4], 1 if noise is PLUS else -1
    levels = _levels(ranges, name)
    found = _all(name, pictures, levels, noise, fill=0.0)
    y, x = np.mgrid[:20, :26] + 0.5
    inside_ever = 0
    for v, ours in zip(levels.tolist(), found, strict=True):
        a, b, c, d, e, f = _matrix(name, sign * v, 26, 20)
        at_x, at_y = a * x + b * y + c - 0.5, d * x + e * y + f - 0.5
        inside = (at_x > 1e-3) & (at_x < 25 - 1e-3) & (at_y > 1e-3) & (at_y < 19 - 1e-3)
        outside = (at_x < -1) | (at_x > 26) | (at_y < -1) | (at_y > 20)
        inside_ever += inside.sum()
        for picture, mine in zip(pictures, ours, strict=True):
            image = _pil(picture)
            theirs = image.rotate(sign * v, Image.Resampling.BILINEAR) if name == "rotate" else image.transform(
                image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
            off = (mine.int() - _tensor(theirs).int()).abs().numpy()
            assert off[:, inside].max(initial=0) <= 1
            assert mine.numpy()[:, outside].max(initial=0) == 0
    assert inside_ever > 0.2 * len(levels) * 20 * 26


@pytest.mark.parametrize(("ranges", "name", "channels"), _cases(ENHANCED))
def test_enhancing_is_pillows(ranges: str, name: str, channels: int) -> None:
    """Pillow rounds what it blends with to a level (the grey or the smoothed picture; for contrast the grey and then its mean),
    then cuts fractions off: so it may be |factor - 1| / 2 + 1 levels away (contrast: |factor - 1| + 1), and our own rounding to
    uint8 is half a level."""
    rounded = 1.0 if name == "contrast" else 0.5
    enhance: Callable[[Image.Image], Any] = getattr(ImageEnhance, name.capitalize())
    pictures, levels = _pictures(channels), _levels(ranges, name)
    for v, ours in zip(levels.tolist(), _all(name, pictures, levels), strict=True):
        for picture, mine in zip(pictures, ours, strict=True):
            theirs = _tensor(enhance(_pil(picture)).enhance(v))
            assert int((mine.int() - theirs.int()).abs().max()) <= math.floor(abs(v - 1) * rounded + 1.5)


@pytest.mark.parametrize(("ranges", "name", "channels"), _cases(("solarize", "posterize")))
def test_levels_are_solarized_and_posterized_exactly_as_pillow_does(ranges: str, name: str, channels: int) -> None:
    pictures, levels = _pictures(channels), _levels(ranges, name)
    for v, ours in zip(levels.tolist(), _all(name, pictures, levels), strict=True):
        for picture, mine in zip(pictures, ours, strict=True):
            image = _pil(picture)
            if name == "solarize":
                theirs = ImageOps.solarize(image, math.ceil(v - 1e-3))  # a threshold between two levels is the upper one
            else:
                theirs = ImageOps.posterize(image, max(1, round(v)))
            assert torch.equal(mine, _tensor(theirs))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [24, 84])
def test_plain_operations_are_pillows(channels: int, side: int) -> None:
    """Equalize, invert and flip to the level; autocontrast to 1, as pillow cuts fractions off."""
    pictures, none = _pictures(channels, side, side), torch.zeros(1)
    oracle: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
        "equalize": (ImageOps.equalize, 0), "invert": (ImageOps.invert, 0), "flip": (ImageOps.mirror, 0),
        "autocontrast": (ImageOps.autocontrast, 1), "identity": (lambda image: image, 0),
    }
    for name, (theirs, tolerance) in oracle.items():
        for picture, mine in zip(pictures, _all(name, pictures, none)[0], strict=True):
            assert int((mine.int() - _tensor(theirs(_pil(picture))).int()).abs().max()) <= tolerance, name


@pytest.mark.parametrize("size", [(20, 26), (26, 20), (3, 3), (3, 9), (9, 3), (2, 9), (1, 1)])
def test_pictures_of_any_shape_are_sharpened_as_pillow_does(size: tuple[int, int]) -> None:
    """Each by itself: the pictures before and behind it are black and white. To a level, as pillow rounds what is smoothed."""
    pictures = torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=Generator().manual_seed(0))
    batch = torch.cat([torch.zeros_like(pictures), pictures, torch.full_like(pictures, 255)])
    for factor in (0.0, 0.5, 1.0, 1.9):
        mine = find("sharpness")(batch, torch.full((3,), factor), torch.rand(3, NOISE))
        theirs = _tensor(ImageEnhance.Sharpness(_pil(pictures[0])).enhance(factor))
        assert int((mine[1].int() - theirs.int()).abs().max()) <= (min(size) > 2) * math.floor(abs(factor - 1) / 2 + 1.5)
        assert torch.equal(mine[::2], batch[::2])


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_pairing_is_pillows_blend(channels: int) -> None:
    pictures, levels = _pictures(channels), _levels("autoaugment", "sample_pairing")
    others = pictures.flip(0)
    found = _all("sample_pairing", pictures, levels, others=others.repeat(len(levels), 1, 1, 1))
    for v, ours in zip(levels.tolist(), found, strict=True):
        for picture, other, mine in zip(pictures, others, ours, strict=True):
            theirs = _tensor(Image.blend(_pil(picture), _pil(other), v))
            assert int((mine.int() - theirs.int()).abs().max()) <= 1  # pillow cuts fractions off


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_turn_is_pillows(count: int) -> None:
    pictures = _pictures(3)
    noise = torch.full((NOISE,), (count - 0.5) / 3)
    for picture, mine in zip(pictures, _all("turn", pictures, torch.zeros(1), noise)[0], strict=True):
        assert torch.equal(mine, _tensor(_pil(picture).rotate(90 * count)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pictures_of_half_precision_are_equalized_by_exact_counts(dtype: torch.dtype) -> None:
    """float16 ends at 65,504 pixels, and counts in whole numbers up to 2,048."""
    x = torch.rand(1, 1, 300, 300, generator=Generator().manual_seed(0)).square().to(dtype)
    found = find("equalize")(x, torch.zeros(1), torch.zeros(1, NOISE))
    assert found.dtype == dtype
    torch.testing.assert_close(found, find("equalize")(x.double(), torch.zeros(1), torch.zeros(1, NOISE)).to(dtype))


def test_a_value_that_is_no_number_does_not_stop_the_others_from_being_equalized() -> None:
    """As it would on a GPU for all that comes after it, too."""
    x = torch.rand(2, 3, 8, 8, generator=Generator().manual_seed(0))
    broken = x.clone()
    broken[0, 1, 0, 0] = math.nan
    found, wanted = (find("equalize")(each, torch.zeros(2), torch.zeros(2, NOISE)) for each in (broken, x))
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[0, ::2], wanted[0, ::2])


# kornia ---------------------------------------------------------------------------------------------------------------------


def _floats(channels: int) -> Tensor:
    """A quarter of a level above each level: kornia cuts fractions off where we take the nearest level."""
    return (_pictures(channels).double() + 0.25).clamp(max=255) / 255


@pytest.mark.parametrize(("ranges", "name", "channels"), _cases(AFFINE))
def test_affine_operations_are_kornias(ranges: str, name: str, channels: int) -> None:
    """Borders too: kornia goes over into zeros as we do. Its matrices are of whole-numbered centres, from old to new."""
    pictures, levels = _floats(channels), _levels(ranges, name)
    for v, ours in zip(levels.tolist(), _all(name, pictures, levels, fill=0.0), strict=True):
        a, b, c, d, e, f = _matrix(name, v, 24, 24)
        back = torch.tensor([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2], [0, 0, 1]], dtype=torch.float64)
        forth = back.inverse()[:2].expand(len(pictures), 2, 3)
        theirs = kornia.geometry.transform.warp_affine(pictures, forth, (24, 24), align_corners=False)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("ranges", "name", "channels"), _cases((*ENHANCED, "solarize", "posterize")))
def test_magnitudes_mean_what_they_mean_in_kornia(ranges: str, name: str, channels: int) -> None:
    if name == "color" and channels == 1:
        pytest.skip("kornia has no saturation of grey pictures; pillow's is the identity, as tested above")
    from kornia import enhance

    oracle: dict[str, Callable[[Tensor, float], Tensor]] = {
        "contrast": enhance.adjust_contrast_with_mean_subtraction, "color": enhance.adjust_saturation_with_gray_subtraction,
        "brightness": enhance.adjust_brightness_accumulative, "sharpness": enhance.sharpness,
        "solarize": lambda x, v: enhance.solarize(x, (v - 1e-3) / 255),
        "posterize": lambda x, v: enhance.posterize(x, max(1, round(v))),
    }
    pictures, levels = _floats(channels), _levels(ranges, name)
    for v, ours in zip(levels.tolist(), _all(name, pictures, levels), strict=True):
        torch.testing.assert_close(ours, oracle[name](pictures, v), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_plain_operations_are_kornias(channels: int) -> None:
    from kornia import enhance

    pictures, none = _floats(channels), torch.zeros(1)  # where kornia leaves a picture alone, we take the nearest level
    varied = pictures[:5]  # of a picture of one value kornia's normalize_min_max makes 0, pillow (and ours) itself
    torch.testing.assert_close(_all("autocontrast", varied, none)[0], enhance.normalize_min_max(varied), atol=1e-3, rtol=0)
    torch.testing.assert_close(_all("invert", pictures, none)[0], enhance.invert(pictures))
    torch.testing.assert_close(_all("equalize", pictures, none)[0], enhance.equalize(pictures), atol=0.26 / 255, rtol=0)
    torch.testing.assert_close(_all("flip", pictures, none)[0], kornia.geometry.transform.hflip(pictures))


# tables ---------------------------------------------------------------------------------------------------------------------


def _at(ranges: str, name: str, level: float) -> float:
    return float(magnitudes(ranges, torch.tensor(NUMBER[name]), torch.tensor(level)))


@pytest.mark.parametrize(("name", "autoaugment", "randaugment", "wide"), [
    ("shear_x", 0.3, 0.3, 0.99), ("translate_y", 10 / 32, 100 / 224, 1.0), ("rotate", 30, 30, 135), ("posterize", 0, 4, 2),
    ("solarize", 0, 256, 0), ("color", 1.9, 1.9, 2.0), ("sharpness", 1.9, 1.9, 2.0), ("cutout", 20 / 32, 40 / 224, 0.6),
    ("sample_pairing", 0.4, 0.4, 0.4),
])
def test_the_tables_end_where_they_were_published_to_end(name: str, autoaugment: float, randaugment: float, wide: float) -> None:
    assert [_at(r, name, 1.0) for r in ("autoaugment", "randaugment", "wide")] == pytest.approx([autoaugment, randaugment, wide])


def test_bits_are_rounded_as_in_the_released_code() -> None:
    assert [_at("autoaugment", "posterize", k / 10) for k in range(11)] == [4 - int(4 * k / 10) for k in range(11)]
    assert [_at("wide", "posterize", k / 30) for k in range(31)] == [8 - 6 * k // 30 for k in range(31)]
    assert [_at("randaugment", "posterize", k / 30) for k in range(31)] == [4 * k // 30 for k in range(31)]


def test_a_threshold_between_levels_is_the_released_codes_whole_one() -> None:
    assert [math.ceil(_at("autoaugment", "solarize", k / 10) - 1e-3) for k in range(11)] == [
        256 - int(256 * k / 10) for k in range(11)]


@pytest.mark.parametrize("ranges", RANGES)
def test_magnitudes_are_monotone_in_the_level(ranges: str) -> None:
    for name in RANGES[ranges]:
        steps = _levels(ranges, name).diff()
        assert bool((steps >= 0).all() or (steps <= 0).all()), name
        assert name == "posterize" or bool((steps != 0).all()), name


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "rotate", "cutout", "solarize", "posterize", "sample_pairing", "cutmix"])
def test_pictures_change_more_at_higher_levels(name: str) -> None:
    """A slope, which has no period in which a change could come back, about a hole in the middle."""
    y, x = torch.meshgrid(torch.linspace(0, 0.4, 24), torch.linspace(0, 0.5, 24), indexing="ij")
    slope = (x + y)[None, None]
    noise = torch.full((NOISE,), 0.5)
    found = _all(name, slope, _levels("autoaugment", name)[:10], noise, others=torch.ones(10, 1, 24, 24), fill=0.0)
    change = (found - slope).abs().mean((1, 2, 3, 4))
    assert bool((change.diff() >= -1e-6).all())
    assert change[9] > change[1] >= 0


@pytest.mark.parametrize("ranges", RANGES)
def test_level_0_of_geometric_operations_is_the_identity(ranges: str) -> None:
    pictures = _pictures(3)
    for name in (*AFFINE, "crop", "cutout", "sample_pairing", "cutmix"):
        assert torch.equal(_all(name, pictures, _levels(ranges, name)[:1])[0], pictures), name


def test_factor_1_is_the_identity_in_the_middle_of_autoaugments_table() -> None:
    pictures = _pictures(3)
    for name in ENHANCED:
        assert torch.equal(_all(name, pictures, _levels("autoaugment", name)[5:6])[0], pictures), name
    assert torch.equal(_all("solarize", pictures, _levels("autoaugment", "solarize")[:1])[0], pictures)


def test_unknown_tables_and_operations_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'rotat'.*Did you mean 'rotate'"):
        find("rotat")
    with pytest.raises(ValueError, match=r"'widee'.*Did you mean 'wide'"):
        check("widee")
    assert len(AUTOAUGMENT) == 16
    assert len(RANDAUGMENT) == 14
    assert all(find(name) for name in (*AUTOAUGMENT, *RANDAUGMENT))


# laws of all operations --------------------------------------------------------------------------------------------------------


def _drawn(name: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Magnitudes and noise."""
    generator = Generator().manual_seed(seed)
    level = torch.rand(count, generator=generator)
    number = torch.full((count,), NUMBER[name])
    return magnitudes("autoaugment", number, level), torch.rand(count, NOISE, generator=generator)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_vmap_over_episodes_is_the_loop(operation: Any, channels: int) -> None:
    x = torch.rand(3, 5, channels, 12, 12, generator=Generator().manual_seed(1))
    magnitude, noise = (t.unflatten(0, (3, 5)) for t in _drawn(operation.name, 15))
    mapped = torch.func.vmap(operation)(x, magnitude, noise)
    looped = torch.stack([operation(*one) for one in zip(x, magnitude, noise, strict=True)])
    torch.testing.assert_close(mapped, looped)
    if operation.kept is not None:
        shares = torch.func.vmap(operation.kept)(x, magnitude, noise)
        torch.testing.assert_close(shares[1], operation.kept(x[1], magnitude[1], noise[1]))


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if not o.pairs], ids=lambda o: o.name)
def test_every_picture_has_a_magnitude_of_its_own(operation: Any) -> None:
    x = torch.rand(6, 3, 12, 12, generator=Generator().manual_seed(2))
    magnitude, noise = _drawn(operation.name, 6)
    alone = torch.cat([operation(x[i:i + 1], magnitude[i:i + 1], noise[i:i + 1]) for i in range(6)])
    torch.testing.assert_close(operation(x, magnitude, noise), alone)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_whole_levels_are_the_rounded_floats(operation: Any) -> None:
    pictures = _pictures(3)
    magnitude, noise = _drawn(operation.name, len(pictures))
    found = operation(pictures, magnitude, noise)
    assert found.dtype == torch.uint8
    assert torch.equal(found, (operation(pictures / 255, magnitude, noise) * 255).round().to(torch.uint8))
    assert operation(pictures / 255, magnitude, noise).dtype == torch.float32


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pictures_of_half_precision_become_what_those_of_float32_do(operation: Any, dtype: torch.dtype) -> None:
    """Rounded once, at the end; also under a vmap, and with others of their own."""
    x = torch.rand(2, 4, 3, 40, 40, generator=Generator().manual_seed(3)).to(dtype)
    magnitude, noise = (t.unflatten(0, (2, 4)) for t in _drawn(operation.name, 8))
    for mapped in (torch.func.vmap(operation), lambda *of: operation(*(t[0] for t in of), others=of[0][1])[None]):
        wanted = mapped(x.float(), magnitude, noise).to(dtype)
        found = mapped(x, magnitude, noise)
        assert found.dtype == dtype
        assert bool(torch.isfinite(found).all())
        assert torch.equal(found, wanted)
    given = [t[0].to(dtype) for t in (magnitude, noise)]
    assert torch.equal(operation(x[0], *given), operation(x[0].float(), *(t.float() for t in given)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gradient_goes_back_through_half_precision(dtype: torch.dtype) -> None:
    x = _smooth().float()
    magnitude, noise = _drawn("rotate", 4, seed=5)
    whole, half = (torch.func.grad(lambda m, x=x: find("rotate")(x, m, noise).float().square().sum())(magnitude)
                   for x in (x, x.to(dtype)))
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_values_stay_between_0_and_1_and_the_input_as_it_was(operation: Any) -> None:
    x = torch.rand(8, 3, 12, 12, generator=Generator().manual_seed(3))
    before = x.clone()
    found = operation(x, *_drawn(operation.name, 8))
    assert float(found.min()) >= -1e-6
    assert float(found.max()) <= 1 + 1e-6
    assert torch.equal(x, before)


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.unit], ids=lambda o: o.name)
def test_differentiable_operations_have_the_gradient_of_their_finite_differences(operation: Any) -> None:
    """In float64. The others are flat in their magnitude: their gradient is 0, or there is none."""
    x = _smooth()
    magnitude, noise = (t.double() for t in _drawn(operation.name, 4, seed=5))
    weights = torch.rand(4, 3, 12, 12, dtype=torch.float64, generator=Generator().manual_seed(4))

    def total(m: Tensor) -> Tensor:
        return (operation(x, m, noise) * weights).sum((1, 2, 3))

    if not operation.differentiable:
        m = magnitude.requires_grad_()
        value = total(m).sum()
        assert not value.requires_grad or float(torch.autograd.grad(value, m)[0].abs().max()) == 0
        return
    slope = torch.func.grad(lambda m: total(m).sum())(magnitude)
    h = 1e-6
    assert float(slope.abs().min()) > 1e-3
    torch.testing.assert_close(slope, (total(magnitude + h) - total(magnitude - h)) / (2 * h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("noise", [PLUS, MINUS], ids=["plus", "minus"])
def test_a_magnitude_of_0_has_the_gradient_of_its_finite_difference_too(name: str, noise: Tensor) -> None:
    """To the side of larger ones. Of slopes, seen away from the border: elsewhere what is interpolated has a kink at 0."""
    y, x = torch.meshgrid(*[torch.linspace(0.2, 0.8, 12, dtype=torch.float64)] * 2, indexing="ij")
    slopes, weights = torch.stack([x, y, 0.5 * (x + y)])[None], torch.zeros(12, 12, dtype=torch.float64)
    weights[2:-2, 2:-2] = torch.rand(8, 8, dtype=torch.float64, generator=Generator().manual_seed(4))

    def total(m: Tensor) -> Tensor:
        return (find(name)(slopes, m, noise.double()[None]) * weights).sum()

    h, zero = torch.tensor([1e-6], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    slope = torch.func.grad(total)(zero)
    assert abs(float(slope)) > 1e-3
    torch.testing.assert_close(slope, (total(h) - total(zero)) / h, rtol=1e-4, atol=1e-5)


def _smooth() -> Tensor:
    """float64 [4, 3, 12, 12], well within 0..1: no value is clipped under a small change."""
    return 0.3 + 0.2 * torch.rand(4, 3, 12, 12, dtype=torch.float64, generator=Generator().manual_seed(6))


# what each draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["color", "channel_permutation"])
def test_operations_on_colour_leave_grey_pictures_as_they_are(name: str) -> None:
    x = torch.rand(5, 1, 9, 9)
    assert find(name).colour
    assert torch.equal(find(name)(x, *_drawn(name, 5)), x)
    assert sum(operation.colour for operation in OPERATIONS) == 2


def _chi_square(counts: Tensor) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def test_the_other_picture_is_any_other_one_of_its_group() -> None:
    """Chi-square with 4 degrees of freedom: above 23.5 once in 10,000 seeds."""
    noise = torch.rand(6000, NOISE, generator=Generator().manual_seed(0))
    other = partners(noise, 6)
    own = torch.arange(6000)
    assert bool((other // 6 == own // 6).all())
    assert bool((other != own).all())
    assert _chi_square(((other - own) % 6).bincount()[1:].float()) < 23.5
    assert partners(noise[:1]).tolist() == [0]
    assert partners(noise[:4], 1).tolist() == [0, 1, 2, 3]


def test_all_orders_of_channels_and_all_turns_are_alike() -> None:
    """Chi-square with 5 and 2 degrees of freedom: above 25.7 and 18.4 once in 10,000 seeds."""
    noise = torch.rand(6000, NOISE, generator=Generator().manual_seed(0))
    x = torch.tensor([0.0, 0.5, 1.0])[None, :, None, None].expand(6000, 3, 1, 1)
    found = find("channel_permutation")(x, noise[:, 0], noise)[..., 0, 0]
    assert torch.equal(found.sort(1).values, x[..., 0, 0])
    assert _chi_square((found @ torch.tensor([18.0, 6.0, 2.0])).long().unique(return_counts=True)[1].float()) < 25.7
    corner = torch.zeros(6000, 1, 2, 2)
    corner[:, :, 0, 0] = 1
    turned = find("turn")(corner, noise[:, 0], noise).flatten(1).argmax(1).bincount(minlength=4).float()
    assert turned[0] == 0
    assert _chi_square(turned[1:]) < 18.4


def test_cutmix_mixes_a_label_by_exactly_the_pixels() -> None:
    """Chi-square of the areas drawn (10 classes): above 33.7 once in 10,000 seeds; boxes at the border are cut, so they are put
    into the middle to be counted."""
    n = 400
    noise = torch.rand(n, NOISE, generator=Generator().manual_seed(0))
    magnitude = torch.ones(n)
    own, other = torch.zeros(n, 3, 20, 20), torch.ones(n, 3, 20, 20)
    found = find("cutmix")(own, magnitude, noise, others=other)
    cutmix = find("cutmix")
    assert cutmix.kept is not None
    kept = cutmix.kept(own, magnitude, noise)
    torch.testing.assert_close(1 - found.mean((1, 2, 3)), kept)
    centred = noise.clone()
    centred[:, :2] = 0.5
    area = 1 - cutmix.kept(torch.zeros(n, 1, 100, 100), magnitude, centred)
    assert _chi_square((area * 10).long().clamp(max=9).bincount(minlength=10).float()) < 33.7
    assert float((1 - cutmix.kept(own, 0.3 * magnitude, noise)).max()) <= 0.35


def test_cutmix_leaves_something_of_every_picture() -> None:
    """A label without any weight has no prototype: where the largest box lay in the middle, it was 0 / 0."""
    noise = torch.rand(2000, NOISE, generator=Generator().manual_seed(0))
    noise[:, :2] = 0.5 + (noise[:, :2] - 0.5) / 20
    noise[:1000, 2] = 1 - 1e-6
    cutmix = find("cutmix")
    assert cutmix.kept is not None
    for side in (1, 2, 8, 28):
        kept = cutmix.kept(torch.zeros(2000, 1, side, side), torch.ones(2000), noise)
        assert 0 < float(kept.min()) <= 2 / side


def test_a_hole_is_as_large_as_said_and_filled() -> None:
    x = torch.ones(1, 1, 32, 32)
    middle = torch.full((1, NOISE), 0.5)
    for level in range(11):
        magnitude = _levels("autoaugment", "cutout")[level:level + 1]
        assert int((find("cutout")(x, magnitude, middle) == 0).sum()) == (2 * level) ** 2
    assert float(find("cutout")(torch.ones(1, 3, 32, 32), magnitude, middle).min()) == 0.5
    assert float(find("cutout")(x, magnitude, middle, fill=0.2).min()) == pytest.approx(0.2)
    corner = find("cutout")(x, magnitude, torch.zeros(1, NOISE))
    assert int((corner == 0).sum()) == 10 * 10


def test_a_crop_moves_by_each_number_of_whole_pixels_up_to_its_padding_alike() -> None:
    """Chi-square with 8 degrees of freedom: above 31.8 once in 10,000 seeds."""
    x = torch.zeros(4500, 1, 32, 32)
    x[:, :, 16, 16] = 1
    found = find("crop")(x, torch.full((4500,), 4 / 32), torch.rand(4500, NOISE, generator=Generator().manual_seed(0)))
    where = found.flatten(1).argmax(1)
    rows, columns = where // 32 - 12, where % 32 - 12
    torch.testing.assert_close(found.amax((1, 2, 3)), torch.ones(4500), atol=1e-4, rtol=0)
    for moved in (rows, columns):
        counts = moved.bincount()
        assert len(counts) == 9
        assert _chi_square(counts.float()) < 31.8
    assert (rows != columns).any()


def test_pictures_that_are_not_square_cannot_be_turned_and_five_channels_not_be_permuted() -> None:
    with pytest.raises(ValueError, match=r"only square pictures.*8 x 9"):
        find("turn")(torch.zeros(2, 1, 8, 9), torch.zeros(2), torch.zeros(2, NOISE))
    with pytest.raises(ValueError, match="up to 4 channels, but got 5"):
        find("channel_permutation")(torch.zeros(2, 5, 8, 8), torch.zeros(2), torch.zeros(2, NOISE))
