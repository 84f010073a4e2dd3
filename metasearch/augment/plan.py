"""What is done to each picture, as data; and the one function that does it.

Every policy draws a Plan, so all luck is drawn at once from a generator of the CPU, and the pictures may be on any device.
Rounds come one after the other; in a round each operation is computed for those pictures alone that drew it, and all affine ones
of a round are one pass.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metasearch.augment import _geometry as geometry
from metasearch.augment.ops import NOISE, NUMBER, OPERATIONS, behind, partners, with_sign

__all__ = ["Moments", "Plan", "carry_out", "joined"]

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
    """
    if images.dim() != 4:
        raise ValueError(f"pictures are [n, C, H, W], but got a tensor of shape {tuple(images.shape)}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"pictures are uint8, or floats in 0..1, but these are {images.dtype}")
    if labels is not None and (labels.dim() != 2 or len(labels) != len(images) or not labels.is_floating_point()):
        raise ValueError(f"labels are floats [n, N], a row for each of {len(images)} pictures, but got {labels.dtype} of shape "
                         f"{tuple(labels.shape)}. torch.nn.functional.one_hot(labels, N).float() makes them of numbers.")
    if len(images) != plan.count:
        raise ValueError(f"the plan is for {plan.count} pictures, but got {len(images)}")
    if group is not None and plan.count % max(group, 1):
        raise ValueError(f"{plan.count} pictures are no whole number of groups of {group}")
    if not plan.count:
        return images, labels
    x, y = _lifted(images, moments), labels
    fill = behind(x.shape[1]) if fill is None else fill
    rounds, last = _sorted(plan, (x.shape[2], x.shape[3]), x.dtype)
    for one in rounds:
        x, y = _round(one.to(x.device), x, y, group, fill)
    x = _lowered(x if last is None else x.index_select(0, last.to(x.device)), images, moments)
    return x.clone() if x.data_ptr() == images.data_ptr() else x, y


class Round(NamedTuple):
    """One operation for each of n pictures, sorted by operation.

    counts: pictures of each operation. which: [n] the pictures' numbers; take: [n] the rows they had after the last round
    (None: the same), and was: [n] that row for picture 0, 1, ...; magnitude: [n]; noise: [n, NOISE]; across, down: see
    geometry.lines.
    """

    counts: list[int]
    which: Tensor
    take: Tensor | None
    was: Tensor
    magnitude: Tensor
    noise: Tensor
    across: Tensor
    down: Tensor

    def to(self, device: torch.device) -> Round:
        if device.type == "cpu":
            return self
        counts, *others = self
        return Round(counts, *(None if t is None else t.to(device) for t in others))  # type: ignore[arg-type]


def _sorted(plan: Plan, size: geometry.Size, dtype: torch.dtype) -> tuple[list[Round], Tensor | None]:
    """The rounds of a plan, and the row at which each picture is after the last. What is small is worked out for all at once."""
    number, magnitude, noise = plan.operation, plan.magnitude.to(dtype), plan.noise.to(dtype)
    rounds, n = number.shape
    kinds = len(OPERATIONS)
    counts = (number + kinds * torch.arange(rounds)[:, None]).flatten().bincount(minlength=rounds * kinds)
    counted = counts.view(rounds, kinds).tolist()
    row = torch.arange(n).expand(rounds + 1, n)  # of each picture, before each round
    which, take, last = row[1:], [None] * rounds, None
    if not all(n in count for count in counted):
        which = number.argsort(dim=1, stable=True)
        row = row.clone()
        row[1:].scatter_(1, which, row[:1].expand(rounds, n))
        number, magnitude = number.gather(1, which), magnitude.gather(1, which)
        noise = noise.gather(1, which[..., None].expand(noise.shape))
        take, last = list(row[:-1].gather(1, which)), row[-1]
    across, down = _lines(counted, number, magnitude, noise, size)
    columns = zip(counted, which, take, row, magnitude, noise, across, down, strict=False)  # `row` has one more
    return [Round(*one) for one in columns], last


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


def _round(one: Round, x: Tensor, y: Tensor | None, group: int | None, fill: float) -> tuple[Tensor, Tensor | None]:
    """x: pictures as the last round left them -> as this one does."""
    labels, found = y, []
    for number, part in _parts(one.counts, x):
        operation, others = OPERATIONS[number], None
        magnitude, noise = one.magnitude[part], one.noise[part]
        pictures = x[part] if one.take is None else x.index_select(0, one.take[part])
        if operation.affine is not None:
            found.append(geometry.sampled(pictures, one.across[part], one.down[part], fill))
            continue
        if operation.pairs:
            which = one.which[part]
            other = partners(noise, group, place=which, count=len(x))
            others = x.index_select(0, one.was[other])
            if operation.kept is not None:
                if y is None or labels is None:
                    raise ValueError(f"{operation.name} mixes labels, but none were given. Call the policy with labels [n, N].")
                share = operation.kept(pictures, magnitude, noise)[:, None].to(y.dtype)
                labels = labels.index_copy(0, which, share * y[which] + (1 - share) * y[other])
        found.append(operation.applied(pictures, magnitude, noise, fill, others))
    return found[0] if len(found) == 1 else torch.cat(found), labels


def _parts(counts: list[int], x: Tensor) -> Iterator[tuple[int, slice]]:
    """Numbers of operations, and the rows of the sorted pictures that each is computed for at once: on a CPU not more than its
    cache holds, for an operation goes over its pictures several times. Affine operations stand side by side, and are one."""
    most = max(1, CACHED // x[0].numel()) if x.device.type == "cpu" else len(x)
    first = 0
    for number, count in enumerate(counts):
        if number in AFFINE:
            count = sum(counts[k] for k in AFFINE) if number == AFFINE[0] else 0
        last = first + count
        for at in range(first, last, most):
            yield number, slice(at, min(at + most, last))
        first = last


def _lifted(images: Tensor, moments: Moments | None) -> Tensor:
    """To 0..1."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    if moments is None:
        return images
    mean, std = (torch.as_tensor(m, dtype=images.dtype, device=images.device).view(-1, 1, 1) for m in moments)
    return images * std + mean


def _lowered(x: Tensor, like: Tensor, moments: Moments | None) -> Tensor:
    """As they were given."""
    if like.dtype == torch.uint8:
        return (x * 255).round().clamp(0, 255).to(torch.uint8)
    if moments is None:
        return x
    mean, std = (torch.as_tensor(m, dtype=x.dtype, device=x.device).view(-1, 1, 1) for m in moments)
    return (x - mean) / std
