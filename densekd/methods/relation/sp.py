"""SP: which images excite alike what the network computes, as in the teacher.

Paper: Tung, Mori: Similarity-Preserving Knowledge Distillation. ICCV 2019.
    https://arxiv.org/abs/1907.09682
Reads: the output of a classifier's last stage (`backbone.cN`); channels and sizes may differ.
Stages: one.
Tasks: classification.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import l2n, zero_like_loss
from densekd.errors import ShapeError
from densekd.methods.presets import choose_at, fitting_taps, only_classifiers
from densekd.registry import HEADS, LOSSES, PRESETS


def sp_loss(
    student: Tensor,  # (N, …)
    teacher: Tensor,  # (N, …)
) -> Tensor:
    """Squared difference of two matrices of similarity between images, over N^2.

        G_ij = <x_i, x_j>,   x = all of an image's values in one row
        L = 1/N^2 sum_{i,j} (G_ij^s / ||G_i^s|| - G_ij^t / ||G_i^t||)^2

    So it is blind to the scale of either side, though not to that of one image among others, and
    to their channels, heights and widths, which may differ. One image is no pair: the loss is 0.

    Deviations: none; the row of an image without any activation is 0.

    Raises:
        ShapeError: If the numbers of images differ.

    Example:
        >>> sp_loss(torch.eye(2), torch.ones(2, 1))  # 2 * ((1 - 0.7071)^2 + 0.7071^2) / 4
        tensor(0.2929)
    """
    if len(student) != len(teacher):
        raise ShapeError(
            f'sp_loss: the student has {len(student)} images and the teacher {len(teacher)}.'
        )
    if len(student) < 2 or not student.numel():
        return zero_like_loss(student)
    return F.mse_loss(_similarity(student), _similarity(teacher.detach()))


def _similarity(x: Tensor) -> Tensor:
    rows = x.flatten(1)
    return l2n(torch.mm(rows, rows.T))


@LOSSES.register
class SPLoss(DistillLoss):
    """`sp_loss` as a module, of maps or vectors.

    Args:
        loss_weight: Factor; the authors' is 3000.

    Each process relates the images that it has.

    Example:
        >>> SPLoss(loss_weight=10.0)(torch.eye(2), torch.ones(2, 1))
        tensor(2.9289)
    """

    fewest = 2
    compares_cells = False
    compares_channels = False

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return sp_loss(student, teacher)


@HEADS.register
class SPDistillationHead(DistillationHead):
    """Similarities between images by one map of each, as it is."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'SPLoss', 'loss_weight': 3000.0}


@PRESETS.register(name='sp')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns SP at the end of a classifier's last stage, with the authors' weight 3000.

    It relates the images of a batch, of which dense tasks have too few.
    """
    choose_at('sp', at, preset.at)
    only_classifiers('sp', anatomy, 'it relates the images of a batch, of which there are too few')
    name = fitting_taps('sp', anatomy, 'backbone.c?')[-1]
    head = {'type': 'SPDistillationHead', 'name': 'sp'}
    return [{'student_module': name, 'teacher_module': name, 'head': head}]


preset.at = ('backbone',)
