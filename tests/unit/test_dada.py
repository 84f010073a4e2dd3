"""DADA: what is relaxed has the values of what is drawn, the clean half is clean, and what is found trains."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from metasearch import policies
from metasearch.augment import PLACES, Places, Step, find, fixed
from metasearch.driver import launch
from metasearch.driver.study import Study
from metasearch.learners.mann import MANN
from metasearch.learners.reptile import Reptile
from metasearch.ledger import Ledger
from metasearch.nets import Params
from metasearch.objectives import Infeasible, Mode, Trial
from metasearch.objectives.dada import HIGHEST, PI, Dada, Drawn, M, P, Searched
from metasearch.objectives.episodic import draw_block
from metasearch.objectives.optimizer import sgd
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.relaxed import mean_loss
from metasearch.objectives.training import Setting
from metasearch.records import Config, Proposal
from metasearch.tasks import Episode

STUDY = """
name = "dada"
space = "augmentation"
method = { name = "dada", search_steps = 3 }
tasks = { name = "blobs", side = 12, train_classes = 20, ways = 3, shots = 1, queries = 3 }
train = { steps = 2, meta_batch = 2, mode = "vmap" }
validation = { episodes = 4 }
budget = { trials = 1 }
driver = { kind = "local" }
track = { enabled = false }
"""


def _objective(*overrides: str) -> Dada:
    found = Study.from_text(STUDY, overrides).objective()
    assert isinstance(found, Dada)
    return found


def _config(objective: Dada, place: str = "query") -> Config:
    config = {**objective.space.decode([0.0] * objective.space.width), "place": place}  # of operations that may act anywhere
    assert not objective.space.problems(config)
    return config


def _begun(objective: Dada, place: str = "query") -> tuple[Recipe, Params, Params, Episode]:
    """The recipe of the search, meta and state at its beginning, and the episodes of one step."""
    recipe, tasks, shape = objective.supernet(_config(objective, place)), objective.train.tasks, objective.train.shape
    meta = recipe.learner.init(recipe.net, Generator().manual_seed(0))
    state = objective.start(Setting(recipe, objective.train, Trial(0), tasks, shape, 7, meta, 3))
    episodes = draw_block(replace(recipe, meta_batch=4), tasks, recipe.episode or shape, 1, 5, 0)
    return recipe, meta, state, episodes


def _drawn(place: str, on: tuple[bool, bool]) -> Drawn:
    searched = Searched(place, (("rotate", "invert"), ("contrast", "cutout")), 2)
    for seed in range(200):
        found = Drawn.of(searched, ARCH, seed, "test", 0.5, None)
        if found.on == on and found.number == 1:
            return found
    raise AssertionError


ARCH: Params = {PI: torch.tensor([0.1, 0.3]), P: torch.tensor([[0.0, 0.4], [0.2, -0.3]]),
                M: torch.tensor([[0.3, 0.4], [0.6, 0.7]])}


def _touched(place: str, episodes: Episode) -> list[Tensor]:
    x, query = episodes.support_x, episodes.query_x
    return {"support": [x], "query": [query], "task": [x, query], "shot": [x[:, x.shape[1] // 2:]]}[place]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mixed", [False, True])
def test_relaxed_pictures_have_the_values_of_those_that_were_drawn(place: str, mixed: bool) -> None:
    *_, episodes = _begun(_objective(), place)
    for on in ((True, True), (False, True)):
        one = _drawn(place, on)
        plain, found = one.hard(episodes), one.relaxed(episodes, mixed=mixed)(ARCH)
        for a, b in zip(plain[:4], found[:4], strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("place", PLACES)
def test_the_gradient_of_a_magnitude_is_that_of_a_brightness_where_the_operation_is_applied(place: str) -> None:
    *_, episodes = _begun(_objective())
    one = _drawn(place, (False, True))
    pictures = one.relaxed(episodes, mixed=False)
    pixels = sum(x.numel() for x in _touched(place, one.hard(episodes)))

    def total(level: Tensor) -> Tensor:
        found = pictures({**ARCH, M: level})
        return torch.stack([x.sum() for x in _touched(place, found)]).sum()

    slope = torch.func.grad(total)(ARCH[M])
    torch.testing.assert_close(slope, torch.tensor([[0.0, 0.0], [0.0, float(pixels)]]))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("names", [("rotate", "contrast"), ("contrast", "cutout"), ("cutout", "translate_x")])
def test_an_exact_gradient_of_a_magnitude_is_its_finite_difference(place: str, names: tuple[str, str]) -> None:
    """Of what is drawn at levels a little above and below; where the operation has none (cutout), it stays the brightness's.
    Pictures are normalised, and so grey that none is clipped."""
    drawn = _begun(_objective())[-1]
    episodes = drawn._replace(support_x=drawn.support_x.double() / 10, query_x=drawn.query_x.double() / 10)
    one = replace(_drawn(place, (True, True)), names=names, moments=((0.5,), (0.25,)))
    plain = one.hard(episodes)
    values = [torch.rand(x.shape, generator=Generator().manual_seed(k)) for k, x in enumerate(_touched(place, plain))]

    def weighed(found: Episode) -> Tensor:
        return torch.stack([(x * v).sum() for x, v in zip(_touched(place, found), values, strict=True)]).sum()

    def slope(*, exact: bool) -> Tensor:
        pictures = one.relaxed(episodes, mixed=False, exact=exact)
        for a, b in zip(plain[:4], pictures(ARCH)[:4], strict=True):
            torch.testing.assert_close(a, b)
        return torch.func.grad(lambda m: weighed(pictures({**ARCH, M: m})))(ARCH[M])

    found, published, h = slope(exact=True), slope(exact=False), 2e-4
    assert bool((found[0] == 0).all())
    for j, name in enumerate(names):
        if name == "cutout":
            torch.testing.assert_close(found[1, j], published[1, j])
            continue
        above, below = (replace(one, levels=tuple(v + h * s * (k == j) for k, v in enumerate(one.levels))) for s in (1, -1))
        step = weighed(above.hard(episodes)) - weighed(below.hard(episodes))
        torch.testing.assert_close(found[1, j].double(), step / (2 * h), rtol=0.01, atol=0.2)
        assert abs(float(found[1, j] - published[1, j])) > 5


@pytest.mark.parametrize("name", ["rotate", "translate_x"])
def test_an_exact_gradient_leads_away_from_level_0(name: str) -> None:
    """Where a magnitude ends whose last step was too long. Of slopes, seen away from the border: there is no kink at 0."""
    drawn = _begun(_objective())[-1]
    episodes = drawn._replace(query_x=torch.linspace(0.2, 0.8, 12).double().expand(drawn.query_x.shape).contiguous())
    one = replace(_drawn("query", (True, True)), names=(name, "invert"), levels=(0.0, 0.4))
    values = torch.randn(episodes.query_x.shape, generator=Generator().manual_seed(1))[..., 2:-2, 2:-2]

    def weighed(found: Episode) -> Tensor:
        return (found.query_x[..., 2:-2, 2:-2] * values).sum()

    pictures, levels = one.relaxed(episodes, mixed=False, exact=True), torch.tensor([[0.3, 0.4], one.levels])
    slope, h = torch.func.grad(lambda m: weighed(pictures({**ARCH, M: m})))(levels)[1, 0], 1e-4
    step = weighed(replace(one, levels=(h, 0.4)).hard(episodes)) - weighed(one.hard(episodes))
    assert abs(float(slope)) > 0.1
    torch.testing.assert_close(slope.double(), step / h, rtol=0.01, atol=0.01)


def test_the_gradient_of_a_probability_is_the_difference_that_its_operation_makes() -> None:
    *_, episodes = _begun(_objective())
    one = _drawn("query", (False, True))
    pictures = one.relaxed(episodes, mixed=True)
    values = torch.rand(episodes.query_x.shape, generator=Generator().manual_seed(1))

    def inner(p: Tensor) -> Tensor:
        return (pictures({**ARCH, P: p}).query_x * values).sum()

    slope = torch.func.grad(inner)(ARCH[P])
    neither, both = one.hard(episodes, (False, False)).query_x, one.hard(episodes, (True, True)).query_x
    now = one.hard(episodes).query_x
    z = ARCH[P][1] + torch.logit(one.u["p"][1])
    soft = (z / 0.5).sigmoid()
    gains = torch.stack([((both - now) * values).sum(), ((now - neither) * values).sum()])
    torch.testing.assert_close(slope[1], gains * soft * (1 - soft) / 0.5, rtol=1e-3, atol=1e-3)
    assert bool((slope[0] == 0).all())


@pytest.mark.parametrize("estimator", ["relax", "gumbel"])
def test_the_other_classes_are_looked_at_clean(estimator: str) -> None:
    """With a step ahead of length 0 the loss that is looked at is that of the episodes as they were drawn, and only a change of
    weights would say anything of a magnitude."""
    objective = replace(_objective(f"method.estimator={estimator}"), xi=0.0)
    recipe, meta, state, episodes = _begun(objective)
    after, _, told = objective.step(recipe, "vmap", None, state, 7)(meta, state, episodes, 0.0)
    val = episodes.select(slice(2, None))
    clean = mean_loss(recipe.learner.at(0.0), recipe.net, objective.train.tasks.loss, meta, val, "vmap", None)
    torch.testing.assert_close(told["clean_loss"], clean.detach())
    assert torch.equal(after[M], meta[M])


@pytest.mark.parametrize("estimator", ["relax", "gumbel"])
@pytest.mark.parametrize("magnitudes", ["straight-through", "exact"])
def test_loop_and_vmap_take_the_same_step(estimator: str, magnitudes: str) -> None:
    objective = _objective(f"method.estimator={estimator}", f"method.magnitudes={magnitudes}")
    objective = replace(objective, arch=sgd(1.0))  # Adam would step by the sign of nothing
    recipe, meta, state, episodes = _begun(objective)
    modes: tuple[Mode, ...] = ("loop", "vmap")
    one, two = (objective.step(recipe, mode, None, state, 3)(meta, state, episodes, 0.0)[0] for mode in modes)
    for k in (PI, P, M):
        torch.testing.assert_close(one[k], two[k], rtol=1e-3, atol=1e-5)
    assert not torch.equal(one[PI], meta[PI])


USERS = '''
from dataclasses import replace
from metasearch.augment import Places, Schedule, Step, SubPolicies, fixed
from metasearch.space import Choice, Space
from search_spaces import _policies as policies

SPACE = Space({"where": Choice({name: policies.sub_policies(("rotate", "contrast"), count=1) for name in %s})})
DARK = Schedule((fixed(Step("invert")), fixed(Step("identity"))))

def recipe(config, shape):
    found = SubPolicies(policies.policy(config, "where").choices, ranges="wide")
    return replace(policies.plain(shape), augment=Places(query=found, task=DARK, fill=0.75, versions=3))
'''


def test_a_search_in_a_users_own_space_sees_what_its_recipe_will_do(tmp_path: Path) -> None:
    """The same ranges of magnitudes and fill, and what acts at other places, at the point of the search; but one version."""
    (tmp_path / "space.py").write_text(USERS % "('query',)")
    objective = _objective(f"space={tmp_path / 'space.py'}")
    config = {**objective.space.decode([0.0] * objective.space.width), "where": "query"}
    recipe, tasks = objective.supernet(config), objective.train.tasks
    episodes = draw_block(recipe, tasks, recipe.episode or objective.train.shape, 1, 5, 0)
    assert isinstance(recipe.augment, Searched)
    arch = {PI: torch.zeros(1), P: torch.zeros(1, 2), M: torch.tensor([[0.6, 0.9]])}
    seed = next(s for s in range(99) if Drawn.of(recipe.augment, arch, s, "here", 0.5, None).on == (True, False))
    for progress, dark in ((0.0, True), (0.9, False)):
        drawn = Drawn.of(recipe.augment, arch, seed, "here", 0.5, None, progress)
        found = drawn.hard(episodes)
        before = 1 - episodes.query_x if dark else episodes.query_x
        torch.testing.assert_close(found.support_x, 1 - episodes.support_x if dark else episodes.support_x)
        n = before.flatten(0, 1)
        signs = (torch.full((len(n), 4), s) for s in (0.0, 1.0))
        turned = [find("rotate")(n, torch.full((len(n),), 0.6 * 135), noise, fill=0.75).view_as(before) for noise in signs]
        off = torch.stack([(found.query_x - each).abs().amax((2, 3, 4)) for each in turned]).amin(0)
        assert float(off.max()) < 1e-4, "each by 0.6 of 135 degrees, one way or the other, and 0.75 lies around it"


def test_options_that_name_no_place_of_sub_policies_are_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(USERS % "('queries',)")
    said = " ".join(Study.from_text(STUDY, [f"space={tmp_path / 'space.py'}"]).problems())
    assert "with where = queries the recipe has no sub-policies at a place of that name" in said


STEPS = """
from metasearch.space import Choice, Float, Int, Repeat, Space
from search_spaces import augmentation
from search_spaces._policies import LEVELS

def two(operation=("rotate", "contrast"), count=Int(2, 2), **levels):
    return Space({"step": Repeat(count, Space({"operation": Choice(operation), **LEVELS, **levels}))})

SPACE = Space({"place": Choice({"query": Space({"sub": %s})})})
recipe = augmentation.recipe
"""


@pytest.mark.parametrize(("sub", "said"), [
    ("Repeat(Int(2, 2), two(magnitude=Int(0, 30)))", r"place.sub.0.step.0.magnitude must be Int(0, 9), tenths, but is Int(low=0, "
                                                     r"high=30"),
    ("Repeat(Int(2, 2), two(magnitude=Float(0, 1)))", "magnitude must be Int(0, 9), tenths, but is Float"),
    ("Repeat(Int(2, 2), two(probability=Int(0, 9)))", "probability must be Int(0, 10), tenths, but is Int(low=0, high=9"),
    ("Repeat(Int(1, 5), two())", "place.sub must be a Repeat of a fixed number, Int(5, 5), but has 1 to 5"),
    ("Repeat(Int(2, 2), two(count=Int(1, 2)))", "place.sub.0.step must be a Repeat of a fixed number, Int(2, 2)"),
    ("Repeat(Int(2, 2), (two(), two(('flip', 'invert'))))", "place.sub must have the same dimensions in all of its items"),
    ("Repeat(Int(2, 2), two(('rotate',)))", "operation must be a Choice of two names or more"),
    ("Repeat(Int(2, 2), two(('rotate', 'trun')))", "there is no operation 'trun'. Did you mean 'turn'"),
])
def test_sub_policies_that_could_not_say_what_is_found_are_refused_before_anything_starts(
    sub: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "space.py").write_text(STEPS % sub)
    assert said in " ".join(Study.from_text(STUDY, [f"space={tmp_path / 'space.py'}"]).problems())


@pytest.mark.parametrize(("size", "names", "said"), [
    ((12, 10), "('rotate', 'turn')", "turned by 90 degrees, but these are 12 x 10. Leave `turn`"),
    ((12, 12, 5), "('rotate', 'channel_permutation')", "pictures of up to 4 channels, but these have 5. Leave"),
    ((12, 10), "('rotate', 'channel_permutation')", ""), ((12, 12, 4), "('rotate', 'channel_permutation', 'turn')", ""),
])
def test_operations_that_cannot_act_on_the_pictures_are_refused_before_anything_starts(
    size: tuple[int, ...], names: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever operations the config has that a trial begins with: those of the middle, say."""
    monkeypatch.setenv("METASEARCH_CACHE", str(tmp_path / "cache"))
    np.savez(tmp_path / "a.npz", images=np.zeros((30, 8, *size), np.uint8), split=np.repeat(["train", "val", "test"], [18, 6, 6]))
    (tmp_path / "space.py").write_text(STEPS % f"Repeat(Int(2, 2), two({names}))")
    tasks = f"tasks={{name='class-arrays', path='{tmp_path / 'a.npz'}', split='split', ways=3, shots=1, queries=3}}"
    problems = Study.from_text(STUDY, [f"space={tmp_path / 'space.py'}", tasks]).problems()
    assert said in " ".join(problems)
    assert said or not problems
    assert not said or "dada tries every operation that place = query opens: " in " ".join(problems)


@pytest.mark.parametrize(("tenths", "said"), [
    ("9", "stand for Step(operation='contrast', probability=0.5, magnitude=0.5), but the recipe makes Step(operation='contrast', "
          "probability=0.5, magnitude=0.55"),
    ("10", ""),
])
def test_a_recipe_that_does_not_read_levels_as_tenths_is_refused_before_anything_starts(
    tenths: str, said: str, tmp_path: Path
) -> None:
    """It would train another policy than the one that was found."""
    (tmp_path / "space.py").write_text(STEPS % "Repeat(Int(2, 2), two())" + f"""
from dataclasses import replace
from metasearch.augment import Places, Step, SubPolicies
from metasearch.space import items

def recipe(config, shape):
    read = lambda one: Step(one["operation"], one["probability"] / 10, one["magnitude"] / {tenths})
    subs = tuple(tuple(read(one) for one in items(sub, "step")) for sub in items(config, "place.sub"))
    return replace(augmentation.recipe(config, shape), augment=Places(query=SubPolicies(subs)))
""")
    problems = Study.from_text(STUDY, [f"space={tmp_path / 'space.py'}"]).problems()
    assert said in " ".join(problems)
    assert said or not problems


def test_operations_that_mix_pictures_are_refused_for_whole_classes(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(STEPS.replace('"query"', '"task"') % "Repeat(Int(2, 2), two(('cutmix', 'rotate')))")
    said = " ".join(Study.from_text(STUDY, [f"space={tmp_path / 'space.py'}"]).problems())
    assert "place = task opens: cutmix mixes single pictures, so it cannot act on a whole class" in said


def test_what_is_found_is_a_config_of_every_space_that_is_not_refused(tmp_path: Path) -> None:
    """The levels may as well be options."""
    options = "Repeat(Int(3, 3), two(magnitude=Choice(tuple(range(10))), probability=Choice(tuple(range(11)))))"
    (tmp_path / "space.py").write_text(STEPS % options)
    for study in ([f"space={tmp_path / 'space.py'}"], [], ["space=whole-pipeline", "tasks.side=28"]):
        assert Study.from_text(STUDY, study).problems() == []
        objective = _objective(*study)
        for u in (0.3, 0.5, 0.9):
            config = objective.space.decode([u] * objective.space.width)
            if config[objective.path] == "none":
                continue
            searched = objective.supernet(config).augment
            assert isinstance(searched, Searched)
            n = len(searched.pairs)
            for m in (0.0, HIGHEST):
                found = objective.found(config, searched, {PI: torch.zeros(n), P: torch.zeros(n, 2), M: torch.full((n, 2), m)})
                assert objective.space.problems(found) == []
                assert found[f"{objective.path}.sub.1.step.1.magnitude"] == round(10 * m)


def test_a_net_beyond_a_limit_is_not_searched_for() -> None:
    """No augmentation would change it."""
    objective = _objective("limits.max_params=1000")
    with pytest.raises(Infeasible, match=r"params is .*, but the study's limit is 1000"):
        next(iter(objective(Proposal(_config(objective), seed=1), Trial(0))))
    enough = _objective("limits.max_params=1000000")
    assert next(iter(enough(Proposal(_config(enough), seed=1), Trial(0)))).step == 1


def test_magnitudes_stay_levels_that_a_config_can_say() -> None:
    """However large a step is."""
    objective = replace(_objective("method.xi=0.2"), arch=sgd(1e6))
    recipe, meta, state, episodes = _begun(objective)
    ends = set[float]()
    for seed in range(6):
        after = objective.step(recipe, "vmap", None, state, seed)(meta, state, episodes, 0.0)[0][M]
        ends |= set(after[after != meta[M]].tolist())
    assert ends
    assert ends <= {0.0, float(torch.tensor(HIGHEST))}


def test_what_is_found_are_the_most_probable_pairs_at_their_levels() -> None:
    objective = _objective()
    recipe = objective.supernet(_config(objective))
    searched = recipe.augment
    assert isinstance(searched, Searched)
    assert len(searched.pairs) == 21 * 20 // 2
    arch = {PI: torch.zeros(210), P: torch.zeros(210, 2), M: torch.full((210, 2), HIGHEST / 2)}
    k = searched.pairs.index(("rotate", "cutout"))
    arch[PI][k], arch[P][k], arch[M][k] = 2.0, torch.tensor([9.0, -9.0]), torch.tensor([0.9, 0.0])
    found = objective.found(_config(objective), searched, arch)
    assert not objective.space.problems(found)
    assert [found[f"place.sub.0.step.{j}.{name}"] for j in (0, 1) for name in ("operation", "probability", "magnitude")] == [
        "rotate", 10, 9, "cutout", 0, 0]


@pytest.mark.parametrize("estimator", ["relax", "gumbel"])
def test_a_study_by_dada_runs_from_its_text_to_a_policy(tmp_path: Path, estimator: str) -> None:
    study = Study.from_text(STUDY, [f"method.estimator={estimator}"])
    assert study.problems() == []
    launch.run(study, home=tmp_path)
    with Ledger.open(tmp_path / "dada" / "ledger.sqlite") as ledger:
        row = ledger.trials()[1]
    assert row.status == "done"
    assert row.report is not None
    assert row.report.found is not None
    assert row.report.found["place"] == row.proposal.config["place"]
    found = study.training().built(row.report.found).augment
    assert isinstance(found, Places)
    before = replace(row, report=replace(row.report, found=None))  # as it is while it searches, and where its search fails
    for one, wanted in ((row, found), (before, None)):
        assert policies.of_row({1: one}, 1, policies.places_of(study), searching=policies.searches(study)) == wanted


@pytest.mark.parametrize(("overrides", "said"), [
    (["space=nasbench201"], "dada searches for augmentations"), (["space=randaugment"], "opens any"),
    (["method.arch_lr=0.0"], "arch_lr > 0"), (["method.temperature=0.0"], "0 < temperature < inf"),
    (["method.temperature=inf"], "0 < temperature < inf"), (["method.xi=0.0"], "xi > 0"), (["method.xi=-1.0"], "0 <= xi < inf"),
    (["method.magnitudes=real"], "magnitudes must be"),
])
def test_what_does_not_fit_is_refused(overrides: list[str], said: str) -> None:
    assert said in " ".join(Study.from_text(STUDY, overrides).problems())


LEARNER = """
from dataclasses import replace
from metasearch.learners.{module} import {learner}
from search_spaces import augmentation
SPACE = augmentation.SPACE
def recipe(config, shape):
    return replace(augmentation.recipe(config, shape), learner={learner}())
"""


def test_a_learner_without_a_gradient_is_refused_before_anything_starts_and_in_a_trial(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(LEARNER.format(module="reptile", learner="Reptile"))
    said = " ".join(Study.from_text(STUDY, [f"space={tmp_path / 'space.py'}"]).problems())
    assert "dada follows the gradient of the loss on queries, but Reptile learns by none" in said
    assert "autoaugment" in said
    autoaugment = ["method={name='autoaugment', batch=1}", f"space={tmp_path / 'space.py'}"]
    assert not Study.from_text(STUDY, autoaugment).problems(), "it wants scores only"
    objective = _objective()  # a space may have learners of both kinds: then trials say so
    recipe = objective.supernet(_config(objective))
    assert isinstance(recipe.augment, Searched)
    other = replace(recipe, learner=Reptile())
    with pytest.raises(Infeasible, match="Reptile learns by none"):
        objective.start(Setting(other, objective.train, Trial(0), objective.train.tasks, objective.train.shape, 7, {}, 3))


@pytest.mark.parametrize(("place", "around"), [("shot", Places()), ("query", Places(shot=fixed(Step("flip"))))])
def test_further_shots_are_refused_to_a_learner_that_draws_noise_for_each_picture(place: str, around: Places) -> None:
    """Whether they are searched or the recipe's own: there would be none for them."""
    objective = _objective()
    recipe = objective.supernet(_config(objective))
    assert isinstance(recipe.augment, Searched)
    other = replace(recipe, learner=MANN(), augment=replace(recipe.augment, place=place, around=around))
    with pytest.raises(Infeasible, match=r"MANN draws noise for each picture.*Take no policy at the place shot"):
        objective.start(Setting(other, objective.train, Trial(0), objective.train.tasks, objective.train.shape, 7, {}, 3))
