"""Steps of a pipeline, from a file or an array to a tensor. Images are RGB, uint8, (H, W, 3).

They draw from numpy's global generator, which a run seeds for each sample.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement

from densekd.classification.arguments import check_whole, is_number
from densekd.errors import ConfigError, DataError

Results = dict[str, Any]


class LoadImage:
    """Reads an image file; grey ones and those with alpha become RGB."""

    def __call__(self, results: Results) -> Results:
        """Adds `img`.

        Raises:
            DataError: If the file can't be read.
        """
        import cv2

        path = results['img_path']
        # Not by its name: the decoder of some platforms takes none that is not ASCII.
        try:
            raw = np.fromfile(path, np.uint8)
        except OSError as error:
            raise DataError(f"{path}: the image can't be read: {error.strerror}.") from None
        try:
            image = cv2.imdecode(raw, cv2.IMREAD_COLOR) if raw.size else None
        except cv2.error as error:
            # A damaged header may say any size, and OpenCV takes none above its own limit.
            raise DataError(
                f"{path}: the image can't be read: OpenCV refuses it ({error.err})."
            ) from None
        if image is None:
            raise DataError(f"{path}: the image can't be read: it is cut short, or no image.")
        return {**results, 'img': np.ascontiguousarray(image[..., ::-1])}


class PadCrop:
    """Cuts a square out of an image with a border of zeros around it: CIFAR's augmentation.

    Args:
        size: Height and width of the square.
        padding: Width of the border.

    Raises:
        ConfigError: If the size is no whole number above 0, or the padding none from 0 on.
    """

    def __init__(self, size: int = 32, padding: int = 4) -> None:
        check_whole('PadCrop: size', size, 1)
        check_whole('PadCrop: padding', padding, 0)
        self.size, self.padding = size, padding

    def __call__(self, results: Results) -> Results:
        """Replaces `img`.

        Raises:
            DataError: If the image is smaller than the square.
        """
        inside, border = _image(results, self), self.padding
        height, width = inside.shape[0] + 2 * border, inside.shape[1] + 2 * border
        _refuse_smaller(results, self.size, height, width)
        # `np.pad` takes many times as long on small images.
        image = np.zeros((height, width, *inside.shape[2:]), inside.dtype)
        image[border : height - border, border : width - border] = inside
        top = np.random.randint(height - self.size + 1)
        left = np.random.randint(width - self.size + 1)
        return {**results, 'img': image[top : top + self.size, left : left + self.size]}


class Flip:
    """Turns an image left to right.

    Args:
        prob: How often.

    Raises:
        ConfigError: If that is no number from 0 to 1.
    """

    def __init__(self, prob: float = 0.5) -> None:
        if not is_number(prob) or not 0 <= prob <= 1:
            raise ConfigError(f'Flip: prob is a number from 0 to 1, not {prob!r}.')
        self.prob = prob

    def __call__(self, results: Results) -> Results:
        """Replaces `img`."""
        image = _image(results, self)
        turned = np.random.random() < self.prob
        return {**results, 'img': image[:, ::-1]} if turned else results


class RandomResizedCrop:
    """Resizes a random part of an image to a square: ImageNet's augmentation.

    Args:
        size: Height and width of the square.
        area: Least and largest part of the image's area.
        ratio: Least and largest ratio of width to height, drawn log-uniformly.

    Raises:
        ConfigError: If the size is no whole number above 0, or a pair is none of such numbers.
    """

    def __init__(
        self,
        size: int = 224,
        area: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        check_whole('RandomResizedCrop: size', size, 1)
        if not _is_range(area) or not _is_range(ratio) or area[1] > 1:
            raise ConfigError(
                f'RandomResizedCrop: area {area!r} and ratio {ratio!r} are each a least and a '
                'largest value above 0, and no area is above 1.'
            )
        self.size, self.area, self.ratio = size, area, ratio

    def __call__(self, results: Results) -> Results:
        """Replaces `img`."""
        image = _image(results, self)
        top, left, height, width = self._part(*image.shape[:2])
        part = image[top : top + height, left : left + width]
        return {**results, 'img': _resized(part, self.size, self.size)}

    def _part(self, height: int, width: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            wanted = height * width * np.random.uniform(self.area[0], self.area[1])
            low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
            ratio = math.exp(np.random.uniform(low, high))
            w, h = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = np.random.randint(height - h + 1)
                return top, np.random.randint(width - w + 1), h, w
        # No such part fits into a long image: the middle of it, as near to the ratio as it goes.
        w = min(width, round(height * self.ratio[1]))
        h = min(height, round(width / self.ratio[0]))
        return (height - h) // 2, (width - w) // 2, h, w


class ResizeEdge:
    """Resizes an image so that its shorter edge has a length.

    Args:
        size: The length.

    Raises:
        ConfigError: If it is no whole number above 0.
    """

    def __init__(self, size: int = 256) -> None:
        check_whole('ResizeEdge: size', size, 1)
        self.size = size

    def __call__(self, results: Results) -> Results:
        """Replaces `img`."""
        image = _image(results, self)
        height, width = image.shape[:2]
        scale = self.size / min(height, width)
        sides = (max(self.size, round(side * scale)) for side in (height, width))
        return {**results, 'img': _resized(image, *sides)}


class CenterCrop:
    """Cuts the middle out of an image.

    Args:
        size: Height and width.

    Raises:
        ConfigError: If it is no whole number above 0.
    """

    def __init__(self, size: int = 224) -> None:
        check_whole('CenterCrop: size', size, 1)
        self.size = size

    def __call__(self, results: Results) -> Results:
        """Replaces `img`.

        Raises:
            DataError: If the image is smaller than that.
        """
        image = _image(results, self)
        height, width = image.shape[:2]
        _refuse_smaller(results, self.size, height, width)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return {**results, 'img': image[top : top + self.size, left : left + self.size]}


class PackImage:
    """Makes of an image and its label what a batch is collated from.

    Args:
        digest: Whether to note a digest of the view, by which stored logits are found.
    """

    def __init__(self, digest: bool = False) -> None:
        self.digest = digest

    def __call__(self, results: Results) -> Results:
        """Returns `inputs`, (3, H, W), and `data_samples` with `gt_label`."""
        image = np.ascontiguousarray(_image(results, self).transpose(2, 0, 1))
        meta: Results = {k: results[k] for k in ('img_path', 'sample_idx') if k in results}
        if self.digest:
            meta['view'] = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
        sample = BaseDataElement(metainfo={**meta, 'img_shape': image.shape[1:]})
        sample.set_field(torch.tensor(int(results['gt_label'])), 'gt_label')
        return {'inputs': torch.from_numpy(image), 'data_samples': sample}


def _is_range(value: Any) -> bool:
    pair = isinstance(value, Sequence) and len(value) == 2 and all(map(is_number, value))
    return pair and 0 < value[0] <= value[1]


def _image(results: Results, step: Any) -> np.ndarray:
    if 'img' not in results:
        raise ConfigError(
            f'{type(step).__name__}: there is no image yet: begin the pipeline with '
            'densekd.LoadImage.'
        )
    return results['img']


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    import cv2

    if image.shape[:2] == (height, width):
        return image
    smaller = image.shape[0] * image.shape[1] > height * width
    # Taking an image apart by its pixels' areas is what keeps it from flickering when it shrinks.
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how)


def _refuse_smaller(results: Results, size: int, height: int, width: int) -> None:
    if min(height, width) < size:
        where = results.get('img_path', f'image {results.get("sample_idx")}')
        raise DataError(
            f'{where}: the image is {height}x{width}, and {size}x{size} is cut out of it. Resize '
            'it first: dict(type="densekd.ResizeEdge", size=…).'
        )
