"""Built heads and their taps, turned into a dict of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.batch import FIELDS, Batch
from densekd.core.head import DistillationHead
from densekd.core.ops import zero_like_loss
from densekd.core.schedule import Schedule
from densekd.core.taps import Tap, Taps, Value, tensors
from densekd.errors import ConfigError, DenseKDError


class Distiller(nn.Module):
    """One comparison between a place in the student and a place in the teacher.

    Args:
        head: The head, built and bound.
        student: The student's tap, or a list of them.
        teacher: The teacher's, likewise.
        key: The name of the term, without `distill.loss_`: level and name.
        teachers: Names of the teachers to read; with several, the loss gets a list.
        schedule: How the weight changes.
        lr_mult: Factor on the learning rate of what the head adds: its connectors.
        learner: Name of the network that it teaches, if that is not the student but a peer.

    Raises:
        ConfigError: If there is nothing to train with that learning rate, or before the student.
    """

    def __init__(
        self,
        head: DistillationHead,
        student: Tap | Sequence[Tap],
        teacher: Tap | Sequence[Tap],
        key: str,
        teachers: Sequence[str] = ('teacher',),
        schedule: Schedule | None = None,
        lr_mult: float = 1.0,
        learner: str = 'student',
    ) -> None:
        super().__init__()
        self.head = head
        self.student = student
        self.teacher = teacher
        self.key = key
        self.teachers = tuple(teachers)
        self.schedule = schedule or Schedule()
        self.lr_mult = lr_mult
        self.learner = learner
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        if next(self.parameters(), None) is not None:
            return
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
