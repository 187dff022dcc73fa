"""What a loss may know of the batch beside the two tapped tensors: plain tensors, lazily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from densekd.errors import ConfigError

FIELDS: dict[str, str] = {
    'inputs': 'the preprocessed images, (N, 3, H, W)',
    'labels': 'class of each image (N,), of each pixel (N, H, W), or of each box, N of (G,)',
    'gt_boxes': 'true boxes in input pixels, N of (G, 4) as x1, y1, x2, y2; crowds left out',
    'valid': 'where the input is image and not padding or ignored, (N, H, W) bool',
    'anchors': 'anchors of the student, or boxes around its points, {(sy, sx): (H, W, A, 4)}',
    'anchors_valid': 'whether an anchor lies in the image, {(sy, sx): (N, H, W, A)} bool',
    'dense_weights': 'weight of each anchor in the classification loss, L of (N, H*W*A)',
    'dense_avg_factor': 'what the student divides its classification loss by',
    'dense_positive': 'whether an anchor is matched to a true box, L of (N, H*W*A) bool',
    'dense_box_targets': 'what the head regresses, as both networks encode it, L of (N, H*W*A, 4)',
    'rpn_weights': 'weight of each anchor in the RPN loss, 0 if not sampled, L of (N, H*W*A)',
    'rpn_avg_factor': 'what the student divides its RPN losses by',
    'rpn_positive': 'whether the RPN sampled an anchor as an object, L of (N, H*W*A) bool',
    'rpn_box_targets': 'what the RPN regresses, as both networks encode it, L of (N, H*W*A, 4)',
    'rois': 'regions that both box heads scored, sampled by the student, (R, 5) as image, box',
    'roi_labels': 'class of each region, the number of classes for background, (R,)',
    'roi_positive': 'whether a region is matched to a true box, (R,) bool',
    'roi_box_targets': 'what the box head regresses, as both networks encode it, (R, 4)',
    'iteration': 'iterations begun before this one',
    'seed': 'seed of this iteration, for random masks',
    'input_grad': 'gradient of both networks with respect to the input, of what is tapped',
}


@dataclass(frozen=True)
class Batch:
    """A batch as losses see it.

    Args:
        values: The value of each field, or a function without arguments that computes it.

    Example:
        >>> batch = Batch({'iteration': 3, 'labels': lambda: [1, 2]})
        >>> batch.iteration, batch.labels, batch.has('gt_boxes')
        (3, [1, 2], False)
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    _computed: dict[str, Any] = field(default_factory=dict, repr=False)

    def has(self, name: str) -> bool:
        """Whether the wrapper supplies the field."""
        return name in self.values

    def extended(self, values: Mapping[str, Any]) -> Batch:
        """Returns a batch with further fields; what both have is computed once.

        Example:
            >>> Batch({'iteration': 3}).extended({'seed': 1}).iteration
            3
        """
        shared = {name: partial(getattr, self, name) for name in self.values}
        return Batch({**shared, **values})

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_') or name not in FIELDS:
            raise AttributeError(f'a batch has no field {name!r}; it has: {", ".join(FIELDS)}')
        if name not in self._computed:
            if name not in self.values:
                raise ConfigError(
                    f'a loss asks for {name!r} ({FIELDS[name]}) without having declared it in '
                    f'`needs`, so that nothing supplied it.'
                )
            value = self.values[name]
            self._computed[name] = value() if callable(value) else value
        return self._computed[name]
