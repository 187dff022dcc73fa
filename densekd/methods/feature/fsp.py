"""FSP: how a stage turns its input into its output, as products of the channels of both.

Paper: Yim, Joo, Bae, Kim: A Gift from Knowledge Distillation: Fast Optimization, Network
    Minimization and Transfer Learning. CVPR 2017.
Reads: pairs of a backbone's maps, the first and the last of a stage (`backbone.cN` and the next).
Stages: one or two; two as published, these terms alone first.
Tasks: classification, detection, segmentation.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError, ShapeError, TapError
from densekd.methods.presets import choose_at, fitting_taps, short
from densekd.registry import HEADS, LOSSES, PRESETS


def fsp_matrix(
    first: Tensor,  # (N, C1, H1, W1)
    second: Tensor,  # (N, C2, H2, W2)
) -> Tensor:
    """The mean product of each channel of one map with each of another, over positions.

        G_nij = 1/(H*W) sum_hw first_nihw second_njhw

    Where sizes differ the larger map is max-pooled to the smaller one, as in the paper.

    Returns:
        The matrices (N, C1, C2).

    Raises:
        ShapeError: If one is no map, or the numbers of images differ.

    Example:
        >>> first = torch.tensor([1.0, 2.0]).reshape(1, 1, 1, 2)
        >>> fsp_matrix(first, torch.cat([first, 3 * first], 1))  # (1 + 4) / 2, and three times it
        tensor([[[2.5000, 7.5000]]])
    """
    a, b = _pair(first, second)
    return torch.bmm(a, b.mT)


def _pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both maps at one size, as (N, C, cells), the first divided by the number of cells."""
    if first.dim() != 4 or second.dim() != 4 or len(first) != len(second):
        raise ShapeError(
            f'fsp_matrix: the maps are {tuple(first.shape)} and {tuple(second.shape)}; both must '
            'be (N, C, H, W), of the same images.'
        )
    h, w = (min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True))
    a, b = (_pooled(x, h, w).flatten(2) for x in (first, second))
    # Divided first: sums of products over H*W leave the range of a half-precision number.
    return a / max(h * w, 1), b


def _pooled(x: Tensor, h: int, w: int) -> Tensor:
    if tuple(x.shape[2:]) == (h, w) or not x.numel():
        return x[:, :, :h, :w]
    return F.adaptive_max_pool2d(x, (h, w))


def fsp_loss(
    student_pair: tuple[Tensor, Tensor] | list[Tensor],  # (N, C1, H, W), (N, C2, H, W)
    teacher_pair: tuple[Tensor, Tensor] | list[Tensor],
) -> Tensor:
    """Mean squared difference of the flow matrices of two pairs of maps.

        L = mean_{n,i,j} (G_nij^s - G_nij^t)^2,   G = fsp_matrix(first, second)

    So it is blind to the order of positions, and each side may have a size of its own; scaling a
    side's maps scales its matrix with the square.

    Deviations: a mean over C1*C2, where the paper sums; with it a weight means the same for wide
    networks and narrow ones. All pairs count alike.

    Raises:
        ShapeError: If a pair is not two, or the channels differ.

    Example:
        >>> ones = torch.ones(1, 1, 2, 2)
        >>> fsp_loss((ones, ones), (ones, 3 * ones))  # (1 - 3)^2
        tensor(4.)
    """
    for side, pair in (('student', student_pair), ('teacher', teacher_pair)):
        if len(pair) != 2:
            raise ShapeError(f'fsp_loss: the {side} gives {len(pair)} maps, and a pair is two.')
    s = _pair(*student_pair)
    t = _pair(*(x.detach() for x in teacher_pair))
    if [x.shape[:2] for x in s] != [x.shape[:2] for x in t]:
        raise ShapeError(
            f'fsp_loss: the student pair is {[tuple(x.shape) for x in student_pair]} and the '
            f"teacher's {[tuple(x.shape) for x in teacher_pair]}; images and channels must agree. "
            'Give the head stu_connector=dict(type="ConvConnector").'
        )
    first, second = s
    if not first.numel() or not second.numel():
        return zero_like_loss(*student_pair)
    size = len(first) * first.shape[1] * second.shape[1]
    if (first.shape[2] + t[0].shape[2]) ** 2 < first.shape[1] * second.shape[1]:
        return _between_few_cells(s, t) / size
    return (torch.bmm(first, second.mT) - torch.bmm(t[0], t[1].mT)).square().sum() / size


def _between_few_cells(s: tuple[Tensor, Tensor], t: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the sum of (G^s - G^t)^2 of maps with fewer cells than channels, without any G.

    G^s - G^t = [A_s, -A_t] [B_s, B_t]^T, and the squares of such a product are the inner product of
    two matrices of cells by cells. Large terms cancel there, which takes double precision.
    """
    a = torch.cat([s[0], -t[0]], 2).double()
    b = torch.cat([s[1], t[1]], 2).double()
    return (torch.bmm(a.mT, a) * torch.bmm(b.mT, b)).sum().to(s[0])


@LOSSES.register
class FSPLoss(DistillLoss):
    """`fsp_loss` as a module, of a list of two places on each side.

    Args:
        loss_weight: Factor.

    Heights and widths of student and teacher need not agree: each side has a matrix of channels.

    Example:
        >>> ones = torch.ones(1, 1, 2, 2)
        >>> FSPLoss(loss_weight=0.5)([ones, ones], [ones, 3 * ones])
        tensor(2.)
    """

    pairs = False
    compares_cells = False

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses taps that do not give two maps.

        Raises:
            TapError: If a side gives another number of tensors, or something that is no map.
        """
        for place in (student, teacher):
            if len(place.shapes) != 2 or any(len(shape) != 4 for shape in place.shapes):
                raise TapError(
                    f'FSPLoss: tap {place.tap.label!r} gives {list(place.shapes)}, and a flow is '
                    'between two maps. Give a list of two places, such as '
                    '["backbone.c3", "backbone.c4"].'
                )

    def compute(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return fsp_loss(student, teacher)


@HEADS.register
class FSPDistillationHead(DistillationHead):
    """The flow between two places.

    Where channels differ, a 1x1 convolution and a normalisation bring the student's to the
    teacher's; products of channels depend on their scale, which the normalisation fixes.
    """

    default_loss: ClassVar[dict[str, Any]] = {'type': 'FSPLoss', 'loss_weight': 1.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {
        'type': 'ConvConnector',
        'norm': 'BN',
        'only_if_needed': True,
    }


@PRESETS.register(name='fsp')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns the flow from the end of each stage of the backbone to the end of the next.

    The weight is 1, as in ports for CIFAR. The authors train in two stages: first these terms
    alone, then the task (`stages` in a config, the first with `task_loss=False`).
    """
    choose_at('fsp', at, preset.at)
    names = fitting_taps('fsp', anatomy, 'backbone.c?')
    if len(names) < 2:
        raise ConfigError(
            f"preset 'fsp': it needs two taps backbone.cN that can be taught, and there is {names}."
        )
    distillers = []
    for first, second in pairwise(names):
        taps = [first, second]
        head = {'type': 'FSPDistillationHead', 'name': f'fsp_{short(first)}_{short(second)}'}
        distillers.append({'student_module': taps, 'teacher_module': list(taps), 'head': head})
    return distillers


preset.at = ('backbone',)
