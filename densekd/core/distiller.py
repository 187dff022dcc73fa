"""Built heads and their taps, turned into a dict of losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.batch import FIELDS, Batch
from densekd.core.head import DistillationHead
from densekd.core.schedule import Schedule
from densekd.core.taps import Tap, Taps, Value
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
    """

    def __init__(
        self,
        head: DistillationHead,
        student: Tap | Sequence[Tap],
        teacher: Tap | Sequence[Tap],
        key: str,
        teachers: Sequence[str] = ('teacher',),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.student = student
        self.teacher = teacher
        self.key = key
        self.teachers = tuple(teachers)
        self.schedule = schedule or Schedule()

    def taps(self, side: str) -> dict[tuple[str, int], Tap]:
        """Returns the taps of one side, `'student'` or `'teacher'`, keyed for `Taps`."""
        tap = getattr(self, side)
        taps = [tap] if isinstance(tap, Tap) else list(tap)
        return {(self.key, i): t for i, t in enumerate(taps)}

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

    def weight(self, iteration: int, epoch: int) -> float:
        """Returns the schedule's factor, which does not include the loss's own weight."""
        return self.schedule(epoch if self.schedule.by == 'epoch' else iteration)

    def forward(self, student: Value, teacher: Value, batch: Batch, factor: float) -> Tensor:
        """Returns the weighted loss; a message that leaves it names the term.

        Raises:
            DenseKDError: What the head raises, with the term before it.
        """
        try:
            loss = self.head(student, teacher, batch)
        except DenseKDError as error:
            raise type(error)(f'distiller {self.key!r}: {error}') from None
        # A factor of 1 is left out: a product would round nothing, but cost a kernel a term.
        return loss if factor == 1.0 else loss * factor

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
