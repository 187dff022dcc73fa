"""Lists of classes by name, and parts that a student takes over from its teacher."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from densekd.core.columns import Columns
from densekd.errors import ConfigError, ShapeError
from densekd.methods import binary_kl_loss, dkd_loss, kd_loss
from densekd.wrappers.classes import match_classes
from densekd.wrappers.detector import DistillDetector
from tests.helpers.detectors import (
    batch,
    bounded,
    entry,
    faster_rcnn,
    losses_of,
    prepared,
    retinanet,
    train,
)
from tests.wrappers.test_regions import ROI, ear

OWN = ('cat', 'dog', 'traffic light')


def build(
    make: Any, distillers: Any, theirs: Any, own: Any = OWN, width: int = 8, **more: Any
) -> DistillDetector:
    teacher = dict(model=make(width, 24, classes=len(theirs)), untrained=True, classes=theirs)
    return DistillDetector(make(classes=len(own)), teacher, distillers, classes=own, **more)


def test_names_are_compared_and_not_their_spelling() -> None:
    assert match_classes(OWN, ['Cat', 'DOG', 'traffic_light']) is None
    assert match_classes(None, OWN) is None
    found = match_classes(OWN, ['dog', 'horse', 'cat'])
    assert found is not None and found.shared == ('cat', 'dog') and not found.same
    assert 'the 2 classes that both have (cat, dog)' in found.describe()


@pytest.mark.parametrize('columns', ['rows', 'dense'])
def test_columns_are_picked_anchor_by_anchor(columns: str) -> None:
    x = torch.arange(2 * 12.0).reshape(2, 12)
    if columns == 'dense':
        picked = Columns('dense', 3, (2, 0))(x.reshape(2, 12, 1, 1)).flatten(1)
    else:
        picked = Columns('rows', 3, (2, 0))(x)
    expected = x.reshape(2, 4, 3)[:, :, [2, 0]].reshape(2, 8)
    assert torch.equal(picked, expected)


def test_a_teacher_in_another_order_is_read_in_the_students() -> None:
    order = [2, 0, 1]
    theirs = [OWN[i] for i in order]
    model = build(retinanet, [entry('head.cls_logits', 'BinaryKL')], theirs, width=4)
    model = model.eval()
    teacher = model.teachers['teacher'].model
    seen: list[Any] = []
    handle = teacher.bbox_head.register_forward_hook(lambda m, a, out: seen.append(out[0]))
    other, loss = ear('head.cls_logits', ('dense_weights', 'dense_avg_factor'))
    listening = build(retinanet, [other], theirs, width=4).eval()
    listening.student.load_state_dict(model.student.state_dict())
    listening.__dict__['teachers'] = model.teachers
    value = losses_of(model)['distill.loss_head_binarykl_cls_logits']
    losses_of(listening)
    handle.remove()
    back = [theirs.index(name) for name in OWN]
    total = torch.zeros(())
    for s, raw, w in zip(loss.student, seen[0], loss.heard['dense_weights'], strict=True):
        rows = [m.permute(0, 2, 3, 1).reshape(-1, 3) for m in (s, raw)]
        total += binary_kl_loss(
            rows[0], rows[1][:, back], 1.0, w.reshape(-1), loss.heard['dense_avg_factor']
        )
    torch.testing.assert_close(value, total, rtol=1e-4, atol=1e-6)


def test_shared_classes_and_the_background_are_compared() -> None:
    theirs = ['dog', 'horse', 'cow', 'cat']
    ours, loss = ear('roi.cls_logits', ROI)
    model = build(faster_rcnn, [entry('roi.cls_logits', 'KD'), ours], theirs)
    seen: list[Any] = []
    head = model.teachers['teacher'].model.roi_head.bbox_head
    head.register_forward_hook(lambda m, a, out: seen.append(out[0]))
    value = losses_of(model)['distill.loss_head_kd_roi_cls_logits']
    assert loss.student[0].shape == loss.teacher[0].shape == (len(loss.heard['rois']), 3)
    assert torch.equal(loss.teacher[0], seen[-1][:, [3, 0, 4]])
    expected = 0.9 * kd_loss(loss.student[0], loss.teacher[0])
    torch.testing.assert_close(value, expected)


def test_regions_of_a_class_that_the_teacher_lacks_are_no_rows_of_dkd() -> None:
    ours, loss = ear('roi.cls_logits', ROI)
    distillers = [entry('roi.cls_logits', 'DKD', 1.0), ours]
    model = build(faster_rcnn, distillers, ['dog', 'horse', 'cow', 'cat'])
    data = batch(boxes=6)
    for sample in data['data_samples']:
        sample.gt_instances.labels[:] = torch.arange(6) % 3
    value = losses_of(model, data)['distill.loss_head_dkd_roi_cls_logits']
    labels = loss.heard['roi_labels']
    assert labels.unique().tolist() == [0, 1, 2, 3]
    # Cat and dog are the first columns, a traffic light is none, the background is the last.
    among = torch.tensor([0, 1, -1, 2])[labels]
    torch.testing.assert_close(value, dkd_loss(loss.student[0], loss.teacher[0], among))


def test_positives_of_a_class_that_the_teacher_lacks_are_not_bounded() -> None:
    everything = [bounded('roi.bbox_deltas', 'roi', 1.0, margin=1e6)]
    data = batch(boxes=6)
    for sample in data['data_samples']:
        sample.gt_instances.labels[:] = 2  # which no teacher below knows
    model = build(faster_rcnn, everything, ['dog', 'cat'])
    assert losses_of(model, data)['distill.loss_head_bounded_roi'] == 0
    for sample in data['data_samples']:
        sample.gt_instances.labels[:] = 1
    assert losses_of(model, data)['distill.loss_head_bounded_roi'] > 0


def test_features_do_not_care_and_every_method_trains() -> None:
    model = build(
        faster_rcnn,
        [entry('neck.p3', 'PKD'), entry('roi.cls_logits', 'WeightedSoftLabel')],
        ['dog', 'cow', 'cat', 'sheep', 'bird'],
    )
    train(model, 2)
    assert 'columns' not in str(model.student.state_dict().keys())


def test_networks_without_a_common_class_can_not_compare_logits() -> None:
    with pytest.raises(ConfigError, match=r"distillers\[0\].*no class.*cow.*presets 'pkd'"):
        build(retinanet, [entry('head.cls_logits', 'KDQFL')], ['cow', 'sheep'])
    train(build(retinanet, [entry('neck.p3', 'PKD')], ['cow', 'sheep']), 1)


def test_lists_of_another_length_than_the_head_are_refused() -> None:
    with pytest.raises(
        ConfigError, match='3 classes.*2 .*num_classes to 2, or name the 3 classes, in the data'
    ):
        DistillDetector(
            retinanet(),
            dict(model=retinanet(), untrained=True),
            [entry('neck.p3', 'PKD')],
            classes=['cat', 'dog'],
        )
    with pytest.raises(ConfigError, match="teacher 'teacher': its head has 3 classes"):
        DistillDetector(
            retinanet(),
            dict(model=retinanet(), untrained=True, classes=['cat']),
            [entry('neck.p3', 'PKD')],
        )


# Inheritance -------------------------------------------------------------------------------------


def inheriting(**more: Any) -> DistillDetector:
    teacher = dict(model=retinanet(8, 16), untrained=True)
    return DistillDetector(retinanet(), teacher, [entry('neck.p3', 'PKD')], **more)


def test_a_student_starts_with_the_teachers_head_also_after_init_weights() -> None:
    model = inheriting(inherit=['bbox_head'])
    theirs = model.teachers['teacher'].model.state_dict()
    for again in (False, True):
        if again:
            model.init_weights()
        own = model.student.state_dict()
        heads = [key for key in own if key.startswith('bbox_head.')]
        assert heads and all(torch.equal(own[key], theirs[key]) for key in heads)
    other = inheriting()
    assert not torch.equal(
        other.student.bbox_head.retina_cls.weight, model.student.bbox_head.retina_cls.weight
    )
    before = theirs['bbox_head.retina_cls.weight'].clone()
    train(model, 1)
    assert torch.equal(model.teachers['teacher'].model.bbox_head.retina_cls.weight, before)
    assert prepared(model, batch()) is not None


def test_what_is_built_unlike_can_not_be_inherited() -> None:
    with pytest.raises(ShapeError, match=r"inherit: the student's neck\..*Inherit parts"):
        inheriting(inherit='neck')
    with pytest.raises(ConfigError, match="inherit: 'bbx_head' matches nothing.*bbox_head"):
        inheriting(inherit=['bbx_head'])
