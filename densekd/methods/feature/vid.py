"""VID: the teacher's map as a normal distribution around what is predicted from the student's.

Paper: Ahn, Hu, Damianou, Lawrence, Dai: Variational Information Distillation for Knowledge
    Transfer. CVPR 2019. https://arxiv.org/abs/1904.05835
Reads: the outputs of a backbone's stages (`backbone.cN`), through a regressor.
Stages: one.
Tasks: classification, detection, segmentation.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError, ShapeError, TapError
from densekd.methods.connectors import ChannelConnector
from densekd.methods.presets import choose_at, fitting_taps, short
from densekd.registry import CONNECTORS, HEADS, LOSSES, PRESETS


def vid_loss(
    mean: Tensor,  # (N, C, …), predicted from the student
    teacher: Tensor,  # (N, C, …)
    raw_variance: Tensor,  # (C,)
    eps: float = 1e-5,
) -> Tensor:
    """Negative logarithm of the teacher's density, with a variance for each channel.

        v_c = log(1 + exp(a_c)) + eps,   a = raw_variance
        L = mean_{n,c,h,w} ( (mean - T)^2 / v_c + log v_c ) / 2

    Of an exact mean, it is less the smaller the variance: below 0 once v is below 1, down to
    log(eps) / 2. With a mean that misses, it is least where v_c is the channel's squared error.

    Deviations: the constant log(2 pi) / 2 is left out, as in the ports; the authors published no
    code.

    Args:
        mean: What the student says that the teacher has.
        teacher: The teacher's map.
        raw_variance: What the variances come from; it is learnt.
        eps: The least variance.

    Raises:
        ShapeError: If the shapes differ, or there is not one variance a channel.

    Example:
        >>> x, raw = torch.zeros(1, 1, 1, 2), torch.tensor([5.0]).expm1().log()
        >>> vid_loss(x, x, raw), vid_loss(x, x + 1, raw)  # log(5) / 2, and 1 / (2 * 5) more
        (tensor(0.8047), tensor(0.9047))
    """
    check_same_shape(mean, teacher, 'vid_loss')
    if mean.dim() < 2 or tuple(raw_variance.shape) != (mean.shape[1],):
        raise ShapeError(
            f'vid_loss: there are raw variances {tuple(raw_variance.shape)} for maps '
            f'{tuple(mean.shape)}; there must be one for each channel.'
        )
    if not mean.numel():
        return zero_like_loss(mean, raw_variance)
    variance = nn.functional.softplus(raw_variance) + eps
    # The mean of each channel first: what is divided by its variance is then one number.
    rest = [axis for axis in range(mean.dim()) if axis != 1]
    error = (mean - teacher.detach()).square().mean(rest)
    return 0.5 * (error / variance + variance.log()).mean()


@LOSSES.register
class VIDLoss(DistillLoss):
    """`vid_loss` with a learnt variance for each of the teacher's channels.

    Args:
        loss_weight: Factor; 1 in public ports.
        variance: What each variance starts from.
        eps: The least variance.

    The loss falls below 0 as the variances shrink: it is no measure of how good the student is.
    Weight decay would draw a variance to 0.69, that of a raw one of 0, whatever the error is; so
    the variances are left out of it. Ports that use it have them in.

    Raises:
        ConfigError: If eps is not positive, or the variance not larger.

    Example:
        >>> loss = VIDLoss(loss_weight=2.0)
        >>> from densekd.core.taps import Tap
        >>> place = Place(Tap('backbone'), ((1, 1, 1, 2),), (None,))
        >>> loss.bind(place, place)
        >>> loss(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2)).detach()
        tensor(1.8094)
    """

    align = 'pool_larger'
    undecayed = ('raw_variance',)

    def __init__(self, loss_weight: float = 1.0, variance: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__(loss_weight)
        if not 0 < eps < variance:
            raise ConfigError(
                f'VIDLoss: eps={eps} must be positive, and variance={variance} be larger.'
            )
        self.variance = variance
        self.eps = eps
        self.raw_variance: nn.Parameter | None = None

    def bind(self, student: Place, teacher: Place) -> None:
        """Makes a variance for each of the teacher's channels.

        Raises:
            TapError: If the tap gives several tensors.
        """
        if len(teacher.shapes) > 1:
            raise TapError(
                f'VIDLoss: tap {teacher.tap.label!r} gives {len(teacher.shapes)} tensors, and '
                'variances belong to the channels of one. Write one distiller for each place.'
            )
        above = self.variance - self.eps
        # log(exp(v) - 1), of which the exponential would overflow.
        raw = above + math.log(-math.expm1(-above))
        self.raw_variance = nn.Parameter(torch.full((teacher.channels,), raw))

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss.

        Raises:
            ConfigError: If the loss was not bound to a place.
        """
        if self.raw_variance is None:
            raise ConfigError(
                'VIDLoss: it has a variance for each channel of the place that the teacher is '
                'tapped at. Use it in a head, or call vid_loss with variances of your own.'
            )
        return vid_loss(student, teacher, self.raw_variance, self.eps)


@CONNECTORS.register
class VIDConnector(ChannelConnector):
    """VID's regressor: three 1x1 convolutions without bias, a ReLU after the first and the second.

    Args:
        in_channel: Channels of the student's tap; None takes them from it.
        out_channel: Channels of the teacher's tap; None takes them from it.
        mid_channel: Channels between the convolutions; None takes as many as go out. With 2048,
            the regressor has 12 million weights.

    Example:
        >>> connector = VIDConnector(in_channel=4, out_channel=8)
        >>> tuple(connector(torch.zeros(2, 4, 5, 3)).shape)
        (2, 8, 5, 3)
    """

    def __init__(
        self,
        in_channel: int | None = None,
        out_channel: int | None = None,
        mid_channel: int | None = None,
    ) -> None:
        super().__init__(in_channel, out_channel)
        self.mid_channel = mid_channel
        self.build_early()

    def build(self, in_channel: int, out_channel: int) -> nn.Module:
        """Returns the layers."""
        mid = self.mid_channel or out_channel
        return nn.Sequential(
            OrderedDict(
                first=nn.Conv2d(in_channel, mid, 1, bias=False),
                act1=nn.ReLU(),
                second=nn.Conv2d(mid, mid, 1, bias=False),
                act2=nn.ReLU(),
                third=nn.Conv2d(mid, out_channel, 1, bias=False),
            )
        )


@HEADS.register
class VIDDistillationHead(DistillationHead):
    """Variational information of one map, through the regressor."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'VIDLoss', 'loss_weight': 1.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {'type': 'VIDConnector'}


@PRESETS.register(name='vid')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns VID at the end of each stage of the backbone, with weight 1.

    The weight is that of ports for CIFAR. A mean over elements, it does not grow with the map; for
    dense tasks none is published.
    """
    choose_at('vid', at, preset.at)
    return [
        {
            'student_module': name,
            'teacher_module': name,
            'head': {'type': 'VIDDistillationHead', 'name': f'vid_{short(name)}'},
        }
        for name in fitting_taps('vid', anatomy, 'backbone.c?')
    ]


preset.at = ('backbone',)
