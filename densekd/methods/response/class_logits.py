"""Class logits under a softmax: of images, of a box head's regions, of a segmentor's pixels.

What the losses on such logits have in common: where both networks have them, which pixels of a
map count, and how a map becomes one row a pixel.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, check_same_shape
from densekd.core.taps import Place
from densekd.errors import ConfigError, ShapeError
from densekd.methods.presets import choose_at, fitting_taps

# Maps with a distribution for every class of every anchor, or one logit an anchor: no softmax
# over their channels means anything.
SIGMOID_TAPS = ('head.cls_logits', 'rpn.objectness')
# Where a preset stands, in this order of preference; a cascade's box heads come before all.
SOFTMAX_TAPS = ('decode.logits', 'roi.cls_logits', 'logits')


def class_rows(
    logits: Tensor,  # (N, K) or (N, K, H, W)
    keep: Tensor | None = None,  # (N,) or (N, H, W) bool
) -> Tensor:
    """Returns the logits (R, K) of the kept images or pixels, by image, row and column.

    Example:
        >>> import torch
        >>> class_rows(torch.arange(6.0).reshape(1, 2, 1, 3), torch.tensor([[[True, False, True]]]))
        tensor([[0., 3.],
                [2., 5.]])
    """
    last = logits.movedim(1, -1)
    return last.reshape(-1, logits.shape[1]) if keep is None else last[keep]


def nearest_cells(
    pixels: Tensor,  # (N, H, W)
    logits: Tensor,  # (N, K, h, w)
) -> Tensor:
    """Returns what stands in the pixel nearest to each cell of a map, (N, h, w).

    Example:
        >>> import torch
        >>> nearest_cells(torch.arange(8).reshape(1, 2, 4), torch.zeros(1, 3, 1, 2))
        tensor([[[0, 2]]])
    """
    size = (logits.shape[-2], logits.shape[-1])
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    # Float32 holds every class and every index to ignore.
    return F.interpolate(pixels[:, None].float(), size=size, mode='nearest')[:, 0].to(pixels.dtype)


def valid_cells(logits: Tensor, batch: Batch) -> Tensor | None:
    """Returns which cells of a map (N, K, H, W) count, or None for all."""
    if logits.dim() != 4 or not batch.has('valid') or batch.valid is None:
        return None
    return nearest_cells(batch.valid, logits)


def check_logits(student: Tensor, teacher: Tensor, name: str) -> None:
    """Refuses what are no logits of the same images or pixels, for the same classes.

    Raises:
        ShapeError: With the shapes.
    """
    if student.dim() not in (2, 4):
        raise ShapeError(f'{name}: logits are (N, K) or (N, K, H, W), not {tuple(student.shape)}.')
    if teacher.dim() == student.dim():
        check_classes(student.shape[1], teacher.shape[1], name)
    check_same_shape(student, teacher, name)


def check_classes(student: int, teacher: int, name: str) -> None:
    """Refuses unlike numbers of classes.

    Raises:
        ShapeError: With both numbers.
    """
    if student != teacher:
        raise ShapeError(
            f'{name}: the student has {student} classes and the teacher {teacher}; both must be '
            'trained on the same classes, in the same order.'
        )


def refuse_sigmoids(name: str, *places: Place) -> None:
    """Refuses logits that no softmax over the classes is taken of.

    Raises:
        ConfigError: With the losses that are for them.
    """
    for place in places:
        if place.tap.label in SIGMOID_TAPS:
            raise ConfigError(f'{name}: {_sigmoid_advice(place.tap.label)}')


def _sigmoid_advice(tap: str) -> str:
    if tap == 'rpn.objectness':
        return (
            f'{tap!r} has one logit an anchor, where a softmax over classes means nothing. Take '
            'WeightedSoftObjectnessLoss.'
        )
    return (
        f'{tap!r} has a sigmoid for every class of every anchor, and a softmax over them is blind '
        'to whether there is an object at all. Take kd_qfl or binary_kl.'
    )


class SoftmaxHead(DistillationHead):
    """A head on class logits; it looks at the classes of both networks when it is bound."""

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses unlike classes, and a single one, whose probability is always 1.

        Raises:
            ShapeError: If the classes can't be compared.
            ConfigError: If a place has sigmoid logits.
        """
        super().bind(student, teacher)
        if self.stu_connector is not None or self.tea_connector is not None:
            return  # only the connectors know what becomes of the channels
        name = type(self).__name__
        students = student.shapes
        if self.loss.ensemble and len(students) == 1:
            students = students * len(teacher.shapes)  # of several teachers each is looked at
        for s, t in zip(students, teacher.shapes, strict=False):
            if len(s) < 2 or len(t) < 2:
                continue
            check_classes(s[1], t[1], name)
            if s[1] == 1:
                raise ShapeError(
                    f'{name}: {student.tap.label!r} has one logit a place, whose softmax is always '
                    '1. Take binary_kl for a sigmoid.'
                )


def softmax_taps(preset: str, anatomy: Anatomy, at: str | None) -> list[tuple[str, str]]:
    """Returns the place that a preset on class logits stands at, and the name of its term.

    It is a segmentor's, a box head's or a classifier's logits. Of a cascade of box heads each stage
    is a place, on regions of its own.

    Raises:
        ConfigError: If both models have none, with what fits a detector of sigmoids.
    """
    choose_at(preset, at, ('head',))
    stages = anatomy.both('roi.s*.cls_logits')
    if stages:
        return [(name, f'{preset}_{name.split(".")[1]}') for name in stages]
    softmax = any(anatomy.both(pattern) for pattern in SOFTMAX_TAPS)
    if not softmax and anatomy.both('head.cls_logits'):
        raise ConfigError(f'preset {preset!r}: {_sigmoid_advice("head.cls_logits")}')
    return [(fitting_taps(preset, anatomy, SOFTMAX_TAPS)[0], preset)]
