"""From a TOML file and what a person typed beside it to a plain table, and from pydantic's errors to words.

Everything is read with limits (1 MB, 32 levels), and every mistake says the file, the line, the key, the law, the value
and the way out.
"""
from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from metasearch.plugins import did_you_mean
from metasearch.track.redact import redact

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

__all__ = ["Source", "StudyError", "in_words", "overridden", "parse", "read"]

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
DATA = ("root", "path")  # what the arguments of tasks are called that say where data are
Path_ = tuple[str, ...]  # of keys

_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_DEEP_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_PART}[ \t]*+\.[ \t]*+){{{MAX_DEPTH}}}")


class StudyError(ValueError):
    """A study that cannot be; `problems` holds every mistake, each in one sentence or two."""

    def __init__(self, problems: list[str], where: str = "study") -> None:
        problems = [redact(p) for p in problems]
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{where} has {count}:\n" + "\n".join(f"  - {p}" for p in problems))
        self.problems = problems
        self.where = where


@dataclass(frozen=True)
class Source:
    """A table, where its keys were said ("study.toml:7" or "tasks.ways=20") and the overrides that could not be read."""

    table: dict[str, Any]
    where: str
    said: Mapping[Path_, str] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()

    def at(self, path: Path_) -> str:
        """Where the key (or the nearest table around it) was said."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.said:
                return self.said[path[:end]]
        return self.where


def read(path: Path, overrides: Iterable[str] = ()) -> Source:
    """The table of a study file. Raises StudyError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StudyError([f"{path} cannot be read: {error.strerror or error}"], str(path)) from None
    if len(raw) > MAX_BYTES:
        raise StudyError([f"{path} is larger than {MAX_BYTES:,} bytes; a study is a page of TOML"], str(path))
    if raw.startswith(b"\xef\xbb\xbf"):
        raise StudyError([f"{path}:1: begins with a byte order mark; save the file as UTF-8 without one"], str(path))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise StudyError([f"{path}:{line}: is not UTF-8 (byte {error.start}); save the file as UTF-8"], str(path)) from None
    return parse(text, overrides, where=str(path), folder=path.resolve().parent)


def parse(text: str, overrides: Iterable[str] = (), *, where: str = "study", folder: Path | None = None) -> Source:
    """The table of a study's text; its paths are made absolute, from `folder`."""
    table = _loads(text, where)
    _resolve(table, folder or Path.cwd())
    return overridden(Source(table, where, _lines(text, where)), overrides)


def overridden(source: Source, overrides: Iterable[str]) -> Source:
    """The source with `key=value` overrides: values are TOML, bare words strings; paths are of the current folder."""
    table, said, wrong = _copy(source.table), dict(source.said), list(source.wrong)
    for item in overrides:
        try:
            path, value = _override(item)
            _put(table, path, _resolved(path, value), item)
            said[path] = item
        except ValueError as error:
            wrong.append(str(error))
    return Source(table, source.where, said, tuple(wrong))


def _loads(text: str, where: str) -> dict[str, Any]:
    if deep := _DEEP_KEY.search(text):
        line = text.count("\n", 0, deep.start()) + 1
        raise StudyError([f"{where}:{line}: a key has more than {MAX_DEPTH} parts"], where)
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise StudyError([f"{where}: values are nested more than {MAX_DEPTH} levels deep"], where) from None
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        place = re.search(r"\s*\(at line (\d+), column (\d+)\)", str(error))
        spot, law = (f"{where}:{place[1]}", str(error).replace(place[0], "")) if place else (where, str(error))
        raise StudyError([f"{spot}: is not TOML: {law[:200]}"], where) from None
    if _depth(table) > MAX_DEPTH:
        raise StudyError([f"{where}: values are nested more than {MAX_DEPTH} levels deep"], where)
    return table


def _override(item: str) -> tuple[Path_, Any]:
    key, equals, text = item.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(re.fullmatch(r"[A-Za-z0-9_-]+", part) for part in path) or len(path) > MAX_DEPTH:
        raise ValueError(f"{item[:80]!r} is no override: write key=value, for instance tasks.ways=20 or budget.coverage=0.95")
    return path, _value(text.strip(), item)


def _value(text: str, item: str) -> Any:
    if len(text) > MAX_BYTES or "\n" in text or "\r" in text:
        raise ValueError(f"{item[:80]!r}: the value must be one line of TOML")
    try:
        found = _loads(f"value = {text}", item[:80])
        return found["value"] if set(found) == {"value"} else text
    except StudyError as error:
        if text[:1] in {'"', "'", "[", "{", ""}:
            raise ValueError(error.problems[0] if text else f"{item!r}: the value is missing") from None
        return text  # a bare word


def _put(table: dict[str, Any], path: Path_, value: Any, item: str) -> None:
    for depth, part in enumerate(path[:-1]):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ValueError(f"{item[:80]!r}: {'.'.join(path[: depth + 1])} is a value, not a table")
    table[path[-1]] = value


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in table.items()}


def _depth(table: object) -> int:
    level, depth = [table], 0
    while level and depth <= MAX_DEPTH:
        inner: list[Any] = []
        for value in level:
            inner += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        level, depth = inner, depth + 1
    return depth


def _resolve(table: dict[str, Any], folder: Path) -> None:
    """Makes the paths of the space's and the method's files and of the tasks' data absolute, so that workers and a later resume
    find them."""
    method = table.get("method")
    for owner, key in ((table, "space"), (method, "name")):
        if isinstance(owner, dict) and isinstance(owner.get(key), str) and owner[key].endswith(".py"):
            path = Path(owner[key]).expanduser()
            owner[key] = str(path if path.is_absolute() else (folder / path).resolve())
    tasks = table.get("tasks")
    while isinstance(tasks, dict):
        for key in DATA:
            if isinstance(tasks.get(key), str) and tasks[key] and not tasks[key].startswith("~"):  # ~: of whoever reads them
                tasks[key] = tasks[key] if Path(tasks[key]).is_absolute() else str((folder / tasks[key]).resolve())
        tasks = tasks.get("tasks")  # that are made of other ones


def _resolved(path: Path_, value: Any) -> Any:
    """The value of one override, with its paths absolute."""
    table: dict[str, Any] = {}
    _put(table, path, _copy(value) if isinstance(value, dict) else value, "")
    _resolve(table, Path.cwd())
    found: Any = table
    for part in path:
        found = found[part]
    return found


def _lines(text: str, where: str) -> dict[Path_, str]:
    """Where each key stands: good enough for messages (multi-line strings are not looked into)."""
    said: dict[Path_, str] = {}
    header: Path_ = ()
    for number, line in enumerate(text.splitlines(), 1):
        if match := re.match(r"\s*\[+\s*([^\]#]+?)\s*\]", line):
            header = _keys(match[1])
            said.setdefault(header, f"{where}:{number}")
        elif match := re.match(r"""\s*([A-Za-z0-9_."' -]+?)\s*=""", line):
            said.setdefault((*header, *_keys(match[1])), f"{where}:{number}")
    return said


def _keys(dotted: str) -> Path_:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


# -- pydantic's errors in words ---------------------------------------------------------------------------------------


def in_words(error: ValidationError, model: type[BaseModel], source: Source) -> list[str]:
    """Every mistake as "place: key law, but got value. Way out"."""
    said: list[str] = []
    for item in error.errors(include_url=False):
        path = tuple(str(part) for part in item["loc"])
        path, law = _law(path, item, model)
        sentence = f"{source.at(path)}: {'.'.join(path) or 'the study'} {law}"
        if sentence not in said:
            said.append(sentence)
    return said


def _law(path: Path_, item: Mapping[str, Any], model: type[BaseModel]) -> tuple[Path_, str]:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    got = f", but got {_short(value)}"
    if kind == "extra_forbidden":
        return path, "is no key of a study." + did_you_mean(path[-1], _known(model, path[:-1]))
    if kind == "missing":
        return path, "is missing."
    laws = {
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "greater_than": f"must be larger than {context.get('gt')}",
        "less_than_equal": f"must be at most {context.get('le')}",
        "less_than": f"must be less than {context.get('lt')}",
        "literal_error": f"must be one of {context.get('expected')}",
        "finite_number": "must be a finite number",
        "string_too_long": f"must have at most {context.get('max_length')} characters",
        "model_type": "must be a table",
        "bool_type": "must be true or false",
        "string_type": "must be text",
        "int_type": "must be a whole number",
        "int_from_float": "must be a whole number",
        "float_type": "must be a number",
    }
    if kind == "value_error":
        return path, f"{context.get('error', item['msg'])}."
    if kind == "literal_error" and isinstance(value, str):
        return path, laws[kind] + got + "." + _near_literal(value, context.get("expected", ""))
    return path, laws.get(kind, item["msg"][:1].lower() + item["msg"][1:]) + got + "."


def _near_literal(value: str, expected: str) -> str:
    hint = did_you_mean(value, re.findall(r"'([^']*)'", expected))
    return hint if hint.startswith(" Did you mean") else ""


def _known(model: type[BaseModel], path: Path_) -> list[str]:
    """The keys of the table at a path."""
    for part in path:
        named = {f.alias or name: f for name, f in model.model_fields.items()}
        annotation = named[part].annotation
        model = next(a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and hasattr(a, "model_fields"))
    return [f.alias or name for name, f in model.model_fields.items()]


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, dict) else "a table"
    return text if len(text) <= 80 else text[:77] + "..."
