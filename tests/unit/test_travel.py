"""A study that travels is the same study, with everything that it needs, and nothing from elsewhere."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metasearch.driver import travel
from metasearch.driver.study import Study
from metasearch.driver.travel import kept, packed, toml

SPACE = '''
import json
from pathlib import Path
from metasearch.space import Choice, Space

NEEDS = {needs}
WIDTHS = json.loads((Path(__file__).parent / "tables" / "widths.json").read_text())
SPACE = Space({{"width": Choice(tuple(WIDTHS))}})


def recipe(config, shape):
    raise ValueError("nobody asks")
'''


def written(folder: Path, needs: str = '("tables/widths.json",)', **changes: Any) -> Study:
    (folder / "tables").mkdir(parents=True)
    (folder / "tables" / "widths.json").write_text("[4, 8]")
    (folder / "tables" / "other.json").write_text("[]")
    (folder / "my_space.py").write_text(SPACE.format(needs=needs))
    (folder / "my_method.py").write_text("def method(study): ...\n")
    return Study.from_json({
        "name": "t", "space": str(folder / "my_space.py"), "budget": {"trials": 3},
        "method": {
            "name": str(folder / "my_method.py"), "quote": 'a "b" \\ \n\t\u00e9', "rates": [1e-05, 2.5],
            "deep": {"a": {"b": True}},
        },
        **changes,
    })  # fmt: skip


def test_a_study_that_was_packed_is_the_same_study(tmp_path: Path) -> None:
    study, there = written(tmp_path / "mine"), tmp_path / "there"
    there.mkdir()
    moved = packed(study, there)
    assert moved.digest == study.digest
    assert Study.from_toml(there / "study.toml") == moved
    assert moved.method.arguments == study.method.arguments
    assert moved.space().size == 2
    files = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert files == {"study.toml", "spaces/my_space.py", "spaces/tables/widths.json", "methods/my_method.py"}


def test_a_packed_study_finds_its_files_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    packed(written(tmp_path / "mine"), tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    study = Study.from_toml(tmp_path / "two" / "study.toml")
    assert study.space_name == str(tmp_path / "two" / "spaces" / "my_space.py")
    assert study.space().size == 2


@pytest.mark.parametrize(("needs", "said"), [
    ('("../secret.json",)', "does not"), ('("/etc/passwd",)', "does not"), ('("nowhere.json",)', "there is no"),
    ('"tables/widths.json"', "must be a tuple"), ('("link.json",)', "does not"),
])
def test_what_leads_out_of_the_folder_or_is_not_there_does_not_travel(tmp_path: Path, needs: str, said: str) -> None:
    study = written(tmp_path / "mine", needs)
    (tmp_path / "secret.json").write_text("[]")
    (tmp_path / "mine" / "link.json").symlink_to(tmp_path / "secret.json")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=said):
        packed(study, tmp_path / "there")


def test_a_folder_that_is_needed_travels_whole_and_too_much_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = written(tmp_path / "mine", '("tables",)')
    (tmp_path / "there").mkdir()
    packed(study, tmp_path / "there")
    assert sorted(path.name for path in (tmp_path / "there" / "spaces" / "tables").iterdir()) == ["other.json", "widths.json"]
    monkeypatch.setattr(travel, "MOST", 100)
    (tmp_path / "again").mkdir()
    with pytest.raises(ValueError, match="take more than"):
        packed(study, tmp_path / "again")


def test_files_are_kept_once_for_each_content_and_never_changed(tmp_path: Path) -> None:
    study, home = written(tmp_path / "mine"), tmp_path / "home" / "t"
    first = kept(study, home)
    assert first.digest == study.digest
    assert kept(study.with_(["budget.trials=9"]), home).space_name == first.space_name
    assert len(list((home / "files").iterdir())) == 1
    (tmp_path / "mine" / "tables" / "widths.json").write_text("[4, 8, 16]")
    second = kept(study, home)
    assert second.space_name != first.space_name
    assert (Path(first.space_name).parent / "tables" / "widths.json").read_text() == "[4, 8]"
    assert len(list((home / "files").iterdir())) == 2
    named = Study.from_json({"name": "t", "space": "sine-mlp", "tasks": {"name": "sinusoid"}, "budget": {"trials": 1}})
    assert kept(named, tmp_path / "other") == named
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("value", [
    "plain", 'quote " and \\ and \n', "\x00\x1f\x7f", "\u00e9\U0001f600", 0, -7, 2**62, 1e-300, 1e300, -0.5, 3.0, True, False,
    [], [1, "a", [2.5]], {"a": {"b": [1]}, "c d": "e"},
])
def test_what_is_written_as_toml_is_read_as_it_was(value: Any) -> None:
    import tomllib

    table = {"name": "t", "method": {"value": value, "odd key": 1}}
    assert tomllib.loads(toml(table)) == json.loads(json.dumps(table))
