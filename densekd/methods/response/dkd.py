"""DKD: soft labels taken apart, into how sure the true class is and how the others compare.

Paper: Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation. CVPR 2022.
    https://arxiv.org/abs/2203.08679
Reads: logits before a softmax: a classifier's (`logits`), a segmentor's at the stride of its head
    (`decode.logits`), a box head's on the student's regions (`roi.cls_logits`).
Stages: one.
Tasks: classification, detection, segmentation.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.columns import Columns
from densekd.core.head import DistillLoss
from densekd.core.ops import zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError, DataError, ShapeError
from densekd.methods.response.box_heads import check_regions
from densekd.methods.response.class_logits import (
    SoftmaxHead,
    check_logits,
    class_rows,
    nearest_cells,
    refuse_sigmoids,
    softmax_taps,
    valid_cells,
)
from densekd.registry import HEADS, LOSSES, PRESETS

IGNORED = 255  # what a mask of classes has where it says nothing


def dkd_loss(
    student: Tensor,  # (N, K) or (N, K, H, W) logits
    teacher: Tensor,  # (N, K) or (N, K, H, W) logits
    labels: Tensor,  # (N,) or (N, H, W) true classes
    alpha: float = 1.0,
    beta: float = 8.0,
    tau: float = 4.0,
) -> Tensor:
    """The two parts of the divergence between class probabilities, each with a factor of its own.

        p = softmax(z / tau),  b = (p_y, 1 - p_y),  h = softmax over k != y of z_k / tau
        L = tau^2 mean_n alpha KL(b_t || b_s) + beta KL(h_t || h_s)

    `kd_loss` is alpha = 1 and beta = 1 - p_y of the teacher: what a sure teacher says of the other
    classes hardly counts there. Rows are images, regions, or the pixels of all images together.

    Args:
        student: The student's logits.
        teacher: The teacher's.
        labels: The true class of each row. Rows with a negative label, or with 255 where there are
            fewer classes, are left out; where none is left, the loss is 0.
        alpha: Factor of the first part, about the true class.
        beta: Factor of the second part, about the others.
        tau: Temperature.

    Deviations: the authors subtract 1000 from the true class's logit and take logarithms of sums
    of probabilities, which are -inf once these round to 0; here it is logarithms throughout.
    Maps are ours, and so is leaving rows out.

    Raises:
        ShapeError: If shapes differ, labels are not one class a row, or there is a single class.
        DataError: If a label is no class.

    Example:
        >>> student, teacher = torch.tensor([[[0.0, 0.0, 0.0]], [[2.0, 0.0, 1.0]]])
        >>> for factors in ((1.0, 0.0), (0.0, 1.0)):
        ...     dkd_loss(student, teacher, torch.tensor([0]), *factors, tau=1.0)
        tensor(0.2291)
        tensor(0.1109)
    """
    check_logits(student, teacher, 'dkd_loss')
    keep = _labelled(student, labels)
    # Before anything is computed: what a network says of padding may be infinite, and a value that
    # is left out afterwards would still have NaN for a gradient.
    s, t = class_rows(student, keep), class_rows(teacher.detach(), keep)
    if not len(s):
        return zero_like_loss(student)
    true = labels.to(s.device)[keep].long()[:, None]
    hit = torch.zeros_like(s, dtype=torch.bool).scatter_(1, true, True)
    parts = zip((alpha, beta), _parts(s / tau, hit), _parts(t / tau, hit), strict=True)
    return tau**2 * sum(
        (
            factor * F.kl_div(log_s, log_t, reduction='none', log_target=True).sum(1).mean()
            for factor, log_s, log_t in parts
        ),
        s.new_zeros(()),
    )


def _labelled(student: Tensor, labels: Tensor) -> Tensor:
    """Returns which rows have a class."""
    classes = student.shape[1]
    rows = (student.shape[0], *student.shape[2:])
    if classes < 2:
        raise ShapeError(f'dkd_loss: it needs two classes at least, and logits have {classes}.')
    if tuple(labels.shape) != rows or labels.is_floating_point():
        raise ShapeError(
            f'dkd_loss: labels are {tuple(labels.shape)} of {labels.dtype} for logits of '
            f'{tuple(student.shape)}; they must be {rows} and one class each, which soft labels, '
            'as those of mixup, are not.'
        )
    labels = labels.to(student.device)
    keep = (labels >= 0) & (labels < classes)
    wrong = labels[(labels >= classes) & (labels != IGNORED)]
    if wrong.numel():
        raise DataError(
            f'dkd_loss: a label is {int(wrong[0])}, and the logits are those of classes 0 to '
            f'{classes - 1}.'
        )
    return keep


def _parts(
    logits: Tensor,  # (R, K)
    hit: Tensor,  # (R, K) bool, true once a row
) -> tuple[Tensor, Tensor]:
    """Returns the logarithms of b, (R, 2), and of h, (R, K) with 0 for the true class."""
    others = logits.masked_fill(hit, -torch.inf)
    rest = others.logsumexp(1)
    # log(1 - p_y) would be -inf where p_y rounds to 1; a difference of two sums is not.
    whole = logits.logsumexp(1)
    target = torch.stack([logits[hit] - whole, rest - whole], 1)
    # Only now, so that the gradient of the filled logit is 0 and not NaN.
    return target, (others - rest[:, None]).masked_fill(hit, 0.0)


@LOSSES.register
class DKDLoss(DistillLoss):
    """`dkd_loss` of images, of a box head's regions, or of a segmentor's pixels.

    A teacher's map of another size is resized before the softmax, and a cell has the label of the
    pixel nearest to it; pixels that the student's own loss ignores, and padding, are left out.
    Regions have the background for a class, the last. Where student and teacher share only some
    classes, rows of the others are left out.

    Args:
        loss_weight: Factor.
        alpha: Factor of the part about the true class.
        beta: Factor of the part about the others. The authors have 8, 6 or 2 on CIFAR, 0.5 or 2
            on ImageNet at temperature 1, 0.25 on the regions of a detector.
        tau: Temperature.

    A large beta needs a warm-up, which is the distiller's: `schedule=dict(by='epoch', warmup=20)`
    is the authors'.

    Raises:
        ConfigError: If the temperature is not positive, or a factor negative.

    Example:
        >>> batch = Batch({'labels': torch.tensor([0])})
        >>> DKDLoss(tau=1.0)(torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 1.0]]), batch)
        tensor(1.1166)
    """

    needs: ClassVar[tuple[str, ...]] = ('labels',)
    align = 'to_student'

    def __init__(
        self, loss_weight: float = 1.0, alpha: float = 1.0, beta: float = 8.0, tau: float = 4.0
    ) -> None:
        super().__init__(loss_weight)
        if not tau > 0:
            raise ConfigError(f'DKDLoss: tau is a temperature above 0, not {tau}.')
        for name, factor in (('alpha', alpha), ('beta', beta)):
            if not factor >= 0:
                raise ConfigError(f'DKDLoss: {name} is a number from 0 up, not {factor}.')
        self.alpha = alpha
        self.beta = beta
        self.tau = tau
        self._columns: Columns | None = None

    def bind(self, student: Place, teacher: Place) -> None:
        """Takes which labels are meant: those of images or pixels, or those of regions.

        Raises:
            ConfigError: If a place has sigmoid logits.
            ShapeError: If there are fewer than three classes.
        """
        refuse_sigmoids('DKDLoss', student, teacher)
        for shape in teacher.shapes:
            if len(shape) > 1 and shape[1] < 3:
                raise ShapeError(
                    f'DKDLoss: {teacher.tap.label!r} has {shape[1]} logits a place, and between '
                    'the classes that are not the true one there is nothing to compare below '
                    'three. Take KD.'
                )
        if student.tap.label.startswith('roi'):
            self.needs = ('rois', 'roi_labels')  # type: ignore[misc]  # those of the one place
        self._columns = student.tap.columns

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss.

        Raises:
            ShapeError: If the labels or regions do not fit the logits.
        """
        if 'roi_labels' in self.needs:
            for side, logits in (('student', student), ('teacher', teacher)):
                check_regions('DKDLoss', f"the {side}'s logits", len(logits), batch.rois)
            labels = batch.roi_labels
        else:
            labels = batch.labels
            if student.dim() == 4 and labels.dim() == 3:
                labels = nearest_cells(labels, student)
                valid = valid_cells(student, batch)
                if valid is not None:
                    labels = labels.masked_fill(~valid.to(labels.device), -1)
        if self._columns is not None:
            labels = self._columns.places(labels)
        return dkd_loss(student, teacher, labels, self.alpha, self.beta, self.tau)


@HEADS.register
class DKDDistillationHead(SoftmaxHead):
    """Decoupled soft labels on logits, with the authors' factors for most pairs on CIFAR-100.

    They belong beside the task's own loss at weight 1, and a warm-up. On maps there is no published
    pair; these are ours.
    """

    default_loss: ClassVar[dict[str, Any]] = {
        'type': 'DKDLoss',
        'loss_weight': 1.0,
        'alpha': 1.0,
        'beta': 8.0,
        'tau': 4.0,
    }


@PRESETS.register(name='dkd')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns one distiller on a segmentor's, a box head's or a classifier's logits.

    Regions have the authors' factors for detectors, which need no warm-up. That of classifiers is
    the authors', 20 epochs of 240; that of segmentors, which count iterations, is ours. Of a
    cascade of box heads each stage has a distiller, on regions of its own.
    """
    entries = []
    for name, term in softmax_taps('dkd', anatomy, at):
        head: dict[str, Any] = {'type': 'DKDDistillationHead', 'name': term}
        entry = {'student_module': name, 'teacher_module': name, 'head': head}
        if name.startswith('roi'):
            head['loss'] = {'type': 'DKDLoss', 'beta': 0.25, 'tau': 1.0}
        elif name == 'logits':
            entry['schedule'] = {'by': 'epoch', 'warmup': 20}
        else:
            entry['schedule'] = {'by': 'iter', 'warmup': 1000}
        entries.append(entry)
    return entries


preset.at = ('head',)
