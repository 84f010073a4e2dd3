"""One meta-gradient (second-order MAML) against higher and TorchOpt: in one run, with the same numbers, on one thread.

sine: the 1-40-40-1 net, 25 tasks, 10 + 10 points. conv: Conv-4 as MAML had it on Omniglot, 5-way 1-shot, 16 tasks, 10 or 80
pictures a task. outer: the whole outer step of the sine net: episodes (drawn in blocks), gradient, Adam.

`ours` and `reference` are milliseconds of processor time a step on a CPU (other programs on the machine add less to it than to
wall time, which is in `wall_ms`), of wall time on a GPU; contenders take turns, and medians of the turns are compared. The best
of higher and TorchOpt is the reference. Before the clock starts, all contenders' meta-gradients are compared in float64.
`faster` is reference / ours. Compiling Conv-4 takes minutes the first time, then comes from the disk.
"""
from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from _report import Case, Options, Row, benchmark
from torch import Generator, Tensor, nn

from metasearch.learners.maml import MAML
from metasearch.nets import Net, Params, learnt
from metasearch.nets.conv4 import conv4
from metasearch.nets.mlp import mlp
from metasearch.objectives import Mode
from metasearch.objectives.episodic import block_steps, draw_block, mean_gradient, outer_step
from metasearch.objectives.memory import keep_freed_memory
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.tasks import Episode, TaskShape
from metasearch.tasks.blobs import Blobs
from metasearch.tasks.sinusoid import Sinusoid

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import higher
    import torchopt

Loss = Callable[[Tensor, Tensor], Tensor]
Contender = Callable[[], object]
AGREE = 1e-6


@dataclass(frozen=True)
class Problem:
    """One meta-gradient to compute, and the same net as a torch module for the others."""

    net: Net
    learner: MAML
    loss: Loss
    meta: Params
    episodes: Episode
    module: Callable[[Params], nn.Module]

    def to(self, *args: Any) -> Problem:
        x, y, qx, qy = (t.to(*args) for t in self.episodes[:4])
        meta = {k: v.to(*args) for k, v in self.meta.items()}
        return Problem(self.net, self.learner, self.loss, meta, Episode(x, y, qx, qy), self.module)


# the contenders ---------------------------------------------------------------------------------------------------------------


def ours(problem: Problem, mode: Mode) -> Callable[[], Params]:
    run = partial(mean_gradient, problem.learner, problem.net, problem.loss, chunk=None)
    if mode == "compiled":
        step = torch.compile(lambda meta, episodes: run(meta=meta, episodes=episodes, mode="vmap")[0], dynamic=False)
    else:
        def step(meta: Params, episodes: Episode) -> Params:
            return run(meta=meta, episodes=episodes, mode=mode)[0]

    def gradient() -> Params:
        with torch.no_grad():
            found: Params = step(problem.meta, problem.episodes)
            return found

    return gradient


def with_higher(problem: Problem) -> Callable[[], Params]:
    """As higher's own MAML example: innerloop_ctx for each task, backward of each query loss."""
    module = problem.module(problem.meta)
    optimizer = torch.optim.SGD(module.parameters(), lr=float(problem.learner.inner_lr))
    e, tasks = problem.episodes, problem.episodes.count

    def gradient() -> Params:
        _forget(module)
        for i in range(tasks):
            with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False) as (fast, inner):
                for _ in range(problem.learner.inner_steps):
                    inner.step(problem.loss(fast(e.support_x[i]), e.support_y[i]))
                torch.autograd.backward(problem.loss(fast(e.query_x[i]), e.query_y[i]) / tasks)
        return _gradients(module, problem.meta)

    return gradient


def with_torchopt(problem: Problem) -> Callable[[], Params]:
    """As TorchOpt's own MAML example: MetaSGD, the state taken back after each task."""
    module = problem.module(problem.meta)
    inner = torchopt.MetaSGD(module, lr=float(problem.learner.inner_lr))
    start = torchopt.extract_state_dict(module, by="reference"), torchopt.extract_state_dict(inner, by="reference")
    e, tasks = problem.episodes, problem.episodes.count

    def gradient() -> Params:
        _forget(module)
        for i in range(tasks):
            for _ in range(problem.learner.inner_steps):
                inner.step(problem.loss(module(e.support_x[i]), e.support_y[i]))
            torch.autograd.backward(problem.loss(module(e.query_x[i]), e.query_y[i]) / tasks)
            torchopt.recover_state_dict(module, start[0])
            torchopt.recover_state_dict(inner, start[1])
        return _gradients(module, problem.meta)

    return gradient


THEIRS = {"higher": with_higher, "TorchOpt": with_torchopt}


class SineModule(nn.Module):
    """1-40-40-1 of torch's own layers."""

    def __init__(self, meta: Params) -> None:
        super().__init__()
        self.stack = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
        _fill(self.stack, list(meta.values()))
        self.shifts: Params = {}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.stack(x)
        return out


class ConvModule(nn.Module):
    """MAML's Omniglot net of torch's own layers. Shifts of norms are learnt but not adapted: leaves beside the module."""

    def __init__(self, meta: Params) -> None:
        super().__init__()
        convs = [nn.Conv2d(1 if i == 0 else 64, 64, 3, stride=2, padding=1) for i in range(4)]
        self.convs, self.head = nn.ModuleList(convs), nn.Linear(64, 5)
        _fill(self, [v for k, v in meta.items() if "/norm/" not in k])
        self.shifts = {k: v.detach().clone().requires_grad_() for k, v in meta.items() if "/norm/" in k}

    def forward(self, x: Tensor) -> Tensor:
        for conv, shift in zip(self.convs, self.shifts.values(), strict=True):
            x = F.relu(F.batch_norm(conv(x), None, None, torch.ones_like(shift), shift, training=True, eps=1e-3))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def _fill(module: nn.Module, values: list[Tensor]) -> None:
    module.to(values[0].device, values[0].dtype)
    with torch.no_grad():
        for p, v in zip(module.parameters(), values, strict=True):
            p.copy_(v)


def _forget(module: Any) -> None:
    for leaf in [*module.parameters(), *module.shifts.values()]:
        leaf.grad = None


def _gradients(module: Any, meta: Params) -> Params:
    weights = iter(module.parameters())
    return {k: (module.shifts[k] if k in module.shifts else next(weights)).grad for k in meta}


# problems ---------------------------------------------------------------------------------------------------------------------


def sine(steps: int) -> Problem:
    tasks, net = Sinusoid(), mlp(1, 1)
    shape = TaskShape((1,), 1, 10, 10)
    episodes = tasks.sample_episodes(25, split="train", shape=shape, generator=Generator().manual_seed(0))
    return Problem(net, MAML(0.01, steps), tasks.loss, net.init(Generator().manual_seed(0)), episodes, SineModule)


def conv(pictures: int) -> Problem:
    tasks, net = Blobs(side=28, separation=1.0), conv4((1, 28, 28), 5, "maml_omniglot")
    shape = TaskShape((1, 28, 28), 5, 1, (pictures - 5) // 5)
    episodes = tasks.sample_episodes(16, split="train", shape=shape, generator=Generator().manual_seed(0))
    return Problem(net, MAML(0.4, 1), tasks.loss, net.init(Generator().manual_seed(0)), episodes, ConvModule)


# measuring --------------------------------------------------------------------------------------------------------------------


def agreement(problem: Problem, modes: tuple[Mode, ...]) -> float:
    """The largest difference between all contenders' meta-gradients in float64, relative to the largest entry of them all."""
    exact = problem.to(torch.float64)
    found = [ours(exact, mode)() for mode in modes] + [make(exact)() for make in THEIRS.values()]
    largest = max(float(v.abs().max()) for v in found[0].values())
    worst = max(float((other[k] - v).abs().max()) for k, v in found[0].items() for other in found[1:]) / largest
    if not worst <= AGREE:
        raise AssertionError(f"the meta-gradients differ by {worst:.3g}, more than {AGREE:g}: the contenders do unlike work")
    return worst


def race(contenders: dict[str, Contender], *, turns: int, device: str) -> dict[str, tuple[float, float]]:
    """Medians over the turns of (milliseconds that count, wall milliseconds) a call. Everybody runs in every turn, some calls in
    a row, so that caches are warm as they are in training."""
    calls: dict[str, int] = {}
    for name, run in contenders.items():
        run()  # compiles, or warms up
        run()
        calls[name] = max(1, min(50, int(0.03 / max(_clocked(run, 1, device)[1], 1e-5))))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, run in contenders.items():
            taken[name].append(_clocked(run, calls[name], device))
    return {
        name: (1e3 * statistics.median(t[0] for t in times), 1e3 * statistics.median(t[1] for t in times))
        for name, times in taken.items()
    }


def _clocked(run: Contender, calls: int, device: str) -> tuple[float, float]:
    cuda = device != "cpu"
    if cuda:
        torch.cuda.synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(calls):
        run()
    if cuda:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - wall) / calls
    return (seconds if cuda else (time.process_time() - processor) / calls), seconds


def rows(name: str, problem: Problem, device: str, modes: tuple[Mode, ...], turns: int) -> Iterator[Row]:
    differ = agreement(problem, tuple(m for m in modes if m != "compiled"))
    problem = problem.to(device)
    contenders: dict[str, Contender] = {mode: ours(problem, mode) for mode in modes}
    contenders |= {who: make(problem) for who, make in THEIRS.items()}
    yield from _compared(name, race(contenders, turns=turns, device=device), modes, {"difference": differ})


def _compared(name: str, found: dict[str, tuple[float, float]], modes: tuple[Mode, ...], more: dict[str, float]) -> Iterator[Row]:
    best = min(THEIRS, key=lambda who: found[who][0])
    others = {f"{who}_ms".lower(): round(found[who][0], 4) for who in THEIRS}
    for mode in modes:
        count, wall = found[mode]
        yield Row(
            name, count, found[best][0], f"{best}, this run", unit="ms", better="lower",
            conditions={"mode": mode, "faster": round(found[best][0] / count, 2), "wall_ms": round(wall, 4), **others, **more},
        )


def outer_rows(device: str, turns: int) -> Iterator[Row]:
    """The whole outer step: ours draws a block of steps at once; the others get the same episodes, and torch.optim.Adam."""
    tasks = Sinusoid().to(device)
    shape = TaskShape((1,), 1, 10, 10)
    recipe = Recipe(mlp(1, 1), MAML(0.01, 1), adam(1e-3), meta_batch=25, steps=100_000)
    block = block_steps(shape, recipe.meta_batch, recipe.steps)

    def training(mode: Mode) -> Contender:
        step = outer_step(recipe, tasks.loss, mode)
        meta = {k: v.to(device) for k, v in recipe.net.init(Generator().manual_seed(0)).items()}
        state = {k: v.to(device) for k, v in recipe.optimizer.init({k: v for k, v in meta.items() if learnt(k)}).items()}
        at, episodes = 0, draw_block(recipe, tasks, shape, block, 0, 0)

        def once() -> None:
            nonlocal meta, state, at, episodes
            if at and at % block == 0:
                episodes = draw_block(recipe, tasks, shape, block, 0, at // block)
            first = (at % block) * recipe.meta_batch
            meta, state, _ = step(meta, state, episodes.select(slice(first, first + recipe.meta_batch)), at / recipe.steps)
            at += 1

        return once

    def training_with(make: Callable[[Problem], Callable[[], Params]]) -> Contender:
        modules: list[nn.Module] = []

        def module(meta: Params) -> nn.Module:
            modules.append(SineModule(meta))
            return modules[-1]

        problem = sine(1)
        gradient = make(Problem(problem.net, problem.learner, problem.loss, problem.meta, problem.episodes, module).to(device))
        adam_of = torch.optim.Adam(modules[0].parameters(), lr=1e-3)

        def once() -> None:
            gradient()
            adam_of.step()

        return once

    modes: tuple[Mode, ...] = ("vmap", "compiled")
    contenders = {mode: training(mode) for mode in modes} | {who: training_with(make) for who, make in THEIRS.items()}
    yield from _compared("sine outer step", race(contenders, turns=turns, device=device), modes, {})


def cases(options: Options) -> Iterable[Case]:
    torch.set_num_threads(1)
    keep_freed_memory()
    modes: tuple[Mode, ...] = ("loop", "vmap", "compiled")
    picture_modes = modes if options.extra.compile_conv else modes[:2]
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for steps in (1, 5) if "sine" in options.what else ():
            make = partial(rows, "sine", sine(steps), device, modes, options.extra.turns)
            yield Case({"what": "sine", "device": device, "inner_steps": steps, "tasks": 25}, make)
        for pictures in (10, 80) if "conv" in options.what else ():
            make = partial(rows, "conv4", conv(pictures), device, picture_modes, max(3, options.extra.turns // 3))
            yield Case({"what": "conv", "device": device, "pictures": pictures, "tasks": 16}, make)
        if "outer" in options.what:
            make = partial(outer_rows, device, options.extra.turns)
            yield Case({"what": "outer", "device": device, "tasks": 25}, make)


def _arguments(parser: Any) -> None:
    parser.add_argument("--turns", type=int, default=15, help="how often the contenders take turns (conv: a third)")
    parser.add_argument("--no-compile-conv", dest="compile_conv", action="store_false", help="leave out compiled Conv-4")


if __name__ == "__main__":
    words = ("sine", "conv", "outer")
    sys.exit(benchmark(__file__, __doc__, cases, what=words, default=words, arguments=_arguments))
