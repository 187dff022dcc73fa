"""Segmentors of mmseg beside their teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from densekd.core.taps import Tap, Taps
from densekd.errors import ConfigError, DataError
from densekd.wrappers.model import DistillModel
from densekd.wrappers.named_taps import frozen_taps
from densekd.wrappers.segmentor_taps import heads, segmentor_forward, segmentor_taps
from densekd.wrappers.views import teacher_view


class DistillSegmentor(DistillModel):
    """Trains a segmentor of mmseg while distillers compare it with frozen teachers.

    See `DistillModel` for the arguments. Pixels that the student's own loss ignores, padding among
    them, are no valid pixels for any distiller either.

    Example:
        >>> from densekd.wrappers.segmentor import DistillSegmentor
        >>> DistillSegmentor.scope
        'mmseg'
    """

    scope = 'mmseg'

    def named_taps(self, model: Any) -> dict[str, Tap]:
        """Returns the named taps of a segmentor."""
        return segmentor_taps(model)

    def frozen_taps(self, model: Any, taps: dict[str, Tap]) -> frozenset[str]:
        """Returns the names of the taps in frozen stages."""
        return frozen_taps(model, taps)

    def kind(self, model: Any) -> str:
        """Returns `'segmentor'`."""
        return 'segmentor'

    def forward_parts(
        self,
        model: Any,
        inputs: Tensor,
        parts: frozenset[str] | None,
        captured: Mapping[str, Any] | None = None,
    ) -> None:
        """Runs the backbone, the neck or the heads, no further than `parts` need."""
        segmentor_forward(model, inputs, parts)

    def teacher_view(self, teacher: Any, inputs: Tensor, data_samples: Any) -> Tensor:
        """Returns the batch normalised as the teacher was trained to see it."""
        sizes = [sample.metainfo['img_shape'][:2] for sample in data_samples]
        return teacher_view(self.data_preprocessor, teacher.data_preprocessor, inputs, sizes)

    def check_rows(self) -> None:
        """Refuses logits of unlike classes, which a connector would take for mere channels.

        Raises:
            ConfigError: With what would pair them.
        """
        for key, (student, teacher) in self.places.items():
            distiller: Any = self.distillers[key]
            taps = (distiller.taps(side).values() for side in ('student', 'teacher'))
            for s, t, own, other in zip(*taps, student.shapes, teacher.shapes, strict=False):
                logits = s.name.endswith('.logits') and t.name.endswith('.logits')
                if logits and own[1] != other[1] and distiller.head.loss.compares_channels:
                    raise ConfigError(
                        f'distiller {key!r}: {s.label!r} has {own[1]} classes in the student and '
                        f'{other[1]} in the teacher, and it is not known which of them are the '
                        'same. Name the classes of both, as model.classes and teacher.classes, or '
                        'compare features.'
                    )

    def offered(self) -> tuple[str, ...]:
        """Returns the fields of the batch that a segmentor gives."""
        return ('inputs', 'iteration', 'seed', 'labels', 'valid')

    def fields(
        self, inputs: Tensor, data_samples: Any, reading: Taps, captured: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns labels (N, H, W), and which of them count, each computed when it is asked for."""
        head = heads(self.student, 'decode_head')[-1]

        def labels() -> Tensor:
            return torch.stack([sample.gt_sem_seg.data[0] for sample in data_samples]).long()

        def valid() -> Tensor:
            found = labels()
            known = max(int(head.num_classes), int(head.out_channels))
            counted = found != head.ignore_index
            wrong = found[counted & ((found < 0) | (found >= known))]
            if wrong.numel():
                raise DataError(
                    f'a mask has label {int(wrong[0])}, and the student knows 0 to {known - 1} '
                    f'and {head.ignore_index} for pixels to ignore. Set reduce_zero_label, or '
                    'correct the masks.'
                )
            return counted

        return {'labels': labels, 'valid': valid}
