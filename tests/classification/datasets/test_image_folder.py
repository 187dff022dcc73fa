"""Folders of images, one a class, or with a list of labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from densekd.classification.datasets import ImageFolder
from densekd.engine.generated_labelled import write_folders
from densekd.errors import ConfigError, DataError

CLASSES = ('cat', 'dog', 'bird')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ('train', 'val'):
        write_folders(tmp_path, CLASSES, 4, (20, 30), split)
    return tmp_path


def labels(data: ImageFolder) -> dict[str, int]:
    infos = [data.get_data_info(i) for i in range(len(data))]
    return {Path(info['img_path']).parent.name: info['gt_label'] for info in infos}


def test_a_part_may_come_several_times_in_an_epoch(folder: Path) -> None:
    part = ImageFolder(str(folder), split='train', fraction=0.5)
    often = ImageFolder(str(folder), split='train', fraction=0.5, repeat=3)
    paths = [[d.get_data_info(i)['img_path'] for i in range(len(d))] for d in (part, often)]
    assert len(part) == 6 and paths[1] == paths[0] * 3
    twice = ImageFolder(str(folder), split='train', repeat=2)
    assert len(twice) == 24


@pytest.mark.parametrize('repeat', [0, 1.5, True, '2'])
def test_what_is_no_number_of_times_is_a_sentence(folder: Path, repeat: Any) -> None:
    with pytest.raises(ConfigError, match='dataset.repeat: a whole number from 1 on, not '):
        ImageFolder(str(folder), split='train', repeat=repeat)


def test_classes_are_the_folders(folder: Path) -> None:
    data = ImageFolder(str(folder), split='train')
    assert len(data) == 12
    assert labels(data) == {'bird': 0, 'cat': 1, 'dog': 2}
    assert data.metainfo['classes'] == ('bird', 'cat', 'dog')
    # The classes may lie in the root itself, and images in folders of their own.
    (folder / 'train' / 'dog' / 'more').mkdir()
    image = next((folder / 'train' / 'dog').glob('*.JPEG'))
    image.rename(folder / 'train' / 'dog' / 'more' / 'a.PNG')
    (folder / 'train' / 'dog' / '.hidden.png').write_bytes(b'')
    (folder / 'train' / 'dog' / 'notes.txt').write_text('')
    assert len(ImageFolder(str(folder / 'train'))) == 12


def test_classes_may_be_named(folder: Path) -> None:
    chosen = ImageFolder(str(folder), split='train', metainfo=dict(classes=('dog', 'cat')))
    assert labels(chosen) == {'dog': 0, 'cat': 1} and len(chosen) == 8
    assert len(ImageFolder(str(folder), split='train', fraction=0.5)) == 6


def test_a_list_says_the_labels(tmp_path: Path) -> None:
    write_folders(tmp_path, CLASSES, 2, (20, 30), 'val', 'meta/val.txt')
    data = ImageFolder(str(tmp_path), split='val', ann_file='meta/val.txt')
    assert [data.get_data_info(i)['gt_label'] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert all(Path(data.get_data_info(i)['img_path']).is_file() for i in range(6))


def empty(root: Path) -> None:
    for path in (root / 'train' / 'dog').iterdir():
        path.unlink()


def listed(text: str) -> Callable[[Path], dict[str, Any]]:
    def change(root: Path) -> dict[str, Any]:
        (root / 'val.txt').write_text(text)
        return dict(ann_file='val.txt', metainfo=dict(classes=CLASSES))

    return change


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    'an empty class': (empty, r"train/dog: the folder of class 'dog' has no images \(.jpg, .jpeg"),
    'no such folder': (
        lambda root: (root / 'train').rename(root / 'training'),
        "train: there is no such folder. Did you mean 'training'",
    ),
    'no classes': (lambda root: dict(split='train/dog'), 'train/dog: it has no folders'),
    'a class that has no folder': (
        lambda root: dict(metainfo=dict(classes=('cat', 'dogs'))),
        r"train: there is no folder of class 'dogs'. Did you mean 'dog'",
    ),
    'no list': (lambda root: dict(ann_file='v.txt'), 'v.txt: there is no such list of images'),
    'a line without a label': (
        listed('a.jpg 0\nb.jpg\n'), r"val.txt:2: a line is a file and the number .* not 'b.jpg'",
    ),
    'a label out of range': (
        listed('a.jpg 0\nb.jpg 3\n'), 'b.jpg: the label is 3, and there are 3 classes: 0 to 2',
    ),
    'an empty list': (listed('\n'), 'there are no images'),
    'a fraction that leaves a class empty': (
        lambda root: dict(fraction=0.1), "a fraction of 0.1 leaves no image of class 'bird', which",
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_it_is_refused_in_a_sentence(name: str, folder: Path) -> None:
    change, sentence = REFUSED[name]
    more = change(folder)
    arguments = {'split': 'train', **(more if isinstance(more, dict) else {})}
    with pytest.raises(DataError, match=sentence):
        ImageFolder(str(folder), **arguments)
