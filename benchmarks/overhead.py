"""What a trial costs that does nothing: wall time a trial, 4 at a time on 2 cores, to the last outcome.

    python benchmarks/overhead.py                    plain Ray Tune twice, lanes with 200 and 2,000 trials
    python benchmarks/overhead.py lanes --repeats 5  lanes alone; the least disturbed of five

All rows of a run share one Ray, started before. Plain Ray Tune runs as its documentation shows it, once a function (a fresh actor
a trial) and once a class with reuse_actors. Lanes write the ledger (SQLite, a flush to the disk a trial) and their letters; the
clock starts before the director and the lanes do and stops at the last trial's row. `mlflow_lag_s`: seconds from then until
MLflow has everything, sent by a process of its own meanwhile.
"""
from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _report import Case, Options, Row, benchmark

HERE = Path(__file__).resolve().parent
CORES, AT_ONCE = 2, 4
FUNCTION = "ray.tune function trainable, default settings, this run"


def study(trials: int, *, mlflow: str | None) -> Any:
    from metasearch.driver.study import Study

    return Study.from_json({
        "name": "nothing", "space": str(HERE / "_nothing.py"), "method": {"name": str(HERE / "_nothing.py")},
        "budget": {"trials": trials}, "driver": {"kind": "ray", "lanes": AT_ONCE, "cpus": CORES / AT_ONCE},
        "track": {"enabled": mlflow is not None, "uri": mlflow},
    })  # fmt: skip


@contextlib.contextmanager
def one_ray() -> Iterator[None]:
    """The Ray of this run, with as many CPUs as the claim says."""
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=CORES, object_store_memory=100 * 2**20, **quiet)
    yield


def plain_tune(trainable: Any, trials: int, *, reuse: bool) -> float:
    """Seconds for `trials` trials of plain Ray Tune."""
    from ray import tune

    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": CORES / AT_ONCE}),
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(metric="score", mode="max", num_samples=trials, reuse_actors=reuse),
            run_config=tune.RunConfig(storage_path=folder, verbose=0, stop=None if not reuse else {"training_iteration": 1}),
        )
        began = time.monotonic()
        results = tuner.fit()
        seconds = time.monotonic() - began
    if results.num_errors or len(results) != trials:
        raise RuntimeError(f"plain Ray Tune ran {len(results)} of {trials} trials, {results.num_errors} of them with errors")
    return seconds


def function(config: dict[str, float]) -> None:
    from ray import tune

    tune.report({"score": config["x"]})


def class_trainable() -> Any:
    from ray import tune

    class Nothing(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, float]) -> None:
            self.x = config["x"]

        def step(self) -> dict[str, float]:
            return {"score": self.x}

        def reset_config(self, new_config: dict[str, float]) -> bool:
            self.setup(new_config)
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    return Nothing


def lanes(trials: int, *, mlflow: bool) -> dict[str, float]:
    """Seconds to the first and to the last outcome, and (with MLflow) until MLflow has everything."""
    from metasearch.driver.lanes import RayLanes
    from metasearch.ledger import Ledger
    from metasearch.testing.history import problems

    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "nothing"
        uri = f"sqlite:///{home}/mlflow.db" if mlflow else None
        wanted = study(trials, mlflow=uri)
        folder.mkdir()
        began, clock = time.monotonic(), time.time()
        with RayLanes(wanted, folder, {}) as session:
            follower = _follow(folder, uri) if uri is not None else None
            session.run(lambda status: None)
        ended = time.monotonic()
        with Ledger.open(folder / "ledger.sqlite") as ledger:
            ends = [row.at - clock for row in ledger.rows(kinds=["ended"])]
            last = ledger.last
        if (found := problems(folder)) or len(ends) != trials:
            raise RuntimeError(f"{len(ends)} of {trials} trials ended; {found}")
        seconds = {"first": min(ends), "last": max(ends), "all": ended - began}
        if follower is not None:
            seconds["lag"] = _caught_up(folder, last, follower) - (began + max(ends))
        return seconds


def _follow(folder: Path, uri: str) -> Any:
    from metasearch.track.outbox import start

    return start(folder, uri)


def _caught_up(folder: Path, last: int, follower: Any) -> float:
    """When (time.monotonic) MLflow had row `last`."""
    from metasearch.track.outbox import read_cursor

    while read_cursor(folder).seq < last:
        if follower.poll() is not None and read_cursor(folder).seq < last:
            raise RuntimeError((folder / "outbox.log").read_text()[-1000:])
        time.sleep(0.05)
    now = time.monotonic()
    follower.wait(60)
    return now


def cases(options: Options) -> Iterator[Case]:
    measured: dict[str, float] = {}
    plain, many, repeats = options.extra.trials, options.extra.many, options.extra.repeats
    if "function" in options.what:
        yield Case({"what": "function", "trials": plain}, lambda: tune_rows("function", plain, measured))
    if "class" in options.what:
        yield Case({"what": "class", "trials": plain}, lambda: tune_rows("class", plain, measured))
    if "lanes" in options.what:
        for trials in (200, many):
            yield Case(
                {"what": "lanes", "trials": trials, "repeats": repeats},
                lambda trials=trials: lane_rows(trials, repeats, measured),  # type: ignore[misc]
            )


def tune_rows(what: str, trials: int, measured: dict[str, float]) -> Iterator[Row]:
    with one_ray():
        seconds = plain_tune(function if what == "function" else class_trainable(), trials, reuse=what == "class")
    measured[what] = 1e3 * seconds / trials
    name = "Ray Tune, function" if what == "function" else "Ray Tune, class, reuse_actors"
    yield Row(
        name, ours=measured[what], unit="ms/trial", better="lower", reference=measured.get("function"),
        reference_source=FUNCTION if "function" in measured else None,
    )


def lane_rows(trials: int, repeats: int, measured: dict[str, float]) -> Iterator[Row]:
    with one_ray():
        runs = [lanes(trials, mlflow=False) for _ in range(repeats)]
        tracked = lanes(trials, mlflow=True)
    best = min(runs, key=lambda run: run["last"])
    common: dict[str, Any] = {
        "unit": "ms/trial", "better": "lower", "reference": measured.get("function"),
        "reference_source": FUNCTION if "function" in measured else None,
    }
    shown = ", ".join(f"{1e3 * run['last'] / trials:.1f}" for run in runs)
    steady = 1e3 * (best["last"] - best["first"]) / max(1, trials - 1)
    yield Row(
        "lanes, ledger on", ours=1e3 * best["last"] / trials, **common,
        conditions={"all_repeats": shown, "start_s": round(best["first"], 2), "after_start_ms": round(steady, 2)},
    )
    yield Row(
        "lanes, ledger and MLflow on", ours=1e3 * tracked["last"] / trials, **common,
        conditions={"start_s": round(tracked["first"], 2), "mlflow_lag_s": round(tracked["lag"], 1)},
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=int, default=200, help="of plain Ray Tune (default: %(default)s)")
    parser.add_argument("--many", type=int, default=2000, help="of the longer lanes run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="lanes runs; the least disturbed counts (default: %(default)s)")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a Ray of this run alone, for minutes
    what = ("function", "class", "lanes")
    sys.exit(benchmark(__file__, __doc__, cases, what=what, default=what, arguments=arguments))
