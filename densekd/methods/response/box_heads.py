"""Outputs of box heads and RPNs: from maps and per-class columns to one row a box.

What the losses on such outputs have in common, together with the checks that the rows of both
networks stand for the same regions or anchors.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from densekd.errors import ShapeError
from densekd.methods.response.dense_logits import flatten_logits


def deltas_of_class(
    deltas: Tensor,  # (P, 4) or (P, 4*K)
    labels: Tensor,  # (P,)
) -> Tensor:
    """Returns the deltas (P, 4) of each positive box's own class.

    Example:
        >>> import torch
        >>> deltas_of_class(torch.arange(16.0).reshape(2, 8), torch.tensor([1, 0]))
        tensor([[ 4.,  5.,  6.,  7.],
                [ 8.,  9., 10., 11.]])
    """
    if deltas.shape[1] == 4:
        return deltas
    # There is no column of the background, which no positive box has for a label.
    index = labels.long()[:, None, None].expand(-1, 1, 4)
    each = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
    return each.gather(1, index)[:, 0]


def objectness_rows(
    logits: Tensor,  # (N, A, H, W) or (N, 2*A, H, W)
    anchors: int,
    name: str,
) -> Tensor:
    """Returns one logit an anchor, (N*H*W*A,), of a map with one or two.

    Args:
        logits: The map.
        anchors: Anchors of the whole level, in all images.
        name: The loss, for the message.

    Raises:
        ShapeError: If the map has another number of logits.

    Example:
        >>> import torch
        >>> objectness_rows(torch.tensor([3.0, 1.0, 5.0, 7.0]).reshape(1, 4, 1, 1), 2, 'here')
        tensor([ 2., -2.])
    """
    each = logits.numel() // max(anchors, 1)
    if not logits.numel():
        return logits.reshape(-1)
    if each not in (1, 2) or each * anchors != logits.numel():
        raise ShapeError(
            f'{name}: a map of objectness is {tuple(logits.shape)} and its level has {anchors} '
            'anchors, each of which needs one logit, or two with a softmax.'
        )
    rows = flatten_logits(logits, logits.shape[1] // each)
    # mmdet counts the background last here too: column 0 is the object.
    return rows[:, 0] if each == 1 else rows[:, 0] - rows[:, 1]


def check_grid(name: str, student: Tensor, teacher: Tensor) -> None:
    """Refuses maps of unlike images, height or width; their channels may differ.

    Raises:
        ShapeError: With both shapes.
    """
    s, t = tuple(student.shape), tuple(teacher.shape)
    if len(s) != 4 or len(t) != 4 or (s[0], *s[2:]) != (t[0], *t[2:]):
        raise ShapeError(
            f"{name}: the student's map is {s} and the teacher's {t}; both must be (N, A, H, W) on "
            'the same grid.'
        )


def check_levels(name: str, maps: Sequence[Tensor], levels: Sequence[Tensor]) -> None:
    """Refuses another number of maps than there are levels with anchors.

    Raises:
        ShapeError: With both numbers.
    """
    if len(maps) != len(levels):
        raise ShapeError(
            f'{name}: {len(maps)} maps are tapped, and the student has anchors on {len(levels)} '
            'levels. Tap the whole head, which gives them all.'
        )


def check_regions(name: str, what: str, count: int, rois: Tensor) -> None:
    """Refuses another number of rows than there are regions.

    Raises:
        ShapeError: With both numbers.
    """
    if count != len(rois):
        raise ShapeError(
            f'{name}: {what} are {count} rows and the student has sampled {len(rois)} regions; '
            "both networks must score the student's regions."
        )
