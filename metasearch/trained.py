"""A finished meta-learner in a user's hands: restore a trial from its parcel, test it once on the sealed split.

    result = evaluate("glyphs-family/12")          # 600 episodes of the test split; the opening is a row of the ledger
    result.interval, result.curve                  # mean with its 95 % interval; score by number of inner steps
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from metasearch.driver.folder import locked
from metasearch.driver.study import Study
from metasearch.home import home_of, living_in, parcel_path, study_folder
from metasearch.learners import Learner
from metasearch.ledger import Ledger, TrialRow
from metasearch.nets import Net, Params, learnt
from metasearch.objectives import Infeasible, Mode, augmenting, parcel
from metasearch.objectives.evaluation import outputs, scores, similarities
from metasearch.objectives.train import Train
from metasearch.records import Config
from metasearch.tasks import TaskDistribution, TaskShape, TestSplit, open_test
from metasearch.tasks.sinusoid import Sinusoid
from metasearch.track.outbox import catch_up
from metasearch.track.statistics import Interval, mean_interval, roc_auc, tail

__all__ = ["Evaluation", "Point", "Trained", "Wave", "evaluate", "restore"]


@dataclass(frozen=True)
class Trained:
    """A trial's net, learner and weights, on the CPU, ready to adapt. augment: of its recipe (further shots at test time)."""

    name: str
    config: Config
    net: Net
    learner: Learner
    meta: Params
    tasks: TaskDistribution
    shape: TaskShape
    step: int
    augment: object = None


@dataclass(frozen=True)
class Point:
    """Of an adaptation curve: the score after so many inner steps. `diverged`: share of episodes without a finite score."""

    inner_steps: int
    mean: float | None
    low: float | None
    high: float | None
    median: float
    diverged: float


@dataclass(frozen=True)
class Wave:
    """One sine task, for drawing: supports and the true curve, and what is predicted after some numbers of inner steps.

    support: [K, 2] points (x, y); x, truth: [200]; predicted: inner steps -> [200].
    """

    support: list[tuple[float, float]]
    x: list[float]
    truth: list[float]
    predicted: dict[int, list[float]]


@dataclass(frozen=True)
class Evaluation:
    """What a trial is worth on tasks that no search has seen.

    split: "test", "test shifted" or "test, supports on the right half"; scores are larger-is-better (minus the error on
    regression, see unit). An interval covers the draw of the episodes alone.
    verification: area under the ROC curve of "are these two of one class?" over pairs of a query and a support, half of them the
    same; None for learners that compare no pairs, and where supports have wrong labels, by which a pair would be called one.
    """

    trial: str
    split: str
    unit: str
    digest: str
    interval: Interval
    median: float
    diverged: float
    scores: list[float] = field(repr=False)
    curve: list[Point] = field(default_factory=list)
    waves: list[Wave] = field(default_factory=list, repr=False)
    half: Evaluation | None = None
    verification: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: infinite and missing numbers become null."""
        return {k: _finite(v) for k, v in {**asdict(self), "interval": self.interval._asdict()}.items()}


def restore(reference: str, *, home: Path | None = None) -> Trained:
    """The trial "NAME/12" as its last parcel holds it: with the weights of its score (of its best step under keep = "best").

    Raises ValueError for a reference that names no trial with a parcel, parcel.BadParcel if the file is damaged.
    """
    folder, number = _parsed(reference, home)
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        study = Study.from_json(ledger.study()["study"])
        row = _ended(reference, ledger.trials(), number)
    with living_in(folder.parent):
        objective = study.objective()
        # what a search found, it trained
        train = objective if isinstance(objective, Train) else getattr(objective, "train", None)
        if not isinstance(train, Train):
            raise ValueError(f"{reference} was not made by `train`, so it has no meta-learner to restore")
        return _restored(reference, train, row, folder)


def evaluate(
    reference: str, *, home: Path | None = None, episodes: int = 600, seed: int = 0, shift: bool = False, steps: int = 10,
    mode: Mode = "loop", say: Callable[[str], None] = lambda words: None,
) -> Evaluation:
    """Opens the sealed test split (a ledger row says when and for which trial) and scores a trial on it.

    episodes: drawn from the test split with `seed`; equal for all trials of a study; no more than there are different ones
    (`TaskDistribution.test_episodes`), for the same ones again would pass for independent draws. shift: the tasks are moved away
    from those trained on (`TaskDistribution.shifted`). steps: the adaptation curve goes from 0 to so many inner steps.
    Raises LockedError while a driver runs the study.
    """
    if episodes < 2:
        raise ValueError(f"an interval needs 2 episodes or more, but got {episodes}. The field's habit is 600.")
    if steps < 0 or seed < 0:
        raise ValueError(f"`steps >= 0` and `seed >= 0` must hold, but got steps={steps}, seed={seed}")
    folder, _ = _parsed(reference, home)
    Ledger.open(folder / "ledger.sqlite").close()  # a lock is for a study that is there
    with locked(folder):
        trained = restore(reference, home=home)
        tasks = trained.tasks.shifted() if shift else trained.tasks
        tasks.check(trained.shape, "test")
        with Ledger.open(folder / "ledger.sqlite", write=True) as ledger:
            number = int(reference.rpartition("/")[2])

            def record(opening: dict[str, str]) -> None:
                ledger.append("opened", {**opening, "shifted": shift, "trial": reference}, trial=number)

            def tested(tasks: TaskDistribution, split: str) -> Evaluation:
                return _evaluated(trained, tasks, open_test(tasks, record), split, episodes, seed, steps, mode, say)

            result = tested(tasks, "test shifted" if shift else "test")
            if isinstance(tasks, Sinusoid):
                result = replace(result, half=tested(tasks.on("right"), f"{result.split}, supports on the right half"))
            ledger.append("evaluated", {**_told(result), "seed": seed}, trial=number)
            catch_up(folder, ledger.study())
    return result


def _told(found: Evaluation) -> dict[str, Any]:
    """What the ledger keeps of an evaluation: its numbers and its curve, of both halves; no episode by itself."""
    body = {k: v for k, v in found.to_json().items() if k not in ("scores", "waves", "half")}
    return {**body, "episodes": len(found.scores), **({"half": _told(found.half)} if found.half is not None else {})}


def _evaluated(
    trained: Trained, tasks: TaskDistribution, opened: TestSplit, split: str, episodes: int, seed: int, steps: int, mode: Mode,
    say: Callable[[str], None],
) -> Evaluation:
    count = episodes if tasks.test_episodes is None else min(episodes, tasks.test_episodes)
    bank = opened.bank(count, seed=seed, shape=trained.shape)
    say(f"{trained.name}: {count} episodes of {split}{'' if count == episodes else ', all that there are'}")
    given = augmenting.tested(trained.augment, bank.episodes, augmenting.moments(tasks))
    found = scores(trained.net, trained.learner, tasks, trained.meta, given, mode=mode)
    curve = []
    if any(f.name == "inner_steps" for f in fields(trained.learner)):
        for k in range(steps + 1):
            say(f"{trained.name}: {k} inner steps")
            learner = _with_steps(trained.learner, k)
            curve.append(_point(k, scores(trained.net, learner, tasks, trained.meta, given, mode=mode)))
    end = tail(found)
    compared = None
    if tasks.kind == "classes" and not tasks.mislabelled:
        compared = similarities(trained.net, trained.learner, trained.meta, given, seed=seed)
    return Evaluation(
        trained.name, split, tasks.unit, bank.digest, mean_interval(found), end.median, end.diverged, found.tolist(), curve,
        _waves(trained, tasks, opened, seed) if isinstance(tasks, Sinusoid) and not tasks.oracle else [],
        verification=None if compared is None else roc_auc(*compared),
    )


def _point(steps: int, found: Tensor) -> Point:
    end = tail(found)
    if not torch.isfinite(found).all():
        return Point(steps, None, None, None, end.median, end.diverged)
    mean, low, high, _ = mean_interval(found)
    return Point(steps, mean, low, high, end.median, end.diverged)


def _with_steps(learner: Learner, steps: int) -> Learner:
    """The learner as it is tested, with another number of inner steps."""
    changed = {"inner_steps": steps} | ({"test_steps": None} if any(f.name == "test_steps" for f in fields(learner)) else {})
    return replace(learner.at_test(), **changed)


def _waves(trained: Trained, tasks: Sinusoid, opened: TestSplit, seed: int) -> list[Wave]:
    """Three test tasks before and after adaptation."""
    shape = trained.shape._replace(queries=200)
    episodes = opened.sample_episodes(3, shape=shape, generator=Generator().manual_seed(seed))
    order = episodes.query_x[..., 0].argsort(-1)  # [3, 200]
    counts = (0, 1, 10) if any(f.name == "inner_steps" for f in fields(trained.learner)) else (0,)
    predicted: dict[int, Tensor] = {}
    for k in counts:
        learner = _with_steps(trained.learner, k) if len(counts) > 1 else trained.learner
        found = outputs(trained.net, learner, tasks, trained.meta, episodes, mode="loop")
        predicted[k] = torch.cat([o for o, _ in found])[..., 0].gather(1, order)
    x, truth = episodes.query_x[..., 0].gather(1, order), episodes.query_y[..., 0].gather(1, order)
    points = torch.cat([episodes.support_x, episodes.support_y], -1)
    return [
        Wave([(float(a), float(b)) for a, b in points[i]], x[i].tolist(), truth[i].tolist(),
             {k: v[i].tolist() for k, v in predicted.items()})
        for i in range(len(x))
    ]


def _restored(reference: str, train: Train, row: TrialRow, folder: Path) -> Trained:
    if row.checkpoint is None:
        raise ValueError(f"{reference} has no parcel: it ended as '{row.status}' before it was saved")
    path = parcel_path(folder, row.checkpoint)
    if not path.is_file():
        raise ValueError(f"{reference} has no parcel any more: {path} is gone (metasearch clean keeps those of the best trials)")
    tensors, facts = parcel.read(path)
    ended = row.outcome
    prefix = parcel.scored(tensors, ended.metrics if ended is not None and ended.status in ("done", "reused") else None)
    config = row.proposal.config if row.report is None or row.report.found is None else row.report.found
    try:
        recipe = train.built(config)
    except Infeasible as error:
        raise ValueError(f"{reference} cannot be rebuilt from its config: {error}") from error
    own = recipe.learner.init(recipe.net, Generator().manual_seed(0))  # pre-training leaves a classifier's head besides
    meta = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    meta = {k: v for k, v in meta.items() if k in own or not learnt(k)}
    return Trained(
        reference, config, recipe.net, recipe.learner.at(1.0), meta, train.tasks, train.shape,
        int(facts.get("best_step", facts["step"]) if prefix == "best/" else facts["step"]), recipe.augment,
    )


def _ended(reference: str, trials: Mapping[int, TrialRow], number: int) -> TrialRow:
    if number not in trials:
        last = max(trials, default=None)
        known = "it has no trials yet" if last is None else f"its trials are 1 to {last}"
        raise ValueError(f"there is no trial {reference}: {known}")
    if trials[number].outcome is None:
        raise ValueError(
            f"{reference} has not ended (it is {trials[number].status}), and half a training is no result. "
            f"To go on: metasearch resume {reference.rpartition('/')[0]}"
        )
    return trials[number]


def _parsed(reference: str, home: Path | None) -> tuple[Path, int]:
    name, slash, number = reference.rpartition("/")
    if not (slash and number.isascii() and number.isdecimal()):
        raise ValueError(f"a trial is named STUDY/NUMBER, such as glyphs-family/12, but got {reference!r}")
    return study_folder(name, home_of(home)), int(number)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not torch.isfinite(torch.tensor(value)):
        return None
    return value
