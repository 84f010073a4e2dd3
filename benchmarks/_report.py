"""What all benchmarks share: one command line, a table for people, JSON lines for programs, and rows that survive a stop.

A benchmark is a file with a function that yields cases; a case measures when it is run and yields its rows:

    def cases(options: Options) -> Iterator[Case]:
        for ways in (5, 20):
            yield Case({"ways": ways}, lambda: [Row("sampling", ours=measure(ways), unit="ms", better="lower",
                                                    reference=1.2, reference_source="plain numpy, this run")])

    if __name__ == "__main__":
        sys.exit(benchmark(__file__, __doc__, cases, what=("all", "sampling")))

`ours` is computed in that run, a reference is either measured in the same run or a published number with paper and table.
Every row that ends is appended to RESULTS/NAME.jsonl (RESULTS is ./benchmark-results, or --results). With --resume, a case
that is whole in that file is not run again: its rows are shown from there and say so.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Condition = bool | int | float | str | None
ROOT = Path(__file__).resolve().parent.parent
SCHEMA = 2  # 1: `omp_threads` was called `threads`, and hid a condition of that name


@dataclass(frozen=True)
class Row:
    """One claim and its measurement. `ratio` is ours / reference; `better` says in which direction it should point.

    error: half the width of a 95 % interval of `ours`, if there is one. `conditions` are columns of their own in the JSON.
    """

    name: str
    ours: float
    reference: float | None = None
    reference_source: str | None = None
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"
    error: float | None = None
    conditions: Mapping[str, Condition] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return self.ours / self.reference if self.reference else None


@dataclass(frozen=True)
class Case:
    """What is measured in one go: `key` names it (with --resume a case with the same key and options is not run again).

    idle: parts of the key that change nothing in this case; its rows do not say them.
    """

    key: Mapping[str, Condition]
    run: Callable[[], Iterable[Row]]
    idle: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Options:
    """What the person asked for. `extra` holds a benchmark's own flags; they are part of a case's key, so name them there."""

    what: tuple[str, ...]
    seeds: int | None  # part of every case's key
    budget_minutes: float | None
    json: bool
    resume: bool
    results: Path
    extra: argparse.Namespace
    deadline: float  # time.monotonic() at which no further case begins; math.inf without --budget-minutes

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


def data_folder() -> Path | None:
    """The folder of the real data: METASEARCH_DATA, else ../shared/data beside the repository; None if there is none."""
    folder = Path(os.environ.get("METASEARCH_DATA") or ROOT.parent / "shared" / "data")
    return folder if folder.is_dir() else None


def benchmark(
    file: str,
    doc: str | None,
    cases: Callable[[Options], Iterable[Case]],
    *,
    what: Sequence[str] = (),
    default: Sequence[str] = (),
    seeds: int | None = None,
    arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a benchmark's cases and show their rows.

    what: the words that WHAT may be (empty: anything); default: those used without one; seeds: the number without --seeds.
    Returns the exit code: 0, 1 if a case raised, 2 for wrong usage, 130 when interrupted (what has ended is shown and kept).
    """
    name = Path(file).stem
    options = _options(name, doc, what, default, seeds, arguments, argv)
    kept = Kept(options.results / f"{name}.jsonl")
    shown: list[dict[str, Any]] = []
    not_run: list[str] = []
    failed = False

    def show(row: dict[str, Any]) -> None:
        shown.append(row)
        if options.json:
            print(json.dumps(row, allow_nan=False), flush=True)

    try:
        for case in cases(options):
            key = {**case.key, "seeds": options.seeds} if options.seeds is not None else dict(case.key)
            label = ", ".join(f"{k}={v}" for k, v in key.items())
            if options.resume and (old := kept.rows(key)):
                for kept_row in old:
                    show({**kept_row, "from_file": True})
                continue
            if options.seconds_left() <= 0:
                not_run.append(label)
                continue
            print(f"{name}: {label} ...", file=sys.stderr, flush=True)
            begin, ended = time.monotonic(), list[dict[str, Any]]()
            said = {k: v for k, v in key.items() if k not in case.idle}
            try:
                for row in case.run():
                    ended.append(_body(row, said, seconds=round(time.monotonic() - begin, 3)))
                    show(ended[-1])
            except BrokenPipeError:  # whoever reads stdout has seen enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            except Exception as error:
                failed = True
                print(f"{name}: {label} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            kept.append(key, ended)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; --resume goes on from {kept.path}", file=sys.stderr)
        _table(shown, options)
        return 130
    _table(shown, options)
    if not_run:
        print(f"{name}: the budget of {options.budget_minutes:g} minutes ended before: {'; '.join(not_run)}", file=sys.stderr)
    return 1 if failed else 0


def _options(
    name: str,
    doc: str | None,
    what: Sequence[str],
    default: Sequence[str],
    seeds: int | None,
    arguments: Callable[[argparse.ArgumentParser], None] | None,
    argv: Sequence[str] | None,
) -> Options:
    parser = argparse.ArgumentParser(
        prog=f"python benchmarks/{name}.py", description=doc, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"which part: {', '.join(what)}" if what else "which part")
    parser.add_argument("--seeds", type=positive(int), default=seeds, help="how many seeds (default: %(default)s)")
    parser.add_argument("--budget-minutes", type=positive(float), help="begin no further case after so many minutes")
    parser.add_argument("--json", action="store_true", help="one JSON object a row on stdout instead of the table")
    parser.add_argument("--resume", action="store_true", help="do not run again what is in the results file")
    folder = Path("benchmark-results")
    parser.add_argument("--results", type=Path, default=folder, help="where rows stay (default: %(default)s)")
    if arguments is not None:
        arguments(parser)
    given = parser.parse_args(argv)
    unknown = [w for w in given.what if what and w not in what]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}. Known: {', '.join(what)}")
    deadline = math.inf if given.budget_minutes is None else time.monotonic() + 60 * given.budget_minutes
    return Options(
        what=tuple(given.what or default), seeds=given.seeds, budget_minutes=given.budget_minutes, json=given.json,
        resume=given.resume, results=given.results, extra=given, deadline=deadline,
    )


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number, but got {text!r}") from None
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be a finite number above 0, but got {text}")
        return value

    return parse


def _body(row: Row, key: Mapping[str, Condition], *, seconds: float) -> dict[str, Any]:
    """The row as JSON: the fixed keys first, then conditions (those of the case's key too), then where and when."""
    fixed = {
        "name": row.name, "ours": _number(row.ours), "error": _number(row.error), "unit": row.unit, "better": row.better,
        "reference": _number(row.reference), "reference_source": row.reference_source, "ratio": _number(row.ratio),
    }
    conditions = {**key, **row.conditions}
    when = {"seconds": seconds, **machine(), "at": datetime.now(UTC).isoformat(timespec="seconds")}
    clash = (fixed.keys() | when.keys() | {"torch", "from_file"}) & conditions.keys()
    if clash:
        raise ValueError(f"a condition must not be named like a fixed key, but got {', '.join(sorted(clash))}")
    return {**fixed, **conditions, **when}


def _number(x: float | None) -> float | None:
    """JSON has no NaN and no infinity: they become null."""
    return None if x is None or not math.isfinite(x) else float(x)


_MACHINE: dict[str, Condition] = {}


def machine() -> Mapping[str, Condition]:
    """What a measurement depends on: machine, Python, threads and the code's version (with + if the tree has changes)."""
    if not _MACHINE:
        versions = {"torch": sys.modules["torch"].__version__} if "torch" in sys.modules else {}
        _MACHINE.update(
            schema=SCHEMA, cpu=_cpu(), cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            omp_threads=os.environ.get("OMP_NUM_THREADS"), python=platform.python_version(), code=_code(), **versions,
        )
    return _MACHINE


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _code() -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


class Kept:
    """The results file: one line a row, {"key": ..., "last": true at the end of a case, "row": ...}, appended and synced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole: dict[str, list[dict[str, Any]]] = {}
        for key, rows in self._read():
            self._whole[key] = rows

    def rows(self, key: Mapping[str, Condition]) -> list[dict[str, Any]]:
        return self._whole.get(_spelled(key), [])

    def append(self, key: Mapping[str, Condition], rows: Sequence[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"key": _spelled(key), "last": row is rows[-1], "row": row}, allow_nan=False) + "\n" for row in rows
        ]
        with self.path.open("a+b") as out:
            if out.tell() > 0:  # a line that a killed run left half written must not swallow the next one
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":
                    out.write(b"\n")
            out.write("".join(lines).encode())
            out.flush()
            os.fsync(out.fileno())

    def _read(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        if not self.path.is_file():
            return
        begun: dict[str, list[dict[str, Any]]] = {}
        for line in self.path.read_text().splitlines():
            try:
                entry = json.loads(line)
                key, last, row = entry["key"], entry["last"], entry["row"]
            except (ValueError, KeyError, TypeError):
                continue  # a torn last line of a run that was killed
            begun.setdefault(key, []).append(_as_now(row))
            if last:
                yield key, begun.pop(key)


def _as_now(row: dict[str, Any]) -> dict[str, Any]:
    """A row that an earlier version of this file wrote."""
    if row.get("schema") != 1:
        return row
    return {"omp_threads" if k == "threads" else k: v for k, v in row.items()}


def _spelled(key: Mapping[str, Condition]) -> str:
    return json.dumps(key, sort_keys=True)


_HIDDEN = {
    "name", "ours", "error", "unit", "better", "reference", "reference_source", "ratio", "from_file",
    "schema", "cpu", "cpus", "omp_threads", "python", "code", "torch", "at",
}


def _table(rows: Sequence[Mapping[str, Any]], options: Options) -> None:
    """The rows in columns on stdout; a condition that is the same in all rows goes below, like the sources."""
    if options.json or not rows:
        return
    names = list(dict.fromkeys(k for row in rows for k in row if k not in _HIDDEN and k != "seconds"))
    varying = [k for k in names if len({row.get(k) for row in rows}) > 1]
    sources = list(dict.fromkeys(row["reference_source"] for row in rows if row["reference_source"]))
    head = ["name", *varying, "ours", "", "reference", "ratio", "want", "s"]
    body = [
        [
            str(row["name"]), *(_cell(row.get(k)) for k in varying),
            _cell(row["ours"]) + (f" ± {row['error']:.2g}" if row["error"] is not None else ""), row["unit"],
            _cell(row["reference"]) + (f" [{sources.index(row['reference_source']) + 1}]" if row["reference_source"] else ""),
            "" if row["ratio"] is None else f"{row['ratio']:.3f}", row["better"],
            f"{row['seconds']:.1f}" + (" (file)" if row.get("from_file") else ""),
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    for line in [head, ["-" * w for w in widths], *body]:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    same = {k: rows[0].get(k) for k in names if k not in varying}
    if same:
        print("in all rows: " + ", ".join(f"{k}={_cell(v)}" for k, v in same.items()))
    for i, source in enumerate(sources, 1):
        print(f"[{i}] {source}")
    cpu, cpus, threads, python, code = (rows[0][k] for k in ("cpu", "cpus", "omp_threads", "python", "code"))
    print(f"{cpu}, {cpus} cpus, OMP_NUM_THREADS={threads}, Python {python}, code {code}")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
