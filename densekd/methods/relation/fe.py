"""FE: images that are neighbours in the teacher stay so in the student.

Paper: Chen, Wang, Xu, Xu, Tao: Learning Student Networks via Feature Embedding. TNNLS 2021.
    https://arxiv.org/abs/1812.06597
Reads: the vector of each image before the classifier (`embedding`); lengths may differ.
Stages: one.
Tasks: classification.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import l2n, zero_like_loss
from densekd.errors import ConfigError
from densekd.methods.presets import choose_at, fitting_taps
from densekd.methods.relation.vectors import check_images, distances, vectors_of
from densekd.registry import HEADS, LOSSES, PRESETS


def lp_loss(
    student: Tensor,  # (N, Cs)
    teacher: Tensor,  # (N, Ct)
    k: int = 5,
) -> Tensor:
    """Squared distances in the student between the teacher's neighbours, the nearest counting most.

        a_ij = exp(-||t_i - t_j||^2 / delta^2)   for the k nearest j of i, not i itself
        L = 1/(N k) sum_i sum_j a_ij ||s_i - s_j||^2

    delta^2 is the mean of these squared distances of the teacher, so that its scale does not
    matter; that of the student does, by its square. The relation is left one-sided: j may be among
    the nearest of i and i not of j. With fewer than k others, k is their number; one image alone
    has none, and the loss is 0.

    It is least where all of the student's vectors are one, not where they are the teacher's: it
    needs the task beside it.

    Deviations: the authors published no code. The paper is known with 1/(2N) and a fixed delta;
    here the mean is over the pairs that count, and delta follows the teacher.

    Args:
        student: The student's vectors.
        teacher: The teacher's.
        k: Neighbours of each image.

    Raises:
        ShapeError: If a side is not (N, C), or the numbers of images differ.

    Example:
        >>> student = torch.tensor([[0.0], [1.0], [5.0]])
        >>> teacher = torch.tensor([[0.0], [2.0], [5.0]])
        >>> lp_loss(student, teacher, k=1)  # (2 exp(-4/d^2) + 16 exp(-9/d^2)) / 3, d^2 = 17/3
        tensor(1.4186)
    """
    check_images(student, teacher, 'lp_loss')
    k = min(k, len(student) - 1)
    if k < 1 or not student.numel():
        return zero_like_loss(student)
    apart = distances(teacher.detach()).fill_diagonal_(torch.inf)
    nearest, index = apart.topk(k, largest=False)
    square = nearest.square()
    scale = square.mean()
    weight = torch.where(scale > 0, -square / scale, 0.0).exp()
    # Pairs are gathered: a difference of squares would leave rounding where images coincide.
    return (weight * (student[:, None] - student[index]).square().sum(2)).mean()


@LOSSES.register
class FELoss(DistillLoss):
    """`lp_loss` as a module.

    Args:
        loss_weight: Factor. None of the authors' is known; 1.5 stands in a third party's port.
        k: Neighbours of each image.
        unit: Whether vectors are brought to unit length first, on both sides. Without, a student
            has less to pay if it only shrinks its vectors.

    Each process relates the images that it has.

    Raises:
        ConfigError: If k is not positive.

    Example:
        >>> loss = FELoss(loss_weight=2.0, k=1)
        >>> loss(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[0.0], [2.0], [5.0]]))
        tensor(2.8373)
    """

    vectors = True
    fewest = 2
    compares_channels = False
    minimum_at_equality = False  # that is where all of the student's vectors are one

    def __init__(self, loss_weight: float = 1.0, k: int = 5, unit: bool = False) -> None:
        super().__init__(loss_weight)
        if k < 1:
            raise ConfigError(f'FELoss: k is a number of neighbours, not {k}.')
        self.k = k
        self.unit = unit

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        s, t = vectors_of(student, 'FELoss'), vectors_of(teacher, 'FELoss')
        return lp_loss(l2n(s), l2n(t), self.k) if self.unit else lp_loss(s, t, self.k)


@HEADS.register
class FEDistillationHead(DistillationHead):
    """Locality preserving between one vector an image, as they are."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'FELoss', 'loss_weight': 1.5}


@PRESETS.register(name='fe')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns FE on the vector before the classifier, with weight 1.5, that of a third party."""
    choose_at('fe', at, preset.at)
    (name,) = fitting_taps('fe', anatomy, 'embedding')
    head = {'type': 'FEDistillationHead', 'name': 'fe'}
    return [{'student_module': name, 'teacher_module': name, 'head': head}]


preset.at = ('neck',)
