"""Box heads and RPNs beside their teachers: the same regions, the student's own targets."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.errors import ConfigError, ShapeError
from densekd.methods import bounded_regression_loss
from densekd.wrappers.build import build_network
from densekd.wrappers.detector import DistillDetector
from tests.helpers.detectors import (
    batch,
    bounded,
    distilled,
    entry,
    faster_rcnn,
    losses_of,
    plain,
    prepared,
    retinanet,
    train,
)

ROI = ('rois', 'roi_labels', 'roi_positive', 'roi_box_targets')
RPN = ('rpn_weights', 'rpn_avg_factor', 'rpn_positive', 'rpn_box_targets')
DENSE = ('dense_weights', 'dense_avg_factor', 'dense_positive', 'dense_box_targets')


class Listening(DistillLoss):
    """Keeps what it was given."""

    pairs = False

    def __init__(self, needs: tuple[str, ...]) -> None:
        super().__init__()
        self.needs = needs  # type: ignore[misc]

    def compute(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        self.heard = {need: getattr(batch, need) for need in self.needs}
        self.student, self.teacher = student, teacher
        return sum(s.sum() for s in student) * 0


def ear(place: str, needs: tuple[str, ...]) -> tuple[dict[str, Any], Listening]:
    loss = Listening(needs)
    name = place.replace('.', '_')
    return dict(student_module=place, head=DistillationHead(loss=loss, name=name)), loss


def twin(config: dict[str, Any], distillers: Any) -> DistillDetector:
    """Returns a student in eval mode beside a teacher with the same weights."""
    teacher = dict(model=copy.deepcopy(config), untrained=True, fuse=False)
    model = DistillDetector(config, teacher, distillers).eval()
    model.teachers['teacher'].model.load_state_dict(model.student.state_dict())
    return model


def rows(maps: Any, columns: int) -> Tensor:
    """Returns maps of a value an anchor as rows, in the order of mmdet's targets."""
    return torch.cat([m.permute(0, 2, 3, 1).reshape(len(m), -1, columns) for m in maps], 1)


# The fields are the student's own -----------------------------------------------------------------


def test_the_box_heads_own_losses_can_be_computed_from_the_fields() -> None:
    soft, logits = ear('roi.cls_logits', ROI)
    boxes, deltas = ear('roi.bbox_deltas', ROI)
    losses = losses_of(distilled('faster_rcnn', [soft, boxes]))
    heard = logits.heard
    entropy = F.cross_entropy(logits.student[0], heard['roi_labels'])
    torch.testing.assert_close(losses['student.loss_cls'], entropy)
    chosen, labels = heard['roi_positive'], heard['roi_labels']
    assert chosen.any() and not chosen.all()
    picked = deltas.student[0].reshape(len(labels), -1, 4)[chosen, labels[chosen]]
    l1 = (picked - heard['roi_box_targets'][chosen]).abs().sum() / len(labels)
    torch.testing.assert_close(losses['student.loss_bbox'], l1)


def test_the_rpns_own_losses_can_be_computed_from_the_fields() -> None:
    soft, logits = ear('rpn.objectness', RPN)
    boxes, deltas = ear('rpn.deltas', RPN)
    losses = losses_of(distilled('faster_rcnn', [soft, boxes]))
    heard = logits.heard
    weights, positive = torch.cat(heard['rpn_weights'], 1), torch.cat(heard['rpn_positive'], 1)
    z = rows(logits.student, 1)[..., 0]
    entropy = F.binary_cross_entropy_with_logits(z, positive.float(), reduction='none')
    total = (entropy * weights).sum() / heard['rpn_avg_factor']
    torch.testing.assert_close(sum(losses['student.loss_rpn_cls']), total)
    targets = torch.cat(heard['rpn_box_targets'], 1)
    assert positive.any()
    l1 = (rows(deltas.student, 4) - targets)[positive].abs().sum() / heard['rpn_avg_factor']
    torch.testing.assert_close(sum(losses['student.loss_rpn_bbox']), l1)


def test_the_dense_heads_regression_can_be_computed_from_the_fields() -> None:
    boxes, deltas = ear('head.bbox_deltas', DENSE)
    losses = losses_of(distilled('retinanet', [boxes]))
    heard = deltas.heard
    positive = torch.cat(heard['dense_positive'], 1)
    targets = torch.cat(heard['dense_box_targets'], 1)
    assert positive.any()
    l1 = (rows(deltas.student, 4) - targets)[positive].abs().sum() / heard['dense_avg_factor']
    torch.testing.assert_close(sum(losses['student.loss_bbox']), l1)


# The teacher scores what the student has sampled -------------------------------------------------


def test_a_teacher_with_the_students_weights_says_the_same_of_each_region() -> None:
    places = ['roi.cls_logits', 'roi.bbox_deltas', 'rpn.objectness', 'rpn.deltas']
    ears = [ear(place, ROI if place.startswith('roi') else RPN) for place in places]
    model = twin(faster_rcnn(), [distiller for distiller, _ in ears])
    losses_of(model)
    for _, loss in ears:
        assert sum(s.std() for s in loss.student) > 0
        torch.testing.assert_close(loss.student, loss.teacher, rtol=1e-4, atol=1e-5)


def test_the_teachers_box_head_runs_once_and_its_rpn_not_at_all() -> None:
    model = distilled('faster_rcnn', [entry('roi.cls_logits', 'WeightedSoftLabel')])
    teacher = model.teachers['teacher'].model
    calls: list[str] = []
    teacher.rpn_head.register_forward_hook(lambda *_: calls.append('rpn'))
    teacher.roi_head.bbox_head.register_forward_hook(lambda *_: calls.append('roi'))
    losses_of(model)
    assert calls == ['roi']


def test_a_teacher_in_bfloat16_scores_regions() -> None:
    teacher = dict(model=faster_rcnn(8, 24), untrained=True, precision='bf16')
    model = distilled('faster_rcnn', [entry('roi.cls_logits', 'WeightedSoftLabel')], teacher)
    (loss,) = [v for k, v in losses_of(model).items() if k.startswith('distill.')]
    assert loss.isfinite() and loss > 0


def test_what_makes_a_teacher_faster_does_not_change_what_it_says_of_regions() -> None:
    """Its convolutions are fast on another memory layout, which mmcv's RoIAlign can't read."""
    network = build_network(faster_rcnn(8, 24), 'mmdet', 'teacher').eval()
    untouched = copy.deepcopy(network)
    (box, hear_box), (rpn, hear_rpn) = ear('roi.cls_logits', ROI), ear('rpn.objectness', RPN)
    model = distilled('faster_rcnn', [box, rpn], dict(model=network, untrained=True))
    losses_of(model)
    assert model.teachers['teacher'].channels_last
    with torch.no_grad():
        maps = untouched.extract_feat(prepared(model, batch())['inputs'])
        said = untouched.roi_head._bbox_forward(maps, hear_box.heard['rois'])['cls_score']
        objectness, _ = untouched.rpn_head(maps)
    torch.testing.assert_close(hear_box.teacher[0], said, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hear_rpn.teacher, list(objectness), rtol=1e-4, atol=1e-5)


def test_soft_labels_of_one_teacher_or_plain_kd_read_the_same_rows() -> None:
    model = twin(faster_rcnn(), [entry('roi.cls_logits', 'KD')])
    (loss,) = [v for k, v in losses_of(model).items() if k.startswith('distill.')]
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_batches_without_boxes_give_no_regression_and_a_finite_step() -> None:
    model = distilled('faster_rcnn')
    losses = losses_of(model, batch(boxes=0))
    assert losses['distill.loss_head_bounded_roi'] == 0
    assert all(torch.as_tensor(v).isfinite().all() for k, v in losses.items() if 'distill' in k)
    train(model, 2, boxes=0)


# A permutation of regions -------------------------------------------------------------------------

POSITIVE = ('inds', 'priors', 'is_gt', 'assigned_gt_inds', 'gt_labels', 'gt_bboxes')


def shuffle_samples(sampler: Any) -> list[tuple[Tensor, Tensor]]:
    """Makes a sampler hand out the same samples in another order, which it notes by image."""
    orders: list[tuple[Tensor, Tensor]] = []
    sample = sampler.sample

    def shuffled(*args: Any, **more: Any) -> Any:
        result = sample(*args, **more)
        generator = torch.Generator().manual_seed(len(orders))
        order = tuple(
            torch.randperm(len(inds), generator=generator)
            for inds in (result.pos_inds, result.neg_inds)
        )
        for key in POSITIVE:
            setattr(result, f'pos_{key}', getattr(result, f'pos_{key}')[order[0]])
        for key in ('inds', 'priors'):
            setattr(result, f'neg_{key}', getattr(result, f'neg_{key}')[order[1]])
        orders.append(order)
        return result

    sampler.sample = shuffled
    return orders


def test_a_permutation_of_the_regions_permutes_the_rows_of_both() -> None:
    places = ['roi.cls_logits', 'roi.bbox_deltas']
    ears = [ear(place, ROI) for place in places]
    terms = [entry(places[0], 'WeightedSoftLabel', 1.0), bounded(places[1], 'roi', 1.0)]
    model = distilled('faster_rcnn', [*(distiller for distiller, _ in ears), *terms])
    torch.manual_seed(3)
    first = losses_of(model)
    before = [(loss.student[0], loss.teacher[0], loss.heard) for _, loss in ears]
    orders = shuffle_samples(model.student.roi_head.bbox_sampler)
    torch.manual_seed(3)
    second = losses_of(model)

    rows, order = 0, []
    for positive, negative in orders:
        order += [rows + positive, rows + len(positive) + negative]
        rows += len(positive) + len(negative)
    moved = torch.cat(order)
    assert len(orders) == 2 and (moved != torch.arange(rows)).sum() > rows / 2
    for (student, teacher, heard), (_, loss) in zip(before, ears, strict=True):
        for key in ROI:
            torch.testing.assert_close(loss.heard[key], heard[key][moved], rtol=0, atol=0)
        # Up to the order in which a product of matrices is summed.
        torch.testing.assert_close(loss.student[0], student[moved])
        torch.testing.assert_close(loss.teacher[0], teacher[moved])
        assert not torch.allclose(loss.teacher[0], teacher)
    for key in first:
        torch.testing.assert_close(second[key], first[key], msg=key)


# Terms, computed anew from the two networks -------------------------------------------------------


def test_the_terms_of_box_head_and_rpn_can_be_computed_without_the_wrapper() -> None:
    box, hear_box = ear('roi.cls_logits', ROI)
    rpn, hear_rpn = ear('rpn.objectness', RPN)
    terms = [
        entry('roi.cls_logits', 'WeightedSoftLabel', 0.5),
        bounded('roi.bbox_deltas', 'roi', 0.3),
        entry('rpn.objectness', 'WeightedSoftObjectness', 0.7),
        bounded('rpn.deltas', 'rpn', 0.2),
    ]
    teacher = build_network(faster_rcnn(8, 24), 'mmdet', 'teacher').eval()
    untouched = copy.deepcopy(teacher)  # the other one is made faster
    model = distilled('faster_rcnn', [box, rpn, *terms], dict(model=teacher, untrained=True))
    losses = losses_of(model)
    images = prepared(model, batch())['inputs']
    roi, anchors = hear_box.heard, hear_rpn.heard
    labels, chosen = roi['roi_labels'], roi['roi_positive']
    outputs = []
    with torch.no_grad():
        for network in (model.student, untouched):
            maps = network.extract_feat(images)
            objectness, deltas = network.rpn_head(maps)
            found = network.roi_head._bbox_forward(maps, roi['rois'])
            outputs.append(
                (
                    found['cls_score'],
                    found['bbox_pred'].reshape(len(labels), -1, 4)[chosen, labels[chosen]],
                    rows(objectness, 1)[..., 0],
                    rows(deltas, 4),
                )
            )
    (own_logits, own_boxes, own_yes, own_deltas), (logits, boxes, yes, deltas) = outputs

    weights = torch.tensor([1.0, 1.0, 1.0, 1.5])
    soft = -(weights * logits.softmax(1) * own_logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(
        losses['distill.loss_head_weightedsoftlabel_roi_cls_logits'], 0.5 * soft
    )

    def bound(own: Tensor, other: Tensor, target: Tensor, count: Any) -> Tensor:
        mine, theirs = ((x - target).square().sum(-1) for x in (own, other))
        return (mine * (mine > theirs)).sum() / count

    loss = bound(own_boxes, boxes, roi['roi_box_targets'][chosen], len(labels))
    torch.testing.assert_close(losses['distill.loss_head_bounded_roi'], 0.3 * loss)

    sampled = torch.cat(anchors['rpn_weights'], 1) > 0
    p, q = yes[sampled].sigmoid(), own_yes[sampled].sigmoid()
    soft = -(p * q.log() + 1.5 * (1 - p) * (1 - q).log()).mean()
    name = 'distill.loss_head_weightedsoftobjectness_rpn_objectness'
    torch.testing.assert_close(losses[name], 0.7 * soft)

    met = torch.cat(anchors['rpn_positive'], 1)
    targets = torch.cat(anchors['rpn_box_targets'], 1)
    loss = bound(own_deltas[met], deltas[met], targets[met], anchors['rpn_avg_factor'])
    torch.testing.assert_close(losses['distill.loss_head_bounded_rpn'], 0.2 * loss)
    assert chosen.any() and met.any()


# Boxes that are encoded differently --------------------------------------------------------------


def test_a_teacher_with_other_deviations_is_encoded_as_the_student_is() -> None:
    config = faster_rcnn()
    other = faster_rcnn()
    coder = dict(config['roi_head']['bbox_head']['bbox_coder'])
    coder.update(target_means=[0.1, 0.0, -0.1, 0.2], target_stds=[0.2, 0.1, 0.4, 0.5])
    other['roi_head']['bbox_head']['bbox_coder'] = coder
    listener, heard = ear('roi.bbox_deltas', ROI)
    model = DistillDetector(
        config,
        dict(model=other, untrained=True),
        [bounded('roi.bbox_deltas', 'roi', 1.0, margin=0.0), listener],
    )
    losses = losses_of(model)
    fields, labels = heard.heard, heard.heard['roi_labels']
    chosen = fields['roi_positive']
    student, teacher = (
        x[0].reshape(len(labels), -1, 4)[chosen, labels[chosen]]
        for x in (heard.student, heard.teacher)
    )
    origins = fields['rois'][chosen, 1:]
    decoded = model.teachers['teacher'].model.roi_head.bbox_head.bbox_coder.decode(origins, teacher)
    encoded = model.student.roi_head.bbox_head.bbox_coder.encode(origins, decoded)
    expected = bounded_regression_loss(
        student, encoded, fields['roi_box_targets'][chosen], avg_factor=len(labels)
    )
    torch.testing.assert_close(losses['distill.loss_head_bounded_roi'], expected)


def test_a_coder_of_another_kind_is_refused_when_the_model_is_built() -> None:
    other = retinanet()
    other['bbox_head']['bbox_coder'] = dict(type='TBLRBBoxCoder', normalizer=4.0)
    with pytest.raises(ConfigError, match=r'TBLRBBoxCoder.*same bbox_coder'):
        DistillDetector(
            retinanet(),
            dict(model=other, untrained=True),
            [bounded('head.bbox_deltas', 'dense')],
        )


@pytest.mark.parametrize('head', ['roi', 'dense', 'rpn'])
def test_targets_that_are_kept_as_boxes_are_encoded(head: str) -> None:
    config = retinanet() if head == 'dense' else faster_rcnn()
    place, needs = {
        'roi': ('roi.bbox_deltas', ROI),
        'rpn': ('rpn.deltas', RPN),
        'dense': ('head.bbox_deltas', DENSE),
    }[head]
    targets = []
    for decoded in (False, True):
        part = {
            'roi': lambda c: c['roi_head']['bbox_head'],
            'rpn': lambda c: c['rpn_head'],
            'dense': lambda c: c['bbox_head'],
        }[head](config)
        part['reg_decoded_bbox'] = decoded
        if decoded:
            part['loss_bbox'] = dict(type='GIoULoss')
        listener, loss = ear(place, needs)
        torch.manual_seed(0)
        model = DistillDetector(
            copy.deepcopy(config), dict(model=copy.deepcopy(config), untrained=True), [listener]
        )
        torch.manual_seed(1)
        losses_of(model)
        boxes, positive = loss.heard[f'{head}_box_targets'], loss.heard[f'{head}_positive']
        boxes = boxes if isinstance(boxes, list) else [boxes]
        positive = positive if isinstance(positive, list) else [positive]
        targets.append(torch.cat([b[p] for b, p in zip(boxes, positive, strict=True)]))
    assert len(targets[0])
    torch.testing.assert_close(targets[0], targets[1], rtol=1e-4, atol=1e-4)


def test_one_set_of_deltas_meets_one_for_each_class() -> None:
    other = faster_rcnn()
    other['roi_head']['bbox_head']['reg_class_agnostic'] = True
    teacher = dict(model=other, untrained=True)
    model = distilled('faster_rcnn', [bounded('roi.bbox_deltas', 'roi')], teacher)
    assert losses_of(model)['distill.loss_head_bounded_roi'].isfinite()


# What is refused ---------------------------------------------------------------------------------


def test_unlike_classes_of_the_box_heads_are_refused_when_the_model_is_built() -> None:
    with pytest.raises(ShapeError, match='3 classes and the teacher 5'):
        distilled(
            'faster_rcnn',
            [entry('roi.cls_logits', 'WeightedSoftLabel')],
            dict(model=faster_rcnn(classes=5), untrained=True),
        )


def test_a_student_without_regions_can_not_have_a_teachers_box_head() -> None:
    distiller, _ = ear('neck.p3', ())
    distiller['teacher_module'] = 'roi.cls_logits'
    with pytest.raises(ConfigError, match='this student samples none'):
        distilled('retinanet', [distiller], dict(model=faster_rcnn(), untrained=True))


def test_nothing_stays_patched_when_a_head_fails() -> None:
    model = distilled('faster_rcnn')
    model.student.roi_head.bbox_head.loss = None  # which its loss_and_target calls
    ready = prepared(model, batch())
    with pytest.raises(TypeError):
        model(ready['inputs'], ready['data_samples'], mode='loss')
    for head in (model.student.roi_head.bbox_head, model.student.rpn_head):
        assert not {'loss_and_target', 'get_targets'} & set(vars(head))


def test_the_presets_stand_for_every_head() -> None:
    two = distilled('faster_rcnn', (), preset='chen2017')
    assert list(two.distillers) == [
        'head_soft_roi',
        'head_bounded_roi',
        'head_soft_rpn',
        'head_bounded_rpn',
    ]
    one = distilled('retinanet', (), preset='chen2017')
    assert list(one.distillers) == ['head_bounded']
    for name in ('kd', 'dkd', 'dist'):
        assert list(distilled('faster_rcnn', (), preset=name).distillers) == [f'head_{name}']
    assert plain('faster_rcnn').roi_head.bbox_head.num_classes == 3
