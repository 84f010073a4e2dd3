"""A search-space file in a person's hands: begin one, have it checked in words, see what is in it.

    new(Path("my_space.py"))                 # a commented file that works
    for truth, reason in check("my_space.py"): ...
    describe("maml-family").dims

A file defines SPACE and recipe(config, shape); optional are RELAXED and relaxed (one-shot methods), canonical (configs that
mean the same), mutations (moves of its own) and graph(config) -> list[Graph] (architectures for pictures, metasearch/graph.py).
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metasearch import plugins
from metasearch.records import Config
from metasearch.space import Choice, Dim, Float, Repeat, Space

__all__ = ["Description", "Row", "check", "describe", "new"]


class Row(NamedTuple):
    """A dimension: its path ("cell.*.op": of every item), its values in words, and the decision that it hangs on."""

    path: str
    values: str
    when: str


@dataclass(frozen=True)
class Description:
    """What a space holds. size: number of configs, math.inf with a Float; width: columns of an encoded config."""

    name: str
    space: Space
    dims: tuple[Row, ...]
    example: Config  # the middle of everything

    @property
    def size(self) -> int | float:
        return self.space.size

    @property
    def width(self) -> int:
        return self.space.width

    @property
    def digest(self) -> str:
        return self.space.digest


def new(path: Path) -> None:
    """Writes a commented space file to begin from. Raises ValueError if it is no .py file or is there already."""
    from metasearch.testing.spaces import TEMPLATE

    if path.suffix != ".py":
        raise ValueError(f"a space is a Python file, but {path} does not end in .py.")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}. Make it first.")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except FileExistsError:
        raise ValueError(f"{path} exists already, and is left as it is.") from None


def check(name: str) -> Iterator[tuple[str, str | None]]:
    """(a truth, None) or (a truth, why it does not hold), one after the other, for a name, a path or an importable module.

    Raises UnknownName, with the line of the file, if it cannot be imported.
    """
    from metasearch.testing import spaces

    return spaces.check(plugins.loaded("spaces", name))


def describe(name: str) -> Description:
    """The space of a name, a path or an importable module. Raises ValueError, with the line of the file, if there is none."""
    space = getattr(plugins.loaded("spaces", name), "SPACE", None)
    if not isinstance(space, Space):
        raise ValueError(f"{name} must define SPACE = Space({{...}}), but SPACE is {space!r:.80}.")
    return Description(name, space, tuple(_rows(space, "", "")), space.decode(np.full(space.width, 0.5)))


def _rows(space: Space, prefix: str, when: str) -> Iterator[Row]:
    for name, dim in space.dims.items():
        path = prefix + name
        if isinstance(dim, Repeat):
            yield Row(f"{path}.count", _values(dim.count), when)
            shared = isinstance(dim.body, Space)
            for i, body in enumerate(dim.bodies[:1] if shared else dim.bodies):
                yield from _rows(body, f"{path}.{'*' if shared else i}.", when)
            continue
        yield Row(path, _values(dim), when)
        if isinstance(dim, Choice):
            for option, opened in zip(dim.values, dim.spaces, strict=False):
                yield from _rows(opened, f"{path}.", f"{path} = {option}")


def _values(dim: Dim) -> str:
    if isinstance(dim, Choice):
        return ", ".join(str(value) for value in dim.values)
    assert not isinstance(dim, Repeat)
    ends = f"{dim.low:g} ... {dim.high:g}" if isinstance(dim, Float) else f"{dim.low} ... {dim.high}, whole"
    return f"{ends}, log" if dim.log else ends
