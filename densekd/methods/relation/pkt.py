"""PKT: how likely each image is to be another's neighbour, as the teacher has it.

Paper: Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer.
    ECCV 2018. https://arxiv.org/abs/1803.10837
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
from densekd.errors import ConfigError, did_you_mean
from densekd.methods.presets import choose_at, fitting_taps
from densekd.methods.relation.vectors import check_images, vectors_of
from densekd.registry import HEADS, LOSSES, PRESETS

EPS = 1e-7  # the authors'
REDUCTIONS = ('mean', 'rows')


def pkt_loss(
    student: Tensor,  # (N, Cs)
    teacher: Tensor,  # (N, Ct)
    exclude_self: bool = False,
    reduction: str = 'mean',
) -> Tensor:
    """Divergence of each image's neighbours, by cosine, in the student from those in the teacher.

        K_ij = (cos(x_i, x_j) + 1) / 2
        p_ij = K_ij / sum_k K_ik + 1e-7
        L = mean_{i,j} p_ij^t log(p_ij^t / p_ij^s)   over all N^2
        L = mean_i sum_j ...                         (reduction='rows')

    So it is blind to rotation of a side and to the length of each vector. A mean over N^2 of N rows
    that each sum to 1 is about 1/N of a row's divergence: a weight is tied to the batch size.

    Deviations: the defaults are the authors' code, for which public weights are meant; their paper
    leaves i = j out (`exclude_self`) and sums. They add 1e-7 within the logarithm alone, by which
    the least value is not quite at equality and may be negative; it changes N parts in 1e7. The
    paper's Gaussian kernel is not here. The cosines of a vector of zeros are 0, and its gradient
    too, where the code and its ports give NaN.

    Args:
        student: The student's vectors.
        teacher: The teacher's.
        exclude_self: Whether an image is left out of its own neighbours: K_ii = 0. Of two images
            there is then nothing to compare.
        reduction: `'mean'` over N^2, or `'rows'`, N times that, which no longer falls with N.

    Raises:
        ConfigError: If there is no such reduction.
        ShapeError: If a side is not (N, C), or the numbers of images differ.

    Example:
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> pkt_loss(student, teacher)
        tensor(0.0294)
        >>> pkt_loss(student, teacher, reduction='rows')
        tensor(0.0589)
    """
    _check_reduction(reduction)
    check_images(student, teacher, 'pkt_loss')
    if len(student) < 2 or not student.numel():
        return zero_like_loss(student)
    p, q = (_neighbours(x, exclude_self) for x in (teacher.detach(), student))
    value = (p * (p / q).log()).mean()
    return value if reduction == 'mean' else len(student) * value


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        hint = did_you_mean(reduction, REDUCTIONS)
        raise ConfigError(f'PKT: there is no reduction {reduction!r}. {hint}')


def _neighbours(x: Tensor, exclude_self: bool) -> Tensor:
    unit = l2n(x)
    # Rounding takes the cosine of opposite vectors below -1, and a probability below 0.
    kernel = ((torch.mm(unit, unit.T) + 1) / 2).clamp(min=0)
    if exclude_self:
        kernel = kernel * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
    # A row that holds its own image, at 1, or 1/2 if it is zero, has no small sum. Without it the
    # sum is 0 if all others are opposite, and there are no neighbours.
    total = kernel.sum(1, keepdim=True)
    return kernel / torch.where(total > EPS, total, 1.0) + EPS


@LOSSES.register
class PKTLoss(DistillLoss):
    """`pkt_loss` as a module.

    Args:
        loss_weight: Factor; 3e4 in public ports, for CIFAR with batches of 64.
        exclude_self: Whether an image is left out of its own neighbours, as in the paper.
        reduction: `'mean'` over N^2, or `'rows'`, N times that.

    Each process relates the images that it has.

    Raises:
        ConfigError: If there is no such reduction.

    Example:
        >>> PKTLoss(loss_weight=100.0)(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor(2.9446)
    """

    vectors = True
    fewest = 2
    compares_channels = False

    def __init__(
        self, loss_weight: float = 1.0, exclude_self: bool = False, reduction: str = 'mean'
    ) -> None:
        super().__init__(loss_weight)
        _check_reduction(reduction)
        self.exclude_self = exclude_self
        self.reduction = reduction
        if exclude_self:
            self.fewest = 3  # type: ignore[misc]  # else there is one neighbour, whatever it is

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        s, t = vectors_of(student, 'PKTLoss'), vectors_of(teacher, 'PKTLoss')
        return pkt_loss(s, t, self.exclude_self, self.reduction)


@HEADS.register
class PKTDistillationHead(DistillationHead):
    """Probabilities of being neighbours, between one vector an image, as they are."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'PKTLoss', 'loss_weight': 3e4}


@PRESETS.register(name='pkt')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns PKT on the vector before the classifier, with weight 3e4, of ports for CIFAR."""
    choose_at('pkt', at, preset.at)
    (name,) = fitting_taps('pkt', anatomy, 'embedding')
    head = {'type': 'PKTDistillationHead', 'name': 'pkt'}
    return [{'student_module': name, 'teacher_module': name, 'head': head}]


preset.at = ('neck',)
