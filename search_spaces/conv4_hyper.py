"""Conv-4 and its meta-learner: what a practitioner would tune by hand.

The backbone's width, downsampling, activation and norm, MAML's inner loop, the outer rate and its schedule. The ranges surround
the published settings (handbook values of the six Conv-4 variants are in metasearch/nets/conv4.py).
"""
from __future__ import annotations

from metasearch.learners.maml import MAML
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.norm import Norm
from metasearch.objectives.optimizer import Schedule, adam, constant, cosine, linear, steps_down
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Float, Int, Space
from metasearch.tasks import TaskShape

SPACE = Space({
    "channels": Choice((16, 32, 64)),
    "down": Choice(("stride", "pool", "average")),
    "activation": Choice(("relu", "leaky_relu", "silu", "gelu")),
    "norm": Choice({
        "batch": Space({"mode": Choice(("transductive", "semi"))}),
        "group": Space({"groups": Choice((4, 8))}),
        "layer": Space({}),
    }),
    "inner_lr": Float(0.02, 2.0, log=True),
    "inner_steps": Int(1, 5),
    "first_order": Choice((False, True)),
    "outer_lr": Float(3e-4, 1e-2, log=True),
    "schedule": Choice(("constant", "cosine", "linear", "steps")),
})

SCHEDULES: dict[str, Schedule] = {
    "constant": constant, "cosine": cosine(0.01), "linear": linear(0.01), "steps": steps_down(3, 0.5),
}


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """1,000 outer steps of 8 tasks."""
    kind = str(config["norm"])
    norm = Norm(kind, groups=int(config.get("norm.groups", 8)))  # type: ignore[arg-type]
    design = Conv4(
        channels=int(config["channels"]), down=config["down"], act=config["activation"], norm=norm,  # type: ignore[arg-type]
        spatial_mean=config["down"] == "stride",
    )
    mode = config.get("norm.mode", "transductive")
    net = conv4(shape.x, shape.ways, design, mode=mode)  # type: ignore[arg-type]
    learner = MAML(
        inner_lr=float(config["inner_lr"]), inner_steps=int(config["inner_steps"]), first_order=bool(config["first_order"])
    )
    optimizer = adam(float(config["outer_lr"]), schedule=SCHEDULES[str(config["schedule"])])
    return Recipe(net, learner, optimizer, meta_batch=8, steps=1000)
