"""What methods share that relate images to each other: a vector an image, and their distances."""

from __future__ import annotations

import torch
from torch import Tensor

from densekd.errors import ShapeError


def vectors_of(x: Tensor, name: str) -> Tensor:
    """Returns one vector an image, (N, C): as it is, or a map's mean over its positions.

    Raises:
        ShapeError: If the tensor is neither.

    Example:
        >>> vectors_of(torch.tensor([[[[1.0, 3.0]]]]), 'here')
        tensor([[2.]])
    """
    if x.dim() == 4:
        return x.mean((2, 3)) if x.numel() else x.sum((2, 3))
    if x.dim() != 2:
        raise ShapeError(
            f'{name}: it compares one vector an image, (N, C), or maps, of which it takes the '
            f'mean, and the tensor is {tuple(x.shape)}.'
        )
    return x


def check_images(student: Tensor, teacher: Tensor, name: str) -> None:
    """Refuses what is not one vector an image, of as many images on both sides.

    Raises:
        ShapeError: Naming the shapes.
    """
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ShapeError(
            f'{name}: the student is {tuple(student.shape)} and the teacher '
            f'{tuple(teacher.shape)}; both must be one vector an image, (N, C), of the same images.'
        )


def distances(x: Tensor) -> Tensor:
    """Returns the Euclidean distances (N, N) of N vectors; equal ones have 0, and a gradient of 0.

    From differences and not from inner products, whose cancellation loses half of the digits.

    Example:
        >>> distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]]))
        tensor([[0., 5., 5.],
                [5., 0., 0.],
                [5., 0., 0.]])
    """
    return torch.cdist(x, x, compute_mode='donot_use_mm_for_euclid_dist')
