"""A few images in the format that a config reads, so that its own loading code can be run."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from densekd.engine.data_checks import datasets
from densekd.errors import ConfigError

COCO_SIZE = (480, 640)  # the size that most of COCO's images have


def with_generated_data(
    cfg: Any, root: Path, images: int = 4, size: tuple[int, int] | None = None, seed: int = 0
) -> Any:
    """Returns a config that reads generated images, in the format of its own data sets.

    Args:
        cfg: A prepared config.
        root: An empty folder to write into.
        images: How many images.
        size: Their height and width, and what pipelines resize to; by default what the format
            usually has, and what the config says.
        seed: Seed of what is drawn on them.

    Raises:
        ConfigError: If a data set's format is none that can be generated.
    """
    cfg = copy.deepcopy(cfg)
    for number, (key, dataset) in enumerate(datasets(cfg)):
        kind = str(dataset.get('type', '')).rpartition('.')[2]
        folder = root / f'{key}_{number}'
        if kind not in ('CocoDataset',):
            raise ConfigError(
                f"{key}: data of the type {kind} can't be generated for a check; CocoDataset can."
            )
        write_coco(folder, coco_classes(dataset), images, size or _size(dataset), seed)
        if size is not None:
            _resize_to(dataset.get('pipeline'), size)
        dataset['data_root'] = str(folder) + '/'
        dataset['ann_file'] = 'annotations/instances.json'
        dataset['data_prefix'] = {'img': 'images/'}
        evaluator = cfg.get(key.replace('dataloader', 'evaluator'))
        for entry in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
            if isinstance(entry, Mapping) and 'ann_file' in entry:
                entry['ann_file'] = str(folder / 'annotations/instances.json')
    return cfg


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


def _size(dataset: Mapping[str, Any]) -> tuple[int, int]:
    # Scenes of digits are small and square; anything else is taken for photographs.
    for step in dataset.get('pipeline') or []:
        scale = step.get('scale') if isinstance(step, Mapping) else None
        if step.get('type') == 'Resize' and isinstance(scale, (list, tuple)) and max(scale) <= 256:
            return int(scale[1]), int(scale[0])
    return COCO_SIZE


def coco_classes(dataset: Mapping[str, Any]) -> list[str]:
    """Returns the class names of a dataset config, its own or those of its type."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes:
        return [classes] if isinstance(classes, str) else list(classes)
    from mmdet.datasets import CocoDataset

    return list(CocoDataset.METAINFO['classes'])


def write_coco(
    root: Path, classes: list[str], images: int, size: tuple[int, int], seed: int = 0
) -> None:
    """Writes images and an instances file in true COCO form.

    Category ids have gaps, as COCO's have, the last image lies the other way, one box is a crowd.
    """
    import cv2

    generator = np.random.default_rng(seed)
    folder = root / 'images'
    folder.mkdir(parents=True, exist_ok=True)
    (root / 'annotations').mkdir(exist_ok=True)
    ids = [2 * i + 1 for i in range(len(classes))]
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, images + 1):
        h, w = size if image_id < images else size[::-1]
        pixels = generator.integers(60, 196, (h, w, 3), dtype=np.uint8)
        boxes = generator.integers(3, 8)
        for number in range(boxes):
            side = generator.uniform(0.12, 0.5, 2)
            bw, bh = float(round(w * side[0])), float(round(h * side[1]))
            x, y = (float(np.floor(generator.uniform(0, m))) for m in (w - bw, h - bh))
            colour = generator.integers(0, 255, 3)
            pixels[int(y) : int(y + bh), int(x) : int(x + bw)] = colour
            crowd = int(number == 0 and image_id == 1 and boxes > 1)
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': image_id,
                    'category_id': int(generator.choice(ids)),
                    'bbox': [x, y, bw, bh],
                    'area': bw * bh,
                    'iscrowd': crowd,
                    'segmentation': [[x, y, x + bw, y, x + bw, y + bh, x, y + bh]],
                }
            )
        name = f'{image_id:012d}.jpg'
        cv2.imwrite(str(folder / name), pixels)
        records.append({'id': image_id, 'file_name': name, 'width': w, 'height': h})
    content = {
        'info': {'description': 'generated'},
        'licenses': [],
        'images': records,
        'annotations': annotations,
        'categories': [{'id': i, 'name': n} for i, n in zip(ids, classes, strict=True)],
    }
    (root / 'annotations' / 'instances.json').write_text(json.dumps(content))
