"""Gradients with respect to the input: what is compared, and who pays for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from densekd import DistillClassifier, methods
from densekd.core.batch import Batch
from densekd.core.checkpoint import weights_hash
from densekd.core.input_grad import input_gradient
from densekd.core.taps import Place, Tap
from densekd.engine.optim import build_for_distillation
from densekd.errors import ConfigError, ShapeError
from densekd.methods import gradient_attention_loss, jacobian_loss
from densekd.wrappers.build import build_network
from densekd.wrappers.detector import DistillDetector
from densekd.wrappers.input_grad import check_input_grad
from tests.helpers.classifiers import CLASSES, batch, classifier
from tests.helpers.detectors import retinanet, state, unlike

SGD = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
PRESETS = {'jacobian': jacobian_loss, 'gradient_attention': gradient_attention_loss}
both = pytest.mark.parametrize('name', PRESETS)


def pair(preset: str = 'jacobian', weight: float = 1.0, **more: Any) -> DistillClassifier:
    torch.manual_seed(0)
    model = DistillClassifier(
        **{
            'student': classifier(),
            'teacher': dict(model=classifier(base_channels=8), untrained=True),
            'preset': preset,
            **more,
        }
    )
    for distiller in model.distillers.values():
        distiller.head.loss.loss_weight = weight
    return model


def entry(**head: Any) -> dict[str, Any]:
    head = {'type': 'JacobianDistillationHead', **head}
    return dict(student_module='logits', teacher_module='logits', head=head)


def small(model: Any, images: int = 3, size: int = 8) -> Any:
    return model.data_preprocessor(batch(images=images, size=size), True)


def number(name: str, logits: Tensor, data: Any) -> Tensor:
    labels = torch.tensor([int(sample.gt_label) for sample in data['data_samples']])
    if name == 'jacobian':
        return logits[torch.arange(len(labels)), labels].sum()
    return nn.functional.cross_entropy(logits, labels, reduction='sum')


def by_differences(name: str, network: nn.Module, data: Any, step: float = 1e-5) -> Tensor:
    """Returns the gradient with respect to every pixel, by central differences."""
    x = data['inputs'].double()
    found = torch.zeros_like(x).flatten()
    with torch.no_grad():
        for i in range(x.numel()):
            moved = []
            for sign in (1, -1):
                near = x.clone().flatten()
                near[i] += sign * step
                moved.append(number(name, network(near.reshape(x.shape)), data))
            found[i] = (moved[0] - moved[1]) / (2 * step)
    return found.reshape(x.shape)


@both
def test_the_term_is_that_of_finite_differences(name: str) -> None:
    """The student normalises by its batch, as it does in training, and the teacher does not."""
    model = pair(name).double().train()
    data = small(model, images=2, size=6)
    data['inputs'] = data['inputs'].double()
    student = copy.deepcopy(model.student)
    teacher = model.teachers['teacher'].model
    expected = PRESETS[name](*(by_differences(name, net, data) for net in (student, teacher)))
    (value,) = (v for k, v in model(**data, mode='loss').items() if k.startswith('distill.'))
    assert value.item() > 0.1
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)


@both
def test_its_slope_is_that_of_finite_differences(name: str) -> None:
    """Through the student twice: along random directions of its parameters."""
    model = pair(name).double().train()
    data = small(model)
    data['inputs'] = data['inputs'].double()

    def term() -> Tensor:
        (value,) = (v for k, v in model(**data, mode='loss').items() if k.startswith('distill.'))
        return value

    parameters = [p for p in model.student.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(term(), parameters, allow_unused=True)
    for seed in range(3):
        numbers = torch.Generator().manual_seed(seed)
        step = [torch.randn(p.shape, generator=numbers).double() for p in parameters]
        along = sum((g * d).sum() for g, d in zip(slopes, step, strict=True) if g is not None)
        values = []
        for sign in (1, -2, 1):  # there, back over the start, and home
            with torch.no_grad():
                for p, d in zip(parameters, step, strict=True):
                    p.add_(d, alpha=sign * 1e-7)
            values.append(term().item())
        assert float(along) == pytest.approx((values[0] - values[1]) / 2e-7, rel=1e-3)


def test_a_network_built_by_hand() -> None:
    """Of W2 relu(W1 x) the gradient is W2[y] over the units that are on, times W1."""
    from densekd.core.batch import Batch
    from densekd.core.input_grad import input_gradient
    from densekd.methods import JacobianLoss

    first, second = torch.randn(5, 4, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    x = torch.randn(6, 4, requires_grad=True)
    labels = torch.arange(6) % 3
    logits = nn.functional.relu(x @ first.T, inplace=False) @ second.T
    batch_of = Batch({'labels': labels})
    own = input_gradient(JacobianLoss(), logits, x, batch_of, create_graph=True)
    on = (x @ first.T > 0).float()
    expected = (second[labels] * on) @ first
    torch.testing.assert_close(own, expected)
    teacher = torch.randn(6, 4)
    for parameter in (first, second):
        slopes = [
            torch.autograd.grad(jacobian_loss(g, teacher), parameter, retain_graph=True)[0]
            for g in (own, expected)
        ]
        torch.testing.assert_close(*slopes)
    assert x.grad is None


@both
def test_a_teacher_of_some_of_the_classes_is_asked_for_the_same_ones(name: str) -> None:
    """By name, in another order; an image of a class that it has not says nothing."""
    own, theirs = list('abcdef'), list('fdb')
    wide = classifier(base_channels=8, classes=3)
    model = pair(name, teacher=dict(model=wide, untrained=True, classes=theirs), classes=own).eval()
    data = small(model, images=6)
    teacher = model.teachers['teacher'].model
    with torch.no_grad():
        for network in (model.student, teacher):
            network.head.fc.weight.mul_(20)
    shared = [i for i, x in enumerate(own) if x in theirs]
    gradients = []
    for network, columns in (
        (model.student, shared),
        (teacher, [theirs.index(own[i]) for i in shared]),
    ):
        x = data['inputs'].clone().requires_grad_()
        logits = network(x)[shared][:, columns]
        labels = torch.arange(len(shared))
        if name == 'jacobian':
            value = logits.diagonal().sum()
        else:
            value = nn.functional.cross_entropy(logits, labels, reduction='sum')
        gradients.append(torch.autograd.grad(value, x)[0])
    assert not gradients[0][[i for i in range(6) if i not in shared]].any()
    (value,) = (v for k, v in model(**data, mode='loss').items() if k.startswith('distill.'))
    torch.testing.assert_close(value, PRESETS[name](*gradients), rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_sure_network_keeps_its_direction() -> None:
    """From 17 on the softmax is 1 in float32, and a plain cross entropy's slope is cut off."""
    torch.manual_seed(0)
    weight, labels = torch.randn(3, 5).double(), torch.zeros(1, dtype=torch.long)
    loss, batch_ = methods.GradientAttentionLoss(), Batch({'labels': labels})
    shift = torch.tensor([22.0, 0.0, 0.0])
    found = []
    for kind in (torch.float64, torch.float32):
        x = torch.zeros(1, 5, dtype=kind, requires_grad=True)
        logits = x @ weight.T.to(kind) + shift.to(kind)
        found.append(input_gradient(loss, logits, x, batch_, create_graph=False).double())
    assert 0 < found[0].norm() < 1e-8
    torch.testing.assert_close(found[1] / found[1].norm(), found[0] / found[0].norm())


def test_one_logit_has_no_cross_entropy() -> None:
    place = Place(Tap('logits'), ((4, 1),), (None,))
    with pytest.raises(ShapeError, match='gives one logit an image'):
        methods.GradientAttentionLoss().bind(place, place)


@both
def test_the_teacher_is_left_without_a_trace(name: str) -> None:
    model = pair(name)
    teacher = model.teachers['teacher'].model
    before = weights_hash(teacher)
    wrapper = build_for_distillation(model, SGD)
    for seed in range(3):
        model.train()
        model.train_step(batch(seed), wrapper)
    assert weights_hash(teacher) == before
    assert not any(m.training for m in teacher.modules())
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    data = small(model)
    sum(v.sum() for v in model(**data, mode='loss').values()).backward()
    assert not data['inputs'].requires_grad and data['inputs'].grad is None
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize('preset', ['kd', 'jacobian'])
def test_nobody_else_pays_for_it(preset: str) -> None:
    model = pair(preset)
    seen = {}
    for side, network in (('student', model.student), ('teacher', model.teachers['teacher'].model)):
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))

        def note(module: Any, args: Any, output: Tensor, side: str = side) -> None:
            enabled = torch.is_grad_enabled()
            seen[side] = args[0].requires_grad, output.requires_grad, enabled

        first.register_forward_hook(note)
    model.train()
    model(**small(model), mode='loss')
    pays = preset == 'jacobian'
    assert seen == {'student': (pays, True, True), 'teacher': (pays, pays, pays)}


@both
@pytest.mark.parametrize('scheduled', [False, True])
def test_weight_0_is_plain_training(name: str, scheduled: bool) -> None:
    torch.manual_seed(0)
    bare = build_network(classifier(), 'mmengine', 'student')
    model = pair(name, weight=1.0 if scheduled else 0.0)
    if scheduled:
        from densekd.core.schedule import Schedule

        for distiller in model.distillers.values():
            distiller.schedule = Schedule(warmup=1000)
        model.set_clock(0, 0)
    for network in (bare, model):
        torch.manual_seed(1)
        network.init_weights()
        build = build_optim_wrapper if network is bare else build_for_distillation
        wrapper = build(network, SGD)
        for seed in range(6):
            network.train()
            network.train_step(batch(seed), wrapper)
    assert unlike(state(bare), state(model)) == []


def test_a_teacher_of_another_view_is_differentiated_with_respect_to_the_common_input() -> None:
    other = classifier(base_channels=8)
    other['data_preprocessor'].update(mean=[100.0, 90.0, 80.0], std=[30.0, 20.0, 10.0])
    model = pair(teacher=dict(model=other, untrained=True)).train()
    data = small(model)
    with torch.no_grad():
        model.student.head.fc.weight.mul_(10)
    student, teacher = copy.deepcopy(model.student), model.teachers['teacher'].model
    grads = []
    for network in (student, teacher):
        x = data['inputs'].clone().requires_grad_()
        view = x
        if network is teacher:
            own, theirs = model.data_preprocessor, teacher.data_preprocessor
            view = (x * own.std + own.mean - theirs.mean) / theirs.std
        grads.append(torch.autograd.grad(number('jacobian', network(view), data), x)[0])
    (value,) = (v for k, v in model(**data, mode='loss').items() if k.startswith('distill.'))
    torch.testing.assert_close(value, jacobian_loss(*grads), rtol=1e-4, atol=0)


def test_beside_other_terms() -> None:
    maps = dict(
        student_module='backbone.c4', teacher_module='backbone.c4',
        head=dict(type='JacobianDistillationHead', name='maps',
                  loss=dict(type='JacobianLoss', of='attention')),
    )  # fmt: skip
    heads = [entry(type=f'{name}DistillationHead') for name in ('KD', 'Jacobian')]
    heads.append(entry(type='GradientAttentionDistillationHead'))
    model = pair(preset=None, distillers=[*heads, maps])
    losses = model.train()(**small(model), mode='loss')
    terms = {k: v for k, v in losses.items() if k.startswith('distill.')}
    assert len(terms) == 4
    for value in terms.values():
        grads = torch.autograd.grad(
            value, list(model.student.parameters()), retain_graph=True, allow_unused=True
        )
        assert any(g is not None and bool(g.any()) for g in grads)
        assert all(g is None or bool(g.isfinite().all()) for g in grads)
    assert terms['distill.loss_backbone_maps'].item() > 0


def test_it_teaches() -> None:
    """The student's gradients turn towards the teacher's."""
    model = pair(weight=5.0, task_loss=False)
    wrapper = build_for_distillation(
        model, dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=3e-3))
    )
    values = []
    for _ in range(20):
        model.train()
        logs = model.train_step(batch(0, images=6, size=16), wrapper)
        values.append(float(logs['loss'].detach()))
    assert values[-1] < 0.9 * values[0]


def test_an_average_of_the_student_is_a_teacher_too() -> None:
    model = pair(teacher=None, peers=[dict(name='mean', ema=0.5)])
    wrapper = build_for_distillation(model, SGD)
    for seed in range(3):
        model.train()
        logs = model.train_step(batch(seed), wrapper)
    assert float(logs['distill.loss_head_jacobian']) > 0


def test_in_bfloat16_it_is_finite() -> None:
    model = pair().train()
    with torch.autocast('cpu', torch.bfloat16):
        losses = model(**small(model), mode='loss')
    sum(v.sum() for v in losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.student.parameters() if p.grad is not None)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    'mixing': (
        dict(student=classifier(preprocessor=dict(mixup=0.2, num_classes=CLASSES))),
        'needs labels, and the student.s data_preprocessor mixes images',
    ),
    'bf16': (
        dict(teacher=dict(model=classifier(), untrained=True, precision='bf16')),
        r"teacher 'teacher' runs in bf16, and a gradient .* needs precision='fp32'",
    ),
    'connector': (
        dict(preset=None, distillers=[entry(stu_connector='LinearConnector')]),
        'there is nothing for stu_connector to do',
    ),
    'peer': (
        dict(
            preset=None,
            peers=[dict(name='b', model=classifier())],
            distillers=[{**entry(), 'teacher': 'b'}, {**entry(name='other'), 'student': 'b'}],
        ),
        'a peer that trains can be neither',
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_can_not_be_is_refused_when_it_is_built(case: str) -> None:
    arguments, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        pair(**arguments)


def test_checkpointing_is_refused() -> None:
    model = pair()
    model.student.backbone.layer2[0].with_cp = True  # as mmdet's blocks say it
    message = r"checkpointing \(with_cp\) at 'backbone.layer2.0' prevents"
    with pytest.raises(ConfigError, match=message):
        check_input_grad(list(model.distillers.values()), model.student, model.teachers)


def test_a_detector_has_no_such_gradient() -> None:
    head = dict(type='DistillationHead', loss=dict(type='JacobianLoss', of='attention'))
    taps = dict(student_module='backbone.c5', teacher_module='backbone.c5')
    with pytest.raises(ConfigError, match="needs input_grad .* which DistillDetector can't supply"):
        DistillDetector(
            student=retinanet(),
            teacher=dict(model=retinanet(), untrained=True),
            distillers=[dict(**taps, head=head)],
        )
