"""Heads and their taps, turned into named, weighted, scheduled terms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densekd.core.batch import Batch
from densekd.core.distiller import Distiller, check_needs, term_key
from densekd.core.head import Connector, DistillationHead, DistillLoss, check_same_shape
from densekd.core.schedule import Schedule
from densekd.core.taps import Tap, Taps
from densekd.errors import ConfigError, ShapeError


class Gap(DistillLoss):
    needs = ('seed',)

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        check_same_shape(student, teacher, 'Gap')
        return (student - teacher).abs().mean()


class Scale(Connector):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.offset = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def distiller(schedule: Schedule | None = None, **more: object) -> Distiller:
    head = DistillationHead(loss=Gap(2.0), stu_connector=Scale())
    return Distiller(head, Tap('0'), Tap('0'), 'neck_gap', schedule=schedule, **more)


def test_a_term_is_the_weighted_loss() -> None:
    term = distiller()(torch.full((1, 2), 3.0), torch.ones(1, 2), Batch(), 1.0)
    assert term.item() == pytest.approx(4.0)


def test_the_factor_multiplies_it() -> None:
    term = distiller()(torch.full((1, 2), 3.0), torch.ones(1, 2), Batch(), 0.25)
    assert term.item() == pytest.approx(1.0)


@pytest.mark.parametrize(('by', 'wanted'), [('iter', 0.5), ('epoch', 0.3)])
def test_the_schedule_reads_its_own_clock(by: str, wanted: float) -> None:
    one = distiller(Schedule(by=by, warmup=10))
    assert one.weight(iteration=5, epoch=2) == pytest.approx(wanted)


def test_without_epochs_a_schedule_in_epochs_stands_where_it_would_stay() -> None:
    one = distiller(Schedule(by='epoch', warmup=10, connectors_first=3))
    assert one.weight(0, None) == 1.0 and one.reaches_student(0, None)
    assert one.weight(0, 0) == 0.1 and not one.reaches_student(0, 0)
    other = distiller(Schedule(warmup=10, connectors_first=3))
    assert other.weight(0, None) == 0.0 and not other.reaches_student(0, None)


@pytest.mark.parametrize('many', [False, True])
def test_a_connector_is_taught_alone(many: bool) -> None:
    one = distiller(Schedule(connectors_first=1))
    taps = [torch.full((1, 2), 3.0, requires_grad=True) for _ in range(2)]
    teacher = torch.ones(1, 2)
    read = (taps, [teacher, teacher]) if many else (taps[0], teacher)
    value = one(*read, Batch(), 1.0, one.reaches_student(0, 0))
    assert value.item() == one(*read, Batch(), 1.0, True).item() > 0
    value.backward()
    # A zero, and not nothing: each process of several waits for a gradient.
    assert all(not t.grad.any() for t in taps[: len(taps) if many else 1])
    factor = (one.head.stu_connector[0] if many else one.head.stu_connector).factor
    assert factor.grad.item() != 0


@pytest.mark.parametrize(
    ('more', 'said'),
    [
        (dict(lr_mult=10.0), 'lr_mult'),
        (dict(schedule=Schedule(connectors_first=5)), 'schedule.connectors_first'),
    ],
)
def test_what_is_for_connectors_needs_one(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^distiller 'neck_gap': {said} is for what a head adds"):
        Distiller(DistillationHead(loss=Gap()), Tap('0'), Tap('0'), 'neck_gap', **more)


def test_an_error_in_the_head_names_the_term_and_keeps_its_class() -> None:
    with pytest.raises(ShapeError, match="^distiller 'neck_gap': Gap: the student has 2 channels"):
        distiller()(torch.ones(1, 2), torch.ones(1, 3), Batch(), 1.0)


def test_silent_is_a_zero_on_every_own_parameter() -> None:
    one = distiller()
    zero = one.silent('cpu')
    zero.backward()
    assert zero.item() == 0.0
    grads = [p.grad for p in one.parameters()]
    assert len(grads) == 2 and all(g is not None and not g.any() for g in grads)


def test_silent_without_parameters_is_a_plain_zero() -> None:
    one = Distiller(DistillationHead(loss=Gap()), Tap('0'), Tap('0'), 'neck_gap')
    assert one.silent('cpu').item() == 0.0


def test_one_tap_is_read_as_a_tensor_and_several_as_a_list() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    head = DistillationHead(loss=Gap())
    single = Distiller(head, Tap('0'), Tap('1'), 'a')
    double = Distiller(head, [Tap('0'), Tap('1')], [Tap('1')], 'b')
    assert single.taps('student') == {('a', 0): Tap('0')}
    taps = {**single.taps('student'), **double.taps('student')}
    assert len(taps) == 3
    with Taps(net, taps) as reading:
        net(torch.ones(1, 2))
    assert single.read('student', reading).shape == (1, 3)
    assert [t.shape[1] for t in double.read('student', reading)] == [3, 4]


def test_lists_of_several_taps_are_joined() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    shared = nn.Sequential(net[0], net[0], net[1])
    one = Distiller(DistillationHead(loss=Gap()), [Tap('0', call='all'), Tap('2')], Tap('0'), 'a')
    with Taps(shared, one.taps('student')) as reading:
        shared(torch.ones(1, 2))
    assert len(one.read('student', reading)) == 3


def test_needs_that_are_supplied_pass() -> None:
    check_needs([distiller()], ('seed',), 'W')
    with pytest.raises(ConfigError, match="'neck_gap': Gap needs seed"):
        check_needs([distiller()], ('inputs',), 'W')


@pytest.mark.parametrize(
    ('level', 'name', 'key'),
    [
        ('neck', 'fgfi_p3', 'neck_fgfi_p3'),
        ('neck', 'neck_mine', 'neck_mine'),
        ('backbone', 'ofd_c4.pre_relu', 'backbone_ofd_c4_pre_relu'),
        ('', 'mine', 'mine'),
    ],
)
def test_a_term_is_called_level_then_name(level: str, name: str, key: str) -> None:
    assert term_key(level, name, {}) == key


def test_names_differ_by_level() -> None:
    assert term_key('head', 'pkd', {'neck_pkd': 1}) == 'head_pkd'
    with pytest.raises(ConfigError, match="'pkd' is used twice"):
        term_key('neck', 'pkd', {'neck_pkd': 1})
