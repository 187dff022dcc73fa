"""Binary KL: soft labels for sigmoid logits, each class a distribution of its own.

Paper: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. NIPS workshop 2014.
    https://arxiv.org/abs/1503.02531, class by class, as detectors with sigmoid outputs need it.
Reads: the sigmoid classification logits of a one-stage detector (`head.cls_logits`).
Stages: one.
Tasks: detection.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.head import DistillationHead, check_same_shape
from densekd.errors import ConfigError
from densekd.methods.response.dense_logits import (
    DenseLogitLoss,
    dense_logit_distillers,
    weighted_sum,
)
from densekd.registry import HEADS, LOSSES, PRESETS

# Above it softplus(z) is z in float64, too; torch's own threshold is meant for float32.
LINEAR = 40.0


def binary_kl_loss(
    student: Tensor,  # (R, K) logits
    teacher: Tensor,  # (R, K) logits
    tau: float = 1.0,
    weight: Tensor | None = None,  # (R,)
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of each class's two-way distribution.

        p = sigmoid(z_t / tau),  q = sigmoid(z_s / tau)
        L = tau^2/avg_factor sum_r w_r sum_k p log(p/q) + (1 - p) log((1 - p)/(1 - q))

    A softmax over the classes would be blind to a shift of all logits of an anchor, and with it
    to whether there is an object at all. Unlike cross-entropy, which has the same gradient, it is
    0 where both agree.

    Args:
        student: The student's logits.
        teacher: The teacher's.
        tau: Temperature.
        weight: Weight of each row.
        avg_factor: What the sum is divided by; None is R.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> s, t = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [-2.0]])
        >>> binary_kl_loss(s, t, avg_factor=1)
        tensor(1.5232)
        >>> binary_kl_loss(torch.tensor([[12.0]]), torch.tensor([[12.5]]))  # both are sure
        tensor(5.5423e-07)
    """
    check_same_shape(student, teacher, 'binary_kl_loss')
    s, t = student, teacher.detach()
    if tau != 1:
        s, t = s / tau, t / tau
    # In logits throughout: a probability that rounds to 0 or 1 has no logarithm. With log p = t -
    # softplus(t) and log(1 - p) = -softplus(t) the two terms are p (t - s) + softplus(s) -
    # softplus(t). Yes and no change places where p > 1/2: p near 1 would hide what it lacks of 1.
    s, t = torch.where(t > 0, -s, s), -t.abs()
    # In place: these rows are the largest tensors that any loss makes.
    rows = (t - s).mul_(t.sigmoid())
    rows = rows.add_(F.softplus(s, threshold=LINEAR)).sub_(F.softplus(t, threshold=LINEAR))
    return tau**2 * weighted_sum(rows, weight, avg_factor)


@LOSSES.register
class BinaryKLLoss(DenseLogitLoss):
    """`binary_kl_loss` over all anchors that the student's own classification loss counts.

    Args:
        loss_weight: Factor.
        tau: Temperature.

    Raises:
        ConfigError: If the temperature is not positive.
    """

    def __init__(self, loss_weight: float = 1.0, tau: float = 1.0) -> None:
        super().__init__(loss_weight)
        if not tau > 0:
            raise ConfigError(f'BinaryKLLoss: tau is a temperature above 0, not {tau}.')
        self.tau = tau

    def rows(
        self, student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float
    ) -> Tensor:
        """Returns the loss of one level."""
        return binary_kl_loss(student, teacher, self.tau, weight, avg_factor)


@HEADS.register
class BinaryKLDistillationHead(DistillationHead):
    """Binary KL on classification logits, temperature 1."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'BinaryKLLoss', 'loss_weight': 1.0}


@PRESETS.register(name='binary_kl')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns one distiller on the classification logits of all levels."""
    return dense_logit_distillers('binary_kl', 'BinaryKLDistillationHead', anatomy, at)


preset.at = ('head',)
