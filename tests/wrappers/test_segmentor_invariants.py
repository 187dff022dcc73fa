"""What always holds, on DeepLabV3+ with each kind of distiller that its configs have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from densekd.core.checkpoint import weights_hash
from densekd.wrappers.build import build_network
from densekd.wrappers.segmentor import DistillSegmentor
from tests.helpers.detectors import ADAMW, SGD, losses_of, optimiser, state, train_on, unlike
from tests.helpers.segmentors import batch, deeplabv3plus

METHODS: dict[str, dict[str, Any]] = {
    'ofd-backbone': dict(preset='ofd', at='backbone'),
    'ofd-head': dict(preset='ofd', at='head'),
    'cwd': dict(preset='cwd'),
    'kd': dict(preset='kd'),
}
each = pytest.mark.parametrize('method', list(METHODS))
both = pytest.mark.parametrize('config', [ADAMW, SGD], ids=['adamw', 'sgd'])
STEPS = 20


def plain() -> nn.Module:
    torch.manual_seed(7)
    return build_network(deeplabv3plus(), 'mmseg', 'student')


def distilled(method: str, weight: float | None = None) -> DistillSegmentor:
    """Returns a student past the epoch that OFD's connectors have alone."""
    torch.manual_seed(7)
    teacher = dict(model=deeplabv3plus(8, 24), untrained=True)
    model = DistillSegmentor(deeplabv3plus(), teacher, **METHODS[method])
    model.set_clock(iteration=100, epoch=2)
    for distiller in model.distillers.values() if weight is not None else ():
        distiller.head.loss.loss_weight = weight
    return model


def teacher_of(model: DistillSegmentor) -> nn.Module:
    return model.teachers['teacher'].model


def addresses(tensors: Any) -> set[int]:
    return {t.data_ptr() for t in tensors if t.numel()}


@each
@both
def test_steps_at_weight_0_are_plain_training(method: str, config: dict) -> None:
    alone, beside, taught = plain(), distilled(method, 0.0), distilled(method, 1e-2)
    for model in (alone, beside, taught):
        train_on(model, (batch(seed) for seed in range(STEPS)), config)
    assert unlike(state(alone), state(beside.student)) == []
    assert unlike(state(alone), state(taught.student))


@each
def test_the_teacher_never_changes(method: str) -> None:
    model = distilled(method)
    before = weights_hash(teacher_of(model))
    train_on(model, (batch(seed) for seed in range(3)))
    model.eval().train()
    assert weights_hash(teacher_of(model)) == before
    assert not [name for name, module in teacher_of(model).named_modules() if module.training]
    assert all(p.grad is None and not p.requires_grad for p in teacher_of(model).parameters())


@each
def test_nothing_that_walks_the_model_meets_the_teacher(method: str) -> None:
    model = distilled(method)
    theirs = addresses(teacher_of(model).state_dict().values())
    groups = optimiser(model, ADAMW).optimizer.param_groups
    average = ExponentialMovingAverage(model)
    assert theirs
    for walked in (
        model.state_dict().values(),
        [*model.parameters(), *model.buffers()],
        [p for group in groups for p in group['params']],
        [*average.parameters(), *average.buffers()],
    ):
        assert not theirs & addresses(walked)
    assert not {*map(id, teacher_of(model).modules())} & {*map(id, model.modules())}
    assert average.module.teachers['teacher'] is model.teachers['teacher']


@each
@both
def test_each_added_parameter_is_in_one_group_and_moves(method: str, config: dict) -> None:
    model = distilled(method)
    before = {k: p.detach().clone() for k, p in model.distillers.named_parameters()}
    assert bool(before) == method.startswith('ofd')
    wrapper = train_on(model, [batch()], config)
    groups = [[id(p) for p in group['params']] for group in wrapper.optimizer.param_groups]
    for key, parameter in model.distillers.named_parameters():
        assert sum(group.count(id(parameter)) for group in groups) == 1, key
        assert not torch.equal(parameter, before[key]), key


@each
def test_the_state_dict_is_the_plain_students(method: str) -> None:
    model, bare = distilled(method), plain()
    train_on(model, [batch()])
    assert list(model.state_dict()) == list(bare.state_dict())
    bare.load_state_dict(model.state_dict(), strict=True)
    assert unlike(state(model.student), state(bare)) == []
    assert model.state_dict()._metadata == bare.state_dict()._metadata
    keys = [list(ExponentialMovingAverage(m).state_dict()) for m in (model, plain())]
    assert keys[0] == keys[1]


@each
def test_the_teachers_loss_path_is_never_called(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = distilled(method)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError('the teacher was asked for losses')

    for part in teacher_of(model).modules():
        for name in ('loss', 'loss_by_feat', 'predict', 'predict_by_feat'):
            if hasattr(part, name):
                monkeypatch.setattr(part, name, refuse)
    assert any(k.startswith('distill.') for k in losses_of(model, batch()))
