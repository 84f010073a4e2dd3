"""One study in MLflow: finds or makes its experiment and runs by their tags, and applies changes to them, each once.

A run says in its tag `metasearch.seq` which ledger row it has seen last, and that tag is written after everything else: what
was interrupted is done again (MLflow drops a point that it has already), what is there is skipped. A run whose creation
was not confirmed is looked up before it is made again.
"""
from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metasearch.crashpoint import crashpoint
from metasearch.track.projection import SEQ, STUDY, Change, Key, Point, Projection, tag
from metasearch.track.store import PAGE, TrackingError, artifact_location, pages, said

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KEPT = (tag("best"), tag("pictures"))  # tags that say which files are stored
POINTS, NAMES = 800, 50  # points, and params or tags, in one call: MLflow takes 1,000 items, 100 params, 100 tags, 1 MB in all


@dataclass
class Known:
    """A run that is there: the last ledger row that it has seen, and how it stands (`end` in milliseconds)."""

    run_id: str
    seq: int = 0
    status: str = "RUNNING"
    end: int | None = None


@dataclass
class Wanted:
    """What a run should show in the end."""

    start: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    latest: dict[str, Point] = field(default_factory=dict)
    status: str | None = None
    end: int | None = None

    def add(self, change: Change) -> None:
        self.start = change.start if self.start is None else self.start
        self.tags |= change.tags | {SEQ: str(change.seq)}
        self.params |= change.params
        for point in change.points:
            seen = self.latest.get(point.key)
            if seen is None or (point.step, point.at, point.value) > (seen.step, seen.at, seen.value):
                self.latest[point.key] = point
        if change.status is not None:
            self.status, self.end = change.status, change.end


class Mirror:
    """The runs of one study. `open` before anything else; every method raises TrackingError."""

    def __init__(self, client: MlflowClient, uri: str, projection: Projection) -> None:
        self.client, self.uri, self.projection = client, uri, projection
        self.experiment = ""
        self.runs: dict[Key, Known] = {}
        self._unsure: set[Key] = set()  # runs whose creation failed, perhaps after they were made

    # -- finding --------------------------------------------------------------------------------------------------------

    def open(self, *, revive: Collection[Key] = ()) -> int:
        """Finds or makes the experiment, and finds the runs. revive: of which trials runs that somebody deleted are restored.
        Returns how many things were restored or, being copies, removed."""
        with said(self.uri, "opening the experiment"):
            self.experiment, restored = self._experiment()
            tidied = int(restored)
        with said(self.uri, "listing the runs"):
            found = self._found(deleted=bool(revive))
        self.runs = {}
        for key, runs in found.items():
            if key not in revive and all(run.info.lifecycle_stage != "active" for run in runs):
                continue
            first, *copies = sorted(runs, key=lambda r: (r.info.lifecycle_stage != "active", r.info.start_time, r.info.run_id))
            with said(self.uri, f"tidying the runs of {self.projection.run_name(key)}"):
                if first.info.lifecycle_stage != "active":
                    self.client.restore_run(first.info.run_id)
                    tidied += 1
                for copy in copies:
                    if copy.info.lifecycle_stage == "active":
                        self.client.delete_run(copy.info.run_id)
                        tidied += 1
            self.runs[key] = _known(first)
        return tidied

    def _experiment(self) -> tuple[str, bool]:
        """(its id, whether it had to be restored)."""
        from mlflow.exceptions import MlflowException

        name = self.projection.name
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                place = artifact_location(self.uri, name)
                return str(self.client.create_experiment(name, artifact_location=place, tags={tag("kind"): "study"})), False
            except MlflowException:
                experiment = self.client.get_experiment_by_name(name)  # another process was faster
                if experiment is None:
                    raise
        deleted = experiment.lifecycle_stage != "active"
        if deleted:
            # its name is blocked for ever; restoring it restores all of its runs, of which those of other studies stay deleted
            self.client.restore_experiment(experiment.experiment_id)
            for run in list(pages(self.client.search_runs, experiment_ids=[experiment.experiment_id], max_results=PAGE)):
                if run.data.tags.get(tag("study_id")) != self.projection.study_id:
                    self.client.delete_run(run.info.run_id)
        if experiment.tags.get(tag("kind")) != "study":
            self.client.set_experiment_tag(experiment.experiment_id, tag("kind"), "study")
        return str(experiment.experiment_id), deleted

    def _found(self, *, deleted: bool, only: Key | str = "all") -> dict[Key, list[Run]]:
        """The runs of this study by trial number; there may be several of one trial after lost replies."""
        from mlflow.entities import ViewType

        wanted = f"tags.`{tag('study_id')}` = '{self.projection.study_id}'"
        if only is STUDY:
            wanted += f" and tags.`{tag('kind')}` = 'study'"
        elif only != "all":
            wanted += f" and tags.`{tag('trial')}` = '{self.projection.run_name(int(only))}'"
        query = {
            "experiment_ids": [self.experiment], "filter_string": wanted, "max_results": PAGE,
            "run_view_type": ViewType.ALL if deleted else ViewType.ACTIVE_ONLY, "order_by": ["attributes.start_time ASC"],
        }
        found: dict[Key, list[Run]] = {}
        for run in pages(self.client.search_runs, **query):
            found.setdefault(_key(run), []).append(run)
        return found

    # -- writing --------------------------------------------------------------------------------------------------------

    def apply(self, key: Key, change: Change) -> None:
        """Brings one run up to `change.seq`; does nothing if it is there already."""
        name = self.projection.run_name(key)
        known = self.runs.get(key)
        with said(self.uri, f"writing {name}"):
            if known is None:
                known = self._made(key, name, change)
            if known.seq >= change.seq:
                return
            if change.status is not None and (change.status != known.status or change.end not in (None, known.end)):
                self._end(known, change)
            self._write(known.run_id, change)
        known.seq = change.seq

    def _made(self, key: Key, name: str, change: Change) -> Known:
        if key in self._unsure and (found := self._found(deleted=False, only=key).get(key)):
            self.runs[key] = _known(found[0])
            return self.runs[key]
        if change.start is None:
            raise TrackingError(
                f"the run {name} is gone from MLflow at {self.uri}. Make it again from the ledger: metasearch sync "
                f"{self.projection.name}", passing=False,
            )
        try:
            run = self.client.create_run(self.experiment, start_time=change.start, tags=self._identity(key), run_name=name)
        except Exception:
            self._unsure.add(key)  # it may be there: the reply was lost
            raise
        self.runs[key] = Known(run.info.run_id)
        crashpoint("outbox.made")
        return self.runs[key]

    def _identity(self, key: Key) -> dict[str, str]:
        """Tags by which a run is found again; they are there from its first moment on."""
        tags = {tag("study_id"): self.projection.study_id, tag("study"): self.projection.name}
        if key is STUDY:
            return {**tags, tag("kind"): "study"}
        parent = self.runs[STUDY].run_id
        return {**tags, tag("kind"): "trial", tag("trial"): self.projection.run_name(key), "mlflow.parentRunId": parent}

    def _end(self, known: Known, change: Change) -> None:
        if change.end is None:
            self.client.update_run(known.run_id, status=change.status)
        else:
            self.client.set_terminated(known.run_id, status=change.status, end_time=change.end)
            known.end = change.end
        known.status = str(change.status)

    def _write(self, run_id: str, change: Change) -> None:
        """Everything in as few calls as MLflow allows; the tag that says "seen" in the last one."""
        from mlflow.entities import Metric, Param, RunTag

        points = _cut([Metric(p.key, p.value, p.at, p.step) for p in change.points], POINTS)
        params = _cut([Param(k, v) for k, v in change.params.items()], NAMES)
        tags = _cut([RunTag(k, v) for k, v in change.tags.items() if k != SEQ] + [RunTag(SEQ, str(change.seq))], NAMES)
        calls = max(len(points), len(params), len(tags))
        for at in range(calls):
            last = at - (calls - len(tags))  # tags come last
            self.client.log_batch(
                run_id,
                metrics=points[at] if at < len(points) else [],
                params=params[at] if at < len(params) else [],
                tags=tags[last] if last >= 0 else [],
            )

    def settle(self) -> int:
        """Deletes second copies of runs whose creation was not confirmed and which came to be all the same."""
        removed = 0
        for key in self._unsure & self.runs.keys():
            with said(self.uri, f"looking for copies of {self.projection.run_name(key)}"):
                for run in self._found(deleted=False, only=key).get(key, []):
                    if run.info.run_id != self.runs[key].run_id:
                        self.client.delete_run(run.info.run_id)
                        removed += 1
        return removed

    # -- comparing ------------------------------------------------------------------------------------------------------

    def repair(self, wanted: Mapping[Key, Wanted]) -> tuple[set[Key], int]:
        """Compares every run with what it should show. Puts tags and ends right; deletes runs that the ledger does not know, and
        those whose params or points are wrong (MLflow cannot change them). Returns the keys to write again, and how many
        runs were wrong."""
        wrong = 0
        with said(self.uri, "comparing the runs with the ledger"):
            found = self._found(deleted=False)
            for key, runs in found.items():
                for run in runs:
                    own = key in self.runs and run.info.run_id == self.runs[key].run_id
                    if not own or key not in wanted or _spoilt(run, wanted[key]):
                        self.client.delete_run(run.info.run_id)
                        wrong += 1
                        if own:
                            del self.runs[key]
                    else:
                        wrong += self._mended(run, key, wanted[key])
        again = wanted.keys() - self.runs.keys()
        return again, wrong + len(again - found.keys())

    def _mended(self, run: Run, key: Key, wanted: Wanted) -> bool:
        """Puts tags and status right."""
        from mlflow.entities import RunTag

        right = wanted.tags | (self._identity(key) if key is STUDY or STUDY in self.runs else {})
        differ = [RunTag(k, v) for k, v in right.items() if run.data.tags.get(k) != v]
        extra = [k for k in run.data.tags if k.startswith(tag("")) and k not in right and k not in KEPT]
        for part in _cut(differ, NAMES):
            self.client.log_batch(run.info.run_id, tags=part)
        for name in extra:
            self.client.delete_tag(run.info.run_id, name)
        ended = wanted.status is not None and (run.info.status, run.info.end_time) != (wanted.status, wanted.end)
        if ended and not (wanted.end is None and run.info.status == wanted.status):
            self._end(self.runs[key], Change(status=wanted.status, end=wanted.end))
        else:
            ended = False
        return bool(differ or extra or ended)

    # -- files ----------------------------------------------------------------------------------------------------------

    def upload(self, files: Mapping[str, list[Path]], best: str) -> None:
        """Files as artifacts of the study's run, by folder; the tag `metasearch.best` is written when all are there."""
        run_id = self.runs[STUDY].run_id
        with said(self.uri, "storing the best trials' weights"):
            for folder, paths in files.items():
                for path in paths:
                    self.client.log_artifact(run_id, str(path), folder)
            self.client.set_tag(run_id, tag("best"), best)

    def uploaded(self) -> str | None:
        return self._told("best")

    def store(self, key: Key, folder: Path, name: str) -> None:
        """The files of a folder as artifacts of a run, below `name`; what is there under their names is replaced."""
        with said(self.uri, f"storing the {name} of {self.projection.run_name(key)}"):
            self.client.log_artifacts(self.runs[key].run_id, str(folder), name)

    def pictured(self) -> str | None:
        """What `set_pictured` said last."""
        return self._told("pictures")

    def set_pictured(self, told: str) -> None:
        with said(self.uri, "writing the study's run"):
            self.client.set_tag(self.runs[STUDY].run_id, tag("pictures"), told)

    def _told(self, name: str) -> str | None:
        with said(self.uri, "reading the study's run"):
            found: str | None = self.client.get_run(self.runs[STUDY].run_id).data.tags.get(tag(name))
            return found


def _cut(items: list[Any], size: int) -> list[list[Any]]:
    def parts() -> Iterator[list[Any]]:
        rest = iter(items)
        while part := list(islice(rest, size)):
            yield part

    return list(parts())


def _key(run: Run) -> Key:
    if run.data.tags.get(tag("kind")) == "study":
        return STUDY
    return int(run.data.tags[tag("trial")].rpartition("/")[2])


def _known(run: Run) -> Known:
    return Known(run.info.run_id, int(run.data.tags.get(SEQ, 0)), run.info.status, run.info.end_time)


def _spoilt(run: Run, wanted: Wanted) -> bool:
    """Is there something in it that cannot be changed any more?"""
    if run.data.params != wanted.params or run.info.start_time != wanted.start:
        return True
    here: Mapping[str, float] = run.data.metrics
    return here.keys() != wanted.latest.keys() or any(
        not math.isclose(here[k], p.value, rel_tol=1e-12, abs_tol=0.0) for k, p in wanted.latest.items()
    )
