"""Images and masks in the folders that a config of mmseg reads, so that its own code can be run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densekd.engine.data_checks import datasets
from densekd.engine.mask_checks import (
    IGNORED,
    mask_classes,
    mask_dataset,
    mask_folders,
    setting,
)
from densekd.engine.weighed_losses import needs_every_pixel
from densekd.errors import ConfigError

# The sizes that most images have, as height and width.
SIZES = {'CityscapesDataset': (1024, 2048), 'PascalVOCDataset': (375, 500)}
USUAL = (480, 640)


def read_masks(
    dataset: Any,
    cfg: Any,
    key: str,
    folder: Path,
    images: int,
    size: tuple[int, int] | None,
    seed: int,
) -> None:
    """Writes images and masks, and makes a dataset config read them.

    The config's own folders and file endings are kept, in another place: they are checked too.
    No pixel is to be ignored where a loss can't leave one out; the config's own masks are looked
    into for that.

    Args:
        dataset: The dataset's config, which is changed.
        cfg: The whole config.
        key: The key of its dataloader.
        folder: Where to write.
        images: How many.
        size: Their height and width.
        seed: Seed of what is drawn on them.

    Raises:
        ConfigError: If the data set has no classes.
    """
    trained, classes = mask_classes(dataset)
    if not trained:
        raise ConfigError(
            f'{key}: the data set names no classes. Give metainfo=dict(classes=(…,)).'
        )
    mask_folders(dataset, key)  # refuses a config that does not say where they are
    dataset['data_root'] = str(folder) + '/'
    prefix = dict(dataset['data_prefix'])
    for name, usual in (('img_path', 'images'), ('seg_map_path', 'masks')):
        if Path(prefix[name]).is_absolute():
            prefix[name] = usual
    dataset['data_prefix'] = prefix
    split = dataset.get('ann_file')
    if split and Path(split).is_absolute():
        dataset['ann_file'] = split = 'images.txt'
    kind = mask_dataset(dataset).__name__
    names = _names(kind, images)
    write_masks(
        *mask_folders(dataset, key),
        names,
        classes,
        # Drawn as a small pipeline resizes them, they need no padding: ignored pixels as well.
        small_size(dataset) or size or SIZES.get(kind) or USUAL,
        endings=(setting(dataset, 'img_suffix'), setting(dataset, 'seg_map_suffix')),
        chosen=[classes.index(name) for name in trained if name in classes],
        palette=mask_dataset(dataset).METAINFO.get('palette') if 'VOC' in kind else None,
        from_one=bool(setting(dataset, 'reduce_zero_label')),
        ignored=needs_every_pixel(cfg) is None,
        seed=seed,
    )
    if split:
        path = folder / split
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(''.join(f'{name}\n' for name in names))


def _names(kind: str, count: int) -> list[str]:
    if kind == 'CityscapesDataset':
        return [f'aachen/aachen_{i:06d}_000019' for i in range(count)]
    if kind == 'PascalVOCDataset':
        return [f'2007_{i:06d}' for i in range(count)]
    return [f'{i:06d}' for i in range(count)]


def small_size(dataset: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the size that a pipeline resizes to, where that is small, as scenes of digits are."""
    for step in dataset.get('pipeline') or []:
        scale = step.get('scale') if isinstance(step, Mapping) else None
        if isinstance(scale, (list, tuple)) and max(scale) <= 256:
            return int(scale[1]), int(scale[0])
    return None


def write_masks(
    images: Path,
    masks: Path,
    names: Sequence[str],
    classes: Sequence[str],
    size: tuple[int, int],
    endings: tuple[str, str] = ('.jpg', '.png'),
    chosen: Sequence[int] = (),
    palette: Sequence[Sequence[int]] | None = None,
    from_one: bool = False,
    ignored: bool = True,
    seed: int = 0,
) -> None:
    """Writes images with boxes, and for each a mask of classes.

    Args:
        images: The folder of images.
        masks: The folder of masks.
        names: Of the files, without their ends; they may lie in folders of their own.
        classes: The names of the classes.
        size: Height and width.
        endings: Of the files of images and of masks.
        chosen: Which classes are drawn; all by default.
        palette: Colours of the classes; masks are then written with a palette, as Pascal VOC's.
        from_one: Whether classes count from 1, and 0 is ignored.
        ignored: Whether pixels around boxes are to be ignored.
        seed: Seed of what is drawn.
    """
    import cv2
    from PIL import Image

    from densekd.engine.generated_data import draw_scenes

    drawn = np.array(chosen or range(len(classes)))
    for (_, scene), name in zip(
        draw_scenes(len(names), size, max(1, len(drawn) - 1), seed), names, strict=True
    ):
        height, width = scene.pixels.shape[:2]
        mask = np.full((height, width), drawn[0], np.uint8)
        for (x, y, w, h), label in zip(scene.boxes, scene.classes, strict=True):
            left, top, right, low = int(x), int(y), int(x + w), int(y + h)
            edge = max(1, min(w, h) // 20)
            if ignored:
                mask[top:low, left:right] = IGNORED
            rows, columns = (
                (int(top + edge), int(low - edge)),
                (int(left + edge), int(right - edge)),
            )
            mask[slice(*rows), slice(*columns)] = drawn[(label + 1) % len(drawn)]
        if from_one:
            mask = np.where(mask == IGNORED, 0, mask + 1).astype(np.uint8)
        image_path, mask_path = images / f'{name}{endings[0]}', masks / f'{name}{endings[1]}'
        for path in (image_path, mask_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image_path), scene.pixels)
        picture = Image.fromarray(mask)
        if palette is not None:
            picture = picture.convert('P')
            colours = np.full((256, 3), 224, np.uint8)
            colours[: len(palette)] = palette
            picture.putpalette(colours.tobytes())
        picture.save(mask_path)


def shrink_crops(cfg: Any, size: tuple[int, int]) -> None:
    """Makes crops, and what batches are padded to, no larger than a size, and batches of two."""
    for _, dataset in datasets(cfg):
        for step in dataset.get('pipeline') or []:
            _shrink(step, 'crop_size', size)
            _shrink(step, 'size', size[::-1])  # of Pad, as width and height
    loader = cfg.get('train_dataloader') or {}
    if (loader.get('batch_size') or 0) > 2:
        loader['batch_size'] = 2
    model = cfg.get('model') or {}
    teachers = model.get('teacher')
    teachers = teachers if isinstance(teachers, (list, tuple)) else [teachers]
    taught = [teacher.get('model') for teacher in teachers if isinstance(teacher, Mapping)]
    for network in (model, model.get('student'), *taught):
        if isinstance(network, Mapping):
            _shrink(network.get('data_preprocessor'), 'size', size)


def _shrink(part: Any, key: str, size: tuple[int, int]) -> None:
    given = part.get(key) if isinstance(part, Mapping) else None
    if isinstance(given, (list, tuple)) and len(given) == 2:
        part[key] = tuple(min(pair) for pair in zip(given, size, strict=True))
