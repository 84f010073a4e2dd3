"""A study as a job of a Ray cluster: it runs there, driver and all, and goes on when this machine is switched off.

    job = submit(study, address="http://head:8265")     # submitted, or found running, or found done
    code = follow(job, print)                           # its log, line by line, then the study's exit code

One study is one job: a second call finds the first. What travels is a folder with the study's file, its space's and its method's
files and what these need (travel.py); data stay where the cluster has them. What a job's environment holds can be read by
everybody who sees the job, so no secret goes into it. Ray's Jobs need `ray[default]` on the cluster.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metasearch.driver.lanes import authenticated, knock
from metasearch.driver.study import Study
from metasearch.driver.travel import packed
from metasearch.environment import environment
from metasearch.track.redact import is_secret

__all__ = ["Job", "follow", "secrets_here", "submit"]

ENTRY = "python -m metasearch run study.toml --submitted --address auto --no-progress"
TRAVELS = ("METASEARCH_HOME", "METASEARCH_DATA", "MLFLOW_TRACKING_URI")  # addresses and paths, as the cluster sees them
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
State = Literal["submitted", "running", "done"]


@dataclass(frozen=True)
class Job:
    """id: as Ray knows it (`ray job stop ID`). state: what this call found or did."""

    id: str
    state: State
    address: str | None
    study: str


def submit(study: Study, *, address: str | None = None, variables: Mapping[str, str] | None = None) -> Job:
    """Submits a study, unless it is there: a job that runs is answered with, and one that has done this very study.

    A job that failed or was stopped is submitted again, and goes on from its ledger. address: of Ray's dashboard
    ("http://head:8265"); None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this machine's. variables: of TRAVELS, as they are to be
    on the cluster.
    Raises ConnectionError if nobody answers, ValueError if another study of the name is running, or if files cannot travel.
    """
    wrong = sorted(set(variables or {}) - set(TRAVELS))
    if wrong:
        raise ValueError(f"{', '.join(wrong)} does not travel: a job's environment can be read by all who see the job.")
    with _client(address) as client:
        name, last = _last(client, study.name)
        if last is not None:
            same = (last.metadata or {}).get("metasearch.digest") == study.digest
            if last.status not in ENDED:
                if not same:
                    raise ValueError(f"another study '{study.name}' is running there as job {last.submission_id}. Give this one "
                                     f"another name (name=NAME), or stop that one: ray job stop {last.submission_id}")
                return Job(last.submission_id, "running", address, study.name)
            if same and last.status == "SUCCEEDED":
                return Job(last.submission_id, "done", address, study.name)
        with tempfile.TemporaryDirectory(prefix="ms-submit-") as folder:
            packed(study, Path(folder))
            return _submitted(client, name, study, folder, dict(variables or {}), address)


def follow(job: Job, say: Callable[[str], None]) -> int:
    """Says the job's log until it ends, and answers with the exit code of its `metasearch run`."""
    with _client(job.address) as client:
        asyncio.run(_told(client, job.id, say))
        while (info := client.get_job_info(job.id)).status not in ENDED:
            asyncio.run(asyncio.sleep(0.5))
        if info.driver_exit_code is not None:
            return int(info.driver_exit_code) % 256
        if info.status == "SUCCEEDED":
            return 0
        say(str(info.message or info.status))
        return 143 if info.status == "STOPPED" else 1


def secrets_here() -> list[str]:
    """Variables of this environment that trials or MLflow may need, and that must be set on the cluster by other means."""
    used = ("MLFLOW_", "AWS_", "AZURE_", "GOOGLE_", "METASEARCH_")
    names = [name for name in os.environ if name.startswith(used) and (is_secret(name) or name.endswith("_USERNAME"))]
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return sorted(names + (["MLFLOW_TRACKING_URI"] if holds_secret(uri) else []))


def holds_secret(uri: str) -> bool:
    """Is there a user or a password in a URI?"""
    return re.match(r"[a-z0-9+.-]*://[^/]*@", uri, re.IGNORECASE) is not None


@contextlib.contextmanager
def _client(address: str | None) -> Iterator[Any]:
    """Ray's client of its Jobs. Ray's own words for what can go wrong become ConnectionErrors with a way out."""
    named = {} if address is None else {"RAY_API_SERVER_ADDRESS": address}
    with authenticated(address), environment(named):
        from ray.job_submission import JobSubmissionClient

        where = address or "the address in RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or this machine"
        try:
            if address is not None and "://" not in address:
                knock(address)
            client = JobSubmissionClient(address)
        except Exception as error:
            raise ConnectionError(
                f"no Ray Jobs at {where}: {error} The dashboard must run (ray[default] on the head), at http://HEAD:8265 unless "
                "it was told otherwise. If it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or "
                "RAY_AUTH_TOKEN_PATH)."
            ) from error
        yield client


def _last(client: Any, study: str) -> tuple[str, Any]:
    """(the name of a new job of a study, the newest that is there or None). '@' is in no study's name."""
    first, known = f"metasearch-{study}", dict[int, Any]()
    for job in client.list_jobs():
        name, _, number = (job.submission_id or "").partition("@")
        if name == first and (not number or number.isdecimal()):
            known[int(number or 1)] = job
    newest = max(known, default=0)  # there may be gaps: jobs can be deleted
    return f"{first}@{newest + 1}" if newest else first, known.get(newest)


def _submitted(
    client: Any, name: str, study: Study, folder: str, variables: dict[str, str], address: str | None
) -> Job:
    told = {"metasearch.study": study.name, "metasearch.digest": study.digest}
    try:
        client.submit_job(
            entrypoint=ENTRY, submission_id=name, metadata=told,
            runtime_env={"working_dir": folder, "env_vars": {**variables, "METASEARCH_SUBMITTED": name}},
        )
    except RuntimeError as error:
        if "already" not in str(error):
            raise
        return Job(name, "running", address, study.name)  # somebody was faster
    return Job(name, "submitted", address, study.name)


async def _told(client: Any, job: str, say: Callable[[str], None]) -> None:
    rest = ""
    async for text in client.tail_job_logs(job):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            say(line)
    if rest:
        say(rest)
