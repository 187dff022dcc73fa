"""Batches of images: stacked, normalised, and mixed where the config says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import ImgDataPreprocessor
from torch import Tensor

from densekd.classification.arguments import is_number
from densekd.classification.classifier import targets
from densekd.classification.mixing import cutmix, mixup, shares_of
from densekd.errors import ConfigError, DataError


class ImagePreprocessor(ImgDataPreprocessor):
    """Stacks images of one size, normalises them, and mixes them while training.

    Args:
        mean: Mean of each channel, of values from 0 to 255, in the order of the images (RGB).
        std: Deviation of each channel.
        mixup: Alpha of mixup; 0 is none.
        cutmix: Alpha of CutMix; 0 is none. With both, one of them is drawn for each batch.
        mix_prob: How often a batch is mixed.
        num_classes: Needed for mixing.
        channels_last: Whether a pixel's channels lie side by side in memory, which convolutions
            hand on to all maps. The same but for rounding, and faster on CPUs.

    Raises:
        ConfigError: If mean and std are not each three numbers, or images are to be mixed and the
            number of classes is not given.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mix_prob: float = 1.0,
        num_classes: int | None = None,
        channels_last: bool = False,
    ) -> None:
        _check_norm(mean, std)
        super().__init__(mean, std)
        mixing = (mixup, cutmix, mix_prob)
        if not all(is_number(value) and value >= 0 for value in mixing) or mix_prob > 1:
            raise ConfigError(
                'data_preprocessor: mixup and cutmix are 0 or more, and mix_prob is from 0 to 1.'
            )
        if mixup or cutmix:
            _check_classes(num_classes)
        self.mixup, self.cutmix, self.mix_prob = mixup, cutmix, mix_prob
        self.num_classes = num_classes
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    @property
    def mixes(self) -> bool:
        """Whether training sees shares of classes and no labels."""
        return bool((self.mixup or self.cutmix) and self.mix_prob)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Returns the batch as the model takes it.

        Raises:
            ConfigError: If there are no inputs, which a pipeline has to end with.
            DataError: If the images have unlike sizes.
        """
        if isinstance(data, Mapping) and 'inputs' not in data:
            raise ConfigError(
                "data_preprocessor: the batch has no 'inputs': the pipeline must end with "
                'densekd.PackImage.'
            )
        data = dict(self.cast_data(data))
        data.setdefault('data_samples', None)
        images = self._stacked(data['inputs']).float()
        if self._enable_normalize:
            images = (images - self.mean) / self.std
        if training and self.mixes and data['data_samples']:
            images = self._mixed(images, data['data_samples'])
        data['inputs'] = images.contiguous(memory_format=self.layout)
        return data

    def _stacked(self, images: Any) -> Tensor:
        if isinstance(images, Tensor):
            return images
        sizes = {tuple(image.shape[-2:]) for image in images}
        if len(sizes) > 1:
            some = ' and '.join('x'.join(map(str, size)) for size in sorted(sizes)[:2])
            raise DataError(
                f'the images of a batch have unlike sizes ({some}). Let the pipeline end with '
                'RandomResizedCrop, CenterCrop or PadCrop.'
            )
        return torch.stack(list(images))

    def _mixed(self, images: Tensor, samples: Sequence[Any]) -> Tensor:
        shares = shares_of(targets(samples, images.device), self.num_classes or 0)
        # Drawn even if they go unused, so that what follows does not depend on the outcome.
        draw, choice = np.random.random(2)
        if draw < self.mix_prob:
            both = self.mixup and self.cutmix
            if self.mixup and (not both or choice < 0.5):
                images, shares = mixup(images, shares, self.mixup)
            else:
                images, shares = cutmix(images, shares, self.cutmix)
        for sample, share in zip(samples, shares, strict=True):
            sample.set_field(share, 'gt_score')
        return images


def _check_norm(mean: Any, std: Any) -> None:
    if mean is None and std is None:
        return
    for name, values in (('mean', mean), ('std', std)):
        three = isinstance(values, Sequence) and len(values) == 3 and all(map(is_number, values))
        if not three:
            raise ConfigError(
                f'data_preprocessor: mean and std are each three numbers, one a channel, or both '
                f'None, and {name} is {values!r}.'
            )
    if min(std) <= 0:
        raise ConfigError(
            f'data_preprocessor: images are divided by std, whose values are above 0, not {std!r}.'
        )


def _check_classes(count: Any) -> None:
    if count is None:
        raise ConfigError('data_preprocessor: to mix images, give num_classes.')
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise ConfigError(
            f'data_preprocessor: num_classes is a whole number above 1, not {count!r}.'
        )
