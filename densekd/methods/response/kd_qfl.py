"""KD-QFL: quality focal loss against the teacher's class probabilities.

Papers: Li, Wang, Wu, Chen, Hu, Li, Tang, Yang: Generalized Focal Loss. NeurIPS 2020.
    https://arxiv.org/abs/2006.04388 (the form); Wang, Chen, Zheng, Li, Cheng, Hou: CrossKD:
    Cross-Head Knowledge Distillation for Object Detection. CVPR 2024.
    https://arxiv.org/abs/2306.11369 (as a distillation loss, beta = 1).
Reads: the sigmoid classification logits of a one-stage detector (`head.cls_logits`).
Stages: one.
Tasks: detection.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.head import DistillationHead, check_same_shape
from densekd.methods.response.dense_logits import (
    DenseLogitLoss,
    dense_logit_distillers,
    weighted_sum,
)
from densekd.registry import HEADS, LOSSES, PRESETS


def kd_qfl_loss(
    student: Tensor,  # (R, K) logits
    teacher: Tensor,  # (R, K) logits
    beta: float = 1.0,
    weight: Tensor | None = None,  # (R,)
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Binary cross-entropy to the teacher's probabilities, weighed by how far off the student is.

        p = sigmoid(z_t),  q = sigmoid(z_s)
        L = 1/avg_factor sum_r w_r sum_k |q - p|^beta BCE(q, p)

    Nearly all anchors are background with p near 0; the factor keeps them from ruling the sum. It
    is not detached.

    Args:
        student: The student's logits.
        teacher: The teacher's.
        beta: Exponent of the factor; 0 leaves plain cross-entropy.
        weight: Weight of each row.
        avg_factor: What the sum is divided by; None is R.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> kd_qfl_loss(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [-2.0]]), avg_factor=1)
        tensor(1.4383)
    """
    check_same_shape(student, teacher, 'kd_qfl_loss')
    target = teacher.detach().sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student, target, reduction='none')
    distance = (student.sigmoid() - target).abs()
    if beta == 1:
        factor = distance
    elif beta == 0:
        factor = torch.ones_like(distance)
    else:
        # A power below 1 has an infinite slope at 0, where the product is 0 anyway.
        apart = distance > 0
        power = torch.where(apart, distance, torch.ones_like(distance)).pow(beta)
        factor = torch.where(apart, power, torch.zeros_like(power))
    return weighted_sum(factor * entropy, weight, avg_factor)


@LOSSES.register
class KDQFLLoss(DenseLogitLoss):
    """`kd_qfl_loss` over all anchors that the student's own classification loss counts.

    Args:
        loss_weight: Factor.
        beta: Exponent of the distance |q - p|.

    Example:
        >>> from densekd.core.batch import Batch
        >>> batch = Batch(dict(dense_weights=[torch.ones(1, 2)], dense_avg_factor=1.0))
        >>> student, teacher = torch.tensor([0.0, 2.0]), torch.tensor([0.0, -2.0])
        >>> KDQFLLoss()([student.reshape(1, 1, 1, 2)], [teacher.reshape(1, 1, 1, 2)], batch)
        tensor(1.4383)
    """

    def __init__(self, loss_weight: float = 1.0, beta: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.beta = beta

    def rows(
        self, student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float
    ) -> Tensor:
        """Returns the loss of one level."""
        return kd_qfl_loss(student, teacher, self.beta, weight, avg_factor)


@HEADS.register
class KDQFLDistillationHead(DistillationHead):
    """KD-QFL on classification logits: weight 1 and beta 1, as in CrossKD."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'KDQFLLoss', 'loss_weight': 1.0}


@PRESETS.register(name='kd_qfl')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns one distiller on the classification logits of all levels."""
    return dense_logit_distillers('kd_qfl', 'KDQFLDistillationHead', anatomy, at)


preset.at = ('head',)
