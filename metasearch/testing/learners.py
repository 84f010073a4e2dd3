"""The contract of a learner: what every one must hold, whatever it learns by.

    from metasearch.testing import learners
    learners.check("maml")                                        # all laws; raises AssertionError in words
    learners.check("path/to/mine.py", {"inner_lr": 0.05})         # a file of your own

or, one test a law, with pytest:

    @pytest.mark.parametrize("law", learners.LAWS, ids=lambda law: law.__name__)
    def test_contract(law):
        law(learners.Case("path/to/mine.py", {"inner_lr": 0.05}))

Laws are checked on small smooth nets in float64, where they are exact up to rounding (1e-10); only `beats_chance` trains.
It asks for half of the way from chance to a nearest-centroid rule, with fixed seeds.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from metasearch import plugins
from metasearch.learners import Learner, gradients
from metasearch.nets import Net, NormMode, Params, learnt
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Kind, Norm, population
from metasearch.objectives.episodic import mean_gradient
from metasearch.objectives.evaluation import scores
from metasearch.tasks import Episode, TaskDistribution, TaskShape
from metasearch.tasks.blobs import Blobs
from metasearch.tasks.navigation import Navigation

__all__ = ["LAWS", "Case", "check"]

SHAPE = TaskShape((6,), ways=3, shots=2, queries=2)
CLOSE = 1e-10


@dataclass(frozen=True)
class Case:
    """A learner, by name and arguments, and what it does not promise.

    exact:      its `episode_gradient` is the derivative of its `episode_loss` (not so for first-order methods and Reptile).
    sets:       the order of the supports does not matter (not so with minibatches).
    symmetric:  permuting the labels, and the rows of `net/head/` with them, permutes the outputs.
    norms:      those of nets on which vmap and loop are compared. Adam in an inner loop blows rounding up where a gradient is 0
                (a bias in front of a batch norm), so such learners are compared without "batch".
    outer_lr, outer_steps: of the Adam that trains it on blobs in `beats_chance`.
    asked:      the score that it must reach there; None: none, since it learns to learn too slowly for a test.
    """

    learner: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True
    sets: bool = True
    symmetric: bool = True
    norms: tuple[Kind, ...] = ("none", "batch")
    outer_lr: float = 1e-2
    outer_steps: int = 60
    asked: float | None = 0.55

    def __str__(self) -> str:
        return "-".join([self.learner, *(f"{k}={v}" for k, v in self.arguments.items())])

    @cached_property
    def built(self) -> Learner:
        learner: Learner = plugins.find("learners", self.learner, Learner)(**self.arguments)
        return learner

    def net(self, norm: Kind = "none", mode: NormMode = "transductive", ways: int = SHAPE.ways) -> Net:
        """Softplus, since the laws differentiate twice and compare with differences."""
        outputs = (2 if self.control else ways) if self.built.head else None
        x = (2,) if self.control else SHAPE.x
        return mlp(x, outputs, hidden=(7, 5), act="softplus", norm=Norm(norm, groups=1), mode=mode)

    def meta(self, net: Net, seed: int = 0) -> Params:
        return {k: v.double() for k, v in self.built.init(net, _generator(seed)).items()}

    @cached_property
    def control(self) -> bool:
        """Whether it learns to act: its laws are shown on short walks, and those that speak of classes do not concern it."""
        return self.built.kinds == ("control",)

    def episodes(self, n: int, shape: TaskShape | None = None, seed: int = 0) -> Episode:
        """Of blobs (or walks of 4 steps), in float64, with the noise that the learner names."""
        generator = _generator(seed)
        tasks: TaskDistribution = Navigation(horizon=4) if self.control else _blobs()
        shape = shape or (tasks.shape(ways=2, shots=12, queries=12) if self.control else SHAPE)
        drawn = tasks.sample_episodes(n, split="train", shape=shape, generator=generator)
        noise = {k: torch.randn(n, *s, generator=generator).double() for k, s in self.built.noise(shape).items()}
        x, y = (drawn.support_x.double(), drawn.query_x.double()), (drawn.support_y.double(), drawn.query_y.double())
        return Episode(x[0], y[0], x[1], y[1], noise)

    def outputs(self, net: Net, meta: Params, episode: Episode) -> Tensor:
        """What is predicted of the queries [Q, N] after adapting to the supports."""
        return self.built.predict(net, meta, self.adapted(net, meta, episode), episode.query_x)

    def adapted(self, net: Net, meta: Params, episode: Episode) -> Any:
        return self.built.adapt(net, _loss, meta, episode.support_x, episode.support_y)


def check(
    learner: str, arguments: Mapping[str, Any] | None = None, *, exact: bool = True, sets: bool = True, symmetric: bool = True
) -> None:
    """All laws. Raises AssertionError that says which one does not hold, and why."""
    case = Case(learner, arguments or {}, exact, sets, symmetric)
    for law in LAWS:
        law(case)


def init_draws_from_its_generator_alone(case: Case) -> None:
    net = case.net()
    with _global_randomness_untouched("init"):
        first, again, other = (case.built.init(net, _generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first), "init must give the same weights for the same generator"
    assert any(not torch.equal(first[k], other[k]) for k in first), "init must give other weights for another generator"
    assert all(v.dtype == torch.float32 for v in first.values()), "init gives float32"


def every_learnt_key_has_a_gradient(case: Case) -> None:
    net = case.net("batch")
    meta, episode = case.meta(net), case.episodes(1).select(0)
    before = {k: v.clone() for k, v in meta.items()}
    with _global_randomness_untouched("episode_gradient"):
        for grads, metrics in (case.built.episode_gradient(net, _loss, meta, episode), *_on_tape(case, net, meta, episode)):
            wanted = {k for k in meta if learnt(k)}
            assert set(grads) == wanted, f"gradients must have the keys {sorted(wanted)}, but have {sorted(grads)}"
            for k, g in grads.items():
                shapes = tuple(meta[k].shape), tuple(g.shape)
                assert shapes[0] == shapes[1], f"the gradient of {k} must have shape {shapes[0]}, but has {shapes[1]}"
                assert bool(torch.isfinite(g).all()), f"the gradient of {k} is not finite"
                assert not g.requires_grad, f"a graph hangs behind the gradient of {k}: nobody differentiates through it"
            assert "loss" in metrics, "episode_gradient must tell its loss among its metrics"
            assert all(m.dim() == 0 and not m.requires_grad for m in metrics.values()), "metrics are scalars without a graph"
    assert all(torch.equal(meta[k], before[k]) for k in before), "meta must not be changed in place"


def vmap_is_the_loop(case: Case) -> None:
    if case.built.looped is not None:
        assert case.built.looped.strip(), "`looped` must say in words why the learner must not run under a vmap"
        return
    for norm in case.norms:
        net = case.net(norm)
        meta, episodes = case.meta(net), case.episodes(3)
        many, metrics = torch.func.vmap(lambda e, net=net, meta=meta: case.built.episode_gradient(net, _loss, meta, e))(episodes)
        for i in range(3):
            ((grads, told),) = _on_tape(case, net, meta, episodes.select(i))
            for k, g in grads.items():
                _equal(many[k][i], g, f"the gradient of {k} under vmap and in a loop (norm: {norm})")
            for k, m in told.items():
                _equal(metrics[k][i], m, f"the metric {k} under vmap and in a loop")


def one_gradient_for_many_episodes_is_their_mean(case: Case) -> None:
    """What the trainer does with learners that say `pooled`, against a loop."""
    if not case.built.pooled:
        return
    for norm in case.norms:
        net = case.net(norm)
        meta, episodes = case.meta(net), case.episodes(3)
        (pooled, told), (looped, each) = (
            mean_gradient(case.built, net, _loss, meta, episodes, mode, None) for mode in ("vmap", "loop")
        )
        assert set(pooled) == set(looped)
        for k, g in looped.items():
            _equal(pooled[k], g, f"the gradient of {k} of a batch and of its episodes (norm: {norm})")
        for k, m in each.items():
            _equal(told[k], m, f"the metric {k} of a batch and of its episodes")


def floats_may_be_tensors(case: Case) -> None:
    """Also under a second vmap, which runs several trials as one program."""
    if case.built.looped is not None:
        return
    floats = [f.name for f in fields(case.built) if isinstance(getattr(case.built, f.name), float)]
    net = case.net()
    meta, episode = case.meta(net), case.episodes(1).select(0)

    def gradient(values: Params) -> Params:
        return replace(case.built, **values).episode_gradient(net, _loss, meta, episode)[0]

    rates = [{k: getattr(case.built, k) * factor for k in floats} for factor in (1.0, 0.5)]
    if not floats:
        return
    fused = torch.func.vmap(gradient)({k: torch.tensor([r[k] for r in rates], dtype=torch.float64) for k in floats})
    for i, numbers in enumerate(rates):
        grads = replace(case.built, **numbers).episode_gradient(net, _loss, meta, episode)[0]
        for k, g in grads.items():
            _equal(fused[k][i], g, f"the gradient of {k} with {', '.join(floats)} as vmapped tensors and as numbers")


def gradient_is_the_derivative_of_the_loss(case: Case) -> None:
    """A central difference along a random direction; error O(h^2)."""
    if not case.exact:
        return
    for norm in ("none", "layer", "batch"):
        net = case.net(norm)
        meta, episode = case.meta(net), case.episodes(1).select(0)
        generator = _generator(1)
        way = {k: torch.randn(v.shape, generator=generator).double() for k, v in meta.items() if learnt(k)}

        def value(h: float, net: Net = net, meta: Params = meta, way: Params = way, episode: Episode = episode) -> float:
            moved = {k: v + h * way[k] if k in way else v for k, v in meta.items()}
            return float(case.built.episode_loss(net, _loss, moved, episode)[0])

        h = 1e-5
        difference = (value(h) - value(-h)) / (2 * h)
        grads, _ = case.built.episode_gradient(net, _loss, meta, episode)
        slope = float(sum((grads[k] * way[k]).sum() for k in way))
        assert abs(slope - difference) <= 1e-6 * max(1.0, abs(difference)), (
            f"episode_gradient must be the derivative of episode_loss, but along a direction it is {slope} and the central "
            f"difference is {difference} (norm: {norm}). A first-order method says exact=False."
        )


def outputs_have_a_row_a_query(case: Case) -> None:
    """Whatever the numbers of queries and ways."""
    if case.control:
        net, episode = case.net(), case.episodes(1).select(0)
        assert case.outputs(net, case.meta(net), episode).shape == episode.query_y.shape
        return
    for ways, queries in ((3, 2), (2, 1), (5, 3)):
        shape = TaskShape(SHAPE.x, ways, 1, queries)
        net = case.net(ways=ways)
        episode = case.episodes(1, shape).select(0)
        shown = tuple(case.outputs(net, case.meta(net), episode).shape)
        assert shown == (ways * queries, ways), f"outputs must be [Q, N] = {(ways * queries, ways)}, but are {shown}"


def permuting_labels_permutes_outputs(case: Case) -> None:
    if not case.symmetric or case.control:
        return
    net = case.net("batch")
    meta, episode = case.meta(net), case.episodes(1).select(0)
    places = torch.tensor([2, 0, 1])
    there = {k: v[places] if k.startswith("net/head/") else v for k, v in meta.items()}
    moved = case.outputs(net, there, episode._replace(support_y=episode.support_y[:, places]))
    _equal(moved, case.outputs(net, meta, episode)[:, places], "outputs after permuting labels, and permuted outputs")


def order_of_supports_does_not_matter(case: Case) -> None:
    if not case.sets:
        return
    net = case.net("batch")
    meta, episode = case.meta(net), case.episodes(1).select(0)
    places = torch.randperm(len(episode.support_x), generator=_generator(3))
    moved = episode._replace(support_x=episode.support_x[places], support_y=episode.support_y[places])
    _equal(case.outputs(net, meta, moved), case.outputs(net, meta, episode), "outputs with supports in another order")


def a_query_does_not_see_the_others(case: Case) -> None:
    """In the norm modes "none" and "inductive"; in "transductive" it does, or the mode would be a lie."""
    if case.control:  # its queries are walks of many rows
        return
    episode = case.episodes(1).select(0)
    modes: tuple[tuple[Kind, NormMode], ...] = (("layer", "none"), ("batch", "inductive"), ("batch", "transductive"))
    for norm, mode in modes:
        net = case.net(norm, mode)
        meta = case.meta(net)
        if mode == "inductive":
            meta |= population(net, meta, [episode.support_x, episode.query_x])
        task = case.adapted(net, meta, episode)  # of the supports alone: `adapt` is given no query
        together = case.built.predict(net, meta, task, episode.query_x)
        alone = torch.cat([case.built.predict(net, meta, task, x[None]) for x in episode.query_x])
        if mode == "transductive":
            assert not torch.allclose(together, alone, atol=1e-6), "transductive outputs must depend on all queries together"
        else:
            _equal(alone, together, f"outputs of queries alone and together (norm: {norm}, {mode})")


def at_test_is_the_same_kind(case: Case) -> None:
    tested = case.built.at_test()
    assert type(tested) is type(case.built), "at_test must give a learner of the same class"
    assert tested.at_test() == tested, "at_test of a learner at test must be itself"
    assert isinstance(case.built.at(0.5), type(case.built)), "`at` must give a learner of the same class"


def evaluation_is_the_same_in_all_worlds(case: Case) -> None:
    """Function transforms under no_grad, and the tape without graphs."""
    for norm in case.norms:
        net = case.net(norm)
        meta, episode = case.meta(net), case.episodes(1).select(0)
        with _global_randomness_untouched("adapt and predict"), torch.no_grad():
            plain = case.outputs(net, meta, episode)
        with gradients.on_tape(graphs=False):
            taped = case.outputs(net, meta, episode).detach()
        _equal(taped, plain, "outputs on the tape and under function transforms")


def beats_chance(case: Case) -> None:
    """A minute of training at most, on Gaussian blobs, 5-way 1-shot."""
    if case.control or case.asked is None:
        return
    shape = TaskShape(SHAPE.x, ways=5, shots=1, queries=5)
    learner, net = case.built, mlp(SHAPE.x, 5 if case.built.head else None, hidden=(32, 32))
    meta = learner.init(net, _generator(0))
    free = {k: v.clone().requires_grad_() for k, v in meta.items() if learnt(k)}
    outer = torch.optim.Adam(free.values(), lr=case.outer_lr)
    tasks, generator = _blobs(), _generator(1)

    def gradient(e: Episode) -> Params:
        return learner.episode_gradient(net, tasks.loss, {**meta, **{k: v.detach() for k, v in free.items()}}, e)[0]

    for _ in range(case.outer_steps):
        episodes = tasks.sample_episodes(8, split="train", shape=shape, generator=generator)
        noise = {k: torch.randn(8, *s, generator=generator) for k, s in learner.noise(shape).items()}
        episodes = episodes._replace(noise=noise)
        if learner.looped is None:
            grads = {k: g.mean(0) for k, g in torch.func.vmap(gradient)(episodes).items()}
        else:
            each = [gradient(episodes.select(i)) for i in range(8)]
            grads = {k: torch.stack([g[k] for g in each]).mean(0) for k in each[0]}
        for k, v in free.items():
            v.grad = grads[k]
        outer.step()
    trained = {**meta, **{k: v.detach() for k, v in free.items()}}
    bank = tasks.bank("val", 100, seed=0, shape=shape).episodes
    mean = float(scores(net, learner, tasks, trained, bank, chunk=bank.count).mean())
    told = f"after {case.outer_steps} steps on 5-way 1-shot blobs the score must be above {case.asked}, but is {mean:.3f}"
    assert mean > case.asked, told


Law = Callable[[Case], None]
LAWS: tuple[Law, ...] = (
    init_draws_from_its_generator_alone, every_learnt_key_has_a_gradient, vmap_is_the_loop,
    one_gradient_for_many_episodes_is_their_mean, floats_may_be_tensors,
    gradient_is_the_derivative_of_the_loss, outputs_have_a_row_a_query, permuting_labels_permutes_outputs,
    order_of_supports_does_not_matter, a_query_does_not_see_the_others, at_test_is_the_same_kind,
    evaluation_is_the_same_in_all_worlds, beats_chance,
)


def _blobs() -> Blobs:
    return Blobs(dimensions=SHAPE.x[0])


def _loss(output: Tensor, y: Tensor) -> Tensor:
    return -(y * output.log_softmax(-1)).sum(-1).mean()


def _on_tape(case: Case, net: Net, meta: Params, episode: Episode) -> list[tuple[Params, dict[str, Tensor]]]:
    with gradients.on_tape():
        return [case.built.episode_gradient(net, _loss, meta, episode)]


def _equal(a: Tensor, b: Tensor, what: str) -> None:
    error = float((a - b).abs().max()) if a.numel() else 0.0
    scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    assert a.shape == b.shape, f"{what} must have equal shapes, but have {tuple(a.shape)} and {tuple(b.shape)}"
    assert error <= CLOSE * scale, f"{what} must be equal, but differ by {error:.3g}"


@contextmanager
def _global_randomness_untouched(what: str) -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), f"{what} must not draw from torch's global generator: name it in `noise`"


def _generator(seed: int) -> Generator:
    return Generator().manual_seed(seed)
