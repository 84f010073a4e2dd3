"""Latencies are the published ones, split as published; Spearman's correlation is scipy's; nothing of the queries leaks."""
from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
import task_data
import torch
from scipy.stats import spearmanr
from torch import Generator

from metasearch.cli.live import Unit
from metasearch.records import ERRORS
from metasearch.tasks import SPLITS, Episode, Split, TaskShape, build, open_test
from metasearch.tasks._archive import DataError
from metasearch.tasks.latency import DEVICES, Latency, spearman


@pytest.fixture(scope="module")
def real(data: Path) -> Latency:
    return Latency(str(data / "regression" / "help_fbnet_latency.csv.gz"))


def _drawn(tasks: Latency, n: int, split: Split, shots: int, queries: int) -> Episode:
    shape, generator = tasks.shape(ways=1, shots=shots, queries=queries), Generator().manual_seed(0)
    if split == "test":
        return open_test(tasks, lambda row: None).sample_episodes(n, shape=shape, generator=generator)
    return tasks.sample_episodes(n, split=split, shape=shape, generator=generator)


@pytest.mark.parametrize("levels", [3, 50, 10**9], ids=["many ties", "some ties", "no ties"])
@pytest.mark.parametrize("count", [2, 7, 990])
def test_spearman_is_scipys_with_ties_averaged(levels: int, count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(5):
        a, b = rng.integers(0, levels, (2, count)).astype(float)
        a[0], a[1], b[0], b[1] = 0, 1, 1, 0  # neither is constant
        assert float(spearman(torch.tensor(a), torch.tensor(b))) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_spearman_sees_only_the_order() -> None:
    x = torch.randn(50, generator=Generator().manual_seed(0))
    assert float(spearman(x, x.exp())) == 1
    assert float(spearman(x, -x.sinh())) == -1


def test_a_constant_orders_nothing_and_infinity_is_no_order() -> None:
    x = torch.arange(5.0)
    assert float(spearman(torch.ones(5), x)) == 0
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[2] = bad
        assert not torch.isfinite(spearman(broken, x))


def test_splits_are_the_published_devices_and_architectures(data: Path, real: Latency) -> None:
    with gzip.open(data / "regression" / "help_fbnet_latency.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    one_hot = {torch.eye(9)[[int(o) for o in row["ops"].split()]].flatten().numpy().tobytes(): i for i, row in enumerate(rows)}
    assert [len(DEVICES[split]) for split in SPLITS] == [9, 4, 3]
    for split in SPLITS:
        e = _drawn(real, 12, split, 10, 200)
        seen = set()
        for i in range(e.count):
            x, y = torch.cat((e.support_x[i], e.query_x[i])), torch.cat((e.support_y[i], e.query_y[i]))[:, 0]
            numbers = [one_hot[row.numpy().tobytes()] for row in x]
            assert (max(numbers) < 4000) if split == "train" else (min(numbers) >= 4000)
            # y is a device's latencies, moved and scaled: exactly one device fits
            fits = {
                d for d in rows[0] if d not in ("arch_index", "ops")
                and np.corrcoef([float(rows[a][d]) for a in numbers], y.numpy())[0, 1] > 1 - 1e-9
            }
            assert len(fits) == 1
            seen |= fits
        assert seen <= set(DEVICES[split])
        assert len(seen) > 1


def test_targets_are_standardised_by_the_supports_alone(real: Latency) -> None:
    e = _drawn(real, 20, "val", 10, 200)
    assert torch.allclose(e.support_y.mean(1), torch.zeros(20, 1), atol=1e-5)
    assert torch.allclose(e.support_y.std(1, correction=0), torch.ones(20, 1), atol=1e-5)
    other = _drawn(real, 20, "val", 10, 5)  # the same draws of supports, other queries: what supports say does not change
    assert torch.equal(other.support_x[0], e.support_x[0])
    assert torch.equal(other.support_y[0], e.support_y[0])
    assert float((e.query_y.mean(1).abs() > 1e-3).float().mean()) > 0.9


def test_all_architectures_that_are_no_supports_can_be_queries(real: Latency, data: Path) -> None:
    whole = Latency(str(data / "regression" / "help_fbnet_latency.csv.gz"), middle=1.0)
    e = _drawn(whole, 2, "test", 10, 990)
    assert len({row.numpy().tobytes() for row in torch.cat((e.support_x[0], e.query_x[0]))}) == 1000
    real.check(real.shape(ways=1, shots=10, queries=790), "test")
    with pytest.raises(ValueError, match="test has 800 architectures a device, but 10 shots \\+ 990 queries need 1000"):
        real.check(real.shape(ways=1, shots=10, queries=990), "test")


def test_the_middle_leaves_out_the_fastest_and_the_slowest(tmp_path: Path) -> None:
    file = str(task_data.latency(tmp_path / "a.csv.gz"))
    tasks = Latency(file, known=80, middle=0.5)
    for split, pool in tasks._pool.items():
        first, last = (0, 80) if split == "train" else (80, 120)
        for device, mine in enumerate(pool):
            values = np.sort(tasks._latency[split][device][first:last])
            kept = np.sort(tasks._latency[split][device][mine])
            quarter = (last - first) // 4
            assert np.array_equal(kept, values[quarter:-quarter])
    assert tasks.digest != Latency(file, known=80).digest


def test_a_single_support_or_equal_ones_have_a_spread(real: Latency) -> None:
    e = _drawn(real, 50, "train", 1, 20)
    assert bool((e.support_y == 0).all())
    assert bool(e.query_y.isfinite().all())


def test_larger_is_better_and_tables_show_no_minus() -> None:
    assert Latency.unit == "spearman"
    assert Latency.unit not in ERRORS
    assert Unit(Latency.unit).text(0.8061, 0.79, 0.82) == "0.8061 ± 0.015"


@pytest.mark.parametrize(("damage", "words"), [
    (lambda body: body[: len(body) // 2], "cannot be read as a .csv.gz"),
    (lambda body: b"no gzip", "cannot be read as a .csv.gz"),
    (lambda body: gzip.compress(b""), "is empty"),
    (lambda body: gzip.compress(b"a,b\n1,2\n"), "must begin with the columns arch_index and ops"),
    (lambda body: gzip.compress(gzip.decompress(body).replace(b"raspi4", b"raspi5")), "no.* raspi4|none for raspi4"),
    (lambda body: gzip.compress(gzip.decompress(body) + b"\n120,1 2,3\n"), "line 122"),
    (lambda body: gzip.compress(gzip.decompress(body).replace(b"\n1,", b"\n7,", 1)), "arch_index must be 1, but is 7"),
], ids=["torn", "no gzip", "empty", "columns", "device", "row", "order"])
def test_a_damaged_file_is_an_error_in_words(tmp_path: Path, damage: object, words: str) -> None:
    file = task_data.latency(tmp_path / "a.csv.gz")
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=words):
        Latency(str(file), known=80)


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sha256 must be 00"):
        Latency(str(task_data.latency(tmp_path / "a.csv.gz")), known=80, sha256="00")


def test_the_search_space_trains_on_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of every learner order unseen architectures of unseen devices better than chance."""
    from metasearch import plugins
    from metasearch.objectives import Trial
    from metasearch.objectives.train import Train
    from metasearch.records import Proposal

    monkeypatch.setenv("METASEARCH_DATA", str(data))
    tasks = build("latency", {})
    space = plugins.module("spaces", "latency")
    shape: TaskShape = tasks.shape(ways=1, shots=10, queries=50)
    config = {"width": 32, "depth": 1, "activation": "relu", "learner": "maml", "learner.outer_lr": 3e-3,
              "learner.inner_lr": 0.03, "learner.inner_steps": 2}
    space.SPACE.validate(config)
    train = Train(space.recipe, tasks, shape, validation_episodes=20, steps=60, mode="vmap")
    *_, last = train(Proposal(config), Trial(0))
    assert last.score is not None
    assert last.score > 0.3
