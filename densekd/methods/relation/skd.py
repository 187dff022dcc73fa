"""SKD: structured distillation, likeness between regions of an image beside each pixel's classes.

Paper: Liu, Chen, Liu, Qin, Luo, Wang: Structured Knowledge Distillation for Semantic Segmentation.
    CVPR 2019. https://arxiv.org/abs/1903.04197
Reads: the decoder before its classifier (`decode.feature`) for pairs of regions, the logits
    (`decode.logits`) for pixels.
Stages: one.
Tasks: segmentation.

The paper's third term, a critic that is trained to tell the two networks' answers apart, is not
here: it needs an optimiser and a step of its own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError, ShapeError
from densekd.methods.presets import choose_at, fitting_taps
from densekd.methods.response.class_logits import (
    SoftmaxHead,
    check_logits,
    refuse_sigmoids,
    valid_cells,
)
from densekd.registry import HEADS, LOSSES, PRESETS


def skd_pairwise_loss(
    student: Tensor,  # (N, C, H, W)
    teacher: Tensor,  # (N, C', H, W)
    scale: float = 0.5,
    valid: Tensor | None = None,  # (N, H, W) bool
) -> Tensor:
    """Squared difference of the cosines between all pairs of regions of an image.

        f = maxpool(x), kernel and stride (int(scale*H), int(scale*W)), ceil mode: h x w regions
        a_ij = <f_i, f_j> / (|f_i| |f_j|)
        L = 1/(N (hw)^2) sum_n sum_ij (a^s_ij - a^t_ij)^2

    At the paper's scale that is a matrix of 4x4, or of 9x9 where H and W are odd. Channels may
    differ, since only cosines are compared.

    Args:
        student: The student's map.
        teacher: The teacher's.
        scale: Side of a region, as a part of the map's; a region is at least one cell.
        valid: Positions that count. The others take no part in the maximum, and a region without
            one that counts is like nothing in both networks and adds 0.

    The lengths |f| are constants to the gradient, as in the authors' code: it is not the slope of
    the value, but it is zero where the two agree.

    Deviations: `valid` is ours; the authors pool over unlabelled pixels too. The divisor keeps all
    regions, and padding still makes regions larger, since they are parts of the padded map. A
    region whose feature is zero has a gradient of zero, and not one divided by 1e-8.

    Raises:
        ShapeError: If the maps differ in more than channels, or `valid` does not fit them.

    Example:
        >>> student = torch.eye(2).reshape(1, 2, 1, 2)  # two pixels at a right angle
        >>> skd_pairwise_loss(student, torch.ones(1, 3, 1, 2))
        tensor(0.5000)
    """
    check_maps(student, teacher, 'skd_pairwise_loss')
    inside = _inside(student, valid, 'skd_pairwise_loss')
    if not student.numel():
        return zero_like_loss(student)
    kernel = (
        max(int(scale * student.shape[2]), 1),
        max(int(scale * student.shape[3]), 1),
    )
    ours = _likeness(student, kernel, inside)
    theirs = _likeness(teacher.detach(), kernel, inside)
    return (ours - theirs).square().mean(0).sum() / ours.shape[1] ** 2


def _likeness(x: Tensor, kernel: tuple[int, int], inside: Tensor | None) -> Tensor:
    """Returns the cosines between the regions of each image, (N, hw, hw)."""
    if inside is not None:
        x = x.masked_fill(~inside, -torch.inf)
    pooled = F.max_pool2d(x, kernel, ceil_mode=True)
    if inside is not None:
        seen = F.max_pool2d(inside.to(x.dtype), kernel, ceil_mode=True) > 0
        pooled = torch.where(seen, pooled, 0.0)
    regions = pooled.flatten(2)
    square = regions.detach().square().sum(1, keepdim=True)
    alive = ~(square <= 1e-24)  # and not `square > 1e-24`, which would hide a NaN
    regions = regions * torch.where(alive, square.rsqrt(), 0.0)
    return regions.transpose(1, 2) @ regions


def skd_pixelwise_loss(
    student: Tensor,  # (N, K, H, W) logits
    teacher: Tensor,  # (N, K, H, W) logits
    valid: Tensor | None = None,  # (N, H, W) bool
) -> Tensor:
    """Cross-entropy of the student's classes under the teacher's, at each pixel.

        p = softmax(z_t),  q = softmax(z_s)
        L = -1/(H*W) sum_{n,h,w} sum_k p log q

    It is a sum over images and not their mean: it grows with the images that a process has.

    Args:
        student: The student's logits.
        teacher: The teacher's.
        valid: Which pixels count; None is all. H*W stays the divisor.

    Deviations: `valid` is ours; the authors let unlabelled pixels count. The value at equality is
    the teacher's entropy and not 0, as theirs is.

    Raises:
        ShapeError: If the shapes differ, or are no maps.

    Example:
        >>> skd_pixelwise_loss(torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2))  # log 2
        tensor(0.6931)
    """
    check_logits(student, teacher, 'skd_pixelwise_loss')
    check_maps(student, teacher, 'skd_pixelwise_loss')
    inside = _inside(student, valid, 'skd_pixelwise_loss')
    if not student.numel():
        return zero_like_loss(student)
    teacher = teacher.detach()
    if inside is not None:
        # Before the softmax: a value that is not selected would still have NaN for a gradient.
        student, teacher = (x.masked_fill(~inside, 0.0) for x in (student, teacher))
    rows = F.cross_entropy(student, teacher.softmax(1), reduction='none')
    if inside is not None:
        rows = torch.where(inside[:, 0], rows, 0.0)
    return rows.sum() / (student.shape[2] * student.shape[3])


def check_maps(student: Tensor, teacher: Tensor, name: str) -> None:
    """Refuses what are no maps of the same images and size; channels may differ.

    Raises:
        ShapeError: With both shapes.
    """
    s, t = tuple(student.shape), tuple(teacher.shape)
    if len(s) != 4 or len(t) != 4:
        raise ShapeError(f'{name}: it needs maps (N, C, H, W), and these are {s} and {t}.')
    if (s[0], *s[2:]) != (t[0], *t[2:]):
        raise ShapeError(
            f'{name}: the student map is {s} and the teacher map {t}; images, H and W must agree.'
        )


def check_places(student: Place, teacher: Place, name: str) -> None:
    """Refuses places without positions to compare.

    Raises:
        ShapeError: If a tensor is no map, or a map of one cell.
    """
    for place in (student, teacher):
        for shape in place.shapes:
            if len(shape) != 4 or shape[2] * shape[3] == 1:
                raise ShapeError(
                    f'{name}: tap {place.tap.label!r} gives {shape}, and the loss compares '
                    'positions of a map with each other. Tap a place before the pooling.'
                )


def _inside(x: Tensor, valid: Tensor | None, name: str) -> Tensor | None:
    """Returns which cells count, (N, 1, H, W), or None for all."""
    if valid is None:
        return None
    if tuple(valid.shape) != (x.shape[0], *x.shape[2:]):
        raise ShapeError(
            f'{name}: valid is {tuple(valid.shape)} and the maps are {tuple(x.shape)}; images, H '
            'and W must agree.'
        )
    return valid.to(x.device, torch.bool)[:, None]


@LOSSES.register
class SKDPairwiseLoss(DistillLoss):
    """`skd_pairwise_loss` as a module.

    Padding, and what the labels of a segmentor ignore, take no part where the batch says what they
    are: a cell counts if the pixel nearest to it does. A student's map of another size is resized.

    Args:
        loss_weight: Factor; the authors' is 0.5.
        scale: Side of a region, as a part of the map's.

    Raises:
        ConfigError: If the scale is not between 0 and 1: at 1 there is one region and no pair.

    Example:
        >>> SKDPairwiseLoss(loss_weight=0.5)(
        ...     torch.eye(2).reshape(1, 2, 1, 2), torch.ones(1, 3, 1, 2)
        ... )
        tensor(0.2500)
    """

    align = 'to_teacher'
    compares_channels = False

    def __init__(self, loss_weight: float = 1.0, scale: float = 0.5) -> None:
        super().__init__(loss_weight)
        if not 0 < scale < 1:
            raise ConfigError(
                f'SKDPairwiseLoss: scale is a part of the map between 0 and 1, not {scale}.'
            )
        self.scale = scale

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses places without positions to compare."""
        check_places(student, teacher, 'SKDPairwiseLoss')

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return skd_pairwise_loss(student, teacher, self.scale, valid_cells(student, batch))


@LOSSES.register
class SKDPixelwiseLoss(DistillLoss):
    """`skd_pixelwise_loss` as a module.

    Padding, and what the labels of a segmentor ignore, do not count where the batch says what they
    are: a cell counts if the pixel nearest to it does. A teacher's map of another size is resized
    before the softmax.

    Args:
        loss_weight: Factor. The authors' is 10, with 8 images in one process; with 2 a process,
            40 weighs as much beside the student's own loss.

    Example:
        >>> SKDPixelwiseLoss(loss_weight=10.0)(torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2))
        tensor(6.9315)
    """

    align = 'to_student'

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses logits that no softmax over the classes is taken of, and those of no map.

        Raises:
            ConfigError: If a place has sigmoid logits.
            ShapeError: If a tensor is no map.
        """
        refuse_sigmoids('SKDPixelwiseLoss', student, teacher)
        for place in (student, teacher):
            for shape in place.shapes:
                if len(shape) != 4:
                    raise ShapeError(
                        f'SKDPixelwiseLoss: tap {place.tap.label!r} gives {shape}, and the loss '
                        'reads the classes of each pixel, (N, K, H, W). Take kd for logits of '
                        'images or regions.'
                    )

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return skd_pixelwise_loss(student, teacher, valid_cells(student, batch))


@HEADS.register
class SKDPairwiseDistillationHead(DistillationHead):
    """Likeness between the quarters of a decoder's map, at the authors' weight."""

    default_loss: ClassVar[dict[str, Any]] = {
        'type': 'SKDPairwiseLoss',
        'loss_weight': 0.5,
        'scale': 0.5,
    }


@HEADS.register
class SKDPixelwiseDistillationHead(SoftmaxHead):
    """Each pixel's classes, at the authors' weight."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'SKDPixelwiseLoss', 'loss_weight': 10.0}


@PRESETS.register(name='skd')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns the pairwise term on the decoder's last feature, the pixelwise one on its logits.

    The authors tap the feature behind an activation, and here it is the norm before it. A maximum
    over a quarter of a map is hardly ever negative, so that a ReLU would change little.
    """
    choose_at('skd', at, preset.at)
    terms = {'decode.feature': 'Pairwise', 'decode.logits': 'Pixelwise'}
    return [
        {
            'student_module': name,
            'teacher_module': name,
            'head': {'type': f'SKD{term}DistillationHead', 'name': f'skd_{term.lower()}'},
        }
        for tap, term in terms.items()
        for name in fitting_taps('skd', anatomy, tap)
    ]


preset.at = ('head',)
