"""An image is the same to FGFI whatever it is batched with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from densekd.methods import imitation_mask
from tests.helpers.detectors import batch, distilled, entry, losses_of

LEVELS = ['neck.p2', 'neck.p3', 'neck.p4', 'neck.p5']
# At the right edge and at the lower one: the best anchors would lie beyond them.
BOXES = [[30.0, 12.0, 50.0, 40.0], [4.0, 44.0, 28.0, 60.0]]


def image(size: tuple[int, int], boxes: list[list[float]] | None = None) -> dict[str, Any]:
    data = batch(size=size, images=1)
    if boxes is not None:
        instances = data['data_samples'][0].gt_instances[:1]
        data['data_samples'][0].gt_instances = instances[[0] * len(boxes)]
        data['data_samples'][0].gt_instances.bboxes = torch.tensor(boxes)
    return data


def masks_of(name: str, policy: str, *images: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the masks of a step on a batch of images, and what they were without flags."""
    head = dict(type='FGFIDistillationHead', loss=dict(type='FGFILoss', policy=policy))
    model = distilled(name, [dict(entry(LEVELS, 'FGFI'), head=head)])
    loss = model.distillers['neck_fgfi'].head.loss
    seen: list[Any] = []
    whole = loss.masks

    def masks(fields: Any, levels: int) -> list[Tensor]:
        found = whole(fields, levels)
        anchors = list(fields.anchors.values())
        unaware = [imitation_mask(anchors, one, 0.5, policy) for one in fields.gt_boxes]
        seen.append((found, [torch.stack(level) for level in zip(*unaware, strict=True)]))
        return found

    loss.masks = masks
    losses_of(model, {key: [one[key][0] for one in images] for key in images[0]})
    ((found, unaware),) = seen
    return found, unaware


@pytest.mark.parametrize(
    ('name', 'policy'),
    [
        ('retinanet', 'global'),
        ('retinanet', 'per_level'),
        ('faster_rcnn', 'global'),
        ('gfl', 'per_level'),
        ('fcos', 'assigned'),
    ],
)
def test_an_image_in_a_wider_batch_has_the_mask_that_it_has_alone(name: str, policy: str) -> None:
    alone, _ = masks_of(name, policy, image((60, 50), BOXES))
    differs = False
    for other in ((60, 180), (150, 170)):
        for place in (0, 1):
            images = [image(other)]
            images.insert(place, image((60, 50), BOXES))
            padded, unaware = masks_of(name, policy, *images)
            assert padded[0].shape[1:] != alone[0].shape[1:]
            for a, b, c in zip(alone, padded, unaware, strict=False):
                height, width = a.shape[1:]
                assert torch.equal(b[place, :height, :width], a[0])
                rest = b[place].clone()
                rest[:height, :width] = False
                assert not rest.any()
                differs |= not torch.equal(c[place], b[place])
    assert alone[0].any()
    assert differs, 'without the flags of padding the mask would be another'
