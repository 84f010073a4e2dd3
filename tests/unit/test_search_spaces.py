"""The architecture spaces: what their configs mean as nets, and small ones through the laws that train."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from metasearch import plugins
from metasearch.learners.maml import MAML
from metasearch.nets import Net, Params
from metasearch.nets.cells import Stack
from metasearch.objectives.parcel import inherit
from metasearch.objectives.recipe import Recipe
from metasearch.records import Config
from metasearch.space import Choice, Int, Repeat, Space, digest
from metasearch.strategies import build
from metasearch.strategies._controller import Controller
from metasearch.tasks.blobs import Blobs
from metasearch.testing import spaces
from search_spaces import conv_chain, darts_cells, nasnet_cells

TINY = Stack(3, 2)  # a normal cell, two reductions
SHAPE = Blobs(side=12, train_classes=10).shape(ways=5, shots=1, queries=3)


def small(module: ModuleType) -> Space:
    """Cells of their published size, of which TINY makes few and narrow copies; few layers."""
    if module is not conv_chain:
        return module.SPACE  # type: ignore[no-any-return]
    layers = module.SPACE.dims["layer"]
    assert isinstance(layers, Repeat)
    assert isinstance(layers.body, tuple)
    bodies = tuple(
        Space({**body.dims, "filters": Choice((4, 6)), "stride": Choice((2, 1, 3))}) for body in layers.body[:4]
    )
    return Space({"layer": Repeat(Int(2, 4), bodies)})


@pytest.mark.parametrize("law", [
    spaces.a_training_step_gives_finite_scores, spaces.the_same_seed_trains_the_same,
    spaces.a_vmap_and_a_loop_give_the_same_gradient,
], ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ["conv-chain", "darts-cells", "nasnet-cells"])
def test_a_small_one_trains(name: str, law: Callable[[ModuleType], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "MOST_TRAINED", 2)
    whole = plugins.module("spaces", name)
    part = ModuleType(f"small_{whole.__name__}")
    part.SPACE, part.recipe = small(whole), recipe_of(whole)  # type: ignore[attr-defined]
    law(part)


def recipe_of(module: ModuleType) -> Callable[..., Recipe]:
    return module.recipe if module is conv_chain else partial(module.recipe, stack=TINY)


def test_the_spaces_have_their_published_sizes() -> None:
    assert len(darts_cells.RELAXED) == 2 * 14
    assert all(darts_cells.SPACE.dims[path] == Choice(darts_cells.PRIMITIVES) for path in darts_cells.RELAXED)
    assert len(darts_cells.PRIMITIVES) == 8
    assert len(nasnet_cells.OPERATIONS) == 13
    # 5 blocks: inputs (2 3 4 5 6)^2, operations 13^2 each, 2 combiners each; two kinds of cell
    cell = nasnet_cells.SPACE.dims["normal"]
    assert isinstance(cell, Repeat)
    five = 1
    for body in cell.bodies:
        five *= int(body.size)
    assert five == (2 * 3 * 4 * 5 * 6) ** 2 * 13**10 * 2**5


@pytest.mark.parametrize("module", [conv_chain, darts_cells, nasnet_cells], ids=lambda module: module.__name__)
def test_a_recipe_learns_by_prototypes_or_maml(module: ModuleType) -> None:
    config = small(module).sample(np.random.default_rng(0))
    alone, adapted = recipe_of(module)(config, SHAPE), recipe_of(module)(config, SHAPE, way="maml")
    assert isinstance(adapted.learner, MAML)
    assert alone.net.outputs == 0
    assert adapted.net.outputs == 5
    x = torch.zeros(3, *SHAPE.x)
    for net, wide in ((alone.net, alone.net.features), (adapted.net, 5)):
        assert net.apply(net.init(Generator().manual_seed(0)), x).shape == (3, wide)


# -- DARTS -------------------------------------------------------------------------------------------------------------


def double(net: Net, seed: int = 0) -> Params:
    return {key: value.double() for key, value in net.init(Generator().manual_seed(seed)).items()}


def pictures(count: int = 6) -> Tensor:
    return torch.randn(count, *SHAPE.x, generator=Generator().manual_seed(7)).double()


def one_hot(config: Config) -> Params:
    found = {}
    for path in darts_cells.RELAXED:
        share = torch.zeros(8, dtype=torch.float64)
        share[darts_cells.PRIMITIVES.index(str(config[path]))] = 1.0
        found[f"arch/{path}"] = share.log()
    return found


@pytest.mark.parametrize("module", [darts_cells, nasnet_cells])
def test_the_smallest_stack_has_cells_of_both_kinds(module: ModuleType) -> None:
    rng = np.random.default_rng(0)
    one, other = (small(module).sample(rng) for _ in range(2))
    for kind in module.KINDS:
        mixed = {path: value for path, value in one.items() if not path.startswith(kind)}
        mixed |= {path: value for path, value in other.items() if path.startswith(kind)}
        nets = [recipe_of(module)(config, SHAPE).net for config in (one, mixed)]
        outputs = [net.apply(double(net), pictures()) for net in nets]
        assert outputs[0].shape != outputs[1].shape or not torch.equal(*outputs), f"{kind} cells are in the net"
    with pytest.raises(ValueError, match="cells >= 3"):
        Stack(2, 8)


@pytest.mark.parametrize("seed", range(3))
def test_the_mixture_at_a_corner_is_the_discrete_net(seed: int) -> None:
    config = small(darts_cells).sample(np.random.default_rng(seed))
    wide, net = (recipe(config, SHAPE, stack=TINY).net for recipe in (darts_cells.relaxed, darts_cells.recipe))
    params, x = double(wide), pictures()
    assert set(net.init(Generator())) <= set(params)
    by_number = {f"arch/{path}": darts_cells.PRIMITIVES.index(str(config[path])) for path in darts_cells.RELAXED}
    expected = net.apply(params, x)
    assert torch.allclose(wide.apply(params | one_hot(config), x), expected, atol=1e-12, rtol=0)
    assert torch.equal(wide.apply({**params, **by_number}, x), expected)  # type: ignore[dict-item]


def test_a_sampled_net_uses_no_weight_of_another_operation() -> None:
    """Weights of what is not sampled get no gradient at all; in a mixture every one does."""
    config = small(darts_cells).sample(np.random.default_rng(4))
    wide, net = (recipe(config, SHAPE, stack=TINY).net for recipe in (darts_cells.relaxed, darts_cells.recipe))
    params = {key: value.requires_grad_() for key, value in double(wide).items() if not key.startswith("arch/")}
    by_number = {f"arch/{path}": darts_cells.PRIMITIVES.index(str(config[path])) for path in darts_cells.RELAXED}
    loss = wide.apply({**params, **by_number}, pictures()).square().sum()  # type: ignore[dict-item]
    found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    used = {key for key, g in zip(params, found, strict=True) if g is not None}
    assert used <= set(net.init(Generator()))
    shares = {f"arch/{path}": torch.zeros(8, dtype=torch.float64) for path in darts_cells.RELAXED}
    loss = wide.apply(params | shares, pictures()).square().sum()
    mixed = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    assert all(g is not None for g in mixed)


def test_derivation_keeps_two_inputs_a_node_and_never_none() -> None:
    shares = {path: [0.9, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.04] for path in darts_cells.RELAXED}  # none is the largest
    shares["normal_e30"] = [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0]  # a tie: the first
    shares["normal_e32"] = [0.3, 0.0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0]
    shares["normal_e31"] = [0.0, 0.4, 0.0, 0.3, 0.3, 0.0, 0.0, 0.0]
    found = darts_cells.derive(shares)
    darts_cells.SPACE.validate(found)
    assert [found[f"normal_e3{source}"] for source in range(3)] == ["sep_conv_3x3", "none", "avg_pool_3x3"]
    for kind in darts_cells.KINDS:
        for node in darts_cells.NODES:
            assert sum(found[f"{kind}_e{node}{source}"] != "none" for source in range(node)) == 2


# -- NASNet ------------------------------------------------------------------------------------------------------------


def nasnet(**blocks: Config) -> Config:
    """A config of one or two blocks in both kinds of cell; the operations are identities unless said."""
    plain: Config = {"first": 0, "second": 1, "first_op": "skip_connect", "second_op": "skip_connect", "combine": "add"}
    config: Config = {}
    for kind in nasnet_cells.KINDS:
        config[f"{kind}.count"] = max(len(blocks), 1)
        for i, block in enumerate(blocks.values() or [{}]):
            config |= {f"{kind}.{i}.{name}": value for name, value in {**plain, **block}.items()}
    return nasnet_cells.SPACE.normal(config)


def test_unused_outputs_are_concatenated_and_concatenation_doubles() -> None:
    widths = {
        "both unused": (nasnet(a={}, b={}), 2), "the second reads the first": (nasnet(a={}, b={"second": 2}), 1),
        "concat": (nasnet(a={"combine": "concat"}), 2), "concat is read": (nasnet(a={"combine": "concat"}, b={"first": 2}), 1),
    }
    for what, (config, times) in widths.items():
        net = nasnet_cells.recipe(config, SHAPE, stack=TINY).net
        assert net.features == times * 2 * 4, what  # two reductions
        assert net.apply(net.init(Generator().manual_seed(0)), torch.zeros(2, *SHAPE.x)).shape == (2, net.features)


def test_an_inserted_block_leaves_the_others_reading_what_they_read() -> None:
    rng, seen = np.random.default_rng(3), 0
    for _ in range(1500):
        parent = nasnet_cells.SPACE.sample(rng)
        child, moved = nasnet_cells.mutations(parent, rng)
        nasnet_cells.SPACE.validate(child)
        for kind in nasnet_cells.KINDS:
            if child[f"{kind}.count"] != int(parent[f"{kind}.count"]) + 1:
                continue
            seen += 1
            before, after = (_reads(config, kind) for config in (parent, child))
            new = [i for i in range(len(after)) if f"{kind}.{i}" not in moved and _is_new(kind, i, parent, moved)]
            assert len(new) == 1
            renumber = [number if number < new[0] + 2 else number + 1 for number in range(8)]
            for i, reads in enumerate(before):
                assert after[renumber[i + 2] - 2] == [renumber[number] for number in reads]
    assert seen > 20


def _reads(config: Config, kind: str) -> list[list[int]]:
    return [[int(config[f"{kind}.{i}.{side}"]) for side in nasnet_cells.SIDES] for i in range(int(config[f"{kind}.count"]))]


def _is_new(kind: str, number: int, parent: Config, moved: dict[str, str]) -> bool:
    return f"{kind}.{number}" in moved.values() or f"{kind}.{number}.first" not in parent


# -- the chain ---------------------------------------------------------------------------------------------------------


def chain(*layers: Config) -> Config:
    plain: Config = {"height": 3, "width": 3, "filters": 24, "stride": 1}
    config: Config = {"layer.count": len(layers)}
    for i, layer in enumerate(layers):
        skips = {f"skip_{j}": False for j in range(i)}
        config |= {f"layer.{i}.{name}": value for name, value in {**plain, **skips, **layer}.items()}
    return conv_chain.SPACE.normal(config)


def test_a_layer_reads_what_it_skips_to_or_the_picture_and_what_is_unused_is_concatenated() -> None:
    last: Config = {"filters": 64, "skip_0": True, "skip_1": True}
    config = chain({"filters": 24}, {"filters": 36, "skip_0": True}, {"filters": 48}, last)
    net = conv_chain.recipe(config, SHAPE).net
    params = net.init(Generator().manual_seed(0))
    inputs = [params[f"net/layer.{i}/weight"].shape[1] for i in range(4)]
    assert inputs == [SHAPE.x[0], 24, SHAPE.x[0], 24 + 36]
    assert net.features == 48 + 64
    (drawn,) = conv_chain.graph(config)
    assert {edge.source for edge in drawn.edges if edge.target == "output"} == {"layer 2", "layer 3"}
    assert {edge.source for edge in drawn.edges if edge.target == "layer 3"} == {"layer 0", "layer 1"}
    assert {edge.target for edge in drawn.edges if edge.source == "picture"} == {"layer 0", "layer 2"}
    assert drawn.nodes[3].operation == "conv 3x3, 48, /1"


def test_smaller_maps_are_padded_with_zeros() -> None:
    """Ones of 1x1 after stride 2, and of 2x2: the sum over a concatenation padded below and to the right."""
    big, little = torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 3)
    both = conv_chain._together([big, little])
    assert both.shape == (1, 5, 4, 4)
    assert torch.equal(both[:, :2], big)
    assert torch.equal(both[:, 2:, :2, :3], little)
    assert float(both[:, 2:].sum()) == float(little.sum())


def test_after_an_insertion_every_layer_that_was_there_keeps_its_weights() -> None:
    rng, seen = np.random.default_rng(0), 0
    for _ in range(500):
        parent = chain(*({f"skip_{j}": bool(rng.integers(2)) for j in range(i)} for i in range(int(rng.integers(2, 6)))))
        child, moved = conv_chain.mutations(parent, rng)
        conv_chain.SPACE.validate(child)
        if child["layer.count"] != int(parent["layer.count"]) + 1:
            continue
        seen += 1
        nets = [conv_chain.recipe(config, SHAPE).net for config in (parent, child)]
        old, new = (net.init(Generator().manual_seed(seed)) for seed, net in enumerate(nets))
        kept = [key for key, value in inherit(old, new, moved).items() if not torch.equal(value, new[key])]
        assert len([key for key in kept if key.endswith("weight")]) == parent["layer.count"]
    assert seen > 5


def test_the_controller_decides_skips_of_the_chain_by_anchors() -> None:
    controller = Controller(conv_chain.SPACE)
    assert [path for path, _ in controller.kinds] == [
        "layer.count", "layer.*.height", "layer.*.width", "layer.*.filters", "layer.*.stride",
    ]
    strategy = build("reinforce", conv_chain.SPACE, {}, seed=0)
    found = {digest(proposal.config) for proposal in (strategy.ask() for _ in range(5)) if proposal is not None}
    assert len(found) == 5


def test_a_shape_that_is_no_picture_is_refused() -> None:
    flat = SHAPE._replace(x=(8,))
    for module in (conv_chain, darts_cells, nasnet_cells):
        with pytest.raises(ValueError, match="pictures of shape"):
            module.recipe(module.SPACE.sample(np.random.default_rng(0)), flat)
