"""Labelled images in the files that a config reads, so that its own loading code can be run."""

from __future__ import annotations

import math
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densekd.classification.datasets import CIFAR10, ImageFolder
from densekd.classification.datasets.cifar_files import FORMS, PIXELS, Form
from densekd.engine.labelled_checks import head_classes, labelled_dataset
from densekd.errors import ConfigError

PHOTOGRAPH = (375, 500)
ENDING = '.JPEG'
LARGE_STEPS = ('RandomResizedCrop', 'ResizeEdge')
SMALL_CROP = 64
FEW_CLASSES = 8  # folders, where all is small: a thousand take longer to make than to train on


def read_generated(
    dataset: Any,
    cfg: Any,
    key: str,
    folder: Path,
    images: int,
    size: tuple[int, int] | None,
    seed: int,
) -> None:
    """Writes labelled images, and makes a dataset config read them.

    Each class has as many as the config's fraction needs. Of CIFAR the pickles are written, of
    folders the config's own.

    Args:
        dataset: The dataset's config, which is changed.
        cfg: The whole config, whose batches are made no larger than what is looked at.
        key: The key of its dataloader.
        folder: Where to write.
        images: How many unlike images.
        size: Height and width of photographs; with it, folders without given names are few.
        seed: Seed of what is drawn on them.

    Raises:
        ConfigError: If the data set's format is none that can be generated.
    """
    kind = labelled_dataset(dataset)
    needed = math.ceil(1 / float(dataset.get('fraction') or 1))
    folder.mkdir(parents=True, exist_ok=True)
    if kind is not None and issubclass(kind, CIFAR10):
        each = max(needed, math.ceil(images / kind.form.classes))
        write_cifar(folder, kind.form, each, seed)
    elif kind is not None and issubclass(kind, ImageFolder):
        given = (dataset.get('metainfo') or {}).get('classes')
        classes = head_classes(cfg) or 2
        count = classes if size is None else min(classes, max(FEW_CLASSES, images))
        names = given or [f'class_{i:04d}' for i in range(count)]
        write_folders(
            folder,
            [str(name) for name in names],
            max(needed, math.ceil(images / len(names))),
            size if size and _is_large(dataset) else _size(dataset),
            split=str(dataset.get('split') or ''),
            listed=str(dataset.get('ann_file') or ''),
            unlike=max(2, images),
            seed=seed,
        )
    else:
        raise ConfigError(
            f"{key}: data of the type {dataset.get('type')} can't be generated for a check; "
            'CIFAR10, CIFAR100 and ImageFolder can.'
        )
    dataset['data_root'] = str(folder)
    loader = cfg.get(key) or {}
    loader['batch_size'] = min(int(loader.get('batch_size') or 2), max(2, images))


def _is_large(dataset: Mapping[str, Any]) -> bool:
    steps = [str(step.get('type', '')) for step in dataset.get('pipeline') or []]
    return any(step.rpartition('.')[2] in LARGE_STEPS for step in steps)


def _size(dataset: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the size of a config's images: of photographs, or what is cut out of small ones."""
    if _is_large(dataset):
        return PHOTOGRAPH
    for step in dataset.get('pipeline') or []:
        if 'Crop' in str(step.get('type', '')):
            side = int(step.get('size') or 32)
            return side, side
    return 32, 32


def shrink_photographs(dataset: Mapping[str, Any]) -> None:
    """Makes what is cut out of photographs small."""
    for step in dataset.get('pipeline') or []:
        if _is_large(dataset) and 'Crop' in str(step.get('type', '')):
            step['size'] = min(int(step.get('size') or 224), SMALL_CROP)


def write_cifar(folder: Path, form: Form = FORMS['cifar10'], each: int = 2, seed: int = 0) -> Path:
    """Writes the pickles of CIFAR as they were published, with noise, and returns their folder.

    Args:
        folder: Where the published folder goes.
        form: Which data set.
        each: Images of each class, in the training files together and in that of the test.
        seed: Seed of the noise.
    """
    rng = np.random.default_rng(seed)
    place = folder / form.folder
    place.mkdir(parents=True, exist_ok=True)
    for names in form.files.values():
        labels = rng.permutation(np.repeat(np.arange(form.classes), each))
        for name, part in zip(names, np.array_split(labels, len(names)), strict=True):
            pixels = rng.integers(0, 256, (len(part), PIXELS), dtype=np.uint8)
            batch = {b'data': pixels, form.label: part.tolist(), b'batch_label': name.encode()}
            if form.leading:
                batch[b'coarse_labels'] = (part // 5).tolist()
            (place / name).write_bytes(pickle.dumps(batch, protocol=2))
    return place


def write_folders(
    root: Path,
    classes: Sequence[str],
    each: int,
    size: tuple[int, int],
    split: str = '',
    listed: str = '',
    unlike: int = 2,
    seed: int = 0,
) -> None:
    """Writes images in a folder for each class, or together with a list of their labels.

    Args:
        root: Where to write.
        classes: The classes' names.
        each: Images of each class.
        size: Their height and width.
        split: The folder in `root` that the classes lie in.
        listed: The list's path in `root`; empty for folders.
        unlike: How many are drawn; the others are copies, for a thousand classes take as many.
        seed: Seed of what is drawn.
    """
    import cv2

    from densekd.engine.generated_data import draw_scenes

    drawn = root / 'drawn'
    drawn.mkdir(parents=True, exist_ok=True)
    sources = []
    for number, scene in draw_scenes(unlike, size, 2, seed):
        sources.append(drawn / f'{number}{ENDING}')
        # The decoder goes by the first bytes, the folder by the file's end.
        cv2.imwrite(str(drawn / f'{number}.jpg'), scene.pixels)
        (drawn / f'{number}.jpg').rename(sources[-1])
    lines = []
    for label, name in enumerate(classes):
        for i in range(each):
            number = label * each + i
            below = f'{number:06d}{ENDING}' if listed else f'{name}/{number:06d}{ENDING}'
            path = root / split / below
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sources[number % len(sources)], path)
            lines.append(f'{below} {label}\n')
    shutil.rmtree(drawn)
    if listed:
        (root / listed).parent.mkdir(parents=True, exist_ok=True)
        (root / listed).write_text(''.join(lines))
