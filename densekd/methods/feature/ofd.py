"""OFD: a comprehensive overhaul of feature distillation.

Paper: Heo, Kim, Yun, Park, Kwak, Choi: A Comprehensive Overhaul of Feature Distillation.
    ICCV 2019. https://arxiv.org/abs/1904.01866
Reads: values from before a ReLU: the sum at the end of a residual stage
    (`backbone.cN.pre_relu`), a segmentor's decoder (`decode.aspp`, `decode.feature`), or the
    output of a batch normalisation.
Stages: one; for segmentors the connectors have the first epoch to themselves.
Tasks: classification, detection, segmentation.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError, ShapeError, TapError, did_you_mean
from densekd.methods.presets import choose_at, fitting_taps, short
from densekd.registry import HEADS, LOSSES, PRESETS

MARGINS = ('bn', 'empirical')
# Where fewer than this share of a channel is negative, the authors replace its margin by -3 sigma.
RARE = 1e-3


@torch.no_grad()
def margin_from_bn(
    weight: Tensor,  # (C,), gamma
    bias: Tensor,  # (C,), beta
) -> Tensor:
    """Mean of a channel's negative values, from the scale and shift of its batch normalisation.

        m_c = E[x | x < 0],  x ~ N(beta, gamma^2)
            = beta - s phi(beta/s) / Phi(-beta/s),   s = |gamma|
            = -3 s                                   where Phi(-beta/s) <= 1e-3

    Deviations: a channel with gamma = 0 is constant, and its margin is min(beta, 0), where the
    authors' formula divides by zero. Computed in float64, with the logarithm of Phi.

    Returns:
        The margins (C,), in the dtype of `weight`.

    Example:
        >>> margin_from_bn(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([0.0, -1.0, 3.1]))
        tensor([-0.7979, -2.0183, -3.0000])
    """
    s, beta = weight.detach().double().abs(), bias.detach().double()
    alive = s > 0
    ratio = beta / torch.where(alive, s, torch.ones_like(s))
    log_tail = torch.special.log_ndtr(-ratio)
    log_density = -0.5 * ratio.square() - 0.5 * math.log(2 * math.pi)
    margin = beta - s * (log_density - log_tail).exp()
    margin = torch.where(log_tail > math.log(RARE), margin, -3 * s)
    return torch.where(alive, margin, beta.clamp(max=0)).to(weight.dtype)


def ofd_loss(
    student: Tensor,  # (N, C, H, W), from before a ReLU, through a connector
    teacher: Tensor,  # (N, C, H, W), from before a ReLU
    margin: Tensor,  # (C,)
) -> Tensor:
    """Partial squared distance to the teacher's margin ReLU.

        T' = max(T, m_c)
        L  = 1/N sum_{n,c,h,w} (S - T')^2 [S > T' or T' > 0]

    So a student that is below a target that is not positive is left alone: after the ReLU both
    are 0.

    Deviations: the sum is divided by N alone; the authors' 1e-3 (CIFAR), 1e-4 (ImageNet) and 1e-5
    (segmentation), which they and others divide by inside, are weights here. The condition looks
    at T', not at T.

    Raises:
        ShapeError: If the shapes differ, or there is not one margin a channel.

    Example:
        >>> t = torch.tensor([-0.5, -0.5, -0.6, -2.0, 2.0, 2.0]).reshape(1, 1, 1, 6)
        >>> s = torch.tensor([-2.0, -0.5, -0.3, 1.0, -1.0, 0.5]).reshape(1, 1, 1, 6)
        >>> ofd_loss(s, t, torch.tensor([-0.8]))  # 0 + 0 + 0.09 + 3.24 + 9 + 2.25
        tensor(14.5800)
    """
    check_same_shape(student, teacher, 'ofd_loss')
    if student.dim() < 2 or margin.numel() != student.shape[1]:
        raise ShapeError(
            f'ofd_loss: there are {margin.numel()} margins for maps of {tuple(student.shape)}; '
            'each channel (the second dimension) needs one.'
        )
    if not student.numel():
        return zero_like_loss(student)
    margin = margin.detach().to(teacher).reshape(1, -1, *[1] * (teacher.dim() - 2))
    target = torch.maximum(teacher.detach(), margin)
    counts = (student > target) | (target > 0)
    difference = (student - target).masked_fill_(~counts, 0)
    return difference.square().sum() / student.shape[0]


@LOSSES.register
class OFDLoss(DistillLoss):
    """`ofd_loss` as a module, with the margins of its teacher's place.

    Args:
        loss_weight: Factor on the sum an image.
        margin: `'bn'` takes the margins in closed form from the normalisation that feeds the
            teacher's tap, once, when the model is built with the teacher's weights in. At a
            residual sum it is an approximation: it does not know the shortcut. `'empirical'` takes
            the mean of the teacher's negative values in all batches seen so far, for teachers
            without batch normalisation and for taps where the closed form is off.

    The margins are buffers: they move with the module and are saved for resuming. A teacher map of
    another size is resized to the student's before the maximum is taken.

    Raises:
        ConfigError: If `margin` is neither.

    Example:
        >>> head = DistillationHead(loss=dict(type='OFDLoss', loss_weight=1e-3, margin='empirical'))
        >>> teacher = torch.tensor([-1.0, -3.0, 1.0, 1.0]).reshape(1, 1, 2, 2)
        >>> head(torch.ones(1, 1, 2, 2), teacher), head.loss.margins()  # (4 + 9 + 0 + 0) / 1000
        (tensor(0.0130), tensor([-2.]))
    """

    align = 'to_student'

    def __init__(self, loss_weight: float = 1.0, margin: str = 'bn') -> None:
        super().__init__(loss_weight)
        if margin not in MARGINS:
            hint = did_you_mean(margin, MARGINS)
            raise ConfigError(f'OFDLoss: there is no margin {margin!r}. {hint}')
        self.kind = margin
        self.register_buffer('margin', None)
        self.register_buffer('negative_sum', None)
        self.register_buffer('negative_count', None)

    def bind(self, student: Place, teacher: Place) -> None:
        """Takes the margins from the teacher's place.

        Raises:
            TapError: If the teacher's values come out of a ReLU, or the tap gives several tensors.
            ConfigError: If the margins shall come from a batch normalisation and there is none.
        """
        label = teacher.tap.label
        if len(teacher.shapes) > 1:
            raise TapError(
                f'OFDLoss: tap {label!r} gives {len(teacher.shapes)} tensors, and margins belong '
                'to one. Write one distiller for each place.'
            )
        if teacher.tap.rectified:
            raise TapError(
                f'OFDLoss: tap {label!r} comes out of a ReLU, where nothing is negative and the '
                f'margins never act. Tap the place before it, such as "{label}.pre_relu".'
            )
        if self.kind == 'bn':
            self.margin = _margin_of(teacher)
        else:
            # In float64: a sum over a whole epoch outgrows float32's 24 bits.
            self.negative_sum = torch.zeros(teacher.channels, dtype=torch.float64)
            self.negative_count = torch.zeros(teacher.channels, dtype=torch.float64)

    def margins(self) -> Tensor:
        """Returns the margins (C,) that are in use.

        Raises:
            ConfigError: If the loss was not bound to a place yet.
        """
        if self.margin is not None:
            return self.margin
        if self.negative_sum is None:
            raise ConfigError(
                'OFDLoss: its margins come from the place that the teacher is tapped at. Use it '
                'in a head, or call ofd_loss with margins of your own.'
            )
        return (self.negative_sum / self.negative_count.clamp(min=1)).float()

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        if self.negative_sum is not None and self.training:
            self._count(teacher)
        return ofd_loss(student, teacher, self.margins().to(teacher.device))

    @torch.no_grad()
    def _count(self, teacher: Tensor) -> None:
        dims = [0, *range(2, teacher.dim())]
        negative = teacher.clamp(max=0).sum(dims, dtype=torch.float64)
        count = (teacher < 0).sum(dims)
        self.negative_sum += negative.to(self.negative_sum)
        self.negative_count += count.to(self.negative_count)


def _margin_of(place: Place) -> Tensor:
    norm = place.norm
    if norm is None or not _is_batch_norm(norm):
        found = 'no normalisation' if norm is None else f'{type(norm).__name__}'
        raise ConfigError(
            f'OFDLoss: tap {place.tap.label!r} is fed by {found}, and margin="bn" takes the '
            'margins from a batch normalisation. Give the loss margin="empirical", or tap '
            '"backbone.cN.pre_relu" or the output of a batch normalisation.'
        )
    weight, bias = getattr(norm, 'weight', None), getattr(norm, 'bias', None)
    if weight is None or bias is None:  # affine=False: the output is N(0, 1)
        weight, bias = torch.ones(place.channels), torch.zeros(place.channels)
    return margin_from_bn(weight, bias).float()


def _is_batch_norm(norm: nn.Module) -> bool:
    # Also those that are no subclass of torch's: frozen ones, which keep all four as buffers.
    if isinstance(norm, _BatchNorm):
        return True
    return isinstance(getattr(norm, 'running_mean', None), Tensor) and not isinstance(
        norm, _InstanceNorm
    )


@HEADS.register
class OFDDistillationHead(DistillationHead):
    """OFD at one place: its connector on the student's side is there even for equal channels."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'OFDLoss', 'loss_weight': 1e-3}
    default_stu_connector: ClassVar[dict[str, Any]] = {'type': 'BNConnector'}


@PRESETS.register(name='ofd')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns OFD at the end of each stage of the backbone, or (segmentors) in the decoder.

    The deepest stage has the whole weight and each one before it half of the next, as published.
    The weight is the authors' 1e-3 for classifiers (1e-4 is theirs for ImageNet) and their 1e-5
    for segmentors; no weight is published for detectors, whose maps are larger still, and they
    start at 1e-5 too. In the decoder the authors divide by 1 after the ASPP, by 16 after the last
    convolution.

    For segmentors the connectors have ten times the learning rate, as published, and the first
    epoch to themselves. The authors let the student rest meanwhile; here it learns its own task.
    """
    base = 1e-3 if anatomy.kind == 'classifier' else 1e-5
    if choose_at('ofd', at, preset.at) == 'backbone':
        names = fitting_taps('ofd', anatomy, 'backbone.c*.pre_relu')
        divisors = [2.0 ** (len(names) - 1 - i) for i in range(len(names))]
    else:
        names = fitting_taps('ofd', anatomy, ('decode.aspp*', 'decode.feature*'))
        # Some decoders offer a place both before and after its ReLU; OFD reads the first.
        names = [name for name in names if not anatomy.teacher[name].rectified] or names
        divisors = [16.0 if 'feature' in name else 1.0 for name in names]
    distillers = []
    for name, divisor in zip(names, divisors, strict=True):
        loss: dict[str, Any] = {'type': 'OFDLoss', 'loss_weight': base / divisor}
        if anatomy.teacher[name].norm is None:
            loss['margin'] = 'empirical'
        head = {'type': 'OFDDistillationHead', 'loss': loss, 'name': f'ofd_{short(name)}'}
        entry: dict[str, Any] = {'student_module': name, 'teacher_module': name, 'head': head}
        if anatomy.kind == 'segmentor':
            entry.update(lr_mult=10.0, schedule={'by': 'epoch', 'connectors_first': 1})
        distillers.append(entry)
    return distillers


preset.at = ('backbone', 'head')
