"""Detectors of mmdet, one-stage and two-stage, beside their teachers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from densekd.core.taps import Tap, Taps
from densekd.wrappers.model import DistillModel
from densekd.wrappers.named_taps import detector_forward, detector_taps, frozen_taps
from densekd.wrappers.views import teacher_view

NECK = 'the neck, for the sizes of its maps'


class DistillDetector(DistillModel):
    """Trains a detector of mmdet while distillers compare it with frozen teachers.

    See `DistillModel` for the arguments.

    Example:
        >>> from densekd.wrappers.detector import DistillDetector
        >>> DistillDetector.scope
        'mmdet'
    """

    scope = 'mmdet'

    def named_taps(self, model: Any) -> dict[str, Tap]:
        """Returns the named taps of a detector."""
        return detector_taps(model)

    def frozen_taps(self, model: Any, taps: dict[str, Tap]) -> frozenset[str]:
        """Returns the names of the taps in frozen stages."""
        return frozen_taps(model, taps)

    def kind(self, model: Any) -> str:
        """Returns `'two-stage'` for a detector with RoIs, else `'one-stage'`."""
        return 'two-stage' if hasattr(model, 'roi_head') else 'one-stage'

    def forward_parts(self, model: Any, inputs: Tensor, parts: frozenset[str] | None) -> None:
        """Runs the backbone, the neck or the dense heads, no further than `parts` need."""
        detector_forward(model, inputs, parts)

    def teacher_view(self, teacher: Any, inputs: Tensor, data_samples: Any) -> Tensor:
        """Returns the batch normalised as the teacher was trained to see it."""
        sizes = [sample.metainfo['img_shape'][:2] for sample in data_samples]
        return teacher_view(self.data_preprocessor, teacher.data_preprocessor, inputs, sizes)

    # The batch --------------------------------------------------------------------------------

    @property
    def _anchor_head(self) -> Any:
        """The head whose anchors the student is trained with: the RPN of a two-stage detector."""
        for name in ('rpn_head', 'bbox_head'):
            head = getattr(self.student, name, None)
            generator = getattr(head, 'prior_generator', None)
            if generator is not None and hasattr(generator, 'base_anchors'):
                return head
        return None

    @property
    def _dense_head(self) -> Any:
        """A one-stage head whose targets can be read, with a weight for every anchor."""
        from mmdet.models.dense_heads import AnchorHead

        head = getattr(self.student, 'bbox_head', None)
        same = isinstance(head, AnchorHead) and type(head).get_targets is AnchorHead.get_targets
        return head if same else None

    def offered(self) -> tuple[str, ...]:
        """Returns the fields of the batch that this student gives."""
        fields = ['inputs', 'iteration', 'seed', 'gt_boxes', 'valid']
        if self._anchor_head is not None:
            fields += ['anchors', 'anchors_valid']
        if self._dense_head is not None:
            fields += ['dense_weights', 'dense_avg_factor']
        return tuple(fields)

    def _asked(self, *names: str) -> bool:
        return any(need in names for d in self.distillers.values() for need in d.head.needs)

    def extra_taps(self) -> dict[Any, Tap]:
        """Returns a tap on the whole neck where anchors are asked for: they follow its sizes."""
        if not self._asked('anchors', 'anchors_valid'):
            return {}
        path = 'neck' if getattr(self.student, 'neck', None) is not None else 'backbone'
        return {NECK: Tap(path, name=path, copy=False)}

    @contextmanager
    def capture(self) -> Iterator[dict[str, Any]]:
        """Collects the dense head's targets: asking for them again could sample anew."""
        captured: dict[str, Any] = {}
        head = self._dense_head
        if head is None or not self._asked('dense_weights', 'dense_avg_factor'):
            yield captured
            return
        original = head.get_targets

        def get_targets(*args: Any, **kwargs: Any) -> Any:
            captured['targets'] = result = original(*args, **kwargs)
            return result

        # On this one instance, for this one call: a patch that stayed would be copied by EMA
        # together with its reference to this head.
        head.__dict__['get_targets'] = get_targets
        try:
            yield captured
        finally:
            del head.__dict__['get_targets']

    def fields(
        self, inputs: Tensor, data_samples: Any, reading: Taps, captured: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the batch's fields as plain tensors, each computed when it is asked for."""
        anchors: dict[str, Any] = {}

        def grid() -> dict[str, Any]:
            if not anchors:
                anchors.update(self._anchors(inputs, data_samples, reading))
            return anchors

        return {
            'gt_boxes': lambda: [_boxes(sample.gt_instances) for sample in data_samples],
            'valid': lambda: _valid(inputs, data_samples),
            'anchors': lambda: grid()['anchors'],
            'anchors_valid': lambda: grid()['valid'],
            'dense_weights': lambda: captured['targets'][1],
            'dense_avg_factor': lambda: captured['targets'][-1],
        }

    def _anchors(self, inputs: Tensor, data_samples: Any, reading: Taps) -> dict[str, Any]:
        head = self._anchor_head
        assert head is not None  # offered() says so
        generator = head.prior_generator
        maps = reading[NECK]
        maps = maps if isinstance(maps, list) else [maps]
        sizes = [tuple(m.shape[-2:]) for m in maps][: generator.num_levels]
        grids = generator.grid_priors(sizes, dtype=torch.float32, device=inputs.device)
        anchors, valid = {}, {}
        flags = [
            generator.valid_flags(sizes, sample.metainfo['pad_shape'], device=inputs.device)
            for sample in data_samples
        ]
        for level, ((h, w), stride) in enumerate(zip(sizes, generator.strides, strict=False)):
            key = (int(stride[1]), int(stride[0]))
            count = generator.num_base_priors[level]
            anchors[key] = grids[level].reshape(h, w, count, 4)
            valid[key] = torch.stack([f[level].reshape(h, w, count).bool() for f in flags])
        return {'anchors': anchors, 'valid': valid}


def _boxes(instances: Any) -> Tensor:
    boxes = instances.bboxes
    return getattr(boxes, 'tensor', boxes)


def _valid(inputs: Tensor, data_samples: Any) -> Tensor:
    mask = inputs.new_zeros(inputs.shape[0], *inputs.shape[-2:], dtype=torch.bool)
    for i, sample in enumerate(data_samples):
        h, w = sample.metainfo['img_shape'][:2]
        mask[i, :h, :w] = True
    return mask
