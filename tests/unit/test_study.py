"""A study file says what it means, and what is wrong with it is said all at once."""
from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metasearch.driver import fit, study_file
from metasearch.driver.spending import Spending
from metasearch.driver.study import Study, StudyError

GOOD = """
name = "first"
space = "sine-mlp"
[tasks]
name = "sinusoid"
shots = 10
[budget]
trials = 3
"""


def refused(text: str, *overrides: str) -> list[str]:
    with pytest.raises(StudyError) as caught:
        Study.from_text(text, overrides)
    return caught.value.problems


def file_refused(path: Path) -> list[str]:
    with pytest.raises(StudyError) as caught:
        Study.from_toml(path)
    return caught.value.problems


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_study_comes_back_equal_from_its_json() -> None:
    study = Study.from_text(GOOD, ["method.name=tpe", "method.startup=5", "tasks.amplitude_high=2.5"])
    again = Study.from_json(json.loads(json.dumps(study.to_json(), allow_nan=False)))
    assert again == study
    assert again.digest == study.digest
    assert again.method.arguments == {"startup": 5}
    assert again.tasks is not None
    assert again.tasks.arguments == {"amplitude_high": 2.5}


def test_a_study_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Study.from_text(GOOD).seed = 3


def test_an_exponent_is_a_number() -> None:
    assert Study.from_text(GOOD, ["method.rate=1e-3"]).method.arguments == {"rate": 0.001}


def test_the_embedded_studies_are_valid() -> None:
    import metasearch

    files = sorted((Path(metasearch.__file__).parent / "studies").glob("*.toml"))
    assert {f.stem for f in files} >= {"glyphs", "omniglot", "sine"}
    for file in files:
        study = Study.from_toml(file)
        assert study.name == file.stem
        assert (study.planned_trials() or 0) >= 12


@pytest.mark.parametrize("changed", ["name=second", "driver.lanes=7", "driver.kind=local", "track.enabled=false"])
def test_the_digest_ignores_what_determines_no_result(changed: str) -> None:
    assert Study.from_text(GOOD, [changed]).digest == Study.from_text(GOOD).digest


@pytest.mark.parametrize(
    "changed", ["seed=1", "tasks.shots=5", "space=maml-family", "budget.trials=4", "validation.seed=1", "method.name=tpe"]
)
def test_the_digest_knows_what_determines_results(changed: str) -> None:
    assert Study.from_text(GOOD, [changed]).digest != Study.from_text(GOOD).digest


def test_the_digest_of_a_space_file_is_that_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for file in (tmp_path / "space.py", tmp_path / "a" / "space.py"):
        file.write_text("SPACE = 1\n")
    moved = Study.from_text(GOOD, [f"space={tmp_path / 'a' / 'space.py'}"])
    study = Study.from_text(GOOD, [f"space={tmp_path / 'space.py'}"])
    assert study.digest == moved.digest
    (tmp_path / "a" / "space.py").write_text("SPACE = 2\n")
    from metasearch.driver import study as module

    module._identity.cache_clear()
    assert study.digest != moved.digest


def test_a_path_in_a_study_file_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    file = tmp_path / "studies" / "study.toml"
    file.write_text(GOOD.replace("sine-mlp", "my_space.py"))
    monkeypatch.chdir(tmp_path)
    assert Study.from_toml("studies/study.toml").space_name == str(tmp_path / "studies" / "my_space.py")
    assert Study.from_toml("studies/study.toml", ["space=other.py"]).space_name == str(tmp_path / "other.py")


def test_so_is_the_path_of_the_data_that_its_tasks_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies").mkdir()
    file, there, here = tmp_path / "studies" / "study.toml", str(tmp_path / "studies" / "mine"), str(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)

    def read(tasks: str, *overrides: str) -> dict[str, Any]:
        file.write_text(f'name = "t"\nspace = "sine-mlp"\ntasks = {tasks}\nbudget = {{ trials = 1 }}\n')
        found = Study.from_toml("studies/study.toml", overrides)
        assert found.with_(["seed=1"]).tasks == found.tasks
        assert found.tasks is not None
        return found.tasks.arguments

    assert read('{ name = "image-folder", root = "mine", normalise = "train" }') == {"root": there, "normalise": "train"}
    assert read('{ name = "class-arrays", path = "../mine" }') == {"path": here}
    assert read('{ name = "noisy", tasks = { name = "omniglot", root = "mine" } }')["tasks"]["root"] == there
    assert read('{ name = "omniglot" }', "tasks.root=mine") == {"root": here}, "on the command line: of the current folder"
    assert read('{ name = "glyphs" }', 'tasks={name = "omniglot", root = "mine"}') == {"root": here}
    assert read('{ name = "omniglot", root = "/mine" }') == {"root": "/mine"}
    assert read('{ name = "omniglot", root = "~/mine" }') == {"root": "~/mine"}, "the home of whoever reads it"


def test_a_study_that_was_begun_with_a_relative_path_to_its_data_stays_the_same_study() -> None:
    told = {"name": "t", "space": "sine-mlp", "tasks": {"name": "omniglot", "root": "mine"}, "budget": {"trials": 1}}
    study = Study.from_json(told)
    assert study.with_(["driver.lanes=2", "tasks.shots=1"]).digest == study.digest


# -- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "value"), [
    ("20", 20), ("0.95", 0.95), ("true", True), ("tpe", "tpe"), ('"20"', "20"), ("1%", "1%"), ("[1, 2]", [1, 2]),
    ("{a = 1}", {"a": 1}), ("path/to/x", "path/to/x"), ("a=b", "a=b"), ("-3", -3), ("1_000", 1000), ("'x y'", "x y"), (" 7 ", 7),
])
def test_the_value_of_an_override_is_toml_and_a_bare_word_a_string(text: str, value: object) -> None:
    found = Study.from_text(GOOD, [f"method.x={text}"]).method.arguments["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("item", [
    "shots", "=3", "tasks.=3", "tasks..shots=3", "tasks.shots=", "name.x=3", "x y=3", "method.x=[1", 'method.x="a',
    "method.x=1\nseed=2", "a." * 40 + "a=1",
])
def test_a_bad_override_is_refused_in_one_sentence(item: str) -> None:
    assert len(refused(GOOD, item)) == 1


def test_a_later_override_wins() -> None:
    assert Study.from_text(GOOD, ["seed=1", "seed=2"]).seed == 2


# -- all at once ------------------------------------------------------------------------------------------------------


def test_everything_wrong_is_said_at_once_with_line_law_value_and_way_out() -> None:
    text = """name = "../x"
sed = 3
space = "sine-mlp"
[tasks]
name = "sinusoid"
shots = "5"
[budget]
trials = 0
coverage = 1.5
houres = 1
[driver]
kind = "rai"
"""
    problems = refused(text, "validation.episodes=1", "nonsense")
    said = "\n".join(problems)
    assert len(problems) == 9
    assert "study:1: name must begin with a letter or a digit" in said
    assert "study:2: sed is no key of a study. Did you mean 'seed'?" in said
    assert "study:6: tasks.shots must be a whole number, but got '5'" in said
    assert "study:8: budget.trials must be at least 1, but got 0" in said
    assert "study:9: budget.coverage must be less than 1.0, but got 1.5" in said
    assert "study:10: budget.houres is no key of a study. Did you mean 'hours'?" in said
    assert "study:12: driver.kind must be one of 'ray' or 'local', but got 'rai'. Did you mean 'ray'?" in said
    assert "validation.episodes=1: validation.episodes must be at least 2, but got 1" in said
    assert "'nonsense' is no override" in said


@pytest.mark.parametrize(("override", "said"), [
    ("budget.top=0", "budget.top must be a number of configurations (10) or a share of the space ('1%'), but got 0"),
    ("budget.top=0%", "share of the space"),
    ("budget.top=100%", "share of the space"),
    ("budget.top=1.%", "share of the space"),  # as Coverage has it
    ("budget.top=true", "share of the space"),
    ("budget.coverage=0.9", "coverage needs top"),
    ("budget.trials=1.5", "budget.trials must be a whole number, but got 1.5"),
    ("budget.trials=true", "budget.trials must be a whole number, but got True"),
    ("budget.hours=inf", "budget.hours must be a finite number"),
    ("seed=-1", "seed must be at least 0"),
    ("seed=9223372036854775808", "seed must be less than"),
    ("track.enabled=1", "track.enabled must be true or false, but got 1"),
    ("train=3", "train must be a table, but got 3"),
    ("train.mode=fast", "train.mode must be one of 'auto', 'loop', 'vmap' or 'compiled', but got 'fast'"),
    ("space=''", "must be printable text on one line"),
    ('space="a\\u001b[31mb"', "must be printable text on one line"),
])
def test_a_value_out_of_range_is_refused_in_words(override: str, said: str) -> None:
    problems = refused(GOOD, override)
    assert len(problems) == 1
    assert said in problems[0]
    assert "\x1b" not in problems[0]


def test_a_budget_without_a_limit_is_refused() -> None:
    assert "needs at least one of trials, coverage" in refused(GOOD.replace("trials = 3", ""))[0]


def test_a_password_in_a_study_is_refused_and_not_repeated() -> None:
    problems = refused(GOOD, "track.uri=https://me:canary-secret@mlflow.example.org/")
    assert "MLFLOW_TRACKING_PASSWORD" in problems[0]
    assert "canary" not in str(problems)


@pytest.mark.parametrize("name", [
    "../../etc/x", "/abs", "a/../../b", "~root", "C:\\\\x", "a\\u0000b", "a\\nb", "\\u001b[31mred", "-rf", "x" * 65, "",
    "\u0430bc", "a b", ".hidden", "name\\n",
])
def test_a_name_that_is_no_safe_folder_is_refused(name: str) -> None:
    problems = refused(GOOD.replace('"first"', f'"{name}"'))
    assert "name must begin with a letter or a digit" in problems[0]
    assert problems[0].isprintable()


@pytest.mark.parametrize("name", ["mlflow.db", "mlflow.db-wal", "mlflow.db.lock", "mlartifacts", "MLflow.db"])
def test_a_name_that_mlflow_has_in_the_same_folder_is_refused(name: str) -> None:
    assert f"name must be another: '{name}' is MLflow's own" in refused(GOOD.replace('"first"', f'"{name}"'))[0]


@given(st.text(max_size=70))
def test_a_study_name_never_leaves_its_folder(name: str) -> None:
    from metasearch.home import study_name

    root = Path("/root-of-studies")
    try:
        kept = study_name(name)
    except ValueError:
        return
    assert Path(os.path.normpath(root / kept)).parent == root


# -- hostile files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "said"), [
    (b"\xef\xbb\xbfname = 'x'\n", ":1: begins with a byte order mark"),
    (b"seed = 1\nname = '\xff'\n", ":2: is not UTF-8"),
    (b"seed = 1\nseed = 2\n", ":2: is not TOML"),
    (b"[budget]\ntrials = 1\n[budget]\nhours = 1\n", ":3: is not TOML"),
    (b"seed = 1\n\n\tseed 3\n", ":3: is not TOML"),
    (b"seed = " + b"[" * 100_000, "nested more than 32 levels"),
    (b"seed = " + b"{a=" * 100_000, "nested more than 32 levels"),
    (b"a." * 100_000 + b"a = 1\n", "more than 32 parts"),
    (b"'a' . " * 100_000 + b"a = 1\n", "more than 32 parts"),
    (b"seed = {" + b"a." * 100_000 + b"a = 1}\n", "more than 32 parts"),
    (b"x = [" + b"[" * 40 + b"]" * 41 + b"\n", "nested more than 32 levels"),
    (b"seed = 1" + b"0" * 9_999, "is not TOML"),
    (b"seed = 1" + b"0" * 400, "seed must be less than"),
    (b"method.x = 1e400", "is missing"),
    (b"# " + b"x" * 2_000_000, "larger than 1,000,000 bytes"),
    (b"seed = !!python/object/apply:os.system ['touch canary']", "is not TOML"),
    (b"\x00", "is not TOML"),
    (b"", "name is missing"),
    (b"a" * 999_000, "is not TOML"),
    (b"a-" * 499_000, "is not TOML"),
    (b"x = '" + b"a." * 15 + b"'\n" + b"." * 900_000, "is not TOML"),
], ids=lambda v: v[:20].decode("latin1") if isinstance(v, bytes) else v[:20])
def test_a_hostile_file_is_refused_within_a_second(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "study.toml"
    file.write_bytes(content)
    start = time.process_time()
    problems = file_refused(file)
    assert time.process_time() - start < 1
    assert said in "\n".join(problems)
    assert all(len(p) < 1000 + len(str(file)) for p in problems)
    assert "study.toml" in problems[0]
    assert not Path("canary").exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "No such file" in file_refused(tmp_path / "none.toml")[0]
    assert "Is a directory" in file_refused(tmp_path)[0]


def test_a_hundred_megabytes_are_refused_without_being_read(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    with file.open("wb") as sparse:
        sparse.truncate(100_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file_refused(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@given(st.text(max_size=200))
def test_no_text_ends_in_anything_but_words(text: str) -> None:
    with pytest.raises(StudyError) as caught:  # no text that is found by chance has a name, a space and a budget
        Study.from_text(text)
    assert caught.value.problems


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_a_study_that_fits_has_no_problems() -> None:
    assert Study.from_text(GOOD).problems() == []


def test_what_does_not_fit_is_said_at_once() -> None:
    study = Study.from_text(GOOD, [
        "space=sine-mpl", "method.name=randon", "tasks.amplitude_hgh=3", "driver.cpus=10000", "driver.gpus=1000",
        "budget.coverage=0.9", "budget.top=10",
    ])
    said = "\n".join(study.problems())
    assert "Did you mean 'sine-mlp'?" in said
    assert "'randon' is neither a strategy nor a method. Did you mean 'random'?" in said
    assert "Did you mean 'amplitude_high'?" in said
    assert "driver.cpus = 10000" in said
    assert "driver.gpus = 1000" in said


@pytest.mark.parametrize(("overrides", "said"), [
    (["budget.coverage=0.9", "budget.top=10"], "this space is infinite"),
    (["method.name=tpe", "budget.coverage=0.9", "budget.top=1%"], "'tpe' makes none. Use budget.trials"),
    (["method.name=grid", "method.points=0"], "at least 1 point"),
    (["method.points=3"], "method.points is no hyper-parameter of random"),
    (["method.name=grid", "method.points=three"], "method.points must be"),
    (["tasks.ways=3"], "ways"),
    (["tasks.name=blobs", "tasks.ways=1000"], "1000"),
    (["tasks.name=glyph"], "Did you mean 'glyphs'?"),
    (["driver.kind=local", "driver.address=auto"], "driver.address needs driver.kind = 'ray'"),
    (["space=/nowhere/space.py"], "there is no file /nowhere/space.py"),
    (["method.name=asha", "method.min_steps=1", "method.max_steps=2001"], "max_steps = 2001, but a trial has 2000 outer steps"),
    (["method.name=asha", "method.min_steps=1", "method.max_steps=9", "train.steps=8"], "Set train.steps to 9 or more"),
    (["space=maml-family"], "no configuration fits these tasks: of 1,000 none can be built. "),
    (["method={name='pba', steps=5, max_steps=9}", "budget.trials=3"], "population = 16, but budget.trials = 3 founds no more"),
    (["method={name='pba', steps=5, max_steps=9}", "space=nasbench201"], "explores numbers, but the space 'nasbench201' has"),
])
def test_an_impossible_pairing_is_refused_in_words(overrides: list[str], said: str) -> None:
    assert said in "\n".join(Study.from_text(GOOD, overrides).problems())


@pytest.mark.parametrize("part", ["recipe", "relaxed"])
@pytest.mark.parametrize("method", ["darts", "enas", "random-sharing", "auto-maml", "metanas", "t-nas"])
def test_a_space_none_of_whose_recipes_can_be_built_is_refused_for_methods_of_their_own_too(
    tmp_path: Path, method: str, part: str
) -> None:
    """Be it the supernet's, or that of what a search finds."""
    file = tmp_path / "space.py"
    file.write_text(f"from relaxed_space import RELAXED, SPACE, recipe, relaxed\n"
                    f"def {part}(config, shape):\n    raise ValueError('too small for such a net')\n")
    alone = ", alone = true" if method in ("metanas", "t-nas") else ""
    wanted = [f"space={file}", f"method={{ name = '{method}'{alone} }}", "tasks={ name = 'blobs', dimensions = 5 }"]
    (said,) = Study.from_text(GOOD, wanted).problems()
    assert "too small for such a net" in said


def test_a_space_none_of_whose_policies_can_be_trained_is_refused_for_methods_of_their_own_too() -> None:
    for method in ("autoaugment", "dada"):
        wanted = ["space=augmentation", f"method={{ name = '{method}' }}", "tasks={ name = 'blobs', dimensions = 5 }"]
        (said,) = Study.from_text(GOOD, wanted).problems()
        assert "space = 'augmentation': no configuration fits these tasks" in said


def test_more_top_configurations_than_there_are_cannot_be_hit(tmp_path: Path) -> None:
    file = tmp_path / "space.py"
    body = "from metasearch.space import Choice, Space\nSPACE = Space({'a': Choice((1, 2, 3))})\ndef recipe(config, shape): ...\n"
    file.write_text(body)
    overrides = [f"space={file}", "budget.coverage=0.9"]
    assert Study.from_text(GOOD, [*overrides, "budget.top=3"]).problems() == []
    assert "top = 4" in Study.from_text(GOOD, [*overrides, "budget.top=4"]).problems()[0]


@pytest.mark.parametrize(("budget", "planned", "wrong"), [
    ({"coverage": 0.9, "top": "10%"}, 17, None),  # two of the 25 of the grid
    ({"coverage": 0.9, "top": 2}, 17, None),
    ({"coverage": 0.9, "top": "1%"}, None, "the top 1% of 25 configs is less than one. Use top = 1"),
    ({"trials": 3, "top": 1}, 3, None),
    ({"trials": 3, "top": "1%"}, None, "the top 1% of 25 configs is less than one. Use top = 1"),
])
def test_the_check_counts_coverage_over_what_is_drawn_from_as_the_run_does(
    tmp_path: Path, budget: dict[str, Any], planned: int | None, wrong: str | None
) -> None:
    file = tmp_path / "space.py"
    file.write_text("from metasearch.space import Float, Space\nSPACE = Space({'a': Float(0, 1), 'b': Float(0, 1)})\n"
                    "def recipe(config, shape): ...\n")
    told = {"name": "t", "space": str(file), "method": {"name": "grid", "points": 5}, "tasks": {"name": "sinusoid"}}
    study = Study.from_json({**told, "budget": budget})
    if wrong is not None:
        assert [problem for problem in study.problems() if wrong in problem]
        return
    assert study.problems() == []
    assert study.planned_trials() == Spending(study, study.strategy()).planned == planned


def test_a_problem_is_said_once() -> None:
    problems = Study.from_text(GOOD, ["tasks.ways=3"]).problems()
    assert len(problems) == len(set(problems)) == 1


def test_what_is_wrong_beside_a_missing_space_is_said_too() -> None:
    source = study_file.parse('name = "x"\nmethod.name = "randon"\ntasks = { name = "sinusod" }\nbudget.trials = 1\n')
    with pytest.raises(StudyError) as caught:
        fit.checked(source)
    said = caught.value.problems
    assert len(said) == 3
    for part, problem in zip(("space is missing", "Did you mean 'random'?", "Did you mean 'sinusoid'?"), said, strict=True):
        assert part in problem


def test_a_study_without_tasks_says_so() -> None:
    text = 'name = "x"\nspace = "sine-mlp"\nbudget.trials = 1\n'
    assert "add [tasks]" in Study.from_text(text).problems()[0]


@pytest.mark.parametrize(("body", "said"), [
    ("import os\n\nraise RuntimeError('canary')\n", "space.py:3: RuntimeError: canary"),
    ("import sys\nsys.exit(7)\n", "space.py:2: SystemExit: 7"),
    ("def f(:\n", "space.py:1: invalid syntax"),
    ("x = 1\n", "must define SPACE = Space"),
    ("from metasearch.space import Float, Space\n\nSPACE = Space({'a': Float(3, 1)})\n", "space.py:3: ValueError"),
    ("from metasearch.space import Float, Space\nSPACE = Space({'a': Float(1, 3)})\n", "must define recipe(config, shape)"),
    ("import no_such_module_anywhere\n", "space.py:1: ModuleNotFoundError"),
])
def test_a_bad_space_file_is_one_problem_with_its_own_line(tmp_path: Path, body: str, said: str) -> None:
    file = tmp_path / "space.py"
    file.write_text(body)
    folder, path = Path.cwd(), list(sys.path)
    problems = Study.from_text(GOOD, [f"space={file}"]).problems()
    assert said in "\n".join(problems)
    assert (Path.cwd(), sys.path) == (folder, path)


MUTATIONS = "from search_spaces.sine_mlp import SPACE, recipe\n\n\ndef mutations(config, rng):\n"


@pytest.mark.parametrize(("body", "said"), [
    ("    return config['boom'], {}", "mine.py:5: KeyError: 'boom'"),
    ("    return None", "must return (config, moved), but returned None"),
    ("    return {**config, 'nobody': 1}, {}", "makes what is no config of"),
    ("    return SPACE.mutate(config, rng)", None),
])
def test_a_mutation_of_a_space_files_own_is_tried_before_the_study_is(tmp_path: Path, body: str, said: str | None) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MUTATIONS + body + "\n")
    study = Study.from_text(GOOD, [f"space={file}", "method.name=regularized-evolution"])
    found = study.problems()
    assert len(found) == (said is not None)
    assert (said or "") in "".join(found)
    if said is not None and "Error" in said:
        with pytest.raises(ValueError, match=r"fails on \{.*Error"):
            study.strategy().mutate(study.space().sample(np.random.default_rng(0)), np.random.default_rng(0))


def test_a_users_method_is_a_pair_and_needs_no_tasks(tmp_path: Path) -> None:
    method = tmp_path / "mine.py"
    method.write_text(
        "from metasearch import strategies\nfrom metasearch.records import Report\n\n"
        "def objective(proposal, trial):\n    yield Report(1, score=proposal.config['inner_lr'])\n\n"
        "def method(study):\n    return strategies.build('random', study.space(), {}, seed=study.seed), objective\n"
    )
    study = Study.from_text(f'name = "x"\nspace = "sine-mlp"\nbudget.trials = 1\nmethod.name = "{method}"\n')
    assert study.problems() == []
    proposal = study.strategy().ask()
    assert proposal is not None
    from metasearch.objectives import Trial

    assert next(study.objective()(proposal, Trial(1))).score == proposal.config["inner_lr"]


def test_reading_a_study_imports_no_torch() -> None:
    reading = f"from metasearch.driver.study import Study\nStudy.from_text('''{GOOD}''')"
    code = f"import sys\n{reading}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_learner_that_cannot_learn_the_tasks_is_refused(tmp_path: Path) -> None:
    space = tmp_path / "prototypes.py"
    space.write_text(
        "from metasearch.learners.prototypical import Prototypical\nfrom metasearch.nets.mlp import mlp\n"
        "from metasearch.objectives.optimizer import adam\nfrom metasearch.objectives.recipe import Recipe\n"
        "from metasearch.space import Float, Space\nSPACE = Space({'lr': Float(1e-3, 1e-2)})\n"
        "def recipe(config, shape):\n    return Recipe(mlp(shape.x, None), Prototypical(), adam(config['lr']), 4, 20)\n"
    )
    told = f"name = 'waves'\nspace = '{space}'\nbudget.trials = 2\nmethod.name = 'random'\n[tasks]\nname = 'sinusoid'\nways = 1\n"
    (said,) = Study.from_text(told).problems()
    assert "Prototypical learns tasks of classes, but Sinusoid is of regression" in said
