"""RKD: distances between images, and angles between three of them, as the teacher has them.

Paper: Park, Kim, Lu, Cho: Relational Knowledge Distillation. CVPR 2019.
    https://arxiv.org/abs/1904.05068
Reads: the vector of each image before the classifier (`embedding`); lengths may differ.
Stages: one.
Tasks: classification.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import zero_like_loss
from densekd.errors import ConfigError
from densekd.methods.presets import choose_at, fitting_taps
from densekd.methods.relation.vectors import check_images, distances, vectors_of
from densekd.registry import HEADS, LOSSES, PRESETS

BUDGET = 2**22  # angles that are held at once


def rkd_distance_loss(
    student: Tensor,  # (N, Cs)
    teacher: Tensor,  # (N, Ct)
) -> Tensor:
    """Huber loss between the distances of all pairs of images, in units of their mean.

        d_ij = ||x_i - x_j|| / mu,   mu = the mean of those that are positive
        L = mean_{i,j} huber(d_ij^s - d_ij^t)   over all N^2, with huber's bend at 1

    So it is blind to rotation, translation and scale of either side. Of two images the only
    distance is its own mean: the loss is 0 below three.

    Deviations: none from the authors' code, which normalises no vector and counts the zeros of the
    diagonal. Distances come from differences; theirs, from inner products, lose half of the digits.
    Where all vectors of a side are equal its distances are 0.

    Raises:
        ShapeError: If a side is not (N, C), or the numbers of images differ.

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> rkd_distance_loss(student, teacher)
        tensor(0.0035)
    """
    check_images(student, teacher, 'rkd_distance_loss')
    if not student.numel():
        return zero_like_loss(student)
    s, t = _in_means(distances(student)), _in_means(distances(teacher.detach()))
    return F.smooth_l1_loss(s, t)


def _in_means(d: Tensor) -> Tensor:
    positive = (d > 0).sum()
    # Of equal vectors there is no mean: they keep their zeros, and their gradient of zero.
    return d / torch.where(positive > 0, d.sum() / positive.clamp(min=1), 1.0)


def rkd_angle_loss(
    student: Tensor,  # (N, Cs)
    teacher: Tensor,  # (N, Ct)
) -> Tensor:
    """Huber loss between the angles of all triples of images.

        a_ijk = cos of the angle at j = <x_i - x_j, x_k - x_j> / (||x_i - x_j|| ||x_k - x_j||)
        L = mean_{i,j,k} huber(a_ijk^s - a_ijk^t)   over all N^3, with huber's bend at 1

    So it is blind to rotation, translation and scale of either side. Where i or k is one point with
    j (always so where it is j) the cosine is 0.

    Deviations: none in value from the authors' code. It holds the differences of all pairs, N^2 C
    numbers; here the cosines come from the distances alone, a few images j at a time. Points closer
    than 3e-4 of the mean distance (in float32: the root of its rounding error, from where on that
    eats up the gradient) count as one.

    Raises:
        ShapeError: If a side is not (N, C), or the numbers of images differ.

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> 1e3 * rkd_angle_loss(student, teacher)
        tensor(0.7445)
    """
    check_images(student, teacher, 'rkd_angle_loss')
    count = len(student)
    if not student.numel():
        return zero_like_loss(student)
    s, t = _sides(distances(student)), _sides(distances(teacher.detach()))
    step = max(BUDGET // count**2, 1)
    total = student.new_zeros(())
    for j in range(0, count, step):
        args = (*s, *t, slice(j, j + step))
        if step >= count:
            total = total + _angles_apart(*args)
        else:  # each part is made again in the backward pass instead of held
            total = total + checkpoint(
                _angles_apart, *args, use_reentrant=False, preserve_rng_state=False
            )
    return total / count**3


def _sides(d: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the distances and their inverses, both 0 between points that count as one."""
    apart = d > torch.finfo(d.dtype).eps ** 0.5 * d.mean().detach()
    inverse = torch.where(apart, torch.where(apart, d, 1.0).reciprocal(), 0.0)
    return torch.where(apart, d, 0.0), inverse


def _angles_apart(
    ds: Tensor, inverse_s: Tensor, dt: Tensor, inverse_t: Tensor, at: slice
) -> Tensor:
    s, t = _cosines(ds, inverse_s, at), _cosines(dt, inverse_t, at)
    return F.smooth_l1_loss(s, t, reduction='sum')


def _cosines(d: Tensor, inverse: Tensor, at: slice) -> Tensor:
    """Returns the cosines (J, N, N) of the angles at some images, by the law of cosines.

    (d_ij^2 + d_kj^2 - d_ik^2) / (2 d_ij d_kj), written so that nothing is divided by a zero.
    """
    near, far = inverse[at], d[at]
    half = near[:, None, :] * far[:, :, None]
    opposite = d.square() * near[:, :, None] * near[:, None, :]
    return 0.5 * (half + half.transpose(1, 2) - opposite)


@LOSSES.register
class RKDLoss(DistillLoss):
    """`rkd_distance_loss` and `rkd_angle_loss` as one module.

        L = loss_weight (distance L_distance + angle L_angle)

    Args:
        loss_weight: Factor; 25 for classifiers in public ports, 1 for metric learning.
        distance: Factor on the distances; 0 leaves them out.
        angle: Factor on the angles, of which there are N^3; 0 leaves them out.

    Each process relates the images that it has.

    Raises:
        ConfigError: If both factors are 0, or one is negative.

    Example:
        >>> s = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> t = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> RKDLoss(loss_weight=25.0)(s, t)  # 25 * (0.00348125 + 2 * 0.000744482)
        tensor(0.1243)
    """

    vectors = True
    fewest = 3
    compares_channels = False

    def __init__(self, loss_weight: float = 1.0, distance: float = 1.0, angle: float = 2.0) -> None:
        super().__init__(loss_weight)
        if min(distance, angle) < 0 or not distance + angle:
            raise ConfigError(
                f'RKDLoss: distance={distance} and angle={angle} are factors, of which one must '
                'be positive and none negative.'
            )
        self.distance = distance
        self.angle = angle

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        s, t = vectors_of(student, 'RKDLoss'), vectors_of(teacher, 'RKDLoss')
        terms = []
        if self.distance:
            terms.append(self.distance * rkd_distance_loss(s, t))
        if self.angle:
            terms.append(self.angle * rkd_angle_loss(s, t))
        return torch.stack(terms).sum()


@HEADS.register
class RKDDistillationHead(DistillationHead):
    """Distances with weight 25 and angles with 50, between one vector an image, as they are."""

    default_loss: ClassVar[dict[str, Any]] = {
        'type': 'RKDLoss',
        'loss_weight': 25.0,
        'distance': 1.0,
        'angle': 2.0,
    }


@PRESETS.register(name='rkd')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns RKD on the vector before the classifier, with 25 on distances and 50 on angles.

    These are the weights of public ports for CIFAR; the authors' ratio is the same 1 to 2.
    """
    choose_at('rkd', at, preset.at)
    (name,) = fitting_taps('rkd', anatomy, 'embedding')
    head = {'type': 'RKDDistillationHead', 'name': 'rkd'}
    return [{'student_module': name, 'teacher_module': name, 'head': head}]


preset.at = ('neck',)
