"""Classifiers beside their teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from densekd.core.taps import Tap, Taps
from densekd.errors import ConfigError
from densekd.wrappers.classifier_taps import classifier_forward, classifier_taps
from densekd.wrappers.model import DistillModel
from densekd.wrappers.named_taps import frozen_taps
from densekd.wrappers.stored import StoredLogits, stored_taps
from densekd.wrappers.views import teacher_view


class DistillClassifier(DistillModel):
    """Trains a classifier while distillers compare it with frozen teachers.

    See `DistillModel` for the arguments.

    Example:
        >>> from densekd.wrappers.classifier import DistillClassifier
        >>> DistillClassifier.scope
        'mmengine'
    """

    scope = 'mmengine'
    takes_peers = True
    # Their maps are as large as their images, and strides reach 32 at most.
    trace_size: ClassVar[tuple[int, int]] = (64, 96)

    def named_taps(self, model: Any) -> dict[str, Tap]:
        """Returns the named taps of a classifier, or the one of stored logits."""
        if isinstance(model, StoredLogits):
            return stored_taps(model)
        return classifier_taps(model)

    def frozen_taps(self, model: Any, taps: dict[str, Tap]) -> frozenset[str]:
        """Returns the names of the taps in frozen stages."""
        return frozen_taps(model, taps)

    def kind(self, model: Any) -> str:
        """Returns `'classifier'`."""
        return 'classifier'

    def forward_parts(
        self,
        model: Any,
        inputs: Tensor,
        parts: frozenset[str] | None,
        captured: Mapping[str, Any] | None = None,
    ) -> None:
        """Runs the backbone, the pooling or the head, no further than `parts` need."""
        classifier_forward(model, inputs, parts)

    def teacher_view(self, teacher: Any, inputs: Tensor, data_samples: Any) -> Tensor:
        """Returns the batch normalised as the teacher was trained to see it.

        One that is a file is told which images it is asked for.
        """
        if isinstance(teacher, StoredLogits):
            teacher.look_up(data_samples)
            return inputs
        whole = (inputs.shape[-2], inputs.shape[-1])
        sizes = [whole] * len(inputs)
        return teacher_view(self.data_preprocessor, teacher.data_preprocessor, inputs, sizes)

    def offered(self) -> tuple[str, ...]:
        """Returns the fields of the batch that a classifier gives."""
        return ('inputs', 'iteration', 'seed', 'labels', 'input_grad')

    def check_rows(self) -> None:
        """Refuses losses that need the one class of an image where images are mixed.

        And those that differentiate a teacher of which there are only the logits.

        Raises:
            ConfigError: Naming the loss.
        """
        for distiller in self._distillers:
            stored = [
                name
                for name in distiller.teachers
                if name in self.teachers and isinstance(self.teachers[name].model, StoredLogits)
            ]
            if stored and 'input_grad' in distiller.head.needs:
                raise ConfigError(
                    f'distiller {distiller.key!r}: {type(distiller.head.loss).__name__} '
                    f'differentiates the teacher {stored[0]!r}, of which there are only stored '
                    'logits. Give the network itself.'
                )
        if not getattr(self.data_preprocessor, 'mixes', False):
            return
        for distiller in self._distillers:
            if 'labels' in distiller.head.needs:
                raise ConfigError(
                    f'distiller {distiller.key!r}: {type(distiller.head.loss).__name__} needs '
                    "labels, and the student's data_preprocessor mixes images (mixup, cutmix), "
                    'which then have no one class. Leave the mixing out, or take a loss without '
                    'labels, such as KDLoss.'
                )

    def fields(
        self, inputs: Tensor, data_samples: Any, reading: Taps, captured: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns labels (N,), computed when they are asked for."""

        def labels() -> Tensor:
            found = [int(sample.gt_label) for sample in data_samples]
            return torch.as_tensor(found, device=inputs.device)

        return {'labels': labels}
