"""The classification configs train on data in the form of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from densekd.engine.data_checks import check_data, datasets
from densekd.engine.generated_data import with_generated_data
from densekd.engine.run import evaluate, is_distillation, prepare, train
from densekd.methods.catalogue import catalogue
from densekd.wrappers.config import load_config
from tests.configs.test_configs import ALL, DISTILLED, ROOT, stem

ALONE = [name for name in ALL if name.startswith('configs/classification/')]
PAIR = 'resnet8w8_8e_digits_teacher_resnet20w16'
DIGITS = f'configs/kd/kd/classification/resnet/kd_{PAIR}_head_mimic.py'
TRAINED = {
    'configs/classification/resnet20_200e_cifar10.py': (8, 32),
    'configs/classification/wrn16_2_200e_cifar100.py': (8, 32),
    'configs/classification/resnet18_100e_imagenet.py': (4, 64),
    DIGITS: (8, 32),
}


def short_run(name: str, folder: Path, **options: Any) -> Any:
    """Returns a prepared config of one epoch on generated images, nothing else changed."""
    cfg = prepare(
        str(ROOT / name),
        folder / 'work',
        {
            'train_cfg.max_epochs': 1,
            **{
                f'{split}_dataloader.{key}': value
                for split in ('train', 'val', 'test')
                for key, value in {'num_workers': 0, 'persistent_workers': False}.items()
            },
            'log_level': 'WARNING',
            **options,
        },
    )
    if is_distillation(cfg):
        cfg.model.teacher.pop('checkpoint')
        cfg.model.teacher.untrained = True
    return with_generated_data(cfg, folder / 'data', 8, (96, 128))


@pytest.mark.parametrize('name', TRAINED, ids=stem)
def test_it_trains_and_is_scored(name: str, tmp_path: Path) -> None:
    more = {'train_dataloader.dataset.indices': 8, 'val_dataloader.dataset.indices': 8}
    cfg = short_run(name, tmp_path, **more)
    if 'imagenet' in name:
        cfg.val_dataloader.dataset.pipeline[1].size = 64
        cfg.model.head.num_classes = 8  # of a thousand, as many folders as small data has
    check_data(cfg)
    last = train(cfg, preflight=False)
    weights = torch.load(last, weights_only=False)['state_dict']
    assert {k.split('.')[0] for k in weights} == {'backbone', 'head'}
    assert all(torch.isfinite(v).all() for v in weights.values() if v.is_floating_point())
    scores = json.loads((last.parent / 'scores.json').read_text())
    assert {'accuracy/top1', 'accuracy/top5'} <= scores['best'].keys()
    cfg.test_dataloader.dataset.indices = 8
    if 'imagenet' in name:
        cfg.test_dataloader.dataset.pipeline[1].size = 64
    assert evaluate(cfg, last).keys() == {'accuracy/top1', 'accuracy/top5'}


@pytest.mark.parametrize('name', ALONE, ids=stem)
def test_it_is_scored_on_all_of_the_test_data(name: str) -> None:
    """Augmentation is for training alone, and a part of the data may be asked for."""
    cfg = load_config(str(ROOT / name))
    for key, dataset in datasets(cfg):
        drawn = {'densekd.PadCrop', 'densekd.Flip', 'densekd.RandomResizedCrop'}
        random = drawn & {step.type for step in dataset.pipeline}
        assert bool(random) == (key == 'train_dataloader')
        assert ('fraction' in dataset) == (key == 'train_dataloader')
        assert bool(dataset.get('test_mode')) == (key != 'train_dataloader')
    classes = {'cifar10': 10, 'cifar100': 100, 'imagenet': 1000}[name[:-3].rpartition('_')[2]]
    assert cfg.model.head.num_classes == classes


def test_the_teacher_on_digits_sees_what_the_student_sees() -> None:
    cfg = prepare(str(ROOT / DIGITS))
    teacher = load_config(cfg.model.teacher.model)
    assert teacher.model.data_preprocessor == cfg.model.student.data_preprocessor
    assert teacher.train_dataloader == cfg.train_dataloader
    assert cfg.model.classes == list(cfg.classes)
    last = f'work_dirs/{Path(cfg.model.teacher.model).stem}/epoch_{teacher.max_epochs}.pth'
    assert cfg.model.teacher.checkpoint == last


@pytest.mark.parametrize('name', [m.name for m in catalogue() if 'classification' in m.tasks])
def test_each_method_of_classifiers_has_a_config_on_digits(name: str) -> None:
    """The digits benchmark runs them all, with the same student and mostly the same teacher."""
    folder = f'configs/kd/{name}/classification/resnet/{name}_resnet8w8_'
    assert [n for n in DISTILLED if n.startswith(folder) and '_digits_teacher_' in n]


@pytest.mark.parametrize('name', [n for n in DISTILLED if '/classification/' in n], ids=stem)
def test_the_teacher_has_a_config_on_the_same_data(name: str) -> None:
    """It is trained by a command that the docstring gives, for as long as its checkpoint says."""
    cfg = prepare(str(ROOT / name))
    given = cfg.model.get('teacher') or []
    for teacher in given if isinstance(given, list) else [given]:
        if not isinstance(teacher.get('model'), str):
            continue  # it is what a round before has trained
        own = load_config(teacher.model)
        assert own.train_dataloader.dataset == cfg.train_dataloader.dataset
        assert own.model.data_preprocessor == cfg.model.student.data_preprocessor
        path = Path(teacher.model).resolve().relative_to(ROOT)
        if '://' not in teacher.checkpoint:
            assert f'densekd train {path}' in (ROOT / name).read_text()
            assert teacher.checkpoint.endswith(f'/epoch_{own.max_epochs}.pth')


def test_the_attention_decays_beside_soft_labels_alone() -> None:
    """Its weight is 0 when the training ends; by itself it stays as it is."""
    folder = 'configs/kd/at/classification/resnet/at_resnet20_200e_cifar10_teacher_resnet56'
    mixed = prepare(str(ROOT / f'{folder}_kd_backbone_mimic.py'))
    schedules = [d.get('schedule') for d in mixed.model.distillers]
    assert schedules == [dict(by='epoch', decay='linear', end=mixed.max_epochs)] * 3 + [None]
    assert mixed.model.scale_student_loss == dict(loss_cls=0.1)
    alone = prepare(str(ROOT / f'{folder}_max_backbone_mimic.py'))
    assert [d.get('schedule') for d in alone.model.distillers] == [None] * 3
