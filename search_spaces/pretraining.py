"""Train once on all classes, then fine-tune on each episode: the practice that meta-learning has to beat.

Conv-4 is trained as an ordinary classifier of all training classes (objectives/pretrain.py). A search then chooses what is done
with it on an episode: which layers are tuned, at which rates, in which order and from which head; or Baseline++, which freezes
the body and compares directions; or the nearest centroid of features that nobody tunes. Ranges surround Chen et al. ICLR 2019
(https://arxiv.org/abs/1904.04232) and Howard, Ruder. ACL 2018 (https://arxiv.org/abs/1801.06146).
    metasearch run study.toml space=pretraining tasks.name=omniglot
"""
from __future__ import annotations

from metasearch.learners import Learner
from metasearch.learners.baseline_pp import BaselinePP
from metasearch.learners.centroid import Centroid
from metasearch.learners.fine_tune import FineTune
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.objectives.optimizer import adam, cosine
from metasearch.objectives.pretrain import Pretrain
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Float, Int, Space
from metasearch.tasks import TaskShape

SPACE = Space({
    "learner": Choice({
        "fine-tune": Space({
            "start": Choice(("zero", "random", "prototypes")),
            "inner_lr": Float(3e-3, 1.0, log=True),
            "inner_steps": Int(1, 50, log=True),
            "layer_decay": Float(0.1, 1.0, log=True),
            "frozen": Int(0, 4),
            "unfreeze_every": Choice((0, 1, 3, 10)),
            "momentum": Choice((0.0, 0.9)),
            "head": Choice(("linear", "cosine")),
        }),
        "baseline-pp": Space({
            "start": Choice(("random", "prototypes")),
            "inner_lr": Float(1e-2, 10.0, log=True),
            "inner_steps": Int(10, 100, log=True),
            "scale": Float(2.0, 20.0, log=True),
        }),
        "centroid": Space({"distance": Choice(("cosine", "euclid")), "head": Choice(("linear", "cosine"))}),
    }),
    "channels": Choice((32, 64)),
    "outer_lr": Float(3e-4, 1e-2, log=True),
    "weight_decay": Float(1e-6, 1e-3, log=True),
})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """2,000 minibatches of 64 pictures; features are normalised by statistics of the training classes."""
    net = conv4(shape.x, shape.ways, Conv4(channels=int(config["channels"])), mode="inductive")
    optimizer = adam(float(config["outer_lr"]), weight_decay=float(config["weight_decay"]), schedule=cosine(0.01))
    fit = Pretrain(head=config.get("learner.head", "cosine"), batch=64)  # type: ignore[arg-type]
    return Recipe(net, _learner(config), optimizer, meta_batch=1, steps=2000, fit=fit)


def _learner(config: Config) -> Learner:
    own = {path.removeprefix("learner."): value for path, value in config.items() if path.startswith("learner.")}
    if config["learner"] == "baseline-pp":
        return BaselinePP(**own)  # type: ignore[arg-type]
    own.pop("head")
    if config["learner"] == "centroid":
        return Centroid(**own)  # type: ignore[arg-type]
    return FineTune(**own)  # type: ignore[arg-type]
