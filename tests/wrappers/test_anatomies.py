"""Detectors beyond the first two: their places, their targets, and what they can't be asked."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.core.anatomy import Anatomy
from densekd.core.trace import trace
from densekd.engine.inspection import fitting_presets, inspect
from densekd.errors import ConfigError, DenseKDError, ShapeError
from densekd.methods import imitation_mask
from densekd.registry import PRESETS
from densekd.wrappers.detector import DistillDetector
from densekd.wrappers.named_taps import detector_forward, detector_taps
from tests.helpers.detectors import (
    DENSE,
    DETECTORS,
    MODELS,
    atss,
    batch,
    bounded,
    cascade_rcnn,
    distilled,
    entry,
    faster_rcnn,
    fcos,
    gfl,
    losses_of,
    mask_rcnn,
    plain,
    prepared,
    retinanet,
    state,
    train,
    unlike,
)
from tests.wrappers.test_regions import DENSE as FIELDS
from tests.wrappers.test_regions import ROI, ear, rows, twin

NEW = [name for name in DETECTORS if name not in MODELS]
new = pytest.mark.parametrize('name', NEW)
FEATURES = [f'backbone.c{i}{end}' for i in range(2, 6) for end in ('', '.pre_relu')]
FEATURES += [f'neck.p{i}' for i in range(2, 6)]
RPN = ['neck.p6', 'rpn.objectness', 'rpn.deltas']
HEADS = {
    'mask_rcnn': [*RPN, 'roi.cls_logits', 'roi.bbox_deltas'],
    'cascade_rcnn': [
        *RPN,
        *(f'roi.s{i}.{x}' for i in (0, 1) for x in ('cls_logits', 'bbox_deltas')),
    ],
    'fcos': ['head.cls_logits', 'head.bbox_deltas', 'head.centerness'],
    'atss': ['head.cls_logits', 'head.bbox_deltas', 'head.centerness'],
    'gfl': ['head.cls_logits', 'head.bbox_dist'],
}
PRESETS_OF = {
    'mask_rcnn': {'chen2017', 'kd'},
    'cascade_rcnn': {'chen2017', 'kd'},
    'fcos': {'binary_kl', 'kd_qfl'},
    'atss': {'binary_kl', 'kd_qfl', 'chen2017'},
    'gfl': {'binary_kl', 'kd_qfl'},
}


def data_of(name: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    return batch(seed, masks=name == 'mask_rcnn', **more)


def teacher(config: dict[str, Any]) -> dict[str, Any]:
    return dict(model=config, untrained=True)


def terms(losses: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in losses.items() if k.startswith('distill.')}


def anatomy(name: str) -> Anatomy:
    model = plain(name)
    taps = detector_taps(model)
    return Anatomy(taps, taps, DistillDetector.kind(None, model))  # type: ignore[arg-type]


# Places -------------------------------------------------------------------------------------------


@new
def test_the_names_and_strides_of_each_detector(name: str) -> None:
    model = plain(name)
    taps = detector_taps(model)
    assert sorted(taps) == sorted([*FEATURES, *HEADS[name]])
    places = trace(model, taps, detector_forward)
    levels = 5 if name in ('mask_rcnn', 'cascade_rcnn') else 4
    for place, found in places.items():
        if place.startswith(('neck.p', 'backbone.c')):
            stride = 2 ** int(place.removesuffix('.pre_relu')[-1])
            assert found.strides == ((stride, stride),), place
        elif place.startswith('roi'):
            assert found.strides == (None,) and found.shapes[0][0] == 3, place
        else:
            assert found.strides == tuple((2.0**i, 2.0**i) for i in range(2, 2 + levels)), place


@new
def test_a_teacher_with_the_students_weights_says_the_same_at_every_place(name: str) -> None:
    places = [p for p in HEADS[name] if not p.startswith('neck')]
    ears = [ear(place, ()) for place in places]
    losses_of(twin(DETECTORS[name](), [distiller for distiller, _ in ears]), data_of(name))
    for place, (_, loss) in zip(places, ears, strict=True):
        assert sum(s.std() for s in loss.student) > 0, place
        torch.testing.assert_close(loss.student, loss.teacher, rtol=1e-4, atol=1e-4)


def test_distances_that_a_teacher_gives_in_other_units_have_no_name() -> None:
    # In strides while a student trains, in pixels from a teacher, which is in eval.
    config = partial(fcos, norm_on_bbox=True)
    model = DistillDetector(config(), teacher(config()), [entry('head.cls_logits', 'KDQFL')])
    assert 'head.bbox_deltas' not in detector_taps(model.student)
    assert 'head.centerness' in detector_taps(model.student)
    assert 'dense_box_targets' not in model.offered()
    assert terms(losses_of(model))['distill.loss_head_kdqfl_cls_logits'] > 0


def test_a_head_is_named_by_what_it_gives_and_not_by_what_it_inherits() -> None:
    model = plain('atss')
    del model.bbox_head.atss_centerness  # its loss is still there, as in TOOD
    model.bbox_head.loss_cls.activated = True  # which has probabilities for outputs, too
    heads = [name for name in detector_taps(model) if name.startswith('head')]
    assert heads == ['head.bbox_deltas']


@new
def test_the_command_line_shows_the_places_and_the_presets(name: str) -> None:
    make = DETECTORS[name]
    found = inspect(dict(model=make(), default_scope='mmdet'))
    shown = {row.name: row.cells(False) for row in found.named['student']}
    assert set(HEADS[name]) <= set(shown)
    if name == 'cascade_rcnn':
        assert shown['roi.s1.cls_logits'][1] == 'roi_head.bbox_head.1 [0]'
    heads = {preset for preset, at, _ in fitting_presets(found) if at == 'head'}
    assert heads & {'binary_kl', 'kd_qfl', 'chen2017', 'kd'} == PRESETS_OF[name]


# Training -----------------------------------------------------------------------------------------


@new
def test_every_preset_that_fits_trains(name: str) -> None:
    found, entries = anatomy(name), {}
    for preset in PRESETS:
        make = PRESETS.get(preset, 'preset')
        for at in getattr(make, 'at', (None,)):
            try:
                given = make(found, at)
            except DenseKDError:
                continue
            # A build with each alone is what a user has; together they are trained in one go.
            entries.update({(preset, at, i): one for i, one in enumerate(given)})
    assert {preset for preset, at, _ in entries if at == 'head'} >= PRESETS_OF[name]
    distillers = [copy.deepcopy(one) for one in entries.values()]
    for number, one in enumerate(distillers):
        one['head'] = dict(one['head'], name=f'{one["head"].get("name", "x")}_{number}')
    model = distilled(name, distillers)
    for seed in (0, 1):
        losses = losses_of(model, data_of(name, seed, images=1))
        assert len(terms(losses)) == len(entries)
        assert all(torch.as_tensor(v).isfinite().all() for v in terms(losses).values())
    train(model, 2, masks=name == 'mask_rcnn', images=1)
    assert all(value.isfinite().all() for value in state(model.student).values())


@new
def test_weight_0_is_plain_training(name: str) -> None:
    def start(weight: float | None) -> nn.Module:
        torch.manual_seed(7)
        model = plain(name) if weight is None else distilled(name, weights=weight)
        model.init_weights()
        return model

    masks = name == 'mask_rcnn'
    bare, model = start(None), start(0.0)
    train(bare, 4, masks=masks)
    after = torch.rand(())
    train(model, 4, masks=masks)
    assert torch.equal(torch.rand(()), after)
    assert unlike(state(bare), state(model)) == []
    taught = start(1.0)
    train(taught, 4, masks=masks)
    assert unlike(state(bare), state(taught))


@new
def test_the_students_terms_are_the_plain_ones(name: str) -> None:
    results = []
    for make in (plain, distilled):
        torch.manual_seed(5)
        model = make(name)
        torch.manual_seed(6)
        results.append(losses_of(model, data_of(name)))
    assert ('loss_mask' in results[0]) == (name == 'mask_rcnn')
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][f'student.{key}'], value, rtol=0, atol=0)


@new
def test_batches_without_boxes_train(name: str) -> None:
    model = distilled(name)
    losses = losses_of(model, data_of(name, boxes=0))
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    assert [n for n, p in model.distillers.named_parameters() if p.grad is None] == []


@new
@pytest.mark.parametrize('fails', [False, True])
def test_nothing_stays_patched_or_hooked(
    name: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = distilled(name)
    if fails:

        def fail(*unused: object, **more: object) -> None:
            raise RuntimeError('the loss failed')

        monkeypatch.setattr(next(iter(model.distillers.values())), 'forward', fail)
        with pytest.raises(RuntimeError, match='the loss failed'):
            losses_of(model, data_of(name))
    else:
        losses_of(model, data_of(name))
    for network in (model.student, model.teachers['teacher'].model):
        for module in network.modules():
            assert not {'get_targets', 'loss_and_target', 'forward'} & set(vars(module))
            assert not module._forward_hooks and not module._forward_pre_hooks


# Cascades -----------------------------------------------------------------------------------------


def test_each_stages_own_losses_can_be_computed_from_its_fields() -> None:
    ears = [ear(f'roi.s{i}.{x}', ROI) for i in (0, 1) for x in ('cls_logits', 'bbox_deltas')]
    losses = losses_of(distilled('cascade_rcnn', [distiller for distiller, _ in ears]))
    for stage, weight in enumerate((1.0, 0.5)):
        logits, deltas = (loss for _, loss in ears[2 * stage : 2 * stage + 2])
        heard = logits.heard
        entropy = weight * F.cross_entropy(logits.student[0], heard['roi_labels'])
        torch.testing.assert_close(losses[f'student.s{stage}.loss_cls'], entropy)
        chosen = deltas.heard['roi_positive']
        assert chosen.any()
        l1 = (deltas.student[0] - deltas.heard['roi_box_targets'])[chosen].abs().sum()
        torch.testing.assert_close(losses[f'student.s{stage}.loss_bbox'], weight * l1 / len(chosen))
    first, second = ears[0][1].heard['rois'], ears[2][1].heard['rois']
    assert first.shape != second.shape or not torch.equal(first, second)


def test_a_teachers_stage_scores_the_regions_of_the_students_same_stage() -> None:
    distillers = [ear(f'roi.s{i}.cls_logits', ROI) for i in (1, 0)]
    model = distilled('cascade_rcnn', [distiller for distiller, _ in distillers])
    network = model.teachers['teacher'].model
    scored: dict[int, list[Tensor]] = {0: [], 1: []}
    for stage, extractor in enumerate(network.roi_head.bbox_roi_extractor):
        extractor.register_forward_pre_hook(lambda m, args, s=stage: scored[s].append(args[1]))
    losses_of(model)
    for stage, (_, loss) in zip((1, 0), distillers, strict=True):
        assert len(scored[stage]) == 1
        assert torch.equal(scored[stage][0], loss.heard['rois'])


def test_a_stage_that_is_not_tapped_is_not_run_in_the_teacher() -> None:
    model = distilled('cascade_rcnn', [entry('roi.s1.cls_logits', 'WeightedSoftLabel')])
    calls: list[int] = []
    for stage, head in enumerate(model.teachers['teacher'].model.roi_head.bbox_head):
        head.register_forward_hook(lambda *_, s=stage: calls.append(s))
    losses_of(model)
    assert calls == [1]


def test_a_cascade_of_fewer_stages_beside_one_of_more_runs_those_it_has() -> None:
    # Two teachers, of which one has a stage that the other has not.
    teachers = [
        dict(name=key, model=cascade_rcnn(stages=count), untrained=True)
        for key, count in (('a', 3), ('b', 2))
    ]
    distillers = [
        entry('roi.s2.cls_logits', 'KD', teacher='a'),
        entry('roi.s1.cls_logits', 'KD', teacher='b'),
    ]
    losses = terms(losses_of(DistillDetector(cascade_rcnn(stages=3), teachers, distillers)))
    assert len(losses) == 2 and all(loss > 0 for loss in losses.values())


def test_places_of_several_stages_meet_in_a_loss_that_asks_for_no_regions() -> None:
    places = ['roi.s0.cls_logits', 'roi.s1.cls_logits']
    model = twin(
        cascade_rcnn(), [dict(student_module=places, head=dict(type='KDDistillationHead'))]
    )
    (loss,) = terms(losses_of(model)).values()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ConfigError, match='it taps 2 of them. Write one distiller for each stage'):
        distilled('cascade_rcnn', [dict(entry(places, 'WeightedSoftLabel'))])
    with pytest.raises(ConfigError, match='it taps none of them'):
        distilled('cascade_rcnn', [ear('neck.p3', ROI)[0]])


def test_the_presets_of_a_cascade_stand_for_every_stage() -> None:
    assert list(distilled('cascade_rcnn', (), preset='chen2017').distillers) == [
        'head_soft_roi_s0',
        'head_bounded_roi_s0',
        'head_soft_roi_s1',
        'head_bounded_roi_s1',
        'head_soft_rpn',
        'head_bounded_rpn',
    ]
    for name in ('kd', 'dkd', 'dist'):
        assert list(distilled('cascade_rcnn', (), preset=name).distillers) == [
            f'head_{name}_s0',
            f'head_{name}_s1',
        ]


@pytest.mark.parametrize('student', ['cascade_rcnn', 'faster_rcnn'])
@pytest.mark.parametrize('both', [True, False])
def test_one_box_head_and_a_cascade_are_refused(student: str, both: bool) -> None:
    places = {'cascade_rcnn': 'roi.s0.cls_logits', 'faster_rcnn': 'roi.cls_logits'}
    other = next(name for name in places if name != student)
    one = entry(places[student], 'WeightedSoftLabel')
    if both:
        one['teacher_module'] = places[other]
    said = ['one box head', 'a cascade of 2 box heads']
    first, second = said if student == 'faster_rcnn' else said[::-1]
    with pytest.raises(ConfigError, match=f'the student has {first} and the teacher {second}'):
        distilled(student, [one], teacher(DETECTORS[other]()))
    # What does not depend on regions goes on.
    model = distilled(student, [entry('neck.p3', 'PKD')], teacher(DETECTORS[other]()))
    assert terms(losses_of(model))['distill.loss_neck_pkd_p3'] > 0


def test_unlike_stages_are_refused() -> None:
    one = entry('roi.s0.cls_logits', 'WeightedSoftLabel', teacher_module='roi.s1.cls_logits')
    with pytest.raises(
        ConfigError, match='is stage 0 of the student and .* stage 1 of the teacher'
    ):
        distilled('cascade_rcnn', [one])
    more = partial(cascade_rcnn, stages=3)
    model = distilled('cascade_rcnn', [entry('roi.s1.cls_logits', 'KD')], teacher(more()))
    assert terms(losses_of(model))['distill.loss_head_kd_roi_s1_cls_logits'].isfinite()


# Dense heads --------------------------------------------------------------------------------------


def focal(logits: Tensor, positive: Tensor) -> Tensor:
    """Returns the focal loss of one class, row by row."""
    p, y = logits.sigmoid(), positive.float()
    weight = y * 0.25 * (1 - p) ** 2 + (1 - y) * 0.75 * p**2
    return weight * F.binary_cross_entropy_with_logits(logits, y, reduction='none')


@pytest.mark.parametrize('make', [fcos, atss, retinanet])
def test_a_focal_loss_can_be_computed_from_the_fields(make: Any) -> None:
    listener, loss = ear('head.cls_logits', FIELDS)
    model = DistillDetector(make(classes=1), teacher(make(classes=1)), [listener])
    losses = losses_of(model, batch(classes=1, size=(70, 64)))
    heard = loss.heard
    weights, positive = (torch.cat(heard[f'dense_{x}'], 1) for x in ('weights', 'positive'))
    assert positive.any() and weights.shape == positive.shape == rows(loss.student, 1).shape[:2]
    total = (focal(rows(loss.student, 1)[..., 0], positive) * weights).sum()
    own = losses['student.loss_cls']
    own = sum(own) if isinstance(own, list) else own
    torch.testing.assert_close(own, total / heard['dense_avg_factor'])


def test_the_quality_focal_loss_is_divided_and_weighted_as_the_fields_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = tuple(field for field in FIELDS if field != 'dense_box_targets')
    listener, loss = ear('head.cls_logits', given)
    model = distilled('gfl', [listener])
    seen: list[Any] = []
    whole = type(model.student.bbox_head.loss_cls).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(model.student.bbox_head.loss_cls), 'forward', forward)
    losses_of(model)
    assert len(seen) == 4
    for ((_, (labels, _)), kwargs), weight, positive in zip(
        seen, loss.heard['dense_weights'], loss.heard['dense_positive'], strict=True
    ):
        assert torch.equal(weight.reshape(-1), kwargs['weight'])
        assert torch.equal(positive.reshape(-1), labels < 3)
        assert loss.heard['dense_avg_factor'] == kwargs['avg_factor']
    with pytest.raises(ConfigError, match="dense_box_targets .* can't supply for this student"):
        distilled('gfl', [ear('head.cls_logits', FIELDS)[0]])


@pytest.mark.parametrize('name', ['fcos', 'atss'])
def test_the_box_targets_are_the_boxes_as_the_head_encodes_them(name: str) -> None:
    listener, loss = ear('head.bbox_deltas', (*FIELDS, 'anchors', 'gt_boxes'))
    model = distilled(name, [listener])
    losses_of(model)
    heard = loss.heard
    coder = model.student.bbox_head.bbox_coder
    matched = 0
    for level, targets in enumerate(heard['dense_box_targets']):
        origins = list(heard['anchors'].values())[level].reshape(-1, 4)
        if name == 'fcos':
            origins = (origins[:, :2] + origins[:, 2:]) / 2
        for image, boxes in enumerate(heard['gt_boxes']):
            chosen = heard['dense_positive'][level][image]
            decoded = coder.decode(origins[chosen], targets[image][chosen])
            matched += len(decoded)
            gaps = (decoded[:, None] - boxes[None]).abs().amax(2)
            assert not len(decoded) or gaps.amin(1).max() < 1e-3
    assert matched


def test_distances_in_pixels_are_no_place_for_the_presets_weight() -> None:
    with pytest.raises(ConfigError, match="preset 'chen2017': DistancePointBBoxCoder encodes"):
        distilled('fcos', (), preset='chen2017')
    model = distilled('fcos', [bounded('head.bbox_deltas', 'dense', 1e-3)])
    assert losses_of(model)['distill.loss_head_bounded_dense'].isfinite()
    with pytest.raises(ConfigError, match='same bbox_coder'):
        distilled('fcos', [bounded('head.bbox_deltas', 'dense')], teacher(atss()))


# FGFI without anchors -----------------------------------------------------------------------------


def test_a_point_stands_for_a_square_box_of_eight_strides() -> None:
    listener, loss = ear('neck.p3', ('anchors', 'anchors_valid', 'gt_boxes'))
    losses_of(distilled('fcos', [listener]), batch(size=(70, 64)))
    anchors, valid = loss.heard['anchors'], loss.heard['anchors_valid']
    assert list(anchors) == [(s, s) for s in (4, 8, 16, 32)]
    for (stride, _), boxes in anchors.items():
        assert boxes.shape == (96 // stride, 64 // stride, 1, 4)
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        assert (boxes[..., 2:] - boxes[..., :2] == 8 * stride).all()
        assert centre[0, 0, 0].tolist() == [stride / 2, stride / 2]
        assert centre[1, 0, 0].tolist() == [stride / 2, 1.5 * stride]
        assert valid[stride, stride].shape == (2, 96 // stride, 64 // stride, 1)
    masks = imitation_mask(list(anchors.values()), loss.heard['gt_boxes'][0])
    assert any(mask.any() for mask in masks) and not all(mask.all() for mask in masks)


# Teachers that don't fit --------------------------------------------------------------------------


def other_anchors(name: str, **generator: Any) -> dict[str, Any]:
    config = DETECTORS[name]()
    head = config['rpn_head' if name.endswith('rcnn') else 'bbox_head']
    head['anchor_generator'] = dict(head['anchor_generator'], **generator)
    return config


@pytest.mark.parametrize(
    ('name', 'config', 'message'),
    [
        (
            'retinanet',
            other_anchors('retinanet', ratios=[0.5, 2.0]),
            "at stride 4 the student's anchors are .* and the teacher's",
        ),
        (
            'retinanet',
            other_anchors('retinanet', strides=[4, 8, 16, 64]),
            'the student has strides 4, 8, 16, 32 and the teacher strides 4, 8, 16, 64',
        ),
        (
            'atss',
            other_anchors('atss', center_offset=0.5),
            r"anchors are 16x16 at \(0, 0\) and the teacher's 16x16 at \(2, 2\)",
        ),
        ('atss', fcos(), 'the student has anchors and the teacher points and no anchors'),
        ('fcos', gfl(), 'the student has points and no anchors and the teacher anchors'),
    ],
)
def test_other_anchors_are_refused_where_rows_are_compared(
    name: str, config: dict[str, Any], message: str
) -> None:
    for loss in ('KDQFL', 'BinaryKL'):
        with pytest.raises(ConfigError, match=message):
            distilled(name, [entry('head.cls_logits', loss)], teacher(config))
    # Features may come from anywhere.
    model = distilled(name, [entry('neck.p3', 'PKD')], teacher(config))
    assert terms(losses_of(model))['distill.loss_neck_pkd_p3'] > 0


def test_other_numbers_of_anchors_are_refused() -> None:
    few = other_anchors('mask_rcnn', ratios=[1.0])
    one = entry('rpn.objectness', 'WeightedSoftObjectness')
    with pytest.raises(ConfigError, match='has 2 anchors a cell and the teacher 1 anchors a cell'):
        distilled('mask_rcnn', [one], teacher(few))


def test_points_elsewhere_in_a_cell_are_refused() -> None:
    network = plain('fcos')
    network.bbox_head.prior_generator.offset = 0.0
    with pytest.raises(ConfigError, match="points are 0.5 strides into a cell, the teacher's 0"):
        distilled('fcos', [entry('head.cls_logits', 'KDQFL')], dict(model=network))


def test_atss_teaches_gfl_since_their_anchors_are_the_same() -> None:
    model = distilled('gfl', [entry('head.cls_logits', 'KDQFL')], teacher(atss()))
    assert terms(losses_of(model))['distill.loss_head_kdqfl_cls_logits'] > 0


def test_another_number_of_levels_is_refused() -> None:
    config = fcos()
    config['neck']['num_outs'] = 5
    config['bbox_head'].update(
        strides=[4, 8, 16, 32, 64],
        regress_ranges=((-1, 16), (16, 24), (24, 48), (48, 96), (96, 1e8)),
    )
    with pytest.raises(ShapeError, match='the student gives 4 tensors .* and the teacher 5'):
        distilled('fcos', [entry('head.cls_logits', 'KDQFL')], teacher(config))


def test_other_strides_are_refused() -> None:
    config = fcos()
    config['neck']['start_level'] = 1
    config['neck']['add_extra_convs'] = 'on_output'
    config['bbox_head']['strides'] = [8, 16, 32, 64]
    with pytest.raises(ShapeError, match="'head.cls_logits' has stride 4 and the .* stride 8"):
        distilled('fcos', [entry('head.cls_logits', 'KDQFL')], teacher(config))


def test_mask_rcnn_and_faster_rcnn_score_regions_for_each_other() -> None:
    for student, config in (('mask_rcnn', faster_rcnn()), ('faster_rcnn', mask_rcnn())):
        model = distilled(student, [entry('roi.cls_logits', 'WeightedSoftLabel')], teacher(config))
        (loss,) = terms(losses_of(model, data_of(student))).values()
        assert loss > 0


def test_the_dense_detectors_are_those_of_the_helpers() -> None:
    assert set(DENSE) == {n for n in DETECTORS if 'head.cls_logits' in detector_taps(plain(n))}
    ready = prepared(plain('mask_rcnn'), data_of('mask_rcnn'))
    assert len(ready['data_samples'][0].gt_instances.masks) == 3
