"""MHGD beside a classifier: what its first stage trains is what its second one is handed."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch

from densekd import DistillClassifier
from densekd.engine.optim import build_for_distillation
from densekd.errors import ConfigError
from tests.helpers.classifiers import batch, classifier
from tests.helpers.detectors import state, unlike

ADAM = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-2))
PLACES = ['backbone.c2', 'backbone.c3', 'backbone.c4']
# As the docstring of the method has it.
HAND_OVER = ['*.attention.*', '*.trained']


def stage(head: str, **more: Any) -> DistillClassifier:
    torch.manual_seed(0)
    return DistillClassifier(
        student=classifier(),
        teacher=dict(model=classifier(base_channels=8), untrained=True),
        distillers=[
            dict(
                student_module=PLACES,
                teacher_module=PLACES,
                head=dict(type=f'{head}DistillationHead', name='mhgd'),
            )
        ],
        **more,
    )


def step(model: DistillClassifier, seed: int, wrapper: Any) -> dict[str, torch.Tensor]:
    model.train()
    return model.train_step(batch(seed, images=8), wrapper)


def test_the_attention_is_trained_of_the_teacher_and_then_left_alone() -> None:
    first = stage('MHGDEstimator', trainable=['distillers'], task_loss=False)
    before = state(first.student)
    wrapper = build_for_distillation(first, ADAM)
    values = [float(step(first, seed, wrapper)['loss'].detach()) for seed in range(8)]
    assert values[-1] < values[0]
    assert unlike(before, state(first.student)) == []

    weights = first.distillers.state_dict()
    handed = {k: v for k, v in weights.items() if any(fnmatchcase(k, p) for p in HAND_OVER)}
    assert handed and not any('estimators' in name for name in handed)
    second = stage('MHGD')
    with pytest.raises(ConfigError, match='MHGDLoss: no weights are given'):
        step(second, 0, build_for_distillation(second, ADAM))
    second = stage('MHGD')
    second.take_over(handed)
    before = state(second.student)
    wrapper = build_for_distillation(second, ADAM)
    assert float(step(second, 0, wrapper)['distill.loss_backbone_mhgd'].detach()) > 0
    step(second, 1, wrapper)
    own = second.distillers.state_dict()
    assert all(torch.equal(own[name], value) for name, value in handed.items())
    assert unlike(before, state(second.student))
