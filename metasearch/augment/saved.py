"""Policies as JSON: what `save` writes, `load` reads, on any machine with metasearch.

    {"format": 1, "kind": "sub-policies", "ranges": "autoaugment",
     "choices": [[{"operation": "rotate", "probability": 0.8, "magnitude": 0.6}]]}
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from typing import Any

from metasearch import plugins
from metasearch.augment.places import Places
from metasearch.augment.policy import (
    Policy,
    RandAugment,
    Schedule,
    Shared,
    Shuffled,
    Step,
    SubPolicies,
    TrivialAugment,
    UniformAugment,
)
from metasearch.home import home_of, homes, study_folder

__all__ = ["asked", "content_hash", "from_json", "keep", "load", "load_places", "named", "save", "to_json"]

FORMAT = 1
HASH = re.compile(r"[0-9a-f]{16}")
KINDS: dict[str, type[Policy] | type[Places]] = {
    "sub-policies": SubPolicies, "shuffled": Shuffled, "rand-augment": RandAugment, "trivial-augment": TrivialAugment,
    "uniform-augment": UniformAugment, "schedule": Schedule, "shared": Shared, "places": Places,
}
NAMES = {kind: name for name, kind in KINDS.items()}
_asked: ContextVar[dict[str, Policy | Places] | None] = ContextVar("asked", default=None)


def to_json(policy: Policy | Places) -> dict[str, Any]:
    """Plain JSON that says everything about a policy, or about policies at their places."""
    return {"format": FORMAT, **_told(policy)}


def from_json(told: Mapping[str, Any]) -> Policy | Places:
    """Raises ValueError (law, value, nearest known name) for what describes no policy."""
    if told.get("format") != FORMAT:
        raise ValueError(f"a policy's format must be {FORMAT}, but is {told.get('format')!r}")
    found: Policy | Places = _built({k: v for k, v in told.items() if k != "format"})
    return found


def save(policy: Policy | Places, path: str | Path) -> Path:
    path = Path(path).expanduser()
    path.write_text(json.dumps(to_json(policy), indent=1, allow_nan=False) + "\n", "utf-8")
    return path


def load(path: str | Path) -> Policy:
    """The policy in a JSON file: `policy(images, generator)` augments pictures of one's own. Of a place, it is the policy alone:
    what lies around pictures there is for the caller to say, `fill=load_places(path).fill`.

    Raises ValueError for a file that holds no policy; of policies at several places it names them: see `load_places`.
    """
    found = _read(path)
    if isinstance(found, Policy):
        return found
    if len(found.policies) == 1 and not found.new_classes:
        return next(iter(found.policies.values()))
    raise ValueError(f"{path} holds policies at the places {', '.join(found.policies)} of an episode, not one for pictures. "
                     f"Use load_places(path), and one of them.")


def load_places(path: str | Path) -> Places:
    """What a JSON file says of the places of an episode. Raises ValueError for any other file."""
    found = _read(path)
    if isinstance(found, Places):
        return found
    raise ValueError(f"{path} holds a policy for pictures, without a place in an episode. Use load(path).")


def _read(path: str | Path) -> Policy | Places:
    path = Path(path).expanduser()
    try:
        told = json.loads(path.read_text("utf-8"))
        if not isinstance(told, dict):
            raise ValueError(f"it must be a table, but is {type(told).__name__}")
        return from_json(told)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no policy: {error}") from error


def _told(value: object) -> Any:
    if isinstance(value, Step):
        return {"operation": value.operation, "probability": value.probability, "magnitude": value.magnitude}
    if isinstance(value, Policy | Places):
        if type(value) not in NAMES:
            raise ValueError(f"{type(value).__name__} cannot be saved: a file holds policies of these kinds: {', '.join(KINDS)}. "
                             f"Make it of them, or keep the code that makes it.")
        own = {f.name: getattr(value, f.name) for f in fields(value)}  # type: ignore[arg-type]  # all are dataclasses
        return {"kind": NAMES[type(value)], **{k: _told(v) for k, v in own.items() if v is not None and v != ()}}
    return [_told(one) for one in value] if isinstance(value, tuple) else value


def _built(told: Mapping[str, Any]) -> Any:
    name = told.get("kind", "")
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"there is no kind of policy '{name}'.{plugins.did_you_mean(str(name), KINDS)}")
    return _made(KINDS[name], {k: v for k, v in told.items() if k != "kind"}, str(name))


def _made(kind: type[Any], told: Mapping[str, Any], name: str) -> Any:
    known = {f.name for f in fields(kind)}
    for key in told:
        if key not in known:
            raise ValueError(f"a policy of the kind {name} has no '{key}'.{plugins.did_you_mean(key, known)}")
    try:
        return kind(**{key: _value(value) for key, value in told.items()})
    except TypeError as error:
        raise ValueError(f"the {name} is not as it should be: {error}") from error


def _value(told: Any) -> Any:
    if isinstance(told, list):
        return tuple(_value(one) for one in told)
    if isinstance(told, Mapping):
        return _built(told) if "kind" in told else _made(Step, told, "step")
    return told


# policies by name -------------------------------------------------------------------------------------------------------------


def content_hash(policy: Policy | Places) -> str:
    """16 hexadecimal digits that say everything about a policy: equal ones have equal hashes, on every machine."""
    text = json.dumps(to_json(policy), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keep(policy: Policy | Places, trial: str | None = None, *, home: Path | None = None) -> str:
    """Puts a policy where `named` finds it: under its content hash, which is returned, and under the trial "STUDY/NUMBER" that
    holds it, if one is given. Raises ValueError if another policy is kept under that trial's name: configs may mean it."""
    name = content_hash(policy)
    there = None if trial is None else _kept(trial, home)
    if there is not None and there.is_file() and content_hash(_read(there)) != name:
        raise ValueError(f"another policy is kept as '{trial}' (hash {content_hash(_read(there))}), which configs may mean. "
                         f"Remove {there}, or keep this one without a trial: it is named by its hash {name} then.")
    for each in (name, *([trial] if trial else [])):
        path = _kept(each, home)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        os.replace(save(policy, temporary), path)
    return name


def named(name: str, *, home: Path | None = None) -> Policy | Places:
    """The policy that `keep` put under a content hash or a trial "STUDY/NUMBER", so that a config may say it in a word.

    home: where studies live; None: where the study lives whose recipe asks, or METASEARCH_HOME, else ./studies. Raises
    ValueError for a name under which there is nothing, and for a file that is not what the hash says.
    """
    paths = [_kept(name, each) for each in (homes() if home is None else (home,))]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(f"no policy is kept as '{name}' in {' or '.join(str(path.parent) for path in paths)}. A trial's is kept "
                         f"by metasearch.policies.keep('STUDY/NUMBER'), which returns its hash.")
    found = _read(path)
    if "/" not in name and content_hash(found) != name:
        raise ValueError(f"{path} was changed: its content has the hash {content_hash(found)}")
    noted = _asked.get()
    if noted is not None:
        noted[name] = found
    return found


@contextlib.contextmanager
def asked() -> Iterator[dict[str, Policy | Places]]:
    """What is asked for by name inside: name -> policy."""
    noted: dict[str, Policy | Places] = {}
    token = _asked.set(noted)
    try:
        yield noted
    finally:
        _asked.reset(token)


def _kept(name: str, home: Path | None) -> Path:
    """A folder whose name no study can have."""
    study, slash, number = name.rpartition("/")
    folder = home_of(home) / ".policies"
    if slash and number.isascii() and number.isdecimal():
        return study_folder(study, folder) / f"{int(number)}.json"
    if not slash and HASH.fullmatch(name):
        return folder / f"{name}.json"
    raise ValueError(f"a kept policy is named by its hash of 16 hexadecimal digits or by its trial STUDY/NUMBER, but "
                     f"got {name!r}")
