"""Jacobian: which pixels move an output, and how, as in the teacher.

Papers: Srinivas, Fleuret: Knowledge Transfer with Jacobian Matching. ICML 2018.
    https://arxiv.org/abs/1803.00443; Czarnecki, Osindero, Jaderberg, Swirszcz, Pascanu: Sobolev
    Training for Neural Networks. NIPS 2017. https://arxiv.org/abs/1706.04859
Reads: the class logits (`logits`), or a map (`backbone.cN`), and differentiates it.
Stages: one.
Tasks: classification.

Both networks are differentiated with respect to the images, and the student once more: a step takes
about three times as long, and twice the memory.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.columns import Columns
from densekd.core.head import DistillationHead, check_same_shape
from densekd.core.input_grad import InputGradientLoss
from densekd.core.ops import l2n, zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError, TapError, did_you_mean
from densekd.methods.presets import choose_at, fitting_taps, only_classifiers
from densekd.registry import HEADS, LOSSES, PRESETS

OUTPUTS = {'label': 'the logit of the true class', 'attention': 'the maximum of a map'}


def jacobian_loss(
    student_grad: Tensor,  # (N, 3, H, W)
    teacher_grad: Tensor,  # (N, 3, H, W)
) -> Tensor:
    """Squared distance of two gradients with respect to an image, each of unit length.

        g_n = d y_n / d x_n,   y_n one output of a network on the image x_n
        L = mean_n || g^s / ||g^s|| - g^t / ||g^t|| ||^2   over 3, H, W

    So it lies between 0 and 4, and is blind to the scale of either output.

    Deviations: the authors' code is not public. They match the whole Jacobian, or that of one
    output, without its scale; here it is one output. A port has the mean over 3*H*W in place of the
    sum, with a weight of 20. A gradient of zeros stays one, and sends none on.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> import torch
        >>> jacobian_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(2.)
    """
    check_same_shape(student_grad, teacher_grad, 'jacobian_loss')
    if not student_grad.numel():
        return zero_like_loss(student_grad)
    apart = l2n(student_grad.flatten(1)) - l2n(teacher_grad.detach().flatten(1))
    return apart.square().sum(1).mean()


@LOSSES.register
class JacobianLoss(InputGradientLoss):
    """`jacobian_loss` as a module, of the gradients of one output of each network.

    Args:
        loss_weight: Factor.
        of: Which output: `'label'` is the logit of the true class, `'attention'` the largest value
            of sum_c F^2 over the positions of a map F, which needs no labels.

    Raises:
        ConfigError: If there is no such output.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]])
        >>> JacobianLoss(loss_weight=3.0)(s, t)
        tensor(6.)
    """

    needs: ClassVar[tuple[str, ...]] = ('input_grad', 'labels')

    def __init__(self, loss_weight: float = 1.0, of: str = 'label') -> None:
        super().__init__(loss_weight)
        if of not in OUTPUTS:
            raise ConfigError(f'JacobianLoss: there is no of={of!r}. {did_you_mean(of, OUTPUTS)}')
        self.of = of
        self._columns: Columns | None = None
        if of == 'attention':
            self.needs = ('input_grad',)  # type: ignore[misc]  # of this loss alone

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses places that have no such output.

        Raises:
            TapError: If logits are tapped where a map is meant, or the other way round.
        """
        check_outputs('JacobianLoss', 2 if self.of == 'label' else 4, student, teacher)
        self._columns = student.tap.columns

    def scalar(self, tapped: Tensor, batch: Batch) -> Tensor:
        """Returns the output of each image."""
        if self.of == 'label':
            column, meant = true_classes(batch.labels, self._columns)
            return torch.where(meant, tapped.gather(1, column).squeeze(1), 0.0)
        return tapped.square().sum(1).flatten(1).amax(1)

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        return jacobian_loss(student, teacher)


def true_classes(labels: Tensor, columns: Columns | None) -> tuple[Tensor, Tensor]:
    """Returns the column (N, 1) of each image's class, and whether there is one, (N,).

    Args:
        labels: The class of each image, (N,), in the student's numbers.
        columns: What of the student's classes is compared; None if all. Of an image of another
            class, which the teacher has not, neither network's output may be differentiated.
    """
    if columns is not None:
        labels = columns.places(labels)
    return labels.clamp(min=0)[:, None], labels >= 0


def check_outputs(name: str, axes: int, *places: Place) -> None:
    """Refuses places that are not what a loss differentiates.

    Args:
        name: The loss, for the message.
        axes: 2 for logits (N, K), 4 for a map.
        places: The student's and the teacher's.

    Raises:
        TapError: Naming the first that is not.
    """
    meant = {2: 'class logits, (N, K), as the tap "logits" gives', 4: 'one map, (N, C, H, W)'}
    for place in places:
        if [len(shape) for shape in place.shapes] != [axes]:
            raise TapError(
                f'{name}: tap {place.tap.label!r} gives {list(place.shapes)}, and it '
                f'differentiates {meant[axes]}.'
            )


@HEADS.register
class JacobianDistillationHead(DistillationHead):
    """Gradients of the true class's logit, with a weight of 1, which is ours."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'JacobianLoss', 'loss_weight': 1.0}


@PRESETS.register(name='jacobian')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns Jacobian matching of the true class's logit, with weight 1, which is ours."""
    choose_at('jacobian', at, preset.at)
    only_classifiers('jacobian', anatomy, 'it differentiates one output an image')
    (name,) = fitting_taps('jacobian', anatomy, 'logits')
    head = {'type': 'JacobianDistillationHead', 'name': 'jacobian'}
    return [{'student_module': name, 'teacher_module': name, 'head': head}]


preset.at = ('head',)
