"""Generated data stands where a config's own would, inside whatever wraps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from mmengine.config import ConfigDict

from densekd.engine.data_checks import check_data, nest
from densekd.engine.generated_data import with_generated_data, write_voc
from densekd.engine.preflight import first_batch
from densekd.errors import ConfigError

PACK = dict(type='PackDetInputs')
LOAD = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
]


def coco(pipeline: list[Any], **more: Any) -> dict[str, Any]:
    """Returns a data set in COCO's form that is nowhere."""
    return dict(
        type='CocoDataset',
        data_root='nowhere/',
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=pipeline,
        **more,
    )


def voc(pipeline: list[Any]) -> dict[str, Any]:
    """Returns a data set in Pascal VOC's form, of its own classes and folders."""
    return dict(
        type='XMLDataset',
        data_root='nowhere/',
        ann_file='mine/lists/train.txt',
        data_prefix=dict(sub_data_root='mine/'),
        img_subdir='pictures',
        ann_subdir='xml',
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=pipeline,
    )


def config(dataset: dict[str, Any]) -> Any:
    """Returns as much of a config as a first batch needs."""
    loader = dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset,
    )
    return ConfigDict(default_scope='mmdet', train_dataloader=loader)


MIX = [
    dict(type='Mosaic', img_scale=(64, 64), pad_val=114.0),
    dict(type='Resize', scale=(640, 640), keep_ratio=True),
    PACK,
]
WRAPPED: dict[str, dict[str, Any]] = {
    'bare': coco([*LOAD, PACK]),
    'RepeatDataset': dict(type='RepeatDataset', times=2, dataset=coco([*LOAD, PACK])),
    'ClassBalancedDataset': dict(
        type='ClassBalancedDataset', oversample_thr=0.5, dataset=coco([*LOAD, PACK])
    ),
    'ConcatDataset': dict(
        type='ConcatDataset', datasets=[coco([*LOAD, PACK]), coco([*LOAD, PACK])]
    ),
    'MultiImageMixDataset': dict(type='MultiImageMixDataset', dataset=coco(LOAD), pipeline=MIX),
    'two of them': dict(
        type='RepeatDataset',
        times=3,
        dataset=dict(type='ConcatDataset', datasets=[voc([*LOAD, PACK]), voc([*LOAD, PACK])]),
    ),
}


@pytest.mark.parametrize('name', WRAPPED)
def test_it_is_read_through_wrappers(name: str, tmp_path: Path) -> None:
    """The wrapper stays, and what is inside reads, small, what was written for it."""
    cfg = with_generated_data(config(WRAPPED[name]), tmp_path, images=3, size=(64, 96))
    assert [d.type for d in nest(cfg.train_dataloader.dataset)] == [
        d['type'] for d in nest(WRAPPED[name])
    ]
    check_data(cfg)
    batch = first_batch(cfg)
    for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
        assert max(image.shape[1:]) <= 128
        assert set(sample.gt_instances.labels.tolist()) <= {0, 1}
    assert any(len(sample.gt_instances) for sample in batch['data_samples'])


def test_the_own_folders_of_a_config_are_kept(tmp_path: Path) -> None:
    """They are a part of what is checked."""
    with_generated_data(config(voc([*LOAD, PACK])), tmp_path, images=2, size=(64, 96))
    mine = tmp_path / 'train_dataloader_0' / 'VOCdevkit' / 'mine'
    assert {str(p.relative_to(mine)) for p in mine.rglob('*') if p.is_file()} == {
        'lists/train.txt', 'pictures/000001.jpg', 'pictures/000002.jpg', 'xml/000001.xml',
        'xml/000002.xml',
    }  # fmt: skip


def test_folders_of_this_machine_are_left_alone(tmp_path: Path) -> None:
    """Absolute paths, which would lie outside the folder, give way to the usual ones."""
    dataset = {**voc([*LOAD, PACK]), 'ann_file': str(tmp_path / 'own' / 'train.txt')}
    dataset['data_prefix'] = dict(sub_data_root=str(tmp_path / 'own'))
    cfg = with_generated_data(config(dataset), tmp_path / 'new', images=1, size=(64, 96))
    assert not (tmp_path / 'own').exists()
    check_data(cfg)
    assert len(first_batch(cfg)['inputs']) == 1


def test_voc_files_are_in_their_true_form(tmp_path: Path) -> None:
    """Whole corners that count from 1, inside the image, of every class, one of them difficult."""
    split = tmp_path / 'ImageSets' / 'Main' / 'trainval.txt'
    write_voc(split, tmp_path / 'xml', tmp_path / 'jpg', ['cat', 'dog'], 4, (60, 90))
    assert split.read_text() == '000001\n000002\n000003\n000004\n'
    kinds, difficult = set(), 0
    for file in sorted((tmp_path / 'xml').iterdir()):
        root = ElementTree.parse(file).getroot()
        assert root.tag == 'annotation'
        assert root.findtext('filename') == f'{file.stem}.jpg'
        width, height = (int(root.findtext(f'size/{side}')) for side in ('width', 'height'))
        assert (width, height) == ((60, 90) if file.stem == '000004' else (90, 60))
        for entry in root.findall('object'):
            kinds.add(entry.findtext('name'))
            difficult += int(entry.findtext('difficult'))
            x1, y1, x2, y2 = (
                int(entry.findtext(f'bndbox/{side}')) for side in ('xmin', 'ymin', 'xmax', 'ymax')
            )
            assert 1 <= x1 < x2 <= width and 1 <= y1 < y2 <= height
    assert kinds == {'cat', 'dog'} and difficult == 1


def test_another_format_is_refused(tmp_path: Path) -> None:
    """In a sentence that names those that can be generated."""
    with pytest.raises(ConfigError) as caught:
        with_generated_data(config(dict(type='LVISDataset')), tmp_path)
    assert str(caught.value) == (
        "train_dataloader: data of the type LVISDataset can't be generated for a check; "
        'CocoDataset, VOCDataset and XMLDataset can.'
    )
