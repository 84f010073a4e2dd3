"""The contract of a task distribution: what every one must hold, whatever its pictures or functions are.

    from metasearch.testing import tasks
    tasks.check("glyphs")                                            # all laws; raises AssertionError in words
    tasks.check("path/to/mine.py", {"root": "data"}, ways=3)         # a file of your own

or, one test a law, with pytest:

    @pytest.mark.parametrize("law", tasks.LAWS, ids=lambda law: law.__name__)
    def test_contract(law):
        law(tasks.Case("path/to/mine.py", {"root": "data"}))

Laws are exact, but for two that look at frequencies: `labels_are_fresh_in_every_episode` is 5 standard errors wide at the largest
variance that there is, which a right distribution misses less than once in a million runs;
`positions_say_nothing_of_labels` misses less than once in ten thousand.
"""
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from metasearch.tasks import SPLITS, Episode, Split, TaskDistribution, TaskShape, build, open_test

__all__ = ["LAWS", "Case", "check"]


@dataclass(frozen=True)
class Case:
    """A task distribution, by name and arguments, and the episodes that the laws draw (for regression `ways` is not used).

    splits: those that it has; val is needed by a study, so a distribution without one is worth a thought.
    """

    tasks: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ways: int = 3
    shots: int = 2
    queries: int = 2
    splits: tuple[Split, ...] = SPLITS

    def __str__(self) -> str:
        told = "".join(f"-{k}={v}" for k, v in self.arguments.items() if "/" not in str(v))
        return f"{self.tasks}{told}"

    def build(self) -> TaskDistribution:
        return build(self.tasks, self.arguments)

    @cached_property
    def built(self) -> TaskDistribution:
        return self.build()

    @cached_property
    def shape(self) -> TaskShape:
        ways = self.ways if self.built.kind == "classes" else self.built.usual_ways
        return self.built.shape(ways=ways, shots=self.shots, queries=self.queries)

    def draw(self, n: int, split: Split = "train", seed: int = 0) -> Episode:
        generator = Generator().manual_seed(seed)
        if split == "test":
            return open_test(self.built, _unrecorded).sample_episodes(n, shape=self.shape, generator=generator)
        return self.built.sample_episodes(n, split=split, shape=self.shape, generator=generator)


def check(name: str, arguments: Mapping[str, Any] | None = None, *, ways: int = 3, shots: int = 2, queries: int = 2) -> None:
    """All laws. Raises AssertionError that says which one does not hold, and why."""
    case = Case(name, arguments or {}, ways, shots, queries)
    for law in LAWS:
        law(case)


def fields_have_the_shapes_asked_for(case: Case) -> None:
    shape = case.shape
    each = shape.ways if case.built.kind == "classes" else 1
    rows = (each * shape.shots, each * shape.queries)
    for split in case.splits:
        for n in (0, 1, 3):
            e = case.draw(n, split)
            expected = ((n, rows[0], *shape.x), (n, rows[0], shape.ways), (n, rows[1], *shape.x), (n, rows[1], shape.ways))
            shapes = tuple(tuple(t.shape) for t in e[:4])
            assert shapes == expected, f"{n} episodes of {split} must have fields {expected}, but have {shapes}"
            assert e.count == n
            for tensor in (e.support_x, e.support_y, e.query_x, e.query_y):
                assert tensor.dtype == torch.float32, f"fields must be float32, but one is {tensor.dtype}"
                assert bool(tensor.isfinite().all()), "fields must be finite"


def labels_are_one_hot_and_balanced(case: Case) -> None:
    if case.built.kind != "classes":
        return
    e = case.draw(20)
    for y, each in ((e.support_y, case.shots), (e.query_y, case.queries)):
        assert bool(((y == 0) | (y == 1)).all()), "labels must be one-hot"
        assert bool((y.sum(dim=-1) == 1).all()), "labels must be one-hot"
        assert bool((y.sum(dim=1) == each).all()), f"every label must have {each} rows, but has {y.sum(dim=1).tolist()}"


def labels_are_fresh_in_every_episode(case: Case) -> None:
    """Whoever remembers the labels of the nearest inputs of other episodes must guess no better than chance."""
    if case.built.kind != "classes":
        return
    episodes, ways = 300, case.shape.ways
    known, asked = case.draw(episodes, seed=1), case.draw(episodes, seed=2)
    nearest = torch.cdist(asked.query_x.flatten(0, 1).flatten(1), known.support_x.flatten(0, 1).flatten(1)).argmin(dim=1)
    guessed = known.support_y.flatten(0, 1).argmax(dim=-1)[nearest]
    right = float((guessed == asked.query_y.flatten(0, 1).argmax(dim=-1)).double().mean())
    chance = 1 / ways
    width = 5 * (chance * (1 - chance) / episodes) ** 0.5  # as if all queries of an episode were right or wrong together
    assert right < chance + width, f"labels are not fresh: remembered ones are right in {right:.3f}, chance is {chance:.3f}"


def positions_say_nothing_of_labels(case: Case) -> None:
    if case.built.kind != "classes":
        return
    episodes, chance = 400, 1 / case.shape.ways
    e = case.draw(episodes, seed=3)
    width = 5 * (chance * (1 - chance) / episodes) ** 0.5
    for y in (e.support_y, e.query_y):
        worst = float((y.mean(dim=0) - chance).abs().max())
        assert worst < width, f"a label stands at one position in {chance + worst:.2f} of episodes, but should in {chance:.2f}"


def supports_and_queries_share_no_input(case: Case) -> None:
    for split in case.splits:
        e = case.draw(30, split)
        for i in range(e.count):
            rows = torch.cat((e.support_x[i], e.query_x[i])).flatten(1)
            apart = {row.numpy().tobytes() for row in rows}
            assert len(apart) == len(rows), f"an episode of {split} holds the same input twice"


def splits_share_no_input(case: Case) -> None:
    """Drawn with the same seed, so that splits that are one stream of one law are caught too. Tasks of a regression may be
    other functions of the same inputs: there train shares no input, val and test no query with its value."""
    seen: dict[Split, set[bytes]] = {}
    for split in case.splits:
        e = case.draw(60, split)
        x = torch.cat((e.support_x, e.query_x), dim=1).flatten(0, 1).flatten(1)
        queries = torch.cat((e.query_x.flatten(2), e.query_y), dim=-1).flatten(0, 1)
        inputs, pairs = _rows(x), _rows(queries)
        for other, known in seen.items():
            own = pairs if case.built.kind == "regression" and other != "train" else inputs
            assert not own & known, f"{other} and {split} share an input"
        seen[split] = pairs if case.built.kind == "regression" and split != "train" else inputs


def equal_generators_draw_equal_episodes(case: Case) -> None:
    for split in case.splits:
        assert _same(case.draw(5, split), case.draw(5, split)), f"two draws from {split} with equal generators differ"
        assert not _same(case.draw(5, split, seed=0), case.draw(5, split, seed=1)), f"{split} does not depend on the generator"
    generator = Generator().manual_seed(0)
    one, two = (case.built.sample_episodes(5, split="train", shape=case.shape, generator=generator) for _ in range(2))
    assert not _same(one, two), "the generator is not moved on by a draw"


def draws_leave_global_generators_alone(case: Case) -> None:
    before = torch.random.get_rng_state()
    numpys = np.random.get_state()[1].copy()  # type: ignore[index]
    case.draw(3)
    assert torch.equal(before, torch.random.get_rng_state()), "torch's global generator was used"
    assert bool((numpys == np.random.get_state()[1]).all()), "numpy's global generator was used"  # type: ignore[index]


def episodes_are_the_callers_own(case: Case) -> None:
    """Writing into an episode must not reach the data."""
    first = case.draw(5)
    kept = first.map(Tensor.clone)
    for tensor in _tensors(first):
        tensor.zero_()
    assert _same(case.draw(5), kept), "what is written into an episode shows in later ones"


def the_test_split_is_sealed(case: Case) -> None:
    tasks, generator = case.built, Generator().manual_seed(0)
    said = _refusal(
        PermissionError, lambda: tasks.sample_episodes(1, split="test", shape=case.shape, generator=generator),
        "the test split opened without open_test")
    assert "open_test" in said, f"the refusal must say how the split is opened, but says: {said}"
    _refusal(PermissionError, lambda: tasks.bank("test", 1, seed=0, shape=case.shape), "a test bank was made without open_test")


def an_opening_is_recorded_first(case: Case) -> None:
    rows: list[dict[str, str]] = []
    open_test(case.built, rows.append)
    assert [row["digest"] for row in rows] == [case.built.digest], f"one row with the digest must be recorded, but got {rows}"

    def full(row: dict[str, str]) -> None:
        raise OSError("the disk is full")

    _refusal(OSError, lambda: open_test(case.built, full), "the test split opened although its opening was not recorded")


def banks_are_fixed(case: Case) -> None:
    tasks, shape = case.built, case.shape
    bank = tasks.bank("val", 6, seed=0, shape=shape)
    again = case.build().bank("val", 6, seed=0, shape=shape)
    assert _same(bank.episodes, again.episodes), "the same bank, made twice, differs"
    assert bank.digest == again.digest, "equal banks must have equal digests"
    others = [tasks.bank("val", 6, seed=1, shape=shape), tasks.bank("train", 6, seed=0, shape=shape)]
    assert bank.digest not in {other.digest for other in others}, "a bank must depend on its seed and its split"


def banks_are_equal_in_another_process(*cases: Case) -> None:
    """One process for all that are given."""
    program = (
        "import json, sys\n"
        "from metasearch.testing.tasks import Case\n"
        "for told in json.loads(sys.argv[1]):\n"
        "    case = Case(**told)\n"
        "    print(case.built.digest, case.built.bank('val', 6, seed=0, shape=case.shape).digest)\n"
    )
    told = json.dumps([{"tasks": case.tasks, "arguments": dict(case.arguments), "ways": case.ways, "shots": case.shots,
                        "queries": case.queries} for case in cases])
    ran = subprocess.run([sys.executable, "-c", program, told], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, f"another process cannot build these tasks: {ran.stderr[-2000:]}"
    for case, there in zip(cases, ran.stdout.splitlines(), strict=True):
        own = [case.built.digest, case.built.bank("val", 6, seed=0, shape=case.shape).digest]
        assert there.split() == own, f"{case}: another process has data and bank {there.split()}, this one {own}"


def episodes_are_the_same_after_a_move(case: Case) -> None:
    """To every device that is here, and back."""
    kept, moved = case.draw(5), case.build()
    for device in ("cpu", *(("cuda",) if torch.cuda.is_available() else ()), "cpu"):
        assert moved.to(device) is moved, "`to` must return the tasks themselves"
        assert moved.device == torch.device(device), f"`device` must be {device} after a move there"
        e = moved.sample_episodes(5, split="train", shape=case.shape, generator=Generator().manual_seed(0))
        assert e.support_x.device.type == torch.device(device).type, f"episodes must be on {device}"
        assert all(torch.allclose(a.cpu(), b, atol=1e-6) for a, b in zip(_tensors(e), _tensors(kept), strict=True)), (
            f"episodes drawn on {device} differ from those drawn on the CPU")


def impossible_shapes_are_refused_in_words(case: Case) -> None:
    tasks, shape = case.built, case.shape
    wrong = [shape._replace(x=(*shape.x, 3)), shape._replace(ways=0), shape._replace(shots=0), shape._replace(queries=0),
             shape._replace(ways=10**6)]
    for split in case.splits:
        tasks.check(shape, split)
        for one in wrong:
            said = _refusal(ValueError, partial(tasks.check, one, split), f"{one} was accepted for {split}")
            assert any(c.isdigit() for c in said), f"the refusal must give the values, but says: {said}"
    generator = Generator().manual_seed(0)
    for n, one in ((1, wrong[-1]), (-1, shape)):
        attempt = partial(tasks.sample_episodes, n, split="train", shape=one, generator=generator)
        _refusal(ValueError, attempt, f"{n} episodes of {one} were drawn")


def unknown_arguments_are_refused_in_words(case: Case) -> None:
    said = _refusal(
        ValueError, lambda: build(case.tasks, {**case.arguments, "no_such_argument": 1}), "an unknown argument was accepted")
    assert "no_such_argument" in said, f"the refusal must name the argument, but says: {said}"


def a_right_answer_scores_best(case: Case) -> None:
    e = case.draw(4)
    for i in range(e.count):
        y = e.query_y[i]
        right, wrong = (20 * y, 20 * y.roll(1, dims=-1)) if case.built.kind == "classes" else (y, -y)
        assert float(case.built.loss(right, y)) < float(case.built.loss(wrong, y)), "a right answer must have the smaller loss"
        assert float(case.built.score(right, y)) > float(case.built.score(wrong, y)), "a right answer must have the larger score"


def loss_and_score_are_of_one_episode_and_can_be_mapped(case: Case) -> None:
    e = case.draw(4)
    output = torch.randn(e.query_y.shape, generator=Generator().manual_seed(0))
    for f in (case.built.loss, case.built.score):
        looped = torch.stack([f(output[i], e.query_y[i]) for i in range(e.count)])
        assert looped.shape == (e.count,), f"{f.__name__} must give one number an episode"
        assert torch.allclose(torch.func.vmap(f)(output, e.query_y), looped, atol=1e-6), f"{f.__name__} differs under vmap"
    gradients = torch.func.vmap(torch.func.grad(case.built.loss))(output, e.query_y)
    leaf = output.clone().requires_grad_()
    torch.stack([case.built.loss(leaf[i], e.query_y[i]) for i in range(e.count)]).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert torch.allclose(gradients, leaf.grad, atol=1e-6), "the loss's gradient differs under vmap"


def shifted_tasks_are_other_tasks_or_refused(case: Case) -> None:
    try:
        shifted = case.built.shifted()
    except ValueError:
        return
    assert shifted.digest != case.built.digest, "shifted tasks must be other tasks"
    assert shifted.kind == case.built.kind, "shifted tasks must be of the same kind"
    assert shifted.input_shape == case.built.input_shape, "shifted tasks must have the same inputs"


def parts_share_out_the_training_classes(case: Case) -> None:
    tasks = case.built
    if tasks.kind != "classes":
        return
    try:
        parts = tasks.part(0.5, 0), tasks.part(0.5, 1)
    except ValueError:
        return
    counts = [part.class_count("train") for part in parts]
    whole = tasks.class_count("train")
    assert sum(counts) == whole, f"the parts have {counts} training classes, but the whole has {whole}"
    assert len({tasks.digest, *(part.digest for part in parts)}) == 3, "parts draw other episodes, so they have other digests"
    drawn = [
        part.sample_episodes(3, split="val", shape=case.shape, generator=Generator().manual_seed(0)) for part in (tasks, *parts)
    ]
    assert all(_same(drawn[0], other) for other in drawn[1:]), "a part must leave val as it is"


LAWS: tuple[Callable[[Case], None], ...] = (
    fields_have_the_shapes_asked_for,
    labels_are_one_hot_and_balanced,
    labels_are_fresh_in_every_episode,
    positions_say_nothing_of_labels,
    supports_and_queries_share_no_input,
    splits_share_no_input,
    equal_generators_draw_equal_episodes,
    draws_leave_global_generators_alone,
    episodes_are_the_callers_own,
    the_test_split_is_sealed,
    an_opening_is_recorded_first,
    banks_are_fixed,
    banks_are_equal_in_another_process,
    episodes_are_the_same_after_a_move,
    impossible_shapes_are_refused_in_words,
    unknown_arguments_are_refused_in_words,
    a_right_answer_scores_best,
    loss_and_score_are_of_one_episode_and_can_be_mapped,
    shifted_tasks_are_other_tasks_or_refused,
    parts_share_out_the_training_classes,
)


def _rows(t: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in t}


def _tensors(e: Episode) -> tuple[Tensor, ...]:
    return (e.support_x, e.support_y, e.query_x, e.query_y)


def _same(a: Episode, b: Episode) -> bool:
    return all(torch.equal(x, y) for x, y in zip(_tensors(a), _tensors(b), strict=True))


def _refusal(kind: type[Exception], attempt: Callable[[], object], otherwise: str) -> str:
    """What an attempt is refused with; AssertionError if it is not refused."""
    try:
        attempt()
    except kind as error:
        return str(error)
    raise AssertionError(otherwise)


def _unrecorded(row: dict[str, str]) -> None:
    """A contract test chooses between nothing, so its openings are nobody's to record."""
