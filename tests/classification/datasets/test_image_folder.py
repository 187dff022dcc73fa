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


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_a_list_may_begin_with_a_mark(encoding: str, tmp_path: Path) -> None:
    (tmp_path / 'val.txt').write_text('Kätzchen.jpg 0\nb.jpg 1\n', encoding=encoding)
    (tmp_path / 'val').mkdir()
    data = ImageFolder(str(tmp_path), split='val', ann_file='val.txt')
    assert Path(data.get_data_info(0)['img_path']).name == 'Kätzchen.jpg'


@pytest.mark.parametrize(
    ('link', 'leads_to'),
    [
        ('loop', '..'),
        ('loop', '.'),
        ('loop', '../..'),
        ('more/again', '..'),
        ('more/again', '../..'),
    ],
)
def test_a_link_that_leads_up_multiplies_nothing(folder: Path, link: str, leads_to: str) -> None:
    (folder / 'train' / 'cat' / 'more').mkdir()
    (folder / 'train' / 'cat' / link).symlink_to(leads_to)
    paths = files_of(ImageFolder(str(folder), split='train'))
    assert len(paths) == 12 and not any('loop' in path or 'again' in path for path in paths)


def test_a_link_among_the_classes_that_leads_up_is_no_class(folder: Path) -> None:
    (folder / 'train' / 'all').symlink_to('..')
    assert ImageFolder(str(folder), split='train').metainfo['classes'] == ('bird', 'cat', 'dog')


def test_links_are_followed_once(folder: Path) -> None:
    elsewhere = folder / 'elsewhere'
    (folder / 'val' / 'cat').rename(elsewhere)
    (elsewhere / 'back').symlink_to(folder / 'train')  # up again, along the way that was taken
    for name in ('first', 'second'):
        (folder / 'train' / 'cat' / name).symlink_to(elsewhere)
    (folder / 'train' / 'owl').symlink_to(elsewhere)  # once more, for another class
    paths = files_of(ImageFolder(str(folder), split='train'))
    names = [Path(path).relative_to(folder / 'train').parts[:-1] for path in paths]
    assert names.count(('cat', 'first')) == 4 and names.count(('owl',)) == 4
    assert len(paths) == 4 + 4 + 4 + 4 + 4


def files_of(data: ImageFolder) -> list[str]:
    return [data.get_data_info(i)['img_path'] for i in range(len(data))]


def test_a_number_or_a_list_of_images_is_kept(folder: Path) -> None:
    every = files_of(ImageFolder(str(folder), split='train'))
    for indices, wanted in ((5, every[:5]), (-2, every[-2:]), ([0, -1], [every[0], every[-1]])):
        kept = ImageFolder(str(folder), split='train', indices=indices)
        assert files_of(kept) == wanted


SETTINGS: list[tuple[dict[str, Any], str]] = [
    *(
        (dict(fraction=value), 'dataset: fraction is a number above 0 and up to 1, not ')
        for value in (True, 0, 1.5, '0.5', None)
    ),
    *(
        (dict(fraction_seed=value), 'dataset: fraction_seed is a whole number from 0 on, not ')
        for value in (-1, 0.5, '0', True)
    ),
    *(
        (dict(indices=value), 'dataset.indices: how many images to keep, a whole number that is')
        for value in (0, [], (), True, 2.0, '3', [0.5], [True])
    ),
    (dict(metainfo=dict(classes='cat')), r"list of names, such as \['cat'\], not 'cat'"),
    (dict(metainfo=dict(classes={'cat', 'dog'})), 'classes is a list of names, not {'),
    (dict(metainfo=dict(classes=('cat', 'dog', 'cat'))), "classes names 'cat' twice"),
]


@pytest.mark.parametrize('lazy', [True, False])
@pytest.mark.parametrize(('arguments', 'sentence'), SETTINGS)
def test_what_is_wrong_of_itself_is_refused_before_it_is_read(
    folder: Path, arguments: dict[str, Any], sentence: str, lazy: bool
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ImageFolder(str(folder), split='train', lazy_init=lazy, **arguments)


@pytest.mark.parametrize('index', [12, -13])
def test_an_image_that_is_not_there_is_a_sentence(folder: Path, index: int) -> None:
    with pytest.raises(ConfigError, match=f'there is no image {index}; there are 12, which count'):
        ImageFolder(str(folder), split='train', indices=[0, index])


def test_classes_may_be_named_in_a_file(folder: Path) -> None:
    (folder / 'classes.txt').write_text('dog\ncat\n')
    named = dict(classes=str(folder / 'classes.txt'))
    assert labels(ImageFolder(str(folder), split='train', metainfo=named)) == {'dog': 0, 'cat': 1}


def empty(root: Path) -> None:
    for path in (root / 'train' / 'dog').iterdir():
        path.unlink()


def latin(root: Path) -> dict[str, Any]:
    (root / 'val.txt').write_bytes('Kätzchen.jpg 0\n'.encode('latin-1'))
    return dict(ann_file='val.txt')


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
    'a list in another encoding': (
        latin, r'val.txt: the list is no text in UTF-8 \(invalid continuation byte at byte 1\)',
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
