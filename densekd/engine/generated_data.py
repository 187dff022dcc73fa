"""A few images in the format that a config reads, so that its own loading code can be run."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from densekd.engine.data_checks import class_names, datasets, kind_of, nest
from densekd.engine.generated_labelled import read_generated, shrink_photographs
from densekd.engine.generated_masks import read_masks, shrink_crops
from densekd.engine.labelled_checks import labelled_dataset
from densekd.engine.mask_checks import mask_dataset
from densekd.engine.voc_checks import VOC_TYPES, voc_folders
from densekd.errors import ConfigError

# The sizes that most images have, as height and width.
COCO_SIZE = (480, 640)
VOC_SIZE = (375, 500)


def with_generated_data(
    cfg: Any,
    root: Path,
    images: int = 4,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    splits: tuple[str, ...] = ('train', 'val', 'test'),
) -> Any:
    """Returns a config that reads generated images, in the format of its own data sets.

    Args:
        cfg: A prepared config.
        root: An empty folder to write into.
        images: How many images.
        size: Their height and width, and what pipelines resize to; by default what the format
            usually has, and what the config says.
        seed: Seed of what is drawn on them.
        splits: Of which dataloaders; the others are left as they are.

    Raises:
        ConfigError: If a data set's format is none that can be generated.
    """
    cfg = copy.deepcopy(cfg)
    of_masks = cfg.get('default_scope') == 'mmseg'
    for number, (key, dataset) in enumerate(datasets(cfg, splits)):
        folder = root / f'{key}_{number}'
        if labelled_dataset(dataset) is not None:
            read_generated(dataset, cfg, key, folder, images, size, seed)
            if size is not None:
                shrink_photographs(dataset)
        elif of_masks and mask_dataset(dataset) is not None:
            # Of a single image, norms of features that are pooled whole have nothing to learn.
            read_masks(dataset, cfg, key, folder, max(images, 2), size, seed)
        elif kind_of(dataset) == 'CocoDataset':
            _read_coco(dataset, cfg, key, folder, images, size, seed)
        elif kind_of(dataset) in VOC_TYPES:
            _read_voc(dataset, key, folder, images, size, seed)
        else:
            raise ConfigError(
                f"{key}: data of the type {kind_of(dataset)} can't be generated for a check; "
                + (
                    'BaseSegDataset and what is made from it can.'
                    if of_masks
                    else 'CocoDataset, VOCDataset and XMLDataset can.'
                )
            )
    if size is not None:
        for split in ('train', 'val', 'test'):
            loader = cfg.get(f'{split}_dataloader')
            for dataset in nest(loader.get('dataset') if isinstance(loader, Mapping) else None):
                _resize_to(dataset.get('pipeline'), size)
        if of_masks:
            shrink_crops(cfg, size)
    return cfg


def _read_coco(
    dataset: Any,
    cfg: Any,
    key: str,
    folder: Path,
    images: int,
    size: tuple[int, int] | None,
    seed: int,
) -> None:
    classes = class_names(dataset) or []
    write_coco(folder, classes, images, size or _size(dataset, COCO_SIZE), seed)
    dataset['data_root'] = str(folder) + '/'
    dataset['ann_file'] = 'annotations/instances.json'
    dataset['data_prefix'] = {'img': 'images/'}
    evaluator = cfg.get(key.replace('dataloader', 'evaluator'))
    for entry in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        if isinstance(entry, Mapping) and 'ann_file' in entry:
            entry['ann_file'] = str(folder / 'annotations/instances.json')


def _read_voc(
    dataset: Any, key: str, folder: Path, images: int, size: tuple[int, int] | None, seed: int
) -> None:
    classes = class_names(dataset)
    if not classes:
        raise ConfigError(
            f'{key}: the data set names no classes. Give metainfo=dict(classes=(…,)).'
        )
    voc_folders(dataset, key)  # refuses a config that does not say where they are
    # The config's own folders are kept, in another place: they are a part of what is checked.
    dataset['data_root'] = f'{folder / "VOCdevkit"}/'
    below = str(dataset['data_prefix']['sub_data_root'])
    if Path(below).is_absolute():
        dataset['data_prefix'] = {**dataset['data_prefix'], 'sub_data_root': 'VOC2007/'}
    split = str(dataset.get('ann_file') or '')
    if not split or Path(split).is_absolute():
        dataset['ann_file'] = 'VOC2007/ImageSets/Main/trainval.txt'
    write_voc(
        Path(dataset['data_root']) / dataset['ann_file'],
        *voc_folders(dataset, key),
        classes,
        images,
        size or _size(dataset, VOC_SIZE),
        seed,
    )


def _resize_to(pipeline: Any, size: tuple[int, int]) -> None:
    """Makes the steps of a pipeline that resize to larger images resize to this size."""
    for step in pipeline or []:
        if not isinstance(step, Mapping) or 'Resize' not in str(step.get('type', '')):
            continue
        for key in ('scale', 'scales'):
            given = step.get(key)
            sides = np.ravel(given) if isinstance(given, (list, tuple)) else np.zeros(1)
            if sides.max() > max(size):
                step[key] = size[::-1] if key == 'scale' else [size[::-1]]


def _size(dataset: Mapping[str, Any], usual: tuple[int, int]) -> tuple[int, int]:
    # Scenes of digits are small and square; anything else is taken for photographs.
    for step in dataset.get('pipeline') or []:
        scale = step.get('scale') if isinstance(step, Mapping) else None
        if step.get('type') == 'Resize' and isinstance(scale, (list, tuple)) and max(scale) <= 256:
            return int(scale[1]), int(scale[0])
    return usual


@dataclass
class Scene:
    """An image with boxes: x, y, width and height, and the class of each."""

    pixels: Any
    boxes: list[tuple[float, float, float, float]]
    classes: list[int]


def draw_scenes(
    images: int, size: tuple[int, int], classes: int, seed: int = 0
) -> Iterator[tuple[int, Scene]]:
    """Yields numbered images of noise and plain boxes; the last one lies the other way."""
    generator = np.random.default_rng(seed)
    for number in range(1, images + 1):
        h, w = size if number < images else size[::-1]
        scene = Scene(generator.integers(60, 196, (h, w, 3), dtype=np.uint8), [], [])
        for _ in range(generator.integers(3, 8)):
            side = generator.uniform(0.12, 0.5, 2)
            bw, bh = float(round(w * side[0])), float(round(h * side[1]))
            x, y = (float(np.floor(generator.uniform(0, m))) for m in (w - bw, h - bh))
            colour = generator.integers(0, 255, 3)
            scene.pixels[int(y) : int(y + bh), int(x) : int(x + bw)] = colour
            scene.boxes.append((x, y, bw, bh))
            scene.classes.append(int(generator.choice(classes)))
        yield number, scene


def write_coco(
    root: Path, classes: list[str], images: int, size: tuple[int, int], seed: int = 0
) -> None:
    """Writes images and an instances file in true COCO form.

    Category ids have gaps, as COCO's have, and one box is a crowd.
    """
    import cv2

    folder = root / 'images'
    folder.mkdir(parents=True, exist_ok=True)
    (root / 'annotations').mkdir(exist_ok=True)
    ids = [2 * i + 1 for i in range(len(classes))]
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in draw_scenes(images, size, len(classes), seed):
        for (x, y, w, h), label in zip(scene.boxes, scene.classes, strict=True):
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': ids[label],
                    'bbox': [x, y, w, h],
                    'area': w * h,
                    'iscrowd': int(not annotations),
                    'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        name = f'{image_id:012d}.jpg'
        cv2.imwrite(str(folder / name), scene.pixels)
        height, width = scene.pixels.shape[:2]
        records.append({'id': image_id, 'file_name': name, 'width': width, 'height': height})
    content = {
        'info': {'description': 'generated'},
        'licenses': [],
        'images': records,
        'annotations': annotations,
        'categories': [{'id': i, 'name': n} for i, n in zip(ids, classes, strict=True)],
    }
    (root / 'annotations' / 'instances.json').write_text(json.dumps(content))


def write_voc(
    split: Path,
    annotations: Path,
    images: Path,
    classes: list[str],
    count: int,
    size: tuple[int, int],
    seed: int = 0,
) -> None:
    """Writes images, an XML file for each, and a list of their names, in true Pascal VOC form.

    Corners are whole numbers and count from 1, and one object is difficult.

    Args:
        split: The list of names, as `VOC2007/ImageSets/Main/trainval.txt`.
        annotations: The folder of XML files.
        images: The folder of images.
        classes: The names of the classes.
        count: How many images.
        size: Their height and width.
        seed: Seed of what is drawn on them.
    """
    import cv2

    for folder in (split.parent, annotations, images):
        folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, scene in draw_scenes(count, size, len(classes), seed):
        names.append(f'{number:06d}')
        cv2.imwrite(str(images / f'{names[-1]}.jpg'), scene.pixels)
        root = Element('annotation')
        _leaves(root, folder=images.parent.name, filename=f'{names[-1]}.jpg')
        _leaves(SubElement(root, 'source'), database='generated', image='generated')
        height, width, depth = scene.pixels.shape
        _leaves(SubElement(root, 'size'), width=width, height=height, depth=depth)
        _leaves(root, segmented=0)
        for i, ((x, y, w, h), label) in enumerate(zip(scene.boxes, scene.classes, strict=True)):
            entry = SubElement(root, 'object')
            difficult = int(number == 1 and i == 0)
            _leaves(entry, name=classes[label], pose='Unspecified', truncated=0)
            _leaves(entry, difficult=difficult)
            corners = {'xmin': x + 1, 'ymin': y + 1, 'xmax': x + w, 'ymax': y + h}
            _leaves(SubElement(entry, 'bndbox'), **{k: int(v) for k, v in corners.items()})
        ElementTree.indent(root, '\t')
        ElementTree.ElementTree(root).write(annotations / f'{names[-1]}.xml', encoding='utf-8')
    split.write_text('\n'.join(names) + '\n')


def _leaves(parent: Element, **texts: Any) -> None:
    for name, text in texts.items():
        SubElement(parent, name).text = str(text)
