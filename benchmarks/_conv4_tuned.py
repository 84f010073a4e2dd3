"""The baseline's space in architecture_search.py: Conv-4 and what a practitioner tunes of it, at most at its usual width.

Prototypical Networks on the same episodes as the nets of _block_nets.py; width, downsampling, activation, rate and schedule are
searched. What takes a processor several times as long in bfloat16 (group and instance norm, SiLU, GELU) is left out:
trials have equal numbers of steps, so a few slow ones would take the search's time from all others.
"""
from __future__ import annotations

from _block_nets import training_episode

from metasearch.learners.prototypical import Prototypical
from metasearch.nets import Net
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.objectives.optimizer import adam, constant, cosine, linear
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Float, Space
from metasearch.tasks import TaskShape

SPACE = Space({
    "channels": Choice((32, 48, 64)),
    "down": Choice(("pool", "average", "stride")),
    "activation": Choice(("relu", "leaky_relu")),
    "rate": Float(3e-4, 1e-2, log=True),
    "schedule": Choice(("constant", "cosine", "linear")),
})
SCHEDULES = {"constant": constant, "cosine": cosine(0.01), "linear": linear(0.01)}


def recipe(config: Config, shape: TaskShape) -> Recipe:
    """A study says for how many steps."""
    design = Conv4(
        int(config["channels"]), down=config["down"], act=config["activation"],  # type: ignore[arg-type]
    )
    optimizer = adam(float(config["rate"]), schedule=SCHEDULES[str(config["schedule"])])
    net = conv4(shape.x, None, design)
    episode = training_episode(shape)
    return Recipe(net, Prototypical(), optimizer, meta_batch=1, steps=1000, episode=episode, precision="bfloat16")


def standard(x_shape: tuple[int, ...]) -> Net:
    """Conv-4 as Prototypical Networks have it: its parameters are the limit of every search."""
    return conv4(x_shape, None, "protonet")
