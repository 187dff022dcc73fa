"""CC: correlations between images, by a Gaussian kernel, as the teacher has them.

Paper: Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang: Correlation Congruence for Knowledge Distillation.
    ICCV 2019. https://arxiv.org/abs/1904.01802
Reads: the vector of each image before the classifier (`embedding`); lengths may differ.
Stages: one.
Tasks: classification.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import l2n, zero_like_loss
from densekd.errors import ConfigError
from densekd.methods.presets import choose_at, fitting_taps
from densekd.methods.relation.vectors import check_images, vectors_of
from densekd.registry import HEADS, LOSSES, PRESETS


def cc_loss(
    student: Tensor,  # (N, Cs)
    teacher: Tensor,  # (N, Ct)
    gamma: float = 0.4,
) -> Tensor:
    """Mean squared difference of two matrices of correlations between images.

        c_ij = cos(x_i, x_j)
        K_ij = exp(-2 gamma) (1 + 2 gamma c_ij + 2 gamma^2 c_ij^2)
        L = mean_{i,j} (K_ij^s - K_ij^t)^2   over all N^2

    K is exp(-gamma ||u_i - u_j||^2) of unit vectors u, with its series cut after the second order.
    So it is blind to rotation of a side and to the length of each vector. One
    image is no pair: the loss is 0.

    Deviations: the authors published no code; this is the form of Knowledge-Distillation-Zoo, for
    which the weight of 100 is meant. A vector of zeros has cosines of 0, and a gradient of 0.

    Args:
        student: The student's vectors.
        teacher: The teacher's.
        gamma: How fast the kernel falls with the distance.

    Raises:
        ShapeError: If a side is not (N, C), or the numbers of images differ.

    Example:
        >>> student, teacher = torch.eye(2), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        >>> cc_loss(student, teacher)  # half of (exp(-0.8) (0.8 + 0.32))^2
        tensor(0.1266)
    """
    check_images(student, teacher, 'cc_loss')
    if len(student) < 2 or not student.numel():
        return zero_like_loss(student)
    return F.mse_loss(_kernel(student, gamma), _kernel(teacher.detach(), gamma))


def _kernel(x: Tensor, gamma: float) -> Tensor:
    unit = l2n(x)
    cosine = torch.mm(unit, unit.T)
    return math.exp(-2 * gamma) * (1 + 2 * gamma * cosine + 2 * (gamma * cosine).square())


@LOSSES.register
class CCLoss(DistillLoss):
    """`cc_loss` as a module.

    Args:
        loss_weight: Factor; 100 in Knowledge-Distillation-Zoo, for CIFAR-10.
        gamma: How fast the kernel falls with the distance.

    Each process relates the images that it has.

    Raises:
        ConfigError: If gamma is not positive.

    Example:
        >>> CCLoss(loss_weight=100.0)(torch.eye(2), torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
        tensor(12.6629)
    """

    vectors = True
    fewest = 2
    compares_channels = False

    def __init__(self, loss_weight: float = 1.0, gamma: float = 0.4) -> None:
        super().__init__(loss_weight)
        if gamma <= 0:
            raise ConfigError(f'CCLoss: gamma must be positive, and {gamma} is not.')
        self.gamma = gamma

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return cc_loss(vectors_of(student, 'CCLoss'), vectors_of(teacher, 'CCLoss'), self.gamma)


@HEADS.register
class CCDistillationHead(DistillationHead):
    """Correlations between one vector an image, as they are."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'CCLoss', 'loss_weight': 100.0}


@PRESETS.register(name='cc')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns CC on the vector before the classifier, with weight 100, a port's for CIFAR-10."""
    choose_at('cc', at, preset.at)
    (name,) = fitting_taps('cc', anatomy, 'embedding')
    head = {'type': 'CCDistillationHead', 'name': 'cc'}
    return [{'student_module': name, 'teacher_module': name, 'head': head}]


preset.at = ('neck',)
