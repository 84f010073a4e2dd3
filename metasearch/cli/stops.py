"""`metasearch stop`: asks the process that runs a study to stop, from another terminal of its machine."""
from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from typing import Annotated

import typer

from metasearch.cli.failures import TRY_AGAIN, Refused, talk
from metasearch.cli.show import Json
from metasearch.cli.stored import Home, elsewhere, names
from metasearch.home import home_of, study_folder


def stop(
    name: Annotated[str, typer.Argument(help="The study's name.")],
    patience: Annotated[float, typer.Option(
        "--wait", min=0, help="Seconds for which its end is waited for; 0: only ask.",
    )] = 60.0,
    home: Home = None, as_json: Json = False,
) -> None:
    """Stops a study at its trials' next reports, as Ctrl-C in its own terminal does. Twice: at once. It can be resumed."""
    from metasearch import plugins
    from metasearch.driver.folder import held_by

    folder = study_folder(name, home_of(home))
    if not folder.is_dir():
        raise Refused(f"there is no study '{name}' in {folder.parent}.{plugins.did_you_mean(name, names(folder.parent))}")
    holder = held_by(folder)
    if holder is not None:
        _ask(name, holder)
        until = time.monotonic() + patience
        while (running := held_by(folder) == holder) and time.monotonic() < until:
            time.sleep(0.1)
        if running and patience:
            raise Refused(
                f"'{name}' was asked to stop {patience:g} s ago and waits for its trials' next reports. To end it at once "
                f"(nothing that is finished is lost): metasearch stop {name}", TRY_AGAIN,
            )
    if as_json:
        print(json.dumps({"study": name, "asked": holder, "stopped": holder is None or not running}))
    said = f"nobody runs '{name}'" if holder is None else f"'{name}' {'was asked to stop' if running else 'has stopped'}"
    talk(f"{said}; to go on: metasearch resume {name}{elsewhere(home)}")


def _ask(name: str, holder: str) -> None:
    """Raises Refused if the process is not one of this machine, or not of this user."""
    pid, _, host = holder.partition(" on ")
    if host != socket.gethostname() or not pid.isdecimal():
        raise Refused(
            f"'{name}' is run by process {holder}, not here. There: metasearch stop {name}. A job of Ray: ray job stop "
            f"metasearch-{name}; of Slurm: scancel JOB", TRY_AGAIN,
        )
    try:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(int(pid), signal.SIGTERM)
    except PermissionError:
        raise Refused(f"'{name}' is run by process {holder}, which belongs to another user", TRY_AGAIN) from None
