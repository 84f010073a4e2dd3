"""The operations on pictures that a policy is made of: AutoAugment's sixteen, and those that few-shot learning adds.

    rotated = find("rotate")(images, magnitude, noise)      # [B, C, H, W], [B] degrees, [B, NOISE] uniform in [0, 1)

An operation is a function of (images, magnitude, noise) on a batch, on the images' device, without data-dependent control flow:
it runs under `torch.func.vmap` and in a compiled function. Every picture has a magnitude of its own, in the operation's own unit
(`Operation.unit`); which magnitudes a level 0..1 means is a table of ranges (ranges.py). All luck is in `noise`: the sign of a
rotation, the place of a hole, the other picture. Pictures are floats in 0..1, as the episodes of all picture tasks are (unless
they are normalised, which a policy undoes and redoes), or uint8, which come back as uint8; one channel, three, or others. What is
worked out is float32 or more: half precision knows neither the places of pixels nor all 256 levels.

AutoAugment: Cubuk et al. CVPR 2019. https://arxiv.org/abs/1805.09501, table 6. Its definitions are pillow's ImageOps,
ImageEnhance and affine transforms, see _geometry.py, _colour.py, _pieces.py for what differs.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metasearch import plugins
from metasearch.augment import _colour as colour
from metasearch.augment import _geometry as geometry
from metasearch.augment import _pieces as pieces

__all__ = ["AUTOAUGMENT", "NOISE", "NUMBER", "OPERATIONS", "RANDAUGMENT", "Operation", "find", "partners"]

HALF = (torch.float16, torch.bfloat16)
NOISE = 4  # uniform numbers that an operation may use for one picture; the last says which other picture is mixed in

Run = Callable[[Tensor, Tensor, Tensor, float, Tensor], Tensor]  # (images, magnitude, noise, fill, others) -> images
Kept = Callable[[Tensor, Tensor, Tensor], Tensor]  # (images, magnitude, noise) -> [B]


@dataclass(frozen=True)
class Operation:
    """One operation: by `run`, or by `affine` amounts (a policy carries out those of all its pictures in one pass).

    unit:    of the magnitude; "" if there is none.
    signed:  the sign of the magnitude is drawn: half of the pictures turn to the left.
    differentiable: in its magnitude, almost everywhere.
    colour:  it is about the relation of channels, so pictures of one channel stay as they are.
    pairs:   another picture of the batch takes part.
    kept:    the share of its own label that a picture keeps; None: all of it. What is lost is the other picture's label's.
    """

    name: str
    run: Run | None = None
    affine: geometry.Amounts | None = None
    unit: str = ""
    signed: bool = False
    differentiable: bool = False
    colour: bool = False
    pairs: bool = False
    kept: Kept | None = None

    def __call__(
        self, images: Tensor, magnitude: Tensor, noise: Tensor, *, fill: float | None = None, others: Tensor | None = None
    ) -> Tensor:
        """images [B, C, H, W] float in 0..1 or uint8; magnitude [B]; noise [B, NOISE]. fill: what lies around and in holes;
        None: 0 for one channel, 0.5 otherwise. others [B, C, H, W]: the pictures mixed in; None: others of this batch."""
        if images.dtype == torch.uint8:
            others = None if others is None else others.float() / 255
            found = self(images.float() / 255, magnitude, noise, fill=fill, others=others)
            return (found * 255).round().clamp(0, 255).to(torch.uint8)
        if images.dtype in HALF:
            others = None if others is None else others.float()
            return self(images.float(), magnitude.float(), noise.float(), fill=fill, others=others).to(images.dtype)
        fill = behind(images.shape[1]) if fill is None else fill
        if self.signed:
            magnitude = with_sign(magnitude, noise)
        if self.affine is not None:
            size = int(images.shape[-2]), int(images.shape[-1])
            return geometry.warp(images, self.affine(magnitude, noise, size), fill)
        if self.pairs and others is None:
            others = images[partners(noise)]
        return self.applied(images, magnitude, noise, fill, others)

    def applied(self, images: Tensor, magnitude: Tensor, noise: Tensor, fill: float, others: Tensor | None = None) -> Tensor:
        """`run`, without looking at what it is given."""
        assert self.run is not None
        return self.run(images, magnitude, noise, fill, images if others is None else others)


def with_sign(magnitude: Tensor, noise: Tensor) -> Tensor:
    """The same magnitudes (>= 0), half of them negative. A product, for copysign has no derivative at 0, where a search that
    learns magnitudes could then never leave."""
    return magnitude * (2 * (noise[..., 0] >= 0.5).to(magnitude.dtype) - 1)


def behind(channels: int) -> float:
    """What lies around a picture: the published code fills with the mean colour; a grey picture here is ink = 1 on 0."""
    return 0.0 if channels == 1 else 0.5


def partners(noise: Tensor, group: int | None = None, *, place: Tensor | None = None, count: int | None = None) -> Tensor:
    """[B]: which other picture is mixed into each one, uniform among the others of its group of `group` pictures in a row (all
    by default); itself where it is alone. place: [B] the pictures' own numbers, out of `count`; by default all of the batch."""
    count = len(noise) if count is None else count
    place = torch.arange(count, device=noise.device) if place is None else place
    group = group or count
    within = place % group
    step = 1 + (noise[:, -1] * (group - 1)).floor().clamp(0, max(group - 2, 0)).long() if group > 1 else 0
    return place - within + (within + step) % group


def _affine(name: str, unit: str) -> Operation:
    return Operation(name, affine=geometry.along(name), unit=unit, signed=True, differentiable=True)


def _enhanced(run: Callable[[Tensor, Tensor], Tensor], *, unit: str = "factor", only_colour: bool = False) -> Operation:
    return Operation(run.__name__, lambda x, m, u, f, o: run(x, m), unit=unit, differentiable=True, colour=only_colour)


def _stepped(run: Callable[[Tensor, Tensor], Tensor], unit: str) -> Operation:
    return Operation(run.__name__, lambda x, m, u, f, o: run(x, m), unit=unit)


def _plain(run: Callable[[Tensor], Tensor]) -> Operation:
    return Operation(run.__name__, lambda x, m, u, f, o: run(x))


OPERATIONS: tuple[Operation, ...] = (
    Operation("identity", lambda x, m, u, f, o: x),
    _affine("shear_x", "slope"),
    _affine("shear_y", "slope"),
    _affine("translate_x", "sides"),
    _affine("translate_y", "sides"),
    _affine("rotate", "degrees"),
    Operation("crop", affine=geometry.crop, unit="sides"),
    _plain(colour.autocontrast),
    _plain(colour.invert),
    _plain(colour.equalize),
    _stepped(colour.solarize, "grey level"),
    _stepped(colour.posterize, "bits"),
    _enhanced(colour.contrast),
    _enhanced(colour.color, only_colour=True),
    _enhanced(colour.brightness),
    _enhanced(colour.sharpness),
    Operation("cutout", lambda x, m, u, f, o: pieces.cutout(x, m, u, f), unit="sides"),
    Operation("sample_pairing", lambda x, m, u, f, o: pieces.sample_pairing(x, m, o), unit="weight", differentiable=True,
              pairs=True),
    _plain(pieces.flip),
    Operation("turn", lambda x, m, u, f, o: pieces.turn(x, u)),
    Operation("channel_permutation", lambda x, m, u, f, o: colour.channel_permutation(x, u), colour=True),
    Operation("cutmix", lambda x, m, u, f, o: pieces.cutmix(x, m, u, o), unit="share", pairs=True, kept=pieces.cutmix_kept),
)
NUMBER = {operation.name: number for number, operation in enumerate(OPERATIONS)}

AUTOAUGMENT = (
    "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "autocontrast", "invert", "equalize", "solarize", "posterize",
    "contrast", "color", "brightness", "sharpness", "cutout", "sample_pairing",
)
RANDAUGMENT = (  # RandAugment's and TrivialAugment's fourteen
    "identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast", "brightness", "sharpness",
    "shear_x", "shear_y", "translate_x", "translate_y",
)


def find(name: str) -> Operation:
    """Raises ValueError with the nearest known name."""
    if not isinstance(name, str) or name not in NUMBER:
        raise ValueError(f"there is no operation '{name}'.{plugins.did_you_mean(str(name), NUMBER)}")
    return OPERATIONS[NUMBER[name]]
