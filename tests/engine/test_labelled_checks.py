"""Labelled images are generated in their own formats, and refused in a sentence when wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config

from densekd.engine.data_checks import check_data, check_scored, data_errors
from densekd.engine.generated_data import with_generated_data
from densekd.engine.generated_labelled import write_cifar, write_folders
from densekd.engine.preflight import check, first_batch
from densekd.engine.run import prepare, training_classes
from densekd.errors import ConfigError, DataError
from tests.helpers.classifiers import classifier

CLASSES = ('cat', 'dog', 'bird')
PACK = dict(type='densekd.PackImage')
LOAD = dict(type='densekd.LoadImage')
PHOTOGRAPHS = [LOAD, dict(type='densekd.RandomResizedCrop', size=224), PACK]


def config(
    dataset: dict[str, Any], classes: int = 3, val: Any = None, test: Any = None, **more: Any
) -> Any:
    """Returns a prepared config of plain training."""
    loader = dict(batch_size=64, num_workers=0, sampler=dict(type='DefaultSampler'))
    cfg = dict(
        default_scope='mmengine',
        model=classifier(classes=classes),
        train_dataloader=dict(**loader, dataset=dataset),
        **more,
    )
    for split, scored in (('val', val), ('test', test)):
        if scored is not None:
            cfg[f'{split}_dataloader'] = dict(**loader, dataset=scored)
    return prepare(Config(cfg))


def folders(root: Path, split: str = 'train', **more: Any) -> dict[str, Any]:
    own = dict(type='densekd.ImageFolder', data_root=str(root), split=split)
    return {**own, 'pipeline': [LOAD, PACK], **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ('train', 'val'):
        write_folders(tmp_path, CLASSES, 3, (32, 32), split)
    return tmp_path


GENERATED = {
    'cifar10': (dict(type='densekd.CIFAR10', fraction=0.1, pipeline=[PACK]), 10, (32, 32)),
    'cifar100': (dict(type='densekd.CIFAR100', split='test', pipeline=[PACK]), 100, (32, 32)),
    'imagenet': (folders(Path('x')), 1000, (32, 32)),
    'photographs': (folders(Path('x'), pipeline=PHOTOGRAPHS), 3, (224, 224)),
    'a list': (folders(Path('x'), ann_file='meta/val.txt'), 7, (32, 32)),
    'a fraction': (folders(Path('x'), fraction=0.25), 4, (32, 32)),
}  # fmt: skip


@pytest.mark.parametrize('name', GENERATED)
def test_it_is_generated_in_its_own_format(name: str, tmp_path: Path) -> None:
    dataset, classes, size = GENERATED[name]
    cfg = with_generated_data(config(dataset, classes), tmp_path, images=4)
    check_data(cfg)
    batch = first_batch(cfg)
    assert len(batch['inputs']) == 4  # of the 64, no more than were asked for
    assert batch['inputs'][0].shape == (3, *size)
    assert len({x.numpy().tobytes() for x in batch['inputs']}) > 1
    assert all(0 <= int(s.gt_label) < classes for s in batch['data_samples'])


def test_photographs_are_cut_small_where_that_is_asked(tmp_path: Path) -> None:
    cfg = config(folders(Path('x'), pipeline=PHOTOGRAPHS))
    small = with_generated_data(cfg, tmp_path, images=1, size=(96, 128))
    assert first_batch(small)['inputs'][0].shape == (3, 64, 64)
    assert cfg.train_dataloader.dataset.pipeline[1].size == 224


def test_a_small_check_makes_few_folders(tmp_path: Path) -> None:
    cfg = config(folders(Path('x'), pipeline=PHOTOGRAPHS), 1000)
    with_generated_data(cfg, tmp_path, images=1, size=(96, 128))
    (root,) = tmp_path.glob('*/train')
    assert len(list(root.iterdir())) == 8


def test_a_check_of_a_plain_config(folder: Path) -> None:
    report = check(config(folders(folder)), full_size=False)
    assert report.own['loss_cls'] > 0 and report.terms == []


def test_a_data_set_of_another_form_can_not_be_generated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='MNIST'):
        with_generated_data(config(dict(type='densekd.MNIST')), tmp_path)


def broken(root: Path) -> None:
    path = sorted((root / 'train' / 'dog').iterdir())[1]
    path.write_bytes(path.read_bytes()[:20])


def emptied(root: Path) -> None:
    for path in (root / 'train' / 'dog').iterdir():
        path.unlink()


def extra_class(root: Path) -> dict[str, Any]:
    write_folders(root, ('ant',), 1, (32, 32), 'val')
    return dict(val=folders(root, 'val', test_mode=True))


def listed(root: Path, labels: list[int]) -> dict[str, Any]:
    path = sorted((root / 'train' / 'dog').iterdir())[0].relative_to(root)
    (root / 'list.txt').write_text(''.join(f'{path} {label}\n' for label in labels))
    return folders(root, '', ann_file='list.txt')


def one_class(root: Path) -> dict[str, Any]:
    return dict(dataset=folders(root, metainfo=dict(classes=('cat',))))


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    'an image cut short': (broken, "train_dataloader: .*dog/.*: the image can't be read"),
    'an empty class': (emptied, "train_dataloader: .*train/dog: the folder of class 'dog' has no"),
    'a class that the head has not': (
        lambda root: dict(classes=2),
        r'train_dataloader: the data has 3 class\(es\), bird, cat, dog, and the head has 2. Set',
    ),
    'a head of more classes': (
        lambda root: dict(classes=1000),
        r'the data has 3 class\(es\), bird, cat, dog, and the head has 1000. Set .* to 3, or give',
    ),
    'a label that the head has no class for': (
        lambda root: dict(dataset=listed(root, [0, 1, 2, 3])),
        'train_dataloader: the data has the label 3, and the head has 3 classes: 0 to 2. Set head',
    ),
    'labels that count from 1': (
        lambda root: dict(dataset=listed(root, [1, 2, 3])),
        'the label 3, and the head has 3 classes: 0 to 2. Labels count from 0, and these',
    ),
    'a label that no trained class has': (
        lambda root: dict(val=listed(root, [0, 3])),
        "val_dataloader: the data has the label 3, .* The last class, 'dog', has the label 2.",
    ),
    'labels that shift between training and scoring': (
        extra_class,
        "val_dataloader: its 4 classes are not the 3 that are trained: 'ant' is in one of them",
    ),
    'one class in all': (one_class, r'train_dataloader: all images of .* are of one class'),
    'no such folder': (
        lambda root: dict(dataset=folders(root, 'trian')),
        "train_dataloader: .*trian: there is no such folder. Did you mean 'train'",
    ),
    'no such list': (
        lambda root: dict(dataset=folders(root, ann_file='val.txt')),
        'train_dataloader: there is no annotation file .*val.txt',
    ),
    'an argument that is misspelt': (
        lambda root: dict(dataset=folders(root, fractoin=0.5)),
        "train_dataloader.dataset: ImageFolder takes no 'fractoin'. Did you mean 'fraction'",
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_it_is_refused_in_a_sentence(name: str, folder: Path) -> None:
    change, sentence = REFUSED[name]
    check_data(config(folders(folder), val=folders(folder, 'val', test_mode=True)))
    parts = change(folder)
    parts = {'dataset': folders(folder), **(parts if isinstance(parts, dict) else {})}
    with pytest.raises((DataError, ConfigError), match=sentence) as caught:
        check_data(config(**parts))
    assert '\n' not in str(caught.value)


def test_what_is_scored_may_lack_a_class(folder: Path) -> None:
    for path in (folder / 'val' / 'dog').iterdir():
        path.unlink()
    val = folders(folder, 'val', test_mode=True)
    check_data(config(folders(folder), val=val))


def test_cifar_that_is_cut_short_is_refused_before_training(tmp_path: Path) -> None:
    path = write_cifar(tmp_path) / 'data_batch_1'
    path.write_bytes(path.read_bytes()[:100])
    dataset = dict(type='densekd.CIFAR10', data_root=str(tmp_path), pipeline=[PACK])
    with pytest.raises(DataError, match='train_dataloader: .*data_batch_1: it is cut short'):
        check_data(config(dataset, 10))


def test_a_large_folder_is_looked_into_here_and_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it only when training has met a file that can't be read."""
    monkeypatch.setattr('densekd.engine.labelled_checks.BYTES', 1)
    monkeypatch.setattr('densekd.engine.labelled_checks.SAMPLE', 2)
    broken(folder)
    cfg = config(folders(folder))
    check_data(cfg)
    with pytest.raises(DataError, match="can't be read"), data_errors(cfg):
        raise RuntimeError('a worker died')
    first = sorted((folder / 'train' / 'bird').iterdir())[0]
    first.write_bytes(np.zeros(3, np.uint8).tobytes())
    with pytest.raises(DataError, match='bird'):
        check_data(cfg)


def test_folders_name_the_classes_of_a_student(folder: Path) -> None:
    """So that a teacher that learnt them in another order is read in the student's."""
    cfg = config(folders(folder))
    assert training_classes(cfg) == ['bird', 'cat', 'dog']
    cfg.train_dataloader.dataset.metainfo = dict(classes=('dog', 'cat', 'bird'))
    assert training_classes(cfg) == ['dog', 'cat', 'bird']
    assert training_classes(config(listed(folder, [0, 1]))) is None
    gone = config(folders(folder / 'not there yet'))
    assert training_classes(gone) is None


@pytest.mark.parametrize(
    ('learnt', 'sentence'),
    [
        (('dog', 'cat', 'bird'), 'their order differs'),
        (('cat', 'dog'), "'bird' is in one of them only"),
        (None, None),
        (('bird', 'cat', 'dog'), None),
    ],
)
def test_a_checkpoint_is_scored_on_the_classes_that_it_learnt(
    folder: Path, learnt: Any, sentence: str | None
) -> None:
    cfg = config(folders(folder), test=folders(folder, 'val', test_mode=True))
    if sentence is None:
        check_scored(cfg, learnt)
        return
    with pytest.raises(DataError, match=f'test_dataloader: .* are trained: {sentence}'):
        check_scored(cfg, learnt)
