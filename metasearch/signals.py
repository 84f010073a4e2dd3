"""Which signals ask for an orderly end."""
from __future__ import annotations

import signal

__all__ = ["asking"]


def asking() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM, and SIGHUP of a terminal that is gone, unless that is ignored (`nohup`)."""
    hung_up = signal.getsignal(signal.SIGHUP) not in (signal.SIG_IGN, None)
    return (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hung_up else []))
