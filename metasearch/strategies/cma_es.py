"""CMA-ES for spaces of real, whole and categorical decisions: CatCMA with margin.

Hamano, Nomura, Saito, Uchida, Shirakawa. "CatCMA with Margin: Stochastic Optimization for Continuous, Integer, and Categorical
Variables." GECCO 2025. https://arxiv.org/abs/2504.07884, in the library `cmaes`. On a space of Floats it is CMA-ES: Hansen. "The
CMA Evolution Strategy: A Tutorial." https://arxiv.org/abs/1604.00772

A normal distribution over Floats and Ints (a margin keeps every Int moving) and a categorical one over each Choice are moved
towards the better half of every generation. One coordinate is one column of the encoded config; columns that are not in force
are drawn and not read, so a conditional space is searched as a whole. (Optuna's CmaEsSampler leaves Choices and everything
conditional to random draws.)
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from cmaes import CatCMAwM
from numpy.typing import NDArray

from metasearch.records import Config, Outcome, Proposal
from metasearch.space import Choice, Int, Space, digest
from metasearch.strategies import Strategy
from metasearch.strategies._draws import Seen, rng_of, seed_of

MOST_STEPS = 64  # an Int with more values is treated as real and rounded
MOST_GROWTH = 16  # of the population, over restarts
DRAWS = 100  # in a row without a new config: the distribution has converged


class CmaEs(Strategy):
    """A generation is over when as many results came in, from whichever generation they were asked (any number of lanes).

    The library is told ranks, not scores: CMA-ES only uses the order, and trials that went wrong can then be worst without a
    number. diverged, oom and infeasible are worst; error tells nothing. A config that was scored before is not proposed again:
    its known score is told, which moves the distribution on. When it has converged it starts anew, wide and with twice the
    population (IPOP; Auger and Hansen, 2005). Outcomes that come before the first ask set where the first generation is drawn:
    around the best of them.
    """

    @dataclass(frozen=True)
    class Hyperparameters:
        """sigma: first standard deviation, as a share of each (encoded) range. population: results a generation; None: the
        usual 4 + floor(3 ln d) for d decisions."""

        sigma: float = 0.2
        population: int | None = None

        def __post_init__(self) -> None:
            if not 0 < self.sigma <= 1:
                raise ValueError(f"`0 < sigma <= 1` must hold, but got {self.sigma}")
            if self.population is not None and self.population < 4:
                raise ValueError(f"`population >= 4` must hold, but got {self.population}")

    def __init__(self, space: Space, *, hyperparameters: Hyperparameters, seed: int) -> None:
        super().__init__(space, hyperparameters=hyperparameters, seed=seed)
        self._columns = Columns(space)
        self._seen = Seen(space)
        self._known: dict[str, float] = {}  # digest of a config -> score
        self._asked = 0
        self._running: dict[str, list[CatCMAwM.Solution]] = {}
        self._ended: list[tuple[CatCMAwM.Solution, float]] = []  # results of the present generation
        self._first: tuple[Config, float] | None = None  # the best of what was told before the first ask
        self._restarts = 0
        self._cma: CatCMAwM | None = None

    def ask(self) -> Proposal | None:
        if self._seen.everything:
            return None
        config, solution = self._drawn()
        self._asked += 1
        self._seen.add(config)
        if solution is not None:
            self._running.setdefault(digest(config), []).append(solution)
        return Proposal(config)

    def tell(self, outcome: Outcome) -> None:
        config, key = outcome.proposal.config, digest(outcome.proposal.config)
        self.space.validate(config)
        solutions = self._running.pop(key, [])
        solution = solutions.pop(0) if solutions else None
        if solutions:
            self._running[key] = solutions
        if outcome.status == "error":
            return
        score = outcome.score if outcome.status in ("done", "reused") and outcome.score is not None else -math.inf
        score = score if math.isfinite(score) else -math.inf
        self._seen.add(config)
        self._known[key] = score
        if self._asked == 0 and score > (-math.inf if self._first is None else self._first[1]):
            self._first = config, score
        if solution is not None:
            self._told(solution, score)

    def _drawn(self) -> tuple[Config, CatCMAwM.Solution | None]:
        """A new config, and where it came from; what is known is told on the way."""
        if self._columns.free:
            for _ in range(2):  # once more after a new start
                for _ in range(DRAWS):
                    solution = self._distribution().ask()
                    config = self._columns.config(solution)
                    if config not in self._seen:
                        return config, solution
                    if (known := self._known.get(digest(config))) is not None:
                        self._told(solution, known)
                self._restart()
        return self._seen.another(rng_of(self.seed, self._asked)), None

    def _told(self, solution: CatCMAwM.Solution, score: float) -> None:
        cma = self._distribution()
        self._ended.append((solution, score))
        if len(self._ended) < cma.population_size:
            return
        generation, self._ended = self._ended[:cma.population_size], self._ended[cma.population_size:]
        if len({score for _, score in generation}) > 1:  # of equals nothing is learnt, but the library would drift
            order = sorted(range(len(generation)), key=lambda i: -generation[i][1])
            cma.tell([(generation[i][0], float(rank)) for rank, i in enumerate(order)])  # it minimises
        if self._columns.numbers and cma.should_stop():
            self._restart()

    def _distribution(self) -> CatCMAwM:
        if self._cma is None:
            self._cma = self._columns.distribution(
                sigma=self.hyperparameters.sigma,
                population=self.hyperparameters.population,
                growth=min(2**self._restarts, MOST_GROWTH),
                seed=seed_of(self.seed, self._restarts),
                around=None if self._first is None or self._restarts else self._first[0],
            )
        return self._cma

    def _restart(self) -> None:
        self._restarts += 1
        self._cma = None
        self._ended = []
        self._running = {}  # what the old distribution drew says nothing of the new one


class Columns:
    """Which columns of an encoded config are real, whole and categorical, and how a solution becomes a config.

    All numbers are those of the encoded config, in [0, 1]; an Int moves over the encoded places of its values.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._real: list[int] = []
        self._whole: list[tuple[int, Int]] = []
        self._chosen: list[tuple[int, int]] = []  # (column, number of options)
        for i, (_, leaf) in enumerate(space.columns()):
            options = len(leaf.values) if isinstance(leaf, Choice) else leaf.size
            if options == 1:
                continue  # nothing to decide
            if isinstance(leaf, Choice) or options == 2:  # the library wants two values as categories
                self._chosen.append((i, int(options)))
            elif isinstance(leaf, Int) and options <= MOST_STEPS:
                self._whole.append((i, leaf))
            else:
                self._real.append(i)

    @property
    def numbers(self) -> bool:
        return bool(self._real or self._whole)

    @property
    def free(self) -> bool:
        return self.numbers or bool(self._chosen)

    def distribution(self, *, sigma: float, population: int | None, growth: int, seed: int, around: Config | None) -> CatCMAwM:
        """As wide as sigma in every direction; around a config half of a Choice's probability is on its option."""
        center = np.full(self._space.width, 0.5) if around is None else self._space.encode(around)
        moving = [*self._real, *(i for i, _ in self._whole)]
        dimensions = len(moving) + len(self._chosen)
        usual = 4 + math.floor(3 * math.log(dimensions))
        return CatCMAwM(
            x_space=[[0.0, 1.0]] * len(self._real) or None,
            z_space=[[leaf.encode(value) for value in range(leaf.low, leaf.high + 1)] for _, leaf in self._whole] or None,
            c_space=[options for _, options in self._chosen] or None,
            population_size=(population or usual) * growth,
            mean=center[moving] if moving else None,
            cov=np.eye(len(moving)) * sigma**2 if moving else None,
            cat_param=None if around is None or not self._chosen else self._tilted(center),
            seed=seed,
        )

    def _tilted(self, center: NDArray[np.float64]) -> NDArray[np.float64]:
        q = np.zeros((len(self._chosen), max(options for _, options in self._chosen)))
        for row, (i, options) in enumerate(self._chosen):
            q[row, :options] = 0.5 / options
            q[row, int(center[i] * options)] += 0.5
        return q

    def config(self, solution: CatCMAwM.Solution) -> Config:
        row = np.full(self._space.width, 0.5)
        if self._real:
            row[self._real] = solution.x
        if self._whole:
            row[[i for i, _ in self._whole]] = solution.z
        for one_hot, (i, options) in zip(solution.c if self._chosen else (), self._chosen, strict=True):
            row[i] = (int(np.argmax(one_hot)) + 0.5) / options
        return self._space.decode(row)
