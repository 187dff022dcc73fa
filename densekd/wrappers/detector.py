"""Detectors of mmdet, one-stage and two-stage, beside their teachers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from densekd.core.batch import FIELDS
from densekd.core.taps import Tap, Taps
from densekd.errors import ConfigError
from densekd.wrappers.model import DistillModel
from densekd.wrappers.named_taps import (
    detector_forward,
    detector_taps,
    frozen_taps,
    scores_regions,
)
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

    def forward_parts(
        self,
        model: Any,
        inputs: Tensor,
        parts: frozenset[str] | None,
        captured: Mapping[str, Any] | None = None,
    ) -> None:
        """Runs the backbone, the neck or the heads, no further than `parts` need.

        A teacher's box head is run on the student's regions: only then do rows correspond.
        """
        rois = None
        if captured is not None and parts is not None and 'roi_head' in parts:
            rois = _regions(captured)['rois']
        detector_forward(model, inputs, parts, rois)

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
        head = getattr(self.student, 'bbox_head', None)
        return head if _has_anchor_targets(head) else None

    def offered(self) -> tuple[str, ...]:
        """Returns the fields of the batch that this student gives."""
        fields = ['inputs', 'iteration', 'seed', 'gt_boxes', 'valid']
        if self._anchor_head is not None:
            fields += ['anchors', 'anchors_valid']
        for prefix in self._target_heads:
            fields += [name for name in FIELDS if name.startswith(prefix)]
        return tuple(fields)

    def _asked(self, *names: str) -> bool:
        return any(
            need.startswith(names) for d in self.distillers.values() for need in d.head.needs
        )

    @property
    def _target_heads(self) -> dict[str, tuple[Any, str]]:
        """The heads whose training targets can be read, with the method that makes them.

        By the first letters of the batch's fields that are made of them.
        """
        heads: dict[str, tuple[Any, str]] = {}
        if self._dense_head is not None:
            heads['dense_'] = (self._dense_head, 'get_targets')
        rpn = getattr(self.student, 'rpn_head', None)
        if _has_anchor_targets(rpn):
            heads['rpn_'] = (rpn, 'get_targets')
        if scores_regions(self.student):
            heads['roi'] = (self.student.roi_head.bbox_head, 'loss_and_target')
        return heads

    def extra_taps(self) -> dict[Any, Tap]:
        """Returns a tap on the whole neck where anchors are asked for: they follow its sizes."""
        decoded = any(
            getattr(head, 'reg_decoded_bbox', False) and self._asked(f'{prefix}box_targets')
            for prefix, (head, _) in self._target_heads.items()
        )
        if not decoded and not self._asked('anchors'):
            return {}
        path = 'neck' if getattr(self.student, 'neck', None) is not None else 'backbone'
        return {NECK: Tap(path, name=path, copy=False)}

    @contextmanager
    def capture(self) -> Iterator[dict[str, Any]]:
        """Collects the heads' targets: asking for them again could sample anew."""
        captured: dict[str, Any] = {}
        read = {tap.path.split('.')[0] for d in self.distillers.values() for tap in _taps(d)}
        with ExitStack() as stack:
            for prefix, (head, method) in self._target_heads.items():
                if self._asked(prefix) or (prefix == 'roi' and 'roi_head' in read):
                    stack.enter_context(_recorded(head, method, captured, prefix))
            yield captured

    def fields(
        self, inputs: Tensor, data_samples: Any, reading: Taps, captured: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the batch's fields as plain tensors, each computed when it is asked for."""
        anchors: dict[str, Any] = {}

        def grid() -> dict[str, Any]:
            if not anchors:
                anchors.update(self._anchors(inputs, data_samples, reading))
            return anchors

        fields = {
            'gt_boxes': lambda: [_boxes(sample.gt_instances) for sample in data_samples],
            'valid': lambda: _valid(inputs, data_samples),
            'anchors': lambda: grid()['anchors'],
            'anchors_valid': lambda: grid()['valid'],
        }
        for prefix in ('dense_', 'rpn_'):
            if prefix in captured:
                fields.update(self._anchor_fields(prefix, captured[prefix][1], grid))
        if 'roi' in captured:
            fields.update(self._region_fields(captured))
        return fields

    def _anchor_fields(self, prefix: str, targets: Any, grid: Any) -> dict[str, Any]:
        head = self._target_heads[prefix][0]
        labels, weights, boxes, _, avg_factor = targets

        def positive() -> list[Tensor]:
            # Of anchors that were not sampled the label is that of the background.
            return [(x >= 0) & (x < head.num_classes) for x in labels]

        def box_targets() -> list[Tensor]:
            if not head.reg_decoded_bbox:
                return boxes
            anchors = [a.reshape(-1, 4) for a in grid()['anchors'].values()]
            return [
                _encoded(head, a.expand(len(box), -1, -1).reshape(-1, 4), box, chosen)
                for a, box, chosen in zip(anchors, boxes, positive(), strict=True)
            ]

        return {
            f'{prefix}weights': weights,
            f'{prefix}avg_factor': avg_factor,
            f'{prefix}positive': positive,
            f'{prefix}box_targets': box_targets,
        }

    def _region_fields(self, captured: Mapping[str, Any]) -> dict[str, Any]:
        head = self._target_heads['roi'][0]
        regions = _regions(captured)
        rois, labels, boxes = regions['rois'], regions['labels'], regions['boxes']
        positive = (labels >= 0) & (labels < head.num_classes)

        def box_targets() -> Tensor:
            if not head.reg_decoded_bbox:
                return boxes
            return _encoded(head, rois[:, 1:], boxes, positive)

        return {
            'rois': rois,
            'roi_labels': labels,
            'roi_positive': positive,
            'roi_box_targets': box_targets,
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


def _has_anchor_targets(head: Any) -> bool:
    """Whether a head makes its targets as mmdet's anchor head does: one for every anchor."""
    from mmdet.models.dense_heads import AnchorHead

    return isinstance(head, AnchorHead) and type(head).get_targets is AnchorHead.get_targets


def _taps(distiller: Any) -> list[Tap]:
    return [tap for side in ('student', 'teacher') for tap in distiller.taps(side).values()]


@contextmanager
def _recorded(owner: Any, method: str, captured: dict[str, Any], key: str) -> Iterator[None]:
    """Notes a method's keyword arguments and its result, while the body runs."""
    original = getattr(owner, method)

    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        captured[key] = (kwargs, result)
        return result

    # On this one instance, for this one call: a patch that stayed would be copied by EMA together
    # with its reference to this head.
    owner.__dict__[method] = recorded
    try:
        yield
    finally:
        del owner.__dict__[method]


def _regions(captured: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns what the student's box head was trained on: its regions, labels and box targets.

    Raises:
        ConfigError: If the student has sampled none.
    """
    if 'roi' not in captured:
        raise ConfigError(
            "distillers: the teacher's box head is tapped, which scores the student's regions, and "
            'this student samples none. Tap the backbone, the neck or the dense head.'
        )
    arguments, result = captured['roi']
    labels, _, boxes, _ = result['bbox_targets']
    return {'rois': arguments['rois'], 'labels': labels, 'boxes': boxes}


def _encoded(head: Any, origins: Tensor, boxes: Tensor, positive: Tensor) -> Tensor:
    """Returns boxes as deltas; heads with a loss on boxes keep their targets decoded."""
    flat = boxes.reshape(-1, 4)
    # Where nothing is matched the target is 0, a box without a logarithm: the origin stands in.
    flat = torch.where(positive.reshape(-1, 1), flat, origins)
    return head.bbox_coder.encode(origins, flat).reshape(boxes.shape)


def _boxes(instances: Any) -> Tensor:
    boxes = instances.bboxes
    return getattr(boxes, 'tensor', boxes)


def _valid(inputs: Tensor, data_samples: Any) -> Tensor:
    mask = inputs.new_zeros(inputs.shape[0], *inputs.shape[-2:], dtype=torch.bool)
    for i, sample in enumerate(data_samples):
        h, w = sample.metainfo['img_shape'][:2]
        mask[i, :h, :w] = True
    return mask
