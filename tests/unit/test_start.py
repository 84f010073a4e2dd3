"""`[train] start`: a study whose trials begin with the weights of a trial of another one."""
from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metasearch.cli import runs
from metasearch.driver import launch
from metasearch.driver.start import weights
from metasearch.driver.study import Study, StudyError
from metasearch.home import parcel_path
from metasearch.objectives import parcel
from metasearch.trained import restore

SPACE = '''
from metasearch.learners.fine_tune import FineTune
from metasearch.learners.maml import MAML
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam, sgd
from metasearch.objectives.pretrain import Pretrain
from metasearch.objectives.recipe import Recipe
from metasearch.space import Choice, Space

SPACE = Space({"learner": Choice(("LEARNER",)), "width": Choice((WIDTHS))})


def recipe(config, shape):
    net = mlp(shape.x, shape.ways, hidden=(int(config["width"]), 6))
    if config["learner"] == "fine-tune":
        return Recipe(net, FineTune(inner_steps=2), adam(1e-2), meta_batch=2, steps=20, fit=Pretrain(batch=16))
    return Recipe(net, MAML(0.1), sgd(0.0), meta_batch=2, steps=12)  # which leaves all weights as they begin
'''
STUDY = """
name = "{name}"
space = "{space}"
method = {{ name = "grid" }}
tasks = {{ name = "blobs", shots = 2, queries = 2 }}
train = {{ mode = "vmap" }}
validation = {{ episodes = 5 }}
budget = {{ trials = 1 }}
driver = {{ kind = "local" }}
track = {{ enabled = false }}
"""


def _study(home: Path, name: str, learner: str, widths: str, *overrides: str) -> Study:
    space = home / f"{learner}_{'_'.join(w for w in widths if w.isdigit())}.py"
    space.write_text(SPACE.replace("LEARNER", learner).replace("WIDTHS", widths))
    return Study.from_text(STUDY.format(name=name, space=space), overrides)


def _weights(result: launch.Result, number: int = 1) -> dict[str, Tensor]:
    with launch.Ledger.open(result.folder / "ledger.sqlite") as ledger:
        tensors, facts = parcel.read(parcel_path(result.folder, str(ledger.trials()[number].checkpoint)))
    assert facts["step"] in (12, 20)
    return {k.removeprefix("meta/"): v for k, v in tensors.items() if k.startswith("meta/")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("studies")
    launch.run(_study(home, "pretrained", "fine-tune", "8,"), home=home)
    return home


def test_every_trial_begins_with_those_weights_and_trains_its_whole_time(home: Path) -> None:
    """What agrees in key and shape is the pre-trained trial's bit for bit; the head, which it had not, is drawn."""
    begun = launch.run(_study(home, "begun", "maml", "8,", "train.start=pretrained/1"), home=home)
    drawn = launch.run(_study(home, "drawn", "maml", "8,"), home=home)
    ours, theirs, others = _weights(begun), _weights(launch.resume("pretrained", home=home)), _weights(drawn)
    assert set(ours) == set(others)
    body = [k for k in ours if not k.startswith("net/head/")]
    assert body
    for k in ours:
        assert torch.equal(ours[k], theirs[k] if k in body else others[k]), k
    assert not any(torch.equal(ours[k], others[k]) for k in body if k.endswith("weight"))
    assert begun.trials["step"].tolist() == [12], "the steps of the pre-training do not count"


def test_it_depends_on_the_other_study_no_longer_and_misses_its_own_copy(home: Path, tmp_path: Path) -> None:
    away = tmp_path / "studies"
    shutil.copytree(home, away)
    study = _study(away, "alone", "maml", "8, 9, 10", "train.start=pretrained/1")
    first = launch.run(study, home=away)
    shutil.rmtree(away / "pretrained")
    second = launch.resume("alone", home=away, overrides=("budget.trials=2",))
    assert second.status.done == 2
    (first.folder / "start.safetensors").unlink()
    third = launch.resume("alone", home=away, overrides=("budget.trials=3", "driver.max_errors=0"))
    assert third.status.done == 2
    assert "start.safetensors" in third.trials["reason"].iloc[-1], "a trial never begins at nothing unseen"


@pytest.mark.parametrize(("start", "widths", "more", "words"), [
    ("pretrained", "8,", "", "a trial is named STUDY/NUMBER"),
    ("../pretrained/1", "8,", "", "a study's name must begin"),
    ("pretrainde/1", "8,", "", "there is no study 'pretrainde'"),
    ("pretrained/2", "8,", "", "study 'pretrained' has no trial 2"),
    ("pretrained/1", "9, 10", "", r"nothing of it fits: its weights are net/layer1/weight \[8, 8\]"),
    ("pretrained/1", "8,", "space=nasbench201 method.name=darts", "method 'darts' is a search of its own"),
])
def test_weights_that_are_not_there_or_fit_nothing_are_refused_before_anything_starts(
    home: Path, start: str, widths: str, more: str, words: str
) -> None:
    study = _study(home, "refused", "maml", widths, f"train.start={start}", *more.split())
    if more:
        study = study.with_(["tasks={name='blobs', side=8}"])
    for refused in (lambda: launch.run(study, home=home), lambda: runs._may_begin(study, home)):
        with pytest.raises(StudyError, match=words):
            refused()
    assert not (home / "refused").exists()


def test_weights_of_another_step_than_that_of_the_score_are_not_taken(home: Path, tmp_path: Path) -> None:
    """Older parcels hold an earlier validated step beside the last one, though that was better."""
    shutil.copytree(home / "pretrained", tmp_path / "pretrained")
    with launch.Ledger.open(tmp_path / "pretrained" / "ledger.sqlite") as ledger:
        path = parcel_path(tmp_path / "pretrained", str(ledger.trials()[1].checkpoint))
    tensors, facts = parcel.read(path)
    learnt = {k.removeprefix("meta/"): v for k, v in tensors.items() if k.startswith("meta/")}
    parcel.write(path, tensors | {f"best/{k}": v + 1 for k, v in learnt.items()}, facts | {"best_score": 0.1, "best_step": 4})
    begun = weights("pretrained/1", tmp_path)
    assert set(begun) == set(learnt)
    assert all(torch.equal(begun[k], learnt[k]) for k in learnt)
    restored = restore("pretrained/1", home=tmp_path)
    assert restored.step == facts["step"]
    assert all(torch.equal(v, learnt[k]) for k, v in restored.meta.items())


def test_the_start_is_a_part_of_what_a_study_is_and_its_absence_none(home: Path) -> None:
    plain = _study(home, "plain", "maml", "8,")
    assert plain.with_(["train.start=pretrained/1"]).digest != plain.digest
    table = {k: v for k, v in plain.to_json().items() if k not in ("name", "driver", "track")}
    table["space"] = "file:" + hashlib.sha256(Path(plain.space_name).read_bytes()).hexdigest()[:16]
    del table["train"]["start"], table["repeats"]
    told = json.dumps(table, sort_keys=True, separators=(",", ":"))
    assert plain.digest == hashlib.sha256(told.encode()).hexdigest()[:16], "studies of before there was a start go on"
