"""The three parts of a distiller: connectors, a loss, and the head that joins them.

    loss( stu_connector(student tap), tea_connector(teacher tap), batch )

Each part is a module that can be built from a config alone. What depends on the two networks
(channels, margins, strides) is decided once, in `bind`, before the optimiser is built.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from densekd.core.batch import FIELDS, Batch
from densekd.core.ops import ALIGNMENTS, align, float_island, no_autocast
from densekd.core.taps import Place, Tap, Value, tensors
from densekd.errors import ConfigError, ShapeError, TapError, did_you_mean
from densekd.registry import CONNECTORS, HEADS, LOSSES


class Connector(nn.Module):
    """Turns one side's tapped tensor into what the loss compares.

    A subclass builds its layers in `bind`, from the channels of both places, and maps one tensor
    in `forward`. A tap that gives a list is handled by the head: one connector for all tensors if
    `shared` is true, else one deep copy each.
    """

    shared: ClassVar[bool] = False
    keeps_channels: ClassVar[bool] = False  # whether as many channels go out as come in
    # On the teacher's side: whether it rebuilds the teacher's tensor, with which it is compared.
    rebuilds: ClassVar[bool] = False

    def bind(self, own: Place, other: Place) -> None:
        """Builds what depends on the two places.

        Args:
            own: The place on this connector's side.
            other: The place on the other side.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Maps one tapped tensor."""
        raise NotImplementedError


class DistillLoss(nn.Module):
    """A loss between a student's and a teacher's tensor, or lists of them.

    Args:
        loss_weight: Factor on the result.

    A subclass names its pure function, says what it needs of the batch, and whether H and W of
    two maps are brought together before it is called (`align`). What else it declares, a contract
    holds it to: tests/methods/test_contract.py.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    pairs: ClassVar[bool] = True  # one call a pair of tensors, summed; False: one call with lists
    # Whether a list on the teacher's side alone means several teachers, as for ensembles.
    ensemble: ClassVar[bool] = False
    align: str | None = None
    alignments: ClassVar[tuple[str, ...]] = ALIGNMENTS  # those that a head may choose from
    compares_cells: ClassVar[bool] = True  # so that maps of unlike strides are resized, or refused
    compares_channels: ClassVar[bool] = True  # so that both sides must have as many
    minimum_at_equality: ClassVar[bool] = True  # with a gradient of zero there
    may_rest: ClassVar[bool] = False  # whether it is rightly 0 where the student needs no teaching
    vectors: ClassVar[bool] = False  # whether it compares one vector an image; of a map, its mean
    undecayed: ClassVar[tuple[str, ...]] = ()  # names of its parameters that no decay may draw to 0
    fewest: ClassVar[int] = 1  # images, below which there is nothing to relate and it is 0

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def bind(self, student: Place, teacher: Place) -> None:
        """Takes what depends on the two places (margins, strides)."""

    def compute(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        """Returns the unweighted loss; `student` and `teacher` are tensors, or lists of them."""
        raise NotImplementedError

    def forward(self, student: Value, teacher: Value, batch: Batch | None = None) -> Tensor:
        """Returns the weighted loss, in float32 whatever autocast says.

        Raises:
            ShapeError: If the two sides give unlike numbers of tensors, or tensors that the loss
                can't compare.
        """
        batch = Batch() if batch is None else batch
        many = isinstance(student, list)
        first = tensors(student)[0]
        with no_autocast(first.device):
            if self.ensemble and isinstance(teacher, list) and not many:
                s = float_island(first)
                teachers = [float_island(t).detach().to(s.device) for t in teacher]
                result = self.compute(s, [self._resized(s, t) for t in teachers], batch)
                return self.loss_weight * result
            pairs = self._pair(tensors(student), tensors(teacher))
            if not self.pairs:
                result = self.compute([s for s, _ in pairs], [t for _, t in pairs], batch)
            elif many:
                result = torch.stack([self.compute(s, t, batch) for s, t in pairs]).sum()
            else:
                result = self.compute(*pairs[0], batch)
        return self.loss_weight * result

    def _resized(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns one of several teachers' maps in the size of the student's, which all share."""
        if self.align is None:
            return teacher
        kept, resized = align(student, teacher, self.align)
        if kept.shape != student.shape:
            raise ShapeError(
                f'{type(self).__name__}: align={self.align!r} would resize the student to each of '
                'several teachers. Choose to_student.'
            )
        return resized

    def _pair(self, student: list[Tensor], teacher: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        name = type(self).__name__
        if len(student) != len(teacher):
            raise ShapeError(
                f'{name}: the student tap gives {len(student)} tensors and the teacher tap '
                f'{len(teacher)}. Tap as many places on each side, paired by stride.'
            )
        pairs = []
        for s, t in zip(student, teacher, strict=True):
            s, t = float_island(s), float_island(t).detach().to(s.device)
            if self.align is not None:
                s, t = align(s, t, self.align)
            pairs.append((s, t))
        return pairs


def check_same_shape(student: Tensor, teacher: Tensor, name: str) -> None:
    """Refuses two tensors of unlike shape, which broadcasting would compare all the same.

    Raises:
        ShapeError: Naming what differs.
    """
    if student.shape == teacher.shape:
        return
    if student.dim() == teacher.dim() and student.dim() > 1:
        for axis, label in enumerate(('images', 'channels', 'rows (H)', 'columns (W)')):
            if axis < student.dim() and student.shape[axis] != teacher.shape[axis]:
                advice = (
                    ' Give the head stu_connector=dict(type="ConvConnector").' if axis == 1 else ''
                )
                raise ShapeError(
                    f'{name}: the student has {student.shape[axis]} {label} and the teacher '
                    f'{teacher.shape[axis]}, in {tuple(student.shape)} and '
                    f'{tuple(teacher.shape)}.{advice}'
                )
    raise ShapeError(
        f'{name}: the student tensor is {tuple(student.shape)} and the teacher tensor '
        f'{tuple(teacher.shape)}; they must have the same shape.'
    )


@HEADS.register
class DistillationHead(nn.Module):
    """A loss with a connector on each side.

    Args:
        loss: Config of a loss, or a loss.
        stu_connector: Config of a connector on the student's side, or None for none.
        tea_connector: The same on the teacher's side.
        name: What the term is called in the log, after its level.
        align: How maps of unlike H and W are brought together: `'to_teacher'` resizes the student's
            bilinearly, `'to_student'` the teacher's, `'pool_larger'` averages the larger one down,
            `'strict'` refuses them; None takes the loss's own way.

    A method's own head is a subclass that only names its paper's parts in `default_loss` and
    `default_stu_connector`; what a config gives wins over them, key by key for the loss. A default
    connector is switched off with `stu_connector='IdentityConnector'`.

    Raises:
        ConfigError: If a part is unknown or takes other arguments, or the loss can't be aligned so.

    Example:
        >>> import densekd.methods
        >>> DistillationHead(loss=dict(type='PKDLoss', loss_weight=6.0)).loss.loss_weight
        6.0
    """

    default_loss: ClassVar[dict[str, Any] | None] = None
    default_stu_connector: ClassVar[dict[str, Any] | None] = None
    default_tea_connector: ClassVar[dict[str, Any] | None] = None

    def __init__(
        self,
        loss: Any = None,
        stu_connector: Any = None,
        tea_connector: Any = None,
        name: str | None = None,
        align: str | None = None,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        if loss is None and self.default_loss is None:
            raise ConfigError(f'{where}: it needs a loss. It has: {", ".join(sorted(LOSSES))}.')
        defaults = self.default_loss
        loss = {'type': loss} if isinstance(loss, str) else loss
        if isinstance(loss, dict) and defaults and _bare(loss) not in ('', defaults['type']):
            defaults = None  # another loss: the paper's arguments are not its own
        self.loss: DistillLoss = LOSSES.build(
            defaults if loss is None else loss, f'{where}.loss', defaults
        )
        self.stu_connector = self._connector(stu_connector, self.default_stu_connector, 'stu')
        self.tea_connector = self._connector(tea_connector, self.default_tea_connector, 'tea')
        self.name = name
        self._align(align)
        self._bound = False

    def _connector(self, cfg: Any, default: Any, side: str) -> Connector | None:
        cfg = default if cfg is None else cfg
        if cfg is None:
            return None
        return CONNECTORS.build(cfg, f'{type(self).__name__}.{side}_connector')

    def _align(self, how: str | None) -> None:
        if how is None:
            return
        where, loss = type(self).__name__, type(self.loss).__name__
        if how not in ALIGNMENTS:
            hint = did_you_mean(how, ALIGNMENTS)
            raise ConfigError(f'{where}: there is no align={how!r}. {hint}')
        if self.loss.align is None:
            raise ConfigError(
                f'{where}: {loss} resizes no maps, so there is no align to choose. Leave it out.'
            )
        if how not in self.loss.alignments:
            raise ConfigError(
                f"{where}: {loss} can't take align={how!r}. It has: "
                f'{", ".join(self.loss.alignments)}.'
            )
        self.loss.align = how

    @property
    def bound(self) -> bool:
        """Whether its connectors have been built for two places."""
        return self._bound

    @property
    def reads_student(self) -> bool:
        """Whether the student is compared; without, a connector learns of the teacher alone."""
        connector: Any = self.tea_connector
        first = connector[0] if isinstance(connector, _EachLevel) else connector
        return not getattr(first, 'rebuilds', False)

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields of the batch that the loss asks for."""
        unknown = [need for need in self.loss.needs if need not in FIELDS]
        if unknown:
            raise ConfigError(
                f'{type(self.loss).__name__}: there is no batch field {unknown[0]!r}.'
            )
        return self.loss.needs

    def bind(self, student: Place, teacher: Place) -> None:
        """Builds connectors and takes margins, strides and channels from the two places.

        Raises:
            ShapeError: If an identity passes on channels that the loss can't compare.
        """
        self._check_passed_on(student, teacher)
        self.stu_connector = _bound(self.stu_connector, student, teacher)
        self.tea_connector = _bound(self.tea_connector, teacher, student)
        self.loss.bind(student, teacher)
        self._bound = True

    def _check_passed_on(self, student: Place, teacher: Place) -> None:
        given = [c for c in (self.stu_connector, self.tea_connector) if c is not None]
        kept = bool(given) and all(getattr(c, 'keeps_channels', False) for c in given)
        if not kept or not self.loss.compares_channels:
            return
        students = student.shapes
        if self.loss.ensemble and len(students) == 1:
            students = students * len(teacher.shapes)
        for s, t in zip(students, teacher.shapes, strict=False):
            if len(s) > 1 and len(t) > 1 and s[1] != t[1]:
                raise ShapeError(
                    f'{type(self).__name__}: {type(given[0]).__name__} leaves the student {s[1]} '
                    f'channels at {student.tap.label!r} and the teacher {t[1]} at '
                    f'{teacher.tap.label!r}, which {type(self.loss).__name__} compares one by '
                    'one. Give the head stu_connector=dict(type="ConvConnector").'
                )

    def forward(self, student: Value | None, teacher: Value, batch: Batch | None = None) -> Tensor:
        """Returns the weighted loss of one step.

        Args:
            student: The student's tapped tensor, or a list of them; None where it is not read.
            teacher: The teacher's, detached here.
            batch: What the loss may know of the batch.
        """
        teacher = [t.detach() for t in teacher] if isinstance(teacher, list) else teacher.detach()
        if not self._bound:
            # Used alone, without a model around it: the first tensors say the channels.
            self._bind_to(teacher if student is None else student, teacher)
        if not self.reads_student:
            return self.loss(_connect(self.tea_connector, teacher), teacher, batch)
        if student is None:
            raise ConfigError(f"{type(self).__name__}: the student's tensor is missing.")
        student = _connect(self.stu_connector, student)
        teacher = _connect(self.tea_connector, teacher)
        return self.loss(student, teacher, batch)

    def _bind_to(self, student: Value, teacher: Value) -> None:
        places = []
        for side, value in (('student', student), ('teacher', teacher)):
            shapes = tuple(tuple(t.shape) for t in tensors(value))
            places.append(Place(Tap(side, name=side), shapes, (None,) * len(shapes)))
        self.bind(*places)
        self.to(tensors(student)[0].device)


def _bare(cfg: dict[str, Any]) -> str:
    return str(cfg.get('type', '')).removeprefix('densekd.')


class _EachLevel(nn.ModuleList):
    """One connector for each tensor of a list."""


def _bound(connector: Any, own: Place, other: Place) -> Any:
    if connector is None:
        return None
    count = len(own.shapes)
    if count == 1 or connector.shared:
        connector.bind(own, other)
        return connector
    levels = []
    for i in range(count):
        level = copy.deepcopy(connector)
        level.bind(_one(own, i), _one(other, min(i, len(other.shapes) - 1)))
        levels.append(level)
    return _EachLevel(levels)


def _one(place: Place, i: int) -> Place:
    return replace(place, shapes=place.shapes[i : i + 1], strides=place.strides[i : i + 1])


def _connect(connector: Any, value: Value) -> Value:
    if connector is None:
        return value
    if isinstance(connector, _EachLevel):
        if not isinstance(value, list) or len(value) != len(connector):
            raise TapError(f'a tap of {len(connector)} tensors gave {len(tensors(value))}.')
        return [level(x) for level, x in zip(connector, value, strict=True)]
    return [connector(x) for x in value] if isinstance(value, list) else connector(value)
