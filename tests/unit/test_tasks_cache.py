"""The cache of decoded pictures is made once, never believed when damaged, never in the way."""
from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from metasearch.tasks import _cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METASEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> _cache.Arrays:
        self.calls += 1
        rng = np.random.default_rng(0)
        return {
            "images": rng.integers(0, 256, (50, 1, 9, 9), dtype=np.uint8), "offsets": np.arange(6),
            "none": np.zeros((0, 3), np.uint8), "classes": _cache.text(["a", "ü", ["x", 1]]),
        }


def _file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def test_arrays_are_made_once_and_then_mapped() -> None:
    make = Maker()
    first, second = (_cache.kept("things", "key", make) for _ in range(2))
    assert make.calls == 1
    assert first.digest == second.digest == _cache.digest(make())
    for name, array in make().items():
        assert np.array_equal(second.arrays[name], array)
        assert second.arrays[name].dtype == array.dtype
    assert isinstance(second.arrays["images"], np.memmap)
    assert _cache.told(second.arrays["classes"]) == ["a", "ü", ["x", 1]]


def test_another_key_is_another_file(folder: Path) -> None:
    make = Maker()
    _cache.kept("things", "one", make)
    _cache.kept("things", "two", make)
    assert make.calls == 2
    assert len(list(folder.glob("*.safetensors"))) == 2


def test_a_write_into_a_mapped_array_does_not_reach_the_file() -> None:
    make = Maker()
    _cache.kept("things", "key", make)
    mapped = _cache.kept("things", "key", make).arrays["images"]
    mapped[:] = 0
    assert np.array_equal(_cache.kept("things", "key", make).arrays["images"], make()["images"])


@pytest.mark.parametrize("at", ["header-length", "header", "first", "middle", "last"])
def test_a_flipped_byte_anywhere_makes_it_anew(folder: Path, at: str) -> None:
    make = Maker()
    whole = _cache.kept("things", "key", make).digest
    data = bytearray(_file(folder).read_bytes())
    length = int.from_bytes(data[:8], "little")
    middle = (8 + length + len(data)) // 2
    data[{"header-length": 0, "header": 20, "first": 8 + length, "middle": middle, "last": -1}[at]] ^= 0x10
    _file(folder).write_bytes(data)
    again = _cache.kept("things", "key", make)
    assert make.calls == 2
    assert again.digest == whole == _cache.kept("things", "key", make).digest
    assert make.calls == 2  # the new file is whole


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1])
def test_a_file_that_was_cut_is_made_anew(folder: Path, size: int) -> None:
    make = Maker()
    _cache.kept("things", "key", make)
    data = _file(folder).read_bytes()
    _file(folder).write_bytes(data[:size])
    assert np.array_equal(_cache.kept("things", "key", make).arrays["images"], make()["images"])
    assert len(_file(folder).read_bytes()) == len(data)


def test_nothing_half_written_stays_when_making_fails(folder: Path) -> None:
    def broken() -> _cache.Arrays:
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        _cache.kept("things", "key", broken)
    assert not list(folder.glob("*.part"))
    assert not list(folder.glob("*.safetensors"))


def test_a_full_disk_costs_the_cache_not_the_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_cache, "save_file", full)
    make = Maker()
    kept = _cache.kept("things", "key", make)
    assert np.array_equal(kept.arrays["images"], make()["images"])
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("place", ["a-file", "under-a-file", "/proc/metasearch"])
def test_a_folder_that_cannot_be_written_is_worked_around_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a-file").write_text("")
    chosen = {"a-file": tmp_path / "a-file", "under-a-file": tmp_path / "a-file" / "deep"}.get(place, Path(place))
    monkeypatch.setenv("METASEARCH_CACHE", str(chosen))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = _cache.kept("things", "key", make := Maker())
    assert np.array_equal(kept.arrays["images"], make()["images"])
    assert kept.digest == _cache.digest(make())
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_still_serves_what_is_in_it(folder: Path) -> None:
    make = Maker()
    _cache.kept("things", "key", make)
    folder.chmod(0o500)
    try:
        _cache.kept("things", "key", make)
        _cache.kept("things", "other", make)
    finally:
        folder.chmod(0o700)
    assert make.calls == 2


def test_who_wants_the_same_at_once_makes_it_once() -> None:
    """Threads here: the lock is one of open files, so they are to it what processes are."""
    make = Maker()

    def slow() -> _cache.Arrays:
        time.sleep(0.2)
        return make()

    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(lambda _: _cache.kept("things", "key", slow), range(8)))
    assert make.calls == 1
    assert len({k.digest for k in kept}) == 1


def test_a_process_killed_while_it_makes_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    program = (
        "import os\nfrom metasearch.tasks import _cache\n"
        "_cache.kept('things', 'key', lambda: os._exit(9))\n"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 9
    make = Maker()
    _cache.kept("things", "key", make)
    _cache.kept("things", "key", make)
    assert make.calls == 1


def test_the_place_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _cache.folder() == tmp_path / "cache"
    monkeypatch.delenv("METASEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _cache.folder() == tmp_path / "xdg" / "metasearch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert _cache.folder() == tmp_path / "home" / ".cache" / "metasearch"
