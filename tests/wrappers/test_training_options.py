"""Ways of training that meet the taps: accumulation, checkpointing, frozen stages and norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densekd.errors import TapError
from densekd.wrappers.detector import DistillDetector
from tests.helpers.detectors import (
    ADAMW,
    MODELS,
    batch,
    distilled,
    entry,
    every_method,
    faster_rcnn,
    losses_of,
    optimiser,
    retinanet,
    state,
    train,
    unlike,
)

both = pytest.mark.parametrize('name', list(MODELS))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        scale = max(gradient.abs().max().item(), 1e-6)
        torch.testing.assert_close(gradient, second[name], rtol=1e-3, atol=1e-4 * scale, msg=name)


# Gradients of several batches -------------------------------------------------------------------


def test_accumulated_gradients_of_regions_are_those_of_the_sum() -> None:
    # Every step has regions of its own, which the teacher scores in that step and no other.
    model = distilled('faster_rcnn')
    model.train()
    parts = []
    for seed in (0, 1):
        model.zero_grad()
        torch.manual_seed(seed)
        total, _ = model.parse_losses(losses_of(model, batch(seed)))
        total.backward()
        parts.append(gradients(model))
    model.zero_grad()
    wrapper = optimiser(model, dict(ADAMW, accumulative_counts=2, clip_grad=None))
    wrapper.initialize_count_status(model, 0, 4)
    kept: dict[str, Tensor] = {}
    step = wrapper.optimizer.step
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def keeping(*args: Any, **more: Any) -> Any:
        kept.update(gradients(model))
        return step(*args, **more)

    wrapper.optimizer.step = keeping
    for seed in (0, 1):
        assert unlike(before, dict(model.named_parameters())) == [], 'only the second one moves'
        torch.manual_seed(seed)
        model.train_step(batch(seed), wrapper)
    moved = unlike(before, dict(model.named_parameters()))
    assert {'roi_head.bbox_head.fc_cls.weight', 'backbone.conv1.weight'} <= set(moved)
    close({n: (parts[0][n] + parts[1][n]) / 2 for n in parts[0]}, kept)


# Activation checkpointing -----------------------------------------------------------------------


@both
def test_a_checkpointed_backbone_learns_the_same(name: str) -> None:
    found = []
    for checkpointed in (False, True):
        config = MODELS[name]()
        config['backbone']['with_cp'] = checkpointed
        torch.manual_seed(5)
        teacher = dict(model=MODELS[name](8, 24), untrained=True)
        model = DistillDetector(config, teacher, every_method(name))
        model.train()
        torch.manual_seed(6)
        losses = losses_of(model)
        total, _ = model.parse_losses(losses)
        torch.manual_seed(7)
        total.backward()  # which runs the blocks again, and no tap with them
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.student.modules())
        values = {k: v.item() for k, v in losses.items() if k.startswith('distill.')}
        found.append((values, gradients(model), torch.rand(())))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    close(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2]), 'running a block again draws nothing'


# Frozen stages and frozen norms -----------------------------------------------------------------

FROZEN_NORMS = dict(norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True)


@pytest.mark.parametrize(
    ('stages', 'frozen', 'free'), [(0, [], ['c2']), (1, ['c2'], ['c3']), (2, ['c2', 'c3'], ['c4'])]
)
def test_ofd_in_a_frozen_stage_is_refused_and_behind_it_teaches(
    stages: int, frozen: list[str], free: list[str]
) -> None:
    config = retinanet(frozen_stages=stages, **FROZEN_NORMS)
    teacher = dict(model=retinanet(8, **FROZEN_NORMS), untrained=True)
    for stage in frozen:
        model = DistillDetector(config, teacher, [entry(f'backbone.{stage}.pre_relu', 'OFD')])
        model.train()
        with pytest.raises(TapError, match=f"'backbone.{stage}.pre_relu': no gradient reaches the"):
            losses_of(model)
    for stage in free:
        model = DistillDetector(
            config, teacher, [entry(f'backbone.{stage}.pre_relu', 'OFD')], task_loss=False
        )
        model.train()
        total, _ = model.parse_losses(losses_of(model))
        total.backward()
        reached = gradients(model)
        layer = f'backbone.layer{int(stage[1]) - 1}.'
        assert reached[f'{layer}1.conv2.weight'].abs().sum() > 0
        still = tuple(f'backbone.layer{i + 1}.' for i in range(stages))
        assert not any(name.startswith(still or ('none',)) for name in reached)


def test_the_preset_leaves_frozen_stages_out() -> None:
    teacher = dict(model=retinanet(8, **FROZEN_NORMS), untrained=True)
    student = retinanet(frozen_stages=2, **FROZEN_NORMS)
    model = DistillDetector(student, teacher, preset='ofd')
    assert list(model.distillers) == ['backbone_ofd_c4', 'backbone_ofd_c5']
    before = state(model.student)
    train(model, 1)
    moved = unlike(before, state(model.student))
    assert not any(
        n.startswith(('backbone.conv1', 'backbone.layer1', 'backbone.bn')) for n in moved
    )
    assert not any('bn' in n or 'running' in n for n in moved), 'frozen norms stay as they are'
    assert 'backbone.layer3.0.conv1.weight' in moved


def test_a_place_before_all_that_is_trained_is_refused() -> None:
    for place, method in (('backbone.c5.pre_relu', 'OFD'), ('neck.p3', 'PKD')):
        model = distilled(
            'faster_rcnn', [entry(place, method)], trainable=['rpn_head', 'roi_head', 'distillers']
        )
        model.train()
        with pytest.raises(TapError, match=f"tap '{place}': no gradient reaches the student"):
            losses_of(model)
    model = distilled(
        'faster_rcnn',
        [entry('roi.cls_logits', 'WeightedSoftLabel')],
        trainable=['roi_head', 'distillers'],
    )
    before = state(model)
    train(model, 1)
    assert all(name.startswith('roi_head.') for name in unlike(before, state(model)))


def test_a_frozen_backbone_beside_every_head_trains() -> None:
    config = faster_rcnn()
    config['backbone'].update(frozen_stages=4, **FROZEN_NORMS)
    heads = [d for d in every_method('faster_rcnn') if 'backbone' not in str(d['student_module'])]
    model = DistillDetector(config, dict(model=faster_rcnn(8, 24), untrained=True), heads)
    before = state(model)
    train(model, 2)
    moved = unlike(before, state(model))
    assert moved and not any(name.startswith('backbone.') for name in moved)
