"""Motifs of motifs: what flattening leaves, and what a mutation touches."""
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator

from metasearch.objectives import Trial
from metasearch.objectives.train import Train
from metasearch.records import Config, Proposal
from metasearch.strategies.large_scale_evolution import simplest
from metasearch.tasks import TaskShape
from metasearch.testing import spaces
from search_spaces import hierarchical_motifs as motifs
from search_spaces.hierarchical_motifs import SPACE, Design, flattened

SHAPE = TaskShape((1, 28, 28), 5, 1, 3)
SMALL = Design(channels=4)


def _mutated(times: int, seed: int) -> Config:
    rng = np.random.default_rng(seed)
    config = simplest(SPACE)
    for _ in range(times):
        config, _ = motifs.mutations(config, rng)
    return config


def _closure(edges: list[tuple[str, str, str]], start: str, forwards: bool) -> set[str]:
    reached, left = {start}, [start]
    while left:
        node = left.pop()
        for source, target, _ in edges:
            here, there = (source, target) if forwards else (target, source)
            if here == node and there not in reached:
                reached.add(there)
                left.append(there)
    return reached


def test_the_space_has_the_published_size() -> None:
    assert SPACE.size == 7**46


def test_evolution_begins_with_a_chain_of_identities() -> None:
    edges = flattened(simplest(SPACE))
    assert {what for _, _, what in edges} == {"identity"}
    assert len(edges) == 4 * 3  # the cell's chain of motifs, each a chain


@pytest.mark.parametrize("seed", range(20))
def test_a_flattened_genotype_is_a_graph_without_cycles_or_dead_ends(seed: int) -> None:
    edges = flattened(_mutated(300, seed))
    nodes = {node for source, target, _ in edges for node in (source, target)}
    if not edges:
        return
    assert nodes == _closure(edges, "in", True) == _closure(edges, "out", False)
    order: list[str] = []
    left = set(nodes)
    while left:  # Kahn: somebody without incoming edges is always left unless there is a cycle
        free = {n for n in left if not any(t == n and s in left for s, t, _ in edges)}
        assert free
        order += sorted(free)
        left -= free
    assert (order[0], order[-1]) == ("in", "out")


def test_the_net_has_one_operation_with_weights_for_each_such_edge_of_the_flattened_cell() -> None:
    for seed in range(5):
        config = _mutated(300, seed)
        params = motifs.recipe(config, SHAPE, design=SMALL).net.init(Generator())
        with_weights = sum(what in ("conv_1x1", "depthwise_3x3", "separable_3x3") for _, _, what in flattened(config))
        ends = ("conv_1x1/weight", "depthwise_conv_3x3/weight", "one_sep_conv_3x3/0/weight")
        assert sum(key.startswith("net/cell.0/") and key.endswith(ends) for key in params) == with_weights


def test_a_chain_of_identities_is_the_identity() -> None:
    net = motifs.recipe(simplest(SPACE), SHAPE, design=SMALL).net
    params = net.init(Generator().manual_seed(0))
    assert not any(key.startswith("net/cell") for key in params)
    assert net.apply(params, torch.randn(2, 1, 28, 28)).shape == (2, 16)


def test_a_mutation_changes_one_entry_and_chooses_the_level_first() -> None:
    """Flat evolution would change the cell in 10 of 46 mutations; here it is half of them (four standard errors: .045)."""
    rng = np.random.default_rng(0)
    config, cells = simplest(SPACE), 0
    for _ in range(2000):
        child, moved = motifs.mutations(config, rng)
        changed = [path for path in config if config[path] != child[path]]
        assert (len(changed), moved, SPACE.problems(child)) == (1, {}, [])
        cells += changed[0].startswith("cell")
        config = child
    assert cells / 2000 == pytest.approx(0.5, abs=0.045)


def test_a_motif_is_used_wherever_it_is_named() -> None:
    config = simplest(SPACE)
    for path in ("cell.0.e10", "cell.0.e21", "cell.0.e32", "cell.0.e43"):
        assert config[path] == "motif0"
    changed = {**config, "motif.0.e10": "conv_1x1"}
    assert sum(what == "conv_1x1" for _, _, what in flattened(changed)) == 4  # one change below, four above


def test_a_cell_without_a_way_through_is_infeasible() -> None:
    config = {**simplest(SPACE), "cell.0.e10": "none"}
    assert flattened(config) == []
    with pytest.raises(ValueError, match="no way leads through"):
        motifs.recipe(config, SHAPE)


def test_motifs_that_nobody_uses_make_no_difference() -> None:
    config = _mutated(100, 0)
    one = motifs.canonical({**simplest(SPACE), "motif.5.e20": "max_3x3"})
    assert one == simplest(SPACE)
    assert flattened(motifs.canonical(config)) == flattened(config)


def test_a_step_of_training_at_published_sizes_gives_a_score() -> None:
    tasks, shape = spaces.KINDS[0].built()
    train = Train(motifs.recipe, tasks, shape, validation_episodes=1, steps=1, meta_batch=1, mode="loop")
    config = {**simplest(SPACE), "motif.0.e10": "separable_3x3"}
    *_, last = train(Proposal(config, seed=0), Trial(0))
    assert last.score is not None
    assert math.isfinite(last.score)


@pytest.mark.parametrize("way", ["prototypical", "maml"])
def test_the_gradient_of_a_vmap_is_that_of_a_loop(way: motifs.Way) -> None:
    """At small sizes; the contract's law at published ones is a slow test."""
    tasks, shape = spaces.KINDS[0].built()
    recipe = motifs.recipe(_mutated(300, 3), shape, design=SMALL, way=way)
    assert spaces._vmap_error(replace(recipe, meta_batch=2), tasks, shape, double=True) < 1e-6
