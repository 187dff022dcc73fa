"""Anchors and points: where the rows of a dense head lie, and whether two heads have the same.

An anchor-free head has points. Where a loss asks for anchors (FGFI's mask), each point stands for
one square anchor centred on it, its side 8 strides: the one anchor a cell that ATSS, which differs
from FCOS in little else, puts there, and the longest side that FCOS regresses on the level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

POINT_SIDE = 8.0  # strides


def priors_of(head: Any) -> Any:
    """Returns the generator of a head's anchors or points; None if it has neither."""
    generator = getattr(head, 'prior_generator', None)
    if generator is None or not hasattr(generator, 'valid_flags'):
        return None
    return generator if has_anchors(generator) or hasattr(generator, 'offset') else None


def has_anchors(generator: Any) -> bool:
    """Whether a generator makes anchors, and not points."""
    return hasattr(generator, 'base_anchors')


def anchor_grids(
    generator: Any, sizes: Sequence[tuple[int, int]], shapes: Sequence[Any], device: Any
) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], Tensor]]:
    """Returns anchors (H, W, A, 4), and which lie in the image (N, H, W, A), by stride.

    Args:
        generator: Of a head's anchors or points.
        sizes: Height and width of each level's map.
        shapes: Height and width of each image with its own padding.
        device: Where to.
    """
    grids = generator.grid_priors(sizes, dtype=torch.float32, device=device)
    flags = [generator.valid_flags(sizes, shape, device=device) for shape in shapes]
    anchors, valid = {}, {}
    for level, ((h, w), stride) in enumerate(zip(sizes, generator.strides, strict=False)):
        key = (int(stride[1]), int(stride[0]))
        count = generator.num_base_priors[level]
        grid = grids[level]
        if not has_anchors(generator):
            half = grid.new_tensor([float(side) for side in stride]) * POINT_SIDE / 2
            grid = torch.cat([grid - half, grid + half], 1)
        anchors[key] = grid.reshape(h, w, count, 4)
        valid[key] = torch.stack([f[level].reshape(h, w, count).bool() for f in flags])
    return anchors, valid


def unlike_priors(student: Any, teacher: Any) -> str | None:
    """Returns in what two heads' anchors or points differ; None if their rows are the same places.

    Args:
        student: The generator of the student's.
        teacher: That of the teacher's.

    Returns:
        As the end of a sentence: "the student … and the teacher …".
    """
    for own, other in zip(_summary(student), _summary(teacher), strict=True):
        if own != other:
            return f'the student has {own} and the teacher {other}'
    if not has_anchors(student):
        first, second = float(student.offset), float(teacher.offset)
        if first == second:
            return None
        return f"the student's points are {first:g} strides into a cell, the teacher's {second:g}"
    levels = zip(student.strides, student.base_anchors, teacher.base_anchors, strict=True)
    for stride, boxes, theirs in levels:
        if not torch.allclose(boxes.cpu().float(), theirs.cpu().float(), atol=1e-3):
            return (
                f"at stride {stride[1]} the student's anchors are {_boxes(boxes)} and the "
                f"teacher's {_boxes(theirs)}"
            )
    return None


def _summary(generator: Any) -> tuple[str, str, str]:
    strides = [(int(y), int(x)) for x, y in generator.strides]
    counts = [str(count) for count in generator.num_base_priors]
    return (
        'anchors' if has_anchors(generator) else 'points and no anchors',
        'strides ' + ', '.join(str(y) if y == x else f'{y}x{x}' for y, x in strides),
        ', '.join(counts if len(set(counts)) > 1 else counts[:1]) + ' anchors a cell',
    )


def _boxes(anchors: Tensor) -> str:
    texts = [
        f'{x2 - x1:.4g}x{y2 - y1:.4g} at ({(x1 + x2) / 2:.4g}, {(y1 + y2) / 2:.4g})'
        for x1, y1, x2, y2 in anchors.tolist()
    ]
    return ', '.join(texts[:3]) + (', …' if len(texts) > 3 else '')
