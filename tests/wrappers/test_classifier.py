"""Classifiers beside their teachers: named taps, labels, views, class names, mixing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from densekd import DistillClassifier
from densekd.core.taps import Taps
from densekd.core.trace import trace
from densekd.errors import ConfigError
from densekd.registry import PRESETS
from densekd.wrappers.build import build_network
from densekd.wrappers.classifier_taps import classifier_forward, classifier_taps
from tests.helpers.classifiers import BACKBONES, CLASSES, batch, classifier


def wrapped(**arguments: Any) -> DistillClassifier:
    """Returns a pair; what is said replaces a part of it."""
    parts: dict[str, Any] = dict(
        student=classifier(),
        teacher=dict(model=classifier(base_channels=8), untrained=True),
        preset='kd',
    )
    parts.update(arguments)
    return DistillClassifier(**parts)


def losses_of(model: DistillClassifier, data: Any = None) -> dict[str, torch.Tensor]:
    model.train()
    return model(**model.data_preprocessor(data or batch(), True), mode='loss')


STAGES = {
    'cifar_resnet': {'c2': (4, 1), 'c3': (8, 2), 'c4': (16, 4)},
    'wide_resnet': {'c2': (8, 1), 'c3': (16, 2), 'c4': (32, 4)},
    'resnet': {'c2': (4, 1), 'c3': (8, 2), 'c4': (16, 4), 'c5': (32, 8)},
    'mobilenet_v2': {'c2': (8, 1), 'c3': (8, 2), 'c4': (24, 4), 'c5': (1280, 8)},
    'shufflenet_v2': {'c2': (24, 1), 'c3': (48, 2), 'c4': (96, 4), 'c5': (1024, 8)},
}
BEFORE_RELU = {
    'cifar_resnet': ['c2', 'c3', 'c4'],
    'wide_resnet': ['c2', 'c3', 'c4'],
    'resnet': ['c2', 'c3', 'c4', 'c5'],
    'mobilenet_v2': ['c5'],
    'shufflenet_v2': ['c5'],
}


@pytest.mark.parametrize('name', BACKBONES)
def test_named_taps(name: str) -> None:
    model = build_network(classifier(name), 'mmengine', 'model')
    taps = classifier_taps(model)
    places = trace(model, taps, classifier_forward, (64, 96))
    stages = {f'backbone.{k}': v for k, v in STAGES[name].items()}
    assert {k: (p.channels, p.strides[0][0]) for k, p in places.items() if k in stages} == stages
    before = [f'backbone.{k}.pre_relu' for k in BEFORE_RELU[name]]
    assert [k for k in taps if k.endswith('.pre_relu')] == before
    assert all(places[k].norm is not None for k in before)
    assert places['embedding'].shapes == ((1, model.backbone.out_channels),)
    assert places['logits'].shapes == ((1, CLASSES),)
    assert set(taps) == {*stages, *before, 'embedding', 'logits'}
    assert {taps[k].level for k in stages} == {'backbone'} and taps['logits'].level == 'head'


@pytest.mark.parametrize('name', BACKBONES)
def test_taps_read_what_their_names_say(name: str) -> None:
    model = build_network(classifier(name), 'mmengine', 'model').train()
    images = model.data_preprocessor(batch(), True)['inputs']
    taps = classifier_taps(model)
    with Taps(model, taps) as seen:
        logits = model(images)
    assert torch.equal(seen['logits'], logits)
    assert torch.equal(model.head.fc(seen['embedding']), logits)
    last = sorted(STAGES[name])[-1]
    rectified = seen[f'backbone.{last}.pre_relu'].relu()
    if name == 'mobilenet_v2':
        rectified = rectified.clamp(max=6)
    assert torch.allclose(rectified.mean((2, 3)), seen['embedding'], atol=1e-6)
    for stage in STAGES[name]:
        value = seen[f'backbone.{stage}']
        if taps[f'backbone.{stage}'].rectified:
            assert torch.equal(value, seen[f'backbone.{stage}.pre_relu'].relu().clamp(max=6)
                               if name == 'mobilenet_v2' else value.relu())  # fmt: skip
        elif name == 'wide_resnet':
            norm = model.get_submodule(taps[f'backbone.{stage}.pre_relu'].path)
            assert torch.allclose(norm(value), seen[f'backbone.{stage}.pre_relu'], atol=1e-5)


@pytest.mark.parametrize('part', ['backbone', 'pool', 'head'])
def test_only_what_is_tapped_is_run(part: str) -> None:
    model = build_network(classifier(), 'mmengine', 'model').eval()
    ran = []
    for name in ('backbone', 'pool', 'head'):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    classifier_forward(model, torch.zeros(1, 3, 32, 32), frozenset((part,)))
    assert ran == ['backbone', 'pool', 'head'][: ('backbone', 'pool', 'head').index(part) + 1]


@pytest.mark.parametrize('name', BACKBONES)
def test_every_preset_that_fits_reaches_the_student(name: str) -> None:
    import densekd.methods  # noqa: F401  fills the table

    # Untrained networks of depth-wise kernels say next to nothing, and can't be a teacher here.
    theirs = 'resnet' if name in ('mobilenet_v2', 'shufflenet_v2') else name
    fitting = []
    for preset in sorted(PRESETS):
        try:
            model = wrapped(
                student=classifier(name),
                teacher=dict(model=classifier(theirs), untrained=True),
                preset=preset,
            )
        except ConfigError:
            continue
        fitting.append(preset)
        losses = losses_of(model, batch(images=6))
        terms = [value for key, value in losses.items() if key.startswith('distill.')]
        gradients = torch.autograd.grad(
            sum(terms), list(model.student.backbone.parameters()), allow_unused=True
        )
        assert any(g is not None and bool(g.any()) for g in gradients), preset
    assert {'kd', 'at', 'ofd', 'fitnet', 'ab'} <= set(fitting)


def test_the_terms_of_a_step() -> None:
    model = wrapped(scale_student_loss=dict(loss_cls=0.1))
    with torch.no_grad():
        model.student.head.fc.weight.mul_(100)  # so that there is something to compare
    losses = losses_of(model)
    assert set(losses) == {'student.loss_cls', 'distill.loss_head_kd'}
    data = model.student.data_preprocessor(batch(), True)
    plain = model.student(**data, mode='loss')['loss_cls']
    assert torch.allclose(losses['student.loss_cls'], 0.1 * plain)
    theirs = model.teachers['teacher'].model(data['inputs'])
    own = model.student(data['inputs'])
    p = (theirs / 4).softmax(1)
    kl = (p * (p.log() - (own / 4).log_softmax(1))).sum(1).mean()
    assert torch.allclose(losses['distill.loss_head_kd'], 0.9 * 16 * kl, rtol=1e-4)


def test_labels_are_those_of_the_batch() -> None:
    model = wrapped()
    data = model.data_preprocessor(batch(images=8), True)
    labels = model.fields(data['inputs'], data['data_samples'], None, {})['labels']()
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]


def test_a_teacher_sees_images_as_it_was_trained_to() -> None:
    """The pair is equal but for what normalises the images of each."""
    other = classifier(preprocessor=None)
    other['data_preprocessor'].update(mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0])
    teacher = build_network(other, 'mmengine', 'teacher').eval()
    model = wrapped(teacher=dict(model=teacher))
    own = model.data_preprocessor(batch(), True)
    seen = model.teacher_view(teacher, own['inputs'], own['data_samples'])
    expected = teacher.data_preprocessor(batch(), True)['inputs']
    assert torch.allclose(seen, expected, atol=1e-4)


def test_classes_are_paired_by_name() -> None:
    names = ['a', 'b', 'c', 'd', 'e', 'f']
    theirs = ['f', 'e', 'x', 'd', 'c', 'b', 'a']
    teacher = classifier(classes=7, base_channels=8)
    model = wrapped(
        teacher=dict(model=teacher, untrained=True, classes=theirs), classes=names
    )  # fmt: skip
    seen: dict[str, Any] = {}
    head = model.distillers['head_kd'].head
    head.register_forward_pre_hook(lambda _, args: seen.update(pair=args[:2]))
    losses_of(model)
    data = model.data_preprocessor(batch(), True)
    logits = model.teachers['teacher'].model(data['inputs'])
    assert torch.allclose(seen['pair'][1], logits[:, [6, 5, 4, 3, 1, 0]], atol=1e-5)
    with pytest.raises(ConfigError, match='its head has 6 classes, and the list of their names'):
        wrapped(classes=names[:4])


def test_a_loss_that_needs_labels_refuses_mixed_images() -> None:
    mixing = classifier(preprocessor=dict(mixup=0.2, num_classes=CLASSES))
    assert wrapped(student=mixing)  # KD needs none
    with pytest.raises(ConfigError) as caught:
        wrapped(student=mixing, preset='dkd')
    assert 'needs labels, and the student' in str(caught.value)
    assert 'mixes images (mixup, cutmix)' in str(caught.value) and '\n' not in str(caught.value)
    assert losses_of(wrapped(student=mixing)).keys()
    assert wrapped(preset='dkd')


def test_weight_0_is_plain_training() -> None:
    """Step by step, to the bit."""

    def trained(model: Any) -> dict[str, torch.Tensor]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(3):
            model.train()
            losses = model(**model.data_preprocessor(batch(step), True), mode='loss')
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        return model.state_dict()

    states = []
    for weight in (None, 0.0, 1.0):
        torch.manual_seed(0)
        if weight is None:
            states.append(trained(build_network(classifier(), 'mmengine', 'student')))
            continue
        head = dict(type='DistillationHead', loss=dict(type='KDLoss', loss_weight=weight))
        places = dict(student_module='logits', teacher_module='logits')
        states.append(trained(wrapped(preset=None, distillers=[dict(**places, head=head)])))
    plain, zero, one = states
    assert list(plain) == list(zero)
    assert all(torch.equal(plain[k], zero[k]) for k in plain)
    assert not all(torch.equal(plain[k], one[k]) for k in plain)
