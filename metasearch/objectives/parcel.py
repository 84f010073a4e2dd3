"""Checkpoints as parcels: one safetensors file of tensors with plain JSON facts in its header; nothing in it can run code.

A parcel is written to a temporary name, flushed to the disk and renamed, so that a parcel under its own name is whole; its
header holds a hash of its tensors, so that a flipped bit is noticed.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metasearch.crashpoint import crashpoint
from metasearch.space import origin

__all__ = ["BadParcel", "inherit", "newest", "read", "scored", "write"]


class BadParcel(Exception):
    """A file that is no whole parcel."""


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Writes atomically. facts: JSON without NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}  # safetensors refuses shared memory
    body = save(plain, {"facts": json.dumps(dict(facts), allow_nan=False), "sha256": _hash(plain)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    crashpoint("parcel.write")
    try:
        with temporary.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        crashpoint("parcel.rename")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    crashpoint("parcel.written")
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, facts). Raises BadParcel if the file is missing, torn or changed."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise BadParcel(f"{path} cannot be read as a parcel: {error}") from error
    if header.get("sha256") != _hash(tensors):
        raise BadParcel(f"{path} is damaged: its tensors do not have the hash that its header names")
    return tensors, json.loads(header["facts"])


def newest(folder: Path) -> list[Path]:
    """The parcels of a trial's folder, newest step first."""
    return sorted(folder.glob("*.safetensors"), key=lambda p: int(p.stem), reverse=True)


def scored(tensors: Mapping[str, Tensor], metrics: Mapping[str, float] | None) -> str:
    """Under which prefix a trial's weights are: "best/" where it went back to its best validated step, otherwise "meta/".

    metrics: of a trial that is done, which name the step that it went back to (older parcels of trials whose last step was the
    best hold weights of an earlier one beside it); None: of one that ended in the middle, where the best is what there is.
    """
    there = any(k.startswith("best/") for k in tensors)
    return "best/" if there and (metrics is None or "kept_step" in metrics) else "meta/"


def inherit(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], moved: Mapping[str, str]) -> dict[str, Tensor]:
    """`wanted`, with every tensor replaced by the parent's of the same key and shape.

    moved: path prefixes of the child -> those of the parent ({"cell.4": "cell.3"}): a key's part "cell.4" or "cell.4.op" is
    looked up under the parent's path; what came newly to a place that the parent's part left inherits nothing.
    """
    result = {}
    for key, own in wanted.items():
        source = _origin(key, moved)
        found = None if source is None else tensors.get(source)
        result[key] = found.to(own) if found is not None and found.shape == own.shape else own
    return result


def _origin(key: str, moved: Mapping[str, str]) -> str | None:
    parts = [origin(part, moved) for part in key.split("/")]
    return None if None in parts else "/".join(str(part) for part in parts)


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tuple(tensors[key].shape)} {tensors[key].dtype}".encode())
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()
