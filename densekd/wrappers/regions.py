"""Box heads and the regions that they score, stage by stage in a cascade.

A teacher scores the student's regions: only then do rows correspond. In a cascade every stage has
regions of its own, those that the stage before it has refined, so that the teacher's stage i
scores what the student's stage i was trained on, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.taps import Tap
from densekd.errors import ConfigError

NO_REGIONS = (
    "the teacher's box head is tapped, which scores the student's regions, and this student "
    'samples none. Tap the backbone, the neck or the dense head.'
)
STAGE = re.compile(r'roi_head\.\w+\.(\d+)(?:\.|$)')


def box_heads(model: Any) -> list[tuple[str, Any]]:
    """Returns path and module of each box head that is trained on sampled regions, by stage.

    One head as in mmdet's standard RoI head, several as in its cascade; none where regions are
    made in another way.
    """
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    head = getattr(model, 'roi_head', None)
    if not getattr(head, 'with_bbox', False):
        return []
    made = type(head).bbox_loss if hasattr(head, 'bbox_loss') else None
    if made is StandardRoIHead.bbox_loss:
        return [('roi_head.bbox_head', head.bbox_head)]
    if made is CascadeRoIHead.bbox_loss:
        return [(f'roi_head.bbox_head.{i}', stage) for i, stage in enumerate(head.bbox_head)]
    return []


def stage_of(tap: Tap) -> int | None:
    """Returns the stage whose regions a place has a row each for; None outside of RoI heads.

    Example:
        >>> stage_of(Tap('roi_head.bbox_head.2.fc_cls')), stage_of(Tap('roi_head.bbox_head'))
        (2, 0)
        >>> stage_of(Tap('neck')) is None
        True
    """
    if tap.path.split('.', 1)[0] != 'roi_head':
        return None
    found = STAGE.match(tap.path)
    return int(found.group(1)) if found else 0


def score_regions(
    model: Any, features: Sequence[Tensor], rois: Mapping[int, Tensor] | None, images: Tensor
) -> bool:
    """Runs box heads on regions, each stage on those that it is given.

    Args:
        model: A detector of mmdet.
        features: The maps of its neck.
        rois: Regions by stage, (R, 5) as image, x1, y1, x2, y2; None has every stage score a few
            that any image has.
        images: The images, for their size.

    Returns:
        Whether there is a box head that scores given regions.
    """
    heads = box_heads(model)
    for stage in range(len(heads)):
        if rois is not None and stage not in rois:
            continue
        regions = _some_regions(images) if rois is None else rois[stage]
        # RoIAlign has no kernel for half precision on every device, and mmcv's takes any memory
        # for channels first.
        maps = tuple(f.to(regions.dtype).contiguous() for f in features)
        if isinstance(model.roi_head.bbox_head, nn.ModuleList):
            model.roi_head._bbox_forward(stage, maps, regions)
        else:
            model.roi_head._bbox_forward(maps, regions)
    return bool(heads)


def _some_regions(images: Tensor) -> Tensor:
    """Returns three regions of each image: all of it, its left half, its middle."""
    count, _, height, width = images.shape
    h, w = float(height), float(width)
    boxes = images.new_tensor(
        [[0, 0, w, h], [0, 0, w / 2, h], [w / 4, h / 4, 3 * w / 4, 3 * h / 4]]
    )
    index = torch.arange(count, device=images.device, dtype=boxes.dtype).repeat_interleave(3)
    return torch.cat([index[:, None], boxes.repeat(count, 1)], 1)


def check_stages(
    student: Any, teacher: Any, taps: Sequence[Tap], others: Sequence[Tap], where: str
) -> None:
    """Refuses places of box heads that are trained on unlike regions.

    Args:
        student: The student.
        teacher: The teacher.
        taps: The student's taps, which need not be there.
        others: The teacher's, likewise.
        where: The place in the config, for messages.

    Raises:
        ConfigError: If one network has a cascade and the other one head, or the stages differ.
    """
    asked = [t for t in (*taps, *others) if t.path.startswith(('roi_head', 'roi.'))]
    if not asked:
        return
    own, other = len(box_heads(student)), len(box_heads(teacher))
    if own and other and (own == 1) != (other == 1):
        raise ConfigError(
            f'{where}: the student has {_heads(own)} and the teacher {_heads(other)}, which are '
            "trained on unlike regions, so that neither can score the other's. Tap the backbone, "
            'the neck or the RPN instead, or take a teacher with as many stages.'
        )
    for tap, theirs in zip(taps, others, strict=False):
        stages = stage_of(tap), stage_of(theirs)
        if None not in stages and stages[0] != stages[1]:
            raise ConfigError(
                f'{where}: {tap.label!r} is stage {stages[0]} of the student and '
                f"{theirs.label!r} stage {stages[1]} of the teacher; a teacher's stage scores the "
                "regions of the student's same stage."
            )


def _heads(count: int) -> str:
    return 'one box head' if count == 1 else f'a cascade of {count} box heads'


def region_key(stage: int) -> str:
    """Returns the key under which a stage's call is noted."""
    return f'roi{stage}'


def noted_stages(captured: Mapping[str, Any]) -> list[int]:
    """Returns the stages of which a call was noted."""
    return [int(key.removeprefix('roi')) for key in captured if key.startswith('roi')]


def regions_of(captured: Mapping[str, Any], stage: int) -> dict[str, Tensor]:
    """Returns what a stage of the student was trained on: its regions, labels and box targets.

    Raises:
        ConfigError: If the student has sampled none.
    """
    if region_key(stage) not in captured:
        raise ConfigError(f'distillers: {NO_REGIONS}')
    call = captured[region_key(stage)]
    labels, _, boxes, _ = call.result['bbox_targets']
    return {'rois': call.kwargs['rois'], 'labels': labels, 'boxes': boxes}
