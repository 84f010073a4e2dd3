"""Searching for augmentations: what the spaces mean, and that each method finds what is planted."""
from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from metasearch import cli
from metasearch.augment import PLACES, Places, RandAugment, Step, SubPolicies, find
from metasearch.augment.ops import AUTOAUGMENT
from metasearch.driver import launch
from metasearch.driver.study import Study
from metasearch.learners.anil import ANIL
from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.ledger import Ledger
from metasearch.records import Config
from metasearch.space import Space
from metasearch.strategies import build
from metasearch.strategies._policy_gradient import PolicyGradient
from metasearch.strategies.ppo import Ppo
from metasearch.tasks import TaskShape
from metasearch.testing.strategies import outcome_of
from search_spaces import _policies, augmentation, randaugment, whole_pipeline

SHAPE = TaskShape((1, 12, 12), 3, 1, 3)
STUDY = """
name = "augmentation"
space = "augmentation"
method = { name = "autoaugment", batch = 2 }
tasks = { name = "blobs", side = 12, train_classes = 20, ways = 3, shots = 1, queries = 3 }
train = { steps = 2, meta_batch = 1, mode = "loop" }
validation = { episodes = 4 }
budget = { trials = 5 }
driver = { kind = "local" }
track = { enabled = false }
"""


def _samples(space: Space, count: int) -> list[Config]:
    rng = np.random.default_rng(0)
    return [space.sample(rng) for _ in range(count)]


def _places(config: Config) -> Places:
    places = augmentation.recipe(config, SHAPE).augment
    assert isinstance(places, Places)
    return places


# spaces -----------------------------------------------------------------------------------------------------------------------


def test_of_the_published_operations_there_are_as_many_policies_as_published() -> None:
    """(16 operations, 11 probabilities, 10 magnitudes) to the tenth: 2.9e32."""
    assert _policies.sub_policies(AUTOAUGMENT).size == (16 * 11 * 10) ** 10


def test_a_config_is_a_policy_at_a_place() -> None:
    config = augmentation.SPACE.decode([0.0] * augmentation.SPACE.width)
    config |= {"place.sub.1.step.0.operation": "rotate", "place.sub.1.step.0.probability": 7, "place.sub.1.step.0.magnitude": 9}
    found = _places(config)
    assert list(found.policies) == ["support"]
    nothing = (Step("shear_x", 0.0, 0.0),) * 2
    assert found.support == SubPolicies((nothing, (Step("rotate", 0.7, 0.9), nothing[0]), nothing, nothing, nothing))


def test_every_config_of_every_place_can_act() -> None:
    used: dict[str, set[str]] = {place: set() for place in PLACES}
    for config in _samples(augmentation.SPACE, 200):
        (place, policy), = _places(config).policies.items()
        used[place] |= set(policy.operations)
    for place, names in used.items():
        assert ("cutmix" in names) == (place != "task"), "what mixes single pictures is only kept from whole classes"


def test_sub_policies_in_another_order_mean_the_same() -> None:
    for config in _samples(augmentation.SPACE, 20):
        subs = [{k: v for k, v in config.items() if k.startswith(f"place.sub.{i}.")} for i in range(5)]
        order = random.Random(0).sample(range(5), 5)
        other = dict(config)
        for new, old in enumerate(order):
            other |= {k.replace(f"sub.{old}.", f"sub.{new}.", 1): v for k, v in subs[old].items()}
        assert augmentation.canonical(other) == augmentation.canonical(config)


def test_the_canonical_config_does_what_the_config_does() -> None:
    def told(config: Config) -> tuple[str, Counter[tuple[tuple[str, float, float], ...]]]:
        (place, policy), = _places(config).policies.items()
        assert isinstance(policy, SubPolicies)
        return place, Counter(tuple(
            (s.operation, s.probability, s.magnitude if find(s.operation).unit else 0.0)
            for s in choice if s.probability > 0) for choice in policy.choices)

    for config in _samples(augmentation.SPACE, 100):
        assert told(augmentation.canonical(config)) == told(config)


def test_randaugment_is_two_numbers_and_a_place() -> None:
    places = randaugment.recipe({"place": "query", "n": 3, "m": 5}, SHAPE).augment
    assert places == Places(query=RandAugment(3, 5))
    assert randaugment.SPACE.size == 4 * 3 * 31


# AutoAugment ------------------------------------------------------------------------------------------------------------------


def _mass(policy: PolicyGradient, operation: str) -> float:
    """The share of `operation` among the steps that the controller draws."""
    found = [policy.sample().config for _ in range(30)]
    return float(np.mean([v == operation for config in found for k, v in config.items() if k.endswith(".operation")]))


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_the_controller_raises_the_mass_of_a_planted_operation(name: str) -> None:
    """Reward: how often a policy rotates. Of 21 operations alike one has a mass of .05."""
    policy = build(name, _policies.sub_policies(count=2), {"batch": 8, "lr": 0.03, "hidden": 20}, seed=0)
    assert isinstance(policy, PolicyGradient)
    before = _mass(policy, "rotate")
    for _ in range(40):
        drawn = [policy.sample() for _ in range(8)]
        policy.update(drawn, [sum(v == "rotate" for v in one.config.values()) for one in drawn])
    assert before < 0.15
    assert _mass(policy, "rotate") > 0.5


def test_a_study_by_autoaugment_runs_from_its_text(tmp_path: Path) -> None:
    study = Study.from_text(STUDY)
    assert study.problems() == []
    launch.run(study, home=tmp_path)
    with Ledger.open(tmp_path / "augmentation" / "ledger.sqlite") as ledger:
        assert [row.status for row in ledger.trials().values()] == ["done"] * 5


def test_autoaugment_is_ppo_with_the_published_settings() -> None:
    strategy = Study.from_text(STUDY, ["method={name='autoaugment'}"]).strategy()
    knobs = strategy.hyperparameters
    assert isinstance(strategy, Ppo)
    assert (knobs.epsilon, knobs.passes) == (0.2, 3)
    assert (knobs.lr, knobs.entropy, knobs.decay, knobs.hidden, knobs.layers, knobs.init) == (3.5e-4, 1e-5, 0.95, 100, 1, 0.1)


def test_a_space_without_augmentation_is_refused_with_what_would_work() -> None:
    said = " ".join(Study.from_text(STUDY, ["space=nasbench201"]).problems())
    assert "autoaugment searches for augmentations, but the space 'nasbench201' has none" in said
    for other in ("augmentation", "randaugment", "random", "tpe"):
        assert other in said


# the whole pipeline -----------------------------------------------------------------------------------------------------------


def test_a_whole_pipeline_is_a_net_a_learner_rates_and_a_policy() -> None:
    kinds, placed = Counter[str](), Counter[str]()
    for config in _samples(whole_pipeline.SPACE, 60):
        recipe = whole_pipeline.recipe(config, SHAPE)
        kinds[type(recipe.learner).__name__] += 1
        assert recipe.meta_batch == config["meta_batch"]
        assert float(recipe.optimizer.rates["lr"]) == pytest.approx(config["outer_lr"])
        if recipe.augment is None:
            assert config["augment"] == "none"
            continue
        assert isinstance(recipe.augment, Places)
        (place, policy), = recipe.augment.policies.items()
        assert place == config["augment"]
        assert isinstance(policy, SubPolicies)
        assert policy.choices[1][0].operation == config["augment.sub.1.step.0.operation"]
        placed[place] += 1
    assert set(kinds) == {"Prototypical", "MAML", "ANIL"}
    assert set(placed) == set(PLACES)


def test_every_decision_of_a_whole_pipeline_is_that_of_its_recipe() -> None:
    """The learner with its own numbers, the rate over the whole of training, layers with what they read."""
    seen = set[str]()
    for config in _samples(whole_pipeline.SPACE, 60):
        found = whole_pipeline.recipe(config, SHAPE)
        kind = str(config["learner"])
        if kind == "prototypical":
            assert found.learner == Prototypical(distance=config["learner.distance"])  # type: ignore[arg-type]
        else:
            numbers = float(config["learner.inner_lr"]), int(config["learner.inner_steps"])
            assert found.learner == {"maml": MAML, "anil": ANIL}[kind](*numbers)
        weights = {"net/w": torch.zeros(4)}
        state, rates = found.optimizer.init(weights), found.optimizer.rates
        grads = {"net/w": torch.full((4,), 100.0)}  # longer than what it is clipped to; Adam's first step is the rate itself
        ends = {"constant": 1.0, "cosine": 0.01, "linear": 0.01}[str(config["schedule"])]
        for progress, share in ((0.0, 1.0), (1.0, ends)):
            after, moments = found.optimizer.update(grads, state, weights, rates, torch.tensor(progress))
            torch.testing.assert_close(after["net/w"], torch.full((4,), -share * float(config["outer_lr"])), rtol=1e-3, atol=0)
            assert all(float(v.norm()) <= 1.01 for k, v in moments.items() if v.shape == (4,)), "a tenth of what is clipped to 10"
        meta = found.net.init(torch.Generator().manual_seed(0))
        count = int(config["layer.count"])
        assert sum(k.endswith("weight") and v.dim() == 4 for k, v in meta.items()) == count
        for i in range(count):
            wanted = tuple(int(config[f"layer.{i}.{name}"]) for name in ("filters", "height", "width"))
            assert wanted in [(v.shape[0], *v.shape[2:]) for v in meta.values() if v.dim() == 4]
        seen |= {kind, str(config["schedule"])}
    assert len(seen) == 6


@pytest.mark.parametrize(("name", "given"), [
    ("random", {}), ("reinforce", {"bins": 4}), ("ppo", {"bins": 4}), ("regularized-evolution", {}), ("tpe", {}), ("cma-es", {}),
    ("pba", {"steps": 1, "max_steps": 3, "population": 4}),
])
def test_strategies_search_the_whole_pipeline(name: str, given: dict[str, object]) -> None:
    strategy = build(name, whole_pipeline.SPACE, given, seed=0)
    strategy.mutate = whole_pipeline.mutations
    for trial in range(1, 9):
        proposal = strategy.ask()
        assert proposal is not None
        assert not whole_pipeline.SPACE.problems(proposal.config)
        whole_pipeline.recipe(proposal.config, SHAPE)
        strategy.tell(outcome_of(whole_pipeline.SPACE, trial, proposal))


# what a user may get wrong ----------------------------------------------------------------------------------------------------

SPACE = """
from dataclasses import replace
from metasearch.augment import Places, Schedule, Step, fixed
from metasearch.space import Choice, Space
from search_spaces._policies import plain

SPACE = Space({{"x": Choice((1, 2))}})
FLIP = fixed(Step("flip"))

def recipe(config, shape):
    return replace(plain(shape), augment={places})
"""


def _typed(tmp_path: Path, places: str) -> int:
    """What `metasearch run` answers, of a user's own space."""
    (tmp_path / "space.py").write_text(SPACE.format(places=places))
    study = STUDY.replace('space = "augmentation"', 'space = "space.py"').replace("trials = 5", "trials = 1")
    (tmp_path / "study.toml").write_text(study.replace('name = "autoaugment", batch = 2', 'name = "random"'))
    return cli.call(["run", str(tmp_path / "study.toml"), "--home", str(tmp_path)])


@pytest.mark.parametrize(("places", "said"), [
    ("Places(query=fixed(Step('rotat')))", "there is no operation 'rotat'. Did you mean 'rotate'?"),
    ("Places(query=fixed(Step('rotate', 1.0, 1.5)))", "the magnitude of rotate, a level of its range, must be between 0 and 1"),
    ("Places(query=fixed(Step('rotate', 2.0)))", "the probability of rotate must be between 0 and 1, but is 2.0"),
    ("Places(task=fixed(Step('cutmix')))", "cutmix mixes single pictures, so it cannot act on a whole class"),
    ("FLIP", "augment is Places(query=policy), say, but got SubPolicies"),
    ("'flip'", "augment is Places, a function of episodes and a generator, or None, but got 'flip'"),
    ("Places(query=fixed(Step('rotate', '0.5')))", "the probability of rotate must be between 0 and 1, but is '0.5'"),
    ("Places(query=Schedule((FLIP, FLIP), steps=60))", "the schedule is for 60 outer steps, but this training has 2"),
])
def test_a_policy_that_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], places: str, said: str,
) -> None:
    assert _typed(tmp_path, places) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "augmentation").exists()


def test_a_policy_for_colour_trains_on_grey_pictures_and_says_what_it_leaves_alone(tmp_path: Path) -> None:
    assert _typed(tmp_path, "Places(query=fixed(Step('color'), Step('rotate')))") == 0
    assert "leave them as they are: query: color" in (tmp_path / "augmentation" / "log.txt").read_text()


def test_a_schedule_without_a_length_is_stretched_over_any_training(tmp_path: Path) -> None:
    assert _typed(tmp_path, "Places(query=Schedule((FLIP, FLIP), (30.0, 30.0)))") == 0
