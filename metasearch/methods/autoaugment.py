"""AutoAugment: an LSTM controller proposes augmentation policies, and learns from the scores of what was trained on them.

Cubuk, Zoph, Mané, Vasudevan, Le. "AutoAugment: Learning Augmentation Policies from Data." CVPR 2019.
https://arxiv.org/abs/1805.09501: the controller and PPO of NASNet (strategies/ppo.py), whose settings are its own, on about
15,000 policies. Every trial trains under one policy; its score is on pictures that nobody augments. What the paper uses in the
end are the best five policies side by side: `metasearch.policies.joined`.
"""
from __future__ import annotations

from dataclasses import asdict

from metasearch.methods import Study, augmented
from metasearch.objectives import Objective
from metasearch.strategies import Strategy, build
from metasearch.strategies.ppo import Ppo

Hyperparameters = Ppo.Hyperparameters  # lr 3.5e-4, entropy 1e-5, decay .95, one layer of 100, init .1: as published


def method(study: Study) -> tuple[Strategy, Objective]:
    given = Hyperparameters(**study.method.arguments)
    train = study.training()
    augmented(study, train)
    return build("ppo", study.space(), asdict(given), seed=study.seed), train
