"""Methods that bring an objective of their own: from a study's text to a found architecture, or refused in words."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import relaxed_space

from metasearch import cli, plugins
from metasearch.driver import launch
from metasearch.driver.study import Study
from metasearch.ledger import Ledger
from metasearch.trained import evaluate, restore
from search_spaces import nasbench201

STUDY = f"""
name = "one-shot"
space = "{Path(relaxed_space.__file__)}"
method = {{ name = "darts", search_steps = 30, arch_lr = 0.03 }}
tasks = {{ name = "blobs", dimensions = 5, train_classes = 20, ways = 3, shots = 2, queries = 3 }}
train = {{ steps = 12, mode = "vmap" }}
validation = {{ episodes = 20 }}
budget = {{ trials = 2 }}
driver = {{ kind = "local" }}
track = {{ enabled = false }}
"""

AUGMENTING = ("autoaugment", "dada")  # want a space with augmentation, see test_augmentation_search.py


@pytest.mark.parametrize("overrides", [
    ["method.check=2", "method.check_steps=5"],
    ["method={name='enas', search_steps=30, lr=0.02, aggregate=4, check=3, check_steps=5}"],
    ["method={name='random-sharing', search_steps=30, check=0}"],
], ids=["darts", "enas", "random-sharing"])
def test_a_study_runs_from_its_text_to_the_found_architectures(tmp_path: Path, overrides: list[str]) -> None:
    study = Study.from_text(STUDY, overrides)
    assert study.problems() == []
    launch.run(study, home=tmp_path)
    with Ledger.open(tmp_path / "one-shot" / "ledger.sqlite") as ledger:
        trials, about = ledger.trials(), ledger.study()
    assert about["unit"] == "accuracy"
    assert about["bank_episodes"] == 20
    assert [row.status for row in trials.values()] == ["done", "done"], "equal configs under other seeds are other trials"
    for number, row in trials.items():
        assert row.report is not None
        assert row.report.found is not None
        assert {row.report.found["a"], row.report.found["b"]} & {"see", "dim"}, "something that sees the input"
        assert row.report.found["width"] == row.proposal.config["width"], "what is not relaxed is as it was proposed"
        assert row.report.metrics["supernet/score"] > 0.3
        told = row.report.metrics.get("supernet/rank_correlation")
        assert (told is None) == ("check=0" in "".join(overrides)), "unless it is switched off, a user sees what sharing is worth"
        trained = restore(f"one-shot/{number}", home=tmp_path)
        assert trained.config == row.report.found
        assert not any(key.startswith("arch/") for key in trained.meta)
    assert trials[1].outcome is not None
    assert trials[2].outcome is not None
    assert trials[1].outcome.metrics["supernet/score"] != trials[2].outcome.metrics["supernet/score"]
    assert evaluate("one-shot/1", home=tmp_path, episodes=20, mode="vmap").interval.mean > 0.4


@pytest.mark.parametrize("method", [name for name in plugins.names("methods") if name not in AUGMENTING])
def test_a_space_without_a_mixture_is_refused_with_what_would_work(method: str) -> None:
    overrides = ["space=maml-family", f"method={{name='{method}'}}"]
    said = " ".join(Study.from_text(STUDY, overrides).problems())
    assert "has no relaxed(config, shape)" in said
    for other in ("nasbench201", "darts-cells", "random", "regularized-evolution"):
        assert other in said


def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> str:
    """What `metasearch run` says of a study that it refuses; nothing is begun."""
    file = tmp_path / "study.toml"
    file.write_text(text)
    assert cli.call(["run", str(file), "--home", str(tmp_path / "home")]) == 2
    assert not list((tmp_path / "home").glob("*/ledger.sqlite"))
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["reinforce", "ppo"])
def test_a_controller_without_bins_refuses_continuous_dimensions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    said = run(tmp_path, capsys, STUDY.replace(f'space = "{Path(relaxed_space.__file__)}"', 'space = "maml-family"').replace(
        'name = "darts", search_steps = 30, arch_lr = 0.03', f'name = "{name}"'))
    assert "'learner.inner_lr'" in said
    assert "Set `bins`" in said
    for other in ("tpe", "cma-es", "gp", "regularized-evolution"):
        assert other in said


def test_darts_refuses_a_space_without_a_mixture_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(tmp_path, capsys, STUDY.replace(f'space = "{Path(relaxed_space.__file__)}"', 'space = "maml-family"'))
    assert "has no relaxed(config, shape)" in said
    for other in ("nasbench201", "darts-cells", "random", "regularized-evolution", "reinforce", "tpe"):
        assert other in said


def test_darts_refuses_a_learner_without_a_loss_on_queries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "reptile_space.py"
    space.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(relaxed_space.__file__).parent)!r})\n"
        "from dataclasses import replace\nimport relaxed_space\nfrom relaxed_space import RELAXED, SPACE\n"
        "from metasearch.learners.reptile import Reptile\n"
        "def recipe(config, shape): return replace(relaxed_space.recipe(config, shape), learner=Reptile())\n"
        "def relaxed(config, shape): return replace(relaxed_space.relaxed(config, shape), learner=Reptile())\n"
    )
    text = STUDY.replace(str(Path(relaxed_space.__file__)), str(space))
    said = run(tmp_path, capsys, text)
    assert "Reptile learns by none" in said
    for other in ("prototypical", "maml", "enas", "random-sharing", "reinforce"):
        assert other in said
    enas = text.replace('name = "darts", search_steps = 30, arch_lr = 0.03', 'name = "enas"')
    assert not any("Reptile" in problem for problem in Study.from_text(enas).problems()), "enas wants scores only"


@pytest.mark.parametrize(("override", "said"), [
    ("method.hypergradiant=first", "Did you mean 'hypergradient'?"),
    ("method.hypergradient=second", "method.hypergradient must be"),
    ("method.arch_lr=0.0", "arch_lr > 0"),
    ("method.share=1.5", "0 < share < 1"),
    ("method.check=1", "check >= 2"),
    ("method.search_steps=0", "search_steps >= 1"),
    ("method.share=0.9", "Or set another share: 0.9 of the classes are for the weights, 0.5 halves them"),
    ("method={name='enas', candidates=4, finalists=5}", "finalists <= candidates"),
    ("tasks.train_classes=5", "on a part of the classes each, but train has 2 classes"),
    ("budget.coverage=0.9", "counts uniform draws, and method 'darts' makes none"),
])
def test_what_does_not_fit_is_refused_before_it_starts(override: str, said: str) -> None:
    assert said in " ".join(Study.from_text(STUDY, [override, "budget.top=1"]).problems())


@pytest.mark.parametrize("method", ["darts", "enas", "random-sharing", "auto-maml", "metanas", "t-nas"])
def test_a_search_knows_which_architectures_mean_the_same(method: str) -> None:
    alone = ", alone=true" if method in ("metanas", "t-nas") else ""
    given = ["space=nasbench201", "tasks={name='glyphs', ways=3}", f"method={{name='{method}'{alone}}}"]
    objective: Any = Study.from_text(STUDY, given).pair()[1]
    config = dict.fromkeys(nasbench201.EDGES, "nor_conv_1x1")
    assert objective.canonical(config) == nasbench201.canonical(config)


@pytest.mark.parametrize("method", ["darts", "enas", "random-sharing", "auto-maml"])
def test_limits_that_no_architecture_keeps_are_refused_before_it_starts(method: str) -> None:
    overrides = ["space=nasbench201", "tasks={name='glyphs', ways=3}", f"method={{name='{method}'}}"]
    said = " ".join(Study.from_text(STUDY, [*overrides, "limits.max_params=1"]).problems())
    assert "keeps the study's limits: the nearest has params" in said
    assert "and the limit is 1. Raise the limit" in said
    assert Study.from_text(STUDY, [*overrides, "limits.max_params=200_000", "limits.max_latency_ms=1e-9"]).problems() == []


@pytest.mark.parametrize("method", ["darts", "enas", "random-sharing", "auto-maml"])
@pytest.mark.parametrize(("change", "said"), [
    ("RELAXED = ('a', 'bb')", "names 'bb', which is no path of SPACE"),
    ("RELAXED = ()", "must name the dimensions"),
    ("RELAXED = 'a'", "must name the dimensions"),
    ("RELAXED = ('a', 'b', 'lr')", "'lr', which is no Choice"),
    ("RELAXED = ('a',)", "begins arch/b: name them in RELAXED"),
    ("relaxed = recipe", "begins none for a, b"),
    ("SPACE = Space({**SPACE.dims, 'a': Choice(('none', 'see'))})", "begins none for a."),
    ("SPACE = Space({'kind': Choice({'deep': SPACE, 'flat': Space({})})})\nRELAXED = ('kind.a', 'kind.b')",
     "names kind.a, kind.b, but not every config makes that decision"),
    ("SPACE = Space({'cell': Repeat(Int(1, 2), SPACE)})\nRELAXED = ('cell.0.a', 'cell.1.a')",
     "names cell.1.a, but not every config makes"),
])
def test_a_mixture_that_does_not_fit_its_space_is_refused_before_it_is_trained(
    tmp_path: Path, method: str, change: str, said: str
) -> None:
    """Otherwise a whole search is lost at its end, or an architecture is told that nobody chose."""
    file = tmp_path / "changed.py"
    file.write_text("from relaxed_space import RELAXED, SPACE, recipe, relaxed\nfrom metasearch.space import *\n"
                    f"SPACE = Space({{**SPACE.dims, 'lr': Float(0.1, 1.0)}})\n{change}\n")
    assert said in " ".join(Study.from_text(STUDY, [f"space={file}", f"method={{name='{method}'}}"]).problems())


@pytest.mark.parametrize("method", ["darts", "auto-maml"])
@pytest.mark.parametrize(("derive", "said"), [
    ("{'a': 'see', 'b': 'sea'}", "'b' must be one of"),
    ("{'a': 'see'}", "leaves out b"),
    ("{}['c']", "KeyError: 'c'"),
    ("{'a': 'see', 'b': 'dim'}", ""),
])
def test_a_derivation_that_makes_no_config_is_refused_before_the_search(
    tmp_path: Path, method: str, derive: str, said: str
) -> None:
    file = tmp_path / "derived.py"
    file.write_text(f"from relaxed_space import RELAXED, SPACE, recipe, relaxed\ndef derive(shares):\n    return {derive}\n")
    found = " ".join(Study.from_text(STUDY, [f"space={file}", f"method={{name='{method}'}}"]).problems())
    assert (said in found) if said else found == ""


@pytest.mark.parametrize("method", ["darts", "dada"])
def test_a_search_that_looks_ahead_wants_one_rate_and_says_so_before_it_starts(method: str, tmp_path: Path) -> None:
    """Otherwise every trial is refused, one after the other. DARTS of first order looks at none."""
    file = tmp_path / "ruled.py"
    names = ("RELAXED, SPACE, recipe as one, relaxed as wide", "relaxed_space") if method == "darts" else (
        "SPACE, recipe as one", "search_spaces.augmentation")
    file.write_text(
        f"from {names[1]} import {names[0]}\nfrom metasearch.objectives.optimizer import adam, by_prefix\n"
        "def ruled(made):\n    return __import__('dataclasses').replace(made, optimizer=by_prefix({'': adam(0.1)}))\n"
        "def recipe(config, shape):\n    return ruled(one(config, shape))\n"
        "def relaxed(config, shape):\n    return ruled(wide(config, shape))\n"
    )

    def problems(more: str) -> str:
        given = ["tasks={name='glyphs', ways=3}"] if method == "dada" else []
        return " ".join(Study.from_text(STUDY, [f"space={file}", f"method={{name='{method}'{more}}}", *given]).problems())

    assert "the weights' optimiser has no one rate, but :lr, :weight_decay: say xi" in problems("")
    assert problems(", xi=0.1") == ""
    assert method == "dada" or problems(", hypergradient='first'") == ""


def test_a_space_that_augments_in_some_corner_augments(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        "from dataclasses import replace\nfrom metasearch.augment import Places, Step, fixed\n"
        "from metasearch.space import Choice, Space\nfrom search_spaces._policies import plain\n"
        "SPACE = Space({'use': Choice((True, False)), 'kind': Choice(('none', 'flip', 'rotate'))})\n"
        "def recipe(config, shape):\n"
        "    does = config['use'] and config['kind'] != 'none'\n"
        "    return replace(plain(shape), augment=Places(query=fixed(Step(config['kind']))) if does else None)\n"
    )
    given = [f"space={file}", "method={name='autoaugment'}", "tasks={name='glyphs', ways=3}"]
    assert Study.from_text(STUDY, given).problems() == []
    file.write_text(file.read_text().replace("augment=Places", "augment=None and Places"))
    assert "searches for augmentations, but the space" in " ".join(Study.from_text(STUDY, given).problems())


def test_a_file_that_is_edited_between_two_studies_is_read_anew(tmp_path: Path) -> None:
    """As in a notebook: one process, the same file, another text."""
    file = tmp_path / "edited.py"
    file.write_text("from relaxed_space import SPACE, recipe\n")
    first = Study.from_text(STUDY, [f"space={file}", "method={name='random'}"])
    assert "lr" not in first.space().dims
    file.write_text("from relaxed_space import SPACE as old, recipe\nfrom metasearch.space import *\n"
                    "SPACE = Space({**old.dims, 'lr': Float(0.1, 1.0)})\n")
    assert "lr" not in first.space().dims, "not in the midst of a study"
    assert "lr" in Study.from_text(STUDY, [f"space={file}", "method={name='random'}"]).space().dims
