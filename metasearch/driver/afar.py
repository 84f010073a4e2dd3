"""A study through Ray Client (ray://HOST:10001): its driver is an actor on the cluster, this process only looks on.

A client is no part of the cluster: it cannot hold the director beside the ledger, and what Tune calls back cannot reach it. So
everything that a driver does is done by an actor there, on the same folder: METASEARCH_HOME is on storage that this machine and
the nodes share. When this process ends, so does the actor; the study is then interrupted, as by any other kill, and resumes.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from metasearch.driver.lanes import connected
from metasearch.driver.status import Status
from metasearch.driver.study import Study
from metasearch.driver.travel import kept

__all__ = ["run_afar"]

Show = Callable[[Status], None]


def run_afar(
    study: Study, folder: Path, about: Mapping[str, Any], show: Show, work: type[Any],
    running: Callable[[Callable[[str], None]], AbstractContextManager[None]],
) -> Status:
    """Runs a study to its end on the cluster at its address. work: the actor's class, made from (study, folder, about), with
    `run() -> Status`, `last() -> Status | None` and `stop(reason)`. running(stop): a context in which a signal calls stop.

    Raises what the actor raised; ConnectionError if there is no Ray, or if the folder is not the same there as here.
    """
    with connected(study.driver) as ray:
        there = kept(study, folder).with_(["driver.address=auto"])
        made = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=3)(work).remote(there.to_json(), str(folder), dict(about))
        _must_be_shared(ray, made, folder)
        task = made.run.remote()
        try:
            with running(lambda reason: made.stop.remote(reason)):
                while not ray.wait([task], timeout=0.5)[0]:
                    status = ray.get(made.last.remote())
                    if status is not None:
                        show(status)
            found: Status = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        finally:
            ray.kill(made)
        show(found)
        return found


def _must_be_shared(ray: Any, actor: Any, folder: Path) -> None:
    mark = folder / f".seen-{os.getpid()}"
    mark.write_text("")
    try:
        if not ray.get(actor.sees.remote(str(mark))):
            raise ConnectionError(
                f"{folder} of this machine is not there on the cluster: through ray:// METASEARCH_HOME must be a folder that "
                "both share, at the same path. Where there is none: metasearch submit --address http://HEAD:8265"
            )
    finally:
        mark.unlink(missing_ok=True)
