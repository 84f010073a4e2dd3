"""A finished meta-learner takes a user's own examples, and says what it expected when they are none."""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

import metasearch
from metasearch import hands
from metasearch.driver import launch
from metasearch.driver.study import Study
from metasearch.examples import Inputs
from metasearch.hands import Loaded, export, load
from metasearch.learners import Learner
from metasearch.learners.centroid import Centroid
from metasearch.learners.prototypical import Prototypical
from metasearch.learners.relation import Relation
from metasearch.objectives.evaluation import outputs
from metasearch.objectives.parcel import BadParcel
from metasearch.tasks.blobs import Blobs
from metasearch.trained import restore

SPACE = '''
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.space import Choice, Space

SPACE = Space({"learner": Choice(("maml", "prototypical")), "mode": Choice(("transductive", "inductive", "none"))})


def recipe(config, shape):
    norm = Norm("none" if config["mode"] == "none" else "batch")
    learner = MAML(inner_lr=0.5, inner_steps=3) if config["learner"] == "maml" else Prototypical()
    net = mlp(shape.x, shape.ways if learner.head else None, hidden=(32,), norm=norm, mode=config["mode"])
    return Recipe(net, learner, adam(1e-2), meta_batch=8, steps=1)
'''
STUDY = """
name = "hands"
space = "{space}"
method = {{ name = "grid" }}
tasks = {{ name = "blobs", separation = 3.0, shots = 2, queries = 5 }}
train = {{ steps = 80, mode = "vmap" }}
validation = {{ episodes = 5 }}
budget = {{ trials = 6 }}
driver = {{ kind = "local" }}
track = {{ enabled = false }}
"""
Named = Callable[..., Loaded]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("studies")
    (home / "own_space.py").write_text(SPACE)
    launch.run(Study.from_text(STUDY.format(space=home / "own_space.py")), home=home)
    waves = STUDY.format(space="sine-mlp").replace('"hands"', '"waves"').replace('"blobs", separation = 3.0', '"sinusoid"')
    launch.run(Study.from_text(waves, ["budget.trials=1", "method.name='random'", "tasks.shots=10"]), home=home)
    return home


@pytest.fixture(scope="module")
def trial(home: Path) -> Callable[[str, str], str]:
    """The reference of the trial with this learner and norm mode."""
    def number(learner: str, mode: str) -> str:
        found = [n for n in range(1, 7) if dict(restore(f"hands/{n}", home=home).config) == {"learner": learner, "mode": mode}]
        return f"hands/{found[0]}"

    return number


def _blobs(classes: int, each: int, seed: int = 1) -> tuple[Any, Any]:
    """Inputs [classes * each, 8] of some new classes, class by class, and their numbers."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(classes, 8)) * 3
    y = np.arange(classes).repeat(each)
    return centres[y] + rng.normal(size=(classes * each, 8)), y


@pytest.mark.parametrize("learner", ["maml", "prototypical"])
@pytest.mark.parametrize("mode", ["transductive", "inductive", "none"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_fewer_classes_than_in_training_are_learnt(
    home: Path, trial: Callable[[str, str], str], learner: str, mode: str, classes: int,
) -> None:
    x, y = _blobs(classes, 2)
    names = np.array(["owl", "ant", "cat", "dog", "eel"])[:classes]
    adapted = load(trial(learner, mode), home=home).adapt(x, names[y])
    assert adapted.classes.tolist() == sorted(names)
    queries, truth = _blobs(classes, 10, seed=2)
    assert (adapted.predict(queries) == names[truth]).mean() > 0.7
    chances = np.asarray(adapted.probabilities(queries))
    assert chances.shape == (10 * classes, classes)
    assert np.allclose(chances.sum(1), 1, atol=1e-5)
    assert (adapted.classes[chances.argmax(1)] == adapted.predict(queries)).all()


@pytest.mark.parametrize("mode", ["transductive", "inductive", "none"])
@pytest.mark.parametrize("learner", ["maml", "prototypical"])
def test_five_classes_get_what_the_evaluator_gets(home: Path, trial: Callable[[str, str], str], learner: str, mode: str) -> None:
    """With the queries together, as the study scores them: bit for bit the same outputs."""
    reference = trial(learner, mode)
    trained = restore(reference, home=home)
    tasks = Blobs(separation=3.0)
    e = tasks.sample_episodes(1, split="val", shape=trained.shape, generator=Generator().manual_seed(0))
    (expected, _), = outputs(trained.net, trained.learner, tasks, trained.meta, e, mode="loop")
    adapted = load(reference, home=home, transductive=mode == "transductive").adapt(e.support_x[0], e.support_y[0])
    found = adapted.probabilities(e.query_x[0])
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, expected[0].softmax(-1))


@pytest.mark.parametrize(("learner", "outputs"), [
    (Relation(), [[1.0, 0.001, 0.001]]), (Relation(objective="cross-entropy"), [[9.0, 0.0, 0.0]]),
    (Centroid(), [[1.0, 0.1, 0.1]]), (Centroid("euclid"), [[-0.1, -9.0, -9.0]]), (Prototypical(), [[-0.1, -9.0, -9.0]]),
], ids=str)
def test_whoever_is_sure_says_so(learner: Learner, outputs: list[list[float]]) -> None:
    """Scores and cosines lie between 0 and 1: their softmax could not be above 0.58 for three classes."""
    chances = learner.probabilities(torch.tensor(outputs))
    assert float(chances.sum()) == pytest.approx(1.0)
    assert float(chances[0, 0]) > 0.99


@pytest.mark.parametrize("learner", ["maml", "prototypical"])
@pytest.mark.parametrize("mode", ["transductive", "inductive", "none"])
def test_a_query_is_judged_by_itself(home: Path, trial: Callable[[str, str], str], learner: str, mode: str) -> None:
    x, y = _blobs(3, 2)
    queries, _ = _blobs(3, 4, seed=2)
    model = load(trial(learner, mode), home=home)
    adapted = model.adapt(x, y)
    together = np.asarray(adapted.probabilities(queries))
    alone = np.concatenate([np.asarray(adapted.probabilities(q[None])) for q in queries])
    assert np.allclose(together, alone, atol=1e-6)
    assert f"norm {'semi' if mode == 'transductive' else mode} (" in repr(model)
    if mode == "transductive":
        helped = load(trial(learner, mode), home=home, transductive=True)
        assert "norm transductive (" in repr(helped)
        assert not np.allclose(np.asarray(helped.adapt(x, y).probabilities(queries)), together, atol=1e-4)
    else:
        with pytest.raises(ValueError, match="cannot be asked transductively"):
            load(trial(learner, mode), home=home, transductive=True)


def test_labels_are_named_as_they_were_given(home: Path, trial: Callable[[str, str], str]) -> None:
    x, y = _blobs(3, 2)
    model = load(trial("prototypical", "none"), home=home)
    numbers = np.array([30, -1, 7])[y]
    one_hot = np.eye(3)[y]
    told = model.adapt(x, y).predict(x)
    assert (model.adapt(x, numbers).predict(x) == numbers).all()
    assert (model.adapt(x, one_hot).predict(x) == told).all()
    assert (model.adapt(x.tolist(), [str(n) for n in numbers]).predict(x) == numbers.astype(str)).all()
    assert (model.adapt(x, np.array(["a", "b", "c"], dtype=object)[y]).predict(x) == np.array(["a", "b", "c"])[y]).all()
    tensor = model.adapt(torch.from_numpy(x), torch.from_numpy(numbers)).predict(torch.from_numpy(x))
    assert isinstance(tensor, torch.Tensor)
    assert torch.equal(tensor, torch.from_numpy(numbers))


def test_the_names_of_classes_do_not_matter(home: Path, trial: Callable[[str, str], str]) -> None:
    x, y = _blobs(4, 2)
    model = load(trial("prototypical", "none"), home=home)
    plain, turned = model.adapt(x, y), model.adapt(x, 3 - y)
    assert np.allclose(np.asarray(plain.probabilities(x)), np.asarray(turned.probabilities(x))[:, ::-1], atol=1e-6)


def test_a_metric_learner_takes_more_classes_and_a_head_says_how_many(home: Path, trial: Callable[[str, str], str]) -> None:
    x, y = _blobs(7, 2)
    assert (load(trial("prototypical", "none"), home=home).adapt(x, y).predict(x) == y).mean() > 0.7
    with pytest.raises(ValueError, match=r"5 outputs, so it learns 2 to 5 classes, but the labels name 7: 0, 1, .*ways=7"):
        load(trial("maml", "none"), home=home).adapt(x, y)


def test_loading_and_adapting_change_nothing(home: Path, trial: Callable[[str, str], str]) -> None:
    x, y = _blobs(3, 2)
    model = load(trial("maml", "transductive"), home=home)
    kept = {k: v.clone() for k, v in model.meta.items()}
    before = (x.copy(), y.copy())
    first = np.asarray(model.adapt(x, y).probabilities(x))
    assert np.array_equal(first, np.asarray(model.adapt(x, y).probabilities(x)))
    assert all(torch.equal(v, kept[k]) for k, v in model.meta.items())
    assert np.array_equal(x, before[0])
    assert len(np.asarray(model.adapt(x, y).predict(x[:0]))) == 0


X, Y = _blobs(3, 2)
NAN = X.copy()
NAN[4, 2] = np.nan


@pytest.mark.parametrize(("x", "y", "words"), [
    (X[:0], Y[:0], "needs supports"),
    (X[:, :5], Y, r"shape \[M, 8\], but have \[6, 5\]"),
    (X[0], Y[:1], "single example"),
    (X.astype(object), Y, "must be numbers.* dtype object"),
    (NAN, Y, "finite numbers, but 1 of 6 rows are not, first row 4"),
    (X * 1e200, Y, "finite numbers"),
    ([[1, 2], [3]], Y, "list of rows of equal shape"),
    (X + 1j, Y, "dtype complex128"),
    (X, Y[:4], r"labels must be \[6\].* shape \[4\]"),
    (X, Y[:, None], "y.ravel"),
    (X, Y.astype(float), "whole numbers or strings"),
    (X, np.array([None] * 6), "dtype object"),
    (X, np.full((6, 3), 1 / 3), "one-hot: a single 1"),
    (X, np.eye(4)[Y], "columns have none: 3"),
    (X, np.zeros(6, int), "2 classes or more, but all are of 0"),
], ids=range(15))
def test_wrong_examples_are_named(home: Path, trial: Callable[[str, str], str], x: Any, y: Any, words: str) -> None:
    model = load(trial("prototypical", "none"), home=home)
    with pytest.raises(ValueError, match=words):
        model.adapt(x, y)


def test_a_diverged_adaptation_is_an_error(home: Path, trial: Callable[[str, str], str]) -> None:
    model = load(trial("maml", "none"), home=home)
    with pytest.raises(ValueError, match="inner loop diverged"):
        model.adapt(1e12 * X, Y).predict(1e12 * X)


def test_a_regression_answers_in_the_shape_of_its_values(home: Path) -> None:
    model = load("waves/1", home=home)
    x = np.linspace(-5, 5, 10)
    adapted = model.adapt(x, np.sin(x))
    values = np.asarray(adapted.predict(x))
    assert values.shape == (10,)
    assert np.array_equal(values, np.asarray(model.adapt(x[:, None], np.sin(x)[:, None]).predict(x))[:, 0])
    assert isinstance(adapted.predict(torch.from_numpy(x)), torch.Tensor)
    with pytest.raises(ValueError, match="no classes"):
        adapted.probabilities(x)
    for y, words in ((np.sin(x)[:4], r"\[10\] or \[10, 1\]"), (["a"] * 10, "dtype"), (np.sin(x) * np.nan, "10 of 10 are not")):
        with pytest.raises(ValueError, match=words):
            model.adapt(x, y)


def test_an_export_works_without_its_study(home: Path, trial: Callable[[str, str], str], tmp_path: Path) -> None:
    for number, reference in enumerate([trial("maml", "transductive"), trial("prototypical", "inductive"), "waves/1"]):
        folder = metasearch.export(reference, tmp_path / str(number), home=home)
        moved = shutil.move(folder, tmp_path / f"moved {number}")
        mine, theirs = load(moved, home=tmp_path / "nowhere", trust_code=True), load(reference, home=home)
        x, y = (X, Y) if "hands" in reference else (X[:, :1], X[:, 1])
        assert np.array_equal(np.asarray(mine.adapt(x, y).predict(x)), np.asarray(theirs.adapt(x, y).predict(x)))
        assert repr(mine) == repr(theirs)
        assert {p.name for p in Path(moved).iterdir()} == {"model.json", "weights.safetensors"} | (
            {"space.py"} if "hands" in reference else set())


TUNED = '''
from metasearch.learners.baseline_pp import BaselinePP
from metasearch.learners.fine_tune import FineTune
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam
from metasearch.objectives.pretrain import Pretrain
from metasearch.objectives.recipe import Recipe
from metasearch.space import Choice, Space

SPACE = Space({"learner": Choice(("fine-tune", "baseline-pp"))})


def recipe(config, shape):
    tuned = config["learner"] == "fine-tune"
    learner = FineTune(inner_lr=0.1, inner_steps=20, start="zero") if tuned else BaselinePP(inner_lr=0.1, start="prototypes")
    fit = Pretrain(head="linear" if tuned else "cosine", batch=16)
    return Recipe(mlp(shape.x, shape.ways, hidden=(16,)), learner, adam(1e-2), meta_batch=2, steps=30, fit=fit)
'''


def test_a_pretrained_trial_is_exported_without_its_classifier_and_takes_any_number_of_classes(
    home: Path, tmp_path: Path
) -> None:
    """The head of the training classes is no part of what is adapted: weights that depend on no N take any N."""
    (home / "tuned_space.py").write_text(TUNED)
    study = Study.from_text(STUDY.format(space=home / "tuned_space.py").replace('"hands"', '"tuned"').replace("80", "30"))
    launch.run(study, home=home)
    for number in (1, 2):
        folder = export(f"tuned/{number}", tmp_path / str(number), home=home)
        mine, theirs = load(folder, trust_code=True), load(f"tuned/{number}", home=home)
        assert not any(k.startswith("pretrain/") for k in mine.meta)
        for classes in (3, 5, 7):
            x, y = _blobs(classes, 2)
            answers = np.asarray(mine.adapt(x, y).predict(x))
            assert np.array_equal(answers, np.asarray(theirs.adapt(x, y).predict(x)))
            assert (answers == y).mean() > 0.7


def test_a_strangers_code_runs_only_when_trusted(home: Path, trial: Callable[[str, str], str], tmp_path: Path) -> None:
    folder = export(trial("maml", "none"), tmp_path / "m", home=home)
    mark = tmp_path / "it ran"
    (folder / "space.py").write_text(f"open({str(mark)!r}, 'w')\n{SPACE}")
    with pytest.raises(ValueError, match="trust_code=True"):
        load(folder)
    with pytest.raises(ValueError, match="sha256 differs"):
        load(folder, trust_code=True)
    card = json.loads((folder / "model.json").read_text())
    for name in (str(folder / "space.py"), "os.path", "../space"):
        (folder / "model.json").write_text(json.dumps({**card, "space": {"name": name}}))
        with pytest.raises(ValueError, match=r"trust_code|no name"):
            load(folder)
    assert not mark.exists()


def test_a_damaged_export_is_an_error_in_words(home: Path, tmp_path: Path) -> None:
    folder = export("waves/1", tmp_path / "m", home=home)
    weights, card = folder / "weights.safetensors", folder / "model.json"
    whole, told = weights.read_bytes(), card.read_text()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BadParcel, match="damaged"):
        load(folder)
    weights.write_bytes(whole)
    for text, words in (
        ("{", "does not describe"), ("[]", "does not describe"), (json.dumps({"format": 2}), "format is 2"),
        (told.replace('"format"', '"former"'), "KeyError"), (told.replace('"regression"', '"control"'), "kind must be"),
        (told.replace('"width": ', '"width": 1'), "not those of the net"),
        (told.replace('"width": ', '"wide": '), "builds no net from the config in model.json here: KeyError: 'width'"),
        (re.sub(r'"shape": \[\s*1', '"shape": [-1', told), "builds no net from the config"),
        (told.replace('"ways": 1', '"ways": 0'), "builds no net from the config"),
        (told.replace('"std": []', '"std": [0.0]'), "no std 0"), (told.replace('"mean": []', '"mean": ["a"]'), "must be numbers"),
        (told.replace('"mean": []', '"mean": [0.1, 0.2]'), "one a channel"),
    ):
        card.write_text(text)
        with pytest.raises(ValueError, match=words):
            load(folder)
    with pytest.raises(ValueError, match="new or an empty folder"):
        export("waves/1", folder, home=home)


@pytest.mark.parametrize(("where", "words"), [
    ("nothing", "STUDY/NUMBER"), ("waves/99", "no trial"), (Path("nothing"), "holds no exported model"),
])
def test_what_is_neither_trial_nor_folder_is_an_error(home: Path, where: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(where, home=home)


PICTURES = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)
GREY, COLOUR = Inputs((1, 28, 28), pictures=True), Inputs((3, 9, 8), pictures=True, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1])


def test_bytes_are_scaled_as_the_tasks_do() -> None:
    raw = torch.from_numpy(PICTURES)[:, None]
    assert torch.equal(GREY.read(PICTURES, "supports"), raw.to(torch.float32).mul_(1 / 255))
    assert torch.allclose(GREY.read(PICTURES[:, None] / 255, "supports"), raw / 255, atol=1e-7)
    colours = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 8), dtype=np.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.2, 0.1]).view(3, 1, 1)
    assert torch.allclose(COLOUR.read(colours, "supports"), (torch.from_numpy(colours) / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize(("inputs", "x", "words"), [
    (GREY, PICTURES.astype(int), "are int64. Use x.astype"),
    (GREY, PICTURES.astype(np.float32), r"float32 in 0..255. Divide by 255"),
    (GREY, PICTURES[:, :20], r"\[M, 1, 28, 28\], but have \[4, 20, 28\]. Resize them to 28x28 with 1 channel\."),
    (GREY, PICTURES[:, None].astype("U3"), "must be numbers"),
    (COLOUR, np.zeros((4, 9, 8, 3), np.uint8), "Channels come first"),
    (COLOUR, np.zeros((3, 9, 8), np.uint8), "single example"),
    (COLOUR, np.zeros((5, 9, 8), np.uint8), "with 3 channels"),
], ids=range(7))
def test_wrong_pictures_are_named(inputs: Inputs, x: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        inputs.read(x, "supports")


def test_values_in_a_users_units_come_back_in_them(tmp_path: Path) -> None:
    """Latencies are told as deviations from the supports' mean; a user gives milliseconds, or seconds, and gets them."""
    import task_data

    file = task_data.latency(tmp_path / "a.csv.gz")
    study = f"""
name = "ms"
space = "latency"
tasks = {{ name = "latency", path = "{file}", known = 80, shots = 5, queries = 5 }}
train = {{ steps = 2, mode = "loop" }}
validation = {{ episodes = 2 }}
budget = {{ trials = 1 }}
driver = {{ kind = "local" }}
track = {{ enabled = false }}
"""
    launch.run(Study.from_text(study), home=tmp_path)
    model = load("ms/1", home=tmp_path)
    x = np.eye(9)[np.random.default_rng(0).integers(0, 9, (6, 22))].reshape(6, -1)
    y = np.array([10.0, 12, 14, 11, 9, 13])
    found = np.asarray(model.adapt(x, y).predict(x))
    assert np.allclose(np.asarray(model.adapt(x, y / 1000).predict(x)), found / 1000, rtol=1e-6)
    assert np.allclose(np.asarray(model.adapt(x, 3 * y + 5).predict(x)), 3 * found + 5, rtol=1e-6)
    again = load(export("ms/1", tmp_path / "m", home=tmp_path))
    assert np.array_equal(np.asarray(again.adapt(x, y).predict(x)), found)


def test_the_example_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
    code = text.partition("## A finished model in your hands")[2].partition("```python\n")[2].partition("```")[0]
    launch.run(Study.from_text(STUDY.format(space="maml-family"), [
        "name='glyphs'", "method.name='random'", "tasks={name='glyphs', drawings=6, queries=5}", "budget.trials=3",
        "train.steps=1",
    ]))
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), said)
    assert set(said["labels"]) <= {"cat", "dog", "owl"}
    assert said["chances"].shape == (10, 3)
    assert (tmp_path / "my-model" / "model.json").is_file()


NEEDING = SPACE.replace("hidden=(32,)", "hidden=(WIDTH,)") + """
import json
from pathlib import Path

NEEDS = ("tables",)
WIDTH = json.loads(Path(__file__).with_name("tables").joinpath("width.json").read_text())
"""


def test_an_export_brings_along_what_its_space_needs(home: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "tables" / "__pycache__").mkdir(parents=True)
    (there / "tables" / "__pycache__" / "blocks.cpython-311.pyc").write_bytes(b"which Python writes anew")
    (there / "needing.py").write_text(NEEDING)
    for width in (8, 16):
        (there / "tables" / "width.json").write_text(f"{width}")
        study = STUDY.format(space=there / "needing.py").replace('"hands"', f'"needing{width}"')
        launch.run(Study.from_text(study, ["budget.trials=1"]), home=home)
        folder = export(f"needing{width}/1", tmp_path / "out", home=home)
        model = load(folder, trust_code=True)
        assert model.name == f"needing{width}/1"
        assert width in model.meta["net/layer1/weight"].shape, "both read what was edited, in one process"
        assert [path.name for path in (folder / "tables").iterdir()] == ["width.json"]
        moved = Path(shutil.move(folder, tmp_path / f"moved{width}"))
    shutil.rmtree(there)
    assert load(moved, trust_code=True).name == "needing16/1"
    (moved / "tables" / "width.json").write_text("8")
    with pytest.raises(ValueError, match=r"width\.json is not the file that was exported: its sha256 differs"):
        load(moved, trust_code=True)


@pytest.mark.parametrize("empty", [False, True])
def test_an_export_that_fails_leaves_nothing_behind(
    home: Path, trial: Callable[[str, str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    folder = tmp_path / "out" / "m"
    if empty:
        folder.mkdir(parents=True)

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("canary")

    with monkeypatch.context() as patched:
        patched.setattr(hands, "_from_folder", broken)
        with pytest.raises(ValueError, match="canary"):
            export(trial("maml", "none"), folder, home=home)
    assert folder.exists() == empty
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert load(export(trial("maml", "none"), folder, home=home), trust_code=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["m"]


def test_a_folder_that_is_exported_to_anew_is_read_anew(home: Path, trial: Callable[[str, str], str], tmp_path: Path) -> None:
    """In one process: it is the same file by its path, and another by its text."""
    launch.run(Study.from_text(STUDY.format(space=_tuned(home)).replace('"hands"', '"anew"'), ["budget.trials=1"]), home=home)
    load(export(trial("maml", "none"), tmp_path / "m", home=home), trust_code=True)
    shutil.rmtree(tmp_path / "m")
    assert load(export("anew/1", tmp_path / "m", home=home), trust_code=True).name == "anew/1"


def _tuned(home: Path) -> Path:
    file = home / "anew_space.py"
    file.write_text(TUNED)
    return file
