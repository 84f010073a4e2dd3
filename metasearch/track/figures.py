"""What all pictures have in common: colours, a figure without a window, a file that is written whole or not at all."""
from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "DPI", "FORMATS", "GREEN", "GREY", "LINES", "ORANGE", "RED", "blank", "plain", "unit_label", "written"]

# Okabe and Ito's colours, which people with any colour vision can tell apart
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8A8A"
LINES = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9")
DPI = 150
FORMATS = (".png", ".svg", ".pdf")


def blank(width: float, height: float, *, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Inches. Without pyplot: no window opens, and nothing stays in memory."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(made)
    return made


def written(figure: Figure, path: Path | None) -> Figure:
    """Written under another name and renamed, if a path is given. Equal figures make equal files; words in an SVG are text."""
    if path is None:
        return figure
    from matplotlib import rc_context

    path.parent.mkdir(parents=True, exist_ok=True)
    form = path.suffix.lower().removeprefix(".")
    new = path.with_name(f".{path.name}.{os.getpid()}")
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}.get(form, {})
    try:
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "metasearch"}):
            figure.savefig(new, dpi=DPI, format=form, metadata=dated)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return figure


def plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def unit_label(unit: str) -> str:
    return {"accuracy": "accuracy (%)", "mse": "mean squared error", "spearman": "Spearman's rank correlation"}.get(unit, unit)
