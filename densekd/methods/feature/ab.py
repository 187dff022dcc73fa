"""AB: transfer of activation boundaries, of which neurons are active and not how strongly.

Paper: Heo, Lee, Yun, Choi: Knowledge Transfer via Distillation of Activation Boundaries Formed by
    Hidden Neurons. AAAI 2019. https://arxiv.org/abs/1811.03233
Reads: the student's values from before a ReLU (`backbone.cN.pre_relu`); of the teacher's only the
    sign is read, so that there both sides of the ReLU will do.
Stages: one or two; two as published, one with the preset's weights for dense tasks.
Tasks: classification, detection, segmentation.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError, TapError
from densekd.methods.presets import choose_at, fitting_taps, short
from densekd.registry import HEADS, LOSSES, PRESETS


def ab_loss(
    student: Tensor,  # (N, C, H, W), from before a ReLU, through a connector
    teacher: Tensor,  # (N, C, H, W)
    margin: float = 1.0,
) -> Tensor:
    """Squared hinge that puts each of the student's values on the teacher's side of zero.

        L = 1/N sum_{n,c,h,w} max(0, margin - S)^2   where T > 0
                              max(0, margin + S)^2   elsewhere

    So it is blind to the scale of the teacher but not of the student, and it is not 0 between equal
    maps: values nearer to zero than the margin are pushed on.

    Deviations: the sum is divided by N alone; the authors' 3/1000 and their halving from stage to
    stage are weights here.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> s = torch.tensor([0.0, 2.0, -3.0, 0.5]).reshape(1, 1, 1, 4)
        >>> t = torch.tensor([1.0, 1.0, -1.0, -1.0]).reshape(1, 1, 1, 4)
        >>> ab_loss(s, t)  # 1 + 0 + 0 + 2.25
        tensor(3.2500)
    """
    check_same_shape(student, teacher, 'ab_loss')
    if not student.numel():
        return zero_like_loss(student)
    wrong = torch.where(teacher.detach() > 0, -student, student)
    # A ReLU and not a clamp: it keeps its result for the gradient, as the square does, and no more.
    return (wrong + margin).relu().square().sum() / student.shape[0]


@LOSSES.register
class ABLoss(DistillLoss):
    """`ab_loss` as a module.

    Args:
        loss_weight: Factor on the sum an image; the authors' is 3e-3 for the deepest stage of
            CIFAR classifiers and half of it for each one before.
        margin: How far from zero a value must be on its right side.
        reference: Number of cells, H*W, of the maps that the weight is meant for; None leaves the
            sum as it is. The sum grows with H*W; with a reference it is multiplied by
            reference/(H*W), and no longer depends on the size of the image.

    A teacher map of another size is resized to the student's before its sign is taken.

    Raises:
        ConfigError: If an option is not positive.

    Example:
        >>> ABLoss(loss_weight=0.5, margin=2.0)(torch.zeros(1, 1, 1, 3), torch.ones(1, 1, 1, 3))
        tensor(6.)
    """

    align = 'to_student'
    minimum_at_equality = False  # values nearer to zero than the margin are pushed on

    def __init__(
        self, loss_weight: float = 1.0, margin: float = 1.0, reference: float | None = None
    ) -> None:
        super().__init__(loss_weight)
        if margin <= 0:
            raise ConfigError(f'ABLoss: margin must be positive, and {margin} is not.')
        if reference is not None and reference <= 0:
            raise ConfigError(f'ABLoss: reference is a number of cells, not {reference}.')
        self.margin = margin
        self.reference = reference

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses a student's tap where no value is negative.

        Raises:
            TapError: If the student's values come out of a ReLU.
        """
        if student.tap.rectified:
            label = student.tap.label
            raise TapError(
                f"ABLoss: the student's tap {label!r} comes out of a ReLU, where the boundary has "
                f'been passed already. Tap the place before it, such as "{label}.pre_relu".'
            )

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        value = ab_loss(student, teacher, self.margin)
        if self.reference is None:
            return value
        return value * (self.reference / max(student.shape[2:].numel(), 1))


@HEADS.register
class ABDistillationHead(DistillationHead):
    """Activation boundaries at one place.

    The margin is in the units of the student's values, which the connector's normalisation fixes;
    it is there even for equal channels, where the authors leave it out.
    """

    default_loss: ClassVar[dict[str, Any]] = {'type': 'ABLoss', 'loss_weight': 3e-3}
    default_stu_connector: ClassVar[dict[str, Any]] = {'type': 'BNConnector'}


@PRESETS.register(name='ab')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns AB at the end of each stage of the backbone, each with half the weight of the next.

    The deepest stage has the authors' 3e-3. They train in two stages: first these terms alone,
    then the task (`stages` in a config, the first with `task_loss=False`).

    For dense tasks no weight is published, and a sum over their maps is some hundred times larger
    than over the authors'. There the weight is tied to the maps of 224x224 pixels (7x7 cells in
    c5, 14x14 in c4, and so on) and is a hundredth of the authors', for training that has the task
    beside it; it is the step that OFD's authors take from classifiers to segmentors.
    """
    choose_at('ab', at, preset.at)
    names = fitting_taps('ab', anatomy, 'backbone.c*.pre_relu')
    dense = anatomy.kind != 'classifier'
    base = 3e-5 if dense else 3e-3
    distillers = []
    for i, name in enumerate(names, start=1):
        loss: dict[str, Any] = {'type': 'ABLoss', 'loss_weight': base / 2 ** (len(names) - i)}
        if dense:
            loss['reference'] = 49 * 4 ** (5 - int(short(name)[1:]))
        head = {'type': 'ABDistillationHead', 'loss': loss, 'name': f'ab_{short(name)}'}
        distillers.append({'student_module': name, 'teacher_module': name, 'head': head})
    return distillers


preset.at = ('backbone',)
