"""The one-way order of the rooms, kept by reading every import; and what no file of the project may do."""
from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*(ROOT / "metasearch").rglob("*.py"), *(ROOT / "search_spaces").rglob("*.py")])

# A room may import itself and what is listed; "later" imports (inside a function) count as well, TYPE_CHECKING ones too.
GROUND = {  # stdlib, numpy
    "metasearch", "space", "budget", "records", "plugins", "crashpoint", "environment", "home", "graph", "mounts", "signals",
}
MATHEMATICS = {"tasks", "nets", "augment", "learners"}
ORDER: dict[str, set[str]] = {
    "metasearch": GROUND | {"ledger", "driver", "track", "trained", "hands"},  # the package re-exports a few names, lazily
    "space": {"plugins", "records"},
    "budget": set(),
    "records": set(),
    "plugins": set(),
    "crashpoint": set(),
    "environment": set(),
    "home": set(),
    "mounts": set(),
    "signals": set(),
    "graph": {"records"},
    "strategies": GROUND,
    "tasks": GROUND,
    "nets": GROUND,
    "augment": GROUND | {"tasks"},
    "learners": GROUND | {"tasks", "nets", "augment"},
    "measure": GROUND | MATHEMATICS,
    "objectives": GROUND | MATHEMATICS | {"measure"},
    "methods": GROUND | MATHEMATICS | {"objectives", "strategies"},
    "ledger": GROUND,
    "track": GROUND | {"ledger"},
    "draw": GROUND | {"ledger", "track", "trained"},
    "driver": GROUND | {"ledger", "track", "strategies", "methods", "objectives", "tasks", "measure"},
    "trained": GROUND | MATHEMATICS | {"objectives", "ledger", "track", "driver"},
    "policies": GROUND | MATHEMATICS | {"objectives", "strategies", "ledger", "driver"},
    "examples": GROUND | {"tasks"},
    "hands": GROUND | MATHEMATICS | {"objectives", "ledger", "driver", "trained", "examples"},
    "testing": GROUND | MATHEMATICS | {"objectives", "strategies", "methods", "ledger", "track", "driver"},
    "space_file": GROUND | {"testing"},
    "search_spaces": GROUND | {"nets", "augment", "learners", "objectives", "tasks"},
}
ORDER["cli"] = {room for room in ORDER if room != "search_spaces"}
ORDER["__main__"] = {"cli"}


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """metasearch.driver.tune -> driver; metasearch -> metasearch; search_spaces.sine_mlp -> search_spaces."""
    first, _, rest = module.partition(".")
    return (rest.partition(".")[0] or first) if first == "metasearch" else first


@cache
def imports(file: Path) -> tuple[str, ...]:
    """Everything that a file imports, wherever it stands in it, by absolute name."""
    return tuple(_imports(file))


def _imports(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text("utf-8"), str(file))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            base = node.module or ""
            if base in ("metasearch", "search_spaces"):
                yield from (f"{base}.{name.name}" for name in node.names)
            else:
                yield base
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__") and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_every_import_goes_down_the_house(file: Path) -> None:
    own = room_of(module_of(file))
    assert own in ORDER, f"metasearch/{own} is no room of the house: docs/structure.md and this test name them all"
    for name in imports(file):
        if name.partition(".")[0] == "metasearch":
            room = room_of(name)
            room = "metasearch" if room.startswith("_") or room not in ORDER else room
            assert room == own or room in ORDER[own], f"{file}: {own} must not import {name}"


def test_the_walk_sees_a_forbidden_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from metasearch.driver import tune\n    import ray.tune\n    from metasearch import ledger\n")
    assert list(imports(file)) == ["metasearch.driver", "ray.tune", "metasearch.ledger"]


@pytest.mark.parametrize(("package", "only"), [
    ("ray", {"driver"}),
    ("mlflow", {"track"}),
    ("optuna", {"strategies"}),
    ("typer", {"cli"}),
    ("rich", {"cli", "track"}),
    ("pydantic", {"driver"}),
    ("sqlite3", {"ledger", "track", "driver", "cli"}),
    ("search_spaces", {"search_spaces"}),
    ("networkx", {"track"}),
    ("torchvision", set()),
    ("pickle", set()),
    ("joblib", set()),
    ("higher", set()),
    ("torchopt", set()),
    ("kornia", set()),
])
def test_only_its_own_room_imports_a_package(package: str, only: set[str]) -> None:
    users = {room_of(module_of(file)) for file in FILES if any(name.partition(".")[0] == package for name in imports(file))}
    assert users <= only


@pytest.mark.parametrize("room", sorted(GROUND - {"metasearch"}))
def test_the_ground_floor_needs_the_standard_library_and_numpy_only(room: str) -> None:
    allowed = sys.stdlib_module_names | {"numpy", "metasearch"}
    assert {name.partition(".")[0] for name in imports(ROOT / "metasearch" / f"{room}.py")} <= allowed


@pytest.mark.parametrize("room", ["learners", "nets", "strategies"])
def test_mathematics_imports_no_clock_and_no_process(room: str) -> None:
    used = {name.partition(".")[0] for file in (ROOT / "metasearch" / room).glob("*.py") for name in imports(file)}
    assert not used & {"time", "datetime", "subprocess", "socket", "logging"}


def dangers(tree: ast.AST) -> Iterator[str]:
    """Calls that run code from data, or write where an archive says."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _called(node)
        owner = getattr(node.func.value, "id", "") if isinstance(node.func, ast.Attribute) else ""
        said = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in ("eval", "exec") and not isinstance(node.func, ast.Attribute):
            yield f"{name}() at line {node.lineno}"
        if name in ("extractall", "extract") or (owner, name) in {("os", "system"), ("os", "popen"), ("yaml", "load")}:
            yield f"{owner}.{name} at line {node.lineno}"
        if name in ("load", "loads") and owner in ("pickle", "cloudpickle", "joblib", "marshal", "dill"):
            yield f"{owner}.{name} at line {node.lineno}"
        if _constant(said.get("shell")) is True or _constant(said.get("weights_only")) is False:
            yield f"shell=True or weights_only=False at line {node.lineno}"
        if _constant(said.get("allow_pickle")) is True:
            yield f"allow_pickle=True at line {node.lineno}"
        if (owner, name) == ("torch", "load") and _constant(said.get("weights_only")) is not True:
            yield f"torch.load without weights_only=True at line {node.lineno}"


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_no_file_runs_code_from_data(file: Path) -> None:
    assert list(dangers(ast.parse(file.read_text("utf-8")))) == []


@pytest.mark.parametrize("code", [
    "eval('1')", "exec(x)", "pickle.load(f)", "torch.load(p)", "torch.load(p, weights_only=False)", "archive.extractall()",
    "yaml.load(x)", "subprocess.run(x, shell=True)", "np.load(p, allow_pickle=True)", "os.system('x')",
])
def test_the_search_for_dangers_finds(code: str) -> None:
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize("code", ["model.eval()", "torch.load(p, weights_only=True)", "json.load(f)", "regex.exec(x)"])
def test_the_search_for_dangers_leaves_harmless_calls_alone(code: str) -> None:
    assert not list(dangers(ast.parse(code)))


# -- what an import costs ---------------------------------------------------------------------------------------------


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


HEAVY = {"torch", "ray", "mlflow", "optuna", "pandas", "scipy", "matplotlib", "pyarrow"}


def test_importing_metasearch_takes_less_than_half_a_second() -> None:
    script = "import time; start = time.perf_counter(); import metasearch; print(time.perf_counter() - start)"
    runs = [subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True) for _ in range(3)]
    assert min(float(done.stdout) for done in runs) < 0.5


def test_importing_metasearch_imports_nothing_heavy() -> None:
    assert not modules_after("import metasearch") & (HEAVY | {"pydantic", "typer", "rich", "numpy"})


def test_the_ledger_imports_nothing_heavy() -> None:
    assert not modules_after("import metasearch.ledger") & HEAVY


def test_the_command_line_imports_nothing_heavy() -> None:
    assert not modules_after("import metasearch.cli") & (HEAVY | {"pydantic"})


def test_listing_a_room_imports_none_of_its_modules() -> None:
    found = modules_after("from metasearch import plugins\nfor room in plugins.ROOMS: plugins.names(room)")
    assert not found & HEAVY
    assert not {m for m in found if m.startswith(("metasearch.learners", "metasearch.strategies", "search_spaces."))}
