"""Data in Pascal VOC's form: a list of names, and for each an XML file, which is checked here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from densekd.errors import DataError, did_you_mean

VOC_TYPES = ('VOCDataset', 'XMLDataset')
SIDES = ('xmin', 'ymin', 'xmax', 'ymax')


def voc_folders(dataset: Mapping[str, Any], where: str) -> tuple[Path, Path]:
    """Returns the folders of a dataset config's annotations and images.

    Raises:
        DataError: If the config does not say where they are.
    """
    prefix = dataset.get('data_prefix') or {}
    if 'sub_data_root' not in prefix:
        raise DataError(
            f"{where}: data_prefix has no 'sub_data_root', the folder below data_root that holds "
            "Annotations and JPEGImages. Give data_prefix=dict(sub_data_root='VOC2007/')."
        )
    root = Path(dataset.get('data_root') or '.') / prefix['sub_data_root']
    return (
        root / (dataset.get('ann_subdir') or 'Annotations'),
        root / (dataset.get('img_subdir') or 'JPEGImages'),
    )


def check_voc(dataset: Mapping[str, Any], split: Path, where: str) -> dict[str, Path]:
    """Reads the XML files that a split lists, and refuses what mmdet would stumble over.

    Args:
        dataset: The dataset's config.
        split: The file with the images' names.
        where: The place in the config, for messages.

    Returns:
        Each class that objects are of, with a file in which it is met.

    Raises:
        DataError: Naming the file and what is wrong with it.
    """
    annotations, images = voc_folders(dataset, where)
    names = split.read_text().splitlines()
    if not names:
        raise DataError(f'{where}: {split} has no images.')
    for folder in (annotations, images):
        if not folder.is_dir():
            here = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
            hint = f' {did_you_mean(folder.name, here)}' if here else ''
            raise DataError(f'{where}: there is no folder {folder}.{hint}')
    there = {p.name for p in annotations.iterdir()}, {p.name for p in images.iterdir()}
    # Objects that are too small for the filter are set aside, and so are difficult ones.
    small = (dataset.get('filter_cfg') or {}).get('bbox_min_size')
    keeps_all = not small and not dataset.get('test_mode')
    objects: dict[str, Path] = {}
    for name in names:
        for file, folder, files in (
            (f'{name}.xml', annotations, there[0]),
            (f'{name}.jpg', images, there[1]),
        ):
            if file not in files:
                raise DataError(
                    f'{where}: {split} lists {name!r}, but {folder} has no {file}. '
                    f'{did_you_mean(file, files)}'
                )
        path = annotations / f'{name}.xml'
        for kind in _objects(path, where, keeps_all):
            objects.setdefault(kind, path)
    return objects


def _objects(path: Path, where: str, keeps_all: bool) -> list[str]:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: {path} can't be read as XML ({error}).") from None
    size = root.find('size')
    if size is not None:
        for side in ('width', 'height'):
            text = _text(size, side)
            if not text.isdecimal() or int(text) == 0:
                raise DataError(
                    f'{where}: {path} has a size whose {side} is {text!r}, where a whole number '
                    'of pixels is needed.'
                )
    kinds = []
    for entry in root.findall('object'):
        kind = entry.find('name')
        if kind is None or not kind.text:
            raise DataError(f'{where}: {path} has an object without a name.')
        kinds.append(kind.text)
        box = entry.find('bndbox')
        texts = [] if box is None else [_text(box, side) for side in SIDES]
        corners = [_number(text) for text in texts]
        if not corners or not all(math.isfinite(v) for v in corners):
            raise DataError(
                f'{where}: {path} has an object {kind.text!r} whose bndbox lacks one of the '
                f'numbers {", ".join(SIDES)}.'
            )
        x1, y1, x2, y2 = (int(v) for v in corners)
        difficult = _text(entry, 'difficult') or '0'
        if difficult not in ('0', '1'):
            raise DataError(
                f'{where}: {path} has an object {kind.text!r} whose difficult is {difficult!r}, '
                'where 0 or 1 is needed.'
            )
        if keeps_all and difficult == '0' and (x2 <= x1 or y2 <= y1):
            raise DataError(
                f'{where}: {path} has an object {kind.text!r} without an area: its box is '
                f'({x1}, {y1}, {x2}, {y2}). Mark it as difficult, or leave it out.'
            )
    return kinds


def _text(element: Element, name: str) -> str:
    return (element.findtext(name) or '').strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def refuse_class_that_is_not_listed(
    objects: Mapping[str, Path], classes: Sequence[str], where: str
) -> None:
    """Refuses a class that looks like a misspelt one: mmdet would take its objects for background.

    A list may leave classes out on purpose: then all that it has are met, none of them misspelt.

    Args:
        objects: The classes that were met, each with a file.
        classes: Those that the config lists.
        where: The place in the config, for messages.

    Raises:
        DataError: Naming the class, a file and the nearest listed class.
    """
    on_purpose = all(name in objects for name in classes)
    for kind, path in objects.items():
        if kind in classes:
            continue
        near = get_close_matches(kind.lower(), [c.lower() for c in classes], cutoff=0.8)
        if near or not on_purpose:
            raise DataError(
                f'{where}: {path} has an object {kind!r}, which is not among the classes of the '
                f'config and would be taken for background. {did_you_mean(kind, classes, 20)}'
            )
