"""The benchmark of architecture search: its space never outweighs Conv-4, and its parts add up and survive a stop."""
from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metasearch import measure
from metasearch.nets import Params
from metasearch.records import Config, Report
from metasearch.space import Choice
from metasearch.tasks import TaskShape

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import _block_nets
import _contest as _parts
import _conv4_tuned
import architecture_search as benchmark
from _contest import Clock, Pace, read, write
from _report import Kept, Options

OMNIGLOT, CIFAR = TaskShape((1, 28, 28), 20, 1, 5), TaskShape((3, 32, 32), 5, 1, 15)
PLAIN = (("first", "3x3"), ("second", "none"), ("down", "max"))
CONV4: Config = {"down0": "max", **{f"{k}{i}": v for i in (1, 2, 3) for k, v in PLAIN}}


def _parameters(config: Config, shape: TaskShape) -> int:
    return measure.parameters(_block_nets.recipe(config, shape).net.init(Generator().manual_seed(0)))


@pytest.mark.parametrize("shape", [OMNIGLOT, CIFAR], ids=["omniglot", "cifar"])
def test_the_heaviest_member_has_at_most_the_parameters_of_conv4(shape: TaskShape) -> None:
    """Parameters are a sum over dimensions, so the heaviest option of each makes the heaviest member."""
    most = measure.parameters(_conv4_tuned.standard(shape.x).init(Generator().manual_seed(0)))
    heaviest = dict(CONV4)
    for path, dim in _block_nets.SPACE.dims.items():
        assert isinstance(dim, Choice)
        heaviest[path] = max(dim.values, key=lambda value: _parameters({**CONV4, path: value}, shape))
    assert _parameters(heaviest, shape) <= most
    assert _parameters(heaviest, shape) > 0.8 * most  # the space is not poor either


def _batch_norm(params: Params, key: str, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, params[f"net/{key}/norm/weight"], params[f"net/{key}/norm/bias"], training=True)


def test_a_narrower_conv4_is_a_member() -> None:
    net = _block_nets.recipe(CONV4, CIFAR).net
    params = net.init(Generator().manual_seed(0))
    x = torch.randn(40, 3, 32, 32, generator=Generator().manual_seed(1))
    z = x
    for key in ("stem", *(f"first{i}/nor_conv_3x3" for i in (1, 2, 3))):
        z = F.conv2d(z, params[f"net/{key}/weight"], padding=1)
        z = F.max_pool2d(F.relu(_batch_norm(params, key, z)), 2)
    torch.testing.assert_close(net.apply(params, x), z.flatten(1), rtol=1e-4, atol=1e-4)
    assert net.features == z.flatten(1).shape[1] == 256


@pytest.mark.parametrize("seed", range(4))
def test_a_mixture_at_a_corner_is_the_member(seed: int) -> None:
    """Logits of 0 at the member's options and -inf elsewhere; and whole numbers, which compute these options alone."""
    config = _block_nets.SPACE.sample(np.random.default_rng(seed))
    net, mixture = _block_nets.recipe(config, OMNIGLOT).net, _block_nets.relaxed(config, OMNIGLOT).net
    params = mixture.init(Generator().manual_seed(0))
    x = torch.rand(5, 1, 28, 28, generator=Generator().manual_seed(1), dtype=torch.float64)
    own = {k: params[k].double() for k in net.init(Generator().manual_seed(0))}
    wanted = net.apply(own, x)
    corner = {k: v.double() for k, v in params.items()}
    for path, dim in _block_nets.SPACE.dims.items():
        assert isinstance(dim, Choice)
        number = dim.values.index(config[path])
        corner[f"arch/{path}"] = torch.full((len(dim.values),), -torch.inf, dtype=torch.float64)
        corner[f"arch/{path}"][number] = 0.0
    torch.testing.assert_close(mixture.apply(corner, x), wanted, rtol=1e-9, atol=1e-9)
    numbers = {path: dim.values.index(config[path]) for path, dim in _block_nets.SPACE.dims.items() if isinstance(dim, Choice)}
    sampled = {**corner, **{f"arch/{path}": torch.tensor(number) for path, number in numbers.items()}}
    torch.testing.assert_close(mixture.apply(sampled, x), wanted, rtol=1e-9, atol=1e-9)


def _tested(scores: list[float]) -> benchmark.Tested:
    return benchmark.Tested(scores, validation=0.5, training=0.5, steps=10, minutes=1.0, params=100.0, flops=1e6)


def test_the_interval_is_one_over_episodes_of_the_mean_over_seeds() -> None:
    """Two seeds that err on opposite episodes leave no spread between episodes."""
    mean, half = benchmark.across([_tested([0.0, 1.0, 0.0, 1.0]), _tested([1.0, 0.0, 1.0, 0.0])])
    assert (mean, half) == (50.0, 0.0)
    mean, half = benchmark.across([_tested([0.2, 0.4, 0.6])])
    assert mean == pytest.approx(40.0)
    assert half == pytest.approx(100 * 1.96 * statistics.stdev([0.2, 0.4, 0.6]) / 3**0.5)


def _contest(folder: Path, method: str = "enas", *, go_on: bool = True) -> benchmark.Contest:
    return benchmark.Contest(method, "cifar", Path("nowhere"), folder, 30.0, 10.0, 1000, 1, go_on)


def test_a_new_search_gets_a_folder_of_its_own_and_a_resumed_one_the_last(tmp_path: Path) -> None:
    assert _contest(tmp_path).name == _contest(tmp_path, go_on=False).name == "cifar-enas-30m1-1"
    for number in (1, 2, 10):
        (tmp_path / "architecture_search" / f"cifar-enas-30m1-{number}").mkdir(parents=True)
    assert _contest(tmp_path).name == "cifar-enas-30m1-10"
    assert _contest(tmp_path, go_on=False).name == "cifar-enas-30m1-11"
    assert _contest(tmp_path, "random").name == "cifar-random-30m1-1"


def test_files_have_the_names_under_which_tables_that_were_begun_have_them(tmp_path: Path) -> None:
    contest, folder = _contest(tmp_path), tmp_path / "architecture_search" / "cifar-enas-30m1-1"
    assert (contest.found_file, contest.seed_file(2)) == (folder / "found.json", folder / "tested" / "10m-1000-2.json")
    write(folder / "tested" / "10m.json", Pace(1.0, 2.0, 37))
    assert contest.steps == 37, "a pace that was measured is not measured again"


def test_trainings_that_are_measured_beside_each_other_take_turns() -> None:
    """So that what else the machine does slows both; a search that warms up is not measured."""
    seen: list[str] = []

    def objective(config: Config, work: int) -> Iterator[Report]:
        while True:
            seen.append(str(config["name"]))
            sum(i * i for i in range(work))
            yield Report(step=len(seen), metrics={})

    def of(work: int) -> Any:
        return lambda proposal, trial: objective(proposal.config, work)

    slow, fast = _parts.paces([(of(400_000), {"name": "a"}), (of(100_000), {"name": "b"})], 1, every=2, times=3)
    assert seen == ["a", "b"] * 4
    assert 2 < slow / fast < 8


def test_a_minute_is_what_it_was_when_the_yardstick_was_first_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has become twice as slow since: a net that costs 1.5 yardsticks gets the steps that it would have got."""
    contest, nothing = _contest(tmp_path), SimpleNamespace()
    monkeypatch.setattr(benchmark.Contest, "yardstick", (nothing, {}))
    monkeypatch.setattr(_parts, "cost", lambda *given, **more: (0.5, 99.0))
    monkeypatch.setattr(_parts, "endless", lambda train, every: train)
    for theirs, ours in ((2.0, 2.0), (4.0, 6.0)):
        monkeypatch.setattr(_parts, "paces", lambda *given, ours=ours, theirs=theirs, **more: [ours, theirs])
        once, each = contest.measured(nothing, {}, every=3, times=5)  # type: ignore[arg-type]
    assert (once, each) == (0.5, 3.0)


def test_a_row_is_made_of_what_is_kept_and_laid_beside_the_baseline(tmp_path: Path) -> None:
    """Nothing is trained: there are no pictures where this looks."""
    found = benchmark.Found(CONV4, 3, 0.5, 40, 100, None, 29.9, None, None)
    for method, scores in (("enas", [0.5, 0.7]), ("conv4", [0.4, 0.6])):
        contest = _contest(tmp_path, method)
        write(contest.found_file, found)
        assert contest.mean(2) is None
        for seed in range(2):
            write(contest.seed_file(seed), _tested([score + 0.1 * seed for score in scores]))
    row, = _contest(tmp_path).row(2)
    assert (row.ours, row.reference) == (pytest.approx(65.0), pytest.approx(55.0))
    assert (row.conditions["lowest"], row.conditions["highest"]) == (60.0, 70.0)
    assert row.conditions["found"] == "max 3x3 none max 3x3 none max 3x3 none max"
    assert _contest(tmp_path, "conv4").row(2)[0].reference is None


def test_parts_are_cases_until_the_row_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_DATA", str(tmp_path))
    extra = SimpleNamespace(data=["cifar"], search_minutes=30.0, train_minutes=10.0, episodes=1000, threads=1)
    options = Options(("enas",), 2, None, False, True, tmp_path, extra, float("inf"))  # type: ignore[arg-type]
    keys = [case.key for case in benchmark.cases(options)]
    assert [key.get("part") for key in keys] == ["search", "seed 0", "seed 1", None]
    assert keys[-1] == {"method": "enas", "data": "cifar", "search_minutes": 30.0, "train_minutes": 10.0, "episodes": 1000,
                        "threads_used": 1}
    Kept(tmp_path / "architecture_search.jsonl").append({**keys[-1], "seeds": 2}, [{"name": "enas"}])
    assert [case.key for case in benchmark.cases(options)] == keys[-1:]


def test_the_clock_goes_on_where_an_earlier_session_stopped(tmp_path: Path) -> None:
    file = tmp_path / "processor.txt"
    file.write_text("100.0")
    clock = Clock(file, threads=1)
    sum(i * i for i in range(200_000))
    clock.write()
    assert 100.0 < float(file.read_text()) < 101.0
    assert Clock(file, threads=1).seconds >= float(file.read_text())


def test_what_is_kept_is_read_as_it_was(tmp_path: Path) -> None:
    found = benchmark.Found(CONV4, 3, 0.5, None, 100, 2000, 29.9, 0.25, -0.1)
    write(tmp_path / "found.json", found)
    assert read(benchmark.Found, tmp_path / "found.json") == found
    assert asdict(found)["config"] == CONV4
