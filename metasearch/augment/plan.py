"""What is done to each picture, as data; and the one function that does it.

Every policy draws a Plan, so all luck is drawn at once from a generator of the CPU, and the pictures may be on any device.
Rounds come one after the other. In a round the pictures lie sorted by operation, so that each operation is computed for those
alone that drew it; all affine ones of a round are one pass. Where all pictures drew the same, nothing is sorted, and a few of
them at a time go through all rounds.
"""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metasearch.augment import _geometry as geometry
from metasearch.augment.ops import HALF, NOISE, NUMBER, OPERATIONS, behind, partners, with_sign

__all__ = ["Moments", "Plan", "carry_out", "joined", "look_at_moments"]

Moments = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel that were taken off a picture
CACHED = 160_000  # values of pictures: 640 KB, and as much again for each intermediate result
AFFINE = [number for number, operation in enumerate(OPERATIONS) if operation.affine is not None]
CROP = NUMBER["crop"]
ALONG = torch.stack([  # [operations, 5]: which of the five amounts a magnitude is
    torch.zeros(5) if o.affine is None else o.affine(torch.ones(1), torch.full((1, NOISE), 0.5), (1, 1))[0] for o in OPERATIONS])


class Plan(NamedTuple):
    """operation: [L, n] numbers in OPERATIONS (0 does nothing), magnitude: [L, n], noise: [L, n, NOISE]; of L rounds."""

    operation: Tensor
    magnitude: Tensor
    noise: Tensor

    @property
    def count(self) -> int:  # type: ignore[override]  # a tuple's own `count` is of no use here
        return int(self.operation.shape[1])

    def select(self, index: Tensor) -> Plan:
        """For other pictures: the i-th is treated as number index[i] was."""
        return Plan(self.operation[:, index], self.magnitude[:, index], self.noise[:, index])

    @staticmethod
    def nothing(rounds: int, count: int) -> Plan:
        number = torch.zeros(rounds, count, dtype=torch.long)
        return Plan(number, torch.zeros(rounds, count), torch.full((rounds, count, NOISE), 0.5))


def joined(plans: Sequence[Plan]) -> Plan:
    """Several plans side by side; the shorter ones end in rounds that do nothing."""
    if not plans:
        return Plan.nothing(1, 0)
    rounds = max(plan.operation.shape[0] for plan in plans)
    filled = []
    for plan in plans:
        more = Plan.nothing(rounds - plan.operation.shape[0], plan.count)
        filled.append([torch.cat(both) for both in zip(plan, more, strict=True)])
    return Plan(*(torch.cat(parts, 1) for parts in zip(*filled, strict=True)))


def carry_out(
    plan: Plan, images: Tensor, labels: Tensor | None = None, *, group: int | None = None, fill: float | None = None,
    moments: Moments | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(images, labels) after all rounds; what was given stays as it is.

    images: [n, C, H, W] float in 0..1 (uint8 is turned into it, and rounded back once at the end), or normalised by `moments`.
    labels: [n, N], mixed where an operation mixes pictures. group: pictures are mixed within groups of so many in a row.
    fill: what lies around a picture and in holes (0..1); None: 0 for one channel, 0.5 otherwise.
    """
    if images.dim() != 4:
        raise ValueError(f"pictures are [n, C, H, W], but got a tensor of shape {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"pictures are uint8, or floats in 0..1, but these are {images.dtype}")
    if labels is not None and not _are_labels(labels, len(images)):
        told = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels are floats [n, N], a row for each of {len(images)} pictures, but got {told}. "
                         f"torch.nn.functional.one_hot(labels, N).float() makes them of a tensor of numbers.")
    if len(images) != plan.count:
        raise ValueError(f"the plan is for {plan.count} pictures, but got {len(images)}")
    if group is not None and (group < 1 or plan.count % group):
        raise ValueError(f"{plan.count} pictures are no whole number of groups of {group}")
    if fill is not None and not 0 <= fill <= 1:
        raise ValueError(f"fill is a value between 0 and 1, but got {fill}")
    if not plan.count:
        return images, labels
    if not images.numel():
        raise ValueError(f"pictures have one channel and one pixel or more, but these are of shape {tuple(images.shape)}")
    if moments is not None:
        look_at_moments(moments, images.shape[1])
    x, y = _lifted(images, moments), labels
    fill = behind(x.shape[1]) if fill is None else fill
    rounds, last = _sorted(plan, (x.shape[2], x.shape[3]), x.dtype)
    rounds = [one.to(x.device) for one in rounds]
    if all(plan.count in one.counts and not OPERATIONS[one.counts.index(plan.count)].pairs for one in rounds):
        x = _alike(rounds, x, fill)
    else:
        for one in rounds:
            x, y = _round(one, x, y, group, fill)
        x = x.index_select(0, last.to(x.device))
    return _lowered(x, images, moments), y


def look_at_moments(moments: Moments, channels: int) -> None:
    """Raises ValueError if these cannot be what was taken off pictures of so many channels."""
    if not (isinstance(moments, Sequence) and len(moments) == 2
            and all(hasattr(each, "__len__") and len(each) == channels for each in moments)
            and all(math.isfinite(value) for each in moments for value in each) and all(value > 0 for value in moments[1])):
        raise ValueError(f"moments are (means, standard deviations > 0), a number for each of {channels} channels, but got "
                         f"{moments!r}")


def _are_labels(labels: object, count: int) -> bool:
    return isinstance(labels, Tensor) and labels.dim() == 2 and len(labels) == count and labels.is_floating_point()


class Round(NamedTuple):
    """One operation for each of n pictures, sorted by operation.

    counts: pictures of each operation. which: [n] the pictures' numbers; take: [n] the rows they had after the last round, and
    was: [n] that row for picture 0, 1, ...; magnitude: [n]; noise: [n, NOISE]; across, down: see geometry.lines.
    """

    counts: list[int]
    which: Tensor
    take: Tensor
    was: Tensor
    magnitude: Tensor
    noise: Tensor
    across: Tensor
    down: Tensor

    def to(self, device: torch.device) -> Round:
        return self if device.type == "cpu" else Round(self.counts, *(t.to(device) for t in self[1:]))

    def applied(self, number: int, part: slice, pictures: Tensor, fill: float, others: Tensor | None = None) -> Tensor:
        """Operation `number`, as rows `part` of this round have drawn it."""
        if OPERATIONS[number].affine is not None:
            return geometry.sampled(pictures, self.across[part], self.down[part], fill)
        return OPERATIONS[number].applied(pictures, self.magnitude[part], self.noise[part], fill, others)


def _sorted(plan: Plan, size: geometry.Size, dtype: torch.dtype) -> tuple[list[Round], Tensor]:
    """The rounds of a plan, and the row at which each picture is after the last. What is small is worked out for all at once."""
    number, magnitude, noise = plan.operation, plan.magnitude.to(dtype), plan.noise.to(dtype)
    rounds, n = number.shape
    kinds = len(OPERATIONS)
    counts = (number + kinds * torch.arange(rounds)[:, None]).flatten().bincount(minlength=rounds * kinds)
    counted = counts.view(rounds, kinds).tolist()
    row = torch.arange(n).expand(rounds + 1, n)  # of each picture, before each round
    which = take = row[1:]
    if not all(n in count for count in counted):
        which = number.argsort(dim=1, stable=True)
        row = row.clone()
        row[1:].scatter_(1, which, row[:1].expand(rounds, n))
        number, magnitude = number.gather(1, which), magnitude.gather(1, which)
        noise = noise.gather(1, which[..., None].expand(noise.shape))
        take = row[:-1].gather(1, which)
    across, down = _lines(counted, number, magnitude, noise, size)
    columns = zip(counted, which, take, row, magnitude, noise, across, down, strict=False)  # `row` has one more
    return [Round(*one) for one in columns], row[-1]


def _lines(
    counted: list[list[int]], number: Tensor, magnitude: Tensor, noise: Tensor, size: geometry.Size
) -> tuple[Tensor, Tensor]:
    """[L, n, 2, W] and [L, n, 2, H]: see geometry.lines. Of no size where no picture is moved."""
    if not any(count[k] for count in counted for k in AFFINE):
        return magnitude, magnitude
    amounts = with_sign(magnitude, noise)[..., None] * ALONG[number].to(magnitude.dtype)
    if any(count[CROP] for count in counted):
        moved = geometry.crop(magnitude.flatten(), noise.flatten(0, 1), size).view(amounts.shape)
        amounts = torch.where((number == CROP)[..., None], moved, amounts)
    across, down = geometry.lines(amounts.flatten(0, 1), size)
    return across.view(*number.shape, 2, -1), down.view(*number.shape, 2, -1)


def _alike(rounds: list[Round], x: Tensor, fill: float) -> Tensor:
    """All rounds, of one operation for all pictures each; none of them mixes pictures."""
    found = x
    for part in _slices(0, len(x), x):
        pictures = given = x[part]
        for one in rounds:
            pictures = one.applied(one.counts.index(len(x)), part, pictures, fill)
        if len(given) == len(x):
            return pictures.clone() if pictures is given else pictures
        found = torch.empty_like(x) if found is x else found
        found[part] = pictures  # while the cache holds them
    return found


def _round(one: Round, x: Tensor, y: Tensor | None, group: int | None, fill: float) -> tuple[Tensor, Tensor | None]:
    """x: pictures as the last round left them -> as this one does."""
    found, labels = x.index_select(0, one.take), y
    sloped = x.requires_grad or one.magnitude.requires_grad  # what a gradient goes back through must not be overwritten
    for number, part in _parts(one.counts, x):
        operation, others, pictures = OPERATIONS[number], None, found[part]
        if operation.pairs:
            which = one.which[part]
            other = partners(one.noise[part], group, place=which, count=len(x))
            others = x.index_select(0, one.was[other])
            if operation.kept is not None:
                if y is None or labels is None:
                    raise ValueError(f"{operation.name} mixes labels, but none were given. Call the policy with labels [n, N].")
                share = operation.kept(pictures, one.magnitude[part], one.noise[part])[:, None].to(y.dtype)
                labels = labels.index_copy(0, which, share * y[which] + (1 - share) * y[other])
        pictures.copy_(one.applied(number, part, pictures.clone() if sloped else pictures, fill, others))
    return found, labels


def _parts(counts: list[int], x: Tensor) -> Iterator[tuple[int, slice]]:
    """Numbers of operations that do something, and the rows of the sorted pictures that each is computed for at once. Affine
    operations stand side by side, and are one."""
    first = counts[0]
    for number, count in enumerate(counts[1:], 1):
        if number in AFFINE:
            count = sum(counts[k] for k in AFFINE) if number == AFFINE[0] else 0
        for part in _slices(first, first + count, x):
            yield number, part
        first += count


def _slices(first: int, last: int, x: Tensor) -> Iterator[slice]:
    """On a CPU not more pictures than its cache holds, for an operation goes over its pictures several times."""
    most = max(1, CACHED // x[0].numel()) if x.device.type == "cpu" else max(1, len(x))
    return (slice(at, min(at + most, last)) for at in range(first, last, most))


def _lifted(images: Tensor, moments: Moments | None) -> Tensor:
    """To 0..1, in float32 or more."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    images = images.float() if images.dtype in HALF else images
    if moments is None:
        return images
    mean, std = (torch.as_tensor(m, dtype=images.dtype, device=images.device).view(-1, 1, 1) for m in moments)
    return images * std + mean


def _lowered(x: Tensor, like: Tensor, moments: Moments | None) -> Tensor:
    """As they were given."""
    if like.dtype == torch.uint8:
        return (x * 255).round().clamp(0, 255).to(torch.uint8)
    if moments is None:
        return x.to(like.dtype)
    mean, std = (torch.as_tensor(m, dtype=x.dtype, device=x.device).view(-1, 1, 1) for m in moments)
    return ((x - mean) / std).to(like.dtype)
