"""The contract of a search-space file: SPACE, recipe(config, shape) -> Recipe, and what else it may define.

    from metasearch import plugins
    from metasearch.testing import spaces
    for truth, reason in spaces.check(plugins.loaded("spaces", "path/to/mine.py")):
        print(truth, "holds" if reason is None else f"is broken: {reason}")

or, one test a law, with pytest:

    @pytest.mark.parametrize("law", spaces.LAWS, ids=lambda law: law.__name__)
    def test_contract(law):
        law(plugins.module("spaces", "path/to/mine.py"))

Configs are drawn with a fixed seed, so that every option of every Choice is among them. A recipe is tried on the first of KINDS
of tasks that at least half of the configs can be built for; a ValueError says that a config is infeasible, any other
error is a mistake. Optional names:

    RELAXED, relaxed(config, shape) -> Recipe    the paths that relaxed reads from params["arch/<path>"] instead of the config
    derive(shares) -> config                     what a one-shot search finds, of the share of every option of RELAXED
    NODE_INPUTS                                  groups of RELAXED, the edges into one node, of which two keep an operation
    canonical(config) -> config                  the one representative of configs that mean the same
    mutations(config, rng) -> (config, moved)    the space's own mutation, as Space.mutate
    graph(config) -> list[Graph]                 the architecture, for pictures (metasearch/graph.py)
"""
from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from metasearch import plugins
from metasearch.graph import Graph, drawn
from metasearch.records import Config, Proposal
from metasearch.space import Choice, Float, Space, canonical, digest

if TYPE_CHECKING:
    from metasearch.objectives.recipe import Recipe
    from metasearch.tasks import TaskDistribution, TaskShape

__all__ = ["KINDS", "LAWS", "TEMPLATE", "Broken", "Kind", "check", "covering"]

TEMPLATE = Path(__file__).with_name("space_template.py").read_text("utf-8")  # a space file to begin from
SAMPLES = 200
NO_OPERATION = "none"  # an option that no picture shows
MOST_TRAINED = 6
MOST_MIXED = 2  # configs whose mixtures are computed


class Broken(AssertionError):
    """A law that does not hold, in words."""


class Kind(NamedTuple):
    """Tasks that a recipe may be made for."""

    name: str
    tasks: Callable[[], TaskDistribution]
    ways: int
    shots: int
    queries: int

    def built(self) -> tuple[TaskDistribution, TaskShape]:
        tasks = self.tasks()
        return tasks, tasks.shape(ways=self.ways, shots=self.shots, queries=self.queries)


def _pictures(side: int) -> Callable[[], TaskDistribution]:
    def make() -> TaskDistribution:
        from metasearch.tasks.blobs import Blobs

        return Blobs(side=side, train_classes=100)

    return make


def _vectors() -> TaskDistribution:
    from metasearch.tasks.blobs import Blobs

    return Blobs(train_classes=100)


def _waves() -> TaskDistribution:
    from metasearch.tasks.sinusoid import Sinusoid

    return Sinusoid()


def _walks() -> TaskDistribution:
    from metasearch.tasks.navigation import Navigation

    return Navigation()


def _functions() -> TaskDistribution:
    from metasearch.tasks.quadratics import Quadratics

    return Quadratics()


KINDS: tuple[Kind, ...] = (
    Kind("pictures of 1x28x28", _pictures(28), ways=5, shots=1, queries=3),
    Kind("pictures of 1x84x84", _pictures(84), ways=5, shots=1, queries=3),
    Kind("sine waves", _waves, ways=1, shots=5, queries=5),
    Kind("vectors of 8 numbers", _vectors, ways=5, shots=1, queries=3),
    Kind("walks of 100 steps", _walks, ways=2, shots=100, queries=100),
    Kind("quadratic functions of 10 numbers", _functions, ways=1, shots=10, queries=10),
)


def check(module: ModuleType) -> Iterator[tuple[str, str | None]]:
    """(a truth, None) or (a truth, why it does not hold), law by law. What the file itself raises is told with its own line."""
    for law in LAWS:
        truth = law.__name__.replace("_", " ")
        try:
            law(module)
        except Broken as error:
            yield truth, str(error)
        except (Exception, SystemExit) as error:
            yield truth, plugins.reason(error, _file(module))
        else:
            yield truth, None
            continue
        if law in (it_defines_a_space_and_a_recipe, the_recipe_builds):
            return  # nothing below can be asked


def covering(space: Space, *, most: int = 24) -> list[Config]:
    """Configs in which every option of every Choice occurs, if it occurs in 200 samples; those with most options first."""
    rng = np.random.default_rng(0)
    candidates = [space.sample(rng) for _ in range(SAMPLES)]
    ends = [space.decode(np.full(space.width, u)) for u in (0.0, 1.0)]
    options = [_options(space, config) for config in candidates]
    chosen: list[Config] = []
    left = set().union(*options)
    while left and len(chosen) < most:
        best = max(range(len(candidates)), key=lambda i: len(options[i] & left))
        chosen.append(candidates[best])
        left -= options[best]
    return list({digest(config): config for config in [*(chosen or candidates[:1]), *ends]}.values())[:most]


def _options(space: Space, config: Config) -> set[tuple[str, object]]:
    """(path, option) of every Choice in force; items of a Repeat count as one path."""
    return {(re.sub(r"\.\d+\.", ".*.", path), config[path]) for path, dim in space.active(config) if isinstance(dim, Choice)}


# -- the laws ------------------------------------------------------------------------------------------------------------------


def it_defines_a_space_and_a_recipe(module: ModuleType) -> None:
    for name, kind, like in (("SPACE", Space, "SPACE = Space({...})"), ("recipe", None, "recipe(config, shape) -> Recipe")):
        found = getattr(module, name, None)
        if found is None:
            own = [key for key, value in vars(module).items() if not key.startswith("_") and _made_here(module, value)]
            near = plugins.did_you_mean(name, own) if own else ""
            raise Broken(f"the file must define {like}, but it has no {name}.{near if near.startswith(' Did') else ''}")
        if (kind is not None and not isinstance(found, kind)) or (kind is None and not callable(found)):
            raise Broken(f"the file must define {like}, but {name} is {found!r:.80}.")


def samples_are_valid(module: ModuleType) -> None:
    space: Space = module.SPACE
    for config in _samples(space):
        _none(space.problems(config), f"a sample, {config}, is not valid: ")


def samples_survive_every_round_trip(module: ModuleType) -> None:
    space: Space = module.SPACE
    for config in _samples(space):
        _equal(json.loads(canonical(config)) == config, f"{config} does not survive JSON")
        back = space.decode(space.encode(config))
        _equal(list(back) == list(config), f"{config} is {back} after encoding and decoding")
        for path, dim in space.active(config):
            close = isinstance(dim, Float) and math.isclose(dim.encode(back[path]), dim.encode(config[path]), abs_tol=1e-9)
            _equal(close or back[path] == config[path], f"'{path}' = {config[path]!r} is decoded as {back[path]!r}")
        if isinstance(space.size, int):
            _equal(space.unrank(space.rank(config)) == config, f"{config} is not the config of its own number")


def mutations_are_valid_and_differ(module: ModuleType) -> None:
    space: Space = module.SPACE
    rng = np.random.default_rng(1)
    for parent in _samples(space)[:50]:
        for name in ("mutate", "mutations"):
            mutate = space.mutate if name == "mutate" else getattr(module, "mutations", space.mutate)
            child, moved = mutate(dict(parent), rng)
            _none(space.problems(child), f"{name} made {child} of {parent}: ")
            _equal(child != parent or space.size == 1, f"{name} changed nothing of {parent}")
            for new, old in moved.items():
                known = _has(parent, old) or not _has(child, new)
                _equal(known, f"{name} moved '{old}' to '{new}', but {parent} has nothing there")


def the_file_says_the_same_whenever_it_is_read(module: ModuleType) -> None:
    space: Space = module.SPACE
    _equal(Space.from_json(json.loads(json.dumps(space.to_json()))) == space, "SPACE does not survive JSON")
    if not _file(module):
        return
    name = f"{module.__name__}_again"
    spec = importlib.util.spec_from_file_location(name, _file(module))
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    sys.modules[name] = again
    try:
        spec.loader.exec_module(again)
        _equal(space == again.SPACE, "a second import of the file has another SPACE, but workers import it on their own")
    finally:
        del sys.modules[name]


def the_recipe_builds(module: ModuleType) -> None:
    kind, feasible = _kind(module)
    _, shape = kind.built()
    for config in feasible:
        given = dict(config)
        recipe = module.recipe(given, shape)
        _equal(given == config, f"recipe changed the config that it was given: {config} became {given}")
        one, two = (_made(recipe, seed=0), _made(module.recipe(dict(config), shape), seed=0))
        shapes = [{key: tuple(value.shape) for key, value in made.items()} for made in (one, two)]
        _equal(shapes[0] == shapes[1], f"recipe is not a function of its arguments: two nets for {config} have other weights")
        same = all(bool((one[key] == two[key]).all()) for key in one)
        _equal(same, f"two nets for {config}, made with the same generator, start from other weights: "
                     "init must draw from the generator that it is given")


def a_training_step_gives_finite_scores(module: ModuleType) -> None:
    from metasearch.objectives import Diverged

    kind, feasible = _kind(module)
    tried = _spread(feasible)
    diverged: list[str] = []
    for config in tried:
        try:
            report = _trained(module, kind, config)
        except Diverged as error:
            diverged.append(str(error))
            continue
        _equal(report.score is not None and math.isfinite(report.score), f"{config} ended without a score: {report}")
    _equal(len(diverged) < len(tried), f"all {len(tried)} configs that were tried diverged: {diverged[:1]}")


def the_same_seed_trains_the_same(module: ModuleType) -> None:
    from metasearch.objectives import Diverged

    kind, feasible = _kind(module)
    for config in _spread(feasible):
        try:
            one, two = (_trained(module, kind, config) for _ in range(2))
        except Diverged:
            continue
        told = [{k: v for k, v in report.metrics.items() if not k.endswith(("seconds", "_ms"))} for report in (one, two)]
        _equal(told[0] == told[1] and one.episodes == two.episodes,
               f"one seed gave {config} two results: {told[0]} with scores {one.episodes}, then {told[1]} with {two.episodes}")
        return


def a_vmap_and_a_loop_give_the_same_gradient(module: ModuleType) -> None:
    """The trainer runs whichever is faster."""
    from metasearch.objectives.recipe import Recipe

    kind, feasible = _kind(module)
    tasks, shape = kind.built()
    for config in _spread(feasible):
        recipe = replace(module.recipe(dict(config), shape), meta_batch=2)
        if recipe.learner.looped is not None or recipe.fit is not Recipe.__dataclass_fields__["fit"].default:
            continue
        try:
            error, most = _vmap_error(recipe, tasks, shape, double=True), 1e-4
        except RuntimeError:  # a net with float32 inside; then rounding shows, where a ReLU turns or Adam takes a sign
            error, most = _vmap_error(recipe, tasks, shape, double=False), 0.1
        if error > most:
            raise Broken(
                f"under vmap the gradient of {config} differs by {error:.1%} from that of a loop. Net and learner must be "
                "functions of their arguments alone, without memory; or set looped = 'why' on the learner."
            )


def optional_names_keep_their_contracts(module: ModuleType) -> None:
    from metasearch.objectives.recipe import Recipe

    space: Space = module.SPACE
    kind, feasible = _kind(module)
    _, shape = kind.built()
    relaxed, named = getattr(module, "relaxed", None), getattr(module, "RELAXED", None)
    if (relaxed is None) != (named is None):
        there = "RELAXED" if relaxed is None else "relaxed"
        raise Broken(f"RELAXED and relaxed(config, shape) go together, but only {there} is there.")
    if relaxed is not None and named is not None:
        paths = {path for path, _ in space.columns()}
        for path in named:
            _equal(path in paths, f"RELAXED names '{path}', which is no path of SPACE.{plugins.did_you_mean(str(path), paths)}")
        made = relaxed(dict(feasible[0]), shape)
        _equal(isinstance(made, Recipe), f"relaxed must return a Recipe, but returned {made!r:.80}")
        leaves = dict(space.columns())
        for path in named:
            choice = isinstance(leaves[path], Choice)
            _equal(choice, f"RELAXED names '{path}', which is no Choice: a mixture has a share for every option")
        some = ", ".join(path for path in named if path not in space.always)
        _equal(not some, f"RELAXED names {some}, but not every config makes that decision")
        for config in feasible[:MOST_MIXED]:
            _mixture_is_its_corner(module, config, kind)
    for config in _samples(space)[:50]:
        if hasattr(module, "canonical"):
            one = module.canonical(dict(config))
            _none(space.problems(one), f"canonical made {one} of {config}: ")
            _equal(module.canonical(dict(one)) == one, f"canonical of {config} is not its own canonical")


def a_picture_shows_every_operation(module: ModuleType) -> None:
    """In the graphs of a config every operation that it names occurs, as often as it names it.

    A dimension names operations if all of its options are texts that occur in some graph as operations (but for `none`).
    """
    if not hasattr(module, "graph"):
        return
    space: Space = module.SPACE
    configs = list({digest(config): config for config in [*covering(space), *_samples(space)[:50]]}.values())
    told = [(config, _graphs(module, config)) for config in configs]
    known = {name for _, graphs in told for graph in graphs for name in graph.operations}
    for config, graphs in told:
        shown = sum((graph.operations for graph in graphs), Counter[str]())
        named = Counter(str(config[path]) for path, dim in space.active(config) if _names_operations(dim, known))
        for name, count in named.items():
            enough = name == NO_OPERATION or shown[name] >= count
            _equal(enough, f"{config} names '{name}' {count}-fold, but its graphs show it {shown[name]}-fold")
    through = any(graph.live for _, graphs in told for graph in graphs)
    _equal(through, f"in none of {len(told)} configs a way leads from an input to an output of a graph")


def _graphs(module: ModuleType, config: Config) -> tuple[Graph, ...]:
    try:
        found = drawn(module, config)
    except ValueError as error:
        raise Broken(f"graph of {config}: {error}") from error
    _equal(found == drawn(module, config), f"graph is not a function of its config: {config} has two")
    return found


def _names_operations(dim: object, known: set[str]) -> bool:
    options = {value for value in dim.values if value != NO_OPERATION} if isinstance(dim, Choice) else set()
    return bool(options) and all(isinstance(value, str) for value in options) and options <= known


LAWS: tuple[Callable[[ModuleType], None], ...] = (
    it_defines_a_space_and_a_recipe,
    samples_are_valid,
    samples_survive_every_round_trip,
    mutations_are_valid_and_differ,
    the_file_says_the_same_whenever_it_is_read,
    the_recipe_builds,
    a_training_step_gives_finite_scores,
    the_same_seed_trains_the_same,
    a_vmap_and_a_loop_give_the_same_gradient,
    optional_names_keep_their_contracts,
    a_picture_shows_every_operation,
)


# -- inside --------------------------------------------------------------------------------------------------------------------


def _file(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or "")


def _made_here(module: ModuleType, value: object) -> bool:
    return getattr(value, "__module__", module.__name__) == module.__name__ or isinstance(value, Space)


def _has(config: Config, prefix: str) -> bool:
    return any(path.startswith(f"{prefix}.") for path in config)


def _equal(holds: bool, words: str) -> None:
    if not holds:
        raise Broken(words)


def _none(problems: list[str], words: str) -> None:
    if problems:
        raise Broken(words + "; ".join(problems))


def _samples(space: Space) -> list[Config]:
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(SAMPLES)]


def _spread(configs: list[Config]) -> list[Config]:
    """At most so many as are trained."""
    return configs[:MOST_TRAINED]


@lru_cache(maxsize=8)
def _kind(module: ModuleType) -> tuple[Kind, list[Config]]:
    """The first kind of task that at least half of the configs can be built for, and those configs.

    Raises Broken if there is none; raises whatever but ValueError the recipe raises for a kind that it is made for.
    """
    configs = covering(module.SPACE)
    said: list[str] = []
    for kind in KINDS:
        tasks, shape = kind.built()
        feasible: list[Config] = []
        mistakes: list[BaseException] = []
        refusals: list[str] = []
        for config in configs:
            try:
                recipe = module.recipe(dict(config), shape)
                _made(recipe, seed=0)
                recipe.learner.check(tasks, shape)
                feasible.append(config)
            except Broken:
                raise
            except ValueError as error:
                refusals.append(str(error))
            except (Exception, SystemExit) as error:
                mistakes.append(error)
        if 2 * len(feasible) >= len(configs):
            if mistakes:
                raise mistakes[0]
            return kind, feasible
        first = refusals[0] if refusals else plugins.reason(mistakes[0], _file(module))
        said.append(f"on {kind.name}: {first}")
    raise Broken(f"recipe builds at least half of {len(configs)} configs for none of these kinds of tasks: {'; '.join(said)}")


def _made(recipe: Recipe, *, seed: int) -> dict[str, Any]:
    """The weights that training would start from."""
    from torch import Generator

    from metasearch.objectives.recipe import Recipe

    if not isinstance(recipe, Recipe):
        raise Broken(f"recipe must return a Recipe, but returned {recipe!r:.80}.")
    return recipe.learner.init(recipe.net, Generator().manual_seed(seed))


def _trained(module: ModuleType, kind: Kind, config: Config) -> Any:
    """The last report of one outer step on two episodes, validated on two."""
    from metasearch.objectives import Trial
    from metasearch.objectives.train import Train

    tasks, shape = kind.built()
    train = Train(module.recipe, tasks, shape, validation_episodes=2, steps=1, meta_batch=2, mode="loop")
    *_, last = train(Proposal(dict(config), seed=0), Trial(0))
    return last


def _mixture_is_its_corner(module: ModuleType, config: Config, kind: Kind) -> None:
    """With all of its shares on the options of a config, and with those options' numbers alone, a mixture computes what that
    config's own net does with the same weights."""
    import torch

    tasks, shape = kind.built()
    wide, net = (build(dict(config), shape).net for build in (module.relaxed, module.recipe))
    generator = torch.Generator().manual_seed(0)
    meta, own = wide.init(generator), net.init(generator)
    other = sorted(key for key, value in own.items() if key not in meta or meta[key].shape != value.shape)
    _equal(not other, f"the net of {config} has weights that its mixture has not, or in another shape: {', '.join(other[:3])}")
    episodes = tasks.sample_episodes(1, split="train", shape=shape, generator=generator)
    numbers = {path: dim.index(config[path]) for path, dim in module.SPACE.active(config)
               if path in module.RELAXED and isinstance(dim, Choice)}
    corner = {f"arch/{path}": torch.full_like(meta.get(f"arch/{path}", torch.zeros(n + 1)), -torch.inf).index_fill(
        0, torch.tensor(n), 0.0) for path, n in numbers.items()}
    with torch.no_grad():
        right = net.apply({key: meta[key] for key in own}, episodes.support_x[0])
        for how, arch in (("one-hot logits", corner), ("numbers for logits", {f"arch/{path}": n for path, n in numbers.items()})):
            found = wide.apply({**meta, **arch}, episodes.support_x[0])
            close = found.shape == right.shape and bool(torch.isfinite(found).all()) and torch.allclose(
                found, right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))
            _equal(close, f"with {how} of {config}, relaxed computes something else than recipe: options must have one order in "
                          "both, and only `arch/` keys of RELAXED may say what is mixed")


def _vmap_error(recipe: Recipe, tasks: TaskDistribution, shape: TaskShape, *, double: bool) -> float:
    """The meta-gradient under vmap against that of a loop: length of the difference over length; 0 where it is not finite."""
    import torch

    from metasearch.objectives.episodic import draw_block, mean_gradient

    episodes = draw_block(recipe, tasks, recipe.episode or shape, 1, 0, 0)
    meta = _made(recipe, seed=0)
    if double:
        meta = {key: value.double() for key, value in meta.items()}
        x, y, query_x, query_y, noise = episodes
        doubled = {key: value.double() for key, value in noise.items()}
        episodes = type(episodes)(x.double(), y.double(), query_x.double(), query_y.double(), doubled)
    learner = recipe.learner.at(0.0)
    with torch.no_grad():
        looped, _ = mean_gradient(learner, recipe.net, tasks.loss, meta, episodes, "loop", None)
        mapped, _ = mean_gradient(learner, recipe.net, tasks.loss, meta, episodes, "vmap", None)
    size = math.sqrt(sum(float((g**2).sum()) for g in looped.values()))
    error = math.sqrt(sum(float(((mapped[key] - g) ** 2).sum()) for key, g in looped.items()))
    return error / size if math.isfinite(size) and size > 0 else 0.0
