"""Data in Pascal VOC's form, inside wrappers: read, or refused in a sentence about the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import ConfigDict

from densekd.engine.data_checks import check_data, innermost
from densekd.engine.generated_data import with_generated_data, write_voc
from densekd.engine.preflight import first_batch
from densekd.errors import DataError
from tests.engine.test_coco_checks import refusal, says


def voc_config(root: Path, classes: tuple[str, ...] | None = None, **more: Any) -> Any:
    """Returns as much of a config as data is checked by, wrapped as mmdet's own is."""
    metainfo = {} if classes is None else {'metainfo': {'classes': classes}}
    years = [
        dict(
            type='VOCDataset',
            data_root=f'{root}/VOCdevkit/',
            ann_file=f'{year}/ImageSets/Main/trainval.txt',
            data_prefix=dict(sub_data_root=f'{year}/'),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='PackDetInputs'),
            ],
            **metainfo,
            **more,
        )
        for year in ('VOC2007', 'VOC2012')
    ]
    both = dict(type='ConcatDataset', ignore_keys=['dataset_type'], datasets=years)
    dataset = dict(type='RepeatDataset', times=3, dataset=both)
    sampler = dict(type='DefaultSampler', shuffle=False)
    return ConfigDict(
        train_dataloader=dict(batch_size=2, num_workers=0, sampler=sampler, dataset=dataset)
    )


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Both years, generated; returns the folder that VOCdevkit is in."""
    for year in ('VOC2007', 'VOC2012'):
        root = tmp_path / 'VOCdevkit' / year
        split = root / 'ImageSets' / 'Main' / 'trainval.txt'
        folders = root / 'Annotations', root / 'JPEGImages'
        write_voc(split, *folders, ['cat', 'dog', 'person'], 3, (64, 96))
    return tmp_path


XML = 'VOCdevkit/VOC2012/Annotations/000002.xml'
SPLIT = 'VOCdevkit/VOC2012/ImageSets/Main/trainval.txt'


def replaced(old: str, new: str, file: str = XML) -> Callable[[Path], None]:
    """Returns what replaces the first of a pattern in a file."""

    def change(root: Path) -> None:
        text, count = re.subn(old, new, (root / file).read_text(), count=1)
        assert count == 1
        (root / file).write_text(text)

    return change


def renamed(old: str, new: str) -> Callable[[Path], Any]:
    """Returns what renames a file or a folder."""
    return lambda root: (root / old).rename(root / new)


ANY_BOX = r'<xmin>\d+</xmin>\s*<ymin>\d+</ymin>\s*<xmax>\d+</xmax>'
VOC: dict[str, tuple[Callable[[Path], Any], str]] = {
    'no devkit': (
        renamed('VOCdevkit', 'VOCDevKit'),
        'there is no annotation file VOCdevkit/VOC2007/ImageSets/Main/trainval.txt. There is no '
        "folder VOCdevkit. Did you mean 'VOCDevKit'? It has: VOCDevKit.",
    ),
    'no year': (
        renamed('VOCdevkit/VOC2012', 'VOCdevkit/voc12'),
        f'there is no annotation file {SPLIT}. There is no '
        "folder VOCdevkit/VOC2012. Did you mean 'VOC2007'? It has: VOC2007, voc12.",
    ),
    'no split': (
        renamed(SPLIT, SPLIT.replace('trainval', 'train')),
        f"there is no annotation file {SPLIT}. Did you mean 'train.txt'? It has: train.txt.",
    ),
    'no annotations': (
        renamed('VOCdevkit/VOC2007/Annotations', 'VOCdevkit/VOC2007/annotations'),
        'there is no folder VOCdevkit/VOC2007/Annotations. Did you mean '
        "'annotations'? It has: ImageSets, JPEGImages, annotations.",
    ),
    'an empty split': (
        lambda root: (root / SPLIT).write_text(''), f'{SPLIT} has no images.',
    ),
    'a split of a class, with its second column': (
        replaced('000002', '000002  1', SPLIT),
        f"{SPLIT} lists '000002  1', but VOCdevkit/VOC2012/Annotations has no 000002  1.xml. Did "
        "you mean '000002.xml' or …",
    ),
    'an image that is missing': (
        renamed('VOCdevkit/VOC2012/JPEGImages/000003.jpg', 'VOCdevkit/VOC2012/000003.jpg'),
        f"{SPLIT} lists '000003', but VOCdevkit/VOC2012/JPEGImages has no 000003.jpg. Did you "
        "mean '000002.jpg' or …",
    ),
    'XML that is cut short': (
        lambda root: (root / XML).write_text((root / XML).read_text()[:-9]),
        f"{XML} can't be read as XML (…).",
    ),
    'a class that is misspelt': (
        replaced('<name>\\w+', '<name>persn'),
        f"{XML} has an object 'persn', which is not among the classes of the config and would be "
        "taken for background. Did you mean 'person'? It has: cat, dog, person.",
    ),
    'a class in capitals': (
        replaced('<name>\\w+', '<name>CAT'),
        f"{XML} has an object 'CAT', which is not among the classes of the config and would be "
        'taken for background. …',
    ),
    'an object without a name': (
        replaced('<name>\\w+</name>', ''), f'{XML} has an object without a name.',
    ),
    'a box without a corner': (
        replaced('<xmax>\\d+</xmax>', ''),
        f'{XML} has an object … whose bndbox lacks one of the numbers xmin, ymin, xmax, ymax.',
    ),
    'a box that is no number': (
        replaced('<xmax>\\d+', '<xmax>nan'),
        f'{XML} has an object … whose bndbox lacks one of the numbers xmin, ymin, xmax, ymax.',
    ),
    'a box without an area': (
        replaced(r'<xmin>\d+</xmin>(\s*<ymin>\d+</ymin>\s*)<xmax>\d+', r'<xmin>9</xmin>\1<xmax>9'),
        f'{XML} has an object … without an area: its box is (9, …, 9, …). Mark it as difficult, or '
        'leave it out.',
    ),
    'a size of zero': (
        replaced('<width>\\d+', '<width>0'),
        f"{XML} has a size whose width is '0', where a whole number of pixels is needed.",
    ),
    'a difficulty that is a word': (
        replaced('<difficult>0', '<difficult>no'),
        f"{XML} has an object … whose difficult is 'no', where 0 or 1 is needed.",
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', VOC)
def test_voc_data_is_refused(name: str, devkit: Path) -> None:
    """In a sentence about the file, inside both wrappers."""
    change, sentence = VOC[name]
    cfg = voc_config(devkit, ('cat', 'dog', 'person'))
    check_data(cfg)
    change(devkit)
    said = refusal(cfg, devkit)
    assert says(said, f'train_dataloader: {sentence}'), said


def test_voc_data_of_other_classes_is_refused(devkit: Path) -> None:
    """Those of VOC itself, when the config names none."""
    said = refusal(voc_config(devkit, ('horse', 'cow')), devkit)
    assert says(
        said,
        'train_dataloader: VOCdevkit/VOC2007/Annotations/000001.xml has an object …, which is not '
        'among the classes of the config and would be taken for background. It has: cow, horse.',
    ), said
    check_data(voc_config(devkit))  # VOC has all three, and seventeen more


def test_a_class_may_be_left_out_on_purpose(devkit: Path) -> None:
    """All that are listed are there, and what is not is none of them misspelt."""
    check_data(voc_config(devkit, ('person',)))


@pytest.mark.parametrize('more', [dict(filter_cfg=dict(bbox_min_size=8)), dict(test_mode=True)])
def test_a_box_without_an_area_is_taken_where_nobody_learns_from_it(
    more: dict[str, Any], devkit: Path
) -> None:
    """The filter sets it aside, or it is only scored on."""
    VOC['a box without an area'][0](devkit)
    check_data(voc_config(devkit, **more))


def test_no_sub_data_root_is_refused(devkit: Path) -> None:
    """In the data's check and where data is generated."""
    cfg = voc_config(devkit)
    for dataset in innermost(cfg.train_dataloader.dataset):
        dataset.data_prefix = {}
    sentence = (
        "train_dataloader: data_prefix has no 'sub_data_root', the folder below data_root that "
        "holds Annotations and JPEGImages. Give data_prefix=dict(sub_data_root='VOC2007/')."
    )
    assert refusal(cfg, devkit) == sentence
    with pytest.raises(DataError, match='sub_data_root'):
        with_generated_data(cfg, devkit / 'generated')


@pytest.mark.parametrize('change', [
    replaced('<difficult>0', '<difficult>1'),
    replaced('(?s)<size>.*</size>', ''),
    replaced('<difficult>0</difficult>', ''),
    replaced('(?s)<object>.*</object>', ''),
    replaced('<xmax>(\\d+)', '<xmax>\\1.7'),
], ids=['difficult', 'no size', 'no difficulty', 'no object', 'broken pixels'])  # fmt: skip
def test_voc_data_that_mmdet_reads_is_taken(change: Callable[[Path], None], devkit: Path) -> None:
    """What the format leaves open, with mmdet's own loading as the witness."""
    change(devkit)
    cfg = voc_config(devkit, ('cat', 'dog', 'person'))
    check_data(cfg)
    cfg.default_scope = 'mmdet'
    batch = first_batch(cfg)
    assert all(s.gt_instances.bboxes.tensor.isfinite().all() for s in batch['data_samples'])
