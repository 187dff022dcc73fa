"""Chen 2017: soft labels that care for the background, and a regression bounded by the teacher.

Paper: Chen, Choi, Yu, Han, Chandraker: Learning Efficient Object Detection Models with Knowledge
    Distillation. NIPS 2017.
Reads: class logits and box deltas of a two-stage detector's box head (`roi.cls_logits`,
    `roi.bbox_deltas`) and RPN (`rpn.objectness`, `rpn.deltas`), the teacher's on the student's
    regions and anchors; the deltas of a one-stage detector (`head.bbox_deltas`) likewise. The
    paper's hints on features are FitNet's.
Stages: one.
Tasks: detection.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import masked_mean
from densekd.core.taps import Coding, Place
from densekd.errors import ConfigError, ShapeError, did_you_mean
from densekd.methods.presets import choose_at, fitting_taps
from densekd.methods.response.box_heads import (
    check_grid,
    check_levels,
    check_regions,
    deltas_of_class,
    objectness_rows,
)
from densekd.methods.response.class_logits import check_classes
from densekd.methods.response.dense_logits import flatten_logits, weighted_sum
from densekd.registry import HEADS, LOSSES, PRESETS

# What bounded regression asks of the batch, by the head whose boxes it compares.
NEEDS = {
    'roi': ('rois', 'roi_labels', 'roi_positive', 'roi_box_targets'),
    'rpn': ('rpn_positive', 'rpn_box_targets', 'rpn_avg_factor'),
    'dense': ('dense_positive', 'dense_box_targets', 'dense_avg_factor'),
}


def weighted_soft_label_loss(
    student: Tensor,  # (R, K+1) logits, background last
    teacher: Tensor,  # (R, K+1) logits, background last
    bg_weight: float = 1.5,
    tau: float = 1.0,
) -> Tensor:
    """Cross-entropy to the teacher's class probabilities, the background's term weighted.

        p = softmax(z_t / tau),  q = softmax(z_s / tau),  w = 1, ..., 1, bg_weight
        L = -tau^2 mean_r sum_k w_k p_k log q_k

    With a weight other than 1 the loss is least not at q = p, but at q_k ~ w_k p_k: the student
    leans to the background by design. It is not 0 for equal networks.

    Args:
        student: The student's logits.
        teacher: The teacher's.
        bg_weight: Weight of the background; the paper's is 1.5.
        tau: Temperature; the paper's is 1, for which the factor tau^2 is ours.

    Deviations: the paper has background first, mmdet has it last.

    Raises:
        ShapeError: If the shapes differ, or there is no class beside the background.

    Example:
        >>> student = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
        >>> teacher = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
        >>> weighted_soft_label_loss(student, teacher)
        tensor(0.9809)
    """
    name = 'weighted_soft_label_loss'
    if student.dim() != 2 or student.shape[1] < 2:
        raise ShapeError(
            f'{name}: logits are (R, K+1), a class at least and the background, not '
            f'{tuple(student.shape)}.'
        )
    if teacher.dim() == 2 and student.shape[1] != teacher.shape[1]:
        raise ShapeError(
            f'{name}: the student has {student.shape[1] - 1} classes and the teacher '
            f'{teacher.shape[1] - 1}, in {tuple(student.shape)} and {tuple(teacher.shape)}; both '
            'must be trained on the same classes, in the same order.'
        )
    check_same_shape(student, teacher, name)
    target = F.softmax(teacher.detach() / tau, 1)
    target = torch.cat([target[:, :-1], bg_weight * target[:, -1:]], 1)
    rows = -(target * F.log_softmax(student / tau, 1)).sum(1)
    return tau**2 * masked_mean(rows)


def weighted_soft_objectness_loss(
    student: Tensor,  # (A,) logits
    teacher: Tensor,  # (A,) logits
    bg_weight: float = 1.5,
) -> Tensor:
    """`weighted_soft_label_loss` of one class against background, as one sigmoid logit.

        p = sigmoid(z_t)
        L = -mean_a p log sigmoid(z_s) + bg_weight (1 - p) log(1 - sigmoid(z_s))

    Args:
        student: The student's logits.
        teacher: The teacher's.
        bg_weight: Weight of the background.

    Raises:
        ShapeError: If the shapes differ, or are not (A,).

    Example:
        >>> weighted_soft_objectness_loss(torch.tensor([0.0]), torch.tensor([0.0]))  # 1.25 ln 2
        tensor(0.8664)
    """
    name = 'weighted_soft_objectness_loss'
    if student.dim() != 1:
        raise ShapeError(f'{name}: logits are (A,), not {tuple(student.shape)}.')
    check_same_shape(student, teacher, name)
    target = teacher.detach()
    # 1 - sigmoid(z) is sigmoid(-z), which does not round to 0 where sigmoid(z) rounds to 1.
    yes = target.sigmoid() * F.logsigmoid(student)
    no = (-target).sigmoid() * F.logsigmoid(-student)
    return masked_mean(-(yes + bg_weight * no))


def bounded_regression_loss(
    student: Tensor,  # (P, 4) box deltas
    teacher: Tensor,  # (P, 4) box deltas
    target: Tensor,  # (P, 4) box deltas
    margin: float = 0.0,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """Squared error of those boxes alone that the student does not place better than the teacher.

        e_s = ||s - y||^2,  e_t = ||t - y||^2
        L   = 1/avg_factor sum_p e_s [e_s + margin > e_t]

    The student is pushed until its error is below the teacher's by the margin. The bracket is a
    constant. Errors are those of whole boxes, in the space of the deltas: with deltas divided by
    their deviations of 0.1 and 0.2, a margin is 25 to 100 times larger than without.

    Args:
        student: The student's deltas of positive boxes.
        teacher: The teacher's, of the same regions or anchors and in the same encoding.
        target: What the student's own loss compares its deltas with.
        margin: How much smaller the student's error must be to be left alone. The paper gives no
            value; 0 makes the teacher's error the bar.
        avg_factor: What the sum is divided by; None is P.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> target = torch.zeros(2, 4)
        >>> student = torch.tensor([[0.3, 0.0, 0.0, 0.0], [0.2, 0.0, 0.0, 0.0]])
        >>> teacher = torch.tensor([[0.2, 0.0, 0.0, 0.0], [0.3, 0.0, 0.0, 0.0]])
        >>> bounded_regression_loss(student, teacher, target, avg_factor=1)
        tensor(0.0900)
    """
    name = 'bounded_regression_loss'
    if student.dim() != 2 or student.shape[1] != 4:
        raise ShapeError(f'{name}: deltas are (P, 4), not {tuple(student.shape)}.')
    check_same_shape(student, teacher, name)
    if target.shape != student.shape:
        raise ShapeError(
            f'{name}: the target is {tuple(target.shape)} and the deltas are '
            f'{tuple(student.shape)}; each box needs one.'
        )
    target = target.detach()
    errors = (student - target).square()
    bar = (teacher.detach() - target).square().sum(1)
    worse = errors.detach().sum(1) + margin > bar
    return weighted_sum(errors, worse, avg_factor)


@LOSSES.register
class WeightedSoftLabelLoss(DistillLoss):
    """`weighted_soft_label_loss` over the regions that the student's box head is trained on.

    Args:
        loss_weight: Factor; the paper's 1 - mu, beside a task term of factor mu.
        bg_weight: Weight of the background, the last column.
        tau: Temperature.

    Raises:
        ConfigError: If the temperature is not positive, or the weight negative.
    """

    needs = ('rois',)
    minimum_at_equality = False  # the weight makes the student lean to the background

    def __init__(self, loss_weight: float = 1.0, bg_weight: float = 1.5, tau: float = 1.0) -> None:
        super().__init__(loss_weight)
        if not tau > 0:
            raise ConfigError(f'WeightedSoftLabelLoss: tau is a temperature above 0, not {tau}.')
        _check_not_negative('WeightedSoftLabelLoss', 'bg_weight', bg_weight)
        self.bg_weight = bg_weight
        self.tau = tau

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss.

        Raises:
            ShapeError: If there are not as many rows as regions, or unlike classes.
        """
        for side, logits in (('student', student), ('teacher', teacher)):
            check_regions(type(self).__name__, f"the {side}'s logits", len(logits), batch.rois)
        return weighted_soft_label_loss(student, teacher, self.bg_weight, self.tau)


@LOSSES.register
class WeightedSoftObjectnessLoss(DistillLoss):
    """`weighted_soft_objectness_loss` over the anchors that the student's RPN has sampled.

    An RPN with a softmax over object and background has two logits an anchor; their difference is
    the logit of the same probability.

    Args:
        loss_weight: Factor; the paper's 1 - mu, beside a task term of factor mu.
        bg_weight: Weight of the background.

    Raises:
        ConfigError: If the weight is negative.
    """

    needs = ('rpn_weights',)
    pairs = False
    compares_channels = False  # an anchor may have one logit or two
    minimum_at_equality = False  # the weight makes the student lean to the background

    def __init__(self, loss_weight: float = 1.0, bg_weight: float = 1.5) -> None:
        super().__init__(loss_weight)
        _check_not_negative('WeightedSoftObjectnessLoss', 'bg_weight', bg_weight)
        self.bg_weight = bg_weight

    def compute(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        """Returns the unweighted loss.

        Raises:
            ShapeError: If the maps differ, or do not fit the student's anchors.
        """
        name = type(self).__name__
        weights = batch.rpn_weights
        check_levels(name, student, weights)
        rows: tuple[list[Tensor], list[Tensor]] = ([], [])
        for s, t, weight in zip(student, teacher, weights, strict=True):
            check_grid(name, s, t)
            sampled = weight.reshape(-1) > 0
            for side, logits in zip(rows, (s, t), strict=True):
                side.append(objectness_rows(logits, len(sampled), name)[sampled])
        return weighted_soft_objectness_loss(torch.cat(rows[0]), torch.cat(rows[1]), self.bg_weight)


@LOSSES.register
class BoundedRegressionLoss(DistillLoss):
    """`bounded_regression_loss` over the positive boxes of one of the student's heads.

    Both networks must regress from the same regions or anchors. Where they divide deltas by other
    deviations, the teacher's are encoded as the student's are. Of deltas for each class, those of
    the true class count; each network may have them or not.

    Args:
        loss_weight: Factor; the paper's nu is 0.5.
        margin: See `bounded_regression_loss`; choose one for each head, since they scale deltas
            differently.
        boxes: Whose boxes: `'roi'` for a box head, divided by all its regions, as its own loss is;
            `'rpn'` for an RPN and `'dense'` for a one-stage head, divided by what these divide by.

    Raises:
        ConfigError: If the margin is negative, or there is no such head.
    """

    needs = NEEDS['roi']
    pairs = False
    compares_channels = False  # deltas may be those of each class on one side alone
    minimum_at_equality = False  # with a margin the student has to do better than the teacher
    may_rest = True  # a student whose boxes are better than the teacher's is left alone

    def __init__(self, loss_weight: float = 0.5, margin: float = 0.0, boxes: str = 'roi') -> None:
        super().__init__(loss_weight)
        name = 'BoundedRegressionLoss'
        _check_not_negative(name, 'margin', margin)
        if boxes not in NEEDS:
            raise ConfigError(f'{name}: there is no boxes={boxes!r}. {did_you_mean(boxes, NEEDS)}')
        self.needs = NEEDS[boxes]  # type: ignore[misc]  # those of the one head
        self.margin = margin
        self.boxes = boxes
        self._recoding: tuple[list[float], list[float]] | None = None

    def bind(self, student: Place, teacher: Place) -> None:
        """Takes how both networks encode boxes, so that the teacher's can be compared.

        Raises:
            ConfigError: If they do it by other rules than other means and deviations.
        """
        own, other = student.tap.coding, teacher.tap.coding
        if own is None or other is None or own == other:
            return
        if own[0] != other[0] or len(own[1]) != 4 or len(other[1]) != 4:
            raise ConfigError(
                f'BoundedRegressionLoss: the student encodes boxes with {_coding(own)} and the '
                f"teacher with {_coding(other)}, whose deltas can't be compared. Give both the "
                'same bbox_coder.'
            )
        scale = [t / s for s, t in zip(own[2], other[2], strict=True)]
        shift = [(t - s) / d for s, t, d in zip(own[1], other[1], own[2], strict=True)]
        self._recoding = (scale, shift)

    def _recoded(self, teacher: Tensor) -> Tensor:
        """Returns the teacher's deltas with the student's means and deviations."""
        if self._recoding is None:
            return teacher
        scale, shift = (teacher.new_tensor(row) for row in self._recoding)
        return teacher * scale + shift

    def compute(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        """Returns the unweighted loss; 0 where no box is positive.

        Raises:
            ShapeError: If the deltas do not fit the regions or anchors.
        """
        pick = self._of_regions if self.boxes == 'roi' else self._of_anchors
        s, t, target, avg_factor = pick(student, teacher, batch)
        return bounded_regression_loss(s, self._recoded(t), target.to(s), self.margin, avg_factor)

    def _of_regions(
        self, student: list[Tensor], teacher: list[Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        name = type(self).__name__
        if len(student) != 1:
            raise ShapeError(
                f'{name}: {len(student)} tensors are tapped, and one box head has one. Write a '
                'distiller for each of several heads.'
            )
        positive = batch.roi_positive
        labels = batch.roi_labels[positive]
        deltas = []
        for side, given in (('student', student[0]), ('teacher', teacher[0])):
            check_regions(name, f"the {side}'s deltas", len(given), batch.rois)
            if given.dim() != 2 or given.shape[1] % 4 or not given.shape[1]:
                raise ShapeError(
                    f"{name}: the {side}'s deltas are {tuple(given.shape)}; they must be (R, 4), "
                    'or (R, 4*K) for each class.'
                )
            deltas.append(deltas_of_class(given[positive], labels))
        counts = {given.shape[1] // 4 for given in (student[0], teacher[0])} - {1}
        if len(counts) > 1:
            raise ShapeError(
                f'{name}: the student has deltas for {student[0].shape[1] // 4} classes and the '
                f'teacher for {teacher[0].shape[1] // 4}; both must be trained on the same '
                'classes, in the same order.'
            )
        # All regions and not the positive ones, as in the box head's own loss.
        return deltas[0], deltas[1], batch.roi_box_targets[positive], float(len(positive))

    def _of_anchors(
        self, student: list[Tensor], teacher: list[Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
        name = type(self).__name__
        positives = getattr(batch, f'{self.boxes}_positive')
        targets = getattr(batch, f'{self.boxes}_box_targets')
        check_levels(name, student, positives)
        check_levels(name, student, targets)
        picked: tuple[list[Tensor], ...] = ([], [], [])
        for s, t, positive, target in zip(student, teacher, positives, targets, strict=True):
            check_same_shape(s, t, name)
            positive = positive.reshape(-1).bool()
            if s.numel() != 4 * len(positive):
                raise ShapeError(
                    f'{name}: a map of deltas is {tuple(s.shape)} and its level has '
                    f'{len(positive)} anchors, each of which needs four.'
                )
            rows = [flatten_logits(x, max(x.shape[1] // 4, 1)) for x in (s, t)]
            for side, values in zip(picked, (*rows, target.reshape(-1, 4)), strict=True):
                side.append(values[positive])
        s, t, target = map(torch.cat, picked)
        return s, t, target, getattr(batch, f'{self.boxes}_avg_factor')


def _coding(coding: Coding) -> str:
    name, means, stds = coding
    return f'{name}(means {list(means)}, stds {list(stds)})' if means or stds else name


def _check_not_negative(name: str, argument: str, value: float) -> None:
    if not value >= 0:
        raise ConfigError(f'{name}: {argument} is a number from 0 up, not {value}.')


@HEADS.register
class WeightedSoftLabelDistillationHead(DistillationHead):
    """Soft labels on the class logits of a box head.

    The paper mixes mu of the task's term and 1 - mu of this. Its mu is not known to us; 0.5 is
    ours, and belongs beside `scale_student_loss=dict(loss_cls=0.5)`.
    """

    default_loss: ClassVar[dict[str, Any]] = {
        'type': 'WeightedSoftLabelLoss',
        'loss_weight': 0.5,
        'bg_weight': 1.5,
    }

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses unlike classes.

        Raises:
            ShapeError: If the two heads have unlike numbers of classes.
        """
        super().bind(student, teacher)
        # The last column is no class, but the background.
        check_classes(student.channels - 1, teacher.channels - 1, type(self).__name__)


@HEADS.register
class WeightedSoftObjectnessDistillationHead(DistillationHead):
    """Soft labels on the objectness of an RPN, mixed as those of the box head.

    The weight belongs beside `scale_student_loss=dict(loss_rpn_cls=0.5)`.
    """

    default_loss: ClassVar[dict[str, Any]] = {
        'type': 'WeightedSoftObjectnessLoss',
        'loss_weight': 0.5,
        'bg_weight': 1.5,
    }


@HEADS.register
class BoundedRegressionDistillationHead(DistillationHead):
    """Bounded regression of a box head, added to its own loss with the paper's nu = 0.5."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'BoundedRegressionLoss', 'loss_weight': 0.5}


@PRESETS.register(name='chen2017')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns soft labels and bounded regression for every head that a detector has.

    For a two-stage detector those of its box head and its RPN; for a one-stage detector, which the
    paper has none of, the bounded regression, beside which `binary_kl` or `kd_qfl` gives soft
    labels. The paper's hints are `fitnet`'s, and its mix of hard and soft labels is
    `scale_student_loss`: a preset leaves the student's own loss as it is. In a cascade each stage
    has soft labels and bounded regression of its own.

    Raises:
        ConfigError: If the two have no such heads, or a head's boxes are no deltas with deviations
            but distances in pixels, say, for whose squared error the weight is not meant.
    """
    choose_at('chen2017', at, preset.at)
    if anatomy.kind == 'one-stage':
        (name,) = fitting_taps('chen2017', anatomy, 'head.bbox_deltas')
        for tap in (anatomy.student[name], anatomy.teacher[name]):
            if tap.coding is not None and len(tap.coding[2]) != 4:
                raise ConfigError(
                    f"preset 'chen2017': {tap.coding[0]} encodes boxes at {name!r} without "
                    'deviations, and the weight is meant for deltas divided by them. Take '
                    'binary_kl or kd_qfl, or write the distiller with a loss_weight of your own.'
                )
        return [_distiller(name, 'BoundedRegression', 'bounded', boxes='dense')]
    roi = fitting_taps('chen2017', anatomy, 'roi.*')
    rpn = fitting_taps('chen2017', anatomy, 'rpn.*')
    entries = []
    # 'roi.cls_logits' of one box head, 'roi.s0.cls_logits' of the first stage of a cascade.
    for stage in dict.fromkeys(name.rpartition('.')[0] for name in roi):
        name = stage.replace('.', '_')
        entries += [
            _distiller(f'{stage}.cls_logits', 'WeightedSoftLabel', f'soft_{name}'),
            _distiller(f'{stage}.bbox_deltas', 'BoundedRegression', f'bounded_{name}'),
        ]
    entries += [
        _distiller('rpn.objectness', 'WeightedSoftObjectness', 'soft_rpn'),
        _distiller('rpn.deltas', 'BoundedRegression', 'bounded_rpn', boxes='rpn'),
    ]
    return [entry for entry in entries if entry['student_module'] in (*roi, *rpn)]


def _distiller(tap: str, head: str, name: str, **loss: Any) -> dict[str, Any]:
    config: dict[str, Any] = {'type': f'{head}DistillationHead', 'name': name}
    if loss:
        config['loss'] = {'type': f'{head}Loss', **loss}
    return {'student_module': tap, 'teacher_module': tap, 'head': config}


preset.at = ('head',)
