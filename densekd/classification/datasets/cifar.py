"""CIFAR-10 and CIFAR-100 as they were published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from densekd.classification.datasets.base import LabelledImages
from densekd.classification.datasets.cifar_files import FORMS, read_cifar
from densekd.errors import ConfigError, did_you_mean

SPLITS = ('train', 'test')


class CIFAR10(LabelledImages):
    """CIFAR-10, from the archive as it is fetched or the folder that is in it.

    Args:
        data_root: The folder that holds either, or one of the two itself.
        split: `'train'` or `'test'`.
        pipeline: See `LabelledImages`, as for all that follow.
        fraction: The share of each class that is used.
        fraction_seed: Of that choice.
        repeat: How often an epoch has each image.
        metainfo: `dict(classes=…)` names the classes.
        indices: How many images to keep, or which.
        test_mode: Whether it is for scoring.
        lazy_init: Whether nothing is read yet.

    Raises:
        ConfigError: If there is no such split.
    """

    form = FORMS['cifar10']
    METAINFO: dict[str, Any] = {
        'classes': (
            'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship',
            'truck',
        )
    }  # fmt: skip

    def __init__(
        self,
        data_root: str = '',
        split: str = 'train',
        pipeline: Sequence[Any] = (),
        fraction: float = 1.0,
        fraction_seed: int = 0,
        repeat: int = 1,
        metainfo: Mapping[str, Any] | None = None,
        indices: int | Sequence[int] | None = None,
        test_mode: bool = False,
        lazy_init: bool = False,
    ) -> None:
        if split not in SPLITS:
            hint = did_you_mean(str(split), SPLITS)
            raise ConfigError(f'{type(self).__name__}: there is no split {split!r}. {hint}')
        self.split = split
        super().__init__(
            data_root=data_root,
            pipeline=pipeline,
            fraction=fraction,
            fraction_seed=fraction_seed,
            repeat=repeat,
            metainfo=metainfo,
            indices=indices,
            test_mode=test_mode,
            lazy_init=lazy_init,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Returns the label of each image, and where it stands among them.

        Raises:
            DataError: If the files are not there, or not what was published.
        """
        self.images, labels = read_cifar(self.data_root, self.form, self.split)
        return [{'position': i, 'gt_label': int(label)} for i, label in enumerate(labels)]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Returns an image with its label."""
        info = super().get_data_info(idx)
        # Kept out of what mmengine serialises: processes that load share one array.
        info['img'] = np.ascontiguousarray(self.images[info['position']])
        return info


class CIFAR100(CIFAR10):
    """CIFAR-100, with its 100 fine labels. See `CIFAR10`."""

    form = FORMS['cifar100']
    METAINFO: dict[str, Any] = {
        'classes': (
            'apple', 'aquarium_fish', 'baby', 'bear', 'beaver', 'bed', 'bee', 'beetle', 'bicycle',
            'bottle', 'bowl', 'boy', 'bridge', 'bus', 'butterfly', 'camel', 'can', 'castle',
            'caterpillar', 'cattle', 'chair', 'chimpanzee', 'clock', 'cloud', 'cockroach', 'couch',
            'crab', 'crocodile', 'cup', 'dinosaur', 'dolphin', 'elephant', 'flatfish', 'forest',
            'fox', 'girl', 'hamster', 'house', 'kangaroo', 'keyboard', 'lamp', 'lawn_mower',
            'leopard', 'lion', 'lizard', 'lobster', 'man', 'maple_tree', 'motorcycle', 'mountain',
            'mouse', 'mushroom', 'oak_tree', 'orange', 'orchid', 'otter', 'palm_tree', 'pear',
            'pickup_truck', 'pine_tree', 'plain', 'plate', 'poppy', 'porcupine', 'possum',
            'rabbit', 'raccoon', 'ray', 'road', 'rocket', 'rose', 'sea', 'seal', 'shark', 'shrew',
            'skunk', 'skyscraper', 'snail', 'snake', 'spider', 'squirrel', 'streetcar',
            'sunflower', 'sweet_pepper', 'table', 'tank', 'telephone', 'television', 'tiger',
            'tractor', 'train', 'trout', 'tulip', 'turtle', 'wardrobe', 'whale', 'willow_tree',
            'wolf', 'woman', 'worm',
        )
    }  # fmt: skip
