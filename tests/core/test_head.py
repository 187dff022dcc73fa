"""Connector, loss and head: defaults, lists, precision, and no gradient to the teacher."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from densekd.core.batch import Batch
from densekd.core.head import Connector, DistillationHead, DistillLoss
from densekd.core.taps import Place, Tap
from densekd.errors import ConfigError, ShapeError, TapError
from densekd.registry import CONNECTORS, LOSSES


class Gap(DistillLoss):
    """The mean difference, and what it was called with."""

    def __init__(self, loss_weight: float = 1.0, power: int = 1) -> None:
        super().__init__(loss_weight)
        self.power = power
        self.calls: list[tuple[Any, Any]] = []
        self.places: list[Place] = []

    def bind(self, student: Place, teacher: Place) -> None:
        self.places = [student, teacher]

    def compute(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        self.calls.append((student, teacher))
        if isinstance(student, list):
            return sum(
                (s.mean() - t.mean() for s, t in zip(student, teacher, strict=True)),
                torch.zeros(()),
            )
        return (student.mean() - teacher.mean()) ** self.power


class Joint(Gap):
    pairs = False


class Mean(Gap):
    ensemble = True

    def compute(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        self.calls.append((student, teacher))
        target = torch.stack(teacher).mean(0) if isinstance(teacher, list) else teacher
        return (student - target).mean()


class Pooled(Gap):
    align = 'pool_larger'


class Widen(Connector):
    def bind(self, own: Place, other: Place) -> None:
        self.layer = nn.Linear(own.channels, other.channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WidenAll(Widen):
    shared = True


class GapHead(DistillationHead):
    default_loss: ClassVar[dict[str, Any]] = {'type': 'Gap', 'loss_weight': 7.0, 'power': 3}
    default_stu_connector: ClassVar[dict[str, Any]] = {'type': 'Widen'}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LOSSES, '_table', {**LOSSES._table, 'Gap': Gap, 'Joint': Joint})
    monkeypatch.setattr(CONNECTORS, '_table', {**CONNECTORS._table, 'Widen': Widen})


def place(*channels: int, name: str = 'neck.p3') -> Place:
    shapes = tuple((1, c) for c in channels)
    return Place(Tap(name, name=name), shapes, (None,) * len(shapes))


# Defaults ---------------------------------------------------------------------------------------


def test_a_bare_head_is_its_papers() -> None:
    head = GapHead()
    assert (head.loss.loss_weight, head.loss.power) == (7.0, 3)
    assert type(head.stu_connector) is Widen and head.tea_connector is None


@pytest.mark.parametrize(
    'loss',
    [
        dict(loss_weight=2.0),
        dict(type='Gap', loss_weight=2.0),
        dict(type='densekd.Gap', loss_weight=2.0),
    ],
)
def test_a_key_of_the_config_wins_and_the_others_stay(loss: dict[str, Any]) -> None:
    given = dict(loss)
    built = GapHead(loss=loss).loss
    assert (built.loss_weight, built.power) == (2.0, 3)
    assert loss == given and GapHead.default_loss['loss_weight'] == 7.0


@pytest.mark.parametrize('loss', ['Joint', dict(type='Joint'), dict(type='densekd.Joint')])
def test_another_loss_does_not_get_the_papers_arguments(loss: Any) -> None:
    built = GapHead(loss=loss).loss
    assert type(built) is Joint and (built.loss_weight, built.power) == (1.0, 1)


def test_a_bare_name_of_the_papers_loss_keeps_its_arguments() -> None:
    assert GapHead(loss='Gap').loss.loss_weight == 7.0


def test_a_loss_that_is_built_is_taken_as_it_is() -> None:
    loss = Gap(4.0)
    assert DistillationHead(loss=loss).loss is loss
    assert GapHead(loss=loss).loss is loss


def test_a_head_without_a_loss_lists_them() -> None:
    with pytest.raises(
        ConfigError, match='DistillationHead: it needs a loss. It has: .*Gap, .*Joint'
    ):
        DistillationHead()


def test_mistakes_in_the_parts_say_where() -> None:
    with pytest.raises(ConfigError, match=r"GapHead.loss: Gap takes no 'weight'"):
        GapHead(loss=dict(weight=1))
    with pytest.raises(ConfigError, match=r"GapHead.stu_connector: there is no connector 'Widn'"):
        GapHead(stu_connector='Widn')
    with pytest.raises(ConfigError, match=r"GapHead.tea_connector: there is no connector 'Widn'"):
        GapHead(tea_connector=dict(type='Widn'))


# Values -----------------------------------------------------------------------------------------


def test_the_weight_multiplies_the_loss() -> None:
    head = DistillationHead(loss=Gap(5.0))
    assert head(torch.full((2, 3), 3.0), torch.ones(2, 3)).item() == 10.0


def test_no_gradient_reaches_the_teacher() -> None:
    student = torch.ones(2, 3, requires_grad=True)
    teacher = torch.ones(2, 3, requires_grad=True)
    head = DistillationHead(loss=Gap(), tea_connector=Widen())
    loss = head(student, teacher)
    loss.backward()
    assert student.grad is not None and teacher.grad is None
    assert head.tea_connector.layer.weight.grad is None
    Gap()(student, [teacher][0]).backward()
    assert teacher.grad is None


def test_several_tensors_are_compared_pair_by_pair_and_summed() -> None:
    loss = Gap()
    students = [torch.full((1, 2), 2.0), torch.full((1, 3), 5.0)]
    teachers = [torch.ones(1, 2), torch.ones(1, 3)]
    assert loss(students, teachers).item() == 5.0
    assert [s.shape for s, _ in loss.calls] == [(1, 2), (1, 3)]


def test_a_loss_of_lists_gets_them_in_one_call() -> None:
    loss = Joint()
    loss([torch.ones(1, 2)] * 2, [torch.ones(1, 2)] * 2)
    assert len(loss.calls) == 1 and isinstance(loss.calls[0][0], list)


def test_several_teachers_are_a_list_for_an_ensemble_loss() -> None:
    loss = Mean(2.0)
    teachers = [torch.ones(1, 2, requires_grad=True), torch.full((1, 2), 3.0)]
    assert loss(torch.full((1, 2), 5.0), teachers).item() == 6.0
    assert [t.requires_grad for t in loss.calls[0][1]] == [False, False]
    assert loss(torch.full((1, 2), 5.0), teachers[0]).item() == 8.0


def test_unlike_numbers_of_tensors_are_refused() -> None:
    with pytest.raises(
        ShapeError, match='Gap: the student tap gives 2 tensors and the teacher tap 1'
    ):
        Gap()([torch.ones(1, 2)] * 2, [torch.ones(1, 2)])


def test_maps_are_aligned_before_the_loss() -> None:
    loss = Pooled()
    loss(torch.ones(1, 2, 8, 3), torch.ones(1, 2, 4, 6))
    student, teacher = loss.calls[0]
    assert student.shape == teacher.shape == (1, 2, 4, 3)


def test_a_head_chooses_how_maps_are_aligned() -> None:
    s, t = torch.ones(1, 2, 8, 3), torch.ones(1, 2, 4, 6)
    sizes = {'to_teacher': (4, 6), 'to_student': (8, 3), 'pool_larger': (4, 3), None: (4, 3)}
    for how, size in sizes.items():
        head = DistillationHead(loss=Pooled(), align=how)
        head(s, t)
        student, teacher = head.loss.calls[0]
        assert student.shape == teacher.shape == (1, 2, *size)
    with pytest.raises(ShapeError, match='align="strict" allows no resizing'):
        DistillationHead(loss=Pooled(), align='strict')(s, t)
    assert Pooled.align == 'pool_larger'


def test_an_alignment_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="GapHead: there is no align='to_techer'. Did you mean"):
        GapHead(align='to_techer')
    with pytest.raises(ConfigError, match='GapHead: Gap resizes no maps.*Leave it out'):
        GapHead(align='to_teacher')

    class Gridded(Pooled):
        alignments = ('pool_larger', 'strict')

    message = "Gridded can't take align='to_student'. It has: pool_larger, strict."
    with pytest.raises(ConfigError, match=message):
        DistillationHead(loss=Gridded(), align='to_student')


def test_several_teachers_are_resized_to_the_student_alone() -> None:
    class Resized(Mean):
        align = 'to_student'

    s, teachers = torch.ones(1, 2, 4, 4), [torch.ones(1, 2, 4, 4), torch.ones(1, 2, 8, 8)]
    for how in ('to_student', 'pool_larger'):
        head = DistillationHead(loss=Resized(), align=how)
        head(s, teachers)
        assert [t.shape for t in head.loss.calls[0][1]] == [(1, 2, 4, 4)] * 2
    with pytest.raises(ShapeError, match="align='to_teacher' would resize the student to each"):
        DistillationHead(loss=Resized(), align='to_teacher')(s, teachers)
    with pytest.raises(ShapeError, match='align="strict"'):
        DistillationHead(loss=Resized(), align='strict')(s, teachers)


@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16])
def test_losses_compute_in_float32_whatever_is_tapped(half: torch.dtype) -> None:
    loss = Gap()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = loss(torch.ones(1, 2, dtype=half), torch.ones(1, 2, dtype=half))
    student, teacher = loss.calls[0]
    assert {student.dtype, teacher.dtype, value.dtype} == {torch.float32}


def test_autocast_is_off_inside_a_loss() -> None:
    class Product(Gap):
        def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
            assert (student @ teacher.T).dtype == torch.float32
            return super().compute(student, teacher, batch)

    with torch.autocast('cpu', dtype=torch.bfloat16):
        Product()(torch.ones(2, 2), torch.ones(2, 2))


def test_float64_is_kept() -> None:
    assert Gap()(torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)).dtype == (
        torch.float64
    )


# Binding ----------------------------------------------------------------------------------------


def test_a_head_used_alone_binds_to_its_first_tensors() -> None:
    head = GapHead()
    head(torch.ones(2, 3), torch.ones(2, 5))
    weight = head.stu_connector.layer.weight
    assert weight.shape == (5, 3)
    head(torch.ones(2, 3), torch.ones(2, 5))
    assert head.stu_connector.layer.weight is weight


def test_binding_hands_each_part_the_places() -> None:
    head = DistillationHead(loss=Gap(), stu_connector=Widen(), tea_connector=Widen())
    student, teacher = place(3), place(5)
    head.bind(student, teacher)
    assert head.stu_connector.layer.weight.shape == (5, 3)
    assert head.tea_connector.layer.weight.shape == (3, 5)
    assert head.loss.places == [student, teacher]


def test_several_tensors_have_a_connector_each() -> None:
    head = DistillationHead(loss=Gap(), stu_connector=Widen())
    head.bind(place(3, 4), place(5, 6))
    weights = [level.layer.weight for level in head.stu_connector]
    assert [w.shape for w in weights] == [(5, 3), (6, 4)]
    head([torch.ones(1, 3), torch.ones(1, 4)], [torch.ones(1, 5), torch.ones(1, 6)]).backward()
    assert all(w.grad is not None for w in weights)
    with pytest.raises(TapError, match='a tap of 2 tensors gave 1'):
        head([torch.ones(1, 3)], [torch.ones(1, 5)])


def test_a_shared_connector_is_one_for_all() -> None:
    head = DistillationHead(loss=Gap(), stu_connector=WidenAll())
    head.bind(place(3, 3), place(5, 5))
    assert type(head.stu_connector) is WidenAll
    head([torch.ones(1, 3)] * 2, [torch.ones(1, 5)] * 2)
    assert [s.shape for s, _ in head.loss.calls] == [(1, 5), (1, 5)]


def test_what_a_connector_learns_is_in_the_heads_state() -> None:
    head = GapHead()
    head.bind(place(3), place(5))
    assert list(head.state_dict()) == ['stu_connector.layer.weight']
