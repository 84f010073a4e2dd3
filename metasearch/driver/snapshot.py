"""A strategy's state every so many outcomes, so that a long study comes back without replaying all of it. No pickle.

It is a cache: a snapshot that cannot be read, or that is of another strategy or of another space, is left alone, and the whole
ledger is replayed.
"""
from __future__ import annotations

import base64
import json
import logging
import os
from pathlib import Path
from typing import Any

from metasearch.strategies import Strategy

__all__ = ["load_snapshot", "save_snapshot"]

log = logging.getLogger("metasearch.driver")


def save_snapshot(folder: Path, strategy: Strategy, seq: int) -> None:
    """Writes the strategy's state as of ledger row `seq`, if the strategy offers one."""
    state = strategy.state_dict()
    if state is None:
        return
    tensors: dict[str, Any] = {}
    body = {"strategy": _name(strategy), "space": _space(strategy), "seq": seq, "state": _plain(state, tensors)}
    if tensors:
        from safetensors.torch import save

        body["tensors"] = base64.b64encode(save(tensors)).decode()
    temporary = _path(folder).with_suffix(".new")
    temporary.write_text(json.dumps(body, allow_nan=False))
    os.replace(temporary, _path(folder))


def load_snapshot(folder: Path, strategy: Strategy) -> int:
    """Gives the strategy its newest state; the seq up to which the ledger is in it (0: there is none)."""
    if not _path(folder).is_file() or strategy.state_dict() is None:
        return 0
    try:
        body = json.loads(_path(folder).read_text())
        if (body["strategy"], body.get("space")) != (_name(strategy), _space(strategy)):
            return 0
        tensors: dict[str, Any] = {}
        if "tensors" in body:
            from safetensors.torch import load

            tensors = load(base64.b64decode(body["tensors"]))
        state, seq = _whole(body["state"], tensors), int(body["seq"])
    except Exception as error:  # whatever is wrong with a cache, the ledger has it all
        log.warning("the snapshot %s cannot be read (%s): replaying the whole ledger", _path(folder), error)
        return 0
    strategy.load_state_dict(state)
    return seq


def _path(folder: Path) -> Path:
    return folder / "strategy.json"


def _name(strategy: Strategy) -> str:
    return f"{type(strategy).__module__}.{type(strategy).__qualname__}"


def _space(strategy: Strategy) -> str | None:
    space = getattr(strategy, "space", None)
    return None if space is None else str(space.digest)


def _plain(value: Any, tensors: dict[str, Any]) -> Any:
    """JSON in which a tensor is {"$tensor": its key}."""
    if isinstance(value, dict):
        return {"$dict": [[key, _plain(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_plain(item, tensors) for item in value]
    if hasattr(value, "detach"):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().clone().contiguous()
        return {"$tensor": key}
    return value


def _whole(value: Any, tensors: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        return {key: _whole(item, tensors) for key, item in value["$dict"]}
    if isinstance(value, list):
        return [_whole(item, tensors) for item in value]
    return value
