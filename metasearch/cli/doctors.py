"""`metasearch doctor`: is everything ready for a study, and what to do about what is not."""
from __future__ import annotations

import json
from typing import Annotated

import typer

from metasearch.cli import runs
from metasearch.cli.failures import FAILURE, Refused
from metasearch.cli.show import Json, printable
from metasearch.cli.stored import Home
from metasearch.home import home_of
from metasearch.track.redact import redact


def doctor(
    study: runs.StudyWords = None,
    address: runs.Address = None,
    disk: Annotated[float, typer.Option(min=0, help="GB that must be free (metasearch plan says how much a study takes).")] = 1.0,
    home: Home = None, as_json: Json = False,
) -> None:
    """Is all ready? Ray, versions, GPUs, shared storage, MLflow, data, disk, clocks, here and on a cluster; and the study."""
    from metasearch.driver.doctor import examine
    from metasearch.driver.study import Study

    words = list(study or [])
    wanted = Study.from_source(runs.source(words)) if words else None
    rows, failed = [], 0
    for check in examine(wanted, home=home_of(home), address=address, disk=disk):
        rows.append(check.to_json())
        failed += check.state == "failed"
        if not as_json:
            todo = f" {check.todo}" if check.todo else ""
            line = f"{check.state:<8}{check.name}: {check.said.rstrip('.')}.{todo}"
            print(printable(redact(line).replace("\n", " ")), flush=True)
    if as_json:
        print(json.dumps(rows, indent=1))
    if failed:
        raise Refused(f"{failed} of {len(rows)} checks failed", FAILURE)
