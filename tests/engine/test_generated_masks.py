"""Generated images and masks stand where a config's own would, and mmseg's classes read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import ConfigDict
from PIL import Image

from densekd.engine import load_config
from densekd.engine.data_checks import check_data
from densekd.engine.generated_data import with_generated_data
from densekd.engine.mask_checks import mask_classes
from densekd.engine.preflight import first_batch
from densekd.engine.run import training_classes
from densekd.errors import ConfigError, DataError

SMALL = (64, 96)
BASES = 'mmseg::_base_/datasets/'


def files_of(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob('*') if p.is_file()}


def generated(base: str, folder: Path, images: int = 2) -> Any:
    """Returns a data set's config of mmseg on small generated data, every split checked."""
    cfg = load_config(f'{BASES}{base}.py')
    cfg.default_scope = 'mmseg'
    cfg = with_generated_data(cfg, folder, images, SMALL)
    check_data(cfg)
    return cfg


def labels(cfg: Any) -> set[int]:
    """Returns the labels of a first batch; its images must be small."""
    batch = first_batch(cfg)
    found: set[int] = set()
    for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
        assert max(image.shape[1:]) <= max(SMALL)
        assert sample.gt_sem_seg.data.shape[1:] == image.shape[1:]
        found |= set(sample.gt_sem_seg.data.unique().tolist())
    return found


def test_cityscapes_lies_in_folders_of_cities(tmp_path: Path) -> None:
    cfg = generated('cityscapes', tmp_path)
    assert files_of(tmp_path / 'train_dataloader_0') == {
        f'{place}/train/aachen/aachen_00000{i}_000019_{end}.png'
        for i in (0, 1)
        for place, end in (('leftImg8bit', 'leftImg8bit'), ('gtFine', 'gtFine_labelTrainIds'))
    }
    assert files_of(tmp_path / 'val_dataloader_1') and labels(cfg) <= {*range(19), 255}
    assert len(training_classes(cfg) or []) == 19


@pytest.mark.parametrize('base', ['pascal_voc12', 'pascal_voc12_aug'])
def test_voc_has_lists_and_palettes(base: str, tmp_path: Path) -> None:
    cfg = generated(base, tmp_path)
    parts = ['SegmentationClass'] + ['SegmentationClassAug'] * base.endswith('aug')
    for i, (masks, split) in enumerate(zip(parts, ('train', 'aug'), strict=False)):
        root = tmp_path / f'train_dataloader_{i}'
        assert files_of(root) == {
            f'ImageSets/Segmentation/{split}.txt',
            *(f'JPEGImages/2007_00000{n}.jpg' for n in (0, 1)),
            *(f'{masks}/2007_00000{n}.png' for n in (0, 1)),
        }
        assert Image.open(root / masks / '2007_000000.png').mode == 'P'
    found = labels(cfg)
    assert found <= {*range(21), 255} and len(found) > 1


def test_classes_that_count_from_1_are_written_so(tmp_path: Path) -> None:
    cfg = generated('ade20k', tmp_path, images=4)
    values = [np.unique(Image.open(p)) for p in (tmp_path / 'train_dataloader_0').rglob('*.png')]
    assert min(v.min() for v in values) == 0 and max(v.max() for v in values) <= 150
    assert labels(cfg) <= {*range(150), 255}


def folder_config(**more: Any) -> Any:
    """Returns a plain folder of images and masks, as a user has it."""
    dataset = dict(
        type='BaseSegDataset',
        data_root='nowhere/',
        data_prefix=dict(img_path='images/train', seg_map_path='masks/train'),
        metainfo=dict(classes=('road', 'car')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='RandomCrop', crop_size=(512, 512)),
            dict(type='Pad', size=(700, 512)),
            dict(type='PackSegInputs'),
        ],
    )
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        dataset={**dataset, **more},
    )
    return ConfigDict(default_scope='mmseg', train_dataloader=loader)


def test_a_plain_folder(tmp_path: Path) -> None:
    cfg = with_generated_data(folder_config(img_suffix='.png'), tmp_path, 2, SMALL)
    check_data(cfg)
    assert files_of(tmp_path / 'train_dataloader_0') == {
        f'{place}/train/00000{i}.png' for i in (0, 1) for place in ('images', 'masks')
    }
    assert labels(cfg) <= {0, 1, 255}


def test_folders_of_this_machine_are_left_alone(tmp_path: Path) -> None:
    own = tmp_path / 'own'
    cfg = folder_config(
        data_prefix=dict(img_path=str(own / 'a'), seg_map_path=str(own / 'b')),
        ann_file=str(own / 'train.txt'),
    )
    cfg = with_generated_data(cfg, tmp_path / 'new', 1, SMALL)
    check_data(cfg)
    assert not own.exists() and labels(cfg)


def test_some_of_the_classes_of_a_type(tmp_path: Path) -> None:
    chosen = ('car', 'road')
    cfg = folder_config(type='CityscapesDataset', metainfo=dict(classes=chosen))
    cfg = with_generated_data(cfg, tmp_path, 2, SMALL)
    check_data(cfg)
    trained, counted = mask_classes(cfg.train_dataloader.dataset)
    assert trained == list(chosen) and len(counted) == 19
    assert labels(cfg) == {0, 1, 255}


def test_what_says_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'train_dataloader: the data set names no classes'):
        with_generated_data(folder_config(metainfo={}), tmp_path)
    with pytest.raises(DataError, match="data_prefix has no 'seg_map_path'"):
        with_generated_data(folder_config(data_prefix=dict(img_path='a')), tmp_path)
    with pytest.raises(ConfigError, match='LEVIRCDDataset.*BaseSegDataset and what is made'):
        with_generated_data(folder_config(type='LEVIRCDDataset'), tmp_path)
