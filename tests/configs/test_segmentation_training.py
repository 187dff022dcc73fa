"""The segmentation configs train on data in the form of their own, by iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from densekd.engine.data_checks import check_data, datasets
from densekd.engine.generated_data import with_generated_data
from densekd.engine.run import prepare, train
from densekd.errors import CheckpointError
from tests.configs.test_coco_training import offline  # noqa: F401  a fixture
from tests.configs.test_configs import MASKS, ROOT, TEMPLATES, stem

VOC = next(name for name in MASKS if '_voc12_' in name)
CITYSCAPES = next(name for name in MASKS if '_cityscapes_' in name)
PRETRAINED = 'open-mmlab://resnet18_v1c'


def short_run(name: str, folder: Path, size: tuple[int, int] | None, **options: Any) -> Any:
    """Returns a prepared config of two iterations on generated images, nothing else changed."""
    cfg = prepare(
        str(ROOT / name),
        folder / 'work',
        {
            'model.student.pretrained': None,
            'model.teacher.checkpoint': None,
            'model.teacher.untrained': True,
            'train_cfg.max_iters': 2,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'val_dataloader': None,
            'val_cfg': None,
            'val_evaluator': None,
            'default_hooks.logger.interval': 1,
            'log_level': 'WARNING',
            **options,
        },
    )
    return with_generated_data(cfg, folder / 'data', 3, size)


def refuse_unlike_student(checkpoint: Path) -> None:
    """The file must hold the student alone, finite, and what distillation needs under one key."""
    content = torch.load(checkpoint, weights_only=False)
    weights = content['state_dict']
    assert {k.split('.')[0] for k in weights} == {'backbone', 'decode_head', 'auxiliary_head'}
    assert all(torch.isfinite(v).all() for v in weights.values() if v.is_floating_point())
    assert content['densekd']['iteration'] == content['meta']['iter'] - 1
    assert content['meta']['iter'] == 2


@pytest.mark.parametrize('name', [VOC, CITYSCAPES, TEMPLATES[1]], ids=['voc', 'cities', 'own'])
def test_it_trains_on_small_images(name: str, tmp_path: Path) -> None:
    """R-18 by R-101, two iterations of two images; VOC's on two data sets."""
    cfg = short_run(name, tmp_path, (64, 96))
    kinds = {d.type for _, d in datasets(cfg)}
    assert kinds == {
        VOC: {'PascalVOCDataset'}, CITYSCAPES: {'CityscapesDataset'},
    }.get(name, {'BaseSegDataset'})  # fmt: skip
    assert len(list(datasets(cfg, ('train',)))) == (2 if name == VOC else 1)
    check_data(cfg)
    refuse_unlike_student(train(cfg, preflight=False))


@pytest.mark.slow
@pytest.mark.parametrize('name', MASKS, ids=stem)
def test_it_trains_at_full_size(name: str, tmp_path: Path) -> None:
    """Photographs of the data's size, cropped as the config says, with the proof of the wiring."""
    refuse_unlike_student(train(short_run(name, tmp_path, None)))


def test_initial_weights_that_no_host_gives_are_a_sentence(
    tmp_path: Path,
    offline: Path,  # noqa: F811
) -> None:
    """The student's ImageNet weights are asked for before the first step, by their file's name."""
    cfg = short_run(CITYSCAPES, tmp_path, (64, 96), **{'model.student.pretrained': PRETRAINED})
    with pytest.raises(CheckpointError) as caught:
        train(cfg, preflight=False)
    said = str(caught.value)
    assert said.startswith(
        "model.student.pretrained: the student's initial weights can't be had: "
        f'{PRETRAINED}: resnet18_v1c-b5776b93.pth: it could not be fetched ('
    )
    assert said.endswith('--cfg-options model.student.pretrained=None')
    assert '\n' not in said
