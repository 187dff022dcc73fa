"""FitNets: hints for thin deep nets.

Paper: Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets.
    ICLR 2015. https://arxiv.org/abs/1412.6550
Reads: every level of a neck (`neck.pN`); the middle of a classifier (`backbone.cN`); any feature
    map.
Stages: one or two; in the paper the hint comes first, alone.
Tasks: classification, detection, segmentation.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import zero_like_loss
from densekd.methods.presets import choose_at, fitting_taps, short
from densekd.registry import HEADS, LOSSES, PRESETS


def hint_loss(
    student: Tensor,  # (N, C, H, W), or any shape
    teacher: Tensor,  # the same
) -> Tensor:
    """Mean squared difference of two feature maps.

        L = mean_{n,c,h,w} (S - T)^2

    Deviations: the paper has half the sum of squares of each image. The mean over elements does
    not depend on the map's size, and is what joint training in public code uses.

    Example:
        >>> import torch
        >>> hint_loss(torch.zeros(1, 2, 1, 2), torch.full((1, 2, 1, 2), 3.0))
        tensor(9.)
    """
    check_same_shape(student, teacher, 'hint_loss')
    if not student.numel():
        return zero_like_loss(student)
    return F.mse_loss(student, teacher.detach())


@LOSSES.register
class FitNetLoss(DistillLoss):
    """`hint_loss` as a module.

    Args:
        loss_weight: Factor on the element mean. RepDistiller uses 100 for CIFAR classifiers.

    Example:
        >>> import torch
        >>> FitNetLoss(loss_weight=2.0)(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
        tensor(2.)
    """

    align = 'to_teacher'

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return hint_loss(student, teacher)


@HEADS.register
class FitNetDistillationHead(DistillationHead):
    """A hint: the student's map, through a 1x1 regressor, matches the teacher's.

    The regressor has no activation, so that it can reach negative targets; for a tap behind a ReLU
    the paper gives it one (`stu_connector=dict(type='ConvConnector', act='relu')`).
    """

    default_loss: ClassVar[dict[str, Any]] = {'type': 'FitNetLoss', 'loss_weight': 1.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {'type': 'ConvConnector', 'kernel_size': 1}


@PRESETS.register(name='fitnet')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns a hint for each level of the neck, or for the stages of the backbone.

    A classifier gets one hint in its middle stage, with RepDistiller's weight of 100; no weight
    for the element mean over a detector's maps is published, and it is 1 here.
    """
    offered = preset.at if anatomy.both('neck.p*') else tuple(reversed(preset.at))
    at = choose_at('fitnet', at, offered)
    names = fitting_taps('fitnet', anatomy, 'neck.p*' if at == 'neck' else 'backbone.c?')
    weight = 1.0
    if anatomy.kind == 'classifier':
        # One hint only, in the middle: guiding a deeper layer over-regularises. The second stage,
        # of three or of four, is what public code picks.
        names, weight = names[(len(names) - 1) // 2 :][:1], 100.0
    distillers = []
    for name in names:
        head: dict[str, Any] = {
            'type': 'FitNetDistillationHead',
            'loss': {'type': 'FitNetLoss', 'loss_weight': weight},
            'name': f'fitnet_{short(name)}',
        }
        if anatomy.teacher[name].rectified:
            head['stu_connector'] = {'type': 'ConvConnector', 'act': 'relu'}
        distillers.append({'student_module': name, 'teacher_module': name, 'head': head})
    return distillers


preset.at = ('neck', 'backbone')
