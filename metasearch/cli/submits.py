"""`metasearch submit`: a study as a job of a Ray cluster."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metasearch import plugins
from metasearch.cli import runs
from metasearch.cli.failures import Refused, Stopped, talk
from metasearch.cli.show import Json

if TYPE_CHECKING:
    from metasearch.driver.study import Study


def submit(
    study: runs.StudyWords = None,
    address: Annotated[str | None, typer.Option(
        help="Of Ray's dashboard: http://HEAD:8265.", envvar="RAY_API_SERVER_ADDRESS",
    )] = None,
    home: Annotated[str | None, typer.Option(
        help="Where studies live on the cluster's shared storage.", envvar="METASEARCH_HOME",
    )] = None,
    data: Annotated[str | None, typer.Option(help="Where the data are on the cluster.", envvar="METASEARCH_DATA")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow its log, and end with its exit code.")] = False,
    as_json: Json = False,
) -> None:
    """Runs a study as a job of a Ray cluster. Submitting a name again finds its job, or goes on with one that failed."""
    from metasearch.driver import submit as jobs

    wanted = _wanted(list(study or []))
    variables = _variables(home, data)
    for name in jobs.secrets_here():
        talk(f"{name} is set here and does not travel: if the study needs it, set it on the cluster's nodes (by a Kubernetes "
             "secret, or a file there)")
    job = jobs.submit(wanted, address=address, variables=variables)
    says = {
        "submitted": f"study '{wanted.name}' is submitted as job {job.id}",
        "running": f"study '{wanted.name}' is running there already, as job {job.id}",
        "done": f"study '{wanted.name}' is done already: job {job.id} ended well",
    }
    talk(says[job.state])
    code = None
    if wait:
        try:
            code = jobs.follow(job, talk)
        except Stopped:
            talk(f"the job goes on. To follow it again, say the same once more; to stop it: ray job stop {job.id}")
            raise
    elif job.state != "done":
        talk("to follow it, say the same once more with --wait")
    if as_json:
        print(json.dumps({"study": wanted.name, "job": job.id, "state": job.state, "address": address, "exit_code": code}))
    if code:
        raise Refused(f"job {job.id} ended with exit code {code}", code)


def _wanted(words: list[str]) -> Study:
    """The study, with everything right about it that can be known here: data and machines are the cluster's."""
    from metasearch.driver.study import Study, StudyError

    source = runs.source(words, "auto")
    found = Study.from_source(source)
    known = found.tasks is not None and found.tasks.name.replace("_", "-") in plugins.names("tasks")
    elsewhere = f"tasks.name = '{found.tasks.name}'" if known and found.tasks is not None else None
    problems = [words for words in found.problems() if elsewhere is None or not words.startswith(elsewhere)]
    if problems:
        raise StudyError(problems, source.where)
    return found


def _variables(home: str | None, data: str | None) -> dict[str, str]:
    """What goes into the job's environment; said, since it is this machine's unless it was given."""
    from metasearch.driver.submit import holds_secret

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    reachable = uri if uri.startswith(("http://", "https://")) and not holds_secret(uri) else None
    given = {"METASEARCH_HOME": home, "METASEARCH_DATA": data, "MLFLOW_TRACKING_URI": reachable}
    told = {name: value for name, value in given.items() if value}
    for name in ("METASEARCH_HOME", "METASEARCH_DATA"):
        if name in told and not Path(told[name]).is_absolute():
            raise Refused(f"{name} = {told[name]} must be an absolute path, as the cluster sees it")
    for name, value in told.items():
        talk(f"on the cluster {name} will be {value}")
    return told
