"""Where in an episode policies act: on supports, on queries, as further shots, on whole classes.

Ni, Goldblum, Sharaf, Kong, Goldstein. "Data Augmentation for Meta-Learning." ICML 2021. https://arxiv.org/abs/2010.07092
The place matters more than the operation: CutMix on the queries, further shots also at test time, classes turned by 90 degrees as
new classes, and MetaMaxUp, which trains on the hardest of several versions of an episode.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real

import torch
from torch import Generator, Tensor

from metasearch import plugins
from metasearch.augment import _pieces as pieces
from metasearch.augment.ops import NOISE, find
from metasearch.augment.plan import Moments, Plan, carry_out, joined
from metasearch.augment.policy import Policy, hold
from metasearch.tasks import Episode, TaskShape

__all__ = ["PLACES", "Places", "at_place"]

PLACES = ("support", "query", "shot", "task")
Act = Callable[[Plan, Tensor, Tensor | None, int | None], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Places:
    """What is done to training episodes, when they are drawn; called as `Recipe.augment`.

    support, query: each picture of the support or query set by itself.
    shot:      `copies` of each support, changed by this policy, are added to the support set as further shots; the supports
               themselves are not. With `at_test`, also when the learner is validated, tested and used: then the changes are those
               of a fixed seed and of the episode's number, so they are the same every time.
    task:      what is drawn for a class happens to all of its pictures, supports and queries. What they share is a sign by which
               to tell the class, in training alone: a mild policy lost points here (docs/benchmarks.md).
    new_classes: the probability with which an episode's N classes are drawn anew out of 4 N: its own, turned by 0, 90, 180 and
               270 degrees. Right for characters, wrong where a turned picture is of the same class.
    versions:  MetaMaxUp: every episode is augmented so often, and the version of the largest loss is trained on; 1 is plain.
    fill:      what lies around a picture and in holes (0..1); None: 0 for one channel, 0.5 otherwise.

    In this order: task, new classes, shots, then supports and queries. Labels are mixed where pictures are (cutmix).
    """

    support: Policy | None = None
    query: Policy | None = None
    shot: Policy | None = None
    task: Policy | None = None
    copies: int = 1
    at_test: bool = True
    new_classes: float = 0.0
    versions: int = 1
    fill: float | None = None

    def __post_init__(self) -> None:
        for place, policy in self.policies.items():
            if not isinstance(policy, Policy):
                raise ValueError(f"{place} must be a policy, but is {policy!r}")
        if any(not isinstance(n, Integral) or n < 1 for n in (self.copies, self.versions)):
            raise ValueError(f"`copies >= 1` and `versions >= 1` must hold, for whole numbers, but got (copies={self.copies!r}, "
                             f"versions={self.versions!r})")
        if not isinstance(self.new_classes, Real) or not 0 <= self.new_classes <= 1:
            raise ValueError(f"new_classes is a probability between 0 and 1, but got {self.new_classes!r}")
        if self.fill is not None and (not isinstance(self.fill, Real) or not 0 <= self.fill <= 1):
            raise ValueError(f"fill is a value between 0 and 1, but got {self.fill!r}")
        if not isinstance(self.at_test, bool):
            raise ValueError(f"at_test is true or false, but got {self.at_test!r}")
        hold(self, copies=int(self.copies), versions=int(self.versions), new_classes=float(self.new_classes),
             fill=None if self.fill is None else float(self.fill))
        if self.task is not None:
            mixing = [name for name in self.task.operations if find(name).pairs]
            if mixing:
                raise ValueError(f"{mixing[0]} mixes single pictures, so it cannot act on a whole class (place 'task'). Use it "
                                 f"at the place support, query or shot.")

    @property
    def policies(self) -> dict[str, Policy]:
        """Those that there are, by place."""
        return {place: policy for place in PLACES if (policy := getattr(self, place)) is not None}

    def shape(self, shape: TaskShape) -> TaskShape:
        """Of the episodes that a learner is given, if those of `shape` are drawn: more shots."""
        return shape if self.shot is None else shape._replace(shots=shape.shots * (1 + self.copies))

    def check(self, shape: TaskShape, steps: int) -> None:
        """Raises ValueError if such episodes, or a training of so many outer steps, cannot be augmented."""
        self.check_pictures(shape)
        for policy in self.policies.values():
            policy.check(steps)

    def check_pictures(self, shape: TaskShape) -> None:
        """Raises ValueError if such episodes cannot be augmented, however long a training is."""
        if len(shape.x) != 3:
            raise ValueError(f"augmentation is for pictures [C, H, W], but the inputs of these tasks are {list(shape.x)}")
        if shape.x[0] > NOISE and any("channel_permutation" in policy.operations for policy in self.policies.values()):
            raise ValueError(f"channel_permutation takes pictures of up to {NOISE} channels, but these have {shape.x[0]}. "
                             f"Leave it away.")
        turning = self.new_classes > 0 or any("turn" in policy.operations for policy in self.policies.values())
        if turning and shape.x[1] != shape.x[2]:
            raise ValueError(f"only square pictures can be turned by 90 degrees, but these are {shape.x[1]} x {shape.x[2]}. "
                             f"Leave `turn` and new_classes away.")

    def idle(self, channels: int) -> tuple[str, ...]:
        """What leaves pictures of so many channels as they are, as "place: operation"."""
        return tuple(f"{place}: {name}" for place, policy in self.policies.items() for name in policy.idle(channels))

    def __call__(
        self, episodes: Episode, generator: Generator, progress: float | Tensor | None = None, moments: Moments | None = None
    ) -> Episode:
        """n episodes -> n * versions of them, the versions of one side by side.

        progress: the point of training 0..1 of all, or of each [n]; only schedules need one. moments: how the pictures are
        normalised, if they are.
        """
        if progress is None and any(policy.changes for policy in self.policies.values()):
            raise ValueError("a policy changes over training: say at which point of it the episodes are seen, progress=0..1")
        n = episodes.count
        at = torch.as_tensor(0.0 if progress is None else progress, dtype=torch.float64).expand(n)
        if self.versions > 1:
            episodes = episodes.map(lambda t: t.repeat_interleave(self.versions, 0))
            at, n = at.repeat_interleave(self.versions), n * self.versions

        def act(plan: Plan, x: Tensor, y: Tensor | None, group: int | None) -> tuple[Tensor, Tensor | None]:
            return carry_out(plan, x, y, group=group, fill=self.fill, moments=moments)

        if self.task is not None:
            ways = episodes.support_y.shape[-1]
            plan = self.task.plan(n * ways, generator, at.repeat_interleave(ways))
            episodes = episodes._replace(
                support_x=_classwise(plan, episodes.support_x, episodes.support_y, act),
                query_x=_classwise(plan, episodes.query_x, episodes.query_y, act),
            )
        if self.new_classes > 0:
            episodes = _turned(episodes, self.new_classes, generator)
        support = episodes.support_x, episodes.support_y
        if self.shot is not None:
            rows = support[0].shape[1] * self.copies
            plan = self.shot.plan(n * rows, generator, at.repeat_interleave(rows))
            episodes = self._with_shots(episodes, plan, act)
        first = support[0].shape[1]
        if self.support is not None:
            x, y = _each(self.support, *support, generator, at, act)
            episodes = episodes._replace(
                support_x=torch.cat([x, episodes.support_x[:, first:]], 1),
                support_y=torch.cat([y, episodes.support_y[:, first:]], 1))
        if self.query is not None:
            x, y = _each(self.query, episodes.query_x, episodes.query_y, generator, at, act)
            episodes = episodes._replace(query_x=x, query_y=y)
        return episodes

    def tested(self, episodes: Episode, moments: Moments | None = None) -> Episode:
        """The episodes as a finished learner is given them: with further shots (at_test), otherwise as they are. Episode number i
        is treated the same wherever it is, and however many there are."""
        if self.shot is None or not self.at_test:
            return episodes
        rows = episodes.support_x.shape[1] * self.copies
        plan = joined([self.shot.plan(rows, _seeded(i), 1.0) for i in range(episodes.count)])
        return self._with_shots(
            episodes, plan, lambda plan, x, y, group: carry_out(plan, x, y, group=group, fill=self.fill, moments=moments))

    def _with_shots(self, episodes: Episode, plan: Plan, act: Act) -> Episode:
        n, rows = episodes.support_y.shape[:2]
        x, y = (t.repeat_interleave(self.copies, 1).flatten(0, 1) for t in (episodes.support_x, episodes.support_y))
        x, mixed = act(plan, x, y, rows * self.copies)
        y = y if mixed is None else mixed
        return episodes._replace(
            support_x=torch.cat([episodes.support_x, x.view(n, -1, *x.shape[1:])], 1),
            support_y=torch.cat([episodes.support_y, y.view(n, -1, *y.shape[1:])], 1))


def at_place(place: str, policy: Policy, **others: object) -> Places:
    """A policy at a place that a config names. Raises ValueError with the nearest known place."""
    if place not in PLACES:
        raise ValueError(f"there is no place '{place}' in an episode.{plugins.did_you_mean(place, PLACES)}")
    if not isinstance(policy, Policy):
        raise ValueError(f"{place} must be a policy, but is {policy!r}")
    known = {field.name for field in fields(Places)}
    for name in others:
        if name not in known:
            raise ValueError(f"places have no '{name}'.{plugins.did_you_mean(name, known)}")
    return Places(**{place: policy, **others})  # type: ignore[arg-type]


# small parts ------------------------------------------------------------------------------------------------------------------


def _each(
    policy: Policy, x: Tensor, y: Tensor, generator: Generator, at: Tensor, act: Act
) -> tuple[Tensor, Tensor]:
    """Every picture by itself: [n, M, C, H, W], [n, M, N]."""
    n, rows = y.shape[:2]
    if rows == 0:
        return x, y
    found, mixed = act(policy.plan(n * rows, generator, at.repeat_interleave(rows)), x.flatten(0, 1), y.flatten(0, 1), rows)
    assert mixed is not None
    return found.view(x.shape), mixed.view(y.shape)


def _classwise(plan: Plan, x: Tensor, y: Tensor, act: Act) -> Tensor:
    """What `plan` [n * N] says of a class, done to all of its pictures."""
    n, rows, ways = y.shape
    if rows == 0:
        return x
    owner = torch.arange(n)[:, None] * ways + y.argmax(-1).cpu()  # [n, M]
    return act(plan.select(owner.flatten()), x.flatten(0, 1), None, None)[0].view(x.shape)


def _turned(episodes: Episode, probability: float, generator: Generator) -> Episode:
    """Each episode, with that probability, over N classes drawn without replacement out of the 4 N turned forms of its own."""
    n, _, ways = episodes.support_y.shape
    forms = torch.rand(n, 4 * ways, generator=generator).argsort(1)[:, :ways]  # [n, N]: turn * N + class
    plain = torch.rand(n, 1, generator=generator) >= probability
    forms = torch.where(plain, torch.arange(ways), forms).to(episodes.support_y.device)
    return episodes._replace(
        support_x=_drawn_from(episodes.support_x, episodes.support_y, forms),
        query_x=_drawn_from(episodes.query_x, episodes.query_y, forms),
    )


def _drawn_from(x: Tensor, y: Tensor, forms: Tensor) -> Tensor:
    """Pictures [n, M, ...] of labels y [n, M, N], where label j now means form forms[:, j]: the k-th picture of j is the k-th of
    the form's class, turned."""
    n, rows, ways = y.shape
    label = y.argmax(-1)
    order = label.argsort(dim=1, stable=True)  # by class: [n, N * K]
    if rows % ways or bool((label.gather(1, order).view(n, ways, -1) != torch.arange(ways, device=y.device)[:, None]).any()):
        raise ValueError("new classes need episodes with equally many pictures of each class")
    place = order.argsort(1)  # of each row in that order
    form = forms.gather(1, label)
    source = order.gather(1, form % ways * (rows // ways) + place % (rows // ways))
    found = x[torch.arange(n, device=x.device)[:, None], source].flatten(0, 1)
    return pieces.quarters(found, (form // ways).flatten()).view(x.shape)


def _seeded(number: int) -> Generator:
    digest = hashlib.sha256(f"further shots of episode {number}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def rotation_classes(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Every class four times: [n, C, S, S], [n] -> [4 n, C, S, S], [4 n] below 4 * classes; a class turned by k * 90 degrees is
    class number k * classes on."""
    found = torch.cat([images.rot90(k, (-2, -1)) for k in range(4)])
    return found, torch.cat([labels + k * classes for k in range(4)])
