"""One batch, preprocessed once, seen by networks that were trained with other statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from densekd.errors import ConfigError


def _statistics(preprocessor: Any) -> tuple[Tensor, Tensor, bool]:
    """Returns mean and std, each (3, 1, 1), and whether channels are swapped to RGB."""
    if getattr(preprocessor, '_enable_normalize', False):
        mean, std = preprocessor.mean, preprocessor.std
    else:
        mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    swapped = getattr(
        preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', False)
    )
    return mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1), bool(swapped)


def same_view(student: Any, teacher: Any) -> bool:
    """Whether two preprocessors normalise alike."""
    (m1, s1, c1), (m2, s2, c2) = _statistics(student), _statistics(teacher)
    return c1 == c2 and torch.equal(m1.cpu(), m2.cpu()) and torch.equal(s1.cpu(), s2.cpu())


def check_padding(student: Any, teacher: Any, where: str) -> None:
    """Refuses a teacher whose input must be a multiple of what the student's is not.

    Raises:
        ConfigError: If the student's pad_size_divisor is no multiple of the teacher's.
    """
    own = getattr(student, 'pad_size_divisor', 1) or 1
    other = getattr(teacher, 'pad_size_divisor', 1) or 1
    if own % other:
        raise ConfigError(
            f'{where}: the teacher pads images to multiples of {other} and the student to '
            f"multiples of {own}, but both see one batch. Set the student's "
            f'data_preprocessor.pad_size_divisor to {math.lcm(own, other)}.'
        )


def teacher_view(
    student: Any, teacher: Any, inputs: Tensor, sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """Returns a batch that the student's preprocessor made, as the teacher's would have made it.

    Args:
        student: The student's preprocessor.
        teacher: The teacher's.
        inputs: The batch, (N, 3, H, W), normalised for the student and padded with zeros.
        sizes: Height and width of each image without padding.
    """
    if same_view(student, teacher):
        return inputs
    mean, std, swapped = (_to(x, inputs) for x in _statistics(student))
    pixels = inputs * std + mean
    mean, std, other = (_to(x, inputs) for x in _statistics(teacher))
    if swapped != other:
        pixels = pixels.flip(1)
    view = (pixels - mean) / std
    # Padding is zero after normalisation, not before.
    for i, (h, w) in enumerate(sizes):
        # By index: what iteration hands out can't be written to where a graph is recorded.
        view[i, :, h:] = 0
        view[i, :, :, w:] = 0
    return view


def _to(value: Any, like: Tensor) -> Any:
    return value.to(like) if isinstance(value, Tensor) else value
