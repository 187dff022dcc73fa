"""FEED: the maps of several teachers, each through a translator of its own.

Papers: Park, Kwak: FEED: Feature-level Ensemble for Knowledge Distillation. CoRR 2019.
    https://arxiv.org/abs/1909.10754; Kim, Park, Kwak: Paraphrasing Complex Network: Network
    Compression via Factor Transfer. NeurIPS 2018. https://arxiv.org/abs/1802.04977
Reads: the output of a backbone's last stage (`backbone.cN`), of the student and of all teachers.
Stages: one.
Tasks: classification.

With several teachers in parallel:

    teacher=[dict(name='a', …), dict(name='b', …)], preset='feed'

In sequence (a student becomes the teacher of the next) it is a list of rounds, each by one teacher:
see densekd/engine/sequences.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import Connector, DistillationHead, DistillLoss
from densekd.core.taps import Place, tensors
from densekd.errors import ConfigError, ShapeError
from densekd.methods.feature.ft import TranslatorConnector, ft_loss
from densekd.methods.presets import choose_at, fitting_taps, only_classifiers
from densekd.registry import CONNECTORS, HEADS, LOSSES, PRESETS


def feed_loss(
    translations: Sequence[Tensor],  # M of (N, C_m, H, W), of the student's map
    teachers: Sequence[Tensor],  # M of the same shapes
) -> Tensor:
    """Mean over M teachers of the difference between a teacher's map and its translation.

        x_n = X_n / ||X_n||_2   over C, H, W
        L = 1/M sum_m mean_{n,c,h,w} |tr_m(S) - T_m|

    For one teacher it is factor transfer (`ft_loss`) with the teacher's own map as the factor.

    Args:
        translations: What the translators made of the student's map.
        teachers: The teachers' maps.

    Deviations: the paper sums over the teachers; the mean lets a weight keep its meaning when one
    more joins. Its code is not public, and its equations were read, not run.

    Raises:
        ShapeError: If there is no teacher, or the numbers or the shapes differ.

    Example:
        >>> a, b = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[2.0, 0.0]]]])
        >>> feed_loss([a, b], [b, b])  # half of 0.6
        tensor(0.3000)
    """
    if not teachers or len(translations) != len(teachers):
        raise ShapeError(
            f'feed_loss: a translation for each teacher is needed: there are {len(translations)}, '
            f'and {len(teachers)} teachers.'
        )
    terms = [ft_loss(s, t) for s, t in zip(translations, teachers, strict=True)]
    return torch.stack(terms).mean()


@LOSSES.register
class FEEDLoss(DistillLoss):
    """`feed_loss` as a module, of translations that stand one after the other in the channels.

    Args:
        loss_weight: Factor.

    A student without translators is compared with each teacher as it is.

    Example:
        >>> s, t = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[2.0, 0.0]]]])
        >>> FEEDLoss(loss_weight=10.0)(torch.cat([s, t], 1), [t, t])
        tensor(3.)
    """

    ensemble = True
    align = 'to_student'

    def compute(self, student: Tensor, teacher: Any, batch: Batch) -> Tensor:
        """Returns the unweighted loss; `teacher` is a tensor, or a list with one a teacher."""
        teachers = tensors(teacher)
        channels = [t.shape[1] for t in teachers]
        if student.shape[1] == sum(channels):
            return feed_loss(student.split(channels, 1), teachers)
        return feed_loss([student] * len(teachers), teachers)


@CONNECTORS.register
class TranslatorsConnector(Connector):
    """A translator for each teacher, each three convolutions: FT's, with all of its channels.

    What they make stands one after the other in the channels.

    Example:
        >>> from densekd.core.taps import Tap
        >>> translators = TranslatorsConnector()
        >>> own = Place(Tap('x'), ((1, 4, 5, 3),), (None,))
        >>> translators.bind(own, Place(Tap('x'), ((1, 6, 5, 3), (1, 8, 5, 3)), (None, None)))
        >>> tuple(translators(torch.zeros(2, 4, 5, 3)).shape)
        (2, 14, 5, 3)
    """

    shared = True

    def __init__(self) -> None:
        super().__init__()
        self.translators = nn.ModuleList()

    def bind(self, own: Place, other: Place) -> None:
        """Builds the translators."""
        build = TranslatorConnector(rate=1.0).build
        self.translators = nn.ModuleList(build(own.channels, shape[1]) for shape in other.shapes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns all translations of the student's map."""
        if not len(self.translators):
            raise ConfigError(
                'TranslatorsConnector: the teachers are not known yet. Bind it to two places, as '
                'a head does.'
            )
        return torch.cat([translator(x) for translator in self.translators], 1)


@HEADS.register
class FEEDDistillationHead(DistillationHead):
    """Translations of one map for all teachers; the weight is factor transfer's."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'FEEDLoss', 'loss_weight': 500.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {'type': 'TranslatorsConnector'}


@PRESETS.register(name='feed')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns one distiller at the end of the last stage, by all teachers."""
    choose_at('feed', at, ('backbone',))
    only_classifiers('feed', anatomy, 'factors of whole images are compared')
    tap = fitting_taps('feed', anatomy, 'backbone.c?')[-1]
    head = {'type': 'FEEDDistillationHead', 'name': 'feed'}
    return [{'student_module': tap, 'teacher_module': tap, 'head': head}]


preset.at = ('backbone',)
preset.several = True
