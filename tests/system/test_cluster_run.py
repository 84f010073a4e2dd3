"""The Slurm script and the pages' commands on a real Ray, each on a machine of its own made of namespaces: `ray stop` in there
stops nothing out here."""
from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metasearch.ledger import Ledger
from metasearch.testing.history import problems

ROOT = Path(__file__).parents[2]
NODES = Path(__file__).parent / "nodes.sh"
BIN = Path(sys.executable).parent
BLOCKS = [block for block in re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / "cluster.md").read_text(), re.M | re.S)
          if block.startswith("# run by a test\n")]


def possible() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    try:
        return subprocess.run([NODES, "true"], capture_output=True, timeout=60).returncode == 0
    except subprocess.TimeoutExpired:
        return False


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not possible(), reason="no namespaces may be made here (unshare, iproute2)")]


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="msn-", dir="/tmp") as short:  # a socket's path has at most 107 bytes
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "METASEARCH_", "SLURM_"))}
        yield {
            **kept, "HOME": str(tmp_path), "PATH": f"{BIN}:/usr/sbin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
            "RAY_TMPDIR": short, "METASEARCH_HOME": str(tmp_path / "studies"),
            "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        }


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[1][:40])
def test_the_commands_of_the_page_do_what_they_say(block: str, environment: dict[str, str], tmp_path: Path) -> None:
    command = [NODES, "bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (name,) = set(re.findall(r"name=(\S+)", block))
    with Ledger.open(tmp_path / "studies" / name / "ledger.sqlite") as ledger:
        found = [trial.status for trial in ledger.trials().values()]
    assert found == ["done"] * int(re.findall(r"budget.trials=(\d+)", block)[0])
    assert problems(tmp_path / "studies" / name) == []


# `srun` is all of Slurm that is stood in for: one task on each node, ended by SIGTERM, the exit code of the worst.
SRUN = """#!/bin/bash
while [ "$1" != ray ]; do shift; done
on-node-2 "$@" > {log}.2 2>&1 & second=$!
"$@" > {log}.1 2>&1 & first=$!
trap 'kill -KILL $first $second' TERM
wait $first; one=$?
wait $second; two=$?
exit $((one > two ? one : two))
"""
STUDY = """
name = "s"
space = "{here}/counting_space.py"
[method]
name = "{here}/counting.py"
steps = {steps}
seconds = 0.2
log = "{log}"
[budget]
trials = {trials}
[driver]
cpus = 1
[track]
enabled = false
"""


def submitted(environment: dict[str, str], tmp_path: Path, *, trials: int, steps: int) -> subprocess.Popen[str]:
    requeue = f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol\n'
    squeue = "#!/bin/sh\necho UNLIMITED\n"
    for name, body in (("srun", SRUN.format(log=tmp_path / "log")), ("scontrol", requeue), ("squeue", squeue)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(body)
        (tmp_path / "bin" / name).chmod(0o755)
    study = tmp_path / "study.toml"
    study.write_text(STUDY.format(here=Path(__file__).parent, log=tmp_path / "effects", trials=trials, steps=steps))
    slurm = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "1", "SLURM_SUBMIT_DIR": str(ROOT),
        "METASEARCH_GRACE": "3", "METASEARCH_ENV": str(BIN.parent), "PATH": f"{tmp_path / 'bin'}:{environment['PATH']}",
    }
    script = ["bash", str(ROOT / "cluster" / "slurm" / "metasearch.sbatch"), "s", str(study)]
    options: dict[str, Any] = {"env": {**environment, **slurm}, "cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([NODES, *script], **options)


def said(tmp_path: Path, process: subprocess.Popen[str]) -> str:
    told = process.communicate(timeout=200)[1]
    logs = [path.read_text() for path in sorted(tmp_path.glob("log.?"))]
    return "\n".join([told, *logs])


def script_of(study: Path) -> int:
    """The process of metasearch.sbatch with this study, seen from out here."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdecimal() else []
            if len(words) > 3 and words[1].endswith(b"metasearch.sbatch") and words[3] == bytes(study):
                return int(folder.name)
    raise AssertionError("metasearch.sbatch is not there")


def test_a_slurm_job_of_two_nodes_runs_its_study_on_both(environment: dict[str, str], tmp_path: Path) -> None:
    job = submitted(environment, tmp_path, trials=6, steps=10)
    told = said(tmp_path, job)
    assert job.returncode == 0, told
    with Ledger.open(tmp_path / "studies" / "s" / "ledger.sqlite") as ledger:
        assert [trial.status for trial in ledger.trials().values()] == ["done"] * 6
    assert problems(tmp_path / "studies" / "s") == []
    assert "Ray cluster is ready!" in told, "node 2 found the head, with its token"
    assert list((tmp_path / "studies" / ".slurm").iterdir()) == [], "the token is gone with the job"


def test_a_slurm_job_whose_time_is_over_goes_on_in_the_next_one(environment: dict[str, str], tmp_path: Path) -> None:
    job = submitted(environment, tmp_path, trials=8, steps=40)
    end = time.monotonic() + 120
    effects = tmp_path / "effects"
    while not effects.exists() or len(effects.read_text().splitlines()) < 3:
        assert time.monotonic() < end, said(tmp_path, job)
        assert job.poll() is None, said(tmp_path, job)
        time.sleep(0.2)
    os.kill(script_of(tmp_path / "study.toml"), signal.SIGUSR1)
    told = said(tmp_path, job)
    assert job.returncode == 143, told
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
    job = submitted(environment, tmp_path, trials=8, steps=40)
    told = said(tmp_path, job)
    assert job.returncode == 0, told
    with Ledger.open(tmp_path / "studies" / "s" / "ledger.sqlite") as ledger:
        assert [trial.status for trial in ledger.trials().values()] == ["done"] * 8
    assert problems(tmp_path / "studies" / "s") == []
