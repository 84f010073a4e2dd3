"""Nets: sizes that papers and code state, keys, initialisation."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator

from metasearch.nets import Net, adapted
from metasearch.nets.activation import ACTIVATIONS, MONOTONE, Activation, activation
from metasearch.nets.conv4 import VARIANTS, Conv4, conv3x3, conv4
from metasearch.nets.init import Init, weights
from metasearch.nets.mlp import mlp
from metasearch.nets.native import native
from metasearch.nets.norm import Norm

GLYPH, MINI = (1, 28, 28), (3, 84, 84)


def _generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize(("variant", "shape", "features"), [
    ("maml_omniglot", GLYPH, 64), ("maml_mini", MINI, 800), ("reptile_omniglot", GLYPH, 256), ("reptile_mini", MINI, 1152),
    ("protonet", GLYPH, 64), ("protonet", MINI, 1600), ("maml_pp", GLYPH, 64),
    ("relation", GLYPH, 1600), ("relation", MINI, 64 * 19 * 19),
])
def test_a_variant_has_the_features_of_its_authors_code(variant: str, shape: tuple[int, ...], features: int) -> None:
    net = conv4(shape, None, variant)
    out = net.apply(net.init(_generator()), torch.zeros(2, *shape))
    assert net.features == features
    assert out.shape == (2, features)


def test_48_channels_of_maml_pp_give_1200_features_on_mini_pictures() -> None:
    assert conv4(MINI, 5, replace(VARIANTS["maml_pp"], channels=48)).features == 1200


@pytest.mark.parametrize(("variant", "shape", "outputs", "norms", "count"), [
    ("protonet", GLYPH, None, True, 111_936),
    ("maml_mini", MINI, 5, False, 32_645),
    ("maml_mini", MINI, 5, True, 32_645 + 4 * 32),  # beta alone
    ("maml_omniglot", GLYPH, 5, False, 111_424 + 325),
    ("reptile_omniglot", GLYPH, 5, True, 111_424 + 4 * 128 + 256 * 5 + 5),
])
def test_parameter_counts(variant: str, shape: tuple[int, ...], outputs: int | None, norms: bool, count: int) -> None:
    params = conv4(shape, outputs, variant).init(_generator())
    assert sum(v.numel() for k, v in params.items() if norms or "/norm/" not in k) == count


@pytest.mark.parametrize(("down", "sizes"), [
    ("stride", [28, 14, 7, 4, 2]), ("pool", [28, 14, 7, 3, 1]), ("pool_same", [28, 14, 7, 4, 2]), ("average", [28, 14, 7, 3, 1]),
])
def test_the_stated_sizes_are_those_of_the_feature_maps(down: str, sizes: list[int]) -> None:
    design = Conv4(channels=2, down=down)  # type: ignore[arg-type]
    assert design.sizes(28) == sizes
    for layers, size in enumerate(sizes[1:], 1):
        net = conv4(GLYPH, None, replace(design, layers=layers))
        assert net.apply(net.init(_generator()), torch.zeros(1, *GLYPH)).shape == (1, 2 * size * size) == (1, net.features)


@pytest.mark.parametrize("down", ["stride", "pool", "pool_same", "average"])
@pytest.mark.parametrize(("pooled", "unpadded"), [(None, 1), (0, 2), (1, 0), (2, 2), (2, 9)])
def test_blocks_may_keep_their_size_and_have_no_padding(down: str, pooled: int | None, unpadded: int) -> None:
    design = Conv4(channels=2, down=down, pooled=pooled, unpadded=unpadded, layers=3)  # type: ignore[arg-type]
    net, size = conv4(GLYPH, None, design), design.sizes(28)[-1]
    assert net.apply(net.init(_generator()), torch.zeros(1, *GLYPH)).shape == (1, 2 * size * size) == (1, net.features)


def test_the_encoder_of_relation_networks_downsamples_twice_and_pads_twice() -> None:
    assert VARIANTS["relation"].sizes(28) == [28, 13, 5, 5, 5]
    assert VARIANTS["relation"].sizes(84) == [84, 41, 19, 19, 19]
    net = conv4(GLYPH, None, "relation")
    params, x = net.init(_generator()), torch.randn(3, *GLYPH, generator=_generator(1))
    modules: list[torch.nn.Module] = []
    for i, channels in enumerate((1, 64, 64, 64), 1):
        conv = torch.nn.Conv2d(channels, 64, 3, padding=0 if i <= 2 else 1)
        conv.load_state_dict({k: params[f"net/conv{i}/{k}"] for k in ("weight", "bias")})
        modules += [conv, torch.nn.BatchNorm2d(64), torch.nn.ReLU(), *([torch.nn.MaxPool2d(2)] if i <= 2 else [])]
    assert torch.allclose(net.apply(params, x), torch.nn.Sequential(*modules)(x).flatten(1), atol=1e-5)


def test_the_sine_net_has_1761_parameters_in_order() -> None:
    params = mlp(1, 1).init(_generator())
    assert sum(v.numel() for v in params.values()) == 1761
    assert list(params) == [f"net/{layer}/{part}" for layer in ("layer1", "layer2", "head") for part in ("weight", "bias")]


def test_keys_say_what_is_adapted() -> None:
    keys = list(conv4(GLYPH, 5, "protonet").init(_generator()))
    assert keys[:4] == ["net/conv1/weight", "net/conv1/bias", "net/conv1/norm/weight", "net/conv1/norm/bias"]
    assert keys[-2:] == ["net/head/weight", "net/head/bias"]
    assert [k for k in keys if not adapted(k)] == [f"net/conv{i}/norm/{part}" for i in range(1, 5) for part in ("weight", "bias")]


@pytest.mark.parametrize("headed", [True, False])
def test_a_net_is_its_head_behind_its_body(headed: bool) -> None:
    for net in (mlp(3, 2 if headed else None), conv4((3, 9, 9), 2 if headed else None, Conv4(4, layers=2))):
        params, x = net.init(_generator()), torch.randn(4, *((3,) if net.features == 40 else (3, 9, 9)), generator=_generator())
        if not headed:
            assert net.body is None
            assert net.head is None
            assert net.apply(params, x).shape == (4, net.features)
            continue
        assert net.body is not None
        assert net.head is not None
        z = net.body({k: v for k, v in params.items() if not k.startswith("net/head/")}, x)
        assert z.shape == (4, net.features)
        assert torch.equal(net.head(params, z), net.apply(params, x))


@pytest.mark.parametrize("act", sorted(MONOTONE))
def test_pooling_commutes_with_monotone_activations(act: Activation) -> None:
    """Conv-4 pools before such an activation, on a quarter of the work."""
    x = torch.randn(2, 3, 8, 8, generator=_generator())
    f = activation(act)
    assert torch.equal(torch.nn.functional.max_pool2d(f(x), 2), f(torch.nn.functional.max_pool2d(x, 2)))


def test_an_activation_that_falls_somewhere_is_applied_before_the_pool() -> None:
    net = conv4((1, 4, 4), None, Conv4(3, layers=1, act="gelu", norm=Norm("none")))
    params, x = net.init(_generator()), torch.randn(2, 1, 4, 4, generator=_generator())
    z = torch.nn.functional.conv2d(x, params["net/conv1/weight"], params["net/conv1/bias"], padding=1)
    expected = torch.nn.functional.max_pool2d(torch.nn.functional.gelu(z), 2).flatten(1)
    assert torch.allclose(net.apply(params, x), expected)


def test_monotone_is_said_of_exactly_the_activations_that_never_fall() -> None:
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    never_fall = {name for name, f in ACTIVATIONS.items() if bool((f(x).diff() >= 0).all())}
    assert never_fall == MONOTONE


@pytest.mark.parametrize(("init", "std"), [("torch", 1 / math.sqrt(3 * 400)), ("xavier", math.sqrt(2 / 700)), ("normal", 1.0)])
def test_weights_begin_with_the_stated_spread(init: Init, std: float) -> None:
    params = weights("a", (300, 400), init, _generator())
    assert float(params["net/a/weight"].std()) == pytest.approx(std, rel=0.02)  # 120,000 draws: 0.2 % is one standard error
    assert float(params["net/a/weight"].mean()) == pytest.approx(0, abs=0.02 * std)
    assert bool((params["net/a/bias"] == 0).all()) == (init != "torch")


def test_truncated_weights_stay_within_two_standard_deviations() -> None:
    weight = weights("a", (300, 400), "trunc_normal", _generator())["net/a/weight"]
    assert 0.0199 < float(weight.abs().max()) <= 0.02
    assert float(weight.std()) == pytest.approx(0.0088, rel=0.02)  # of a normal cut at two standard deviations


def test_init_is_that_of_torch_layers() -> None:
    torch.manual_seed(3)
    linear = torch.nn.Linear(5, 4)
    ours = weights("a", (4, 5), "torch", _generator(3))
    bound = 1 / math.sqrt(5)
    for tensor in (linear.weight, linear.bias, *ours.values()):
        assert float(tensor.detach().abs().max()) <= bound


@pytest.mark.parametrize(("build", "said"), [
    (lambda: conv4((28, 28), 5), "mlp for vectors"),
    (lambda: conv4(GLYPH, 5, "resnet"), "maml_omniglot, maml_mini"),
    (lambda: Conv4(pooled=-1), "pooled >= 0"),
    (lambda: conv4((1, 8, 8), 5), "fewer layers or down='stride'"),
    (lambda: Conv4(channels=0), "channels >= 1"),
    (lambda: Conv4(down="half"), "'half'"),  # type: ignore[arg-type]
    (lambda: mlp(0, 1), "at least 1"),
    (lambda: mlp(1, 1, act="swish"), "relu"),  # type: ignore[arg-type]
    (lambda: Norm("batchnorm"), "batch, layer"),  # type: ignore[arg-type]
    (lambda: Norm(eps=0), "eps > 0"),
    (lambda: Norm("group", groups=3).init("a", 4), "3 groups of 4 channels"),
    (lambda: weights("a", (1, 1), "zeros", _generator()), "trunc_normal"),  # type: ignore[arg-type]
])
def test_a_wrong_design_is_refused_in_words(build: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()  # type: ignore[operator]


@pytest.mark.parametrize("shape", [(40, 1, 9, 8), (40, 3, 9, 8), (3, 1, 9, 8)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions_on_the_tape_are_torchs_to_the_second_derivative(shape: tuple[int, ...], stride: int, padding: int) -> None:
    def draw(*size: int, seed: int) -> torch.Tensor:
        return torch.randn(*size, generator=_generator(seed), dtype=torch.float64).requires_grad_()

    x, weight, bias = draw(*shape, seed=0), draw(4, shape[1], 3, 3, seed=1), draw(4, seed=2)

    def derivatives(convolve: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        out = convolve()
        first = torch.autograd.grad(torch.tanh(out).square().sum(), [x, weight, bias], create_graph=True)
        cubes = torch.stack([g.pow(3).sum() for g in first]).sum()
        return [out, *first, *torch.autograd.grad(cubes, [x, weight, bias])]

    with native():
        ours = derivatives(lambda: conv3x3(x, weight, bias, stride, padding))
    theirs = derivatives(lambda: torch.nn.functional.conv2d(x, weight, bias, stride=stride, padding=padding))
    assert all(torch.allclose(a, b, atol=1e-9, rtol=1e-9) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], torch.zeros_like(ours[0]))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_features_are_in_the_same_order_on_the_tape(variant: str) -> None:
    """Memory with channels last is still [M, C, H, W] to those who flatten it."""
    for shape in ((1, 28, 28), (3, 32, 32)):
        net, x = conv4(shape, None, variant), torch.randn(33, *shape, generator=_generator(), dtype=torch.float64)
        params = {k: v.double() for k, v in net.init(_generator()).items()}
        plain = net.apply(params, x)
        with native():
            assert torch.allclose(net.apply(params, x), plain, atol=1e-9)


@pytest.mark.parametrize("outputs", [None, 5])
@pytest.mark.parametrize("net_of", [
    lambda n: mlp(6, n, hidden=(7, 5)), lambda n: mlp(6, n, hidden=()),
    lambda n: conv4((1, 16, 16), n, Conv4(8, layers=3)), lambda n: conv4((1, 16, 16), n, Conv4(8, layers=3, spatial_mean=True)),
])
def test_a_body_is_the_chain_of_its_blocks(net_of: Callable[[int | None], Net], outputs: int | None) -> None:
    net = net_of(outputs)
    params = net.init(_generator())
    x = torch.randn(4, *((6,) if net.maps is None and "net/conv1/weight" not in params else (1, 16, 16)), generator=_generator(1))
    z = x
    for block in net.blocks:
        z = block.apply(params, z)
    assert torch.equal(z, net.embed(params, x))
    assert z.shape == (4, net.features)
    assert net.outputs == (outputs or 0)
    if net.maps is not None:
        assert math.prod(net.maps) == net.features


def test_the_features_of_a_conv_net_are_its_maps_laid_flat() -> None:
    assert conv4((1, 28, 28), None, "protonet").maps == (64, 1, 1)
    assert conv4((3, 84, 84), None, "protonet").maps == (64, 5, 5)
    assert conv4((1, 28, 28), None, "maml_omniglot").maps is None, "a mean over space has no maps"
