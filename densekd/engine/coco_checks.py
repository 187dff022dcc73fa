"""Data in COCO's form: one file of instances, checked before mmdet reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densekd.errors import DataError, did_you_mean

FIELDS = {
    'images': ('id', 'file_name', 'width', 'height'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}


def check_coco(
    path: Path, classes: Sequence[str] | None, images: Path, where: str, own: bool = True
) -> dict[str, Any]:
    """Reads a COCO instances file for these classes, and refuses what is none.

    Args:
        path: The file.
        classes: The names of its classes, if they are known.
        images: The folder of its images.
        where: The place in the config, for messages.
        own: Whether the config lists the classes; otherwise they are its data set's.

    Raises:
        DataError: Saying what is missing, and what it has.
    """
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f'{where}: {path} is no COCO file: it is not JSON ({error}).') from None
    if not isinstance(content, dict):
        raise DataError(
            f'{where}: {path} is no COCO file: it holds a {type(content).__name__}, not an object.'
        )
    for key in FIELDS:
        if not isinstance(content.get(key), list):
            has = ', '.join(sorted(content)[:8]) or 'nothing'
            raise DataError(
                f'{where}: {path} is no COCO file: it has no list of {key}. It has: {has}.'
            )
    for key, fields in FIELDS.items():
        for entry in content[key]:
            lacking = [f for f in fields if f not in entry]
            if lacking:
                raise DataError(
                    f'{where}: {path} is no COCO instances file: an entry of {key} lacks '
                    f'{lacking[0]!r}.'
                )
    _check_categories(content, classes, path, where, own)
    if not content['images']:
        raise DataError(f'{where}: {path} has no images.')
    if not (images / content['images'][0]['file_name']).is_file():
        raise DataError(
            f'{where}: the image {content["images"][0]["file_name"]} of {path} is not in {images}.'
        )
    for entry in content['annotations']:
        if not _is_box(entry['bbox']):
            raise DataError(
                f'{where}: {path}: the annotation {entry["id"]} has the bbox {entry["bbox"]}, '
                'where four finite numbers are needed: x, y, width, height.'
            )
    return content


def _check_categories(
    content: dict[str, Any], classes: Sequence[str] | None, path: Path, where: str, own: bool
) -> None:
    names = [c['name'] for c in content['categories']]
    missing = [c for c in classes or [] if c not in names]
    if missing and own:
        raise DataError(
            f'{where}: {path} has no category {missing[0]!r}, which the config lists among its '
            f'classes. {did_you_mean(missing[0], names)}'
        )
    if missing:
        raise DataError(
            f'{where}: {path} has no category {missing[0]!r}, and the config names no classes of '
            f'its own. Give the dataset metainfo=dict(classes=(…,)). {did_you_mean("", names)}'
        )
    # The toolbox numbers classes in the order of the file, whatever the order of the names.
    listed = [name for name in names if name in (classes or names)]
    twice = [name for name in listed if listed.count(name) > 1]
    if twice:
        raise DataError(f'{where}: {path} has the category {twice[0]!r} more than once.')
    if classes and listed != list(classes):
        i = next(i for i, pair in enumerate(zip(listed, classes, strict=True)) if len({*pair}) > 1)
        raise DataError(
            f'{where}: {path} has the category {listed[i]!r} where the classes of the config have '
            f'{classes[i]!r}; mmdet numbers them in the order of the file, so that names would be '
            'mixed up. Give the classes in that order.'
        )
    ids = {c['id'] for c in content['categories']}
    for entry in content['annotations']:
        if entry['category_id'] not in ids:
            has = ', '.join(str(i) for i in sorted(ids, key=str)[:12])
            raise DataError(
                f'{where}: {path}: the annotation {entry["id"]} has the category_id '
                f'{entry["category_id"]!r}, which is none of its categories: {has}.'
            )


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
    )


def refuse_nothing_to_learn(
    content: dict[str, Any], classes: Sequence[str] | None, path: Path, where: str
) -> None:
    """Refuses a file without one object that a detector would be trained on.

    Raises:
        DataError: Saying so.
    """
    if not content['annotations']:
        raise DataError(f'{where}: {path} has no objects, so that there is nothing to learn.')
    ids = {c['id'] for c in content['categories'] if classes is None or c['name'] in classes}
    sizes = {i['id']: (i['width'], i['height']) for i in content['images']}
    for entry in content['annotations']:
        x, y, w, h = entry['bbox']
        width, height = sizes.get(entry['image_id'], (0, 0))
        inside = min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)
        large = entry['area'] > 0 and w >= 1 and h >= 1
        counted = not entry.get('iscrowd') and not entry.get('ignore')
        if inside and large and counted and entry['category_id'] in ids:
            return
    raise DataError(
        f'{where}: {path} has {len(content["annotations"])} objects, but each is a crowd, has no '
        'area, lies outside its image or is of a class that is not listed, so that there is '
        'nothing to learn.'
    )
