"""Data from folders and zip archives that nobody vouches for: read with limits, in memory, never unpacked to disk.

A checksum, where one is given, is compared first. A zip's directory is read whole and judged (numbers, sizes, ratio, names,
links, overlaps) before the first member is; a member is inflated to its declared size and not a byte further. Every refusal is
a DataError that names the file, the law and the value.
"""
from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import stat
import struct
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from PIL.Image import Image


class DataError(ValueError):
    """Data that will not be used: names the file, the law and the value."""


class DataMissing(DataError):
    """Data that are not there: says how to get them."""


@dataclass(frozen=True)
class Limits:
    """What is read at most. ratio: inflated bytes a compressed one, of a member; pixels: of one picture."""

    members: int = 1_000_000
    member_bytes: int = 2**31
    total_bytes: int = 2**34
    ratio: int = 200
    pixels: int = 2**26


LIMITS = Limits()


class Source(ABC):
    """A read-only tree of files; `names` are relative, with forward slashes, sorted. Use it in a `with`."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self.limits = limits

    @property
    @abstractmethod
    def names(self) -> list[str]: ...

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    @abstractmethod
    def close(self) -> None:
        """Gives back what the system lent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def opened(path: Path, limits: Limits = LIMITS) -> Source:
    """The files of a folder or of a zip archive. Raises DataError or DataMissing."""
    if path.is_dir():
        return Folder(path, limits)
    if path.is_file():
        return Zip(path, limits)
    raise DataMissing(f"there is no file or folder {path}")


def fingerprint(path: Path, sha256: str | None = None) -> str:
    """A hash that changes when the data may have: of a file its bytes, of a folder the names, sizes and times in it.

    Raises DataError if a checksum is given that is not the file's.
    """
    if path.is_dir():
        if sha256 is not None:
            raise DataError(f"{path}: a checksum is that of an archive, but this is a folder. Leave the sha256 away.")
        return Folder(path, LIMITS).listing()
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and actual != sha256.lower():
        raise DataError(f"{path}: its sha256 must be {sha256.lower()}, but is {actual}. Download it again.")
    return actual


def found(argument: str | None, inside: str, what: str, get: str) -> Path:
    """Where data are: the argument of a study, else `inside` the folder that METASEARCH_DATA names, else DataMissing with the
    way to get them."""
    if argument is not None:
        path = Path(argument).expanduser()
    elif home := os.environ.get("METASEARCH_DATA"):
        path = Path(home).expanduser() / inside
    else:
        raise DataMissing(f"{what} needs data: name them in the study's [tasks] table, or set METASEARCH_DATA to the folder that "
                          f"holds {inside}. {get}")
    if not path.exists():
        raise DataMissing(f"{what}: there is no {path}. {get}")
    return path


class Folder(Source):
    """The files below a folder; links must stay inside of it."""

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(path, limits)
        root = path.resolve()
        self._told: dict[str, tuple[int, int]] = {}
        for parent, folders, files in os.walk(root):
            folders.sort()
            for name in (*folders, *files):
                one = Path(parent, name)
                if one.is_symlink() and not one.resolve().is_relative_to(root):
                    raise DataError(f"{one}: links must stay inside {root}, but this one leads to {one.resolve()}")
            for name in files:
                one = Path(parent, name)
                facts = one.stat()
                if not stat.S_ISREG(facts.st_mode):
                    raise DataError(f"{one}: only plain files are read, but this is none")
                self._told[one.relative_to(root).as_posix()] = (facts.st_size, facts.st_mtime_ns)
                if len(self._told) > limits.members:
                    raise DataError(f"{root}: at most {limits.members} files are read, but there are more")
        self._root = root

    @property
    def names(self) -> list[str]:
        return sorted(self._told)

    def read(self, name: str) -> bytes:
        size, _ = self._told[name]
        if size > self.limits.member_bytes:
            raise DataError(f"{self._root / name}: a file may have {self.limits.member_bytes} bytes, but this has {size}")
        return (self._root / name).read_bytes()

    def close(self) -> None:
        pass

    def listing(self) -> str:
        """A hash of names, sizes and times."""
        return hashlib.sha256(json.dumps(sorted(self._told.items())).encode()).hexdigest()


@dataclass(frozen=True)
class _Member:
    name: str
    method: int
    crc: int
    packed: int
    size: int
    header: int  # where its local header begins


class Zip(Source):
    """The files in a zip archive: stored or deflated, at most 4 GiB, without passwords."""

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(path, limits)
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 22:
                raise DataError(f"{path} is no zip archive: it has fewer than 22 bytes")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._members = {m.name: m for m in self._judged(self._directory())}
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        return sorted(self._members)

    def close(self) -> None:
        self._bytes.close()

    def read(self, name: str) -> bytes:
        m = self._members[name]
        raw = self._bytes[(begin := self._begin(m)):begin + m.packed]
        if m.method == 8:
            inflate = zlib.decompressobj(-15)
            try:
                data = inflate.decompress(raw, m.size + 1)  # a byte more than declared is enough to know
            except zlib.error as error:
                raise self._refusal(m, f"cannot be inflated: {error}") from error
        else:
            data = raw
        if len(data) != m.size:
            has = "more" if len(data) > m.size else len(data)
            raise self._refusal(m, f"must have its declared {m.size} bytes, but has {has}")
        if zlib.crc32(data) != m.crc:
            raise self._refusal(m, f"must have the CRC {m.crc:08x}, but has {zlib.crc32(data):08x}")
        return data

    def _refusal(self, member: _Member, law: str) -> DataError:
        return DataError(f"{self.path}: member {member.name[:200]!r} {law}")

    def _directory(self) -> list[_Member]:
        """The central directory (PKWARE APPNOTE 4.3.12), read up to the limit of members."""
        data, broken = self._bytes, DataError(f"{self.path} is no whole zip archive: its directory cannot be read")
        end = data.rfind(b"PK\x05\x06", max(0, len(data) - 22 - 65535))
        if end < 0 or end + 22 > len(data):
            raise DataError(f"{self.path} is no whole zip archive: it has no directory at its end")
        count, size, at = struct.unpack_from("<10xHII", data, end)[:3]
        if end >= 20 and data[end - 20:end - 16] == b"PK\x06\x07":  # zip64: more than 65,535 members
            (record,) = struct.unpack_from("<8xQ", data, end - 20)
            if record + 56 > len(data) or data[record:record + 4] != b"PK\x06\x06":
                raise broken
            count, size, at = struct.unpack_from("<32xQQQ", data, record)
        if at + size > end:
            raise broken
        members: list[_Member] = []
        stop = at + size
        while at < stop:
            if len(members) >= self.limits.members:
                raise DataError(f"{self.path}: an archive may have {self.limits.members} members, but this has more")
            if at + 46 > stop or data[at:at + 4] != b"PK\x01\x02":
                raise broken
            made, flags, method, crc, packed, length, named, extra, comment, attributes, header = struct.unpack_from(
                "<4xHxxHHxxxxIIIHHHxxxxII", data, at)
            raw = data[at + 46:at + 46 + named]
            at += 46 + named + extra + comment
            try:
                name = raw.decode("utf-8" if flags & 0x800 else "cp437")
            except UnicodeDecodeError as error:
                raise broken from error
            member = _Member(name, method, crc, packed, length, header)
            kind = stat.S_IFMT(attributes >> 16) if made >> 8 in (3, 19) else 0  # made on Unix or macOS
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise self._refusal(member, "must be a plain file, but is a link or a device")
            if flags & 0x1:
                raise self._refusal(member, "must not be encrypted, but is")
            members.append(member)
        if at != stop or len(members) != count:
            raise broken
        return members

    def _judged(self, members: list[_Member]) -> list[_Member]:
        """The members that are files; DataError if one breaks a law, or all of them together do."""
        limits, total = self.limits, 0
        seen: set[str] = set()
        for m in members:
            parts = m.name.rstrip("/").split("/")
            if m.name.startswith("/") or "\\" in m.name or "\0" in m.name or ":" in parts[0] or {"", ".", ".."} & set(parts):
                raise self._refusal(m, "must have a plain relative path")
            if m.name in seen:
                raise self._refusal(m, "must be there once, but is there twice")
            seen.add(m.name)
            if m.method not in (0, 8):
                raise self._refusal(m, f"must be stored or deflated (methods 0, 8), but has method {m.method}")
            if m.size > limits.member_bytes:
                raise self._refusal(m, f"may have {limits.member_bytes} bytes, but declares {m.size}")
            if m.size > limits.ratio * max(m.packed, 1):
                raise self._refusal(m, f"may grow {limits.ratio} times when inflated, but from {m.packed} bytes to {m.size}")
            total += m.size
            if total > limits.total_bytes:
                raise DataError(f"{self.path}: all members together may have {limits.total_bytes} bytes, but declare more")
        end = 0
        for m in sorted(members, key=lambda m: m.header):
            if m.header < end:
                raise self._refusal(m, "must not overlap another member, but does")
            end = self._begin(m) + m.packed
            if end > len(self._bytes):
                raise self._refusal(m, f"must end inside the archive, but ends at byte {end} of {len(self._bytes)}")
        return [m for m in members if not m.name.endswith("/")]

    def _begin(self, m: _Member) -> int:
        """Where a member's data begin: behind its local header, whose name and extra field have lengths of their own."""
        if m.header + 30 > len(self._bytes) or self._bytes[m.header:m.header + 4] != b"PK\x03\x04":
            raise self._refusal(m, "must have a local header, but has none")
        named, extra = struct.unpack_from("<26xHH", self._bytes, m.header)
        return int(m.header + 30 + named + extra)


def picture(data: bytes, where: str, limits: Limits = LIMITS) -> Image:
    """A decoded PNG, JPEG or BMP picture. Raises DataError, also for one with more pixels than the limit, before decoding it."""
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is the stricter one
            opened = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP"))
        if opened.width * opened.height > limits.pixels:
            raise DataError(f"{where}: a picture may have {limits.pixels} pixels, but this has {opened.width}x{opened.height}")
        opened.load()
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise DataError(f"{where} is no picture that can be decoded: {error}") from error
    return opened
