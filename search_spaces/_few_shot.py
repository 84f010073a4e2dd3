"""What the spaces of architectures share: how a net of theirs learns from few shots. Not a space itself."""
from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from metasearch.learners.maml import MAML
from metasearch.learners.prototypical import Prototypical
from metasearch.nets import Net
from metasearch.objectives.optimizer import adam, cosine
from metasearch.objectives.recipe import Recipe
from metasearch.tasks import TaskShape

__all__ = ["Way", "few_shot"]

Way = Literal["prototypical", "maml"]


def few_shot(
    net: Callable[[int | None], Net], shape: TaskShape, way: Way, *, steps: int = 500, outer_lr: float = 1e-3
) -> Recipe:
    """net: of a number of outputs, None for features. Training episodes have few queries, for an outer step should be cheap."""
    episode = shape._replace(queries=max(1, min(shape.queries, 5)))
    optimizer = adam(outer_lr, schedule=cosine(0.01))
    if way == "prototypical":
        return Recipe(net(None), Prototypical(), optimizer, meta_batch=4, steps=steps, episode=episode)
    if way == "maml":
        learner = MAML(inner_lr=0.1, inner_steps=1, test_steps=5)
        return Recipe(net(shape.ways), learner, optimizer, meta_batch=4, steps=steps, episode=episode)
    raise ValueError(f"a way to learn is one of {', '.join(get_args(Way))}, but got {way!r}")
