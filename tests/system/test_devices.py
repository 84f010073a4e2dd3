"""A trial on several devices is the trial on one: the meta-batch is split over them, by the study's own `driver.devices`."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from killable import table

from metasearch.driver import launch
from metasearch.driver.study import Driver, Study, StudyError
from metasearch.ledger import Ledger
from metasearch.objectives import parcel

Trained = tuple[list[float], list[dict[str, torch.Tensor]], int]


def trained(home: Path, monkeypatch: pytest.MonkeyPatch, **driver: Any) -> Trained:
    """Scores and weights of a study's trials, and how many calculations of gradients it took."""
    from metasearch.objectives import episodic

    calls, gradient = 0, episodic.mean_gradient

    def counted(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        return gradient(*given)

    monkeypatch.setattr(episodic, "mean_gradient", counted)
    study = Study.from_json(table(budget={"trials": 3}, driver={"kind": "local", **driver}))
    launch.run(study, home=home)
    monkeypatch.undo()
    with Ledger.open(home / "t" / "ledger.sqlite") as ledger:
        rows = list(ledger.trials().values())
    scores = [row.outcome.score for row in rows if row.outcome is not None and row.outcome.score is not None]
    assert len(scores) == 3
    return scores, [parcel.read(Path(row.checkpoint or ""))[0] for row in rows], calls


def test_a_study_on_two_devices_is_the_study_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, weights, calls = trained(tmp_path / "one", monkeypatch)
    for devices in (["cpu", "cpu"], ["cpu"] * 3):  # four episodes: 2 + 2, and 2 + 1 + 1
        again, theirs, more = trained(tmp_path / str(len(devices)), monkeypatch, devices=devices)
        assert more == calls * len(devices), "every step's meta-batch is split"
        assert again == pytest.approx(scores, abs=1e-6)
        for ours, other in zip(weights, theirs, strict=True):
            assert ours.keys() == other.keys()
            for key, value in ours.items():
                assert (value - other[key]).abs().max() <= 1e-6, key


def test_a_trial_has_the_devices_of_its_share() -> None:
    assert Driver().trial_devices == ("cpu",)
    assert Driver(gpus=0.25).trial_devices == ("cuda:0",)
    assert Driver(gpus=3).trial_devices == ("cuda:0", "cuda:1", "cuda:2")
    assert Driver(gpus=2, devices=("cuda:1",)).trial_devices == ("cuda:1",)


@pytest.mark.parametrize(("driver", "said"), [
    ({"gpus": 1.5}, "must be a part of one GPU (0.5) or a whole number of them, but got 1.5"),
    ({"devices": ["cuda:0"]}, "devices must be among those of a trial with gpus = 0, which are cpu, but got cuda:0"),
    ({"gpus": 2, "devices": ["cuda:0", "cuda:2"]}, "which are cuda:0, cuda:1, but got cuda:2"),
    ({"devices": ["gpu"]}, "driver.devices"),
    ({"devices": []}, "driver.devices"),
])
def test_devices_that_a_trial_cannot_have_are_a_problem_of_the_study(driver: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError) as error:
        Study.from_json(table(driver={"kind": "local", **driver}))
    assert said in str(error.value)


def test_more_gpus_than_there_are_is_said_before_anything_starts(tmp_path: Path) -> None:
    more = torch.cuda.device_count() + 1
    with pytest.raises(StudyError, match=rf"driver.gpus = {more}, but this machine has {more - 1}, so no trial could start"):
        launch.run(Study.from_json(table(driver={"kind": "local", "gpus": more})), home=tmp_path)
    assert not (tmp_path / "t").exists()
