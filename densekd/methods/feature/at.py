"""AT: attention transfer, of where a network's activations are large.

Paper: Zagoruyko, Komodakis: Paying More Attention to Attention: Improving the Performance of
    Convolutional Neural Networks via Attention Transfer. ICLR 2017.
    https://arxiv.org/abs/1612.03928
Reads: the outputs of a backbone's stages (`backbone.cN`). Channels are collapsed, so they may
    differ.
Stages: one.
Tasks: classification, detection, segmentation.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import l2n, zero_like_loss
from densekd.errors import ConfigError, ShapeError, did_you_mean
from densekd.methods.presets import choose_at, fitting_taps, short
from densekd.registry import HEADS, LOSSES, PRESETS

KINDS = ('sum', 'max')
NORMS = ('code', 'paper')


def attention_map(
    feature: Tensor,  # (N, C, H, W)
    p: float = 2,
    kind: str = 'sum',
) -> Tensor:
    """How strong the activations of each position are, over all channels.

        F_nhw = sum_c |A_nchw|^p,   or max_c |A_nchw|^p

    Args:
        feature: The map.
        p: Exponent; above 1 it puts more weight on the strongest activations.
        kind: `'sum'` or `'max'` over channels.

    Deviations: absolute values are taken for every p, as the paper says; ports that leave them out
    let signs cancel with an odd p, and have NaN with a fractional one.

    Returns:
        The map (N, H, W), not normalised.

    Raises:
        ConfigError: If p is not positive, or there is no such kind.
        ShapeError: If the feature is no map.

    Example:
        >>> feature = torch.tensor([[1.0, -2.0], [-3.0, 0.0]]).reshape(1, 2, 1, 2)
        >>> attention_map(feature), attention_map(feature, p=1, kind='max')
        (tensor([[[10.,  4.]]]), tensor([[[3., 2.]]]))
    """
    _check_options(p, kind)
    if feature.dim() != 4:
        raise ShapeError(
            f'attention_map: it needs maps (N, C, H, W), and this is {tuple(feature.shape)}.'
        )
    if kind == 'max':
        return _power(feature.abs().amax(1), p)
    if p == 2:
        return feature.square().sum(1)
    return _power(feature.abs(), p).sum(1)


def _power(x: Tensor, p: float) -> Tensor:
    if p >= 1:
        return x.pow(p)
    # A power below 1 has an infinite slope at 0: zeros take that of 1 and are deselected after it.
    alive = x > 0
    return torch.where(alive, torch.where(alive, x, torch.ones_like(x)).pow(p), 0.0)


def at_loss(
    student: Tensor,  # (N, Cs, H, W)
    teacher: Tensor,  # (N, Ct, H, W)
    p: float = 2,
    kind: str = 'sum',
    norm: str = 'code',
) -> Tensor:
    """Mean squared difference of two attention maps, each of unit length in each image.

        Q = F(A) / ||F(A)||_2   over H, W
        L = mean_{n,h,w} (Q_s - Q_t)^2         ('code')
        L = 1/2 mean_n || Q_s - Q_t ||_2       ('paper')

    So it is blind to the scale of either map, to the number of channels and their order, and at
    most 2/(H*W), or sqrt(1/2), since no value of Q is negative. A map of one cell teaches nothing:
    it is 0.

    Deviations: the default is the authors' code, for which their weight of 1000 is meant; the paper
    has the norm itself. Without any activation Q is 0, and where the norm is 0 so is its slope.

    Args:
        student: The student's map.
        teacher: The teacher's.
        p: Exponent, see `attention_map`.
        kind: `'sum'` or `'max'` over channels.
        norm: `'code'` or `'paper'`.

    Raises:
        ConfigError: If an option is none of these.
        ShapeError: If N, H or W differ.

    Example:
        >>> student = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
        >>> teacher = torch.tensor([0.0, 2.0]).reshape(1, 1, 1, 2)
        >>> at_loss(student, teacher)  # (1 + 1) / 2
        tensor(1.)
    """
    _check_options(p, kind, norm)
    s, t = attention_map(student, p, kind), attention_map(teacher.detach(), p, kind)
    if s.shape != t.shape:
        raise ShapeError(
            f'at_loss: the student map is {tuple(student.shape)} and the teacher map '
            f'{tuple(teacher.shape)}; images, H and W must agree.'
        )
    if not s.numel():
        return zero_like_loss(student)
    apart = l2n(s.flatten(1)) - l2n(t.flatten(1))
    if norm == 'code':
        return apart.square().mean()
    # The root alone would have no slope where the maps are one.
    return 0.5 * (l2n(apart) * apart).sum(1).mean()


@LOSSES.register
class ATLoss(DistillLoss):
    """`at_loss` as a module.

    Args:
        loss_weight: Factor; the authors' is 1000, for CIFAR and for ImageNet.
        p: Exponent, see `attention_map`.
        kind: `'sum'` or `'max'` over channels.
        reference: Number of cells, H*W, of the maps that the weight is meant for; None leaves the
            mean as it is. The mean of maps of unit length falls with 1/(H*W): a weight for 7x7
            cells acts like one a hundred times smaller on 70x70. With a reference the mean is
            multiplied by H*W/reference, and is then a sum that no longer depends on the size.
        norm: `'code'`, the mean of squares, or `'paper'`, the norm of an image's difference, which
            has no such mean and takes no reference.

    Where sizes differ, the larger feature is averaged down before its map is taken.

    Raises:
        ConfigError: If an option is none of these.

    Example:
        >>> x = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
        >>> ATLoss(loss_weight=3.0)(x, x.flip(-1)), ATLoss(reference=1)(x, x.flip(-1))
        (tensor(3.), tensor(2.))
    """

    align = 'pool_larger'
    compares_channels = False  # they are collapsed

    def __init__(
        self,
        loss_weight: float = 1.0,
        p: float = 2,
        kind: str = 'sum',
        reference: float | None = None,
        norm: str = 'code',
    ) -> None:
        super().__init__(loss_weight)
        _check_options(p, kind, norm)
        if reference is not None and reference <= 0:
            raise ConfigError(f'ATLoss: reference is a number of cells, not {reference}.')
        self.p = p
        self.kind = kind
        if reference is not None and norm == 'paper':
            raise ConfigError(
                "ATLoss: reference is for the mean over cells, which norm='paper' has not. Leave "
                'one of them out.'
            )
        self.reference = reference
        self.norm = norm

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        value = at_loss(student, teacher, self.p, self.kind, self.norm)
        if self.reference is None:
            return value
        return value * (student.shape[-2] * student.shape[-1] / self.reference)


def _check_options(p: float, kind: str, norm: str = 'code') -> None:
    if norm not in NORMS:
        raise ConfigError(f'AT: there is no norm {norm!r}. {did_you_mean(norm, NORMS)}')
    if kind not in KINDS:
        raise ConfigError(f'AT: there is no kind {kind!r}. {did_you_mean(kind, KINDS)}')
    if p <= 0:
        raise ConfigError(f'AT: p must be positive, and {p} is not.')


@HEADS.register
class ATDistillationHead(DistillationHead):
    """Attention transfer at one place, without a connector: only H and W matter."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'ATLoss', 'loss_weight': 1000.0}


@PRESETS.register(name='at')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns attention transfer at the end of each stage of the backbone, with weight 1000.

    For dense tasks no weight is published. There the weight is tied to the maps that the authors'
    was used on, those of 224x224 pixels of ImageNet: 7x7 cells in c5, 14x14 in c4, and so on, so
    that a term is as large as theirs whatever the size of the image.
    """
    choose_at('at', at, preset.at)
    distillers = []
    for name in fitting_taps('at', anatomy, 'backbone.c?'):
        loss: dict[str, Any] = {'type': 'ATLoss', 'loss_weight': 1000.0}
        if anatomy.kind != 'classifier':
            loss['reference'] = 49 * 4 ** (5 - int(short(name)[1:]))
        head = {'type': 'ATDistillationHead', 'loss': loss, 'name': f'at_{short(name)}'}
        distillers.append({'student_module': name, 'teacher_module': name, 'head': head})
    return distillers


preset.at = ('backbone',)
