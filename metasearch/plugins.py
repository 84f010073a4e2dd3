"""A name is a module's name ('-' and '_' are the same): the folder is the registry.

`metasearch/learners/maml.py` is the learner "maml"; adding a file adds a name, here and on the command line. Listing a
folder imports nothing. A name may also be a path ("path/to/space.py"), an importable dotted name ("my_package.space"),
or a name that an installed package announces under the entry-point group "metasearch.<room>".
Modules whose names begin with an underscore are not plug-ins.
"""
from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOMS = {
    "strategies": "metasearch.strategies",
    "tasks": "metasearch.tasks",
    "learners": "metasearch.learners",
    "methods": "metasearch.methods",
    "spaces": "search_spaces",
}


class UnknownName(ValueError):
    """A name that no plug-in of the room has."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean 'maml'?' for a near miss, otherwise the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known)}." if known else ""


def _spelled(module: str) -> str:
    return module.replace("_", "-")


def _folder(room: str) -> Path:
    spec = importlib.util.find_spec(ROOMS[room])
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the package {ROOMS[room]} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def names(room: str) -> list[str]:
    """The names of a room, sorted, without importing any of them."""
    own = {_spelled(p.stem) for p in _folder(room).glob("*.py") if not p.stem.startswith("_")}
    announced = {_spelled(e.name) for e in entry_points(group=f"metasearch.{room}")}
    return sorted(own | announced)


def summary(room: str, name: str) -> str:
    """The first line of a plug-in's docstring, read from its file without running it; "" where there is none."""
    path = _folder(room) / f"{name.replace('-', '_')}.py"
    if not path.is_file():
        return ""
    said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return said.partition("\n")[0]


def source(room: str, name: str) -> str | None:
    """The text of a plug-in's file, without running it; None for one that lies elsewhere (a dotted or an announced name)."""
    path = Path(name) if name.endswith(".py") else _folder(room) / f"{name.replace('-', '_')}.py"
    return path.read_text("utf-8") if path.is_file() else None


def module(room: str, name: str) -> ModuleType:
    """The module of a name, a path to a .py file, or an importable dotted name.

    Raises UnknownName with the nearest known name. A file runs with the rights of whoever names it.
    """
    if name.endswith(".py"):
        return _from_file(Path(name))
    bare = name.replace("-", "_")
    if bare.isidentifier() and not bare.startswith("_") and (_folder(room) / f"{bare}.py").is_file():
        return importlib.import_module(f"{ROOMS[room]}.{bare}")
    announced = [e for e in entry_points(group=f"metasearch.{room}") if _spelled(e.name) == _spelled(name)]
    if len(announced) > 1:
        owners = ", ".join(sorted(e.value for e in announced))
        raise UnknownName(f"several installed packages announce the name '{name}' in {room}: {owners}. Uninstall all but one.")
    if announced:
        loaded = announced[0].load()
        return loaded if isinstance(loaded, ModuleType) else sys.modules[loaded.__module__]
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise  # the module is there, something that it imports is not
            raise UnknownName(f"no module is importable as '{name}'") from error
    raise UnknownName(f"'{name}' is no name in {room}.{did_you_mean(_spelled(name), names(room))}")


def loaded(room: str, name: str) -> ModuleType:
    """`module`, but whatever a user's file does while it is imported, the error is one UnknownName in words."""
    try:
        return module(room, name)
    except UnknownName:
        raise
    except (Exception, SystemExit) as error:
        raise UnknownName(reason(error, name)) from error


def reason(error: BaseException, file: str) -> str:
    """An error in words, with the line of the user's own file, if `file` is the path of one: "space.py:3: ValueError: ..."."""
    said = str(error) or type(error).__name__
    if not file.endswith(".py"):
        return said if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {said}"
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == Path(file).resolve()]
    return f"{file}:{lines[-1]}: {type(error).__name__}: {said}" if lines else said


class _FromSource(importlib.machinery.SourceFileLoader):
    """Reads the source each time: a byte-code cache goes by size and second, and a file may change twice in one."""

    def get_code(self, fullname: str) -> CodeType:
        return compile(Path(self.path).read_bytes(), self.path, "exec", dont_inherit=True)


_imported: dict[str, str] = {}  # name of a user's file as a module -> hash of its text and of what it needs


def renew(only: Path | None = None) -> None:
    """User's files that were edited since they were imported are read anew: called where a study begins, for a notebook is one
    process. What they import stays as it is, what they name in NEEDS counts as theirs. only: this file, no other."""
    for name, text in list(_imported.items()):
        loaded = sys.modules.get(name)
        file = None if loaded is None else Path(str(loaded.__file__))
        if file is None or ((only is None or file == only.resolve()) and file.is_file() and _text(file, loaded) != text):
            sys.modules.pop(name, None)
            del _imported[name]


def _text(file: Path, loaded: object) -> str:
    """The hash of a file and of all that its module NEEDS."""
    named = getattr(loaded, "NEEDS", ())
    found = [file]
    for name in named if isinstance(named, tuple | list) else ():
        if isinstance(name, str):
            found += needed(file.parent / name)
    return _hash("".join(_hash(one.read_bytes()) for one in found).encode())


def needed(path: Path) -> list[Path]:
    """The files that a path in NEEDS stands for: itself, or all below a folder, but for byte code, which Python writes anew."""
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [one for one in inside if one.is_file() and "__pycache__" not in one.parts]


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownName(f"there is no file {path}")
    path = path.resolve()
    unique = f"metasearch_user_{path.stem}_{_hash(str(path).encode())[:8]}"
    if unique in sys.modules:
        return sys.modules[unique]
    loader = _FromSource(unique, str(path))
    loaded = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(unique, loader, origin=str(path)))
    loaded.__file__ = str(path)
    sys.modules[unique] = loaded
    try:
        # what a user's file prints is talk, for stdout is for data; and where a study lives does not depend on what it does
        with contextlib.chdir("."), contextlib.redirect_stdout(sys.stderr):
            loader.exec_module(loaded)
    except BaseException:
        del sys.modules[unique]
        raise
    _imported[unique] = _text(path, loaded)
    return loaded


def find(room: str, name: str, base: type) -> type[Any]:
    """The one concrete subclass of `base` that the module of a name defines."""
    found = module(room, name)
    classes = [
        c for c in vars(found).values()
        if inspect.isclass(c) and issubclass(c, base) and c.__module__ == found.__name__ and not inspect.isabstract(c)
    ]
    if len(classes) != 1:
        listed = ", ".join(c.__name__ for c in classes) or "none"
        raise UnknownName(f"{found.__name__} must define exactly one {base.__name__}, but it defines {listed}")
    return classes[0]
