"""Built heads and their taps, turned into a dict of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.batch import FIELDS, Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import zero_like_loss
from densekd.core.schedule import Schedule
from densekd.core.taps import Place, Tap, Taps, Value, parse_tap, tensors
from densekd.errors import ConfigError, DenseKDError, ShapeError, TapError


class Distiller(nn.Module):
    """One comparison between a place in the student and a place in the teacher.

    Args:
        head: The head, built.
        student: The student's tap, or a list of them. A string is the path of a module, whose
            output is read; a dict has `Tap`'s arguments.
        teacher: The teacher's, likewise.
        key: The name of the term, without `distill.loss_`: level and name.
        teachers: Names of the teachers to read; with several, the loss gets a list.
        schedule: How the weight changes.
        lr_mult: Factor on the learning rate of what the head adds: its connectors.
        learner: Name of the network that it teaches, if that is not the student but a peer.
        clip_to_task: Whether its gradient is clipped to the task's, parameter by parameter, and
            first to a part of it: `densekd.core.clip`.

    Raises:
        ConfigError: If there is no head, or nothing to train with that learning rate, or before the
            student.
        TapError: If a tap is neither of these.
    """

    def __init__(
        self,
        head: DistillationHead,
        student: Any,
        teacher: Any,
        key: str = '',
        teachers: Sequence[str] = ('teacher',),
        schedule: Schedule | None = None,
        lr_mult: float = 1.0,
        learner: str = 'student',
        clip_to_task: bool = False,
    ) -> None:
        super().__init__()
        self.head = _checked(head)
        self.student = _parsed(student, 'student')
        self.teacher = _parsed(teacher, 'teacher')
        self.key = key
        self.teachers = tuple(teachers)
        self.schedule = schedule or Schedule()
        self.lr_mult = lr_mult
        self.learner = learner
        self.clip_to_task = clip_to_task
        self.refuse_idle()

    def refuse_idle(self) -> None:
        """Refuses what is for connectors that train, where there are none.

        Raises:
            ConfigError: Naming it.
        """
        waits = not self.head.bound and (self.head.stu_connector or self.head.tea_connector)
        if waits or next(self.parameters(), None) is not None:
            return  # what waits has its parameters when it is bound
        for name, given in (
            ('lr_mult', self.lr_mult != 1.0),
            ('schedule.connectors_first', self.schedule.connectors_first > 0),
        ):
            if given:
                raise ConfigError(
                    f'distiller {self.key!r}: {name} is for what a head adds and trains, and this '
                    'one has nothing of the kind. Leave it out, or give the head a connector.'
                )

    def taps(self, side: str) -> dict[tuple[str, int], Tap]:
        """Returns the taps of one side, `'student'` or `'teacher'`, keyed for `Taps`."""
        tap = getattr(self, side)
        taps = [tap] if isinstance(tap, Tap) else list(tap)
        return {(self.key, i): t for i, t in enumerate(taps)}

    @property
    def reads_student(self) -> bool:
        """Whether the student is compared; without, a connector learns of the teacher alone."""
        return self.head.reads_student

    def read(self, side: str, reading: Taps) -> Value:
        """Returns what this distiller compares of one side: a tensor or a list."""
        keys = list(self.taps(side))
        if isinstance(getattr(self, side), Tap):
            return reading[keys[0]]
        values: list[Tensor] = []
        for key in keys:
            value = reading[key]
            values += value if isinstance(value, list) else [value]
        return values

    def weight(self, iteration: int, epoch: int | None) -> float:
        """Returns the schedule's factor, which does not include the loss's own weight.

        Args:
            iteration: Iterations begun before this one.
            epoch: Epochs likewise, or None where nobody counts them: a schedule in epochs then
                stands where it would stay, at 1.
        """
        time = epoch if self.schedule.by == 'epoch' else iteration
        return 1.0 if time is None else self.schedule(time)

    def reaches_student(self, iteration: int, epoch: int | None) -> bool:
        """Returns whether the gradient goes on to the student, or ends in the connectors."""
        time = epoch if self.schedule.by == 'epoch' else iteration
        return time is None or self.schedule.reaches_student(time)

    def clips(self, iteration: int, epoch: int | None) -> bool:
        """Returns whether its gradient on the student is clipped to the task's now."""
        reaches = self.reads_student and self.reaches_student(iteration, epoch)
        return self.clip_to_task and reaches and torch.is_grad_enabled()

    def forward(
        self,
        student: Value | None,
        teacher: Value,
        batch: Batch,
        factor: float,
        reaches_student: bool = True,
    ) -> Tensor:
        """Returns the weighted loss; a message that leaves it names the term.

        Args:
            student: What was read of the student; None if it is not compared.
            teacher: What was read of the teacher.
            batch: What the loss may know of the batch.
            factor: The schedule's factor.
            reaches_student: Whether the student learns from it, too.

        Raises:
            DenseKDError: What the head raises, with the term before it.
        """
        held = [] if student is None else tensors(student)
        if held and not reaches_student:
            student = [t.detach() for t in held] if isinstance(student, list) else held[0].detach()
        try:
            loss = self.head(student, teacher, batch)
        except DenseKDError as error:
            raise type(error)(f'distiller {self.key!r}: {error}') from None
        # A factor of 1 is left out: a product would round nothing, but cost a kernel a term.
        loss = loss if factor == 1.0 else loss * factor
        # The student stays on the graph: DDP waits for a gradient of every parameter.
        return loss if reaches_student or not held else loss + zero_like_loss(*held)

    def silent(self, device: Any) -> Tensor:
        """Returns a zero on the graph of every own parameter, for a step without a teacher."""
        zero = torch.zeros((), device=device)
        return sum((p[:0].sum() if p.dim() else p * 0 for p in self.parameters()), zero)


def _checked(head: Any) -> DistillationHead:
    if isinstance(head, DistillationHead):
        return head
    if isinstance(head, DistillLoss):
        raise ConfigError(
            f'distiller: {type(head).__name__} is a loss, and a distiller needs a head around it. '
            'Write DistillationHead(loss=…).'
        )
    raise ConfigError(
        'distiller: a built head is needed, such as densekd.methods.PKDDistillationHead(), not '
        f'{head!r}. densekd.methods.build makes one from a config.'
    )


def _parsed(given: Any, side: str) -> Tap | list[Tap]:
    if not isinstance(given, (list, tuple)):
        return parse_tap(given, {}, f'distiller.{side}')
    if not given:
        raise TapError(f'distiller.{side}: the list is empty.')
    return [parse_tap(one, {}, f'distiller.{side}') for one in given]


def check_needs(distillers: Sequence[Distiller], offered: Sequence[str], wrapper: str) -> None:
    """Refuses a loss that needs what the wrapper can't supply.

    Raises:
        ConfigError: Naming the loss and what it needs.
    """
    for distiller in distillers:
        for need in distiller.head.needs:
            if need not in offered:
                loss = type(distiller.head.loss).__name__
                raise ConfigError(
                    f'distiller {distiller.key!r}: {loss} needs {need} ({FIELDS[need]}), which '
                    f"{wrapper} can't supply for this student. It supplies: {', '.join(offered)}."
                )


def term_key(level: str, name: str, taken: Mapping[str, Any]) -> str:
    """Returns the name of a term, level before name, made unique.

    Raises:
        ConfigError: If the name holds `loss`: what mmengine sums is decided by that word.
    """
    if 'loss' in name:
        raise ConfigError(
            f'distillers: the name {name!r} holds the word "loss", by which the runner picks what '
            'it sums; the log puts "distill.loss_" before every name by itself.'
        )
    base = f'{level}_{name}' if level and not name.startswith(f'{level}_') else name
    base = base.replace('.', '_')
    if base not in taken:
        return base
    raise ConfigError(
        f'distillers: the name {name!r} is used twice; give each head a name of its own.'
    )


def method_name(head: DistillationHead) -> str:
    """Returns the name of a head's method, in small letters.

    Example:
        >>> from densekd.methods import PKDDistillationHead
        >>> method_name(PKDDistillationHead())
        'pkd'
    """
    name = type(head).__name__.removesuffix('DistillationHead') or type(head.loss).__name__
    return name.removesuffix('Loss').lower()


def joined(places: Sequence[Place]) -> Place:
    """Returns several places as one that gives all their tensors."""
    return replace(
        places[0],
        shapes=tuple(shape for p in places for shape in p.shapes),
        strides=tuple(stride for p in places for stride in p.strides),
    )


def check_pairing(student: Place, teacher: Place, where: str, head: DistillationHead) -> None:
    """Refuses two places that give unlike numbers of tensors, or maps of unlike strides.

    Raises:
        ShapeError: Naming both places.
    """
    if head.loss.ensemble and len(student.shapes) == 1:
        # One place in the student, against the same in each of several teachers.
        count = len(teacher.shapes)
        student = replace(student, shapes=student.shapes * count, strides=student.strides * count)
    if len(student.shapes) != len(teacher.shapes):
        raise ShapeError(
            f'{where}: the student gives {len(student.shapes)} tensors at '
            f'{student.tap.label!r} and the teacher {len(teacher.shapes)} at '
            f'{teacher.tap.label!r}. Tap the same levels on both sides, by name.'
        )
    _refuse_tokens(student, teacher, where)
    if head.loss.vectors or not head.loss.compares_cells:
        return
    for s, t in zip(student.strides, teacher.strides, strict=True):
        if s is None or t is None or s == t:
            continue
        ratio = max(max(a / b, b / a) for a, b in zip(s, t, strict=True))
        if ratio > 2.001 or head.loss.align in (None, 'strict'):
            raise ShapeError(
                f"{where}: the student's {student.tap.label!r} has stride {s[0]:g} and the "
                f"teacher's {teacher.tap.label!r} stride {t[0]:g}; "
                f'{type(head.loss).__name__} compares cell by cell. Pair places of equal stride.'
            )


def _refuse_tokens(student: Place, teacher: Place, where: str) -> None:
    for i, (s, t) in enumerate(zip(student.shapes, teacher.shapes, strict=True)):
        if {len(s), len(t)} == {3, 4}:
            place, who = (student, 'student') if len(s) == 3 else (teacher, 'teacher')
            raise ShapeError(f"{where}: the {who}'s {place.tap.label!r}: {place.as_tokens(i)}")
