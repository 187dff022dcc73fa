"""Says in a sentence what is wrong with a data set, before a training's first step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densekd.errors import DataError, DenseKDError, did_you_mean


def innermost(dataset: Any) -> list[Any]:
    """Returns the dataset configs inside wrappers that repeat, concatenate or mix."""
    if not isinstance(dataset, Mapping):
        return []
    if isinstance(dataset.get('dataset'), Mapping):
        return innermost(dataset['dataset'])
    if isinstance(dataset.get('datasets'), (list, tuple)):
        return [inner for d in dataset['datasets'] for inner in innermost(d)]
    return [dataset]


def datasets(
    cfg: Any, splits: tuple[str, ...] = ('train', 'val', 'test')
) -> Iterator[tuple[str, Any]]:
    """Yields each dataset config with the key of its dataloader."""
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if isinstance(loader, Mapping):
            for dataset in innermost(loader.get('dataset')):
                yield f'{split}_dataloader', dataset


def annotation_path(dataset: Mapping[str, Any]) -> Path | None:
    """Returns the annotation file of a dataset config, or None where it names none."""
    name = dataset.get('ann_file')
    if not name:
        return None
    path = Path(name)
    return path if path.is_absolute() else Path(dataset.get('data_root') or '.') / path


def image_folder(dataset: Mapping[str, Any]) -> Path:
    """Returns the folder of a dataset config's images."""
    prefix = dataset.get('data_prefix') or {}
    return Path(dataset.get('data_root') or '.') / (
        prefix.get('img') or prefix.get('img_path') or ''
    )


def check_data(cfg: Any) -> None:
    """Refuses data that is not there, or that is no COCO where COCO is meant.

    Raises:
        DataError: Naming the file and what it lacks.
    """
    for key, dataset in datasets(cfg, ('train', 'val')):
        path = annotation_path(dataset)
        if path is None:
            continue
        if not path.is_file():
            here = [p.name for p in path.parent.glob('*')] if path.parent.is_dir() else []
            hint = did_you_mean(path.name, here) if here else f'There is no folder {path.parent}.'
            raise DataError(f'{key}: there is no annotation file {path}. {hint}')
        if str(dataset.get('type', '')).endswith('CocoDataset') and path.stat().st_size < 2**26:
            content = check_coco(path, _classes(dataset), image_folder(dataset), key)
            if key == 'train_dataloader' and not content['annotations']:
                raise DataError(f'{key}: {path} has no objects, so that there is nothing to learn.')


def _classes(dataset: Mapping[str, Any]) -> list[str] | None:
    classes = (dataset.get('metainfo') or {}).get('classes')
    return [classes] if isinstance(classes, str) else (list(classes) if classes else None)


def check_coco(path: Path, classes: list[str] | None, images: Path, where: str) -> dict[str, Any]:
    """Reads a COCO instances file for these classes, and refuses what is none.

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
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content.get(key), list):
            has = ', '.join(sorted(content)[:8]) or 'nothing'
            raise DataError(
                f'{where}: {path} is no COCO file: it has no list of {key}. It has: {has}.'
            )
    for key, fields in (
        ('images', ('id', 'file_name', 'width', 'height')),
        ('annotations', ('id', 'image_id', 'category_id', 'bbox')),
        ('categories', ('id', 'name')),
    ):
        for entry in content[key]:
            lacking = [f for f in fields if f not in entry]
            if lacking:
                raise DataError(
                    f'{where}: {path} is no COCO instances file: an entry of {key} lacks '
                    f'{lacking[0]!r}.'
                )
    names = [c['name'] for c in content['categories']]
    missing = [c for c in classes or [] if c not in names]
    if missing:
        raise DataError(
            f'{where}: {path} has no category {missing[0]!r}, which the config lists among its '
            f'classes. {did_you_mean(missing[0], names)}'
        )
    if not content['images']:
        raise DataError(f'{where}: {path} has no images.')
    if not (images / content['images'][0]['file_name']).is_file():
        raise DataError(
            f'{where}: the image {content["images"][0]["file_name"]} of {path} is not in {images}.'
        )
    return content


@contextmanager
def data_errors(cfg: Any) -> Iterator[None]:
    """Turns an error from inside a dataset into a sentence about the file, where one is at fault.

    Raises:
        DataError: If the data is found to be wrong.
    """
    try:
        yield
    except DenseKDError:
        raise
    except (KeyError, FileNotFoundError, AssertionError, IndexError) as error:
        check_data(cfg)  # raises if the data is the reason
        raise error
