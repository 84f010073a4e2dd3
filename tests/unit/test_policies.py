"""What a search for augmentations found: schedules of lineages, the best side by side, and policies kept by name."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Generator

import metasearch
from metasearch import augment, cli, policies
from metasearch.augment import Places, Schedule, Shared, Shuffled, Step, SubPolicies, fixed
from metasearch.augment.ops import NUMBER
from metasearch.cli import pictures
from metasearch.driver import launch
from metasearch.driver.study import Study
from metasearch.driver.worker import work
from metasearch.home import homes
from metasearch.ledger import Ledger
from metasearch.records import Config
from metasearch.strategies.pba import Segment, lineage
from metasearch.tasks.blobs import Blobs
from metasearch.track.leaderboard import leaderboard, rows_from_ledger

ROTATE, FLIP = fixed(Step("rotate", 1.0, 0.9)), fixed(Step("flip"))
STUDY = """
name = "pba"
space = "population-augmentation"
method = { name = "pba", steps = 1, max_steps = 3, population = 4, founders = "random", synchronous = true }
tasks = { name = "blobs", side = 12, train_classes = 20, ways = 3, shots = 1, queries = 3 }
train = { steps = 3, meta_batch = 1, mode = "loop" }
validation = { episodes = 4 }
budget = { trials = 4 }
driver = { kind = "local" }
track = { enabled = false }
"""


def _of(config: Config) -> Places | None:
    return {"rotate": Places(query=ROTATE), "flip": Places(query=FLIP, copies=2), "both": Places(query=FLIP, support=ROTATE),
            "none": None}[str(config["what"])]


def _segments(*told: tuple[str, int]) -> list[Segment]:
    return [Segment(number, {"what": what}, steps) for number, (what, steps) in enumerate(told, 1)]


def test_segments_become_a_schedule_in_which_equal_ones_are_one() -> None:
    found = policies.schedule(_segments(("none", 3), ("rotate", 3), ("rotate", 2), ("flip", 4)), _of)
    nothing = fixed(Step("identity"))
    assert found == Places(query=Schedule((nothing, ROTATE, FLIP), (3.0, 5.0, 4.0)), copies=2)
    assert isinstance(found.query, Schedule)
    for steps in (12, 24, 1200):  # stretched to any length
        stage = found.query.stage(torch.arange(steps) / steps)
        assert [int((stage == k).sum()) for k in range(3)] == [steps * 3 // 12, steps * 5 // 12, steps * 4 // 12]


def test_every_place_has_a_schedule_of_its_own() -> None:
    found = policies.schedule(_segments(("rotate", 1), ("both", 1)), _of)
    assert found == Places(query=Schedule((ROTATE, FLIP), (1.0, 1.0)),
                           support=Schedule((fixed(Step("identity")), ROTATE), (1.0, 1.0)))


def test_what_never_changes_is_no_schedule() -> None:
    assert policies.schedule(_segments(("rotate", 3), ("rotate", 9)), _of) == Places(query=ROTATE)
    assert policies.schedule(_segments(("none", 3)), _of) is None


# by name ----------------------------------------------------------------------------------------------------------------------


def test_a_kept_policy_is_found_by_hash_and_by_trial(tmp_path: Path) -> None:
    places = Places(query=Schedule((ROTATE, FLIP), (1.0, 2.0)))
    name = augment.keep(places, "pba/12", home=tmp_path)
    assert augment.named(name, home=tmp_path) == augment.named("pba/12", home=tmp_path) == places
    assert name == augment.content_hash(Places(query=Schedule((ROTATE, FLIP), (1.0, 2.0))))
    assert name != augment.content_hash(Places(query=Schedule((ROTATE, FLIP), (1.0, 3.0))))
    assert augment.keep(places, "pba/12", home=tmp_path) == name, "again"


def test_a_name_that_configs_may_say_never_comes_to_mean_another_policy(tmp_path: Path) -> None:
    first = augment.keep(Places(query=ROTATE), "pba/12", home=tmp_path)
    with pytest.raises(ValueError, match=f"another policy is kept as 'pba/12' .hash {first}."):
        augment.keep(Places(query=FLIP), "pba/12", home=tmp_path)
    assert augment.named("pba/12", home=tmp_path) == Places(query=ROTATE)
    assert augment.named(augment.keep(Places(query=FLIP), home=tmp_path), home=tmp_path) == Places(query=FLIP)


@pytest.mark.parametrize(("name", "said"), [
    ("pba/13", "no policy is kept as 'pba/13'"), ("0123456789abcdef", "no policy is kept"), ("pba", "named by its hash"),
    ("../pba/1", "a study's name"), ("pba/../1", "a study's name"),
])
def test_a_name_without_a_policy_is_an_error_in_words(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        augment.named(name, home=tmp_path)


def test_a_file_that_was_changed_is_noticed(tmp_path: Path) -> None:
    name = augment.keep(ROTATE, home=tmp_path)
    path = tmp_path / ".policies" / f"{name}.json"
    path.write_text(path.read_text().replace("rotate", "shear_x"))
    with pytest.raises(ValueError, match="was changed"):
        augment.named(name, home=tmp_path)


NAMED = """
from dataclasses import replace
from metasearch.augment import named
from metasearch.space import Choice, Space
from search_spaces._policies import plain
SPACE = Space({{"of": Choice(("pba/3",))}})
SHOTS = named("{shots}").shot
def recipe(config, shape): return replace(plain(shape), augment=replace(named(config["of"]), shot=SHOTS))
"""


def test_a_recipe_finds_what_it_names_where_its_study_lives_and_an_export_brings_it_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named when a recipe is made, and when its file is read; no variable says where studies live."""
    monkeypatch.delenv("METASEARCH_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    home, space = tmp_path / "home", tmp_path / "space.py"
    augment.keep(Places(query=ROTATE), "pba/3", home=home)
    space.write_text(NAMED.format(shots=augment.keep(Places(shot=FLIP), home=home)))
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    words = ["name=again", f"space={space}", "method={name='random'}", "budget.trials=1", "track.pictures=0"]
    assert cli.call(["run", str(study), *words, "--home", str(home)]) == 0
    assert cli.call(["policy", "again/1", "--home", str(home)]) == 0
    assert "rotate" in capsys.readouterr().out
    places = Places(query=ROTATE, shot=FLIP)
    assert policies.of_trial("again/1", home=home) == metasearch.load("again/1", home=home).augment == places
    folder = metasearch.export("again/1", tmp_path / "exported", home=home)
    home.rename(tmp_path / "elsewhere")
    model = metasearch.load(folder, trust_code=True)
    assert model.augment == places
    assert model.built(7)[0].features == model.net.features  # the recipe is asked again
    with pytest.raises(ValueError, match="no policy is kept as 'pba/3'"):
        augment.named("pba/3")


def test_a_worker_of_another_process_lives_where_its_study_is(tmp_path: Path) -> None:
    seen: list[Path] = []

    class Idle:
        def next(self, ending: object, lines: object) -> None:
            seen.append(homes()[0])

    assert work(Idle(), lambda: pytest.fail("there is no trial"), tmp_path / "study")  # type: ignore[arg-type]
    assert seen == [tmp_path]
    assert tmp_path not in homes()


# a whole study ----------------------------------------------------------------------------------------------------------------


def test_a_study_by_pba_ends_in_a_schedule_that_trains_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METASEARCH_HOME", str(tmp_path))
    study = Study.from_text(STUDY)
    assert study.problems() == []
    ended = launch.run(study)
    with Ledger.open(tmp_path / "pba" / "ledger.sqlite") as ledger:
        trials = ledger.trials()
    assert [row.status for row in trials.values()] == ["done"] * 12
    assert all(row.outcome is not None and row.outcome.step == row.proposal.until for row in trials.values())
    proposals = {number: row.proposal for number, row in trials.items()}
    copied = next(n for n in (9, 10, 11, 12) if len({json.dumps(one.config) for one in lineage(proposals, n)}) > 1)
    found = policies.of_trial(f"pba/{copied}")
    (place, schedule), = found.policies.items()
    assert place == proposals[copied].config["place"]
    assert isinstance(schedule, Schedule)
    assert all(isinstance(policy, Shuffled) and len(policy.steps) == 30 for policy in schedule.policies)
    last = schedule.policies[-1]
    assert isinstance(last, Shuffled)
    best = max((9, 10, 11, 12), key=lambda n: trials[n].outcome.score or 0)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=f"pba/{best} is the best of those that trained longest"):
        policies.joined("pba")
    assert ended.best is not None
    assert ended.best.id == best, "scores after one step do not compare with those after three"
    board = leaderboard(rows_from_ledger(tmp_path / "pba")).set_index("trial")
    assert set(board.index[board["rank"].notna()]) == {f"pba/{n}" for n in (9, 10, 11, 12)}
    assert board["rank"].idxmin() == f"pba/{best}"
    went_on = {one.parent for one in proposals.values() if one.parent and one.config == proposals[one.parent].config}
    assert set(board.index) == {f"pba/{n}" for n in set(trials) - went_on}, "one row a member"
    config = proposals[copied].config
    assert last.steps[0] == Step("shear_x", int(config["shear_x_1_probability"]) / 10, int(config["shear_x_1_magnitude"]) / 10)

    name = policies.keep(f"pba/{copied}")
    space = tmp_path / "named_space.py"
    space.write_text(f"""
from dataclasses import replace
from metasearch.augment import named
from metasearch.space import Choice, Space
from search_spaces._policies import plain
SPACE = Space({{"schedule": Choice(("pba/{copied}", "{name}"))}})
def recipe(config, shape): return replace(plain(shape), augment=named(config["schedule"]))
""")
    again = Study.from_text(STUDY, ["name=again", f"space={space}", "method={name='grid'}", "train.steps=7", "budget.trials=2"])
    assert again.problems() == []
    launch.run(again)
    with Ledger.open(tmp_path / "again" / "ledger.sqlite") as ledger:
        assert [row.status for row in ledger.trials().values()] == ["done"] * 2


LOST = """
from dataclasses import replace
from metasearch.augment import Places, Schedule, Step, fixed
from metasearch.space import Choice, Space
from search_spaces._policies import plain
SPACE = Space({"x": Choice((1, 2))})
FLIP = fixed(Step("flip"))
def recipe(config, shape): return replace(plain(shape), augment=Places(query=Schedule((FLIP,), steps=3 * config["x"])))
"""


def test_a_trial_that_did_not_end_well_is_not_kept_for_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of the two schedules is for a training of another length."""
    (tmp_path / "space.py").write_text(LOST)
    wanted = ["name=lost", f"space={tmp_path / 'space.py'}", "method={name='grid'}", "budget.trials=2"]
    launch.run(Study.from_text(STUDY, wanted), home=tmp_path)
    with Ledger.open(tmp_path / "lost" / "ledger.sqlite") as ledger:
        by_status = {row.status: number for number, row in ledger.trials().items()}
    assert set(by_status) == {"done", "infeasible"}
    lost = f"lost/{by_status['infeasible']}"
    with pytest.raises(ValueError, match=f"{lost} is 'infeasible'.*augment.keep"):
        policies.keep(lost, home=tmp_path)
    assert policies.of_trial(lost, home=tmp_path).policies
    assert cli.call(["policy", lost, "--keep", "--home", str(tmp_path)]) == 2
    assert "is 'infeasible'" in capsys.readouterr().err
    assert not (tmp_path / ".policies").exists()
    assert policies.keep(f"lost/{by_status['done']}", home=tmp_path)


def test_the_best_policies_side_by_side(tmp_path: Path) -> None:
    wanted = ["name=best", "space=augmentation", "method={name='random'}", "budget.trials=12", "train.steps=1"]
    study = Study.from_text(STUDY, wanted)
    launch.run(study, home=tmp_path)
    found = policies.joined("best", best=2, home=tmp_path)
    (place, policy), = found.policies.items()
    assert isinstance(policy, SubPolicies)
    with Ledger.open(tmp_path / "best" / "ledger.sqlite") as ledger:
        ranked = sorted(ledger.trials().values(), key=lambda row: -(row.outcome.score or 0) if row.outcome else 0)
    of = policies.places_of(study)
    there = [places for row in ranked if (places := of(row.proposal.config)) is not None and place in places.policies]
    assert ranked[0].proposal.config["place"] == place
    at_place = [row.id for row in ranked if row.proposal.config["place"] == place]
    assert policies.side_by_side("best", best=2, home=tmp_path)[1] == at_place[:2]
    expected = [choice for places in there[:2] for choice in places.policies[place].choices]  # type: ignore[attr-defined]
    assert list(policy.choices) == expected
    assert len(expected) in (5, 10)
    x, labels = torch.rand(4, 1, 8, 8), torch.eye(4)
    assert policy(x, Generator().manual_seed(0), labels)[0].shape == x.shape


JOINED = """
from dataclasses import replace
from metasearch.augment import Places, Step, SubPolicies
from metasearch.space import Choice, Space
from search_spaces._policies import plain

SPACE = Space({"which": Choice(("one", "same", "three", "wide", "place", "white"))})
FLIP, INVERT = (Step("flip"),), (Step("invert"),)
FOUND = {"one": Places(query=SubPolicies((FLIP,))), "same": Places(query=SubPolicies((FLIP,))),
         "three": Places(query=SubPolicies((INVERT, FLIP, INVERT), (1.0, 2.0, 1.0))),
         "wide": Places(query=SubPolicies((FLIP,), ranges="wide")), "place": Places(support=SubPolicies((FLIP,))),
         "white": replace(Places(query=SubPolicies((INVERT,))), fill=1.0)}

def recipe(config, shape):
    return replace(plain(shape), augment=FOUND[config["which"]])
"""


def test_policies_are_joined_alike_and_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From each policy as many pictures, however many sub-policies it has; levels of another table mean something else, and so
    does another colour around pictures."""
    (tmp_path / "space.py").write_text(JOINED)
    wanted = ["name=best", f"space={tmp_path / 'space.py'}", "method={name='grid'}", "budget.trials=6", "train.steps=1"]
    launch.run(Study.from_text(STUDY, wanted), home=tmp_path)
    order = ("one", "wide", "white", "same", "place", "three")
    monkeypatch.setattr(policies, "_score", lambda row: -order.index(row.proposal.config["which"]))
    found, trials = policies.side_by_side("best", home=tmp_path)
    with Ledger.open(tmp_path / "best" / "ledger.sqlite") as ledger:
        assert [ledger.trials()[n].proposal.config["which"] for n in trials] == ["one", "three"]
    flip, invert = (Step("flip"),), (Step("invert"),)
    assert found == Places(query=SubPolicies((flip, invert, flip, invert), (1.0, 0.25, 0.5, 0.25)))


# for people -------------------------------------------------------------------------------------------------------------------


def test_a_policy_is_told_as_a_table() -> None:
    steps = (Step("rotate", 0.8, 0.6), Step("flip", 0.5, 0.3)), (Step("invert", 0.0), Step("cutout", 1.0, 0.1))
    later = Shuffled((Step("shear_x", 0.2, 0.9), Step("shear_y", 0.0, 0.9)))
    found = policies.told(Places(query=SubPolicies(steps), support=Schedule((ROTATE, later), (1.0, 3.0))))
    assert found == [
        ["rotate", "support", "1", "0.9", "0-25 % of training"],
        ["shear_x", "support", "0.2", "0.9", "25-100 % of training, in random order"],
        ["rotate", "query", "0.8", "0.6", "sub-policy 1 (50%)"],
        ["flip", "query", "0.5", "-", "sub-policy 1 (50%)"],
        ["cutout", "query", "1", "0.1", "sub-policy 2 (50%)"],
    ]
    bare = Places(query=Schedule((SubPolicies(((Step("rotate", 0.0),), (Step("flip"),))), Shuffled((Step("flip", 0.0),)))))
    assert policies.told(bare) == [
        ["nothing", "query", "-", "-", "0-50 % of training, sub-policy 1 (50%)"],
        ["flip", "query", "1", "-", "0-50 % of training, sub-policy 2 (50%)"],
        ["nothing", "query", "-", "-", "50-100 % of training, in random order"],
    ]
    for policy, numbers in (
        (augment.RandAugment(2, 9), "RandAugment(n=2, m=9)"), (augment.RandAugment(1, 4.5, ("flip",)), "RandAugment(n=1, m=4.5)"),
        (augment.UniformAugment(), "UniformAugment(n=2, probability=0.5)"), (augment.TrivialAugment(), "TrivialAugment()"),
        (augment.TrivialAugment(("flip", "invert"), "dada"), "TrivialAugment()"),
    ):
        assert policies.told(Places(query=policy))[0][2:4] == ["one as often as another", numbers]


def test_what_leaves_grey_pictures_alone_says_so_and_what_is_no_operation_is_told_too() -> None:
    places = Places(query=fixed(Step("color"), Step("rotate")), new_classes=0.25, versions=4)
    assert [row[0] + ": " + row[4] for row in policies.told(places, channels=1)] == [
        "color: nothing: the pictures are grey", "rotate: ", "turned classes as new ones: of an episode",
        "MetaMaxUp: the hardest of 4 versions of an episode",
    ]
    assert [row[4] for row in policies.told(places)][:2] == ["", ""]


def test_a_schedule_is_told_in_stages() -> None:
    twice = Shuffled((Step("rotate", 0.5, 0.2), Step("rotate", 1.0, 0.8), Step("flip", 0.0)))
    (first, one), (end, two) = policies.stages(Schedule((ROTATE, twice), (1.0, 3.0)))
    assert (first, end) == (0.25, 1.0)
    assert one == {"rotate": (1.0, pytest.approx(0.9))}
    assert two == {"rotate": (0.75, pytest.approx(0.6)), "flip": (0.0, 0.0)}


def test_a_schedule_of_policies_that_draw_their_operations_is_told_in_stages_too() -> None:
    """By the share of pictures that get an operation: in that of 4,000, missed by 5 standard errors once in 1.7 million seeds."""
    drawn = (augment.RandAugment(3, 6), augment.RandAugment(2, 15, ("flip", "rotate", "flip")), augment.TrivialAugment(),
             augment.UniformAugment())
    for policy, magnitude in zip(drawn, (0.2, 0.5, 0.5, 0.5), strict=True):
        seen = policy.plan(4000, Generator().manual_seed(0)).operation
        for schedule in (Schedule((policy, ROTATE)), Schedule((Shared(policy), ROTATE)), Shared(Schedule((policy, ROTATE)))):
            (end, one), (_, two) = policies.stages(schedule)
            assert (end, two) == (0.5, {"rotate": (1.0, pytest.approx(0.9))})
            assert set(one) == set(policy.operations) - {"identity"}
            for name, (probability, level) in one.items():
                share = float((seen == NUMBER[name]).any(0).float().mean())
                assert abs(share - probability) < 5 * (probability * (1 - probability) / 4000) ** 0.5
                assert level == pytest.approx(magnitude)


def test_who_mixes_labels_is_told_to_hand_them_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "space.py").write_text(JOINED.replace('Step("flip")', 'Step("cutmix", 0.5, 0.5)'))
    wanted = ["name=mixed", f"space={tmp_path / 'space.py'}", "method={name='grid'}", "budget.trials=1", "train.steps=1"]
    launch.run(Study.from_text(STUDY, wanted), home=tmp_path)
    capsys.readouterr()
    assert cli.call(["policy", "mixed", "-o", str(tmp_path / "mixed.json"), "--home", str(tmp_path)]) == 0
    assert "(images, generator, labels)" in capsys.readouterr().err.replace("\n", " ")
    x, labels = augment.load(tmp_path / "mixed.json")(torch.rand(4, 1, 8, 8), Generator().manual_seed(0), torch.eye(4))
    assert (x.shape, labels.shape) == ((4, 1, 8, 8), (4, 4))


def test_who_takes_a_policy_from_its_place_is_told_what_lies_around_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, x = tmp_path / "filled.json", torch.ones(1, 1, 28, 28)
    moved = JOINED.replace('Step("flip")', 'Step("rotate", 1.0, 1.0)').replace("Places(", "Places(fill=0.75, ")
    (tmp_path / "space.py").write_text(moved)
    wanted = ["name=filled", f"space={tmp_path / 'space.py'}", "method={name='grid'}", "budget.trials=1", "train.steps=1"]
    launch.run(Study.from_text(STUDY, wanted), home=tmp_path)
    capsys.readouterr()
    assert cli.call(["policy", "filled", "-o", str(file), "--home", str(tmp_path)]) == 0
    assert "(images, generator, fill=0.75)" in capsys.readouterr().err.replace("\n", " ")
    found = augment.load(file)(x, Generator().manual_seed(0), fill=augment.load_places(file).fill)
    assert float(found.min()) == 0.75


@pytest.mark.parametrize("changes", [False, True])
def test_segments_are_not_put_beside_whole_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: bool) -> None:
    wanted = ["name=cut", "space=augmentation", "method={name='pba', steps=1, max_steps=2, population=3, synchronous=true}",
              "budget.trials=3"]
    launch.run(Study.from_text(STUDY, wanted), home=tmp_path)
    with Ledger.open(tmp_path / "cut" / "ledger.sqlite") as ledger:
        until = {n: row.proposal.until for n, row in ledger.trials().items()}
    monkeypatch.setattr(policies, "_score", lambda row: -until[row.id])  # the first segments are the best
    if not changes:
        monkeypatch.setattr(policies, "of_row", lambda trials, number, of: of(trials[number].proposal.config))
        assert {until[n] for n in policies.side_by_side("cut", home=tmp_path)[1]} == {2}
        return
    first = next(n for n in until if until[n] == 2)
    monkeypatch.setattr(policies, "of_row", lambda trials, number, of: Places(query=Schedule((FLIP, ROTATE))))
    with pytest.raises(ValueError, match=rf"is a schedule.*Name the trial: cut/{first}"):
        policies.side_by_side("cut", home=tmp_path)


@pytest.mark.parametrize(("text", "may"), [
    ("from metasearch.space import Space", False), ("import torch.nn, json\nfrom search_spaces.maml_family import recipe", False),
    ("def recipe(c, s): return Recipe(net, learner, augment=places)", True), ("from mine import recipe", True),
    ("from search_spaces import maml_family, whole_pipeline as whole", True), ("import search_spaces.augmentation as a", True),
])
def test_show_knows_where_a_policy_may_come_from_without_building_a_recipe(tmp_path: Path, text: str, may: bool) -> None:
    (tmp_path / "space.py").write_text(text)
    assert pictures._may_augment(str(tmp_path / "space.py")) == may


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("searched")
    overrides = ["name=subs", "space=augmentation", "method={name='autoaugment', batch=2}", "train.steps=1"]
    launch.run(Study.from_text(STUDY, overrides), home=home)
    return home


def test_a_policy_is_shown_exported_and_kept_from_the_command_line(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, file = ["--home", str(searched)], searched / "policy.json"
    one, best = policies.of_trial("subs/2", home=searched), policies.joined("subs", best=2, home=searched)
    assert cli.call(["policy", "subs/2", *home]) == 0
    assert capsys.readouterr().out.startswith("operation")
    grey = next(n for n in range(1, 5) if policies.of_trial(f"subs/{n}", home=searched).idle(1))
    assert cli.call(["policy", f"subs/{grey}", *home]) == 0
    assert "nothing: the pictures are grey" in capsys.readouterr().out
    assert cli.call(["policy", "subs", "--best", "2", "--json", "-o", str(file), *home]) == 0
    out, said = capsys.readouterr()
    assert augment.saved.from_json(json.loads(out)) == augment.load_places(file) == best
    joined = policies.side_by_side("subs", best=2, home=searched)[1]
    assert f"side by side: {', '.join(f'subs/{n}' for n in joined)}" in said
    assert ("no more than 1 trials" in said) == (len(joined) == 1)
    (policy,) = best.policies.values()
    assert isinstance(policy, SubPolicies)
    labels = ", labels" * ("cutmix" in policy.operations)
    assert f"load('{file}')(images, generator{labels})" in said.replace("\n", "")
    assert len(policy.choices) in (5, 10)  # the second best may be at another place
    assert cli.call(["policy", "subs/2", "--keep", *home]) == 0
    kept = capsys.readouterr().out.strip()
    assert augment.named(kept, home=searched) == augment.named("subs/2", home=searched) == one
    assert cli.call(["policy", "subs", "--keep", *home]) == 0
    assert augment.named(capsys.readouterr().out.strip(), home=searched) == policies.joined("subs", home=searched)


@pytest.mark.parametrize(("words", "said"), [
    (["subs/9"], "there is no trial subs/9: 'subs' has trials 1 to 4"), (["sub"], "there is no study 'sub'"),
    (["subs/0"], "there is no trial subs/0: 'subs' has trials 1 to 4"),
    (["subs/2", "-o", "nowhere/at/all.json"], "--output needs a new file in a folder that is there"),
    (["subs/x"], "a trial is named STUDY/NUMBER"),
])
def test_what_names_no_policy_is_refused_in_words(
    searched: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str,
) -> None:
    assert cli.call(["policy", *words, "--home", str(searched)]) == 2
    assert said in capsys.readouterr().err


def test_what_is_drawn_for_a_class_is_drawn_of_a_class(searched: Path, tmp_path: Path) -> None:
    """At the place `task`, a class's support and its query look alike: here each is inverted or not."""
    tasks = Study.from_text(STUDY).tasks_distribution()
    invert = SubPolicies(((Step("invert"),), (Step("identity"),)))
    shape, drawn = tasks.shape(ways=4, shots=1, queries=1), Generator().manual_seed(0)
    plain = tasks.sample_episodes(1, split="train", shape=shape, generator=drawn).select(0)
    rows = pictures.shown(Places(task=invert, new_classes=0.5), tasks)
    assert list(rows) == ["before", "task", "classes"]
    turned = (rows["task"] != rows["before"]).flatten(1).any(1)
    label = torch.cat([plain.support_y, plain.query_y]).argmax(-1)
    by_class = [turned[label == k].tolist() for k in range(4)]
    assert all(one == [True] * 2 or one == [False] * 2 for one in by_class)
    assert 0 < int(turned.sum()) < 8


def test_the_pictures_after_are_what_each_policy_makes_of_those_before() -> None:
    """At the end of training."""
    tasks = Study.from_text(STUDY).tasks_distribution()
    places = Places(support=Schedule((FLIP, fixed(Step("invert")))), query=FLIP, shot=fixed(Step("invert"), Step("flip")))
    rows = pictures.shown(places, tasks)
    before = rows.pop("before")
    assert before.shape == (8, 1, 12, 12)
    wanted = {"support": 1 - before, "query": before.flip(-1), "shot": 1 - before.flip(-1)}
    for place, found in rows.items():
        torch.testing.assert_close(found, wanted.pop(place))
    assert not wanted


def test_pictures_of_few_classes_are_shown_too() -> None:
    for classes in (2, 3, 4):
        assert len(pictures.shown(Places(task=FLIP, new_classes=1.0), Blobs(side=8, train_classes=classes))["classes"]) == 8


def test_show_prints_the_policy_and_draws_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch.run(Study.from_text(STUDY, ["name=seen"]), home=tmp_path)
    assert cli.call(["show", "seen/12", "--home", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "augmentation of training" in said
    assert "of training, in random order" in said
    assert "in random order, nothing: the pictures are grey" in said
    drawn = {path.name for path in (tmp_path / "seen" / "pictures").iterdir()}
    assert {"12-augmented.png", "12-augmented.svg"} <= drawn
    assert any(name.startswith("12-schedule-") for name in drawn)


@pytest.mark.parametrize("inherits", [True, False])
def test_individuals_of_an_evolution_compare_however_deep_they_are(tmp_path: Path, inherits: bool) -> None:
    wanted = ["name=evo", "space=augmentation", "method={name='large-scale-evolution', steps=1, evaluations=5, population=3}",
              "budget.trials=3"]
    launch.run(Study.from_text(STUDY, wanted), home=tmp_path)
    with Ledger.open(tmp_path / "evo" / "ledger.sqlite") as ledger:
        study, trials = Study.from_json(ledger.study()["study"]), dict(ledger.trials())
    done = {n: row.proposal.until or 0 for n, row in trials.items() if row.status == "done"}
    assert len(set(done.values())) > 1
    if not inherits:
        study = study.with_(["method={name='pba', steps=1, max_steps=2, population=3}"])
    found = [row.id for row in policies._compared(trials, study)]
    assert set(found) == {n for n in done if inherits or done[n] == max(done.values())}
    assert found == sorted(found, key=lambda n: -policies._score(trials[n]))
