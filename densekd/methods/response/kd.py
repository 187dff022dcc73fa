"""KD: soft labels, the teacher's class probabilities at a raised temperature.

Paper: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. NIPS workshop 2014.
    https://arxiv.org/abs/1503.02531
Reads: logits before a softmax: a classifier's (`logits`), a segmentor's at the stride of its head
    (`decode.logits`), a box head's on the student's regions (`roi.cls_logits`).
Stages: one.
Tasks: classification, detection, segmentation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillLoss
from densekd.core.ops import masked_mean
from densekd.core.taps import Place, tensors
from densekd.errors import ConfigError, ShapeError, did_you_mean
from densekd.methods.response.class_logits import (
    SoftmaxHead,
    check_logits,
    refuse_sigmoids,
    softmax_taps,
    valid_cells,
)
from densekd.registry import HEADS, LOSSES, PRESETS

MODES = ('mean_prob', 'mean_logit')


def kd_loss(
    student: Tensor,  # (N, K) or (N, K, H, W) logits
    teacher: Tensor,  # (N, K) or (N, K, H, W) logits
    tau: float = 4.0,
    valid: Tensor | None = None,  # (N, H, W) bool
) -> Tensor:
    """Kullback-Leibler divergence from the teacher's class probabilities, at a temperature.

        p = softmax(z_t / tau),  q = softmax(z_s / tau)
        L = tau^2 mean_n sum_k p log(p/q)

    On maps the mean runs over all valid pixels of the batch together, so that a pixel weighs the
    same in every image. The factor tau^2 keeps the gradient's size when tau is changed. The
    cross-entropy that the paper writes has the same gradient, and a floor that depends on the
    teacher.

    Args:
        student: The student's logits.
        teacher: The teacher's.
        tau: Temperature.
        valid: Which pixels count; None is all. Where none does, the loss is 0.

    Deviations: dense ports that divide by N alone sum over the pixels, and need weights H*W times
    smaller.

    Raises:
        ShapeError: If the shapes differ, or are none of the two.

    Example:
        >>> kd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]), tau=2.0)
        tensor(0.4438)
    """
    return _divergence(student, [teacher], tau, 'mean_prob', valid, 'kd_loss')


def ensemble_kd_loss(
    student: Tensor,  # (N, K) or (N, K, H, W) logits
    teachers: Sequence[Tensor],  # M of the student's shape
    tau: float = 4.0,
    mode: str = 'mean_prob',
) -> Tensor:
    """`kd_loss` from the average of M teachers.

        mean_prob:   p = 1/M sum_m softmax(z_m / tau)
        mean_logit:  p = softmax(1/M sum_m z_m / tau)

    Probabilities are averaged at the temperature. Averaged logits are the geometric mean of the
    distributions, in which the teacher with the largest logits has the most to say.

    Args:
        student: The student's logits.
        teachers: The teachers'.
        tau: Temperature.
        mode: What is averaged.

    Raises:
        ConfigError: If there is no such mode.
        ShapeError: If there is no teacher, or a shape differs.

    Example:
        >>> student, second = torch.zeros(2, 1, 2)
        >>> first = torch.tensor([[0.0, 4.0]])
        >>> for mode in ('mean_prob', 'mean_logit'):
        ...     ensemble_kd_loss(student, [first, second], tau=1.0, mode=mode)
        tensor(0.1211)
        tensor(0.3278)
    """
    return _divergence(student, list(teachers), tau, mode, None, 'ensemble_kd_loss')


def _divergence(
    student: Tensor,
    teachers: list[Tensor],
    tau: float,
    mode: str,
    valid: Tensor | None,
    name: str,
) -> Tensor:
    _check_mode(mode, name)
    if not teachers:
        raise ShapeError(f'{name}: it needs at least one teacher.')
    for teacher in teachers:
        check_logits(student, teacher, name)
    teachers = [teacher.detach() for teacher in teachers]
    if valid is not None:
        rows = (student.shape[0], *student.shape[2:])
        if tuple(valid.shape) != rows:
            raise ShapeError(
                f'{name}: valid is {tuple(valid.shape)} for logits of {tuple(student.shape)}; it '
                f'must be {rows}.'
            )
        valid = valid.to(student.device, torch.bool)
        # Before the softmax and not only after it: what a network says of padding may be infinite,
        # and a value that is not selected would still have NaN for a gradient.
        student = student.masked_fill(~valid.unsqueeze(1), 0.0)
    log_q = F.log_softmax(student / tau, 1)
    log_p = _log_mean(teachers, tau, mode)
    rows_kl = F.kl_div(log_q, log_p, reduction='none', log_target=True).sum(1)
    return tau**2 * masked_mean(rows_kl, valid)


def _log_mean(teachers: list[Tensor], tau: float, mode: str) -> Tensor:
    """Returns the log-probabilities of the average teacher."""
    if len(teachers) == 1:
        return F.log_softmax(teachers[0] / tau, 1)
    if mode == 'mean_logit':
        return F.log_softmax(torch.stack(teachers).mean(0) / tau, 1)
    logs = torch.stack([F.log_softmax(teacher / tau, 1) for teacher in teachers])
    # In logs throughout: a probability that rounds to 0 has no logarithm.
    return logs.logsumexp(0) - math.log(len(teachers))


def _check_mode(mode: str, name: str) -> None:
    if mode not in MODES:
        raise ConfigError(f'{name}: there is no mode {mode!r}. {did_you_mean(mode, MODES)}')


@LOSSES.register
class KDLoss(DistillLoss):
    """`kd_loss`, or `ensemble_kd_loss` where a distiller reads several teachers.

    A teacher's map of another size is resized before the softmax. Where the wrapper says which
    pixels of the input are valid, a cell counts if the pixel nearest to it does.

    Args:
        loss_weight: Factor.
        tau: Temperature.
        mode: What is averaged of several teachers, `'mean_prob'` or `'mean_logit'`.

    Raises:
        ConfigError: If the temperature is not positive, or there is no such mode.

    Example:
        >>> teachers = [torch.tensor([[0.0, 4.0]]), torch.tensor([[0.0, 0.0]])]
        >>> KDLoss(tau=1.0, mode='mean_logit')(torch.zeros(1, 2), teachers)
        tensor(0.3278)
    """

    ensemble = True
    align = 'to_student'

    def __init__(self, loss_weight: float = 1.0, tau: float = 4.0, mode: str = 'mean_prob') -> None:
        super().__init__(loss_weight)
        if not tau > 0:
            raise ConfigError(f'KDLoss: tau is a temperature above 0, not {tau}.')
        _check_mode(mode, 'KDLoss')
        self.tau = tau
        self.mode = mode

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses logits that no softmax over the classes is taken of.

        Raises:
            ConfigError: If a place has sigmoid logits.
        """
        refuse_sigmoids('KDLoss', student, teacher)

    def compute(self, student: Tensor, teacher: Any, batch: Batch) -> Tensor:
        """Returns the unweighted loss; `teacher` is a tensor, or a list with one a teacher."""
        valid = valid_cells(student, batch)
        return _divergence(student, tensors(teacher), self.tau, self.mode, valid, 'KDLoss')


@HEADS.register
class KDDistillationHead(SoftmaxHead):
    """Soft labels on logits, at temperature 4.

    The weight 0.9 is meant beside a task loss of weight 0.1, as in
    `scale_student_loss=dict(loss_cls=0.1)`. On maps there is no published pair; these are ours.
    """

    default_loss: ClassVar[dict[str, Any]] = {'type': 'KDLoss', 'loss_weight': 0.9, 'tau': 4.0}


@PRESETS.register(name='kd')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns one distiller on a segmentor's, a box head's or a classifier's logits.

    Of a cascade of box heads each stage has one, on regions of its own. Of several teachers the
    mean of their probabilities is the target.
    """
    return [
        {
            'student_module': name,
            'teacher_module': name,
            'head': {'type': 'KDDistillationHead', 'name': term},
        }
        for name, term in softmax_taps('kd', anatomy, at)
    ]


preset.at = ('head',)
preset.several = True  # teachers, whose average is the target
