"""A space whose nets hold on to much memory for every episode, in a process that may have but little more than it has.

`appetite` is how many numbers a net holds for each episode; HUNGRY_ROOM how many bytes more a trial may write to.
"""
from __future__ import annotations

import os
import resource
from pathlib import Path

from torch import Generator, Tensor

from metasearch.learners import Learner
from metasearch.learners.joint import Joint
from metasearch.learners.maml import MAML
from metasearch.nets import Params
from metasearch.nets.mlp import mlp
from metasearch.objectives.optimizer import adam
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Space
from metasearch.tasks import TaskShape

LARGE, TOO_LARGE = 280_000, 10**8
SPACE = Space({"appetite": Choice((LARGE, TOO_LARGE)), "learner": Choice(("maml", "joint"))})


def recipe(config: Config, shape: TaskShape) -> Recipe:
    net = mlp(shape.x, shape.ways, hidden=[4])
    numbers = int(config["appetite"]) * (1 if config["learner"] == "maml" else 7)  # MAML holds on to it in two gradients

    def init(generator: Generator) -> Params:
        limit()
        return net.init(generator)

    def apply(params: Params, x: Tensor) -> Tensor:
        """What the net says, and a tensor of [numbers] that the gradient needs and that changes nothing."""
        held = x.mul(0).sum().add(1).expand(numbers) * params["net/head/bias"].sum()
        return net.apply(params, x) + 0.0 * (held * held).mean()

    learner: Learner = MAML(inner_lr=0.01, inner_steps=1) if config["learner"] == "maml" else Joint()
    hungry = net._replace(init=init, apply=apply, body=None, head=None, outputs=0, blocks=())
    return Recipe(hungry, learner, adam(1e-2), 32, steps=2)


def limit() -> None:
    """From the first trial on, this process may have HUNGRY_ROOM bytes more than it has now.

    They are bytes that it can write to: of its addresses every thread that begins sets aside 64 MiB, which it may never ask for.
    """
    room = os.environ.get("HUNGRY_ROOM")
    if room and resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY:
        (now,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
        resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(now) + int(room), resource.RLIM_INFINITY))
