"""Archives that mean harm, or are damaged, are refused in words before they cost memory; good ones are read."""
from __future__ import annotations

import binascii
import io
import os
import stat
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import task_data
from PIL import Image

from metasearch.tasks import _archive
from metasearch.tasks._archive import DataError, DataMissing, Limits


def _zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return path


def _raw(path: Path, members: list[tuple[str, bytes, int, int]], *, share: bool = False) -> Path:
    """A zip by hand: (name, deflated data, declared size, CRC); share: all members point to the first one's data."""
    body, directory = b"", b""
    for number, (name, packed, size, crc) in enumerate(members):
        told = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0x21, crc, len(packed), size, len(name), 0)
        at = 0 if share else len(body)
        if not share or number == 0:
            body += b"PK\x03\x04" + told + name.encode() + packed
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + told + struct.pack("<HHHII", 0, 0, 0, 0, at) + name.encode()
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    path.write_bytes(body + directory + end)
    return path


def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_good_archive_is_read(tmp_path: Path, method: int) -> None:
    members = {"a/b.txt": b"hello" * 9, "c": os.urandom(5000), "empty": b"", "ä/é.png": b"x"}
    with _archive.opened(_zip(tmp_path / "good.zip", {**members, "a/": b""}, method)) as source:
        assert source.names == sorted(members)
        assert {name: source.read(name) for name in source.names} == members


def test_an_archive_of_70000_members_is_read(tmp_path: Path) -> None:
    """More than 65,535 members: a zip64 directory."""
    with _archive.opened(_zip(tmp_path / "many.zip", {f"{n}": b"" for n in range(70_000)})) as source:
        assert len(source.names) == 70_000
        assert source.read("69999") == b""


def test_a_folder_is_read_like_an_archive(tmp_path: Path) -> None:
    (tmp_path / "p" / "a").mkdir(parents=True)
    (tmp_path / "p" / "a" / "b.txt").write_bytes(b"hello")
    (tmp_path / "p" / "alias").symlink_to(tmp_path / "p" / "a" / "b.txt")
    with _archive.opened(tmp_path / "p") as source:
        assert source.names == ["a/b.txt", "alias"]
        assert source.read("alias") == b"hello"


@pytest.mark.parametrize("name", [
    "/etc/passwd", "../up", "a/../../up", "a/./b", "a//b", "C:/x", "C:x", "a\\b", "..\\up",
])
def test_paths_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zip"
    _raw(path, [(name, _deflated(b"x"), 1, binascii.crc32(b"x"))])
    with pytest.raises(DataError, match="must have a plain relative path"):
        _archive.opened(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("thing")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="link or a device"):
        _archive.opened(tmp_path / "a.zip")


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "p" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="links must stay inside"):
        _archive.opened(tmp_path / "p")


def test_pipes_in_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    os.mkfifo(tmp_path / "p" / "pipe")
    with pytest.raises(DataError, match="plain files"):
        _archive.opened(tmp_path / "p")


def test_a_member_that_grows_too_much_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="may grow 200 times"):
        _archive.opened(_zip(tmp_path / "bomb.zip", {"zeros": bytes(10_000_000)}))


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    data = os.urandom(1000)
    members = [(f"m{n}", _deflated(data), len(data), binascii.crc32(data)) for n in range(3)]
    with pytest.raises(DataError, match="must not overlap"):
        _archive.opened(_raw(tmp_path / "a.zip", members, share=True))


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    member = ("same", _deflated(b"x"), 1, binascii.crc32(b"x"))
    with pytest.raises(DataError, match="there twice"):
        _archive.opened(_raw(tmp_path / "a.zip", [member, member]))


@pytest.mark.parametrize(("declared", "said"), [(10, "has more"), (4000, "has 3000")])
def test_a_member_with_another_size_than_declared_is_refused(tmp_path: Path, declared: int, said: str) -> None:
    data = os.urandom(3000)
    path = _raw(tmp_path / "a.zip", [("lie", _deflated(data), declared, binascii.crc32(data))])
    with _archive.opened(path) as source, pytest.raises(DataError, match=said):
        source.read("lie")


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a": os.urandom(1000)}, zipfile.ZIP_STORED)
    damaged = bytearray(path.read_bytes())
    damaged[500] ^= 1
    path.write_bytes(damaged)
    with _archive.opened(path) as source, pytest.raises(DataError, match="must have the CRC"):
        source.read("a")


def test_an_archive_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = _zip(tmp_path / "a.zip", {f"{n}": os.urandom(40) for n in range(5)}).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "cut.zip").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"no (whole )?zip archive"):
            _archive.opened(tmp_path / "cut.zip")


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """400 archives with a few bytes changed: either a DataError, or all that is read is as it was."""
    members = {f"{n}": os.urandom(60) + bytes(60) for n in range(4)}
    whole = _zip(tmp_path / "a.zip", members).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            damaged[at] = rng.integers(256)
        (tmp_path / "b.zip").write_bytes(damaged)
        try:
            with _archive.opened(tmp_path / "b.zip") as source:
                read = [source.read(name) for name in source.names]
        except DataError:
            continue
        assert set(read) <= set(members.values())


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a": b"x"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="must not be encrypted"):
        _archive.opened(path)


def test_an_unknown_packing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stored or deflated"):
        _archive.opened(_zip(tmp_path / "a.zip", {"a": b"x" * 100}, zipfile.ZIP_LZMA))


@pytest.mark.parametrize(("limits", "said"), [
    (Limits(members=3), "may have 3 members"), (Limits(member_bytes=50), "may have 50 bytes"),
    (Limits(total_bytes=300), "together"),
])
def test_limits_are_kept(tmp_path: Path, limits: Limits, said: str) -> None:
    path = _zip(tmp_path / "a.zip", {f"{n}": os.urandom(100) for n in range(4)})
    with pytest.raises(DataError, match=said):
        _archive.opened(path, limits)


def test_a_bomb_within_a_member_stops_at_the_declared_size(tmp_path: Path) -> None:
    """300 MB of zeros that declare 45 MB, which passes: reading must cost about that, not what is really in there."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join([*(packer.compress(bytes(10_000_000)) for _ in range(30)), packer.flush()])
    path = _raw(tmp_path / "bomb.zip", [("bomb", packed, 150 * len(packed), 0)])
    tracemalloc.start()
    try:
        with _archive.opened(path) as source, pytest.raises(DataError, match="has more"):
            source.read("bomb")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 150e6


def test_a_million_members_are_refused_at_little_cost(tmp_path: Path) -> None:
    entry = b"PK\x01\x02" + bytes(42)
    body = entry * 1_000_100
    path = tmp_path / "many.zip"
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1_000_100, 1_000_100, len(body), 0)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, len(body), 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(body + record + locator + end)
    with pytest.raises(DataError, match="members"):
        _archive.opened(path, Limits(members=100_000))


@pytest.mark.parametrize("side", [9_000, 12_000, 20_000])  # above our limit; where PIL warns; where PIL raises
def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(side: int, recwarn: pytest.WarningsRecorder) -> None:
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")  # 50 kB that would be 400 million pixels
    with pytest.raises(DataError, match=rf"{side}x{side}|pixels"):
        _archive.picture(file.getvalue(), "bomb.png")
    assert not recwarn.list


@pytest.mark.parametrize("spoil", [
    lambda data: b"", lambda data: data[:30], lambda data: data[:len(data) // 2], lambda data: b"GIF89a" + data,
    lambda data: data[:40] + b"\xff" * 9 + data[49:],
], ids=["empty", "header-only", "cut", "another-kind", "damaged"])
def test_a_spoilt_picture_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    data = task_data.png(np.random.default_rng(0).integers(0, 256, (30, 30), dtype=np.uint8))
    assert _archive.picture(data, "good").size == (30, 30)
    with pytest.raises(DataError, match=r"a\.png"):
        _archive.picture(spoil(data), "a.png")


def test_a_checksum_is_compared_first(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"no zip archive at all")
    with pytest.raises(DataError, match="sha256 must be"):
        _archive.fingerprint(path, "0" * 64)
    assert _archive.fingerprint(path, _archive.fingerprint(path).upper()) == _archive.fingerprint(path)
    with pytest.raises(DataError, match="folder"):
        _archive.fingerprint(tmp_path, "0" * 64)


def test_a_folders_fingerprint_follows_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    before = _archive.fingerprint(tmp_path)
    assert _archive.fingerprint(tmp_path) == before
    (tmp_path / "b").write_bytes(b"2")
    assert _archive.fingerprint(tmp_path) != before


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="there is no file or folder"):
        _archive.opened(tmp_path / "nothing")


def test_pickled_arrays_are_not_opened(tmp_path: Path) -> None:
    from metasearch.tasks.class_arrays import ClassArrays

    canary = tmp_path / "canary"

    class Harm:
        def __reduce__(self) -> object:
            return (Path.touch, (canary,))

    np.savez(tmp_path / "a.npz", images=np.array([Harm()], dtype=object))
    with pytest.raises(DataError, match="plain array"):
        ClassArrays(str(tmp_path / "a.npz"))
    assert not canary.exists()


@pytest.mark.parametrize(("arrays", "said"), [
    ({"pictures": np.zeros(3)}, "must hold `images`"), ({"images": np.zeros((3, 4, 8, 8, 3))}, "must be uint8"),
    ({"images": np.zeros((3, 4), np.uint8)}, "must be uint8"),
    ({"images": np.zeros((3, 4, 8, 8), np.uint8), "half": np.array(["train", "val"])}, "no column of train, val, test"),
])
def test_arrays_of_another_kind_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:  # type: ignore[type-arg]
    from metasearch.tasks.class_arrays import ClassArrays

    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=said):
        ClassArrays(str(tmp_path / "a.npz"))
