"""Augmentation as pictures: what a policy does to some pictures, and how a schedule changes over training."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metasearch.track.figures import GREY, blank, plain, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["grid", "timeline"]

Stages = Sequence[tuple[float, Mapping[str, tuple[float, float]]]]


def grid(rows: Mapping[str, Any], *, title: str = "", path: Path | None = None) -> Figure:
    """rows: a name -> pictures [n, C, H, W] in 0..1, the same ones in every row: "before" first, then each place's."""
    count = max(len(pictures) for pictures in rows.values())
    figure = blank(0.6 + 0.7 * count, 0.4 + 0.8 * len(rows))
    if title:
        figure.suptitle(title, fontsize=9)
    axes = figure.subplots(len(rows), count, squeeze=False)
    for across, (name, pictures) in zip(axes, rows.items(), strict=True):
        for i, one in enumerate(across):
            one.set_xticks([])
            one.set_yticks([])
            if i < len(pictures):
                x = np.clip(np.moveaxis(np.asarray(pictures[i], dtype=float), 0, -1), 0, 1)
                shown = x if x.shape[-1] == 3 else x.mean(-1)
                one.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            else:
                one.set_axis_off()
        across[0].set_ylabel(name, fontsize=8)
    return written(figure, path)


def timeline(stages: Stages, title: str = "", path: Path | None = None) -> Figure:
    """How probable (the height of a band) and how strong (its darkness) each operation is, over the whole of training.
    stages: (the share of training at which it ends, operation -> (probability, magnitude))."""
    names = list(dict.fromkeys(name for _, told in stages for name in told))
    figure = blank(7.0, 0.9 + 0.32 * max(1, len(names)))
    axes = figure.subplots()
    for row, name in enumerate(names):
        start = 0.0
        for end, told in stages:
            probability, magnitude = told.get(name, (0.0, 0.0))
            if probability > 0:
                axes.bar((start + end) / 2, 0.9 * probability, end - start, bottom=row - 0.45, color="#0072B2",
                         alpha=0.15 + 0.85 * magnitude, linewidth=0)
            start = end
        axes.axhline(row - 0.45, color=GREY, lw=0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, max(len(names), 1) - 0.4)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of training; height: probability, darkness: magnitude", fontsize=8)
    if title:
        axes.set_title(title, fontsize=9)
    plain(axes)
    return written(figure, path)
