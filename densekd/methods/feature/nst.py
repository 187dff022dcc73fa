"""NST: the distribution of what single channels look at, matched by its kernel mean.

Paper: Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer.
    CoRR 2017. https://arxiv.org/abs/1707.01219
Reads: the output of a backbone's last stage (`backbone.cN`); channels may differ.
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
from densekd.methods.presets import choose_at, fitting_taps
from densekd.registry import HEADS, LOSSES, PRESETS

KERNELS = ('linear', 'poly', 'gaussian')


def nst_loss(
    student: Tensor,  # (N, Cs, H, W)
    teacher: Tensor,  # (N, Ct, H, W)
    kernel: str = 'poly',
    sigma2: float | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy between the channels of two maps, each of unit length.

        f_c = F_c / ||F_c||_2   over H, W: the samples are channels, not positions
        L = mean_n ( mean_{c,d} k(s_c, s_d) + mean_{c,d} k(t_c, t_d) - 2 mean_{c,d} k(s_c, t_d) )
        k(x, y) = <x, y>   ('linear')
                  <x, y>^2   ('poly')
                  exp(-||x - y||^2 / (2 sigma2))   ('gaussian')

    So it is blind to the scale, the number and the order of channels on either side.

    Deviations: the paper's lambda/2 is a weight here. The authors' code leaves out the teacher's
    term, which is constant, so that its value may be negative. A channel without any activation is
    a sample of zeros, without a gradient.

    Args:
        student: The student's map.
        teacher: The teacher's.
        kernel: `'linear'`, `'poly'` or `'gaussian'`.
        sigma2: Width of the Gaussian kernel; None takes, for each image, the mean squared distance
            between its student's and its teacher's channels, as a constant.

    Raises:
        ConfigError: If there is no such kernel, or the width is not positive.
        ShapeError: If a side is no map, or N, H or W differ.

    Example:
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 1, 2)
        >>> teacher = torch.tensor([3.0, 0.0]).reshape(1, 1, 1, 2)
        >>> nst_loss(student, teacher), nst_loss(student, teacher, 'linear')  # 1/2 + 1 - 2/2
        (tensor(0.5000), tensor(0.5000))
    """
    _check_options(kernel, sigma2)
    size = student.shape[:1] + student.shape[2:]
    if student.dim() != 4 or teacher.dim() != 4 or size != teacher.shape[:1] + teacher.shape[2:]:
        raise ShapeError(
            f'nst_loss: the student map is {tuple(student.shape)} and the teacher map '
            f'{tuple(teacher.shape)}; both must be (N, C, H, W), and N, H and W must agree.'
        )
    if not student.numel():
        return zero_like_loss(student)
    s, t = l2n(student.flatten(2)), l2n(teacher.detach().flatten(2))
    if kernel == 'linear':
        return (s.mean(1) - t.mean(1)).square().sum(1).mean()
    if kernel == 'gaussian':
        return _gaussian(s, t, sigma2)
    return _poly(s, t)


def _poly(s: Tensor, t: Tensor) -> Tensor:
    cells, channels, others = s.shape[2], s.shape[1], t.shape[1]
    if cells**2 < channels * others:
        # <x, y>^2 summed over channels is the inner product of two matrices of cells by cells, and
        # all three terms together are the square of their difference.
        apart = torch.bmm(s.mT, s) / channels - torch.bmm(t.mT, t) / others
        return apart.square().sum((1, 2)).mean()
    own, theirs, cross = (torch.bmm(x, y.mT).square() for x, y in ((s, s), (t, t), (s, t)))
    return own.mean() + theirs.mean() - 2 * cross.mean()


def _gaussian(s: Tensor, t: Tensor, sigma2: float | None) -> Tensor:
    cross = _squared_distances(s, t)
    if sigma2 is None:
        width = cross.detach().mean((1, 2), keepdim=True)
        # Of channels that are all alike, any width makes a loss of 0; that of rounding does not.
        alike = width < 10 * torch.finfo(width.dtype).eps
        width = torch.where(alike, torch.ones_like(width), width)
    else:
        width = cross.new_tensor(sigma2)
    own, theirs, between = (
        (x / (-2 * width)).exp().mean()
        for x in (_squared_distances(s, s), _squared_distances(t, t), cross)
    )
    return own + theirs - 2 * between


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    # Of vectors no longer than 1 the inner products lose nothing that a mean of kernels would show.
    lengths = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None, :]
    return lengths - 2 * torch.bmm(x, y.mT)


@LOSSES.register
class NSTLoss(DistillLoss):
    """`nst_loss` as a module.

    Args:
        loss_weight: Factor; the authors' code has 50, for the kernel 'poly' and the last stage.
        kernel: `'linear'`, `'poly'` or `'gaussian'`.
        sigma2: Width of the Gaussian kernel; None takes that of each image.

    Where sizes differ, the larger map is averaged down first.

    Raises:
        ConfigError: If an option is none of these.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 1, 2)
        >>> NSTLoss(loss_weight=50.0)(x, x[:, :1])
        tensor(25.)
    """

    align = 'pool_larger'
    compares_channels = False  # they are samples, of which a side may have more

    def __init__(
        self, loss_weight: float = 1.0, kernel: str = 'poly', sigma2: float | None = None
    ) -> None:
        super().__init__(loss_weight)
        _check_options(kernel, sigma2)
        self.kernel = kernel
        self.sigma2 = sigma2

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return nst_loss(student, teacher, self.kernel, self.sigma2)


def _check_options(kernel: str, sigma2: float | None) -> None:
    if kernel not in KERNELS:
        hint = did_you_mean(kernel, KERNELS)
        raise ConfigError(f'NST: there is no kernel {kernel!r}. {hint}')
    if sigma2 is not None and (sigma2 <= 0 or kernel != 'gaussian'):
        raise ConfigError(
            f"NST: sigma2 is the width of the kernel 'gaussian', a positive number; sigma2={sigma2}"
            f' and kernel={kernel!r} do not go together.'
        )


@HEADS.register
class NSTDistillationHead(DistillationHead):
    """Neuron selectivity of one map, with the kernel 'poly' and without a connector."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'NSTLoss', 'loss_weight': 50.0}


@PRESETS.register(name='nst')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns NST at the end of the last stage of the backbone, with the authors' weight 50.

    Theirs is for classifiers. The loss does not grow with the map, so that it stands for dense
    tasks too, for which none is published.
    """
    choose_at('nst', at, preset.at)
    name = fitting_taps('nst', anatomy, 'backbone.c?')[-1]
    head = {'type': 'NSTDistillationHead', 'name': 'nst'}
    return [{'student_module': name, 'teacher_module': name, 'head': head}]


preset.at = ('backbone',)
