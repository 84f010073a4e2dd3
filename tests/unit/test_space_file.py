"""A user's space file: the template works, and everything that can be wrong with a file is told in words."""
from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from metasearch import plugins, space_file
from metasearch.plugins import UnknownName
from metasearch.space import Choice, Int, Repeat, Space
from metasearch.testing import spaces

BODY = '''
import torch
from metasearch.learners.maml import MAML
from metasearch.nets import Net
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.space import Choice, Float, Int, Repeat, Space

SPACE = Space({"width": Int(4, 8), "inner_lr": Float(0.01, 0.1, log=True)})

def recipe(config, shape):
    net = mlp(shape.x, shape.ways, hidden=[config["width"]])
    return Recipe(net, MAML(inner_lr=config["inner_lr"]), adam(0.001), meta_batch=2, steps=10)
'''


def broken(folder: Path, body: str) -> dict[str, str]:
    """Which truths do not hold for a file, and why."""
    folder.mkdir(exist_ok=True)
    file = folder / f"mine_{len(list(folder.iterdir()))}.py"
    file.write_text(body)
    return {truth: reason for truth, reason in space_file.check(str(file)) if reason is not None}


def test_the_plain_file_of_these_tests_keeps_its_contract(tmp_path: Path) -> None:
    assert broken(tmp_path, BODY) == {}


@pytest.mark.parametrize(("old", "new", "truth", "said"), [
    ("SPACE = ", "SPACES = ", "it defines", "it has no SPACE. Did you mean 'SPACES'?"),
    ("SPACE = Space(", "SPACE = dict(", "it defines", "but SPACE is {'width'"),
    ("def recipe", "def recipes", "it defines", "it has no recipe. Did you mean 'recipes'?"),
    ("    return Recipe(", "    Recipe(", "the recipe builds", "recipe must return a Recipe, but returned None"),
    ('config["width"]', 'config["widht"]', "the recipe builds", "KeyError: 'widht'"),
    ('config["width"]', 'config.pop("width")', "the recipe builds", "recipe changed the config that it was given"),
    ("    net =", "    raise ValueError('not these')\n    net =", "the recipe builds", "on sine waves: not these"),
    ("    net =", "    raise SystemExit(3)\n    net =", "the recipe builds", ".py:13: SystemExit: 3"),
    ("Space({", "Space({'x': Int(0, int.from_bytes(__import__('os').urandom(4))), ", "the file says the same",
     "has another SPACE"),
    ("return Recipe(net,", "return Recipe(net._replace(init=lambda g: {k: torch.randn_like(v) for k, v in net.init(g).items()}),",
     "the recipe builds", "init must draw from the generator"),
    ("return Recipe(net,", "return Recipe(net._replace(apply=lambda p, x: net.apply(p, x) * float('nan')),",
     "a training step gives finite scores", "diverged"),
])
def test_what_is_wrong_with_a_file_is_said_in_words(tmp_path: Path, old: str, new: str, truth: str, said: str) -> None:
    assert old in BODY
    found = broken(tmp_path, BODY.replace(old, new, 1))
    assert any(name.startswith(truth) and said in reason for name, reason in found.items())


def test_a_net_with_a_memory_is_no_function_and_is_found(tmp_path: Path) -> None:
    """A loop calls it once an episode, a vmap once in all: their gradients differ."""
    memory = (
        "calls = [0]\n\ndef counted(net):\n    def apply(p, x):\n        calls[0] += 1\n"
        "        return net.apply(p, x * calls[0])\n"
    )
    body = BODY.replace("def recipe", memory + "    return net._replace(apply=apply)\n\ndef recipe", 1)
    found = broken(tmp_path, body.replace("Recipe(net,", "Recipe(counted(net),", 1))
    assert "must be functions of their arguments alone" in found["a vmap and a loop give the same gradient"]
    assert "one seed gave" in found["the same seed trains the same"]


def test_a_branch_on_values_is_told_with_its_line(tmp_path: Path) -> None:
    found = broken(tmp_path, BODY.replace("Recipe(net,", "Recipe(net._replace(apply=lambda p, x: net.apply(p, x) if x.sum() > 0 "
                                                         "else net.apply(p, -x)),", 1))
    assert ".py:14: RuntimeError" in found["a vmap and a loop give the same gradient"]


@pytest.mark.parametrize(("more", "said"), [
    ("RELAXED = ('width',)", "only RELAXED is there"),
    ("RELAXED = ('widht',)\ndef relaxed(config, shape):\n    return recipe(config, shape)", "Did you mean 'width'?"),
    ("RELAXED = ('width',)\ndef relaxed(config, shape):\n    return 3", "relaxed must return a Recipe, but returned 3"),
    ("def canonical(config):\n    return {**config, 'width': 9}", "'width' must lie in 4..8, but got 9"),
    ("def canonical(config):\n    return {**config, 'width': 4 + (config['width'] - 3) % 5}", "is not its own canonical"),
    ("def graph(config):\n    return 1 / 0", "ZeroDivisionError"),
    ("def mutations(config, rng):\n    return config, {}", "mutations changed nothing"),
    ("def mutations(config, rng):\n    return {**config, 'width': 99}, {}", "'width' must lie in 4..8, but got 99"),
])
def test_optional_names_are_checked_too(tmp_path: Path, more: str, said: str) -> None:
    found = broken(tmp_path, BODY + "\n" + more + "\n")
    assert len(found) == 1
    assert said in next(iter(found.values()))


@pytest.mark.parametrize(("more", "said"), [
    ("", None),
    ("SPACE = Space({k: Choice(d.values[::-1]) for k, d in SPACE.dims.items()})", "options must have one order in both"),
    ("RELAXED = ('width',)\nSPACE = Space({**SPACE.dims, 'width': Int(1, 2)})", "'width', which is no Choice"),
    ("SPACE = Space({'edges': Choice({'all': SPACE, 'few': Space({})})})\nRELAXED = tuple(f'edges.{name}' for name in RELAXED)\n"
     "relaxed = recipe = lambda config, shape: mixed({}, shape)", "but not every config makes that decision"),
    ("SPACE = Space({'edge': Repeat(Int(1, 2), Space({'op': SPACE.dims['e10']}))})\nRELAXED = ('edge.0.op',)\n"
     "relaxed = recipe = lambda config, shape: mixed({}, shape)", None),
    ("relaxed = partial(nasbench201.relaxed, design=Cells(8, 1))", "in another shape: net/"),
    ("def relaxed(config, shape):\n    made = mixed(config, shape)\n    return replace(made, net=made.net._replace("
     "apply=lambda p, x: made.net.apply({**p, 'arch/e10': 0 * p['arch/e10']}, x)))", "relaxed computes something else"),
])
def test_a_mixture_with_one_option_left_is_the_net_of_that_option(tmp_path: Path, more: str, said: str | None) -> None:
    body = (
        "from dataclasses import replace\nfrom functools import partial\nfrom search_spaces import nasbench201\n"
        "from search_spaces.nasbench201 import RELAXED, SPACE, Cells\nfrom metasearch.space import Choice, Int, Repeat, Space\n"
        "recipe, mixed = (partial(f, design=Cells(2, 1)) for f in (nasbench201.recipe, nasbench201.relaxed))\nrelaxed = mixed\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(f"{body}{more}\n")
    law = spaces.optional_names_keep_their_contracts
    if said is None:
        law(plugins.loaded("spaces", str(file)))
    else:
        with pytest.raises(spaces.Broken, match=re.escape(said)):
            law(plugins.loaded("spaces", str(file)))


def test_some_infeasible_configs_are_no_mistake(tmp_path: Path) -> None:
    refuses = "    if config['width'] == 8:\n        raise ValueError('too wide')\n    net ="
    assert broken(tmp_path, BODY.replace("    net =", refuses, 1)) == {}


@pytest.mark.parametrize(("body", "said"), [
    ("import os\n\nraise RuntimeError('canary')\n", "mine.py:3: RuntimeError: canary"),
    ("import sys\nsys.exit(7)\n", "mine.py:2: SystemExit: 7"),
    ("def f(:\n", "mine.py:1: invalid syntax"),
    ("from metasearch.space import *\n\nSPACE = Space({'a': Float(3, 1)})\n", "mine.py:3: ValueError: `low < high` must hold"),
    ("import no_such_module_anywhere\n", "mine.py:1: ModuleNotFoundError"),
])
def test_a_file_that_cannot_be_imported_is_told_with_its_own_line(tmp_path: Path, body: str, said: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(body)
    for call in (space_file.describe, lambda name: list(space_file.check(name))):
        with pytest.raises(UnknownName) as error:
            call(str(file))
        assert said in str(error.value)


def test_a_space_is_described(tmp_path: Path) -> None:
    file = tmp_path / "described.py"
    file.write_text(
        "from metasearch.space import *\n"
        "SPACE = Space({'layer': Repeat(Int(1, 2), Space({'op': Choice(('conv', 'pool'))})),\n"
        "               'norm': Choice({'group': Space({'groups': Int(2, 1_000_000, log=True)}), 'none': Space({})})})\n"
    )
    found = space_file.describe(str(file))
    assert [tuple(row) for row in found.dims] == [
        ("layer.count", "1 ... 2, whole", ""),
        ("layer.*.op", "conv, pool", ""),
        ("norm", "group, none", ""),
        ("norm.groups", "2 ... 1000000, whole, log", "norm = group"),
    ]
    assert (found.size, found.width) == ((2 + 4) * 1_000_000, 5)
    assert found.space.problems(found.example) == []
    assert space_file.describe("maml-family").size == math.inf
    file.write_text("SPACE = 3\n")
    other = tmp_path / "other.py"
    other.write_text("SPACE = 3\n")
    with pytest.raises(ValueError, match="but SPACE is 3"):
        space_file.describe(str(other))


def test_a_new_file_keeps_the_contract_and_never_overwrites(tmp_path: Path) -> None:
    file = tmp_path / "my_space.py"
    space_file.new(file)
    assert {reason for _, reason in space_file.check(str(file))} == {None}
    before = file.read_text()
    with pytest.raises(ValueError, match="exists already"):
        space_file.new(file)
    assert file.read_text() == before
    with pytest.raises(ValueError, match=r"does not end in \.py"):
        space_file.new(tmp_path / "my_space")
    with pytest.raises(ValueError, match="there is no folder"):
        space_file.new(tmp_path / "nowhere" / "my_space.py")


def test_covering_configs_hold_every_option_of_every_choice() -> None:
    branch = Choice({"a": Space({"x": Choice((1, 2, 3))}), "b": Space({"y": Choice((True, False))})})
    space = Space({"one": branch, "many": Repeat(Int(0, 3), Space({"op": Choice(("p", "q", "r"))}))})
    configs = spaces.covering(space)
    assert len(configs) < 10
    seen = {(path.split(".")[-1], value) for config in configs for path, value in config.items()}
    wanted = {("one", "a"), ("one", "b"), *(("x", i) for i in (1, 2, 3)), ("y", True), ("y", False), *(("op", o) for o in "pqr")}
    assert wanted <= seen
