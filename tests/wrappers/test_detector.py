"""A detector beside its teacher: what it compares, what it hands out, what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.errors import ConfigError, ShapeError
from densekd.methods import kd_qfl_loss, pkd_loss
from tests.helpers.detectors import (
    ADAMW,
    DENSE,
    MODELS,
    batch,
    distilled,
    entry,
    faster_rcnn,
    losses_of,
    optimiser,
    plain,
    prepared,
    retinanet,
    state,
    train,
    unlike,
)

both = pytest.mark.parametrize('name', list(MODELS))
LEVELS = ['neck.p2', 'neck.p3', 'neck.p4', 'neck.p5']


class Listening(DistillLoss):
    """Keeps what it was given."""

    needs = ('dense_weights', 'dense_avg_factor', 'gt_boxes', 'anchors', 'anchors_valid', 'valid')
    pairs = False

    def compute(self, student: Any, teacher: Any, batch: Batch) -> torch.Tensor:
        self.heard = {need: getattr(batch, need) for need in self.needs}
        self.student, self.teacher = student, teacher
        return student[0].sum() * 0


class Failing(DistillLoss):
    """Fails in the middle of a step."""

    needs = ('dense_weights', 'dense_avg_factor')
    pairs = False

    def compute(self, student: Any, teacher: Any, batch: Batch) -> torch.Tensor:
        raise RuntimeError('the loss failed')


def listening(place: Any = 'head.cls_logits') -> tuple[Any, Listening]:
    loss = Listening()
    return dict(student_module=place, head=DistillationHead(loss=loss, name='ear')), loss


# What is compared -------------------------------------------------------------------------------


def test_the_captured_targets_are_those_that_the_student_used() -> None:
    distiller, loss = listening()
    model = distilled(distillers=[distiller])
    head = model.student.bbox_head
    used: list[Any] = []
    whole = type(head).get_targets

    def get_targets(self: Any, *args: Any, **kwargs: Any) -> Any:
        used.append(whole(self, *args, **kwargs))
        return used[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(head), 'get_targets', get_targets)
        # The patched class no longer is the one whose targets are known; this test says it is.
        patch.setattr('mmdet.models.dense_heads.AnchorHead.get_targets', get_targets)
        losses_of(model)
    assert len(used) == 1, 'asking for targets a second time could sample anew'
    assert all(a is b for a, b in zip(loss.heard['dense_weights'], used[0][1], strict=True))
    assert loss.heard['dense_avg_factor'] is used[0][-1]


def test_terms_are_those_of_the_pure_functions() -> None:
    distiller, loss = listening()
    model = distilled(distillers=[entry('neck.p3', 'PKD', 6.0), entry('head.cls_logits', 'KDQFL')])
    ear = distilled(distillers=[distiller])
    ear.student.load_state_dict(model.student.state_dict())
    ear.__dict__['teachers'] = model.teachers
    model.eval(), ear.eval()
    losses, _ = losses_of(model), losses_of(ear)
    images = prepared(model, batch())['inputs']
    with torch.no_grad():
        student = model.student.extract_feat(images)
        teacher = model.teachers['teacher'].model.extract_feat(images)
        connector = model.distillers['neck_pkd_p3'].head.stu_connector
        expected = 6.0 * pkd_loss(connector(student[1]), teacher[1])
    assert torch.allclose(losses['distill.loss_neck_pkd_p3'], expected, rtol=1e-5)
    rows = [
        [m.permute(0, 2, 3, 1).reshape(-1, 3) for m in side]
        for side in (loss.student, loss.teacher)
    ]
    expected = sum(
        kd_qfl_loss(s, t, 1.0, w.reshape(-1), loss.heard['dense_avg_factor'])
        for s, t, w in zip(*rows, loss.heard['dense_weights'], strict=True)
    )
    assert torch.allclose(losses['distill.loss_head_kdqfl_cls_logits'], expected, rtol=1e-5)


@both
def test_boxes_anchors_and_padding_reach_the_loss(name: str) -> None:
    distiller, loss = listening('neck.p2')
    loss.needs = ('gt_boxes', 'anchors', 'anchors_valid', 'valid')
    model = distilled(name, [distiller])
    data = batch(size=(70, 64))
    losses_of(model, data)
    boxes = [sample.gt_instances.bboxes for sample in data['data_samples']]
    assert all(torch.equal(a, b) for a, b in zip(loss.heard['gt_boxes'], boxes, strict=True))
    assert loss.heard['valid'].shape == (2, 96, 64)
    assert loss.heard['valid'][0].sum() == 70 * 64 and not loss.heard['valid'][:, 70:].any()
    strides = [(s, s) for s in (4, 8, 16, 32, 64)][: 4 if name == 'retinanet' else 5]
    assert list(loss.heard['anchors']) == strides
    assert loss.heard['anchors'][8, 8].shape == (12, 8, 2, 4)
    assert loss.heard['anchors_valid'][8, 8].shape == (2, 12, 8, 2)


@pytest.mark.parametrize('when', ['in the student', 'in the loss'])
def test_nothing_stays_patched_or_hooked_after_an_error(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = DistillationHead(loss=Failing(), name='failing')
    model = distilled(distillers=[dict(student_module='head.cls_logits', head=head)])
    if when == 'in the student':

        def fail(*unused: object, **more: object) -> None:
            raise RuntimeError('the loss failed')

        monkeypatch.setattr(model.student.bbox_head, 'loss_by_feat', fail)
    with pytest.raises(RuntimeError, match='the loss failed'):
        losses_of(model)
    assert 'get_targets' not in model.student.bbox_head.__dict__
    for network in (model.student, model.teachers['teacher'].model):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@both
def test_nothing_stays_patched_or_hooked_after_a_step(name: str) -> None:
    model = distilled(name)
    losses_of(model)
    for network in (model.student, model.teachers['teacher'].model):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert not any('get_targets' in m.__dict__ for m in network.modules())


# Terms and their sum ----------------------------------------------------------------------------


def summed(losses: dict[str, Any]) -> float:
    terms = [v for k, v in losses.items() if 'loss' in k]
    return sum(sum(t.mean() for t in (v if isinstance(v, list) else [v])) for v in terms).item()


@both
def test_the_total_is_the_sum_of_the_terms(name: str) -> None:
    model = distilled(name)
    losses = losses_of(model)
    total, log = model.parse_losses(losses)
    assert total.item() == pytest.approx(summed(losses), rel=1e-5)
    assert log['loss'].item() == total.item()
    for key in losses:
        assert key.startswith(('student.', 'distill.loss_'))
    theirs = [key for key in losses if key.startswith('distill.')]
    assert len(theirs) == len(model.distillers) and all('loss' in key for key in theirs)


@both
def test_the_students_terms_are_the_plain_ones(name: str) -> None:
    torch.manual_seed(5)
    bare = plain(name)
    torch.manual_seed(5)
    model = distilled(name)
    torch.manual_seed(6)
    first = losses_of(bare)
    torch.manual_seed(6)
    second = losses_of(model)
    for key, value in first.items():
        other = second[f'student.{key}']
        pairs = zip(value, other, strict=True) if isinstance(value, list) else [(value, other)]
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_scaled_term_is_scaled_in_the_log_and_in_the_gradient() -> None:
    def terms(**more: Any) -> tuple[dict[str, Any], torch.Tensor]:
        torch.manual_seed(5)
        model = distilled(distillers=[entry('neck.p3', 'PKD', 0.0)], **more)
        losses = losses_of(model)
        total, log = model.parse_losses(losses)
        total.backward()
        return log, model.student.bbox_head.retina_cls.weight.grad

    plain_log, plain_gradient = terms()
    log, gradient = terms(scale_student_loss={'loss_cls': 0.25})
    assert log['student.loss_cls'].item() == pytest.approx(
        0.25 * plain_log['student.loss_cls'].item()
    )
    assert log['student.loss_bbox'].item() == plain_log['student.loss_bbox'].item()
    assert torch.allclose(gradient, 0.25 * plain_gradient)
    with pytest.raises(ConfigError, match="no term 'loss_clss'. Did you mean 'loss_cls'"):
        losses_of(distilled(scale_student_loss={'loss_clss': 0.5}))


# What the world sees ----------------------------------------------------------------------------


@both
def test_unknown_attributes_are_the_students(name: str) -> None:
    model = distilled(name)
    assert model.backbone is model.student.backbone
    assert model.data_preprocessor is model.student.data_preprocessor
    part = 'bbox_head' if name == 'retinanet' else 'roi_head'
    assert getattr(model, part) is getattr(model.student, part)
    assert model.with_neck is True
    with pytest.raises(AttributeError, match='nonsense'):
        _ = model.nonsense
    assert not hasattr(model, 'module')


@both
def test_predicting_is_the_bare_student_and_does_not_touch_the_teacher(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    bare = plain(name).eval()
    torch.manual_seed(5)
    model = distilled(name).eval()

    def refuse(*unused: object, **more: object) -> None:
        raise AssertionError('the teacher was run')

    for module in model.teachers['teacher'].model.modules():
        monkeypatch.setattr(module, 'forward', refuse)
    data = batch()
    with torch.no_grad():
        for step in ('test_step', 'val_step'):
            first = getattr(bare, step)(copy.deepcopy(data))
            second = getattr(model, step)(copy.deepcopy(data))
            for a, b in zip(first, second, strict=True):
                assert len(a.pred_instances)
                for key in ('bboxes', 'scores', 'labels'):
                    assert torch.equal(a.pred_instances[key], b.pred_instances[key])
        if name == 'retinanet':  # mmdet's two-stage detectors can't run on images alone
            images = prepared(model, data)['inputs']
            one, two = flat(bare(images)), flat(model(images))
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in flat(v)] if isinstance(value, (tuple, list)) else []


# Schedules, teachers, precision -----------------------------------------------------------------


@both
def test_batches_without_boxes_train(name: str) -> None:
    model = distilled(name)
    losses = losses_of(model, batch(boxes=0))
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    assert [n for n, p in model.distillers.named_parameters() if p.grad is None] == []


def test_a_stopped_distiller_stays_on_the_graph_and_rests_its_teacher() -> None:
    stopping = entry(LEVELS, 'FGFI', schedule=dict(stop=2))
    model = distilled(distillers=[stopping])
    runs: list[int] = []
    model.teachers['teacher'].model.backbone.register_forward_hook(lambda *a: runs.append(1))
    values = []
    for step in range(4):
        model.set_clock(step, 0)
        model.zero_grad(set_to_none=True)
        losses = losses_of(model, batch(step))
        total, _ = model.parse_losses(losses)
        total.backward()
        values.append(losses['distill.loss_neck_fgfi'].item())
        assert [n for n, p in model.distillers.named_parameters() if p.grad is None] == []
        assert len(runs) == min(step + 1, 2)
    assert values[0] > 0 and values[1] > 0 and values[2:] == [0.0, 0.0]


def test_a_stopped_distiller_leaves_plain_training() -> None:
    torch.manual_seed(5)
    bare = plain()
    torch.manual_seed(5)
    stopped = [
        dict(d, schedule=dict(stop=0)) for d in (entry('neck.p3', 'PKD'), entry(LEVELS, 'FGFI'))
    ]
    model = distilled(distillers=stopped)
    train(bare, 5)
    train(model, 5)
    assert unlike(state(bare), state(model)) == []


def test_a_warmed_up_weight_grows() -> None:
    warming = entry('neck.p3', 'PKD', schedule=dict(by='epoch', warmup=4))
    model = distilled(distillers=[warming])
    values = []
    for epoch in range(5):
        model.set_clock(10 * epoch, epoch)
        values.append(losses_of(model)['distill.loss_neck_pkd_p3'].item())
    assert values[1:4] == pytest.approx([values[0] * 2, values[0] * 3, values[0] * 4], rel=1e-4)
    assert values[4] == pytest.approx(values[3], rel=1e-4)


def two_teachers() -> list[dict[str, Any]]:
    return [
        dict(name='a', model=retinanet(8, 24), untrained=True),
        dict(name='b', model=retinanet(6, 16), untrained=True),
    ]


def test_each_of_two_teachers_is_read_by_its_own_distillers() -> None:
    model = distilled(
        distillers=[
            entry('neck.p3', 'PKD', teacher='a'),
            dict(entry('backbone.c3', 'FitNet', teacher='b')),
        ],
        teacher=two_teachers(),
    )
    runs = []
    for name, teacher in model.teachers.items():
        teacher.model.neck.register_forward_hook(lambda *x, n=name: runs.append(n))
    losses = losses_of(model)
    assert {k for k in losses if k.startswith('distill.')} == {
        'distill.loss_neck_pkd_p3',
        'distill.loss_backbone_fitnet_c3',
    }
    assert runs == ['a'], 'only the teacher that is tapped in its neck runs so far'
    connector = model.distillers['backbone_fitnet_c3'].head.stu_connector
    assert next(p.shape[0] for p in connector.parameters()) == 12  # the second one's channels
    model.double()
    for teacher in model.teachers.values():
        assert next(teacher.model.parameters()).dtype == torch.float64


class MeanOfTeachers(DistillLoss):
    """Compares with several teachers at once."""

    ensemble = True

    def compute(self, student: Any, teacher: Any, batch: Batch) -> torch.Tensor:
        self.count = len(teacher)
        return (student - torch.stack(teacher).mean(0)).square().mean()


def test_a_list_of_teachers_goes_to_losses_that_take_one() -> None:
    loss = MeanOfTeachers()
    teachers = [
        dict(name='a', model=retinanet(), untrained=True),
        dict(name='b', model=retinanet(), untrained=True),
    ]
    head = DistillationHead(loss=loss, name='mean')
    several = dict(student_module='neck.p3', head=head, teacher=['a', 'b'])
    losses = losses_of(distilled(distillers=[several], teacher=teachers))
    assert loss.count == 2 and losses['distill.loss_neck_mean'] > 0

    places = dict(several, student_module=['neck.p3', 'neck.p4'], head=DistillationHead(loss=loss))
    with pytest.raises(ConfigError, match='with several teachers, one place is compared at a time'):
        distilled(distillers=[places], teacher=teachers)


@pytest.mark.parametrize(
    ('teacher', 'message'),
    [
        (
            ['a', 'b'],
            'distillers[0].teacher: PKDLoss compares with one teacher, not with 2 (a, b).',
        ),
        (None, "there are several teachers (a, b), so 'teacher' must say which"),
        ('c', "distillers[0].teacher: there is no teacher 'c'."),
    ],
)
def test_teachers_that_do_not_fit_are_refused(teacher: Any, message: str) -> None:
    more = {} if teacher is None else dict(teacher=teacher)
    with pytest.raises(ConfigError) as error:
        distilled(distillers=[entry('neck.p3', 'PKD', **more)], teacher=two_teachers())
    assert message in str(error.value)


@pytest.mark.parametrize('name', DENSE)
def test_under_bfloat16_distillation_is_float32(name: str) -> None:
    model = distilled(name)  # mmcv's NMS has no bfloat16 on a CPU, which a two-stage student needs
    model.train()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = losses_of(model)
    total, _ = model.parse_losses(losses)
    total.backward()
    for key, value in losses.items():
        if key.startswith('distill.'):
            assert value.dtype == torch.float32, key
            assert torch.isfinite(value), key
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_another_normalisation_of_the_teacher_is_met() -> None:
    teacher = retinanet(8, 24)
    teacher['data_preprocessor'] = dict(
        teacher['data_preprocessor'],
        mean=[103.53, 116.28, 123.675],
        std=[1.0] * 3,
        bgr_to_rgb=False,
    )
    model = distilled(teacher=dict(model=teacher, untrained=True))
    network = model.teachers['teacher'].model
    seen = []
    network.backbone.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    data = batch(size=(70, 64))
    losses_of(model, data)
    assert torch.allclose(seen[0], prepared(network, data)['inputs'], atol=1e-3)


def test_accumulated_gradients_are_those_of_the_sum() -> None:
    model = distilled(distillers=[entry('neck.p3', 'PKD'), entry('backbone.c3', 'FitNet')])
    model.eval()
    parts = []
    for seed in (0, 1):
        model.zero_grad()
        total, _ = model.parse_losses(losses_of(model, batch(seed)))
        total.backward()
        parts.append({n: p.grad.clone() for n, p in model.named_parameters()})
    model.zero_grad()
    wrapper = optimiser(model, dict(ADAMW, accumulative_counts=2, clip_grad=None))
    wrapper.initialize_count_status(model, 0, 4)
    before = state(model)
    kept: dict[str, torch.Tensor] = {}
    step = wrapper.optimizer.step

    def keeping(*args: Any, **kwargs: Any) -> Any:
        kept.update({n: p.grad.clone() for n, p in model.named_parameters()})
        return step(*args, **kwargs)

    wrapper.optimizer.step = keeping
    model.train_step(batch(0), wrapper)
    assert unlike(before, state(model)) == [], 'the first of two only adds to the gradient'
    model.train_step(batch(1), wrapper)
    for name, gradient in kept.items():
        expected = (parts[0][name] + parts[1][name]) / 2
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6), name


def test_places_of_unlike_number_are_refused_when_the_model_is_built() -> None:
    one_sided = dict(
        student_module=LEVELS, teacher_module='neck.p3', head=dict(type='PKDDistillationHead')
    )
    with pytest.raises(ShapeError, match='gives 4 tensors'):
        distilled(distillers=[one_sided])


@both
def test_a_model_is_built_from_what_a_person_may_give(name: str) -> None:
    from mmengine.config import Config

    make = MODELS[name]
    for student in (make(), Config(dict(model=make())), plain(name)):
        model = type(distilled(name))(
            student, dict(model=make(), untrained=True), [entry('neck.p3', 'PKD')]
        )
        assert isinstance(model.student, nn.Module)


def test_a_two_stage_student_learns_from_a_one_stage_teacher() -> None:
    model = distilled(
        'faster_rcnn', [entry('neck.p3', 'PKD')], dict(model=retinanet(), untrained=True)
    )
    assert losses_of(model)['distill.loss_neck_pkd_p3'] > 0
    with pytest.raises(ConfigError, match='dense_weights'):
        distilled(
            'faster_rcnn', [entry('neck.p3', 'KDQFL')], dict(model=faster_rcnn(), untrained=True)
        )
