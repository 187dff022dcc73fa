"""Pooled cosine: what is in an image as a whole, as the direction of its pooled features.

Paper: none; it is here to show what a method consists of, and nothing is claimed of it.
Reads: the last stage of a backbone (`backbone.c5`), or any feature map. It does not see where in
    the image something is: H and W may differ.
Stages: one.
Tasks: detection, segmentation, classification.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import l2n, zero_like_loss
from densekd.errors import ShapeError
from densekd.methods.presets import choose_at, fitting_taps, short
from densekd.registry import HEADS, LOSSES, PRESETS


def pooled_cosine_loss(
    student: Tensor,  # (N, C, H, W)
    teacher: Tensor,  # (N, C, H', W')
) -> Tensor:
    """Mean cosine distance of the images' average features.

        v_n = mean_{h,w} x_n
        L   = mean_n (1 - <v_s, v_t> / (||v_s|| ||v_t||))

    So it is blind to the scale of either side, and lies between 0 and 2. A feature of length 0 has
    no direction: its distance is 1, and no gradient comes of it.

    Raises:
        ShapeError: If the images or channels differ, or there are no maps.

    Example:
        >>> import torch
        >>> s = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
        >>> t = torch.tensor([[1.0, 3.0], [0.0, 0.0]]).reshape(1, 2, 1, 2)
        >>> pooled_cosine_loss(s, t)  # 1 - 3/5
        tensor(0.4000)
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:2] != teacher.shape[:2]:
        raise ShapeError(
            f'pooled_cosine_loss: the student map is {tuple(student.shape)} and the teacher map '
            f'{tuple(teacher.shape)}; both must be (N, C, H, W) with equal N and C.'
        )
    if not student.numel() or not teacher.numel():
        return zero_like_loss(student)
    s, t = l2n(student.mean((2, 3))), l2n(teacher.detach().mean((2, 3)))
    return (1 - (s * t).sum(1)).mean()


@LOSSES.register
class PooledCosineLoss(DistillLoss):
    """`pooled_cosine_loss` as a module.

    Args:
        loss_weight: Factor.

    Example:
        >>> import torch
        >>> s, t = torch.eye(2).reshape(2, 1, 2, 1, 1)
        >>> PooledCosineLoss(loss_weight=3.0)(s, t)
        tensor(3.)
    """

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return pooled_cosine_loss(student, teacher)


@HEADS.register
class PooledCosineDistillationHead(DistillationHead):
    """Pooled cosine at one place; a 1x1 convolution where the channels differ."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'PooledCosineLoss', 'loss_weight': 1.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {
        'type': 'ConvConnector',
        'only_if_needed': True,
    }


@PRESETS.register(name='pooled_cosine')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns one distiller, on the last stage of the backbone."""
    choose_at('pooled_cosine', at, preset.at)
    name = fitting_taps('pooled_cosine', anatomy, 'backbone.c?')[-1]
    head = {'type': 'PooledCosineDistillationHead', 'name': f'pooled_cosine_{short(name)}'}
    return [{'student_module': name, 'teacher_module': name, 'head': head}]


preset.at = ('backbone',)
