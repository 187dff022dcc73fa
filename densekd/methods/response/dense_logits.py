"""Sigmoid logits of a dense detector: from maps to one row an anchor.

What the losses on such logits have in common: the maps of all levels are flattened in the order
in which anchors are counted (row, column, anchor), weighted as the student's own classification
loss weighs them, and divided by what it divides by.
"""

from __future__ import annotations

from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillLoss, check_same_shape
from densekd.core.ops import zero_like_loss
from densekd.errors import ShapeError
from densekd.methods.presets import choose_at, fitting_taps


def flatten_logits(
    logits: Tensor,  # (N, A*K, H, W)
    anchors: int,
) -> Tensor:
    """Returns the rows (N*H*W*A, K) of a map of logits.

    Raises:
        ShapeError: If the channels are no multiple of the anchors.

    Example:
        >>> import torch
        >>> flatten_logits(torch.arange(8.0).reshape(1, 4, 1, 2), anchors=2)
        tensor([[0., 2.],
                [4., 6.],
                [1., 3.],
                [5., 7.]])
    """
    if logits.dim() != 4 or anchors < 1 or logits.shape[1] % anchors:
        raise ShapeError(
            f'flatten_logits: a map of {tuple(logits.shape)} does not divide into {anchors} '
            'anchors a cell; it must be (N, A*K, H, W).'
        )
    return logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1] // anchors)


def weighted_sum(
    rows: Tensor,  # (R, K)
    weight: Tensor | None,  # (R,)
    avg_factor: Tensor | float | None,
) -> Tensor:
    """Returns the weighted sum of rows over `avg_factor`: R if None, 1 if it is 0."""
    if not rows.numel():
        return rows.sum()
    rows = rows.sum(1)
    if weight is not None:
        if weight.shape != rows.shape:
            raise ShapeError(
                f'there are {tuple(weight.shape)} weights for {len(rows)} rows; each needs one.'
            )
        rows = rows * weight.detach().to(rows)
    if avg_factor is None:
        return rows.mean()
    if isinstance(avg_factor, Tensor):
        avg_factor = avg_factor.detach().to(rows)
        # No positive anchor anywhere: 0, not 0/0. Compared without leaving the device.
        return rows.sum() / (avg_factor + (avg_factor == 0).to(rows.dtype))
    return rows.sum() / (avg_factor or 1.0)


class DenseLogitLoss(DistillLoss):
    """A loss on rows of logits, summed over the levels that a head's tap gives.

    Anchors in the student's ignore band and in padding have weight 0, as in its own loss.
    """

    needs = ('dense_weights', 'dense_avg_factor')
    pairs = False

    def rows(
        self, student: Tensor, teacher: Tensor, weight: Tensor, avg_factor: Tensor | float
    ) -> Tensor:
        """Returns the loss of the rows (R, K) of one level."""
        raise NotImplementedError

    def compute(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        """Returns the unweighted loss.

        Raises:
            ShapeError: If the maps differ, or do not fit the student's anchors.
        """
        name = type(self).__name__
        weights = batch.dense_weights
        if len(weights) != len(student):
            raise ShapeError(
                f'{name}: {len(student)} maps of logits are tapped, and the student has anchors '
                f'on {len(weights)} levels. Tap "head.cls_logits", which gives them all.'
            )
        total = zero_like_loss(*student)
        for s, t, weight in zip(student, teacher, weights, strict=True):
            check_same_shape(s, t, name)
            cells = s.shape[0] * s.shape[-2] * s.shape[-1]
            anchors, rest = divmod(weight.numel(), max(cells, 1))
            if rest or (cells and not anchors):
                raise ShapeError(
                    f'{name}: {weight.numel()} weights do not fit a map of {tuple(s.shape)}; each '
                    'cell needs one for each of its anchors.'
                )
            if cells:
                rows = flatten_logits(s, anchors), flatten_logits(t, anchors)
                total = total + self.rows(*rows, weight.reshape(-1), batch.dense_avg_factor)
        return total


def dense_logit_distillers(
    preset: str, head: str, anatomy: Anatomy, at: str | None
) -> list[dict[str, object]]:
    """Returns the one distiller of a preset on dense logits."""
    choose_at(preset, at, ('head',))
    (name,) = fitting_taps(preset, anatomy, 'head.cls_logits')
    return [
        {'student_module': name, 'teacher_module': name, 'head': {'type': head, 'name': preset}}
    ]
