"""A study in a folder of its own: its file, the space's and the method's files, and what these say they need.

    study = packed(study, Path("there"))      # there/study.toml, there/space/my_space.py, there/space/blocks.json

So a study travels to another machine, and there into the shared storage, where a later session finds it again. A space's or a
method's file names what it reads beside itself: NEEDS = ("blocks.json",), paths below its own folder. Data do not travel.
"""
from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from metasearch import plugins
from metasearch.driver.study import Study

__all__ = ["kept", "line", "packed", "toml"]

MOST = 50_000_000  # bytes; Ray takes 100 MiB
FILE = "study.toml"


def packed(study: Study, folder: Path) -> Study:
    """Copies a study's files into a folder that is there and empty, and answers with the study as it is from there on.

    Raises ValueError for files that are missing, lead out of their folder, or are too large to travel.
    """
    table, changes = study.to_json(), []
    size = 0
    for room, key, name in _own_files(study):
        place = folder / room
        place.mkdir()
        for source, path in with_needs(room, Path(name)):
            size += source.stat().st_size
            if size > MOST:
                raise ValueError(f"the files of '{study.name}' take more than {MOST / 1e6:g} MB with {source}: put large ones "
                                 "where all nodes see them, and name them by an absolute path.")
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place / path)
        changes.append(f"{key}={json.dumps(str(place / Path(name).name))}")
        _put(table, key, f"{room}/{Path(name).name}")
    (folder / FILE).write_text(toml(table), "utf-8")
    return study.with_(changes)


def kept(study: Study, folder: Path) -> Study:
    """The same study, with its own files copied below `folder`/files, one folder for each content; without files: itself."""
    if not list(_own_files(study)):
        return study
    home = folder / "files"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=home) as new:
        whole = Path(new) / "whole"
        whole.mkdir()
        packed(study, whole)
        target = home / _content(whole)
        if not target.is_dir():
            whole.rename(target)
    return study.with_([f"{key}={json.dumps(str(target / room / Path(name).name))}" for room, key, name in _own_files(study)])


def _own_files(study: Study) -> Iterator[tuple[Literal["spaces", "methods"], str, str]]:
    """(room, the study's key, path) of the files that a study names by path."""
    if study.space_name.endswith(".py"):
        yield "spaces", "space", study.space_name
    if study.method.name.endswith(".py"):
        yield "methods", "method.name", study.method.name


def with_needs(room: Literal["spaces", "methods"], file: Path) -> Iterator[tuple[Path, Path]]:
    """(a file, its path below the folder of `file`) for the file itself and everything that it needs."""
    yield file, Path(file.name)
    needs = getattr(plugins.loaded(room, str(file)), "NEEDS", ())
    if isinstance(needs, str) or not all(isinstance(path, str) for path in needs):
        raise ValueError(f"{file}: NEEDS must be a tuple of paths, such as ('blocks.json',), but is {needs!r:.80}.")
    for path in needs:
        source = file.parent / path
        if PurePosixPath(path).is_absolute() or not source.resolve().is_relative_to(file.parent.resolve()):
            raise ValueError(f"{file}: NEEDS must lie below {file.parent}, but {path!r} does not.")
        if not source.exists():
            raise ValueError(f"{file}: NEEDS names {path!r}, but there is no {source}.")
        for one in plugins.needed(source):
            yield one, one.relative_to(file.parent)


def _content(folder: Path) -> str:
    """Of the files, not of the study: a larger budget is no new content."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.*")):
        if path.is_file() and path.name != FILE:
            found.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:16]


def _put(table: dict[str, Any], key: str, value: str) -> None:
    *path, last = key.split(".")
    for part in path:
        table = table[part]
    table[last] = value


def toml(table: Mapping[str, Any]) -> str:
    """Plain JSON as TOML; what is None is left out."""
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    inner = [f"\n[{_key(key)}]\n{_rows(value)}" for key, value in tables.items()]
    return _rows({key: value for key, value in table.items() if key not in tables}) + "".join(inner)


def line(path: Sequence[str], value: Any) -> str:
    """One key with its tables: driver.cpus = 1."""
    return f"{'.'.join(map(_key, path))} = {_value(value)}"


def _rows(table: Mapping[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in table.items() if value is not None)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items() if inner is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    if isinstance(value, float):
        return repr(value)
    text = json.dumps(value, ensure_ascii=False)  # JSON's are TOML's, but for one character
    return text.replace("\x7f", "\\u007f")
