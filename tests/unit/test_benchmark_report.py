"""The command line, rows and results that all benchmarks share."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import _report  # noqa: E402
from _report import Case, Options, Row, benchmark  # noqa: E402

Run = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a benchmark of two cases with --json; the exit code and the rows. `measured` counts how often each was run."""

    def run(*argv: str, measured: list[int] | None = None, fails: bool = False) -> tuple[int, list[dict[str, Any]]]:
        def measure(ways: int) -> Iterable[Row]:
            if measured is not None:
                measured.append(ways)
            yield Row("sampling", ours=ways / 2, unit="ms", better="lower", reference=2.0, reference_source="by hand")
            if fails and ways == 20:
                raise ZeroDivisionError("no")
            yield Row("memory", ours=float("nan"), conditions={"shots": 1})

        def cases(options: Options) -> Iterator[Case]:
            for ways in (5, 20):
                yield Case({"ways": ways}, lambda ways=ways: measure(ways))  # type: ignore[misc]

        code = benchmark("demo.py", "A demo.", cases, what=("all", "some"), default=("all",), seeds=3,
                         argv=[*argv, "--json", "--results", str(tmp_path)])
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_a_row_has_the_claim_the_reference_and_the_conditions(run: Run) -> None:
    code, rows = run("some")
    assert code == 0
    assert len(rows) == 4
    first = rows[0]
    expected = {
        "name": "sampling", "ours": 2.5, "reference": 2.0, "reference_source": "by hand", "ratio": 1.25, "better": "lower",
        "unit": "ms", "ways": 5, "seeds": 3,
    }
    assert {k: first[k] for k in expected} == expected
    assert first["python"] == ".".join(map(str, sys.version_info[:3]))
    assert rows[1]["ours"] is None  # JSON has no NaN
    assert rows[1]["ratio"] is None
    assert rows[1]["shots"] == 1


def test_resume_runs_only_what_is_not_there(run: Run, tmp_path: Path) -> None:
    measured: list[int] = []
    run(measured=measured)
    _, rows = run("--resume", measured=measured)
    assert measured == [5, 20]
    assert [row["ways"] for row in rows] == [5, 5, 20, 20]
    assert all(row["from_file"] for row in rows)
    run(measured=measured)  # without --resume everything is measured anew
    run("--resume", "--seeds", "4", measured=measured)  # another number of seeds is another measurement
    assert measured == [5, 20] * 3


def test_a_case_that_was_cut_off_is_run_again(run: Run, tmp_path: Path) -> None:
    """The file of a killed run may end in half a line."""
    run()
    file = tmp_path / "demo.jsonl"
    text = file.read_text()
    file.write_text(text[: len(text) - 40])
    measured: list[int] = []
    run("--resume", measured=measured)
    assert measured == [20]
    run("--resume", measured=measured)
    assert measured == [20]


def test_a_failing_case_is_told_and_the_others_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[int] = []
    code, rows = run(measured=measured, fails=True)
    assert code == 1
    assert measured == [5, 20]
    assert len(rows) == 3
    run("--resume", measured=measured)
    assert measured == [5, 20, 20]  # it is not in the file


def test_an_interrupt_keeps_what_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> Iterable[Row]:
        raise KeyboardInterrupt

    def cases(options: Options) -> Iterator[Case]:
        yield Case({"part": 1}, lambda: [Row("a", 1.0)])
        yield Case({"part": 2}, stop)

    assert benchmark("demo.py", None, cases, argv=["--results", str(tmp_path)]) == 130
    out, err = capsys.readouterr()
    assert "a " in out
    assert "--resume goes on" in err
    assert len((tmp_path / "demo.jsonl").read_text().splitlines()) == 1


def test_no_case_begins_after_the_budget(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[int] = []
    code, rows = run("--budget-minutes", "1e-9", measured=measured)
    assert (code, rows, measured) == (0, [], [])


def test_the_table_names_sources_and_common_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cases(options: Options) -> Iterator[Case]:
        for ways in (5, 20):
            yield Case({"ways": ways, "shots": 1}, lambda: [Row("x", 93.7, 93.0, "a paper, table 2", unit="%", error=0.4)])

    assert benchmark("demo.py", None, cases, argv=["--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "93.7 ± 0.4" in out
    assert "93 [1]" in out
    assert "[1] a paper, table 2" in out
    assert "in all rows: shots=1" in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nope"], "unknown: nope. Known: all, some"),
        (["--seeds", "0"], "above 0"),
        (["--budget-minutes", "inf"], "finite"),
        (["--sed"], "--sed"),
    ],
)
def test_wrong_usage_is_exit_code_2(run: Run, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*argv)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ours", "seconds", "at", "code", "cpus", "omp_threads", "torch", "from_file"])
def test_a_condition_cannot_hide_a_fixed_key_nor_be_hidden(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case({name: 1}, lambda: [Row("x", 1.0)])
    assert benchmark("demo.py", None, lambda options: [case], argv=["--results", str(tmp_path)]) == 1
    assert f"must not be named like a fixed key, but got {name}" in capsys.readouterr().err


def test_threads_are_the_rows_own_and_omp_threads_the_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(_report, "_MACHINE", {})
    case = Case({}, lambda: [Row("x", 1.0, conditions={"threads": 8})])
    assert benchmark("demo.py", None, lambda options: [case], argv=["--results", str(tmp_path), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["threads"], row["omp_threads"]) == (8, "1")


def test_rows_of_the_first_schema_are_read_with_the_machines_threads_under_their_new_name(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[int] = []
    run(measured=measured)
    file, old = tmp_path / "demo.jsonl", []
    for entry in map(json.loads, file.read_text().splitlines()):
        entry["row"].pop("omp_threads")
        old.append(json.dumps({**entry, "row": {**entry["row"], "schema": 1, "threads": "7"}}) + "\n")
    file.write_text("".join(old))
    _, rows = run("--resume", measured=measured)
    assert measured == [5, 20]
    assert [row["omp_threads"] for row in rows] == ["7"] * 4
    assert not any("threads" in row for row in rows)


def test_the_data_folder_is_what_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_DATA", str(tmp_path))
    assert _report.data_folder() == tmp_path
    monkeypatch.setenv("METASEARCH_DATA", str(tmp_path / "none"))
    assert _report.data_folder() is None
