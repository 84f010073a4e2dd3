"""Over a network a ledger has no shared memory: what SQLite then needs, what a kill leaves behind, and who may read."""
from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metasearch import ledger as ledger_module
from metasearch import mounts
from metasearch.cli.failures import judged
from metasearch.ledger import Ledger, LedgerError, half_written, only_here
from metasearch.mounts import network_filesystem

STUDY = {"study": {"name": "t"}}
MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw - proc proc rw
40 22 0:40 / /shared rw - autofs systemd-1 rw,fd=30
41 40 0:50 / /shared rw,relatime shared:9 master:2 - nfs4 server:/export rw,vers=4.2
42 41 8:2 / /shared/scratch rw - xfs /dev/sdb1 rw
43 22 0:51 / /mnt/my\040disk\134x rw - cifs //server/x rw
44 22 0:52 / /mnt/s3 rw - fuse.s3fs s3fs rw
45 22 0:53 / /mnt/was rw - nfs server:/old rw
46 22 8:3 / /mnt/was rw - ext4 /dev/sdc1 rw
47 22 0:54 / /mnt/win rw - fuseblk /dev/sdd1 rw
48 22 0:55 / /mnt/plan rw - 9p host rw
"""


@pytest.mark.parametrize(("path", "kind"), [
    ("/", None), ("/home/me/studies", None), ("/shared", "nfs4"), ("/shared/studies/t/x.sqlite", "nfs4"), ("/shared2/x", None),
    ("/shared/scratch/x", None), ("/shared/scratchy", "nfs4"), ("/mnt/my disk\\x/a", "cifs"), ("/mnt/s3/a", "fuse.s3fs"),
    ("/mnt/was/a", None), ("/mnt/win/a", None), ("/mnt/plan/a", "9p"), ("/shared/scratch/../x", "nfs4"),
])
def test_the_mount_that_holds_a_path_says_what_it_is_on(path: str, kind: str | None) -> None:
    assert network_filesystem(path, MOUNTINFO) == kind


def test_a_system_that_does_not_tell_is_taken_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "nowhere")
    assert network_filesystem(tmp_path) is None
    assert network_filesystem("/shared", "what is this\n") is None


def test_a_link_is_where_it_leads(tmp_path: Path, network: Path) -> None:
    outside = tmp_path.with_name(f"{tmp_path.name}-link")
    outside.symlink_to(tmp_path)
    assert network_filesystem(outside / "t") == "nfs4"
    assert network_filesystem(outside.parent) is None


def test_no_memory_is_shared_over_a_network_and_any_machine_may_read(tmp_path: Path, network: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, STUDY) as ledger, Ledger.open(path) as reader:
        ledger.append("note", {"what": "a"})
        assert reader.last == 2
        assert {file.name for file in tmp_path.iterdir()} == {"ledger.sqlite", "ledger.sqlite-journal"}
        assert not only_here(path)
    assert not half_written(path)


KILLED = """
import os, pathlib, signal, sys
from metasearch import mounts
from metasearch.ledger import Ledger
mounts.MOUNTS = pathlib.Path(sys.argv[2])
ledger = Ledger.create(sys.argv[1], {"study": {"name": "t"}})
ledger._db.execute("PRAGMA wal_autocheckpoint = 0")
with ledger.together():
    for n in range(46):
        ledger.append("note", {"what": "x" * 300, "n": n})
for n in range(46, 50):
    ledger.append("note", {"what": "x" * 300, "n": n})
if "half" in sys.argv:
    ledger._db.execute("PRAGMA cache_size = 2")  # pages go into the file before the commit
    with ledger.together():
        for n in range(200):
            ledger.append("note", {"what": "never", "more": "y" * 3000})
        os.kill(os.getpid(), signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""
ROWS = 51


def killed(path: Path, mounted: Path, *words: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(mounted), *words], check=False)
    assert done.returncode == -signal.SIGKILL


def is_whole(ledger: Ledger) -> bool:
    return [row.body.get("n") for row in ledger.rows(after=1)] == [*range(ROWS - 1)]


def test_what_a_kill_in_the_middle_of_a_write_leaves_is_said_to_readers_and_taken_back_by_a_writer(
    tmp_path: Path, network: Path
) -> None:
    path = tmp_path / "t" / "ledger.sqlite"
    killed(path, network, "half")
    assert half_written(path)
    with sqlite3.connect(shutil.copy(path, tmp_path / "alone")) as alone:  # without its journal
        assert alone.execute("PRAGMA page_count").fetchone() != (path.stat().st_size // 4096,)
    alone.close()
    with pytest.raises(LedgerError, match=r"killed in the middle of a write.*metasearch resume t\. Every row") as error:
        Ledger.open(path)
    assert judged(error.value)[0] == 65
    with Ledger.open(path, write=True) as ledger:
        assert is_whole(ledger)
        assert not half_written(path)
        with Ledger.open(path) as reader:
            assert is_whole(reader)
        ledger.append("note", {"what": "it goes on"})


def test_a_reader_that_was_there_before_the_kill_hears_the_same(tmp_path: Path, network: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, STUDY), Ledger.open(path) as reader:
        for damaged in (b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7", b""):  # how a journal begins
            Path(f"{path}-journal").write_bytes(damaged + bytes(505) if damaged else b"")
            if damaged:
                with pytest.raises(LedgerError, match="killed in the middle of a write"):
                    list(reader.rows())
            else:
                assert [row.kind for row in reader.rows()] == ["study"]


@pytest.mark.parametrize("words", [(), ("half",)], ids=["between two writes", "in the middle of one"])
@pytest.mark.parametrize("there", ["disk", "network"])
def test_a_ledger_that_is_carried_to_another_file_system_becomes_what_that_one_needs(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch, there: str, words: tuple[str, ...]
) -> None:
    """With all its files, after a kill: rows that were in the WAL alone, half of a write in the journal."""
    disk = tmp_path.with_name(f"{tmp_path.name}-disk")
    begin, end = (tmp_path, disk) if there == "disk" else (disk, tmp_path)
    killed(begin / "t" / "ledger.sqlite", network, *words)
    shutil.copytree(begin / "t", end / "u")
    path = end / "u" / "ledger.sqlite"
    if there == "network":
        assert path.with_name("ledger.sqlite-wal").stat().st_size > 0
        assert only_here(path)
        with Ledger.open(path) as reader:  # the only machine that looks
            assert is_whole(reader)
        shutil.rmtree(end / "u")
        shutil.copytree(begin / "t", end / "u")
    with Ledger.open(path, write=True) as ledger:
        assert is_whole(ledger)
        ledger.append("note", {"n": ROWS - 1})
        assert only_here(path) is (there == "disk")
        assert path.with_name("ledger.sqlite-wal").exists() is (there == "disk")
    monkeypatch.setattr(mounts, "MOUNTS", Path("/proc/self/mountinfo"))
    with Ledger.open(path) as ledger:
        assert ledger.last == ROWS + 1


def test_a_wal_that_somebody_reads_stays_and_the_writer_is_told_to_try_again(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "LEASE", 0.2)
    monkeypatch.setattr(ledger_module, "PATIENCE", 0.2)
    path, told = tmp_path / "ledger.sqlite", mounts.MOUNTS
    monkeypatch.setattr(mounts, "MOUNTS", Path("/nowhere"))
    Ledger.create(path, STUDY).close()
    with Ledger.open(path) as reader:
        assert reader.last == 1
        monkeypatch.setattr(mounts, "MOUNTS", told)
        with pytest.raises(sqlite3.OperationalError, match="locked") as error:
            Ledger.open(path, write=True)
        assert judged(error.value)[0] == 75
        assert reader.last == 1
    Ledger.open(path, write=True).close()
    assert not only_here(path)


def test_a_reader_that_is_slow_with_a_row_holds_up_no_writer(
    tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that sends rows to a server, say: as long as a statement goes on, nothing can be committed."""
    monkeypatch.setattr(ledger_module, "LEASE", 0.3)
    monkeypatch.setattr(ledger_module, "PATIENCE", 0.3)
    monkeypatch.setattr(ledger_module, "PAGE", 4)
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, STUDY) as ledger, Ledger.open(path) as reader:
        for n in range(9):
            ledger.append("note", {"n": n})
        rows = reader.rows(after=1)
        seen = [next(rows).body["n"]]
        ledger.append("note", {"n": 9})
        assert seen + [row.body["n"] for row in rows] == [*range(10)]


def test_a_writer_and_a_reader_of_another_process_wait_for_each_other(tmp_path: Path, network: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger.create(path, STUDY).close()
    code = (
        "import sys, pathlib; from metasearch import mounts; from metasearch.ledger import Ledger\n"
        "mounts.MOUNTS = pathlib.Path(sys.argv[2])\n"
        "ledger = Ledger.open(sys.argv[1], write=True)\n"
        "for n in range(80): ledger.append('note', {'what': 'x' * 5000})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path), str(network)])
    looks = 0
    with Ledger.open(path) as reader:
        while writer.poll() is None:
            found = [row.seq for row in reader.rows()]
            assert found == [*range(1, len(found) + 1)]
            looks += 1
        assert writer.returncode == 0
        assert reader.last == 81
    assert looks > 5


def test_locked_for_too_long_is_not_called_damaged(tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "PATIENCE", 0.2)
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, STUDY) as ledger, Ledger.open(path) as reader:
        ledger._db.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        for look in (lambda: [*reader.rows()], lambda: Ledger.open(path)):
            with pytest.raises(sqlite3.OperationalError, match="locked") as error:
                look()
            assert judged(error.value)[0] == 75
        assert time.monotonic() - began > 0.3
        ledger._db.execute("ROLLBACK")
        assert reader.last == 1


@pytest.mark.parametrize("part", ["wal", "journal"])
def test_what_is_left_of_a_ledger_is_not_taken_for_a_new_ones(tmp_path: Path, part: str) -> None:
    path = tmp_path / "ledger.sqlite"
    left = tmp_path / f"ledger.sqlite-{part}"
    left.write_bytes(b"\xd9\xd5\x05")
    with pytest.raises(LedgerError, match=rf"is missing, but .*sqlite-{part} holds writes.*backup"):
        Ledger.create(path, STUDY)
    left.write_bytes(b"")
    Ledger.create(path, STUDY).close()
