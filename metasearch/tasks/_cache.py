"""Decoded pictures are kept in files that all workers map: built once, written atomically, verified when opened.

A file is `NAME-KEY.safetensors` in $METASEARCH_CACHE, else $XDG_CACHE_HOME/metasearch, else ~/.cache/metasearch; KEY hashes the
source and everything that shapes the arrays, so that a changed source is another file. Deleting the folder is always safe.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]
KINDS: dict[str, np.dtype[Any]] = {"U8": np.dtype("uint8"), "I64": np.dtype("<i8"), "F64": np.dtype("<f8")}  # what is stored


class Kept(NamedTuple):
    """Arrays and the sha256 of their contents. Mapped ones are copy-on-write: a stray write never reaches the file."""

    arrays: Arrays
    digest: str


def folder() -> Path:
    """Where the cache is; read at every call, so that a test can move it."""
    if own := os.environ.get("METASEARCH_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metasearch"


def key(*told: object) -> str:
    """A hash of JSON values: everything that the arrays depend on."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]


def digest(arrays: Arrays) -> str:
    """sha256 over names, kinds, shapes and contents, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        total.update(array.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def text(value: object) -> Array:
    """A JSON value as an array, so that names can be kept beside pictures."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def told(array: Array) -> Any:
    """The JSON value that `text` made an array of."""
    return json.loads(array.tobytes())


def kept(name: str, key: str, make: Callable[[], Arrays]) -> Kept:
    """The arrays of a key: mapped if they are there and whole, otherwise made, and kept if the folder can be written to.

    Processes that want the same key at once wait for the first one. A damaged file is made again.
    """
    path = folder() / f"{name}-{key}.safetensors"
    if (found := _opened(path)) is not None:
        return found
    with _alone(path.with_suffix(".lock")) as writable:
        if not writable:
            made = make()
            return Kept(made, digest(made))
        if (found := _opened(path)) is not None:  # somebody else made it while we waited
            return found
        made = make()
        whole = digest(made)
        with contextlib.suppress(OSError):  # a full or read-only disk costs time, not the study
            _write(path, made, whole)
        found = _opened(path)
        return found if found is not None else Kept(made, whole)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Holds a lock that the kernel lets go of when its holder dies; yields False where nothing can be locked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        yield False
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks: two may build, the last rename wins, both are right
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield True
    finally:
        os.close(descriptor)


def _write(path: Path, arrays: Arrays, whole: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        os.close(descriptor)
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, metadata={"sha256": whole})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _opened(path: Path) -> Kept | None:
    """The mapped arrays of a file, or None if it is not there, cut short, or not what was written."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(100_000_000, os.fstat(file.fileno()).st_size - 8):
                return None
            header = json.loads(file.read(length))
        arrays: dict[str, Array] = {}
        for name, told in header.items():
            if name == "__metadata__":
                continue
            begin, end = told["data_offsets"]
            kind, shape = KINDS[told["dtype"]], tuple(told["shape"])
            if end - begin != kind.itemsize * int(np.prod(shape)):
                return None
            if end == begin:
                arrays[name] = np.zeros(shape, kind)
            else:
                arrays[name] = np.memmap(path, kind, mode="c", offset=8 + length + begin, shape=shape)
        whole = header["__metadata__"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Kept(arrays, whole) if digest(arrays) == whole else None
