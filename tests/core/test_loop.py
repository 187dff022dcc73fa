"""Distillers in a plain loop: two networks of the caller's own, without OpenMMLab."""

from __future__ import annotations

import ast
import copy
import doctest
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densekd import Distiller, Distillers, methods
from densekd.core.batch import Batch
from densekd.core.checkpoint import weights_hash
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.schedule import Schedule
from densekd.errors import ConfigError, DenseKDError, ShapeError, TapError
from densekd.methods import (
    DKDDistillationHead,
    FitNetDistillationHead,
    IdentityConnector,
    JacobianDistillationHead,
    KDDistillationHead,
    PKDDistillationHead,
)

ROOT = Path(__file__).parents[2]


class Net(nn.Module):
    """A network with everything that training changes or draws: running statistics, dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )
        self.stage = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(2 * width, 5)
        self.unused = nn.ModuleList([nn.Identity()])
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.stem(x).relu_())
        self.calls += 1  # not reached by a pass that ends at the stage
        return self.fc(self.drop(x.mean((2, 3))))


def pair() -> tuple[Net, Net]:
    torch.manual_seed(0)
    student = Net(2)
    teacher = Net(6)
    for _ in range(5):
        teacher(images())  # running statistics of its own
    return student, teacher


def images() -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(8) % 5


def hint(**given: Any) -> Distiller:
    return Distiller(FitNetDistillationHead(), 'stage', 'stage', **given)


def run(
    student: nn.Module, distillers: Distillers, steps: int, task: bool = True, **fields: Any
) -> list[dict[str, float]]:
    """Trains, and returns the terms of every step."""
    parameters = [*student.parameters(), *distillers.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.2)
    history = []
    for _ in range(steps):
        with distillers:
            logits = student(images())
        losses = distillers.losses(images(), **fields)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(logits, LABELS) if task else torch.zeros(())
        (loss + sum(losses.values())).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    return history


# What is promised -----------------------------------------------------------------------------


def example_of_the_readme() -> str:
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    (block,) = [block for block in blocks if 'Distillers' in block]
    return block


def test_the_readme_shows_the_docstrings_example_in_under_15_lines():
    examples = doctest.DocTestParser().get_examples(Distillers.__doc__)
    source = ''.join(example.source for example in examples)
    assert ast.dump(ast.parse(source)) == ast.dump(ast.parse(example_of_the_readme()))
    assert len(source.splitlines()) < 15


def test_it_imports_nothing_of_openmmlab():
    code = '\n'.join(
        [
            example_of_the_readme(),
            'import sys',
            "heavy = ('mmengine', 'mmcv', 'mmdet', 'mmseg')",
            "print([name for name in sys.modules if name.split('.')[0] in heavy], float(loss) > 0)",
        ]
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == '[] True', done.stderr


def test_the_student_learns_what_a_wider_teacher_computes():
    student, teacher = pair()
    distillers = Distillers(student, teacher, [hint()], images())
    assert [tuple(p.shape) for p in distillers.parameters()] == [(12, 4, 1, 1), (12,)]
    before = weights_hash(teacher)
    keys = list(student.state_dict())
    started = copy.deepcopy(student.state_dict())
    history = run(student, distillers, 60, task=False)
    assert history[-1]['fitnet_stage'] < 0.3 * history[0]['fitnet_stage']
    # The term alone moves what comes before its place, and leaves what comes after.
    moved = [k for k, v in student.named_parameters() if not torch.equal(v, started[k])]
    assert moved == [k for k, _ in student.named_parameters() if not k.startswith('fc')]
    assert list(student.state_dict()) == keys
    assert weights_hash(teacher) == before
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


def test_its_connectors_alone_would_not_have_come_so_far():
    frozen, teacher = pair()
    distillers = Distillers(frozen, teacher, [hint()], images())
    first = run(frozen, distillers, 60, task=False)
    other, teacher = pair()
    distillers = Distillers(other, teacher, [hint()], images())
    optimizer = torch.optim.SGD(distillers.parameters(), lr=0.2)
    for _ in range(60):
        with distillers:
            other(images())
        (loss,) = distillers.losses(images()).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first[-1]['fitnet_stage'] < 0.9 * loss.item()


def test_a_weight_of_zero_is_plain_training():
    student, teacher = pair()
    plain = copy.deepcopy(student)
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.2)
    for _ in range(3):
        loss = nn.functional.cross_entropy(plain(images()), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.manual_seed(7)
    head = FitNetDistillationHead(loss=dict(loss_weight=0.0))
    one = Distiller(head, 'stage', 'stage')
    run(student, Distillers(student, teacher, [one], images()), 3)
    # Running statistics and dropout included: looking for channels draws and moves nothing.
    for (name, a), b in zip(plain.state_dict().items(), student.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_teacher_rests_and_stops_where_it_is_read_last():
    student, teacher = pair()
    distillers = Distillers(student, teacher, [hint()], images())
    both = nn.ModuleDict({'student': student, 'teacher': teacher})
    before, calls = weights_hash(teacher), teacher.calls
    both.train()  # as what holds both networks does
    run(student, distillers, 3)
    assert weights_hash(teacher) == before
    assert not any(module.training for module in teacher.modules())
    assert student.training
    assert teacher.calls == calls + 1  # the first pass counts, the others end at the stage


def test_several_terms_have_names_and_one_pass():
    student, teacher = pair()
    given = [
        hint(),
        Distiller(FitNetDistillationHead(name='stem'), 'stem.1', 'stem.1'),
        Distiller(KDDistillationHead(), '', ''),
        Distiller(FitNetDistillationHead(), ['stem', 'stage'], ['stem', 'stage'], key='both'),
        Distiller(DKDDistillationHead(), dict(path='fc'), 'fc'),
    ]
    distillers = Distillers(student, teacher, given, images())
    teacher.eval()
    calls = teacher.calls
    terms = run(student, distillers, 1, labels=LABELS)[0]
    assert list(terms) == ['fitnet_stage', 'stem', 'kd', 'both', 'dkd_fc']
    assert all(value > 0 for value in terms.values())
    assert teacher.calls == calls + 1


def test_a_term_is_what_its_head_says():
    student, teacher = pair()
    distillers = Distillers(student, teacher, [hint()], images())
    with distillers:
        student(images())
    value = distillers.losses(images())['fitnet_stage']
    connected = distillers.distillers['fitnet_stage'].head.stu_connector(
        student.stage(student.stem(images()).relu())
    )
    wanted = teacher.stage(teacher.stem(images()).relu())
    torch.testing.assert_close(value, (connected - wanted).square().mean())


def test_the_teacher_may_be_shown_something_else():
    student, teacher = pair()
    distillers = Distillers(student, teacher, [hint()], images())
    values = []
    for shown in (images(), images() + 1):
        with distillers:
            student(images())
        values.append(float(distillers.losses(shown)['fitnet_stage'].detach()))
    assert values[0] != pytest.approx(values[1])


def test_a_loss_and_a_network_of_ones_own_that_read_no_images():
    class Gap(DistillLoss):
        def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
            check_same_shape(student, teacher, 'Gap')
            return (student - teacher).abs().mean()

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3, dtype=torch.float64)

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {'out': self.linear(a + b)}

    student, teacher = Sum(), Sum()
    one = Distiller(DistillationHead(Gap(), stu_connector='LinearConnector'), 'linear', 'linear')
    inputs = torch.randn(2, 5, 4, dtype=torch.float64).unbind()
    distillers = Distillers(student, teacher, [one], *inputs)
    with distillers:
        student(*inputs)
    (loss,) = distillers.losses(*inputs).values()
    loss.backward()
    assert loss.dtype == torch.float64 and student.linear.weight.grad.any()


# Schedules, resuming, generators ----------------------------------------------------------------


def test_schedules_count_the_steps_and_the_epochs_that_they_are_told():
    student, teacher = pair()
    given = [
        Distiller(FitNetDistillationHead(name='a'), 'stage', 'stage', schedule=Schedule(stop=2)),
        Distiller(
            FitNetDistillationHead(name='b'),
            'stage',
            'stage',
            schedule=Schedule(by='epoch', warmup=4),
        ),
    ]
    distillers = Distillers(student, teacher, given, images())
    with pytest.raises(ConfigError, match=r"^distiller 'b': its schedule counts epochs\."):
        distillers.__enter__()
    distillers.epoch = 0
    history = run(student, distillers, 3)
    assert [step['a'] > 0 for step in history] == [True, True, False]
    assert distillers.iteration == 3
    distillers.eval()
    with torch.no_grad(), distillers:
        student(images())
    begun = distillers.losses(images())['b'].item()
    distillers.epoch = 3
    with torch.no_grad(), distillers:
        student(images())
    assert distillers.losses(images())['b'].item() == pytest.approx(4 * begun, rel=1e-4)
    assert distillers.iteration == 3


def test_connectors_may_learn_first():
    student, teacher = pair()
    one = hint(schedule=Schedule(connectors_first=2))
    distillers = Distillers(student, teacher, [one], images())
    before = student.stage.weight.clone()
    run(student, distillers, 2, task=False)
    assert torch.equal(student.stage.weight, before)
    run(student, distillers, 1, task=False)
    assert not torch.equal(student.stage.weight, before)


def test_the_teacher_does_not_run_while_nothing_is_compared():
    student, teacher = pair()
    one = hint(schedule=Schedule(stop=0))
    distillers = Distillers(student, teacher, [one], images())
    calls = teacher.calls
    assert run(student, distillers, 2) == [{'fitnet_stage': 0.0}] * 2
    assert teacher.calls == calls


def test_a_resumed_loop_goes_on_where_it_was():
    student, teacher = pair()
    schedule = Schedule(warmup=10)
    distillers = Distillers(student, teacher, [hint(schedule=schedule)], images())
    run(student, distillers, 3)
    saved = copy.deepcopy((student.state_dict(), distillers.state_dict()))
    wanted = run(student, distillers, 2, task=False)  # without what dropout draws
    student, teacher = pair()
    again = Distillers(student, teacher, [hint(schedule=schedule)], images(), seed=5)
    student.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    assert again.iteration == 3
    assert run(student, again, 2, task=False) == wanted


def test_connectors_are_drawn_from_a_generator_of_their_own():
    drawn = []
    for seed in (0, 0, 1):
        student, teacher = pair()
        state = torch.get_rng_state()
        distillers = Distillers(student, teacher, [hint()], images(), seed=seed)
        assert torch.equal(state, torch.get_rng_state())
        drawn.append(next(distillers.parameters()).detach())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_an_error_in_the_student_takes_its_taps_away():
    student, teacher = pair()
    distillers = Distillers(student, teacher, [hint()], images())
    with pytest.raises(RuntimeError), distillers:
        student(torch.zeros(1, 4, 8, 8))
    assert not any(m._forward_hooks for m in student.modules())
    with pytest.raises(ConfigError, match='the student has not run'):
        distillers.losses(images())


# Mistakes ---------------------------------------------------------------------------------------


def of(*distillers: Any) -> Any:
    return Distillers(*pair(), list(distillers), images())


def tied() -> Any:
    student, teacher = pair()
    teacher.fc = student.fc
    return Distillers(student, teacher, [hint()], images())


def used() -> Any:
    one = hint()
    of(one)
    return of(one)


def identity() -> DistillationHead:
    return FitNetDistillationHead(stu_connector=IdentityConnector())


WRONG: list[tuple[Any, type[DenseKDError], str]] = [
    (
        lambda: of(Distiller(FitNetDistillationHead(), 'stge', 'stage')),
        TapError,
        "distiller 'fitnet_stge': the student: Net has no place 'stge'. Did you mean 'stage'",
    ),
    (
        lambda: of(Distiller(FitNetDistillationHead(), 'stage', 'stem.bn')),
        TapError,
        "distiller 'fitnet_stage': the teacher: Net has no place 'stem.bn'. Did you mean 'stem.1'",
    ),
    (
        lambda: of(Distiller(FitNetDistillationHead(), 'unused', 'stage')),
        TapError,
        "tap 'unused': the place exists in Net, but it never ran",
    ),
    (
        lambda: of(Distiller(FitNetDistillationHead(), 'stage', dict(path='stage', sid='in'))),
        ConfigError,
        "distiller.teacher: Tap takes no 'sid'. Did you mean 'side'?",
    ),
    (
        lambda: Distiller(FitNetDistillationHead(), 'stage', []),
        TapError,
        'distiller.teacher: the list is empty.',
    ),
    (
        lambda: Distiller(FitNetDistillationHead(), 3, 'stage'),
        TapError,
        'distiller.student: a tap is a name such as',
    ),
    (
        lambda: Distiller('FitNetDistillationHead', 'stage', 'stage'),
        ConfigError,
        'distiller: a built head is needed, such as densekd.methods.PKDDistillationHead(), not '
        "'FitNetDistillationHead'.",
    ),
    (
        lambda: Distiller(PKDDistillationHead().loss, 'stage', 'stage'),
        ConfigError,
        'distiller: PKDLoss is a loss, and a distiller needs a head around it.',
    ),
    (
        lambda: of(Distiller(identity(), 'stage', 'stage')),
        ShapeError,
        "distiller 'fitnet_stage': FitNetDistillationHead: IdentityConnector leaves the student 4",
    ),
    (
        lambda: of(Distiller(FitNetDistillationHead(align='strict'), 'stem', 'stage')),
        ShapeError,
        "distiller 'fitnet_stem': the student's 'stem' has stride 1 and the teacher's 'stage'",
    ),
    (
        lambda: of(Distiller(FitNetDistillationHead(), ['stem', 'stage'], 'stage')),
        ShapeError,
        "distiller 'fitnet': the student gives 2 tensors at 'stem' and the teacher 1",
    ),
    (lambda: of(hint(), hint()), ConfigError, "distillers[1]: the name 'fitnet_stage' is used"),
    (used, ConfigError, 'distillers[0]: its head has connectors for other networks already'),
    (
        lambda: of(Distiller(identity(), '', '', schedule=Schedule(connectors_first=2))),
        ConfigError,
        "distiller 'fitnet': schedule.connectors_first is for what a head adds and trains",
    ),
    (lambda: of(hint(lr_mult=2.0)), ConfigError, 'distillers[0]: lr_mult is for an optimiser'),
    (
        lambda: of(hint(teachers=('a', 'b'))),
        ConfigError,
        'distillers[0]: here one teacher teaches one student.',
    ),
    (
        lambda: of(dict(student_module='stage')),
        ConfigError,
        "distillers[0]: a Distiller is needed, not {'student_module': 'stage'}.",
    ),
    (
        lambda: Distillers(*pair(), hint(), images()),  # type: ignore[arg-type]
        ConfigError,
        'Distillers: a list of distillers is needed, such as [Distiller(head, ',
    ),
    (lambda: of(), ConfigError, 'Distillers: a list of distillers is needed'),
    (
        lambda: Distillers(*pair(), [hint()]),
        ConfigError,
        'Distillers: give the images of one batch after the distillers',
    ),
    (
        lambda: Distillers(pair()[0], 'r101.pth', [hint()], images()),  # type: ignore[arg-type]
        ConfigError,
        "Distillers: the teacher is an nn.Module, not 'r101.pth'.",
    ),
    (tied, ConfigError, 'Distillers: student and teacher share 2 parameters'),
    (
        lambda: of(Distiller(JacobianDistillationHead(), 'fc', 'fc')),
        ConfigError,
        "distiller 'jacobian_fc': JacobianLoss needs input_grad",
    ),
]


@pytest.mark.parametrize(('build', 'kind', 'sentence'), WRONG)
def test_a_mistake_gets_a_sentence_when_it_is_built(build, kind, sentence):
    with pytest.raises(kind) as caught:
        build()
    assert str(caught.value).startswith(sentence)


def test_a_mistake_in_a_step_gets_one_too():
    student, teacher = pair()
    distillers = Distillers(student, teacher, [Distiller(DKDDistillationHead(), '', '')], images())
    sentences = {
        "losses: distiller 'dkd': DKDLoss needs labels (class of each image": {},
        "losses: a batch has no field 'label'. Did you mean 'labels'": dict(label=LABELS),
    }
    for sentence, fields in sentences.items():
        with distillers:
            student(images())
        with pytest.raises(ConfigError) as caught:
            distillers.losses(images(), **fields)
        assert str(caught.value).startswith(sentence)
    with pytest.raises(ConfigError, match='the student has not run since the last call'):
        distillers.losses(images(), labels=LABELS)
    nested = pytest.raises(ConfigError, match='one `with` stands inside another')
    with nested, distillers, distillers:
        pass
    assert not any(m._forward_hooks for m in student.modules())
    with distillers:
        pass
    with pytest.raises(TapError, match='it never ran in this pass'):
        distillers.losses(images(), labels=LABELS)


def test_unlike_channels_say_which_connector_is_missing():
    student, teacher = pair()
    one = Distiller(DistillationHead(loss='FitNetLoss'), 'stage', 'stage')
    distillers = Distillers(student, teacher, [one], images())
    with distillers:
        student(images())
    with pytest.raises(ShapeError, match='4 channels and the teacher 12.*stu_connector=dict'):
        distillers.losses(images())


def test_a_student_that_is_frozen_before_the_place_is_told_so():
    student, teacher = pair()
    student.stem.requires_grad_(False)
    student.stage.requires_grad_(False)
    distillers = Distillers(student, teacher, [hint()], images())
    with distillers:
        student(images())
    with pytest.raises(TapError, match="tap 'stage': no gradient reaches the student here"):
        distillers.losses(images())


@pytest.mark.parametrize('name', ['SP', 'PKT', 'RKD', 'CC', 'FE', 'LSL'])
def test_what_compares_no_cells_takes_places_of_any_stride(name: str) -> None:
    student, teacher = pair()
    head = getattr(methods, f'{name}DistillationHead')()
    distillers = Distillers(student, teacher, [Distiller(head, 'stem', 'stage')], images())
    with distillers:
        student(images())
    (value,) = distillers.losses(images()).values()
    value.backward()
    assert bool(student.stem[0].weight.grad.any())


def test_flows_are_compared_between_maps_of_any_size() -> None:
    student, teacher = pair()
    teacher.stem[0].stride = 2
    entry = Distiller(methods.FSPDistillationHead(), ['stem', 'stage'], ['stem', 'stage'])
    distillers = Distillers(student, teacher, [entry], images())
    with distillers:
        student(images())
    (value,) = distillers.losses(images()).values()
    assert value.isfinite() and value > 0


NO_TENSORS: dict[str, Any] = {
    'a list': LABELS.tolist(),
    'an array': LABELS.numpy(),
    'single tensors': list(LABELS),
    'nothing': [],
    'a number': 3,
    'None': None,
}


@pytest.mark.parametrize('name', NO_TENSORS)
def test_labels_that_are_no_tensor_are_a_sentence(name: str) -> None:
    student, teacher = pair()
    distillers = Distillers(student, teacher, [Distiller(DKDDistillationHead(), '', '')], images())
    with distillers:
        student(images())
    with pytest.raises(ConfigError, match=r'^losses: labels \(class of each .* a tensor is needed'):
        distillers.losses(images(), labels=NO_TENSORS[name])


def test_fields_may_be_tensors_of_each_image_or_level() -> None:
    student, teacher = pair()
    distillers = Distillers(student, teacher, [hint()], images())
    boxes = [torch.zeros(2, 4), torch.zeros(0, 4)]
    anchors = {(8, 8): torch.zeros(1, 1, 1, 4)}
    for fields in (
        dict(gt_boxes=boxes, anchors=anchors, dense_avg_factor=3.0),
        dict(dense_avg_factor=torch.tensor(3.0), labels=lambda: LABELS),
    ):
        with distillers:
            student(images())
        assert distillers.losses(images(), **fields)['fitnet_stage'] > 0


def in_its_own(student: nn.Module, distillers: Distillers) -> None:
    with torch.no_grad(), distillers:
        student(images())


def inside(student: nn.Module, distillers: Distillers) -> None:
    with distillers, torch.no_grad():
        student(images())


def stage_alone(student: Any, distillers: Distillers) -> None:
    with torch.no_grad(), distillers:
        student.stage(student.stem(images()))


@pytest.mark.parametrize('ran', [in_its_own, inside, stage_alone])
def test_a_student_that_ran_without_gradients_is_a_sentence(ran: Any) -> None:
    """With a connector, its loss has a gradient of its own, and only the connector would learn."""
    student, teacher = pair()
    distillers = Distillers(student, teacher, [hint()], images())
    ran(student, distillers)
    with pytest.raises(TapError, match=r"'fitnet_stage': the student ran under torch.no_grad\(\)"):
        distillers.losses(images())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())
    in_its_own(student, distillers)
    with torch.no_grad():
        assert distillers.losses(images())['fitnet_stage'] > 0
    distillers.eval()
    in_its_own(student, distillers)
    assert distillers.losses(images())['fitnet_stage'] > 0


def test_a_student_needs_no_gradients_while_connectors_learn_first() -> None:
    student, teacher = pair()
    one = hint(schedule=Schedule(connectors_first=1))
    distillers = Distillers(student, teacher, [one], images())
    in_its_own(student, distillers)
    (loss,) = distillers.losses(images()).values()
    loss.backward()
    assert all(p.grad is not None for p in distillers.parameters())
    in_its_own(student, distillers)
    with pytest.raises(TapError, match='the student ran under'):
        distillers.losses(images())


def test_a_term_that_does_not_read_the_student_needs_no_gradients_of_it() -> None:
    student, teacher = pair()
    head = methods.MHGDEstimatorDistillationHead()
    entry = Distiller(head, ['stem', 'stage'], ['stem', 'stage'])
    distillers = Distillers(student, teacher, [entry], images())
    in_its_own(student, distillers)
    (loss,) = distillers.losses(images()).values()
    loss.backward()
    assert any(p.grad is not None for p in distillers.parameters())
