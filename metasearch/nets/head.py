"""A linear layer behind a net that ends in features, so that learners that need outputs can learn with it."""
from __future__ import annotations

from torch import Generator, Tensor
from torch.nn.functional import linear

from metasearch.nets import Net, Params
from metasearch.nets.init import weights

__all__ = ["headed"]


def headed(net: Net, outputs: int) -> Net:
    """The same net with `net/head/weight` [outputs, D] and `net/head/bias` [outputs]; itself if it has a head of so many
    outputs. Raises ValueError for a head of another size, and for a net that does not say how many features it has."""
    if net.outputs == outputs:
        return net
    if net.outputs:
        raise ValueError(f"the net has a head of {net.outputs} outputs, but {outputs} are needed")
    if net.features < 1:
        raise ValueError("the net has no head, and does not say how many features it has (Net.features) to be given one")

    def init(generator: Generator) -> Params:
        return net.init(generator) | weights("head", (outputs, net.features), "torch", generator)

    def head(params: Params, z: Tensor) -> Tensor:
        return linear(z, params["net/head/weight"], params["net/head/bias"])

    def apply(params: Params, x: Tensor) -> Tensor:
        return head(params, net.apply(params, x))

    return net._replace(init=init, apply=apply, body=net.apply, head=head, outputs=outputs)
