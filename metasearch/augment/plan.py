"""What is done to each picture, as data; and the one function that does it.

Every policy draws a Plan, so all luck is drawn at once from a generator of the CPU, and the pictures may be on any device. Rounds
come one after the other; in a round each operation is computed for those pictures alone that drew it, and all affine ones of a
round are one pass.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metasearch.augment import _geometry as geometry
from metasearch.augment.ops import NOISE, OPERATIONS, Operation, behind, partners

__all__ = ["Moments", "Plan", "carry_out", "joined"]

Moments = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel that were taken off a picture
SIGNED = torch.tensor([operation.signed for operation in OPERATIONS])
LAST_AFFINE = [operation for operation in OPERATIONS if operation.affine is not None][-1]  # they stand side by side


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
    if len(images) != plan.count:
        raise ValueError(f"the plan is for {plan.count} pictures, but got {len(images)}")
    if group is not None and plan.count % max(group, 1):
        raise ValueError(f"{plan.count} pictures are no whole number of groups of {group}")
    if not plan.count:
        return images, labels
    x = _lifted(images, moments)
    fill = behind(x.shape[1]) if fill is None else fill
    y = labels
    at = torch.arange(plan.count)  # where each picture is: rounds leave them sorted by operation
    for numbers, magnitude, noise in zip(*plan, strict=True):
        order = numbers.argsort(stable=True)
        x, y = _round(numbers, magnitude.to(x.dtype), noise.to(x.dtype), order, at, x, y, group, fill)
        at = order.argsort()
    return _lowered(x.index_select(0, at.to(x.device)), images, moments), y


def _round(
    numbers: Tensor, magnitude: Tensor, noise: Tensor, order: Tensor, at: Tensor, x: Tensor, y: Tensor | None, group: int | None,
    fill: float,
) -> tuple[Tensor, Tensor | None]:
    """One operation a picture. x: pictures, number i at row at[i] -> pictures after the round, in the order `order`."""
    device = x.device
    counts = numbers.bincount(minlength=len(OPERATIONS)).tolist()
    signed = torch.where((noise[:, 0] < 0.5) & SIGNED[numbers], -magnitude, magnitude)
    m, u = signed[order].to(device), noise[order].to(device)
    now = x.index_select(0, at[order].to(device))
    found, end = [], 0
    affine: list[Tensor] = []
    for operation, count in zip(OPERATIONS, counts, strict=True):
        part = slice(end, end := end + count)
        if operation.affine is not None:
            affine += [operation.affine(m[part], u[part], (x.shape[2], x.shape[3]))] if count else []
            if operation is LAST_AFFINE and affine:
                amounts = torch.cat(affine)
                found.append(_warped(now[end - len(amounts):end], amounts, fill))
        elif count and operation.pairs:
            mine = order[part]
            other = partners(noise, group)[mine]
            theirs = x.index_select(0, at[other].to(device))
            y = _mixed(operation, y, mine, other, now[part], m[part], u[part])
            found.append(operation.applied(now[part], m[part], u[part], fill, theirs))
        elif count:
            found.append(operation.applied(now[part], m[part], u[part], fill))
    return torch.cat(found), y


def _warped(x: Tensor, amounts: Tensor, fill: float) -> Tensor:
    return geometry.warp(x, geometry.matrix(amounts, (x.shape[2], x.shape[3])), fill)


def _mixed(
    operation: Operation, y: Tensor | None, mine: Tensor, other: Tensor, x: Tensor, magnitude: Tensor, noise: Tensor
) -> Tensor | None:
    """The labels, of which those of the pictures `mine` are mixed with those of the pictures `other`."""
    if operation.kept is None:
        return y
    if y is None:
        raise ValueError(f"{operation.name} mixes labels, but none were given. Call the policy with labels [n, N].")
    share = operation.kept(x, magnitude, noise)[:, None].to(y.dtype)
    mine, other = mine.to(y.device), other.to(y.device)
    return y.index_copy(0, mine, share * y[mine] + (1 - share) * y[other])


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
