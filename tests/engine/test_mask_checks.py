"""Images and masks that are refused, in a sentence about the file, and those that are taken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import ConfigDict
from PIL import Image

from densekd.engine.data_checks import check_data, data_errors
from densekd.engine.generated_masks import write_masks
from densekd.engine.preflight import first_batch
from densekd.errors import DataError
from tests.engine.test_coco_checks import refusal, says

CLASSES = ('road', 'car', 'tree')
MASK = 'ann/train/000001.png'


def masks_config(root: Path, **more: Any) -> Any:
    """Returns as much of a config as data is checked by."""
    dataset = dict(
        type='BaseSegDataset',
        data_root=f'{root}/',
        data_prefix=dict(img_path='img/train', seg_map_path='ann/train'),
        metainfo=dict(classes=CLASSES),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    )
    sampler = dict(type='DefaultSampler', shuffle=False)
    loader = dict(batch_size=1, num_workers=0, sampler=sampler, dataset={**dataset, **more})
    return ConfigDict(default_scope='mmseg', train_dataloader=loader)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images and masks; returns the folder that they are below."""
    names = [f'{i:06d}' for i in range(4)]
    write_masks(tmp_path / 'img/train', tmp_path / 'ann/train', names, CLASSES, (40, 60))
    return tmp_path


Change = Callable[[Path], Any]


def painted(paint: Callable[[np.ndarray], np.ndarray], file: str = MASK) -> Change:
    """Returns what writes another mask in place of one."""

    def change(root: Path) -> None:
        values = paint(np.array(Image.open(root / file)))
        Image.fromarray(values).save(root / file)

    return change


def everywhere(paint: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Returns what writes other masks in place of all."""
    return lambda root: [painted(paint, str(p))(root) for p in (root / 'ann/train').iterdir()]


def corner(value: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what sets one pixel."""

    def paint(mask: np.ndarray) -> np.ndarray:
        mask = mask.astype(np.uint16 if value > 255 else np.uint8)
        mask[0, 0] = value
        return mask

    return paint


def renamed(old: str, new: str) -> Change:
    """Returns what renames a file or a folder."""
    return lambda root: (root / old).rename(root / new)


def other_ends(root: Path) -> None:
    for path in list((root / 'img/train').iterdir()):
        path.rename(path.with_suffix('.jpeg'))


def on_its_side(root: Path) -> None:
    """Turns an image, and says so in its EXIF, so that decoders turn it back."""
    path = root / MASK.replace('ann', 'img').replace('png', 'jpg')
    image = Image.open(path)
    exif = image.getexif()
    exif[274] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


REFUSED: dict[str, tuple[Change, str]] = {
    'no images': (
        renamed('img', 'imgs'),
        "there is no folder img/train. img is missing. Did you mean 'imgs'? It has: ann, imgs.",
    ),
    'no masks': (
        renamed('ann/train', 'ann/training'),
        "there is no folder ann/train. Did you mean 'training'? It has: training.",
    ),
    'a mask that is missing': (
        renamed(MASK, 'ann/train/1.png'),
        "img/train has the image '000001', but there is no mask ann/train/000001.png. Did you "
        "mean '000003.png' or …",
    ),
    'images with another end': (
        other_ends,
        'img/train has no files that end with .jpg, but 4 that end with .jpeg. Give img_suffix '
        'and seg_map_suffix.',
    ),
    'an empty folder': (
        lambda root: [p.unlink() for p in (root / 'img/train').iterdir()],
        'img/train has no images: it is empty.',
    ),
    'a mask of another size': (
        painted(lambda m: m[:20]), f'{MASK} is 20x60, and its image img/train/000001.jpg is 40x60.',
    ),
    'a mask that lies on its side': (
        painted(lambda m: np.ascontiguousarray(m.T)),
        f'{MASK} is 60x40, and its image img/train/000001.jpg is 40x60.',
    ),
    'a value out of range': (
        painted(corner(77)),
        f'{MASK} has the value 77, and there are 3 classes: 0 to 2, and 255 for pixels to ignore.',
    ),
    'classes that count from 1': (
        painted(corner(3)),
        f'{MASK} has the value 3, and there are 3 classes: 0 to 2, and 255 for pixels to ignore. '
        'Set reduce_zero_label=True if 0 is to be ignored and classes count from 1.',
    ),
    'a value of more than eight bits, which mmseg would wrap around': (
        painted(corner(257)), f'{MASK} has the value 257, and there are 3 classes: …',
    ),
    'colours': (
        painted(lambda m: np.stack([m] * 3, -1)),
        f'{MASK} has 3 channels of colours, where each pixel must hold the number of its class. '
        'Write the numbers, in one channel or with a palette.',
    ),
    'an image cut short': (
        lambda root: (root / MASK).write_bytes((root / MASK).read_bytes()[:60]),
        "img/train/000001.jpg and its mask can't be read: …",
    ),
    'all ignored': (
        everywhere(lambda m: np.full_like(m, 255)),
        'no mask in ann/train has a pixel of a class that is trained, so that there is nothing to '
        'learn: all of them are ignored (255).',
    ),
    'one class in all': (
        everywhere(np.zeros_like),
        'the masks in ann/train have pixels of one class alone, 0 (road), so that there is nothing '
        'to learn.',
    ),
    'black and white': (
        everywhere(lambda m: np.where(m == 0, 0, 255).astype(np.uint8)),
        'the masks in ann/train have pixels of one class alone, 0 (road), so that there is nothing '
        'to learn. The value 255 stands for pixels to ignore: number the classes from 0.',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_masks_are_refused(name: str, folder: Path) -> None:
    """In a sentence about the file."""
    change, sentence = REFUSED[name]
    cfg = masks_config(folder)
    check_data(cfg)
    change(folder)
    said = refusal(cfg, folder)
    assert says(said, f'train_dataloader: {sentence}'), said


def test_a_list_of_names_is_followed(folder: Path) -> None:
    split = folder / 'train.txt'
    split.write_text('000000\n000009\n')
    cfg = masks_config(folder, ann_file='train.txt')
    said = refusal(cfg, folder)
    assert says(
        said,
        "train_dataloader: train.txt lists '000009', but there is no image img/train/000009.jpg. …",
    ), said
    split.write_text('')
    assert refusal(cfg, folder) == 'train_dataloader: train.txt has no images.'
    split.rename(folder / 'val.txt')
    assert says(
        refusal(cfg, folder), "train_dataloader: there is no annotation file train.txt. …'val.txt'…"
    )


def test_a_config_that_names_no_masks_is_refused(folder: Path) -> None:
    cfg = masks_config(folder, data_prefix=dict(img_path='img/train', seg_path='ann/train'))
    assert says(
        refusal(cfg, folder),
        "train_dataloader: data_prefix has no 'seg_map_path'. Did you mean 'seg_path' or …",
    )


TAKEN: dict[str, Change] = {
    'one mask that is ignored whole': painted(lambda m: np.full_like(m, 255)),
    'one mask of one class': painted(np.zeros_like),
    'a mask without an image': lambda root: shutil.copy(root / MASK, root / 'ann/train/9.png'),
    'numbers with a palette': lambda root: Image.open(root / MASK).convert('P').save(root / MASK),
    'sixteen bits': painted(lambda m: m.astype(np.uint16)),
    'a photograph that lies on its side': on_its_side,
    'a hidden file': lambda root: (root / 'img/train/._000001.jpg').write_bytes(b''),
}


@pytest.mark.parametrize('name', TAKEN)
def test_masks_that_mmseg_reads_are_taken(name: str, folder: Path) -> None:
    """With mmseg's own loading as the witness."""
    TAKEN[name](folder)
    cfg = masks_config(folder)
    check_data(cfg)
    cfg.train_dataloader.batch_size = 4
    batch = first_batch(cfg)
    for sample in batch['data_samples']:
        assert set(sample.gt_sem_seg.data.unique().tolist()) <= {0, 1, 2, 255}


def test_classes_that_count_from_1(folder: Path) -> None:
    everywhere(lambda m: np.where(m == 255, 0, m + 1).astype(np.uint8))(folder)
    said = refusal(masks_config(folder), folder)
    assert 'reduce_zero_label' in said
    check_data(masks_config(folder, reduce_zero_label=True))


def test_a_mask_beyond_those_that_are_looked_into_is_found_when_training_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('densekd.engine.mask_checks.SAMPLE', 2)
    painted(corner(77))(folder)
    cfg = masks_config(folder)
    check_data(cfg)
    with pytest.raises(DataError, match='has the value 77'), data_errors(cfg):
        raise IndexError('Target 77 is out of bounds.')
    with pytest.raises(RuntimeError, match='out of memory'), data_errors(cfg):
        raise RuntimeError('CUDA out of memory')


def test_what_is_scored_on_may_have_one_class(folder: Path) -> None:
    everywhere(np.zeros_like)(folder)
    cfg = masks_config(folder)
    cfg.val_dataloader = cfg.pop('train_dataloader')
    check_data(cfg)
