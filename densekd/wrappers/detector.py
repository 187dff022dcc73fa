"""Detectors of mmdet, one-stage and two-stage, beside their teachers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from densekd.core.batch import FIELDS, Batch
from densekd.core.distiller import Distiller
from densekd.core.taps import Tap, Taps
from densekd.errors import ConfigError
from densekd.wrappers.model import DistillModel
from densekd.wrappers.named_taps import detector_forward, detector_taps, frozen_taps
from densekd.wrappers.priors import anchor_grids, priors_of, unlike_priors
from densekd.wrappers.regions import (
    NO_REGIONS,
    box_heads,
    noted_stages,
    region_key,
    regions_of,
    stage_of,
)
from densekd.wrappers.targets import (
    encoded,
    gives_deltas,
    read_targets,
    reader_of,
    recorded,
    recorded_targets,
)
from densekd.wrappers.views import teacher_view

NECK = 'the neck, for the sizes of its maps'
# Heads with a row for every anchor or point, by the first letters of the fields made of them.
DENSE_HEADS = {'dense_': 'bbox_head', 'rpn_': 'rpn_head'}


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
            stages = noted_stages(captured) or [0]
            rois = {stage: regions_of(captured, stage)['rois'] for stage in stages}
        detector_forward(model, inputs, parts, rois)

    def teacher_view(self, teacher: Any, inputs: Tensor, data_samples: Any) -> Tensor:
        """Returns the batch normalised as the teacher was trained to see it."""
        sizes = [sample.metainfo['img_shape'][:2] for sample in data_samples]
        return teacher_view(self.data_preprocessor, teacher.data_preprocessor, inputs, sizes)

    # The batch --------------------------------------------------------------------------------

    @property
    def _priors(self) -> Any:
        """The anchors or points that the student is trained with, the RPN's of a two-stage one."""
        heads = (getattr(self.student, name, None) for name in ('rpn_head', 'bbox_head'))
        return next((found for found in map(priors_of, heads) if found is not None), None)

    @property
    def _dense_heads(self) -> dict[str, Any]:
        """The heads whose targets can be read, by the first letters of the fields made of them."""
        heads = {key: getattr(self.student, name, None) for key, name in DENSE_HEADS.items()}
        return {key: head for key, head in heads.items() if reader_of(head) is not None}

    def offered(self) -> tuple[str, ...]:
        """Returns the fields of the batch that this student gives."""
        fields = ['inputs', 'iteration', 'seed', 'gt_boxes', 'valid']
        if self._priors is not None:
            fields += ['anchors', 'anchors_valid']
        for prefix, head in self._dense_heads.items():
            given = [name for name in FIELDS if name.startswith(prefix)]
            if not gives_deltas(head):
                given.remove(f'{prefix}box_targets')
            fields += given
        if box_heads(self.student):
            fields += [name for name in FIELDS if name.startswith('roi')]
        return tuple(fields)

    def _asked(self, *names: str) -> bool:
        return any(_asks(d, *names) for d in self._distillers)

    def _stages(self, distiller: Distiller) -> set[int]:
        """Returns the stages of box heads that a distiller reads, or whose regions it asks for."""
        found = {stage_of(tap) for tap in _taps(distiller)}
        stages = {stage for stage in found if stage is not None}
        if not stages and _asks(distiller, 'roi') and len(box_heads(self.student)) == 1:
            return {0}
        return stages

    def check_rows(self) -> None:
        """Refuses losses whose rows stand for one thing in the student, another in a teacher.

        Raises:
            ConfigError: If anchors differ, or it is not clear of which stage regions are meant.
        """
        for distiller in self._distillers:
            loss = type(distiller.head.loss).__name__
            stages = self._stages(distiller)
            if stages and not box_heads(self.student):
                raise ConfigError(f'distiller {distiller.key!r}: {NO_REGIONS}')
            if _asks(distiller, 'roi') and len(stages) != 1:
                raise ConfigError(
                    f'distiller {distiller.key!r}: {loss} asks for regions, of which each stage of '
                    "this student's box heads has its own, and it taps "
                    f'{len(stages) or "none"} of them. Write one distiller for each stage.'
                )
            for prefix, name in DENSE_HEADS.items():
                if not _asks(distiller, prefix):
                    continue
                own = priors_of(getattr(self.student, name, None))
                parts = {tap.path.split('.')[0] for tap in distiller.taps('teacher').values()}
                for teacher in distiller.teachers:
                    for part in parts & set(DENSE_HEADS.values()):
                        other = priors_of(getattr(self.teachers[teacher].model, part, None))
                        if own is None or other is None:
                            continue
                        difference = unlike_priors(own, other)
                        if difference is not None:
                            raise ConfigError(
                                f'distiller {distiller.key!r}: {loss} compares anchor by anchor, '
                                f'but {difference}. Compare features of the neck instead, or take '
                                'a teacher with the same prior_generator.'
                            )

    def extra_taps(self) -> dict[Any, Tap]:
        """Returns a tap on the whole neck where anchors are asked for: they follow its sizes."""
        decoded = any(
            getattr(head, 'reg_decoded_bbox', False) and self._asked(f'{prefix}box_targets')
            for prefix, head in self._dense_heads.items()
        )
        if not decoded and not self._asked('anchors'):
            return {}
        path = 'neck' if getattr(self.student, 'neck', None) is not None else 'backbone'
        return {NECK: Tap(path, name=path, copy=False)}

    @contextmanager
    def capture(self) -> Iterator[dict[str, Any]]:
        """Collects the heads' targets: asking for them again could sample anew."""
        captured: dict[str, Any] = {}
        stages = {stage for d in self._distillers for stage in self._stages(d)}
        with ExitStack() as stack:
            for prefix, head in self._dense_heads.items():
                if self._asked(prefix):
                    stack.enter_context(recorded_targets(head, captured, prefix))
            for stage, (_, head) in enumerate(box_heads(self.student)):
                if stage in stages:
                    key = region_key(stage)
                    stack.enter_context(recorded(head, 'loss_and_target', captured, key))
            yield captured

    def fields(
        self, inputs: Tensor, data_samples: Any, reading: Taps, captured: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the batch's fields as plain tensors, each computed when it is asked for.

        Those of regions are added for each distiller by itself, in `batch_for`.
        """
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
        for prefix in DENSE_HEADS:
            if prefix in captured:
                fields.update(self._anchor_fields(prefix, captured, grid))
        return fields

    def _anchor_fields(self, prefix: str, captured: Any, grid: Any) -> dict[str, Any]:
        head = self._dense_heads[prefix]
        targets = read_targets(head, captured, prefix)

        def positive() -> list[Tensor]:
            # Of anchors that were not sampled the label is that of the background.
            return [(x >= 0) & (x < head.num_classes) for x in targets.labels]

        def box_targets() -> list[Tensor]:
            if not getattr(head, 'reg_decoded_bbox', False):
                return targets.boxes
            anchors = [a.reshape(-1, 4) for a in grid()['anchors'].values()]
            return [
                encoded(head, a.expand(len(box), -1, -1).reshape(-1, 4), box, chosen)
                for a, box, chosen in zip(anchors, targets.boxes, positive(), strict=True)
            ]

        return {
            f'{prefix}weights': targets.weights,
            f'{prefix}avg_factor': targets.avg_factor,
            f'{prefix}positive': positive,
            f'{prefix}box_targets': box_targets,
        }

    def batch_for(self, distiller: Distiller, batch: Batch, captured: dict[str, Any]) -> Batch:
        """Returns a batch with the regions of the stage that the distiller taps."""
        if not _asks(distiller, 'roi'):
            return batch
        (stage,) = self._stages(distiller)
        head = box_heads(self.student)[stage][1]
        regions = regions_of(captured, stage)
        rois, labels, boxes = regions['rois'], regions['labels'], regions['boxes']
        positive = (labels >= 0) & (labels < head.num_classes)

        def box_targets() -> Tensor:
            return encoded(head, rois[:, 1:], boxes, positive) if head.reg_decoded_bbox else boxes

        return batch.extended(
            {
                'rois': rois,
                'roi_labels': labels,
                'roi_positive': positive,
                'roi_box_targets': box_targets,
            }
        )

    def _anchors(self, inputs: Tensor, data_samples: Any, reading: Taps) -> dict[str, Any]:
        generator = self._priors
        assert generator is not None  # offered() says so
        maps = reading[NECK]
        maps = maps if isinstance(maps, list) else [maps]
        sizes = [(m.shape[-2], m.shape[-1]) for m in maps][: generator.num_levels]
        shapes = [sample.metainfo['pad_shape'] for sample in data_samples]
        anchors, valid = anchor_grids(generator, sizes, shapes, inputs.device)
        return {'anchors': anchors, 'valid': valid}


def _asks(distiller: Any, *names: str) -> bool:
    return any(need.startswith(names) for need in distiller.head.needs)


def _taps(distiller: Any) -> list[Tap]:
    return [tap for side in ('student', 'teacher') for tap in distiller.taps(side).values()]


def _boxes(instances: Any) -> Tensor:
    boxes = instances.bboxes
    return getattr(boxes, 'tensor', boxes)


def _valid(inputs: Tensor, data_samples: Any) -> Tensor:
    mask = inputs.new_zeros(inputs.shape[0], *inputs.shape[-2:], dtype=torch.bool)
    for i, sample in enumerate(data_samples):
        h, w = sample.metainfo['img_shape'][:2]
        mask[i, :h, :w] = True
    return mask
