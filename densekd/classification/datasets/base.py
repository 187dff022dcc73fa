"""What the data sets of labelled images share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from densekd.classification.datasets.fraction import check_fraction, stratified
from densekd.errors import ConfigError, DataError


class LabelledImages(BaseDataset):
    """Images with a class each.

    Args:
        data_root: Where the data is.
        pipeline: The steps from a file or an array to a tensor.
        fraction: The share of each class that is used, drawn once and for all.
        fraction_seed: Of that choice.
        repeat: How often an epoch has each image: a tenth of them, ten times over, makes as many
            iterations as all.
        metainfo: `dict(classes=…)` names the classes.
        indices: How many images to keep, or which.
        test_mode: Whether it is for scoring.
        lazy_init: Whether nothing is read yet.

    Raises:
        ConfigError: If an epoch is to have no image, or parts of images, or what names the classes
            is no list, or names one twice.
    """

    def __init__(
        self,
        data_root: str = '',
        pipeline: Sequence[Any] = (),
        fraction: float = 1.0,
        fraction_seed: int = 0,
        repeat: int = 1,
        metainfo: Mapping[str, Any] | None = None,
        indices: int | Sequence[int] | None = None,
        test_mode: bool = False,
        lazy_init: bool = False,
    ) -> None:
        if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
            raise ConfigError(f'dataset.repeat: a whole number from 1 on, not {repeat!r}.')
        check_fraction(fraction, fraction_seed, 'dataset')
        _check_indices(indices)
        self.fraction, self.fraction_seed = fraction, fraction_seed
        self.repeat = repeat
        steps: list[dict[str, Any] | Callable[..., Any]] = list(pipeline)
        super().__init__(
            metainfo=metainfo,
            data_root=data_root,
            data_prefix={},
            indices=indices,
            pipeline=steps,
            test_mode=test_mode,
            lazy_init=lazy_init,
        )

    def filter_data(self) -> list[dict[str, Any]]:
        """Returns the fraction of the images, as often as is asked; labels are all classes.

        Raises:
            ConfigError: If an image that is to be kept is not there.
            DataError: If there are no images, a label is out of range, or a class is left empty.
        """
        labels = [int(info['gt_label']) for info in self.data_list]
        names = self._metainfo.get('classes') or ()
        if not labels:
            raise DataError(f'{self.data_root}: there are no images.')
        for info, label in zip(self.data_list, labels, strict=True):
            if label < 0 or (names and label >= len(names)):
                where = info.get('img_path', self.data_root)
                raise DataError(
                    f'{where}: the label is {label}, and there are {len(names)} classes: 0 to '
                    f'{len(names) - 1}.'
                )
        kept = self.data_list
        if self.fraction != 1:
            where = str(self.data_root)
            chosen = stratified(labels, self.fraction, self.fraction_seed, names, where)
            kept = [self.data_list[i] for i in chosen]
        kept = kept * self.repeat
        _check_in_range(self._indices, len(kept))
        return kept

    @classmethod
    def _load_metainfo(cls, metainfo: Any = None) -> dict[str, Any]:
        given = metainfo.get('classes') if isinstance(metainfo, Mapping) else None
        # mmengine reads a file with a name in each line; any other text it keeps as it is.
        if isinstance(given, str) and not Path(given).is_file():
            raise ConfigError(
                f'dataset.metainfo: classes is a list of names, such as [{given!r}], not {given!r}.'
            )
        found = super()._load_metainfo(metainfo)
        names = found.get('classes')
        if names is None:
            return found
        if not isinstance(names, (list, tuple)):
            raise ConfigError(f'dataset.metainfo: classes is a list of names, not {names!r}.')
        seen: set[str] = set()
        for name in map(str, names):
            if name in seen:
                raise ConfigError(
                    f'dataset.metainfo: classes names {name!r} twice. Give each class its own name.'
                )
            seen.add(name)
        return found

    def get_cat_ids(self, idx: int) -> list[int]:
        """Returns the class of an image, for samplers that balance classes."""
        return [int(self.get_data_info(idx)['gt_label'])]


def _check_indices(indices: Any) -> None:
    if indices is None:
        return
    listed = isinstance(indices, Sequence) and not isinstance(indices, str)
    numbers = indices if listed else [indices]
    whole = all(isinstance(i, int) and not isinstance(i, bool) for i in numbers)
    # No image is what 0 and an empty list leave.
    if not whole or not indices:
        raise ConfigError(
            'dataset.indices: how many images to keep, a whole number that is not 0, or a list of '
            f'which, not {indices!r}.'
        )


def _check_in_range(indices: int | Sequence[int] | None, count: int) -> None:
    for index in indices if isinstance(indices, Sequence) else ():
        if not -count <= index < count:
            raise ConfigError(
                f'dataset.indices: there is no image {index}; there are {count}, which count from '
                '0.'
            )
