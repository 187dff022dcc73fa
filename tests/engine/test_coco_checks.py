"""Data in COCO's form that is refused, in a sentence about the file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from densekd.engine.data_checks import check_data
from densekd.errors import DataError
from tests.engine.test_bad_data import Content, annotations
from tests.helpers.runs import digits_config


def without_areas(content: Content) -> None:
    for entry in content['annotations']:
        entry.pop('area')


def of_no_category(content: Content) -> None:
    content['annotations'][0].update(id=5, category_id=77)


def only_crowds(content: Content) -> None:
    for entry in content['annotations']:
        entry['iscrowd'] = 1


COCO: dict[str, tuple[Callable[[Content], None], str]] = {
    'no areas': (
        without_areas, "FILE is no COCO instances file: an entry of annotations lacks 'area'.",
    ),
    'a box of nan': (
        lambda c: c['annotations'][0].update(id=5, bbox=[1.0, 2.0, math.nan, 4.0]),
        'FILE: the annotation 5 has the bbox [1.0, 2.0, nan, 4.0], where four finite numbers are '
        'needed: x, y, width, height.',
    ),
    'a box of three': (
        lambda c: c['annotations'][0].update(id=5, bbox=[1, 2, 3]),
        'FILE: the annotation 5 has the bbox [1, 2, 3], where four finite numbers are needed: x, '
        'y, width, height.',
    ),
    'an unknown category': (
        of_no_category,
        'FILE: the annotation 5 has the category_id 77, which is none of its categories: …',
    ),
    'classes in another order': (
        lambda c: c['categories'].reverse(),
        "FILE has the category 'nine' where the classes of the config have 'zero'; mmdet numbers "
        'them in the order of the file, so that names would be mixed up. Give the classes in that '
        'order.',
    ),
    'a category twice': (
        lambda c: c['categories'].append({'id': 99, 'name': 'one'}),
        "FILE has the category 'one' more than once.",
    ),
    'crowds alone': (
        only_crowds,
        'FILE has … objects, but each is a crowd, has no area, lies outside its image or is of a '
        'class that is not listed, so that there is nothing to learn.',
    ),
}  # fmt: skip


def refusal(cfg: Any, folder: Path) -> str:
    """Returns what the check of the data says, the folder left out."""
    with pytest.raises(DataError) as caught:
        check_data(cfg)
    assert '\n' not in str(caught.value)
    return str(caught.value).replace(f'{folder}/', '').replace(str(folder), '')


def says(said: str, sentence: str) -> bool:
    """Whether a message is the sentence, in which … stands for anything."""
    return bool(re.fullmatch('.*'.join(re.escape(part) for part in sentence.split('…')), said))


@pytest.mark.parametrize('name', COCO)
def test_coco_data_is_refused(name: str, digits: Path, tmp_path: Path) -> None:
    """In a sentence about the file."""
    change, sentence = COCO[name]
    content = annotations(digits)
    change(content)
    (tmp_path / 'FILE').write_text(json.dumps(content))
    cfg = digits_config(digits, tmp_path / 'work', distillers=None)
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'FILE')
    said = refusal(cfg, tmp_path)
    assert says(said, f'train_dataloader: {sentence}'), said


def test_classes_that_the_config_does_not_name_are_cocos(digits: Path, tmp_path: Path) -> None:
    """Left to itself, mmdet would train on none of the objects."""
    cfg = digits_config(digits, tmp_path / 'work', distillers=None)
    cfg.train_dataloader.dataset.pop('metainfo')
    assert refusal(cfg, digits) == (
        "train_dataloader: annotations/instances_train.json has no category 'person', and the "
        'config names no classes of its own. Give the dataset metainfo=dict(classes=(…,)). It has: '
        'eight, five, four, nine, one, seven, six, three, two, zero.'
    )
