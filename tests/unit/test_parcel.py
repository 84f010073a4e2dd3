"""Parcels: whole or not at all, damage is noticed, inheritance follows what moved."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metasearch.objectives import parcel

TENSORS = {"meta/net/cell.0/w": torch.arange(6.0).reshape(2, 3), "state/count": torch.tensor(3.0), "seed": torch.tensor([1, 2])}


def test_a_parcel_comes_back_bit_for_bit(tmp_path: Path) -> None:
    parcel.write(tmp_path / "5.safetensors", TENSORS, {"step": 5, "config": {"a": "é"}})
    tensors, facts = parcel.read(tmp_path / "5.safetensors")
    assert facts == {"step": 5, "config": {"a": "é"}}
    assert set(tensors) == set(TENSORS)
    assert all(torch.equal(tensors[k], v) and tensors[k].dtype == v.dtype for k, v in TENSORS.items())
    assert [p.name for p in tmp_path.iterdir()] == ["5.safetensors"], "no temporary file stays"


@pytest.mark.parametrize("harm", ["empty", "half", "last byte gone", "a flipped bit", "missing", "text"])
def test_a_damaged_parcel_is_refused_in_words(tmp_path: Path, harm: str) -> None:
    path = parcel.write(tmp_path / "5.safetensors", TENSORS, {"step": 5})
    body = path.read_bytes()
    flipped = bytearray(body)
    flipped[-3] ^= 16
    new = {"empty": b"", "half": body[: len(body) // 2], "last byte gone": body[:-1], "a flipped bit": bytes(flipped),
           "text": b"hello"}
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(new[harm])
    with pytest.raises(parcel.BadParcel, match=r"5\.safetensors"):
        parcel.read(path)


def test_the_newest_step_comes_first_by_number_not_by_spelling(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        parcel.write(tmp_path / f"{step}.safetensors", TENSORS, {"step": step})
    assert [p.stem for p in parcel.newest(tmp_path)] == ["100", "20", "5"]


def test_nan_facts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        parcel.write(tmp_path / "1.safetensors", TENSORS, {"score": float("nan")})
    assert not list(tmp_path.iterdir())


def _full(value: float, *shape: int) -> torch.Tensor:
    return torch.full(shape, value)


def test_an_inserted_layer_is_new_and_the_layers_behind_it_keep_their_weights() -> None:
    parents = {f"net/cell.{i}/w": _full(i, 2) for i in range(4)}
    fresh = {f"net/cell.{i}/w": _full(-1, 2) for i in range(5)}
    moved = {"cell.3": "cell.2", "cell.4": "cell.3"}  # a layer was inserted at 2
    found = parcel.inherit(parents, fresh, moved)
    assert [float(found[f"net/cell.{i}/w"][0]) for i in range(5)] == [0, 1, -1, 2, 3]


def test_a_prefix_is_a_whole_path_part() -> None:
    found = parcel.inherit({"net/cell.1/w": _full(1, 2), "net/cell.10/w": _full(10, 2)},
                           {"net/cell.2.op/w": _full(-1, 2), "net/cell.10/w": _full(-1, 2)}, {"cell.2": "cell.1"})
    assert float(found["net/cell.10/w"][0]) == 10


def test_only_tensors_of_the_same_shape_are_inherited() -> None:
    found = parcel.inherit({"net/a": _full(1, 2), "net/b": _full(1, 3)}, {"net/a": _full(-1, 2), "net/b": _full(-1, 2)}, {})
    assert float(found["net/a"][0]) == 1
    assert float(found["net/b"][0]) == -1
