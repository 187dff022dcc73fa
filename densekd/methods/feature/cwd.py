"""CWD: channel-wise distillation, where each channel is a distribution over positions.

Paper: Shu, Liu, Gao, Yan, Shen: Channel-wise Knowledge Distillation for Dense Prediction.
    ICCV 2021. https://arxiv.org/abs/2011.13256
Reads: the levels of a detector's neck (`neck.pN`); the logits of a segmentor (`decode.logits`).
Stages: one.
Tasks: detection, segmentation.
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
from densekd.core.taps import Place
from densekd.errors import ConfigError, ShapeError
from densekd.methods.presets import choose_at, fitting_taps, short
from densekd.registry import HEADS, LOSSES, PRESETS


def cwd_loss(
    student: Tensor,  # (N, C, H, W)
    teacher: Tensor,  # (N, C, H, W)
    tau: float = 1.0,
    valid: Tensor | None = None,  # (N, H, W) bool
) -> Tensor:
    """Divergence of the student's channels from the teacher's, each softened over its positions.

        q = softmax_{hw}(x / tau)
        L = tau^2 / (N*C) sum_{n,c} KL(q_t || q_s)

    So it is blind to a constant on a whole channel, and not to its scale. The softmax runs over
    space and not over classes, and the sum over space is not divided by H*W.

    Args:
        student: The student's map.
        teacher: The teacher's.
        tau: Temperature; higher lets weaker positions count.
        valid: Positions that count; the others take no part in the softmax.

    Deviations: with logarithms of the softmax, where the authors take the logarithm after it and
    get -inf from what underflowed. `valid` is ours: they let padding share the mass. An image
    without a valid position adds 0. On a map of one cell each softmax is 1 and the loss always 0.

    Raises:
        ShapeError: If the shapes differ, or `valid` does not fit the maps.

    Example:
        >>> student = torch.zeros(1, 1, 1, 2)
        >>> teacher = torch.tensor([1.0, 3.0]).log().reshape(1, 1, 1, 2)
        >>> cwd_loss(student, teacher)  # 1/4 log(1/2) + 3/4 log(3/2)
        tensor(0.1308)
    """
    check_same_shape(student, teacher, 'cwd_loss')
    if student.dim() != 4:
        raise ShapeError(
            f'cwd_loss: it needs maps (N, C, H, W), and these are {tuple(student.shape)}.'
        )
    if not student.numel():
        return zero_like_loss(student)
    scale = tau**2 / (student.shape[0] * student.shape[1])
    if valid is None:
        log_s = (student.flatten(2) / tau).log_softmax(2)
        log_t = (teacher.detach().flatten(2) / tau).log_softmax(2)
        return scale * (log_t - log_s).mul_(log_t.exp()).sum()
    s, t = student.flatten(2) / tau, teacher.detach().flatten(2) / tau
    if tuple(valid.shape) != (student.shape[0], *student.shape[2:]):
        raise ShapeError(
            f'cwd_loss: valid is {tuple(valid.shape)} and the maps are {tuple(student.shape)}; '
            'images, H and W must agree.'
        )
    outside = ~valid.to(s.device, torch.bool).flatten(1)[:, None]
    # Filled on both sides of the softmax: -inf less -inf is NaN, and so is a softmax of nothing.
    log_s = s.masked_fill(outside, -torch.inf).log_softmax(2).masked_fill(outside, 0.0)
    log_t = t.masked_fill(outside, -torch.inf).log_softmax(2).masked_fill(outside, 0.0)
    return scale * (log_t - log_s).mul_(log_t.exp()).sum()


@LOSSES.register
class CWDLoss(DistillLoss):
    """`cwd_loss` as a module.

    Args:
        loss_weight: Factor. The authors' is 3 for logits (tau 4) and 50 for a segmentor's features;
            for the levels of a neck, ports have 10.
        tau: Temperature.
        mask_padding: Whether padding (and what the labels of a segmentor ignore) is left out of the
            softmax, where the batch says what is padding. A cell counts if any of its pixels does.

    A place that is a single cell on an image of ordinary size (a pooled feature) is refused when
    the model is built: there the loss is always 0. A level that shrinks to one cell only now and
    then, as the coarsest one does on a batch of small images, adds 0 in that step: a run should
    not end over it.

    Raises:
        ConfigError: If tau is not positive.

    Example:
        >>> s = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> CWDLoss(loss_weight=3.0, tau=4.0)(s, s.flip(2, 3))  # 3 * 2.456761
        tensor(7.3703)
    """

    align = 'to_teacher'

    def __init__(
        self, loss_weight: float = 1.0, tau: float = 1.0, mask_padding: bool = True
    ) -> None:
        super().__init__(loss_weight)
        if tau <= 0:
            raise ConfigError(f'CWDLoss: tau must be positive, and {tau} is not.')
        self.tau = tau
        self.mask_padding = mask_padding

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses places without positions to compare.

        Raises:
            ShapeError: If a tensor is no map, or a map of one cell.
        """
        for place in (student, teacher):
            for shape in place.shapes:
                if len(shape) != 4 or shape[2] * shape[3] == 1:
                    raise ShapeError(
                        f'CWDLoss: tap {place.tap.label!r} gives {shape}, and the loss compares '
                        'positions, of which it needs more than one: it would always be 0. Tap a '
                        'place before the pooling, or leave this level out.'
                    )

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        valid = None
        if self.mask_padding and batch.has('valid') and batch.valid is not None:
            pixels = batch.valid[:, None].to(student)
            valid = F.adaptive_max_pool2d(pixels, tuple(student.shape[2:]))[:, 0] > 0
        return cwd_loss(student, teacher, self.tau, valid)


@HEADS.register
class CWDDistillationHead(DistillationHead):
    """Channel-wise distillation of one map, without a connector where the channels agree.

    Where they don't, a 1x1 convolution brings the student's to the teacher's; it has no bias,
    which the loss would be blind to.
    """

    default_loss: ClassVar[dict[str, Any]] = {'type': 'CWDLoss', 'loss_weight': 10.0, 'tau': 1.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {
        'type': 'ConvConnector',
        'bias': False,
        'only_if_needed': True,
    }


@PRESETS.register(name='cwd')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns CWD on the logits of a segmentor, or on each level of a neck.

    Logits have the authors' weight 3 and temperature 4, levels 10 and 1, which public ports to
    detectors use.
    """
    offered = tuple(reversed(preset.at)) if anatomy.kind == 'segmentor' else preset.at
    neck = choose_at('cwd', at, offered) == 'neck'
    weight, tau = (10.0, 1.0) if neck else (3.0, 4.0)
    return [
        {
            'student_module': name,
            'teacher_module': name,
            'head': {
                'type': 'CWDDistillationHead',
                'loss': {'type': 'CWDLoss', 'loss_weight': weight, 'tau': tau},
                'name': f'cwd_{short(name)}',
            },
        }
        for name in fitting_taps('cwd', anatomy, 'neck.p*' if neck else 'decode.logits')
    ]


preset.at = ('neck', 'head')
