"""IFVD: how the pixels of a class vary around their mean.

Paper: Wang, Zhou, Jiang, Bai, Xu: Intra-class Feature Variation Distillation for Semantic
    Segmentation. ECCV 2020.
    https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/230_ECCV_2020_paper.php
Reads: the decoder before its classifier (`decode.feature`), and for the pixel term beside it the
    logits (`decode.logits`).
Stages: one.
Tasks: segmentation.

The paper's adversarial term is not here: it needs an optimiser and a step of its own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import l2n, zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ShapeError
from densekd.methods.presets import choose_at, fitting_taps
from densekd.methods.relation.skd import check_maps, check_places
from densekd.methods.response.class_logits import nearest_cells
from densekd.registry import HEADS, LOSSES, PRESETS


def ifvd_loss(
    student: Tensor,  # (N, C, H, W)
    teacher: Tensor,  # (N, C', H, W)
    labels: Tensor,  # (N, H', W') class of each pixel of the input
    ignore_index: int = 255,
) -> Tensor:
    """Squared difference of the cosines between each pixel and the mean of its class.

        y = labels, resized to H x W by the nearest pixel
        m_{n,k} = mean of f_p over the pixels p of image n with y_p = k
        v_p = <f_p, m_{n,y_p}> / (|f_p| |m_{n,y_p}|)
        L = mean_{n,h,w} (v^s - v^t)^2

    Means are of one image. A pixel with an ignored label is in none and adds 0, and the mean is
    still over all positions. Channels may differ, since only cosines are compared.

    Args:
        student: The student's map.
        teacher: The teacher's.
        labels: The true classes, of any size; the same for both networks.
        ignore_index: The label that stands for none.

    Deviations: all classes at once, where the authors loop over them and hold a few maps for each.
    A class that is in no image costs nothing. A pixel whose feature is zero has cosine 0 and a
    gradient of zero.

    Raises:
        ShapeError: If the maps differ in more than channels, or the labels are not one map an
            image.

    Example:
        >>> student = torch.eye(2).reshape(1, 2, 1, 2)  # two pixels of a class, at a right angle
        >>> ifvd_loss(student, torch.ones(1, 3, 1, 2), torch.zeros(1, 1, 2))  # (1 - cos 45)^2
        tensor(0.0858)
    """
    check_maps(student, teacher, 'ifvd_loss')
    if labels.dim() != 3 or labels.shape[0] != student.shape[0]:
        raise ShapeError(
            f'ifvd_loss: labels are {tuple(labels.shape)} for maps of {tuple(student.shape)}; it '
            'needs one for each pixel, (N, H, W).'
        )
    if not student.numel():
        return zero_like_loss(student)
    small = nearest_cells(labels.to(student.device), student)[:, None]
    present, index = small.flatten(2).unique(return_inverse=True)
    columns = torch.arange(len(present), device=student.device)[:, None]
    member = (index == columns).to(student.dtype)  # (N, K, H*W), K the labels that there are
    ignored = small == ignore_index
    ours = _variation(student, member, ignored)
    theirs = _variation(teacher.detach(), member, ignored)
    return (ours - theirs).square().mean()


def _variation(x: Tensor, member: Tensor, ignored: Tensor) -> Tensor:
    """Returns the cosine of each pixel with its class's mean, (N, H*W); 0 where ignored."""
    # Filled and not left to `member`, whose zeros would make NaN of what is infinite.
    pixels = x.masked_fill(ignored, 0.0).flatten(2)
    # A cosine is the same with a sum as with a mean.
    centres = l2n(pixels @ member.transpose(1, 2), dim=1)  # (N, C, K)
    # Each pixel with every class, and then its own: no mean is spread over the pixels.
    along = (centres.transpose(1, 2) @ pixels).mul(member).sum(1)
    length = torch.linalg.vector_norm(pixels, dim=1)
    alive = ~(length <= 1e-12)  # and not `length > 1e-12`, which would hide a NaN
    return torch.where(alive, along / torch.where(alive, length, 1.0), 0.0)


@LOSSES.register
class IFVDLoss(DistillLoss):
    """`ifvd_loss` as a module.

    Which labels are ignored is the student's own: what its wrapper calls valid. Without that, 255.
    A student's map of another size is resized.

    Args:
        loss_weight: Factor; the authors' is 200.

    Example:
        >>> batch = Batch({'labels': torch.zeros(1, 1, 2)})
        >>> student = torch.eye(2).reshape(1, 2, 1, 2)
        >>> IFVDLoss(loss_weight=200.0)(student, torch.ones(1, 3, 1, 2), batch)
        tensor(17.1573)
    """

    needs = ('labels', 'valid')
    align = 'to_teacher'
    compares_channels = False

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses places without positions to compare."""
        check_places(student, teacher, 'IFVDLoss')

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        if not batch.has('valid') or batch.valid is None:
            return ifvd_loss(student, teacher, batch.labels)
        # Not 255, which may be the number of a class.
        labels = batch.labels.long().masked_fill(~batch.valid, -1)
        return ifvd_loss(student, teacher, labels, -1)


@HEADS.register
class IFVDDistillationHead(DistillationHead):
    """Variation around the classes' means in a decoder's map, at the authors' weight."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'IFVDLoss', 'loss_weight': 200.0}


@PRESETS.register(name='ifvd')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns the variation of the decoder's last feature, and soft labels at each pixel.

    The authors' weight of soft labels, at temperature 1, is 10 for a mean over pixels and classes.
    `KDLoss` sums over classes: with the 19 of Cityscapes that is 10/19 of it.

    The authors tap the feature behind an activation, and here it is the norm before it.
    """
    choose_at('ifvd', at, preset.at)
    heads = {
        'decode.feature': {'type': 'IFVDDistillationHead', 'name': 'ifvd'},
        'decode.logits': {
            'type': 'KDDistillationHead',
            'loss': {'type': 'KDLoss', 'loss_weight': 0.53, 'tau': 1.0},
            'name': 'ifvd_kd',
        },
    }
    return [
        {'student_module': name, 'teacher_module': name, 'head': head}
        for tap, head in heads.items()
        for name in fitting_taps('ifvd', anatomy, tap)
    ]


preset.at = ('head',)
