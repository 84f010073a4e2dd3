"""Which signals ask for an orderly end, and who answers them."""
from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["asking", "kept"]


def asking() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM, and SIGHUP of a terminal that is gone, unless that is ignored (`nohup`)."""
    hung_up = signal.getsignal(signal.SIGHUP) not in (signal.SIG_IGN, None)
    return (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hung_up else []))


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """While Ray starts, which puts a handler of its own for SIGTERM in the place of ours, one that leaves by SystemExit.
    Afterwards ours is back, and answers a SIGTERM that came meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, left = signal.getsignal(signal.SIGTERM), False
    try:
        yield
    except SystemExit:
        left = True
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    if left:
        signal.raise_signal(signal.SIGTERM)
        raise SystemExit(128 + signal.SIGTERM)
