"""Meta Networks: gradients of the supports are turned into fast weights, which stand beside the slow ones in every layer.

Munkhdalai, Yu. "Meta Networks". ICML 2017. https://arxiv.org/abs/1703.00837 (and the authors' code for Omniglot)
Two nets of one shape, base (`net/`) and key (`key/`). Every layer is run twice and the two activations are summed.
(1) key: the gradient of each of a few chunks of supports goes through an LSTM, coordinate by coordinate; what it says after the
last chunk are the key net's fast weights. (2) base: every support's gradient goes through an MLP, coordinate by coordinate: it
is that support's column of a memory, under its key. (3) A query's fast weights are the columns, weighted by a softmax over the
cosines of keys (eq. 6-8). Gradients are information, not paths: the outer loop does not differentiate through them.

The authors' blocks are a convolution and a ReLU, pooled after the sum, without norm or bias; here a net's blocks are taken
whole, so that pooling comes before the sum; biases have no fast partners and norm parameters serve both. Since every query has
weights of its own, a batch norm would see one picture alone: use a net without one ("none", "layer", "group").
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from metasearch.learners import Learner, Loss, _linear, gradients, inner
from metasearch.nets import Net, Params, adapted, lstm
from metasearch.tasks import Kind

BEGIN = 0.1  # fast weights begin small: no norm holds what they add


class Fast(NamedTuple):
    """What is learnt from a support set of M. key: fast weights of the key net; keys [M, D]; columns: a base net's fast weights
    for each support [M, *shape]."""

    key: Params
    keys: Tensor
    columns: Params


@dataclass(frozen=True)
class MetaNetworks(Learner):
    """chunks: in which the supports are shown to the key net's LSTM, in their order; 1: no order shows.
    hidden: units of the coordinate-wise LSTM and MLP. log_scale: p of the preprocessed gradient (log |g| / p, sign g)."""

    kinds: ClassVar[tuple[Kind, ...]] = ("classes",)

    chunks: int = 5
    hidden: int = 20
    log_scale: float | Tensor = 7.0

    def __post_init__(self) -> None:
        inner.check(least=1, chunks=self.chunks, hidden=self.hidden)
        inner.check(log_scale=self.log_scale)

    def init(self, net: Net, generator: Generator) -> Params:
        if not net.blocks or not net.outputs:
            raise ValueError("Meta Networks augment a chain of layers that ends in a linear head, but this net has no "
                             f"{'head' if net.blocks else 'chain of layers'}. Use conv4 or mlp with outputs.")
        params = net.init(generator)
        params |= {f"key/{k.removeprefix('net/')}": v for k, v in net.init(generator).items() if k.startswith("net/")}
        for group in sorted({_group(v) for v in _weights(params).values()}):
            params |= lstm.init(f"fast/{group}/lstm", 2, self.hidden, generator)
            params |= _small(_linear.init(f"fast/{group}/lstm_out", self.hidden, 1, generator))
            params |= _linear.init(f"fast/{group}/mlp1", 2, self.hidden, generator)
            params |= _linear.init(f"fast/{group}/mlp2", self.hidden, self.hidden, generator)
            params |= _small(_linear.init(f"fast/{group}/mlp_out", self.hidden, 1, generator))
        return params

    def adapt(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Fast:
        key = self.key_weights(net, loss, meta, support_x, support_y)
        return Fast(key, augmented(net, _key(meta), key, support_x), self.columns(net, loss, meta, support_x, support_y))

    def predict(self, net: Net, meta: Params, task: Fast, query_x: Tensor) -> Tensor:
        keys = augmented(net, _key(meta), task.key, query_x)  # [Q, D]
        attention = cosine(keys, task.keys).softmax(dim=1)  # [Q, M]

        def answer(a: Tensor, x: Tensor) -> Tensor:
            fast = {k: (a @ c.flatten(1)).view(c.shape[1:]) for k, c in task.columns.items()}
            return outputs(net, meta, fast, x[None])[0]

        found: Tensor = torch.func.vmap(answer)(attention, query_x)
        return found

    def key_weights(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        """The key net's fast weights: what the LSTM says after the gradient of the last chunk."""
        slow, state, fast = _key(meta), dict[str, tuple[Tensor, Tensor]](), Params()
        pieces = min(self.chunks, support_x.shape[0])
        for x, y in zip(support_x.tensor_split(pieces), support_y.tensor_split(pieces), strict=True):
            for k, g in self.information(net, loss, slow, x, y).items():
                prefix = f"fast/{_group(slow[k])}"
                zeros = g.new_zeros(len(g), self.hidden)
                state[k] = lstm.step(meta, f"{prefix}/lstm", g, state.get(k, (zeros, zeros)))
        for k, (h, _) in state.items():
            fast[k] = _linear.apply(meta, f"fast/{_group(slow[k])}/lstm_out", h).view(slow[k].shape)
        return fast

    def columns(self, net: Net, loss: Loss, meta: Params, support_x: Tensor, support_y: Tensor) -> Params:
        """The base net's fast weights for every support, [M, *shape]."""
        told = [self.information(net, loss, meta, x[None], y[None]) for x, y in zip(support_x, support_y, strict=True)]
        fast: Params = {}
        for k in told[0]:
            prefix, z = f"fast/{_group(meta[k])}", torch.stack([g[k] for g in told])  # [M, P, 2]
            for layer in ("mlp1", "mlp2"):
                z = _linear.apply(meta, f"{prefix}/{layer}", z).relu()
            fast[k] = _linear.apply(meta, f"{prefix}/mlp_out", z).view(len(told), *meta[k].shape)
        return fast

    def information(self, net: Net, loss: Loss, slow: Params, x: Tensor, y: Tensor) -> Params:
        """The preprocessed gradient of the slow weights on some supports, [P, 2] of every weight; nothing flows back."""
        theta = _weights(slow)
        _, _, grads = gradients.value_and_gradient(
            lambda p: (loss(net.apply({**slow, **p}, x), y), ()), theta, differentiable=False
        )
        return {k: log_and_sign(g.flatten(), self.log_scale) for k, g in grads.items()}


def augmented(net: Net, slow: Params, fast: Params, x: Tensor) -> Tensor:
    """Features [M, D] of a net whose every layer is the sum of a slow and a fast one."""
    other = _partner(slow, fast)
    for block in net.blocks:
        x = block.apply(slow, x) + block.apply(other, x)
    return x


def outputs(net: Net, slow: Params, fast: Params, x: Tensor) -> Tensor:
    """[M, N], of all layers and the head."""
    assert net.head is not None
    z = augmented(net, slow, fast, x)
    return net.head(slow, z) + net.head(_partner(slow, fast), z)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """[Q, D], [M, D] -> [Q, M]; 0 where one of them is."""
    return a @ b.T * (a.square().sum(1)[:, None] * b.square().sum(1) + 1e-12).rsqrt()


def log_and_sign(g: Tensor, p: float | Tensor) -> Tensor:
    """[P] -> [P, 2]: (log |g| / p, sign g) where |g| >= e^-p, else (-1, e^p g). Ravi, Larochelle. ICLR 2017, section 3.2."""
    scale = torch.as_tensor(p, dtype=g.dtype, device=g.device)
    log = (g.abs() + torch.finfo(g.dtype).eps).log() / scale
    return torch.stack([log.clamp(min=-1), (g * scale.exp()).clamp(-1, 1)], dim=1)


def _key(meta: Params) -> Params:
    """The key net's weights under the names that a net reads."""
    return {f"net/{k.removeprefix('key/')}": v for k, v in meta.items() if k.startswith("key/")} | {
        k: v for k, v in meta.items() if k.startswith("stat/")
    }


def _weights(params: Params) -> Params:
    """Those that have fast partners."""
    return {k: v for k, v in params.items() if adapted(k) and k.endswith("/weight")}


def _partner(slow: Params, fast: Params) -> Params:
    """The weights of a fast layer: no bias, and the norm parameters of the slow one."""
    return {k: fast[k] if k in fast else torch.zeros_like(v) if adapted(k) else v for k, v in slow.items()}


def _group(weight: Tensor) -> str:
    """Convolutions and linear layers have coordinate-wise networks of their own."""
    return "conv" if weight.dim() == 4 else "linear"


def _small(params: Params) -> Params:
    return {k: BEGIN * v for k, v in params.items()}
