"""The whole shelf: which meta-learner, of twenty-one? Each `learner` opens the sub-space of its own hyper-parameters.

Metric learners (prototypical, matching, relation, siamese), gradient learners (maml to reptile), learned optimisers (meta-lstm,
meta-weight-net), models that read an episode as a sequence or a set (mann, snail, meta-networks, black-box) and the baselines
that keep them honest (fine-tune, baseline-pp and centroid after pre-training, centroid on pixels) on one small Conv-4, for the
same number of outer steps.
The ranges surround the published settings; inner rates are those of a mean loss. MANN and black-box adaptation learn slowly from
the beginning: on pictures they want a net that was trained before (train.start = "STUDY/TRIAL" of a prototypical trial, say).
    metasearch run glyphs space=meta-learners budget.trials=40
"""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from metasearch.learners import Learner
from metasearch.learners.anil import ANIL
from metasearch.learners.baseline_pp import BaselinePP
from metasearch.learners.black_box import BlackBox
from metasearch.learners.boil import BOIL
from metasearch.learners.cavia import CAVIA
from metasearch.learners.centroid import Centroid
from metasearch.learners.fine_tune import FineTune
from metasearch.learners.fomaml import FOMAML
from metasearch.learners.maml import MAML
from metasearch.learners.maml_pp import MAMLPP
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
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.identity import identity
from metasearch.nets.norm import Norm
from metasearch.objectives.optimizer import adam, clipped_norm, constant, cosine, linear, sgd
from metasearch.objectives.pretrain import Pretrain
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Dim, Float, Int, Space
from metasearch.tasks import TaskShape

OUTER: dict[str, Dim] = {"outer_lr": Float(3e-4, 1e-2, log=True)}
INNER: dict[str, Dim] = {"inner_lr": Float(0.02, 2.0, log=True), "inner_steps": Int(1, 5), **OUTER}
PLAIN: dict[str, Dim] = {**INNER, "more_at_test": Choice((0, 2, 5))}  # inner steps beyond those of training
FEATURES: dict[str, Dim] = {"normed": Choice((False, True))}  # centred, variance 1: what readers of sequences compare
TUNING: dict[str, Dim] = {"inner_lr": Float(1e-3, 0.3, log=True), "inner_steps": Int(5, 100, log=True), **OUTER}

SPACE = Space({
    "learner": Choice({
        "prototypical": Space({"distance": Choice(("euclid", "cosine")), "train_ways": Choice((5, 10, 20)), **OUTER}),
        "matching": Space({"scale": Float(1.0, 100.0, log=True), "embedding": Choice(("simple", "full-context")), **OUTER}),
        "relation": Space({"objective": Choice(("mse", "cross-entropy")), **OUTER}),
        "siamese": Space({"distance": Choice(("l1", "l2", "cosine")), **OUTER}),
        "maml": Space(PLAIN),
        "fomaml": Space(PLAIN),
        "anil": Space(PLAIN),
        "boil": Space(PLAIN),
        "cavia": Space({
            **PLAIN, "inner_lr": Float(0.1, 10.0, log=True), "context": Choice((20, 100)), "block": Int(0, 3),
        }),
        "maml-pp": Space({
            **INNER, "multi_step": Choice((True, False)), "learnt_rates": Choice((True, False)),
            "norms_per_step": Choice((True, False)), "first_order_share": Choice((0.0, 0.5)), "cosine": Choice((True, False)),
        }),
        "meta-sgd": Space({"low": Float(0.005, 0.2, log=True), "spread": Float(1.0, 20.0, log=True), **OUTER}),
        "reptile": Space({"inner_lr": Float(3e-4, 1e-2, log=True), "inner_steps": Int(4, 8)}),
        "meta-lstm": Space({"inner_steps": Int(3, 12), "recurrent": Choice(("logit", "gate")), **OUTER}),
        "meta-weight-net": Space(INNER),
        "mann": Space({
            "slots": Choice((16, 64, 128)), "heads": Choice((1, 4)), "sharpness": Float(1.0, 20.0, log=True), **FEATURES, **OUTER,
        }),
        "snail": Space(OUTER),
        "meta-networks": Space({"chunks": Choice((1, 5)), **OUTER}),
        "black-box": Space({"aggregate": Choice(("lstm", "mean")), "hidden": Choice((64, 128, 256)), **FEATURES, **OUTER}),
        "fine-tune": Space({
            **TUNING, "start": Choice(("zero", "random", "prototypes")), "layer_decay": Float(0.1, 1.0, log=True),
            "frozen": Int(0, 4),
        }),
        "baseline-pp": Space({**TUNING, "scale": Float(2.0, 10.0)}),
        "centroid": Space({
            "distance": Choice(("cosine", "euclid")),
            "features": Choice({"pixels": Space({}), "pre-trained": Space(OUTER)}),
        }),
    }),
    "channels": Choice((32, 64)),
})

DESIGN = Conv4(down="stride", norm=Norm("batch", scale=False), init="xavier", head_init="xavier")


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """500 outer steps; on few queries a class, since an outer step should be cheap."""
    name = str(config["learner"])
    own = {k.removeprefix("learner."): v for k, v in config.items() if k.startswith("learner.")}
    features, schedule = own.pop("features", None), cosine(0.01) if own.pop("cosine", True) else constant
    outer_lr = float(own.pop("outer_lr", own.pop("features.outer_lr", 1e-3)))
    train_ways = int(own.pop("train_ways", shape.ways))
    learner = _learner(name, own, shape)
    # Meta Networks add fast to slow activations layer by layer, and their gradients become inputs: no norm there, as few layers;
    # a step of MANN's sequence sees no later picture
    norm = {"meta-networks": Norm("none"), "mann": Norm("group")}.get(name, DESIGN.norm)
    design = replace(DESIGN, channels=int(config["channels"]), norm=norm)
    net = conv4(shape.x, shape.ways if learner.head else None, design, mode="transductive")
    few = shape._replace(ways=max(train_ways, shape.ways), queries=min(shape.queries, 5))
    if name == "reptile":
        outer = sgd(1.0, schedule=linear(0.0))
        return Recipe(net, learner, outer, meta_batch=5, steps=500, episode=shape._replace(queries=max(1, 10 - shape.shots)))
    if features == "pixels":  # of which nothing is learnt
        return Recipe(identity(shape.x), learner, sgd(0.0), meta_batch=1, steps=500, episode=few)
    optimizer = clipped_norm(adam(outer_lr, schedule=schedule), 10.0)
    if name in ("fine-tune", "baseline-pp", "centroid"):
        fit = Pretrain(head="cosine" if name == "baseline-pp" else "linear", batch=64)
        return Recipe(net, learner, optimizer, meta_batch=1, steps=500, fit=fit)
    return Recipe(net, learner, optimizer, meta_batch=4, steps=500, episode=few)


def canonical(config: Config) -> Config:
    """Pixels have no channels to choose."""
    return {**config, "channels": 32} if config.get("learner.features") == "pixels" else dict(config)


def _learner(name: str, own: Config, shape: TaskShape) -> Learner:
    fields: dict[str, Any] = dict(own)
    if more := fields.pop("more_at_test", 0):
        fields["test_steps"] = fields["inner_steps"] + more
    if name == "maml-pp":
        fields["first_order_epochs"] = int(100 * fields.pop("first_order_share"))
    if name == "cavia":
        fields["by"] = "film"  # a batch norm takes away what "concat" adds to a bias
    if name == "meta-sgd":
        fields["high"] = fields["low"] * fields.pop("spread")
    if name == "snail":
        fields["supports"] = shape.ways * shape.shots
    if name == "reptile":
        fields |= {"inner_batch": 10, "test_steps": 20}
    return KINDS[name](**fields)


KINDS: dict[str, type[Learner]] = {
    "prototypical": Prototypical, "matching": Matching, "relation": Relation, "siamese": Siamese, "maml": MAML, "fomaml": FOMAML,
    "anil": ANIL, "boil": BOIL, "maml-pp": MAMLPP, "meta-sgd": MetaSGD, "reptile": Reptile, "meta-lstm": MetaLSTM,
    "meta-weight-net": MetaWeightNet, "mann": MANN, "snail": SNAIL, "meta-networks": MetaNetworks, "black-box": BlackBox,
    "fine-tune": FineTune, "baseline-pp": BaselinePP, "cavia": CAVIA,
    "centroid": Centroid,
}
