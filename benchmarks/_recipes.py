"""What `few_shot.py` trains: one recipe a learner, and what is published of it.

Every entry names its tasks, its recipe and the number that it is laid beside. Inner rates are those of a *mean* loss: the 0.4 of
MAML's authors, whose loss is summed over five ways, would be 2.0 here.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metasearch import tasks as task_room
from metasearch.learners import Learner
from metasearch.learners.anil import ANIL
from metasearch.learners.baseline_pp import BaselinePP
from metasearch.learners.black_box import BlackBox
from metasearch.learners.boil import BOIL
from metasearch.learners.cavia import CAVIA
from metasearch.learners.centroid import Centroid
from metasearch.learners.fine_tune import FineTune
from metasearch.learners.fomaml import FOMAML
from metasearch.learners.joint import Joint
from metasearch.learners.learned_optimizer import LearnedOptimizer
from metasearch.learners.maml import MAML
from metasearch.learners.maml_pp import MAMLPP
from metasearch.learners.maml_rl import MAMLRL
from metasearch.learners.mann import MANN
from metasearch.learners.matching import Matching
from metasearch.learners.meta_lstm import MetaLSTM
from metasearch.learners.meta_networks import MetaNetworks
from metasearch.learners.meta_sgd import MetaSGD
from metasearch.learners.meta_weight_net import MetaWeightNet
from metasearch.learners.prototypical import Prototypical
from metasearch.learners.relation import Relation
from metasearch.learners.reptile import Reptile
from metasearch.learners.siamese import Siamese
from metasearch.learners.snail import SNAIL
from metasearch.nets.conv4 import VARIANTS, Conv4, conv4
from metasearch.nets.identity import identity
from metasearch.nets.linear_map import linear_map
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm
from metasearch.objectives import Mode
from metasearch.objectives.optimizer import adam, by_prefix, clipped_norm, cosine, linear, sgd
from metasearch.objectives.policy_search import policy_search
from metasearch.objectives.pretrain import Pretrain
from metasearch.objectives.recipe import Recipe
from metasearch.objectives.unroll import unroll
from metasearch.records import Config
from metasearch.tasks import TaskDistribution, TaskShape

RecipeOf = Callable[[Config, TaskShape], Recipe]


@dataclass(frozen=True)
class Entry:
    """One learner as it is trained here.

    tasks: a key of TASKS. steps: None: as many as fit into the minutes. published: None where there is no number for these
    tasks. target: what this budget should reach. ways, shots, queries: of the episodes that are scored; episodes: of the test
    split, where there are only so many. before: trained for `before_steps` first, on the same training tasks; the learner
    begins with its net's weights. What that costs is part of the row.
    """

    tasks: str
    recipe: RecipeOf
    mode: Mode
    published: float | None
    source: str
    target: float
    steps: int | None = None
    ways: int = 5
    shots: int = 1
    queries: int = 15
    episodes: int | None = None
    before: RecipeOf | None = None
    before_steps: int = 0


def _omniglot(data: Path) -> TaskDistribution:
    return task_room.build("omniglot", {"root": str(data / "omniglot"), "split": "vinyals", "rotations": "new-classes"})


def _latency(data: Path) -> TaskDistribution:
    return task_room.build("latency", {"path": str(data / "regression" / "help_fbnet_latency.csv.gz")})


def _lake_runs(data: Path) -> TaskDistribution:
    """Trained within the alphabets of Lake's background set, turned characters as further classes of their alphabet."""
    return task_room.build("lake-runs", {"root": str(data / "omniglot"), "rotations": "new-classes"})


# 25 supports of 5 classes are 12, 6, 4, 2 and 1; with 15 queries the commonest class needs 27 drawings
IMBALANCED: dict[str, Any] = {"tasks": {"name": "glyphs", "drawings": 30}, "imbalance": 10.0}
TASKS: dict[str, Callable[[Path], TaskDistribution]] = {
    "omniglot": _omniglot,
    "latency": _latency,
    "lake-runs": _lake_runs,
    "sinusoid": lambda data: task_room.build("sinusoid", {}),
    "sinusoid-oracle": lambda data: task_room.build("sinusoid", {"oracle": True}),
    "navigation": lambda data: task_room.build("navigation", {}),
    "quadratics": lambda data: task_room.build("quadratics", {}),
    "noisy-glyphs": lambda data: task_room.build("noisy", {"tasks": {"name": "glyphs"}, "flip": 0.4}),
    "imbalanced-glyphs": lambda data: task_room.build("noisy", IMBALANCED),
}
NEEDS_DATA = frozenset({"omniglot", "latency", "lake-runs"})

# Omniglot ---------------------------------------------------------------------------------------------------------------------

STRIDED = replace(VARIANTS["maml_omniglot"], head_init="xavier")  # the authors' net; N(0, 1) heads take long to come down


def prototypical(config: Config, shape: TaskShape) -> Recipe:
    """60-way, 5 queries, Adam 1e-3, convolutions in bfloat16; population statistics at test."""
    net = conv4(shape.x, None, "protonet", mode="inductive")
    return Recipe(net, Prototypical(), adam(1e-3, schedule=cosine(0.01)), meta_batch=1, steps=1000,
                  episode=shape._replace(ways=60, queries=5), precision="bfloat16")


def matching(config: Config, shape: TaskShape) -> Recipe:
    """20-way, 5 queries, cosines times 30 (times 10 trains slower), bfloat16; population statistics at test."""
    net = conv4(shape.x, None, "protonet", mode="inductive")
    return Recipe(net, Matching(scale=30.0), adam(1e-3, schedule=cosine(0.01)), meta_batch=1, steps=1000,
                  episode=shape._replace(ways=20, queries=5), precision="bfloat16")


def relation(config: Config, shape: TaskShape) -> Recipe:
    """The paper's encoder, errors squared, gradients clipped to norm 0.5; 10-way with 2 queries makes an outer step cheap."""
    net = conv4(shape.x, None, "relation", mode="transductive")
    return Recipe(net, Relation(), clipped_norm(adam(1e-3, schedule=cosine(0.01)), 0.5), meta_batch=1, steps=1000,
                  episode=shape._replace(ways=10, queries=2), precision="bfloat16")


def siamese(config: Config, shape: TaskShape) -> Recipe:
    """20-way, 5 queries: 120 drawings make 7,140 pairs; Conv-4 instead of the paper's net for 105x105 pictures."""
    net = conv4(shape.x, None, "protonet", mode="inductive")
    return Recipe(net, Siamese(), adam(1e-3, schedule=cosine(0.01)), meta_batch=1, steps=1000,
                  episode=shape._replace(ways=20, queries=5), precision="bfloat16")


def snail(config: Config, shape: TaskShape) -> Recipe:
    """The published widths on 64 features of five strided convolutions; 8 episodes of 3 queries a class. Trained on the
    statistics of 20 pictures, it wants an episode's at test, too: on validation tasks 95.0 %, with the population's 91.3."""
    net = conv4(shape.x, shape.ways, Conv4(64, layers=5, down="stride"), mode="transductive")
    learner = SNAIL(supports=shape.ways * shape.shots)
    return Recipe(net, learner, adam(1e-3, schedule=cosine(0.01)), meta_batch=8, steps=1000, episode=shape._replace(queries=3),
                  precision="bfloat16")


GROUPED = Conv4(64, down="stride", norm=Norm("group"))  # no batch statistics: a step of a sequence sees no later picture


def embedding(config: Config, shape: TaskShape) -> Recipe:
    """Prototypical, 60-way, 5 queries, on the net of `mann` and `black_box`."""
    net = conv4(shape.x, None, GROUPED)
    return Recipe(net, Prototypical(), adam(2e-3, schedule=cosine(0.01)), meta_batch=1, steps=1000,
                  episode=shape._replace(ways=60, queries=5), precision="bfloat16")


def mann(config: Config, shape: TaskShape) -> Recipe:
    """The published sequences of 5 classes x 10 on features that `embedding` trained, which are normed and stay as they are.
    One head, 32 slots and cosines times 10, so that reading is no mean. On cached features, by what was left out: not normed,
    nothing was bound after 360 steps; normed but not centred (features of two classes then have a cosine of 0.8), nothing after
    280; sequences of 5 x 5, nothing after 400."""
    net = conv4(shape.x, shape.ways, GROUPED)
    learner = MANN(hidden=100, sharpness=10.0, slots=32, heads=1, normed=True, frozen=True)
    optimizer = clipped_norm(by_prefix({"mann/": adam(3e-3, schedule=cosine(0.05))}), 10.0)
    return Recipe(net, learner, optimizer, meta_batch=32, steps=1000, episode=shape._replace(shots=5, queries=5))


def meta_networks(config: Config, shape: TaskShape) -> Recipe:
    """32 channels and no norm: fast and slow activations are summed."""
    net = conv4(shape.x, shape.ways, Conv4(32, norm=Norm("none")))
    optimizer = clipped_norm(adam(1e-3, schedule=cosine(0.05)), 10.0)
    return Recipe(net, MetaNetworks(chunks=5), optimizer, meta_batch=2, steps=1000, episode=shape._replace(queries=2))


def black_box(config: Config, shape: TaskShape) -> Recipe:
    """An LSTM on features that `embedding` trained, normed and left as they are. By validation on cached features: 61 % after
    64,000 tasks at 128 units and 1e-3, 86 % at 256 and 3e-3; a mean of 256 has 27 % there, and nothing trained from
    the beginning had left chance after 18,000 tasks."""
    net = conv4(shape.x, shape.ways, GROUPED)
    learner = BlackBox("lstm", hidden=256, normed=True, frozen=True)
    optimizer = clipped_norm(by_prefix({"black_box/": adam(3e-3, schedule=cosine(0.05))}), 10.0)
    return Recipe(net, learner, optimizer, meta_batch=64, steps=1000, episode=shape._replace(queries=3))


def meta_lstm(config: Config, shape: TaskShape) -> Recipe:
    """Gates begin at f about .998 and i about .18, since minutes are no 75,000 episodes; outer gradient clipped at 0.25."""
    net = conv4(shape.x, shape.ways, replace(STRIDED, channels=16), mode="transductive")
    learner = MetaLSTM(inner_steps=6, input_bias=-2.0, forget_bias=6.0)
    optimizer = clipped_norm(adam(5e-3, schedule=cosine(0.05)), 0.25)
    return Recipe(net, learner, optimizer, meta_batch=2, steps=1000, episode=shape._replace(queries=3))


def fine_tune(config: Config, shape: TaskShape) -> Recipe:
    """A classifier of all 4,112 training classes; then every layer is tuned from a head of zeros, with momentum. The way to tune
    was chosen on validation classes."""
    net = conv4(shape.x, shape.ways, "protonet", mode="inductive")
    learner = FineTune(inner_lr=0.01, inner_steps=30, start="zero", momentum=0.9)
    return Recipe(net, learner, adam(5e-3, schedule=cosine(0.01)), meta_batch=1, steps=10_000, precision="bfloat16",
                  fit=Pretrain(head="linear", batch=64))


def baseline_pp(config: Config, shape: TaskShape) -> Recipe:
    """100 steps on all supports at 0.1 (the authors' 0.01 is of minibatches; 0.1 was better on validation classes); scale 10 over
    4,112 classes and 2 over five."""
    net = conv4(shape.x, shape.ways, "protonet", mode="inductive")
    return Recipe(net, BaselinePP(inner_lr=0.1), adam(5e-3, schedule=cosine(0.01)), meta_batch=1, steps=10_000,
                  precision="bfloat16", fit=Pretrain(head="cosine", batch=64))


def centroid(config: Config, shape: TaskShape) -> Recipe:
    """Raw pixels: nothing is learnt, one step is enough."""
    return Recipe(identity(shape.x), Centroid("cosine"), sgd(0.0), meta_batch=1, steps=1)


def lake_prototypical(config: Config, shape: TaskShape) -> Recipe:
    """30-way, 2 queries: eight times the steps of 60-way with 5."""
    net = conv4(shape.x, None, "protonet", mode="inductive")
    return Recipe(net, Prototypical(), adam(1e-3, schedule=cosine(0.01)), meta_batch=1, steps=1000,
                  episode=shape._replace(ways=30, queries=2), precision="bfloat16")


def strided(learner: Learner, *, outer_lr: float = 2e-3, meta_batch: int = 16) -> RecipeOf:
    """A gradient learner on MAML's net for Omniglot, with 3 queries a class. Compiled, bfloat16 halves a step (MAML's on one
    thread with AMX: 195 to 98 ms) and changes no curve that we could see; in a loop it changes nothing."""

    def recipe(config: Config, shape: TaskShape) -> Recipe:
        net = conv4(shape.x, shape.ways, STRIDED, mode="transductive")
        optimizer = adam(outer_lr, schedule=cosine(0.05))
        return Recipe(net, learner, optimizer, meta_batch=meta_batch, steps=1000, episode=shape._replace(queries=3),
                      precision="bfloat16")

    return recipe


def reptile(config: Config, shape: TaskShape) -> Recipe:
    """5 inner steps of 10 pictures by Adam 1e-3 on 10 pictures a class, 5 tasks, outer rate 1 to 0; 50 steps at test."""
    net = conv4(shape.x, shape.ways, "reptile_omniglot", mode="transductive")
    learner = Reptile(inner_lr=1e-3, inner_steps=5, inner_batch=10, test_steps=50, test_batch=5)
    outer = sgd(1.0, schedule=linear(0.0))
    return Recipe(net, learner, outer, meta_batch=5, steps=1000, episode=shape._replace(queries=10 - shape.shots))


# sine waves: 10 supports, 5,000 iterations of 25 tasks ------------------------------------------------------------------------


def waves(learner: Learner, *, outer_lr: float = 1e-3) -> RecipeOf:
    def recipe(config: Config, shape: TaskShape) -> Recipe:
        net = mlp(shape.x, shape.ways, init="trunc_normal")
        return Recipe(net, learner, adam(outer_lr), meta_batch=25, steps=5000, episode=shape._replace(queries=10))

    return recipe


def sine_reptile(config: Config, shape: TaskShape) -> Recipe:
    """5 full-batch SGD steps at 0.02, outer rate 0.1 to 0; 5 tasks a step, so 20,000 steps see as many as 4,000 of the others."""
    learner = Reptile(inner_lr=0.02, inner_steps=5, optimizer="sgd", test_steps=1)
    outer = sgd(0.1, schedule=linear(0.0))
    return Recipe(mlp(shape.x, shape.ways), learner, outer, meta_batch=5, steps=20000, episode=shape._replace(queries=1))


def sine_pretrain(config: Config, shape: TaskShape) -> Recipe:
    """One step of fine-tuning."""
    learner = FineTune(inner_lr=0.01, inner_steps=1, start="kept")
    return Recipe(mlp(shape.x, shape.ways), learner, adam(1e-3), meta_batch=25, steps=10_000,
                  episode=shape._replace(queries=10), fit=Pretrain())


def sine_oracle(config: Config, shape: TaskShape) -> Recipe:
    """Amplitude and phase are inputs. No fine-tuning: with inputs so large it diverges."""
    return Recipe(mlp(shape.x, shape.ways), Joint(), adam(1e-3), meta_batch=25, steps=10_000, episode=shape._replace(queries=10))


# others -----------------------------------------------------------------------------------------------------------------------


def latencies(learner: Learner) -> RecipeOf:
    """The authors' layers of 100, 8 devices a step, 50 queries; targets are standardised by their supports."""

    def recipe(config: Config, shape: TaskShape) -> Recipe:
        net = mlp(shape.x, shape.ways, hidden=(100, 100))
        optimizer = adam(1e-3, schedule=cosine(0.01))
        return Recipe(net, learner, optimizer, meta_batch=8, steps=2000, episode=shape._replace(queries=50))

    return recipe


def noisy(learner: Learner) -> RecipeOf:
    """Supports with wrong labels, or of classes that are not equally common: one net of 32 channels, 3 queries a class, for
    learners to be compared."""

    def recipe(config: Config, shape: TaskShape) -> Recipe:
        net = conv4(shape.x, shape.ways, replace(STRIDED, channels=32), mode="transductive")
        optimizer = adam(2e-3, schedule=cosine(0.05))
        return Recipe(net, learner, optimizer, meta_batch=4, steps=1000, episode=shape._replace(queries=3))

    return recipe


def learned_optimizer(config: Config, shape: TaskShape) -> Recipe:
    """The paper's quadratics: truncations of 20 steps, epochs of 100, 32 functions."""
    learner = LearnedOptimizer(test_steps=100)
    return Recipe(linear_map(shape.x, 1), learner, adam(5e-3, schedule=cosine(0.1)), meta_batch=32, steps=4000, fit=unroll)


def navigation(config: Config, shape: TaskShape) -> Recipe:
    """20 walks of 100 steps, 40 tasks, KL 0.01, inner rate 0.5, policy 100-100 (the authors', who make 100 outer steps; one takes
    a quarter of a minute)."""
    net = mlp(shape.x, shape.ways, hidden=(100, 100))
    return Recipe(net, MAMLRL(inner_lr=0.5), adam(1e-3), meta_batch=40, steps=100, fit=policy_search("trpo"))


def _waves(recipe: RecipeOf, published: float | None, source: str, target: float, steps: int = 5000) -> Entry:
    return Entry("sinusoid", recipe, "vmap", published, source, target, steps=steps, ways=1, shots=10, queries=100)


PLAIN = "a plain loop, 5,000 iterations, K=10, 1 step"
ENTRIES: dict[str, Entry] = {
    "sine": _waves(waves(MAML(0.01, 1)), 0.66, f"MAML, {PLAIN}", 0.9),
    "sine-fomaml": _waves(waves(FOMAML(0.01, 1)), 0.646, "FOMAML, a plain loop, 10,000 iterations, K=10, 1 step", 2.4),
    "sine-anil": _waves(waves(ANIL(0.01, 1)), None, "", 2.4),
    "sine-boil": _waves(waves(BOIL(0.01, 1)), None, "", 2.4),
    "sine-cavia": _waves(
        waves(CAVIA(1.0, 1)), 0.19, "Zintgraf et al. 2019, table 1 (as remembered, unchecked): 5 context parameters", 2.4
    ),
    "sine-reptile": _waves(sine_reptile, 1.21, "Reptile, a plain loop, 20,000 iterations, K=10, 1 step", 2.4, steps=20000),
    "sine-meta-sgd": _waves(waves(MetaSGD()), 0.53, "Li et al. 2017 (as remembered, unchecked): 10-shot training and test", 0.66),
    "sine-maml-pp": _waves(waves(MAMLPP(0.01, 1)), None, "", 0.66),
    "sine-pretrain": _waves(sine_pretrain, 2.38, "pre-training, a plain loop, 10,000 iterations, K=10, 1 step", 2.6, steps=10000),
    "sine-oracle": Entry(
        "sinusoid-oracle", sine_oracle, "vmap", 0.007, "the oracle, a plain loop, 10,000 iterations, 0 steps", 0.01,
        10000, 1, 10, 100
    ),
    "prototypical": Entry("omniglot", prototypical, "loop", 98.8, "Snell et al. 2017, table 1: 60-way, Euclid", 98.0),
    "maml": Entry(
        "omniglot", strided(MAML(0.4, 1, test_steps=3)), "compiled", 98.7, "Finn et al. 2017, table 1: MAML, 5-way 1-shot", 95.0
    ),
    "maml-pp": Entry(
        "omniglot", strided(MAMLPP(0.1, 3), meta_batch=8), "compiled", 99.47, "Antoniou et al. 2019, table 1", 95.0
    ),
    "meta-sgd": Entry("omniglot", strided(MetaSGD(0.1, 0.4)), "compiled", 99.53, "Li et al. 2017, table 2", 95.0),
    "anil": Entry("omniglot", strided(ANIL(2.0, 3)), "compiled", None, "", 95.0),
    "boil": Entry("omniglot", strided(BOIL(0.4, 1)), "compiled", None, "", 95.0),
    "fomaml": Entry("omniglot", strided(FOMAML(0.4, 1)), "compiled", 98.3, "Nichol et al. 2018, table 2: transductive", 95.0),
    "reptile": Entry("omniglot", reptile, "compiled", 97.68, "Nichol et al. 2018, table 2: transductive", 95.0),
    "matching": Entry("omniglot", matching, "loop", 98.1, "Vinyals et al. 2016, table 1: cosine, simple", 97.5),
    "relation": Entry("omniglot", relation, "loop", 99.6, "Sung et al. 2018, table 1", 97.0),
    "siamese": Entry("omniglot", siamese, "loop", 97.3, "Koch et al. 2015, as Vinyals et al. 2016 quote it, fine-tuned", 90.0),
    "snail": Entry("omniglot", snail, "compiled", 99.07, "Mishra et al. 2018, table 1", 93.0),
    "mann": Entry(
        "omniglot", mann, "vmap", 82.8, "Santoro et al. 2016, table 1: second instance", 50.0, steps=1800,
        before=embedding, before_steps=2500,
    ),
    "meta-networks": Entry("omniglot", meta_networks, "loop", 98.95, "Munkhdalai, Yu 2017 (as remembered, unchecked)", 90.0),
    "black-box": Entry("omniglot", black_box, "vmap", None, "", 60.0, steps=1500, before=embedding, before_steps=2500),
    "meta-lstm": Entry("omniglot", meta_lstm, "loop", None, "", 80.0),
    "fine-tune": Entry("omniglot", fine_tune, "loop", None, "", 75.0),
    "baseline-pp": Entry("omniglot", baseline_pp, "loop", None, "", 75.0),
    "centroid": Entry("omniglot", centroid, "loop", 43.4, "pixel cosine, without turned characters, this data", 43.4, steps=1),
    "lake": Entry(
        "lake-runs", lake_prototypical, "loop", 86.3, "Lake et al. 2019: Prototypical Networks, background set; 100 - error",
        80.0, ways=20, queries=1, episodes=20,
    ),
    "latency-maml": Entry(
        "latency", latencies(MAML(0.05, 5)), "vmap", 0.736, "Lee et al. 2021 (HELP): MAML", 0.736, None, 1, 10, 200
    ),
    "latency-meta-sgd": Entry(
        "latency", latencies(MetaSGD(0.03, 0.03, 3)), "vmap", 0.806, "Lee et al. 2021 (HELP): Meta-SGD", 0.806, None, 1, 10, 200
    ),
    "noisy-maml": Entry("noisy-glyphs", noisy(MAML(0.4, 3)), "compiled", None, "", 70.0, shots=5),
    "meta-weight-net": Entry("noisy-glyphs", noisy(MetaWeightNet(0.8, 3)), "compiled", None, "", 70.0, shots=5),
    "imbalanced-maml": Entry("imbalanced-glyphs", noisy(MAML(0.4, 3)), "compiled", None, "", 70.0, shots=5),
    "imbalanced-meta-weight-net": Entry(
        "imbalanced-glyphs", noisy(MetaWeightNet(0.8, 3)), "compiled", None, "", 70.0, shots=5
    ),
    "learned-optimizer": Entry(
        "quadratics", learned_optimizer, "compiled", 0.00858, "tuned Adam after 100 steps, measured here", 0.00858,
        4000, 1, 10, 10
    ),
    "navigation": Entry(
        "navigation", navigation, "vmap", -20.3, "Raghu et al. 2020, table 4: MAML, 2D navigation", -20.3,
        ways=2, shots=2000, queries=2000, episodes=100,
    ),
}
