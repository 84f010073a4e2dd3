"""Image operations on batches of tensors, policies that are made of them, and the places of an episode at which they act.

    policy = metasearch.augment.load("policy.json")           # what a search found, exported as JSON
    augmented = policy(images, generator)                      # [n, C, H, W], uint8 or float in 0..1, on any device

An operation is a function of (images, magnitude, noise) (ops.py), with ranges by name (ranges.py). A policy is a frozen value
that draws a Plan (plan.py, policy.py): SubPolicies of Steps, RandAugment, TrivialAugment, Shuffled (PBA), a Schedule of them.
Places (places.py) says where they act, and is what a Recipe's `augment` takes.
"""
from __future__ import annotations

from metasearch.augment.ops import OPERATIONS, Operation, find
from metasearch.augment.places import PLACES, Places, at_place
from metasearch.augment.plan import Plan, carry_out
from metasearch.augment.policy import (
    Policy,
    RandAugment,
    Schedule,
    Shared,
    Shuffled,
    Step,
    SubPolicies,
    TrivialAugment,
    UniformAugment,
    fixed,
)
from metasearch.augment.saved import content_hash, keep, load, load_places, named, save

__all__ = [
    "OPERATIONS", "PLACES", "Operation", "Places", "Plan", "Policy", "RandAugment", "Schedule", "Shared", "Shuffled", "Step",
    "SubPolicies", "TrivialAugment", "UniformAugment", "at_place", "carry_out", "content_hash", "find", "fixed", "keep",
    "load", "load_places", "named", "save",
]
