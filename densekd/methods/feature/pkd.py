"""PKD: features compared by their Pearson correlation.

Paper: Cao, Zhang, Gao, Cheng, Cheng, Zhang: PKD: General Distillation Framework for Object
    Detectors via Pearson Correlation Coefficient. NeurIPS 2022. https://arxiv.org/abs/2207.02039
Reads: the neck's outputs (`neck.pN`), also of unlike detectors (FCOS teaching RetinaNet).
Stages: one.
Tasks: detection.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import zero_like_loss
from densekd.errors import ShapeError
from densekd.methods.presets import choose_at, fitting_taps, short
from densekd.registry import HEADS, LOSSES, PRESETS

# Added to the standard deviation, as the authors do; below the second one a channel is constant,
# and what is left of it is rounding noise that division would blow up.
EPSILON = 1e-6
CONSTANT = 1e-5


def pkd_loss(
    student: Tensor,  # (N, C, H, W)
    teacher: Tensor,  # (N, C, H, W)
) -> Tensor:
    """Half the mean squared difference of maps that are standardised channel by channel.

        x^ = (x - mean_c x) / (std_c x + 1e-6),   mean and unbiased std over N, H, W
        L  = 1/2 mean (S^ - T^)^2  =  (n - 1)/n mean_c (1 - corr_c),   n = N*H*W

    So it is blind to the scale and shift of each channel, and lies between 0 and 2.

    Deviations: a channel that is constant in the teacher (std below 1e-5) adds nothing; one that
    is constant in the student adds its value but no gradient, which would be 1e6 times too large.
    A single value (n = 1) has no deviation: the loss is 0, where the published form is NaN. The
    statistics are those of one process and include padding, as published.

    Raises:
        ShapeError: If the shapes differ, or there is no channel dimension.

    Example:
        >>> s = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)
        >>> round(pkd_loss(s.flip(-1, -2), s).item(), 4), round(pkd_loss(3 * s + 7, s).item(), 4)
        (1.5, 0.0)
    """
    check_same_shape(student, teacher, 'pkd_loss')
    if student.dim() < 2:
        raise ShapeError(f'pkd_loss: it needs (N, C, …), and the maps are {tuple(student.shape)}.')
    if not student.numel() or student.numel() == student.shape[1]:
        return zero_like_loss(student)
    s, by_s = _centred(student)
    t, by_t = _centred(teacher.detach())
    # Scales are a number a channel, so that what is left out of a whole map is left out there.
    return 0.5 * F.mse_loss(s * (by_s * (by_t > 0)), t.mul_(by_t))


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns x - mean, and 1/(std + 1e-6) of each channel: 0 where it is constant."""
    dims = [0, *range(2, x.dim())]
    centred = x - x.mean(dims, keepdim=True)
    # Of what is centred already: torch.var takes four times as long, and so does its gradient.
    norm = torch.linalg.vector_norm(centred, dim=dims, keepdim=True)
    std = norm * (x.numel() / x.shape[1] - 1) ** -0.5
    return centred, torch.where(std < CONSTANT, torch.inf, std + EPSILON).reciprocal()


@LOSSES.register
class PKDLoss(DistillLoss):
    """`pkd_loss` as a module.

    Args:
        loss_weight: Factor; the authors' is 6 for two-stage and 10 for one-stage detectors.

    Example:
        >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)
        >>> round(PKDLoss(loss_weight=6.0)(x.flip(-1, -2), x).item(), 4)
        9.0
    """

    align = 'to_teacher'

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return pkd_loss(student, teacher)


@HEADS.register
class PKDDistillationHead(DistillationHead):
    """Pearson distillation of one map, without a connector where the channels agree.

    Where they don't, a 1x1 convolution brings the student's to the teacher's; it has no bias,
    which the loss would be blind to.
    """

    default_loss: ClassVar[dict[str, Any]] = {'type': 'PKDLoss', 'loss_weight': 6.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {
        'type': 'ConvConnector',
        'bias': False,
        'only_if_needed': True,
    }


@PRESETS.register(name='pkd')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns a distiller for each of the neck's first four levels, as published."""
    choose_at('pkd', at, preset.at)
    weight = 10.0 if anatomy.kind == 'one-stage' else 6.0
    return [
        {
            'student_module': name,
            'teacher_module': name,
            'head': {
                'type': 'PKDDistillationHead',
                'loss': {'type': 'PKDLoss', 'loss_weight': weight},
                'name': f'pkd_{short(name)}',
            },
        }
        for name in fitting_taps('pkd', anatomy, 'neck.p*')[:4]
    ]


preset.at = ('neck',)
