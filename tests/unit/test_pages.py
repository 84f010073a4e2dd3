"""What the pages tell people to type exists: every command, option and key of README.md, docs/ and cluster/README.md."""
from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from metasearch import cli
from metasearch.driver.study import Study

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "cluster" / "README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
PROSE = {"is", "and", "itself", "has", "reads", "that"}  # of sentences about the program, not of its commands


def commands(page: Path) -> list[str]:
    """Every `metasearch WORDS` of a page: in its blocks a line, in its text between backticks."""
    text = page.read_text()
    blocks = "\n".join(body for language, body in FENCE.findall(text) if language in ("", "bash")).replace("\\\n", " ")
    lines = re.findall(r"^(?:[A-Z_]+=\S+ |\.venv/bin/)*metasearch ([a-z][^\n#|&)]*)", blocks, re.M)
    inline = re.findall(r"`(?:\S+=\S+ )*metasearch\s+([a-z][^`]*)`", FENCE.sub("", text))
    return [re.sub(r"\s+", " ", line).strip() for line in [*lines, *inline]]


def found(words: list[str]) -> Any:
    """The command that words name, as typer knows it."""
    command = get_command(cli.app)
    for word in words:
        inner = getattr(command, "commands", None)
        if inner is None:
            break
        assert word in inner, f"there is no command {word!r}"
        command = inner[word]
    return command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_of_a_page_exists(page: Path) -> None:
    for line in commands(page):
        try:
            words = shlex.split(line)
        except ValueError:
            words = line.split()
        if words[0] in PROSE:
            continue
        command = found([word for word in words if not word.startswith("-")])
        known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}
        used = {word.partition("=")[0].rstrip(".,:;") for word in words if re.match(r"--?[a-z]", word)}
        assert used <= known, f"{page.name}: metasearch {line}: no {used - known}"


def test_the_pages_were_really_read() -> None:
    said = {str(page.relative_to(ROOT)): commands(page) for page in PAGES}
    assert len(said["README.md"]) > 15
    assert "submit study.toml --address http://HOST:8265" in said["docs/launching.md"]
    told = {line.split()[0] for lines in said.values() for line in lines}
    assert set(get_command(cli.app).commands) <= told, "a command that no page tells of"  # type: ignore[attr-defined]


def test_the_study_of_the_readme_is_one_and_its_budget_says_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = [body for language, body in FENCE.findall((ROOT / "README.md").read_text()) if language == "toml"]
    study = Study.from_text(text, ["tasks.name=glyphs"])  # its data come along
    assert study.problems() == []
    (line,) = [line for line in commands(ROOT / "README.md") if line.startswith("budget")]
    assert cli.call(shlex.split(line)) == 0
    assert "trials needed" in capsys.readouterr().out


SPACES = [path for path in sorted((ROOT / "search_spaces").glob("[a-z]*.py")) if "metasearch run glyphs" in path.read_text()]


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_the_command_in_a_space_file_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_HOME", str(tmp_path))
    text = ast.get_docstring(ast.parse(path.read_text()), clean=False) or ""  # in which a backslash has joined its lines
    said = re.findall(r"^    metasearch (run glyphs .*)$", text, re.M)
    assert said
    for line in said:
        assert cli.call([*shlex.split(line), "--check"]) == 0, line


def test_the_tests_that_the_table_of_faults_names_are_there() -> None:
    """Of every row: in the files it names, a test whose name is the one that is quoted, `...` standing for what is left out."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", text, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 21))
    sources = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = 0
    for number, cell in rows:
        for part in cell.split(";"):
            files, _, quoted = part.partition(":")
            stems = re.findall(r"\btest_\w+", files)
            assert set(stems) <= sources.keys() or "kill test" in part, f"row {number}: {stems}"
            for quote in re.findall(r"`([^`]+)`", quoted):
                pattern = r"^(?:async )?def test_" + re.escape(quote).replace(re.escape("..."), r"\w*") + r"\("
                assert any(re.search(pattern, sources[stem], re.M) for stem in stems), f"row {number}: no {quote} in {stems}"
                named += 1
    assert named > 40
