"""Every learner, found by listing the folder, against every law."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from metasearch import plugins
from metasearch.testing import learners
from metasearch.testing.learners import Case

# What to build of each name, and what it does not promise; a name that is not here is built without arguments and promises all.
VARIANTS: dict[str, list[Mapping[str, Any]]] = {
    "maml": [
        {"arguments": {"inner_lr": 0.2, "inner_steps": 3}},
        {"arguments": {"inner_lr": 0.2, "inner_steps": 5, "first_order": True}, "exact": False},
    ],
    "fomaml": [{"arguments": {"inner_lr": 0.2, "inner_steps": 3}, "exact": False}],
    "anil": [{"arguments": {"inner_lr": 0.2}}],
    "boil": [{"arguments": {"inner_lr": 0.5, "inner_steps": 3}}],
    "cavia": [  # a few numbers must hold what five classes look like: it learns slowly to read them
        {"arguments": {"inner_lr": 5.0, "context": 20, "inner_steps": 3}, "asked": 0.3, "outer_steps": 80},
        {"arguments": {"inner_lr": 1.0, "context": 20, "by": "film", "inner_steps": 2}, "asked": 0.3, "outer_steps": 150},
    ],
    "meta-sgd": [{"arguments": {"low": 0.05, "high": 0.3}, "symmetric": False}, {"arguments": {"low": 0.2, "high": 0.2}}],
    "maml-pp": [
        {"arguments": {"inner_lr": 0.2, "inner_steps": 3}},
        {"arguments": {"inner_lr": 0.2, "inner_steps": 2, "test_steps": 4, "multi_step": False}},
        {"arguments": {"inner_lr": 0.2, "inner_steps": 2, "first_order": True, "norms_per_step": False}, "exact": False},
    ],
    "reptile": [
        {"arguments": {"inner_lr": 0.01, "test_steps": 20}, "exact": False, "norms": ("none", "layer")},
        {"arguments": {"inner_lr": 0.1, "optimizer": "sgd", "inner_batch": 4, "test_steps": 20}, "exact": False, "sets": False},
    ],
    # without an architecture these are Reptile and MAML; with one: tests/unit/test_learners_metanas.py
    "metanas": [
        {"arguments": {"inner_lr": 0.01, "test_steps": 20}, "exact": False, "norms": ("none", "layer")},
        {
            "arguments": {"inner_lr": 0.1, "optimizer": "sgd", "arch_rows": "half", "inner_batch": 4, "test_steps": 20},
            "exact": False, "sets": False, "asked": None,  # half of the supports of one shot
        },
    ],
    "t-nas": [
        {"arguments": {"inner_lr": 0.2, "inner_steps": 3, "first_order": False, "tune_steps": 2}},
        {"arguments": {"inner_lr": 0.2, "inner_steps": 3, "update": "alternately"}, "exact": False},
    ],
    "maml-rl": [{
        # trajectories are data, so the gradient is no derivative; their order enters no sum, but a walk's rows belong together
        "arguments": {"horizon": 4, "inner_steps": 2}, "exact": False, "sets": False, "norms": ("none", "layer"),
    }],
    "learned-optimizer": [  # the outer loop takes its gradients for constants
        {"arguments": {"inner_steps": 4, "hidden": 8, "test_steps": 6}, "exact": False, "outer_steps": 15},
        {"arguments": {"inner_steps": 3, "core": "rate", "p": None}, "exact": False},
    ],
    "meta-lstm": [  # and here
        {
            "arguments": {"inner_steps": 4, "hidden": 8, "input_bias": -2.0, "forget_bias": 6.0}, "exact": False,
            "outer_steps": 20,
        },
    ],
    "meta-weight-net": [{"arguments": {"inner_lr": 0.4, "inner_steps": 3}, "exact": False}],  # V sees losses without a slope
    "prototypical": [{}, {"arguments": {"distance": "cosine", "scale": 10.0}}],
    "matching": [
        {}, {"arguments": {"distance": "euclid", "scale": 1.0}}, {"arguments": {"logits": "sum", "scale": 1.0}},
        {"arguments": {"embedding": "full-context"}, "sets": False},  # an LSTM reads the supports one after the other
    ],
    "relation": [{"outer_steps": 150}, {"arguments": {"objective": "cross-entropy"}, "outer_steps": 60}],
    "siamese": [{}, {"arguments": {"distance": "l2"}}, {"arguments": {"distance": "cosine"}}],
    "fine-tune": [
        {},
        {"arguments": {"start": "zero", "inner_lr": 0.1, "layer_decay": 0.5, "unfreeze_every": 20, "momentum": 0.9}},
        {"arguments": {"start": "random", "inner_lr": 0.1, "frozen": 1}},
    ],
    "baseline-pp": [{"arguments": {"inner_lr": 0.1}}, {"arguments": {"start": "prototypes"}}],
    "centroid": [{"exact": False}, {"arguments": {"distance": "euclid"}, "exact": False}],  # nothing is learnt: its gradient is 0
    "joint": [{"arguments": {"inner_lr": 0.1, "inner_steps": 20}}],
    # no idea of similarity is built in: these learn slowly, and what they do with labels is learnt for each label
    "black-box": [
        {"arguments": {"hidden": 48}, "sets": False, "symmetric": False, "outer_steps": 500, "asked": 0.3},
        {"arguments": {"aggregate": "mean", "hidden": 64}, "symmetric": False, "outer_steps": 250, "asked": 0.3},
    ],
    # gradients are information without a path back; the key net has a head of its own, which would have to be permuted, too
    "meta-networks": [{
        "arguments": {"chunks": chunks}, "exact": False, "symmetric": False, "sets": chunks == 1, "norms": ("none", "layer"),
        "outer_steps": 15,
    } for chunks in (1, 5)],
    # a sequence has an order; its use of the memory comes after thousands of episodes, too late for a test
    "mann": [{
        "arguments": {"hidden": 20, "slots": 9, "width": 5, "heads": 2, "sharpness": 5.0, "write": write},
        "sets": False, "symmetric": False, "asked": None,
    } for write in ("add", "key")] + [{
        "arguments": {"hidden": 20, "slots": 9, "width": 5, "heads": 2, "sharpness": 5.0, "normed": True},
        "sets": False, "symmetric": False, "asked": None,
    }],
    # a sequence has an order, and its labels are inputs of a network that does not know that they may be permuted
    "snail": [{
        "arguments": {"supports": 6, "keys": (8, 8, 8), "values": (8, 8, 8), "filters": 16}, "sets": False, "symmetric": False,
        "outer_steps": 250,
    }],
}
STEPS = 40  # of training, enough for most of them to do better than chance
CASES = [
    Case(name, **{"outer_steps": STEPS, **variant}) for name in plugins.names("learners") for variant in VARIANTS.get(name, [{}])
]


@pytest.mark.parametrize("law", learners.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case: Case, law: learners.Law) -> None:
    law(case)
