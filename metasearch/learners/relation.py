"""Relation Networks: a small net is learnt that says how far a query belongs to a class.

Sung, Yang, Zhang, Xiang, Torr, Hospedales. "Learning to Compare: Relation Network for Few-Shot Learning". CVPR 2018.
https://arxiv.org/abs/1711.06025
r_kj = sigmoid(g([sum_i f(x_ki), f(x_j)])) (eq. 1): feature maps of a class are summed, a query's are laid behind them as
further channels, and the relation module g looks at both: two blocks of convolution, batch norm, ReLU and pooling, then a
hidden layer of 8. It is trained with squared errors to 1 and 0 (eq. 2), whatever the task's loss is. The paper's encoder is
nets/conv4.py: VARIANTS["relation"]; where features have no space (vectors, 1 x 1 maps) g is its linear layers alone.

Batch statistics are those of all pairs at hand, as in the authors' code: nets are "transductive" (or "semi"). In the other
modes a query may not see the others, and the module's norms are layer norms.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, inner
from metasearch.nets import Net, Params
from metasearch.nets.conv4 import Conv4, conv4
from metasearch.nets.mlp import mlp
from metasearch.nets.norm import Norm
from metasearch.tasks import Episode, Kind

Objective = Literal["mse", "cross-entropy"]


@dataclass(frozen=True)
class Relation(Learner):
    """Own keys: `relation/...`, the module's.

    hidden: width of the layer in front of the score.
    objective: "mse": outputs are relation scores in (0, 1), trained with squared errors; "cross-entropy": outputs are the
    module's without the sigmoid, taken as logits and trained with the task's loss.

    The linear layers' biases begin at 1, as in the authors' code: squared errors first pull all scores down to 1/N, where a
    hidden layer of 8 ReLUs easily dies. Their weights are He's, not the code's N(0, 0.01), which without a batch norm never
    leaves that constant.
    """

    pooled: ClassVar[bool] = True
    head: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)

    hidden: int = 8
    objective: Objective = "mse"

    def __post_init__(self) -> None:
        if self.objective not in ("mse", "cross-entropy"):
            raise ValueError(f"objective is 'mse' or 'cross-entropy', but got {self.objective!r}")
        inner.check(least=1, hidden=self.hidden)

    def init(self, net: Net, generator: Generator) -> Params:
        params = net.init(generator)
        for part in self._module(net):
            params |= {_renamed(k, "net/", "relation/"): v for k, v in part.init(generator).items()}
        for layer in ("layer1", "head"):
            weight = params[f"relation/{layer}/weight"]
            params[f"relation/{layer}/weight"] = torch.randn(weight.shape, generator=generator) * (2 / weight.shape[1]) ** 0.5
            params[f"relation/{layer}/bias"] = torch.ones(len(weight))
        return params

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        if net.norm == "transductive":  # supports are embedded together with the queries
            return {"support_x": support_x, "support_y": support_y}
        return {"classes": summed(_maps(net, net.apply(meta, support_x)), support_y)}

    def predict(self, net: Net, meta: Params, task: Params, query_x: Tensor) -> Tensor:
        if "classes" in task:
            return self._outputs(net, meta, task["classes"], _maps(net, net.apply(meta, query_x)))
        return self._together(net, meta, task["support_x"], task["support_y"], query_x)

    def episode_loss(self, net: Net, loss: Loss, meta: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        output = self._together(net, meta, episode.support_x, episode.support_y, episode.query_x)
        if self.objective == "cross-entropy":
            return loss(output, episode.query_y), {}
        return (output - episode.query_y).square().mean(), {}

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Relation scores are shares already, each between 0 and 1."""
        if self.objective == "cross-entropy":
            return super().probabilities(outputs)
        return outputs / outputs.sum(-1, keepdim=True).clamp(min=1e-12)

    def similarity(self, net: Net, meta: Params, a: Tensor, b: Tensor) -> Tensor:
        """The relation score of b[i] with a class of which a[i] is the only support."""
        z = _maps(net, net.apply(meta, torch.cat([a, b])))
        return self._related(net, meta, torch.cat([z[: len(a)], z[len(a):]], 1))

    def _together(self, net: Net, meta: Params, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        z = _maps(net, net.apply(meta, torch.cat([support_x, query_x])))
        supports = support_x.shape[0]
        return self._outputs(net, meta, summed(z[:supports], support_y), z[supports:])

    def _outputs(self, net: Net, meta: Params, classes: Tensor, z: Tensor) -> Tensor:
        """Classes [N, C, ...], queries [Q, C, ...] -> [Q, N]."""
        return self._related(net, meta, pairs(classes, z)).view(len(z), len(classes))

    def _related(self, net: Net, meta: Params, both: Tensor) -> Tensor:
        """Pairs [P, 2C, ...] -> [P]."""
        params = {_renamed(k, "relation/", "net/"): v for k, v in meta.items() if k.startswith("relation/")}
        for part in self._module(net):
            both = part.apply(params, both)
        logit = both[:, 0].to(params["net/head/bias"].dtype)  # a sigmoid near 1 needs more digits than bfloat16 has
        return logit if self.objective == "cross-entropy" else logit.sigmoid()

    def _module(self, net: Net) -> tuple[Net, ...]:
        """The relation module, as nets one behind the other."""
        channels, height, width = net.maps or (net.features, 1, 1)
        smallest = min(height, width)
        layers = min(2, smallest.bit_length() - 1)  # how often a map can be halved
        if layers == 0:
            return (mlp(2 * net.features, 1, hidden=(self.hidden,)),)
        kind = Norm("batch" if net.norm in ("transductive", "semi") else "layer")
        # the authors pad Omniglot's 5 x 5 maps but not miniImageNet's 19 x 19
        blocks = Conv4(channels, layers=layers, norm=kind, unpadded=2 if smallest >= 10 else 0)
        convolved = conv4((2 * channels, height, width), None, blocks)
        return convolved, mlp(convolved.features, 1, hidden=(self.hidden,))


def summed(z: Tensor, y: Tensor) -> Tensor:
    """z [M, C, ...] summed class by class with y [M, N] -> [N, C, ...]."""
    return (y.T @ z.flatten(1)).view(-1, *z.shape[1:])


def pairs(classes: Tensor, z: Tensor) -> Tensor:
    """Classes [N, C, ...] and queries [Q, C, ...] -> [Q * N, 2C, ...]: pair q * N + k is class k's channels, then query q's."""
    shape = (len(z), len(classes), *z.shape[1:])
    return torch.cat([classes[None].expand(shape), z[:, None].expand(shape)], 2).flatten(0, 1)


def _maps(net: Net, z: Tensor) -> Tensor:
    """Features [M, D] as feature maps [M, C, H, W], where they are some."""
    return z if net.maps is None else z.view(-1, *net.maps)


def _renamed(key: str, prefix: str, other: str) -> str:
    return other + key.removeprefix(prefix)
