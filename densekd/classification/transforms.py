"""Steps of a pipeline, from a file or an array to a tensor. Images are RGB, uint8, (H, W, 3).

They draw from numpy's global generator, which a run seeds for each sample.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement

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
        image = cv2.imdecode(raw, cv2.IMREAD_COLOR) if raw.size else None
        if image is None:
            raise DataError(f"{path}: the image can't be read: it is cut short, or no image.")
        return {**results, 'img': np.ascontiguousarray(image[..., ::-1])}


class PadCrop:
    """Cuts a square out of an image with a border of zeros around it: CIFAR's augmentation.

    Args:
        size: Height and width of the square.
        padding: Width of the border.
    """

    def __init__(self, size: int = 32, padding: int = 4) -> None:
        self.size, self.padding = size, padding

    def __call__(self, results: Results) -> Results:
        """Replaces `img`.

        Raises:
            DataError: If the image is smaller than the square.
        """
        inside, border = results['img'], self.padding
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
    """

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = prob

    def __call__(self, results: Results) -> Results:
        """Replaces `img`."""
        turned = np.random.random() < self.prob
        return {**results, 'img': results['img'][:, ::-1]} if turned else results


class RandomResizedCrop:
    """Resizes a random part of an image to a square: ImageNet's augmentation.

    Args:
        size: Height and width of the square.
        area: Least and largest part of the image's area.
        ratio: Least and largest ratio of width to height, drawn log-uniformly.
    """

    def __init__(
        self,
        size: int = 224,
        area: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        if not 0 < area[0] <= area[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise ConfigError(
                f'RandomResizedCrop: area {area} and ratio {ratio} are each a least and a largest '
                'value above 0, and no area is above 1.'
            )
        self.size, self.area, self.ratio = size, area, ratio

    def __call__(self, results: Results) -> Results:
        """Replaces `img`."""
        image = results['img']
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
    """

    def __init__(self, size: int = 256) -> None:
        self.size = size

    def __call__(self, results: Results) -> Results:
        """Replaces `img`."""
        height, width = results['img'].shape[:2]
        scale = self.size / min(height, width)
        sides = (max(self.size, round(side * scale)) for side in (height, width))
        return {**results, 'img': _resized(results['img'], *sides)}


class CenterCrop:
    """Cuts the middle out of an image.

    Args:
        size: Height and width.
    """

    def __init__(self, size: int = 224) -> None:
        self.size = size

    def __call__(self, results: Results) -> Results:
        """Replaces `img`.

        Raises:
            DataError: If the image is smaller than that.
        """
        height, width = results['img'].shape[:2]
        _refuse_smaller(results, self.size, height, width)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return {**results, 'img': results['img'][top : top + self.size, left : left + self.size]}


class PackImage:
    """Makes of an image and its label what a batch is collated from.

    Args:
        digest: Whether to note a digest of the view, by which stored logits are found.
    """

    def __init__(self, digest: bool = False) -> None:
        self.digest = digest

    def __call__(self, results: Results) -> Results:
        """Returns `inputs`, (3, H, W), and `data_samples` with `gt_label`."""
        image = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        meta: Results = {k: results[k] for k in ('img_path', 'sample_idx') if k in results}
        if self.digest:
            meta['view'] = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
        sample = BaseDataElement(metainfo={**meta, 'img_shape': image.shape[1:]})
        sample.set_field(torch.tensor(int(results['gt_label'])), 'gt_label')
        return {'inputs': torch.from_numpy(image), 'data_samples': sample}


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
