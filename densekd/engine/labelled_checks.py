"""Data sets of labelled images: CIFAR's files and folders of images, checked before training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from densekd.classification.datasets import ImageFolder, LabelledImages
from densekd.classification.datasets.image_folder import class_folders
from densekd.classification.transforms import LoadImage
from densekd.errors import DataError, DenseKDError
from densekd.registry import check_arguments

# Decoding an image takes milliseconds: all of them where they are small together, else some.
BYTES = 2**26
SAMPLE = 256


def labelled_dataset(dataset: Mapping[str, Any]) -> type[LabelledImages] | None:
    """Returns the class of a dataset config that reads labelled images, or None for another."""
    from mmengine.registry import DATASETS

    from densekd.engine import registry  # noqa: F401  makes densekd.X known to mmengine

    found = dataset.get('type')
    if isinstance(found, str):
        found = DATASETS.get(found) if found.startswith('densekd.') else None
    known = isinstance(found, type) and issubclass(found, LabelledImages)
    return found if known else None


def read_labels(dataset: Mapping[str, Any], where: str) -> LabelledImages:
    """Returns the data set that a config describes, read, without its pipeline.

    Raises:
        DataError: If it can't be read, or a class is left without an image.
        ConfigError: If an argument is wrong.
    """
    kind = labelled_dataset(dataset)
    assert kind is not None
    own = ('type', '_scope_', 'pipeline', 'lazy_init')
    arguments = {k: v for k, v in dataset.items() if k not in own}
    check_arguments(kind, arguments, f'{where}.dataset')
    try:
        return kind(**arguments)
    except DenseKDError as error:
        raise type(error)(f'{where}: {error}') from None


def folder_names(dataset: Mapping[str, Any]) -> list[str] | None:
    """Returns the folders that are a dataset's classes; None if there are none, or not yet."""
    kind = labelled_dataset(dataset)
    if kind is None or not issubclass(kind, ImageFolder) or dataset.get('ann_file'):
        return None
    folder = Path(dataset.get('data_root') or '.') / str(dataset.get('split') or '')
    return class_folders(folder) if folder.is_dir() else None


def check_labelled(
    cfg: Any,
    dataset: Mapping[str, Any],
    where: str,
    whole: bool = False,
    trained: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Refuses data that can't be read, and labels that the head has no class for.

    Args:
        cfg: The whole config.
        dataset: The dataset's config.
        where: The key of its dataloader, for messages.
        whole: Whether to look into every image.
        trained: The names of the classes that are trained, where they are known.

    Returns:
        The names of the classes, in the order of their labels; none where the data has none.

    Raises:
        DataError: Naming the file or the class.
    """
    read = read_labels(dataset, where)
    infos = [read.get_data_info(i) for i in range(len(read))]
    labels = {int(info['gt_label']) for info in infos}
    names = tuple(str(name) for name in read.metainfo.get('classes') or ())
    refuse_other_classes(trained, names, where)
    if where == 'train_dataloader' and len(labels) < 2:
        raise DataError(
            f'{where}: all images of {read.data_root} are of one class, so that there is nothing '
            'to learn.'
        )
    _refuse_other_number(head_classes(cfg), names or trained, labels, where)
    files = [info['img_path'] for info in infos if 'img_path' in info]
    load = LoadImage()
    for path in files if whole else _sample(files):
        try:
            load({'img_path': path})
        except DataError as error:
            raise DataError(f'{where}: {error}') from None
    return names


def _refuse_other_number(
    head: int | None, names: tuple[str, ...], labels: set[int], where: str
) -> None:
    """Refuses labels that the head has no class for, and a head that has other classes.

    Raises:
        DataError: With both numbers.
    """
    if head is None:
        return
    if names and len(names) != head:
        some = ', '.join(names[:6]) + (', …' if len(names) > 6 else '')
        raise DataError(
            f'{where}: the data has {len(names)} class(es), {some}, and the head has {head}. Set '
            f'head.num_classes to {len(names)}, or give the data that is meant.'
        )
    if max(labels) < head:
        return
    advice = 'Set head.num_classes to the number of classes.'
    if 0 not in labels and max(labels) == head:
        advice = 'Labels count from 0, and these seem to count from 1.'
    elif names:
        advice = f'The last class, {names[-1]!r}, has the label {head - 1}.'
    raise DataError(
        f'{where}: the data has the label {max(labels)}, and the head has {head} classes: '
        f'0 to {head - 1}. {advice}'
    )


def refuse_other_classes(trained: tuple[str, ...], scored: tuple[str, ...], where: str) -> None:
    """Refuses data that is scored on whose labels stand for other classes than in training.

    Raises:
        DataError: Naming the first class that differs.
    """
    if not trained or not scored or trained == scored:
        return
    unlike = [name for name in trained if name not in scored]
    unlike += [name for name in scored if name not in trained]
    reason = f'{unlike[0]!r} is in one of them only' if unlike else 'their order differs'
    raise DataError(
        f'{where}: its {len(scored)} classes are not the {len(trained)} that are trained: '
        f'{reason}. Give both the same metainfo=dict(classes=(…)).'
    )


def head_classes(cfg: Any) -> int | None:
    """Returns how many classes a config's classifier tells apart, if it says so."""
    from densekd.engine.run import student_config

    head = student_config(cfg).model.get('head')
    found = head.get('num_classes') if isinstance(head, Mapping) else None
    return int(found) if found else None


def _sample(files: list[str]) -> list[str]:
    """Returns all files where they are small together, else some, spread over the list."""
    total = 0
    for path in files:
        total += Path(path).stat().st_size if Path(path).is_file() else 0
        if total > BYTES:
            return [files[i] for i in np.unique(np.linspace(0, len(files) - 1, SAMPLE, dtype=int))]
    return files
