"""What holds for all tests: no network, one thread, studies and caches under a temporary folder."""
from __future__ import annotations

import gc
import ipaddress
import os
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Before ray, mlflow and torch are imported, here and in the processes that tests start.
os.environ.update(
    OMP_NUM_THREADS="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
    RAY_AIR_NEW_OUTPUT="0",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    COLUMNS="120",
)
for _name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "METASEARCH_CRASH_AT", "FORCE_COLOR"):
    os.environ.pop(_name, None)

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    import torch

    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Thousands of tests and all modules live until the end: no garbage collector has to look at them again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side (`pytest -n 2 --dist loadgroup`), a file whose tests share a study, a server or a Ray runs in one process, so
    that there is one; all others are handed out test by test. (Marks do not group: pytest 9.2 has no node ids that xdist 3.8
    can write to, https://github.com/pytest-dev/pytest-xdist/issues/1386.)"""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class TogetherWhatShares(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if _shares(config.rootpath / file) else nodeid

    return TogetherWhatShares(config, log)


@cache
def _shares(file: Path) -> bool:
    return 'scope="module"' in file.read_text("utf-8")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pictures are decoded and glyphs are drawn once for the whole session (xdist's workers share the folder)."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "metasearch-cache"
    os.environ["METASEARCH_CACHE"] = str(cache)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_HOME", str(tmp_path / "studies"))


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder lies on NFS, as far as the system tells this process; a child is told by mounts.MOUNTS = this."""
    told = tmp_path.with_name(f"{tmp_path.name}.mountinfo")
    told.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:50 / {tmp_path} rw,relatime - nfs4 server:/export rw\n")
    monkeypatch.setattr("metasearch.mounts.MOUNTS", told)
    return told


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """A test that reaches out of this machine fails here, not on the day the other machine is down."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and self.type != socket.SOCK_DGRAM and not _is_here(address[0]):
            raise OSError(f"tests have no network, but this one wants to connect to {address}")
        connect(self, address)

    socket.socket.connect = local_only  # type: ignore[method-assign, assignment]
    yield
    socket.socket.connect = connect  # type: ignore[method-assign]


def _is_here(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("localhost", "")
    return address.is_loopback or address.is_private or address.is_unspecified


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with the real data (METASEARCH_DATA, or ../shared/data beside the checkout); skips where there is none."""
    folder = Path(os.environ.get("METASEARCH_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"the real data are not on this machine: {folder} is no folder (METASEARCH_DATA names it)")
    return folder
