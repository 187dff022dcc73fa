"""Gradient AT: how each pixel moves the classification loss, as in the teacher.

Paper: Zagoruyko, Komodakis: Paying More Attention to Attention. ICLR 2017.
    https://arxiv.org/abs/1612.03928
Reads: the class logits (`logits`), and differentiates their cross entropy.
Stages: one.
Tasks: classification.

Both networks are differentiated with respect to the images, and the student once more: a step takes
about three times as long, and twice the memory.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.columns import Columns
from densekd.core.head import DistillationHead, check_same_shape
from densekd.core.input_grad import InputGradientLoss
from densekd.core.ops import l2n, zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ShapeError
from densekd.methods.gradient.jacobian import check_outputs, true_classes
from densekd.methods.presets import choose_at, fitting_taps, only_classifiers
from densekd.registry import HEADS, LOSSES, PRESETS


def gradient_attention_loss(
    student_grad: Tensor,  # (N, 3, H, W)
    teacher_grad: Tensor,  # (N, 3, H, W)
    normalise: bool = True,
) -> Tensor:
    """Half the distance of what moves the classification loss of two networks, pixel by pixel.

        J_n = d CE(z_n, y_n) / d x_n
        L = 1/2 mean_n || J^s / ||J^s|| - J^t / ||J^t|| ||^2   over 3, H, W
        L = 1/2 mean_n || J^s - J^t ||                         (normalise=False)

    Normalised it is blind to how large a loss still is, and lies between 0 and 2.

    Deviations: the paper's is the one without normalisation, of which no code is public; late in
    training a student's and a teacher's loss, and so their gradients, differ by orders of
    magnitude. Its term for the symmetry of flipped images, which has no teacher, is not here. A
    gradient of zeros stays one, and so does a difference of zeros.

    Args:
        student_grad: The student's gradient.
        teacher_grad: The teacher's.
        normalise: Whether each is of unit length; False is the paper's.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
        >>> gradient_attention_loss(student, teacher)
        tensor(1.)
        >>> gradient_attention_loss(student, teacher, normalise=False)
        tensor(2.5000)
    """
    check_same_shape(student_grad, teacher_grad, 'gradient_attention_loss')
    if not student_grad.numel():
        return zero_like_loss(student_grad)
    s, t = student_grad.flatten(1), teacher_grad.detach().flatten(1)
    if normalise:
        return 0.5 * (l2n(s) - l2n(t)).square().sum(1).mean()
    apart = s - t
    # Of length 0 where the two are one; the root alone would have no slope there.
    return 0.5 * (l2n(apart) * apart).sum(1).mean()


@LOSSES.register
class GradientAttentionLoss(InputGradientLoss):
    """`gradient_attention_loss` as a module, of the gradients of each image's cross entropy.

    Args:
        loss_weight: Factor.
        normalise: Whether each gradient is of unit length; False is the paper's.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 4.0]]]])
        >>> GradientAttentionLoss(loss_weight=2.0, normalise=False)(s, t)
        tensor(5.)
    """

    needs: ClassVar[tuple[str, ...]] = ('input_grad', 'labels')

    def __init__(self, loss_weight: float = 1.0, normalise: bool = True) -> None:
        super().__init__(loss_weight)
        self.normalise = normalise
        self._columns: Columns | None = None

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses places that are no logits.

        Raises:
            TapError: If a map is tapped, or several tensors.
        """
        check_outputs('GradientAttentionLoss', 2, student, teacher)
        for place in (student, teacher):
            if place.shapes[0][1] < 2:
                raise ShapeError(
                    f'GradientAttentionLoss: tap {place.tap.label!r} gives one logit an image, '
                    'whose cross entropy is 0 whatever the image is.'
                )
        self._columns = student.tap.columns

    def scalar(self, tapped: Tensor, batch: Batch) -> Tensor:
        """Returns the cross entropy of each image."""
        column, meant = true_classes(batch.labels, self._columns)
        others = tapped.scatter(1, column, -torch.inf)
        odds = others.logsumexp(1) - tapped.gather(1, column).squeeze(1)
        # Of a network that is sure, the softmax is 1 in float32, and F.cross_entropy has no
        # gradient left for the true class; this has it.
        return torch.where(meant, F.softplus(odds), 0.0)

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return gradient_attention_loss(student, teacher, self.normalise)


@HEADS.register
class GradientAttentionDistillationHead(DistillationHead):
    """Gradients of the cross entropy, with a weight of 1, which is ours."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'GradientAttentionLoss', 'loss_weight': 1.0}


@PRESETS.register(name='gradient_attention')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns gradient-based attention transfer, with weight 1, which is ours."""
    choose_at('gradient_attention', at, preset.at)
    only_classifiers('gradient_attention', anatomy, 'it differentiates the loss of each image')
    (name,) = fitting_taps('gradient_attention', anatomy, 'logits')
    head = {'type': 'GradientAttentionDistillationHead', 'name': 'gradient_attention'}
    return [{'student_module': name, 'teacher_module': name, 'head': head}]


preset.at = ('head',)
