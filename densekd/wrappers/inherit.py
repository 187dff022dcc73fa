"""What a student takes over from its teacher before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from densekd.core.teacher import Teacher
from densekd.errors import ConfigError, ShapeError
from densekd.wrappers.wiring import matching


def inherited(
    student: nn.Module, teachers: Mapping[str, Teacher], patterns: str | Sequence[str] | None
) -> dict[str, Tensor]:
    """Returns the teacher's parameters and buffers that the student is to start with.

    Args:
        student: The student.
        teachers: Its teachers by name.
        patterns: Which of the student's names; none takes over nothing.

    Raises:
        ConfigError: If there is not exactly one teacher, or a pattern matches nothing.
        ShapeError: If the teacher has no such parameter, or one of another shape.
    """
    if not patterns:
        return {}
    if len(teachers) != 1:
        raise ConfigError('inherit: one teacher is needed, that the student starts from.')
    theirs = next(iter(teachers.values())).model.state_dict()
    own = student.state_dict()
    found = {}
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for name in matching(own, patterns, 'inherit'):
        value = theirs.get(name)
        if value is None or value.shape != own[name].shape:
            has = 'none of that name' if value is None else f'one of {tuple(value.shape)}'
            raise ShapeError(
                f"inherit: the student's {name} is {tuple(own[name].shape)} and the teacher "
                f'has {has}. Inherit parts that are built alike.'
            )
        found[name] = value.clone()  # the teacher's own may be folded into others
    return found
