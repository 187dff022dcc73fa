"""DIST: the teacher's ranking of classes for an image, and of images for a class, by correlation.

Paper: Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher. NeurIPS 2022.
    https://arxiv.org/abs/2205.10536
Reads: logits before a softmax: a classifier's (`logits`), a segmentor's at the stride of its head
    (`decode.logits`), a box head's on the student's regions (`roi.cls_logits`).
Stages: one.
Tasks: classification, detection, segmentation.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillLoss
from densekd.core.ops import masked_mean, zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError, ShapeError
from densekd.methods.response.class_logits import (
    SoftmaxHead,
    check_logits,
    class_rows,
    refuse_sigmoids,
    softmax_taps,
    valid_cells,
)
from densekd.registry import HEADS, LOSSES, PRESETS

CONSTANT = 1e-6  # a standard deviation below which nothing but rounding is correlated


def dist_loss(
    student: Tensor,  # (N, K) or (N, K, H, W) logits
    teacher: Tensor,  # (N, K) or (N, K, H, W) logits
    beta: float = 1.0,
    gamma: float = 1.0,
    tau: float = 1.0,
    valid: Tensor | None = None,  # (N,) or (N, H, W) bool
) -> Tensor:
    """How far class probabilities are from correlated, along classes and along images.

        Y = softmax(z / tau), (R, K), one row an image
        inter = 1 - mean_r corr(Y_s[r, :], Y_t[r, :])
        intra = 1 - mean_k corr(Y_s[:, k], Y_t[:, k])
        L = tau^2 (beta inter + gamma intra)

    So neither the scale nor the level of the teacher's probabilities is learnt, which a student
    much weaker than its teacher could not reach. Rows are images, regions, or the pixels of all
    images together.

    Args:
        student: The student's logits.
        teacher: The teacher's.
        beta: Factor of the part along the classes of a row. Of two classes it knows only which is
            the likelier, and has no gradient.
        gamma: Factor of the part along the rows of a class. A single row has none, and of two it
            knows only which is the likelier.
        tau: Temperature.
        valid: Which rows count; None is all. Where none does, the loss is 0.

    Deviations: rows and columns that are constant in the teacher (a class that is nowhere) are left
    out of the mean, where the authors correlate rounding errors. Of those that are constant in the
    student alone the correlation is 0, without a gradient, which would be infinite. `valid` is
    ours: the authors' maps count ignored pixels.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> student = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]).log()
        >>> teacher = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]).log()
        >>> dist_loss(student, teacher, gamma=0.0)  # 1 - (0.9683 + 0.2168) / 2
        tensor(0.4075)
    """
    check_logits(student, teacher, 'dist_loss')
    if valid is not None:
        rows = (student.shape[0], *student.shape[2:])
        if tuple(valid.shape) != rows:
            raise ShapeError(
                f'dist_loss: valid is {tuple(valid.shape)} for logits of {tuple(student.shape)}; '
                f'it must be {rows}.'
            )
        valid = valid.to(student.device, torch.bool)
    s, t = class_rows(student, valid), class_rows(teacher.detach(), valid)
    if not s.numel():
        return zero_like_loss(student)
    s, t = (s / tau).softmax(1), (t / tau).softmax(1)
    return tau**2 * (beta * _uncorrelated(s, t, 1) + gamma * _uncorrelated(s, t, 0))


def _uncorrelated(s: Tensor, t: Tensor, dim: int) -> Tensor:
    """Returns 1 less the mean correlation along `dim`; 0 where the teacher is constant throughout.

    Both are centred before squares are taken, never after: the difference of two large sums would
    be rounding alone.
    """
    floor = CONSTANT**2 * s.shape[dim]
    t = t - t.mean(dim, keepdim=True)
    square = t.square().sum(dim, keepdim=True)
    varies = square > floor
    t *= torch.where(varies, square, 1.0).rsqrt_()

    mean = s.mean(dim, keepdim=True)
    # Correlations do not see the scale; of a student that gives a class 1e-20, squares would be 0.
    s = (s - mean) / mean.detach().clamp(min=torch.finfo(s.dtype).tiny)
    square = s.square().sum(dim, keepdim=True)
    # A root has no slope at 0, and none worth following near it: hence the inner selection.
    alive = ~(square <= floor)
    s = s * torch.where(alive, torch.where(alive, square, 1.0).rsqrt(), 0.0)
    # 1 - s.t of unit vectors, but exact where they agree, and never below 0.
    gap = 0.5 * (s - t).square().sum(dim, keepdim=True)
    return masked_mean(torch.where(alive, gap, 1.0), varies)


@LOSSES.register
class DISTLoss(DistillLoss):
    """`dist_loss` of images, of a box head's regions, or of a segmentor's pixels.

    A teacher's map of another size is resized before the softmax. Where the wrapper says which
    pixels of the input are valid, a cell counts if the pixel nearest to it does.

    Args:
        loss_weight: Factor. The authors' is 2 on ImageNet and 1 on the maps of Cityscapes.
        beta: Factor of the part along the classes of a row.
        gamma: Factor of the part along the rows of a class.
        tau: Temperature; the authors' is 1, and 4 on CIFAR.

    Each process correlates the rows that it has. Of a single image a classifier gives one row,
    which leaves the first part alone; pixels and regions are always many.

    Raises:
        ConfigError: If the temperature is not positive, or a factor negative.

    Example:
        >>> student, teacher = torch.tensor([[[0.0, 2.0, 1.0]], [[2.0, 0.0, 1.0]]])
        >>> DISTLoss(loss_weight=2.0)(student, teacher)
        tensor(3.7342)
    """

    align = 'to_student'

    def __init__(
        self, loss_weight: float = 1.0, beta: float = 1.0, gamma: float = 1.0, tau: float = 1.0
    ) -> None:
        super().__init__(loss_weight)
        if not tau > 0:
            raise ConfigError(f'DISTLoss: tau is a temperature above 0, not {tau}.')
        for name, factor in (('beta', beta), ('gamma', gamma)):
            if not factor >= 0:
                raise ConfigError(f'DISTLoss: {name} is a number from 0 up, not {factor}.')
        self.beta = beta
        self.gamma = gamma
        self.tau = tau

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses logits that no softmax over the classes is taken of.

        Raises:
            ConfigError: If a place has sigmoid logits.
        """
        refuse_sigmoids('DISTLoss', student, teacher)

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        valid = valid_cells(student, batch)
        return dist_loss(student, teacher, self.beta, self.gamma, self.tau, valid)


@HEADS.register
class DISTDistillationHead(SoftmaxHead):
    """Correlated probabilities on logits, with the authors' weight for ImageNet."""

    default_loss: ClassVar[dict[str, Any]] = {
        'type': 'DISTLoss',
        'loss_weight': 2.0,
        'beta': 1.0,
        'gamma': 1.0,
        'tau': 1.0,
    }


@PRESETS.register(name='dist')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns one distiller on a segmentor's, a box head's or a classifier's logits.

    A classifier's have the authors' weight 2 for ImageNet, a segmentor's their weight 1; the
    auxiliary head's, at 0.4, are left out here. For regions there is none; 1 is ours. Of a cascade
    of box heads each stage has a distiller, on regions of its own.
    """
    return [
        {
            'student_module': name,
            'teacher_module': name,
            'head': {
                'type': 'DISTDistillationHead',
                'loss': {'type': 'DISTLoss', 'loss_weight': 2.0 if name == 'logits' else 1.0},
                'name': term,
            },
        }
        for name, term in softmax_taps('dist', anatomy, at)
    ]


preset.at = ('head',)
