"""KP: knowledge pre-regression, a teacher's hidden layer as what a student's is classified by.

Paper: Wang, Deng, Wang: Accelerating Convolutional Neural Networks with Dominant Convolutional
    Kernel and Knowledge Pre-regression. ECCV 2016.
Reads: the end of an intermediate stage (`backbone.cN`), through a 1x1 convolution.
Stages: two; the layers up to the tapped one learn it first.
Tasks: classification.
Kind: feature.

What is known of the method here is its abstract, and most of what follows is our reading of it: see
the README beside this file.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import zero_like_loss
from densekd.errors import ShapeError
from densekd.methods.presets import choose_at, fitting_taps, only_classifiers, short
from densekd.registry import HEADS, LOSSES, PRESETS


def pre_regression_loss(
    student: Tensor,  # (N, C, H, W), after the regressor
    teacher: Tensor,  # (N, C, H, W)
) -> Tensor:
    """Cross entropy of what the channels are at each position, as shares.

        p = softmax_c(T),   q = softmax_c(S)
        L = -mean_{n,h,w} sum_c p log q

    It is least where the maps agree but for a constant at each position, and is there the entropy
    of p, which is above 0.

    Deviations: that the channels of a position are the classes of the cross entropy is ours; the
    abstract says that it is one, of intermediate hidden layers.

    Raises:
        ShapeError: If the shapes differ, or there are no maps.

    Example:
        >>> import torch
        >>> s, t = torch.zeros(1, 4, 1, 1), torch.tensor([50.0, 0, 0, 0]).reshape(1, 4, 1, 1)
        >>> pre_regression_loss(s, t)  # log 4
        tensor(1.3863)
    """
    check_same_shape(student, teacher, 'pre_regression_loss')
    if student.dim() != 4:
        raise ShapeError(
            f'pre_regression_loss: maps are needed, (N, C, H, W), not {tuple(student.shape)}.'
        )
    if not student.numel():
        return zero_like_loss(student)
    return -(teacher.detach().softmax(1) * student.log_softmax(1)).sum(1).mean()


@LOSSES.register
class PreRegressionLoss(DistillLoss):
    """`pre_regression_loss` as a module.

    Args:
        loss_weight: Factor.

    Example:
        >>> import torch
        >>> PreRegressionLoss(loss_weight=10.0)(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1))
        tensor(6.9315)
    """

    align = 'to_teacher'

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return pre_regression_loss(student, teacher)


@HEADS.register
class PreRegressionDistillationHead(DistillationHead):
    """One hidden layer through its regressor, a 1x1 convolution, with weight 1, which is ours."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'PreRegressionLoss', 'loss_weight': 1.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {'type': 'ConvConnector'}


@PRESETS.register(name='pre_regression')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns one distiller, at the middle of the stages that can be taught."""
    choose_at('pre_regression', at, preset.at)
    only_classifiers('pre_regression', anatomy, 'the paper classifies')
    names = fitting_taps('pre_regression', anatomy, 'backbone.c?')
    name = names[(len(names) - 1) // 2]
    head = {'type': 'PreRegressionDistillationHead', 'name': f'pre_regression_{short(name)}'}
    return [{'student_module': name, 'teacher_module': name, 'head': head}]


preset.at = ('backbone',)
