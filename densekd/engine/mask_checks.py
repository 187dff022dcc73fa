"""Data for mmseg: images and masks in folders, which are checked before mmseg reads them."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densekd.errors import DataError, did_you_mean

IGNORED = 255  # what mmseg's losses and metrics leave out
# Opening a large mask takes tens of milliseconds, so that a part is looked into before training.
SAMPLE = 128
ORIENTATION = 274  # the EXIF tag of photographs that lie on their side


def mask_dataset(dataset: Mapping[str, Any]) -> Any:
    """Returns the class of a dataset config that reads images and masks, or None for another."""
    import mmseg.datasets
    from mmengine.registry import DATASETS

    found = dataset.get('type')
    if isinstance(found, str):
        with DATASETS.switch_scope_and_registry('mmseg') as registry:
            found = registry.get(found)
    known = isinstance(found, type) and issubclass(found, mmseg.datasets.BaseSegDataset)
    return found if known else None


def mask_classes(dataset: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the classes that a config trains on, and those that its masks count.

    They differ where a config chooses some of the classes that its data set's type has.
    """
    own = (mask_dataset(dataset).METAINFO or {}).get('classes')
    given = (dataset.get('metainfo') or {}).get('classes')
    given = [given] if isinstance(given, str) else given
    trained = [str(name) for name in given or own or []]
    return trained, [str(name) for name in own or trained]


def setting(dataset: Mapping[str, Any], name: str) -> Any:
    """Returns an argument of a dataset: the config's, or else the default of its type."""
    if name in dataset:
        return dataset[name]
    for kind in mask_dataset(dataset).__mro__:
        parameter = inspect.signature(kind).parameters.get(name)
        if parameter is not None and parameter.default is not inspect.Parameter.empty:
            return parameter.default
    return None


def mask_folders(dataset: Mapping[str, Any], where: str) -> tuple[Path, Path]:
    """Returns the folders of a dataset config's images and masks.

    Raises:
        DataError: If the config does not say where they are.
    """
    prefix = dataset.get('data_prefix') or {}
    for key in ('img_path', 'seg_map_path'):
        if prefix.get(key) is None:
            raise DataError(
                f'{where}: data_prefix has no {key!r}. {did_you_mean(key, prefix)} Give '
                "data_prefix=dict(img_path='images/train', seg_map_path='masks/train')."
            )
    root = Path(dataset.get('data_root') or '.')
    return root / prefix['img_path'], root / prefix['seg_map_path']


def check_masks(dataset: Mapping[str, Any], where: str, whole: bool = False) -> None:
    """Refuses images and masks that mmseg would stumble over, or learn nothing from.

    That each image has a mask is looked up for all of them; what is in the masks for some, spread
    over the list.

    Args:
        dataset: The dataset's config.
        where: The key of its dataloader, for messages.
        whole: Whether to look into every mask.

    Raises:
        DataError: Naming the file and what is wrong with it.
    """
    folders = mask_folders(dataset, where)
    if _elsewhere(dataset):
        return
    for folder in folders:
        _refuse_no_folder(folder, where)
    pairs = _pairs(dataset, *folders, where)
    trained, counted = mask_classes(dataset)
    zero = bool(setting(dataset, 'reduce_zero_label'))
    first = _looked_into(pairs, whole)
    met: set[int] = set()
    for i in first:
        met |= _labels(*pairs[i], counted, zero, where)
    if where != 'train_dataloader':
        return
    enough = min(2, len(trained) or 2)
    chosen = {i for i, name in enumerate(counted) if name in trained} if counted else None
    for i in sorted(set(range(len(pairs))) - set(first)):
        if len(_learnt(met, chosen)) >= enough:
            break
        met |= _labels(*pairs[i], counted, zero, where)
    if len(_learnt(met, chosen)) < enough:
        _refuse_nothing_to_learn(met, _learnt(met, chosen), folders[1], counted, where)


def _elsewhere(dataset: Mapping[str, Any]) -> bool:
    return any('://' in str(dataset.get(key) or '') for key in ('data_root', 'ann_file'))


def _looked_into(pairs: Sequence[Any], whole: bool) -> range:
    """Returns which masks are looked into, spread over the list."""
    return range(0, len(pairs), 1 if whole else max(1, len(pairs) // SAMPLE))


def refuse_ignored(
    dataset: Mapping[str, Any], where: str, reason: str, whole: bool = False
) -> None:
    """Refuses masks that have pixels to ignore, for a loss that can't leave them out.

    Args:
        dataset: The dataset's config, whose masks are checked already.
        where: The key of its dataloader, for messages.
        reason: Why none may, as the end of the sentence.
        whole: Whether to look into every mask.

    Raises:
        DataError: Naming the first such mask.
    """
    if _elsewhere(dataset):
        return
    counted, zero = mask_classes(dataset)[1], bool(setting(dataset, 'reduce_zero_label'))
    pairs = _pairs(dataset, *mask_folders(dataset, where), where)
    for i in _looked_into(pairs, whole):
        if IGNORED in _labels(*pairs[i], counted, zero, where):
            value = f'0 or {IGNORED}' if zero else IGNORED
            raise DataError(f'{where}: {pairs[i][1]} has pixels to ignore ({value}), {reason}')


def _learnt(met: set[int], chosen: set[int] | None) -> set[int]:
    return {label for label in met if label != IGNORED and (chosen is None or label in chosen)}


def _refuse_nothing_to_learn(
    met: set[int], learnt: set[int], masks: Path, counted: list[str], where: str
) -> None:
    if not learnt:
        raise DataError(
            f'{where}: no mask in {masks} has a pixel of a class that is trained, so that there '
            f'is nothing to learn: all of them are ignored ({IGNORED}).'
        )
    only = next(iter(learnt))
    name = f' ({counted[only]})' if only < len(counted) else ''
    hint = (
        f' The value {IGNORED} stands for pixels to ignore: number the classes from 0.'
        if IGNORED in met
        else ''
    )
    raise DataError(
        f'{where}: the masks in {masks} have pixels of one class alone, {only}{name}, so that '
        f'there is nothing to learn.{hint}'
    )


def _refuse_no_folder(folder: Path, where: str) -> None:
    if folder.is_dir():
        return
    wanted = folder
    while not wanted.parent.is_dir():
        wanted = wanted.parent
    near = sorted(p.name for p in wanted.parent.iterdir() if p.is_dir())
    hint = did_you_mean(wanted.name, near) if near else f'{wanted.parent} has no folders.'
    missing = '' if wanted == folder else f' {wanted} is missing.'
    raise DataError(f'{where}: there is no folder {folder}.{missing} {hint}')


def _pairs(
    dataset: Mapping[str, Any], images: Path, masks: Path, where: str
) -> list[tuple[Path, Path]]:
    """Returns the files of all images and of their masks, all of which are there."""
    image_end, mask_end = (str(setting(dataset, f'{k}_suffix')) for k in ('img', 'seg_map'))
    listed = dataset.get('ann_file')
    if listed:
        split = Path(dataset.get('data_root') or '.') / listed
        names = [line.strip() for line in split.read_text().splitlines()]
        if not names:
            raise DataError(f'{where}: {split} has no images.')
    else:
        names = [n[: -len(image_end)] for n in _files(images) if n.endswith(image_end)]
    there = (set(_files(images)), set(_files(masks)))
    if not names:
        ends = Counter(Path(n).suffix for n in there[0]).most_common(4)
        has = ', '.join(f'{count} that end with {end}' for end, count in ends)
        raise DataError(
            f'{where}: {images} has no files that end with {image_end}, but {has}. Give '
            'img_suffix and seg_map_suffix.'
            if has
            else f'{where}: {images} has no images: it is empty.'
        )
    for name in names:
        for kind, file, folder, files in (
            ('image', f'{name}{image_end}', images, there[0]),
            ('mask', f'{name}{mask_end}', masks, there[1]),
        ):
            if file not in files:
                said = f'{split} lists {name!r}' if listed else f'{images} has the image {name!r}'
                raise DataError(
                    f'{where}: {said}, but there is no {kind} {folder / file}. '
                    f'{did_you_mean(file, sorted(files), 4)}'
                )
    return [(images / f'{n}{image_end}', masks / f'{n}{mask_end}') for n in names]


def _files(folder: Path) -> Iterator[str]:
    # As mmengine lists them: links are followed, and hidden files left out.
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        inside = Path(place).relative_to(folder)
        yield from ((inside / name).as_posix() for name in sorted(files) if name[0] != '.')


def _labels(image: Path, mask: Path, counted: list[str], zero: bool, where: str) -> set[int]:
    """Returns the classes in a mask, as mmseg numbers them; ignored pixels are 255."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(image) as picture:
            turned = picture.getexif().get(ORIENTATION, 1) >= 5  # as a decoder turns it
            size = picture.size[::-1] if turned else picture.size
        with Image.open(mask) as picture:
            values = np.asarray(picture)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{where}: {image} and its mask can't be read: {error}.") from None
    if values.ndim != 2:
        raise DataError(
            f'{where}: {mask} has {values.shape[2]} channels of colours, where each pixel must '
            'hold the number of its class. Write the numbers, in one channel or with a palette.'
        )
    if values.shape[::-1] != size:
        theirs = 'x'.join(map(str, values.shape))
        ours = 'x'.join(map(str, size[::-1]))
        raise DataError(f'{where}: {mask} is {theirs}, and its image {image} is {ours}.')
    found = {int(v) for v in np.unique(values)}
    last = len(counted) - 1 + zero
    wrong = sorted(v for v in found if counted and v != IGNORED and not 0 <= v <= last)
    if wrong:
        raise DataError(
            f'{where}: {mask} has the value {wrong[0]}, and there are {len(counted)} classes: '
            f'{"1" if zero else "0"} to {last}, and {IGNORED} for pixels to ignore.'
            + (
                ' Set reduce_zero_label=True if 0 is to be ignored and classes count from 1.'
                if wrong == [last + 1] and not zero
                else ''
            )
        )
    if not zero:
        return found
    return {v - 1 if 0 < v < IGNORED else IGNORED for v in found}
