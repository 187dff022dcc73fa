"""DML: mutual learning, of networks that train together from the start.

Paper: Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning. CVPR 2018.
    https://arxiv.org/abs/1706.00384
Reads: a classifier's logits (`logits`), of the student and of its peers.
Stages: one.
Tasks: classification.

The others are named in the model's config, each a network that learns its own task too:

    peers=[dict(name='b', model='resnet20.py')], preset='dml'

The list that the preset stands for has one distiller a network. Where `student` names a peer, it is
the one that is taught: dict(student='b', teacher=['student'], student_module='logits', …).
"""

from __future__ import annotations

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
from densekd.errors import ConfigError, ShapeError
from densekd.methods.presets import choose_at, fitting_taps, only_classifiers
from densekd.methods.response.class_logits import SoftmaxHead, check_logits, refuse_sigmoids
from densekd.registry import HEADS, LOSSES, PRESETS


def dml_loss(
    student: Tensor,  # (N, K) or (N, K, H, W) logits of network k
    peers: Sequence[Tensor],  # M - 1 of that shape, of the others
    tau: float = 1.0,
) -> Tensor:
    """Mean divergence of a network's class probabilities from those of its M - 1 peers.

        p_l = softmax(z_l / tau)
        L_k = tau^2 / (M - 1) sum_{l != k} mean_n KL(p_l || p_k)

    The others are held constant, so that the losses of all networks can be added and sent backward
    at once: that of k moves network k alone.

    Args:
        student: The logits of the network that learns.
        peers: Those of the others.
        tau: Temperature; the paper has none, which is 1.

    Deviations: all networks learn from predictions made before the step; the paper takes turns, and
    predicts again in between. The authors' code sums over the peers without 1/(M - 1), which is the
    paper's, and adds 1e-8 within the logarithm; with logarithms of the softmax there is no need.

    Raises:
        ShapeError: If there is no peer, or a shape differs.

    Example:
        >>> own = torch.zeros(1, 2)
        >>> dml_loss(own, [torch.tensor([[0.0, 4.0]]), own])  # half of 0.603
        tensor(0.3015)
    """
    if not peers:
        raise ShapeError('dml_loss: it needs at least one peer.')
    log_q = F.log_softmax(student / tau, 1)
    terms = []
    for peer in peers:
        check_logits(student, peer, 'dml_loss')
        log_p = F.log_softmax(peer.detach() / tau, 1)
        rows = F.kl_div(log_q, log_p, reduction='none', log_target=True).sum(1)
        terms.append(masked_mean(rows))
    return tau**2 * torch.stack(terms).mean()


@LOSSES.register
class DMLLoss(DistillLoss):
    """`dml_loss` as a module.

    Args:
        loss_weight: Factor.
        tau: Temperature.

    Raises:
        ConfigError: If the temperature is not positive.

    Example:
        >>> DMLLoss(loss_weight=2.0)(torch.zeros(1, 2), torch.tensor([[0.0, 4.0]]))
        tensor(1.2061)
    """

    ensemble = True
    align = 'to_student'

    def __init__(self, loss_weight: float = 1.0, tau: float = 1.0) -> None:
        super().__init__(loss_weight)
        if not tau > 0:
            raise ConfigError(f'DMLLoss: tau is a temperature above 0, not {tau}.')
        self.tau = tau

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses logits that no softmax over the classes is taken of.

        Raises:
            ConfigError: If a place has sigmoid logits.
        """
        refuse_sigmoids('DMLLoss', student, teacher)

    def compute(self, student: Tensor, teacher: Any, batch: Batch) -> Tensor:
        """Returns the unweighted loss; `teacher` is a tensor, or a list with one a peer."""
        return dml_loss(student, tensors(teacher), self.tau)


@HEADS.register
class DMLDistillationHead(SoftmaxHead):
    """Mutual learning on logits."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'DMLLoss', 'loss_weight': 1.0}


@PRESETS.register(name='dml')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns the distiller of one network; the model makes one for each of those that train."""
    choose_at('dml', at, ('head',))
    only_classifiers('dml', anatomy, 'peers are for the classifier path')
    tap = fitting_taps('dml', anatomy, 'logits')[0]
    head = {'type': 'DMLDistillationHead', 'name': 'dml'}
    return [{'student_module': tap, 'teacher_module': tap, 'head': head}]


preset.at = ('head',)
preset.mutual = True  # each of the networks that train learns so from the others
