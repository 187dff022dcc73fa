"""How far a teacher is run: to its deepest tap, whatever part of the detector that is in."""

from __future__ import annotations

import pytest

from tests.helpers.detectors import batch, distilled, entry, losses_of
from tests.wrappers.test_invariants import Calls, teacher_of

# A detector, where it is tapped, by which method, the module that holds the place, and what lies
# beyond it. The losses that a head keeps are modules too.
CASES = [
    (
        'retinanet',
        'backbone.c3',
        'FitNet',
        'backbone.layer2',
        ('backbone.layer3', 'backbone.layer4', 'neck', 'bbox_head'),
    ),
    (
        'faster_rcnn',
        'backbone.c4.pre_relu',
        'OFD',
        'backbone.layer3.1.conv2',
        ('backbone.layer4', 'neck', 'rpn_head', 'roi_head'),
    ),
    ('gfl', 'neck.p3', 'PKD', 'neck', ('bbox_head',)),
    ('faster_rcnn', 'neck.p3', 'PKD', 'neck', ('rpn_head', 'roi_head')),
    (
        'faster_rcnn',
        'rpn.objectness',
        'WeightedSoftObjectness',
        'rpn_head',
        ('roi_head', 'rpn_head.loss'),
    ),
    (
        'faster_rcnn',
        'roi.cls_logits',
        'WeightedSoftLabel',
        'roi_head.bbox_head',
        ('rpn_head', 'roi_head.bbox_head.loss'),
    ),
    (
        'mask_rcnn',
        'roi.cls_logits',
        'WeightedSoftLabel',
        'roi_head.bbox_head',
        ('rpn_head', 'roi_head.mask'),
    ),
    (
        'cascade_rcnn',
        'roi.s0.cls_logits',
        'WeightedSoftLabel',
        'roi_head.bbox_head.0',
        ('rpn_head', 'roi_head.bbox_head.1', 'roi_head.bbox_roi_extractor.1'),
    ),
    ('retinanet', 'head.cls_logits', 'KDQFL', 'bbox_head', ('bbox_head.loss',)),
    ('gfl', 'head.cls_logits', 'BinaryKL', 'bbox_head', ('bbox_head.loss', 'bbox_head.integral')),
]


@pytest.mark.parametrize(
    ('name', 'place', 'method', 'holder', 'beyond'),
    CASES,
    ids=[f'{case[0]}-{case[1]}' for case in CASES],
)
def test_what_is_beyond_the_deepest_tap_is_called_zero_times(
    name: str, place: str, method: str, holder: str, beyond: tuple[str, ...]
) -> None:
    model = distilled(name, [entry(place, method)])
    calls = Calls(teacher_of(model))
    paths = list(calls.counts)
    assert all(any(path.startswith(one) for path in paths) for one in beyond), 'they are there'
    masks = name == 'mask_rcnn'
    losses_of(model, batch(masks=masks))
    # Only the first pass, which counts how often each place runs, ends a whole part later.
    assert calls.under(*(one for one in beyond if not one.startswith('backbone.'))) == 0
    assert calls.counts[holder] == 1
    calls.counts = dict.fromkeys(calls.counts, 0)
    for seed in (1, 2, 3):
        losses_of(model, batch(seed, masks=masks))
    assert {path: n for path, n in calls.counts.items() if n and path.startswith(beyond)} == {}
    # A module whose hook ends the pass, or whose child's does, does not come to its own end.
    assert calls.under(holder) > 0


def test_several_taps_run_a_teacher_to_the_deepest_and_once() -> None:
    model = distilled(
        'faster_rcnn',
        [entry('backbone.c3', 'FitNet'), entry('rpn.objectness', 'WeightedSoftObjectness')],
    )
    calls = Calls(teacher_of(model))
    for seed in (0, 1):
        losses_of(model, batch(seed))
    assert calls.counts['backbone.conv1'] == calls.counts['backbone.layer4'] == 2
    assert calls.counts['neck'] == 2 and calls.under('roi_head') == 0
    assert calls.counts['rpn_head.rpn_cls'] == 2 * 5
