"""What `few_shot.py` says of a learner: its score, how well it verifies, and where its weights came from."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import few_shot  # noqa: E402
from _recipes import Entry  # noqa: E402
from _report import benchmark  # noqa: E402

from metasearch.learners import Learner  # noqa: E402
from metasearch.learners.maml import MAML  # noqa: E402
from metasearch.learners.prototypical import Prototypical  # noqa: E402
from metasearch.nets.mlp import mlp  # noqa: E402
from metasearch.objectives import parcel  # noqa: E402
from metasearch.objectives.optimizer import adam  # noqa: E402
from metasearch.objectives.recipe import Recipe  # noqa: E402
from metasearch.records import Config  # noqa: E402
from metasearch.tasks import TaskDistribution, TaskShape  # noqa: E402
from metasearch.tasks.blobs import Blobs  # noqa: E402

Run = Callable[..., list[dict[str, Any]]]


class Movable(Blobs):
    def shifted(self, strength: float = 1.0) -> TaskDistribution:
        return Movable(separation=1.0)


def _entry(learner: Learner, steps: int | None) -> Entry:
    def recipe(config: Config, shape: TaskShape) -> Recipe:
        net = mlp(shape.x, shape.ways if learner.head else None, hidden=(8,))
        return Recipe(net, learner, adam(0.01), meta_batch=2, steps=1, episode=shape._replace(queries=2))

    return Entry("blobs", recipe, "vmap", None, "", 0.0, steps=steps, ways=3, queries=4)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the benchmark on blobs, as the command line does."""
    monkeypatch.setitem(few_shot.TASKS, "blobs", lambda data: Movable())
    monkeypatch.setitem(few_shot.ENTRIES, "compares", _entry(Prototypical(), 1))
    monkeypatch.setitem(few_shot.ENTRIES, "predicts", _entry(MAML(), 1))
    monkeypatch.setitem(few_shot.ENTRIES, "paced", _entry(Prototypical(), None))
    monkeypatch.setattr(few_shot, "keep_freed_memory", lambda: None)  # it is for ever
    threads = torch.get_num_threads()

    def run(*argv: str) -> list[dict[str, Any]]:
        code = benchmark(
            few_shot.__file__, None, few_shot.cases, seeds=1, arguments=few_shot.arguments,
            argv=[*argv, "--json", "--results", str(tmp_path), "--threads", "1", "--episodes", "20"],
        )
        assert code == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    yield run  # type: ignore[misc]
    torch.set_num_threads(threads)


def test_a_learner_that_compares_pairs_has_a_row_of_verification(run: Run) -> None:
    score, verification = run("compares")
    assert (score["name"], score["unit"]) == ("compares", "%")
    assert (verification["name"], verification["unit"], verification["better"]) == ("compares verification", "AUC", "higher")
    assert 0.6 < verification["ours"] <= 1, "blobs are apart from the beginning"
    assert verification["steps"] == score["steps"] == 1
    assert [row["name"] for row in run("predicts")] == ["predicts"]


def test_a_run_on_earlier_weights_says_how_those_were_trained(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(few_shot, "steps_within", lambda seconds, train, threads: 1)
    first = run("paced", "--minutes", "0.5")[0]
    assert (first["minutes"], first["steps"], first["tasks_seen"]) == (0.5, 1, 2)
    again = run("paced", "--minutes", "7", "--shift")
    assert [row["name"] for row in again] == [
        "paced", "paced verification", "paced shifted", "paced shifted verification",
    ]
    for row in again:
        assert row["weights"] == "paced-0.safetensors"
        assert {k: row[k] for k in few_shot.TRAINED} == {k: first[k] for k in few_shot.TRAINED}
        assert row["weights_code"] == first["code"]
    weights = tmp_path / "parcels" / "paced-0.safetensors"
    tensors, facts = parcel.read(weights)
    parcel.write(weights, tensors, {k: v for k, v in facts.items() if k not in ("conditions", "code")})
    old = run("paced", "--minutes", "7", "--shift")[0]
    assert {old[k] for k in [*few_shot.TRAINED, "weights_code"]} == {"unknown"}


def test_minutes_are_no_condition_where_the_steps_are_fixed(run: Run, tmp_path: Path) -> None:
    row = run("compares", "--minutes", "0.5")[0]
    assert row["steps"] == 1
    assert "minutes" not in row
    assert "minutes" not in run("compares", "--minutes", "0.5", "--shift")[0]
    keys = [json.loads(json.loads(line)["key"]) for line in (tmp_path / "few_shot.jsonl").read_text().splitlines()]
    assert {k["minutes"] for k in keys} == {0.5}, "the key is as before, for --resume"
