"""The wheel installs and runs outside the checkout."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(sysconfig.get_paths()["purelib"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout stays as it is; by the setuptools that is installed, without a network."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in ("metasearch", "search_spaces"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "-w", folder, source], check=True, timeout=250)
    (found,) = folder.glob("metasearch-*.whl")
    return found


def test_the_wheel_holds_the_packages_and_what_they_read(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    for file in ("metasearch/py.typed", "metasearch/studies/glyphs.toml", "metasearch/cli/runs.py", "search_spaces/sine_mlp.py"):
        assert file in held
    assert {name.partition("/")[0] for name in held if ".dist-info/" not in name} == {"metasearch", "search_spaces"}


def test_the_wheel_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    (own,) = (place / "lib").glob("python*/site-packages")
    (own / "borrowed.pth").write_text(f"{PACKAGES}\n")  # everything else is that of the environment that runs the tests
    python = place / "bin" / "python"
    offline = ["--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *offline, wheel], check=True, timeout=250)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which may name the checkout
    env["METASEARCH_HOME"] = str(tmp_path / "studies")

    def ran(*command: str) -> str:
        program = [str(place / "bin" / command[0]), *command[1:]]
        done = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = ran("python", "-c", "import metasearch, search_spaces; print(metasearch.__file__, search_spaces.__file__)")
    assert all(path.startswith(str(own)) for path in where.split())
    assert "maml-family" in ran("metasearch", "spaces", "list")
    assert "230" in ran("metasearch", "budget", "--total", "1000", "--top", "10", "--confidence", "0.9")
    ran("metasearch", "run", "sine", "--check", "driver.kind=local")
