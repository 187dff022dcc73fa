"""What holds for every loss and every head that is registered, whoever adds it.

Inputs come from samples.py, made from what a loss declares, so that a new method is under all of
this without a line of its own. Only the options in `VARIANTS` are listed by hand.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from densekd import methods
from densekd.core.batch import FIELDS
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import ALIGNMENTS
from densekd.errors import ConfigError, ShapeError
from densekd.registry import CONNECTORS, HEADS, LOSSES
from tests.methods import samples
from tests.methods.samples import CLASSES, Sample, sample

# Options that take another way through a loss than its defaults.
VARIANTS: list[dict[str, Any]] = [
    {'type': 'ABLoss', 'margin': 0.5, 'reference': 49},
    {'type': 'ATLoss', 'p': 1, 'kind': 'max', 'reference': 49},
    {'type': 'ATLoss', 'norm': 'paper'},
    {'type': 'BinaryKLLoss', 'tau': 2.0},
    {'type': 'BoundedRegressionLoss', 'margin': 0.5},
    {'type': 'BoundedRegressionLoss', 'boxes': 'dense'},
    {'type': 'BoundedRegressionLoss', 'boxes': 'rpn'},
    {'type': 'CWDLoss', 'tau': 4.0},
    {'type': 'DISTLoss', 'beta': 0.0, 'tau': 4.0},
    {'type': 'DKDLoss', 'alpha': 0.0, 'tau': 1.0},
    {'type': 'FGFILoss', 'policy': 'assigned', 'norm': 'per_level'},
    {'type': 'FELoss', 'k': 2, 'unit': True},
    {'type': 'FTLoss', 'p': 2},
    {'type': 'GradientAttentionLoss', 'normalise': False},
    {'type': 'KDLoss', 'mode': 'mean_logit'},
    {'type': 'KDQFLLoss', 'beta': 2.0},
    {'type': 'KDSVDLoss', 'basis': 'own', 'k': 1},
    {'type': 'MGDLoss', 'mask_kind': 'channel'},
    {'type': 'MHGDLoss', 'heads': 1},
    {'type': 'NSTLoss', 'kernel': 'linear'},
    {'type': 'NSTLoss', 'kernel': 'gaussian', 'sigma2': 0.5},  # else it is a constant of the step
    {'type': 'OFDLoss', 'margin': 'empirical'},
    {'type': 'PKTLoss', 'exclude_self': True, 'reduction': 'rows'},
    {'type': 'SKDPairwiseLoss', 'scale': 0.25},
    {'type': 'RKDLoss', 'angle': 0.0},
    {'type': 'RKDLoss', 'distance': 0.0},
]
# Losses that hold a part of themselves constant, as their authors do: the gradient is not that of
# the value, and test_reference.py has the slopes that it should be.
HOLDING = ('SKDPairwiseLoss',)
# What a loss can't do without, where that is not in a connector: weights that were trained before.
TRAINED = {'MHGDLoss': {'untrained': True}}
# By one teacher, FEED is factor transfer.
ONE = {'FEEDLoss', 'FTLoss'}
NAMES = sorted(LOSSES)
CONFIGS = [{'type': name} for name in NAMES] + VARIANTS


def label(config: dict[str, Any]) -> str:
    return '-'.join(str(value) for value in config.values())


def build(config: dict[str, Any]) -> DistillLoss:
    """Returns the loss with weight 1, so that published weights don't decide what a test sees."""
    trained = TRAINED.get(config['type'], {})
    return LOSSES.build({'loss_weight': 1.0, **trained, **config}, 'contract')


def cases(minimal: bool | None = None) -> list[Any]:
    """Returns every loss with one teacher, and every ensemble loss with several too.

    Args:
        minimal: Only those that say they are least at equality, or only those that don't.
    """
    found = []
    for config in CONFIGS:
        kind = LOSSES.get(config['type'], 'contract')
        if minimal not in (None, kind.minimum_at_equality):
            continue
        several = kind.ensemble
        for teachers in (1, 2) if several else (1,):
            name = label(config) + (f'-{teachers} teachers' if several else '')
            found.append(pytest.param((config, teachers), id=name))
    return found


class Case:
    """A loss that is bound to the places of a first sample."""

    def __init__(self, config: dict[str, Any], teachers: int) -> None:
        self.config = config
        self.teachers = teachers
        self.loss = self.built()

    def built(self, dtype: torch.dtype = torch.float32) -> DistillLoss:
        loss = build(self.config)
        loss.bind(*self.sample(loss=loss).places)
        return loss.to(dtype)

    def sample(self, loss: DistillLoss | None = None, **options: Any) -> Sample:
        return sample(loss or self.loss, teachers=self.teachers, **options)

    def value(self, given: Sample, loss: DistillLoss | None = None) -> Tensor:
        """Returns the loss of a step, of a copy: some losses remember what they have seen."""
        loss = copy.deepcopy(loss or self.loss)
        return loss(given.student, given.teacher, given.batch)

    def computed(self, given: Sample) -> Tensor:
        """Returns what the pure function says, without the module's care for its inputs."""
        loss = copy.deepcopy(self.loss)
        s, t = given.student, given.teacher
        if loss.pairs and isinstance(s, list):
            pairs = zip(s, t, strict=True)
            return torch.stack([loss.compute(a, b, given.batch) for a, b in pairs]).sum()
        return loss.compute(s, t, given.batch)


@pytest.fixture(params=cases())
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def gradients(given: Sample) -> list[Tensor]:
    """Returns the gradients of the student, each of which there has to be."""
    missing = [x.shape for x in given.students() if x.grad is None]
    assert not missing, f'no gradient, not even one of zero, reaches the student at {missing}'
    found = [x.grad for x in given.students()]
    assert all(bool(g.isfinite().all()) for g in found)
    return found


# What is declared


@pytest.mark.parametrize('name', NAMES)
def test_what_a_loss_declares_there_is(name: str) -> None:
    loss = build({'type': name})
    assert set(loss.needs) <= set(FIELDS)
    assert loss.align is None or loss.align in loss.alignments
    assert set(loss.alignments) <= set(ALIGNMENTS)


def test_what_densekd_registers_it_exports() -> None:
    for table in (LOSSES, HEADS, CONNECTORS):
        for name in table:
            entry = table.get(name, 'contract')
            if entry.__module__.startswith('densekd.'):
                assert name in methods.__all__ and getattr(methods, name) is entry


def test_a_need_without_a_sample_fails_and_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Needy(DistillLoss):
        needs: ClassVar[tuple[str, ...]] = ('seed',)

    monkeypatch.delitem(samples.FIELDS, 'seed')
    with pytest.raises(AssertionError, match="Needy needs 'seed'.*add a function for it"):
        sample(Needy())


# Values and gradients


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_finite_scalar_that_teaches_the_student_alone(case: Case, dtype: torch.dtype) -> None:
    given = case.sample().mapped(lambda x: x.to(dtype)).trained()
    case.loss.to(dtype)
    for run in (case.computed, case.value):
        given = given.trained()
        value = run(given)
        assert value.dtype == dtype and value.dim() == 0 and bool(value.isfinite())
        value.backward()
        assert any(bool(g.any()) for g in gradients(given))
        assert all(t.grad is None for t in given.teachers())


def test_a_batch_of_one(case: Case) -> None:
    given = case.sample(images=1).trained()
    value = case.value(given)
    value.backward()
    assert bool(value.isfinite())
    gradients(given)


def test_an_empty_batch_is_an_attached_zero(case: Case) -> None:
    for run in (case.computed, case.value):
        given = case.sample(images=0).trained()
        value = run(given)
        value.backward()
        assert value.item() == 0.0
        gradients(given)


def test_images_without_objects(case: Case) -> None:
    given = case.sample(objects=False).trained()
    value = case.value(given)
    value.backward()
    assert bool(value.isfinite())
    gradients(given)


def test_the_gradient_is_that_of_the_value(case: Case) -> None:
    given = case.sample().mapped(Tensor.double).trained()
    case.loss.double().requires_grad_(False)

    def value(*students: Tensor) -> Tensor:
        alone = isinstance(given.student, Tensor)
        moved = Sample(
            students[0] if alone else list(students), given.teacher, given.batch, given.places
        )
        return case.value(moved)

    true = torch.autograd.gradcheck(
        value, given.students(), fast_mode=True, raise_exception=case.config['type'] not in HOLDING
    )
    assert true is (case.config['type'] not in HOLDING)


def test_a_dead_student_has_a_gradient_of_ordinary_size(case: Case) -> None:
    given = case.sample().mapped(torch.zeros_like, 'student').trained()
    case.value(given).backward()
    assert all(g.abs().max() < 100 for g in gradients(given))  # and not 1 / 1e-6


def at_equality(case: Case) -> tuple[Sample, Tensor, list[Tensor]]:
    """Returns a student that is its teacher, the loss there and its gradient, in float64."""
    given = case.sample(seed=3).mapped(Tensor.double).equal().trained()
    case.loss.double()
    value = case.value(given)
    value.backward()
    return given, value.detach(), gradients(given)


@pytest.mark.parametrize('case', cases(minimal=True), indirect=True)
def test_a_student_that_is_its_teacher_is_at_the_minimum(case: Case) -> None:
    given, value, slopes = at_equality(case)
    assert all(bool((g.abs() < 1e-9).all()) for g in slopes)
    for step in (1e-3, 0.1, 1.0):
        for _ in range(4):
            moved = given.mapped(lambda x, step=step: x + step * torch.randn_like(x), 'student')
            assert case.value(moved) >= value - 1e-12


@pytest.mark.parametrize('name', sorted({c.values[0][0]['type'] for c in cases(minimal=False)}))
def test_a_loss_that_is_not_least_there_can_get_less(name: str) -> None:
    """Else `minimum_at_equality = False` would spare a loss a test that it can pass."""
    lower = []
    for case in [Case(c, 1) for c in CONFIGS if c['type'] == name]:
        given, value, slopes = at_equality(case)
        steps = iter(slopes)
        moved = given.mapped(lambda x, steps=steps: x.detach() - 1e-4 * next(steps), 'student')
        lower.append(bool(case.value(moved) < value))
    assert any(lower)


def test_the_weight_multiplies(case: Case) -> None:
    given = case.sample()
    value = case.value(given)
    case.loss.loss_weight = 2.5
    torch.testing.assert_close(case.value(given), 2.5 * value)
    assert float(value.detach()) != 0


def test_no_two_losses_are_one() -> None:
    values: dict[Any, list[tuple[str, float]]] = {}
    for config in CONFIGS:
        case = Case(config, 1)
        given = case.sample()
        # Only inputs of one shape are the same inputs.
        shapes = tuple(x.shape for x in given.students())
        values.setdefault(shapes, []).append((config['type'], float(case.value(given).detach())))
    assert max(len(same) for same in values.values()) > 5
    for same in values.values():
        for (first, a), (second, b) in itertools.combinations(same, 2):
            if {first, second} != ONE:
                assert first == second or a != pytest.approx(b, rel=1e-4), f'{first} is {second}'


# Precision, memory, state


@pytest.mark.parametrize('half', [False, True])
def test_autocast_changes_nothing(case: Case, half: bool) -> None:
    given = case.sample().mapped(lambda x: x.bfloat16() if half else x)
    expected = case.value(given.mapped(Tensor.float))
    with torch.autocast('cpu', torch.bfloat16):
        value = case.value(given)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(case.value(given), expected)


def test_channels_last_is_the_same(case: Case) -> None:
    def striped(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    plain = case.sample().trained()
    case.value(plain).backward()
    for side in ('student', 'both'):
        given = case.sample().mapped(striped, side)
        given.mapped(lambda x: x.requires_grad_(), 'student')
        value = case.value(given)
        torch.testing.assert_close(value, case.value(plain))
        value.backward()
        torch.testing.assert_close(gradients(given), gradients(plain))


def test_two_runs_are_the_same_and_draw_no_common_random_number(case: Case) -> None:
    given = case.sample()
    before = torch.get_rng_state()
    first = case.value(given)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(case.value(given), first)


def test_a_copy_and_a_reloaded_loss_go_on_alike(case: Case) -> None:
    given, later = case.sample(), case.sample(seed=1)
    case.loss(given.student, given.teacher, given.batch)
    expected = case.value(later)
    assert torch.equal(case.value(later, copy.deepcopy(case.loss)), expected)
    other = case.built()
    other.load_state_dict(case.loss.state_dict())
    assert torch.equal(case.value(later, other), expected)


# Sizes and channels


@pytest.mark.parametrize('how', ALIGNMENTS)
def test_the_alignment_can_be_chosen(case: Case, how: str) -> None:
    if case.loss.align is None:
        with pytest.raises(ConfigError, match='resizes no maps.*Leave it out'):
            DistillationHead(loss=case.loss, align=how)
        return
    if how not in case.loss.alignments:
        with pytest.raises(ConfigError, match=f"can't take align='{how}'. It has: "):
            DistillationHead(loss=case.loss, align=how)
        return
    head = DistillationHead(loss=case.loss, align=how)
    assert head.loss.align == how
    given = case.sample()
    case.value(given)
    larger = given.mapped(lambda x: x.repeat_interleave(2, -1), 'teacher').trained()
    refused = how == 'strict' or (case.teachers > 1 and how == 'to_teacher')
    if refused:
        with pytest.raises(ShapeError, match='align='):
            case.value(larger)
        return
    case.value(larger).backward()
    gradients(larger)


@pytest.mark.parametrize('name', NAMES)
def test_unlike_channels_are_refused_where_they_are_compared(name: str) -> None:
    case = Case({'type': name}, 1)

    def taken(wider: int) -> bool:
        try:
            return bool(case.value(case.sample(wider=wider)).isfinite())
        except ShapeError as error:
            assert 'the student' in str(error) or 'anchors' in str(error)
            return False

    # For some, unlike channels have a meaning: deltas of each class, two logits an anchor.
    assert any(taken(wider) for wider in (CLASSES, 2)) is not case.loss.compares_channels


# Heads

OWN = [name for name in sorted(HEADS) if name != 'DistillationHead']
# What a head can't do without: weights that were trained before.
GIVEN = {
    'FTDistillationHead': {'tea_connector': {'type': 'ParaphraserConnector', 'untrained': True}},
    'MHGDDistillationHead': {'loss': {'untrained': True}},
}


def bound(name: str, **options: Any) -> tuple[DistillationHead, Sample]:
    """Returns a head of its paper's parts and a sample: of unlike channels if it takes them."""
    head = HEADS.build({'type': name, **GIVEN.get(name, {})}, 'contract')
    wider = 2 if head.stu_connector is not None else 1
    torch.manual_seed(0)
    given = sample(head.loss, wider=wider, **options)
    head.bind(*given.places)
    return head, given


@pytest.mark.parametrize('name', OWN)
def test_every_parameter_of_a_head_learns(name: str) -> None:
    head, given = bound(name)
    given = given.trained()
    head(given.student, given.teacher, given.batch).backward()
    if head.reads_student:
        assert any(bool(g.any()) for g in gradients(given))
    assert all(t.grad is None for t in given.teachers())
    learning = {n: p for n, p in head.named_parameters() if p.requires_grad}
    idle = [n for n, p in learning.items() if p.grad is None or not p.grad.any()]
    assert not idle, f'no gradient reaches {idle}'


@pytest.mark.parametrize('name', OWN)
def test_every_parameter_of_a_head_has_a_gradient_in_an_empty_step(name: str) -> None:
    # DDP waits for each of them.
    for options in ({'images': 0}, {'objects': False}):
        head, given = bound(name, **options)
        given = given.trained()
        value = head(given.student, given.teacher, given.batch)
        value.backward()
        assert bool(value.isfinite())
        learning = [p for p in head.parameters() if p.requires_grad]
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learning)


@pytest.mark.parametrize('name', OWN)
def test_a_copy_and_a_reloaded_head_go_on_alike(name: str) -> None:
    head, given = bound(name)
    values = given.student, given.teacher, given.batch
    head(*values)
    other, _ = bound(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    other.load_state_dict(head.state_dict())
    same = copy.deepcopy(head)
    expected = head(*values)
    assert torch.equal(same(*values), expected) and torch.equal(other(*values), expected)


@pytest.mark.parametrize('name', OWN)
def test_a_head_has_its_papers_loss_and_weight(name: str) -> None:
    head = HEADS.build({'type': name}, 'contract')
    assert set(head.default_loss) >= {'type', 'loss_weight'}
    assert type(head.loss) is LOSSES.get(head.default_loss['type'], 'contract')
    assert head.needs == head.loss.needs
