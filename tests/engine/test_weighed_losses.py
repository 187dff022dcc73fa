"""Class weights that the installed mmseg can't compute get a sentence before the first step.

Two versions of mmseg fail in two cases; a stand-in fails as each does, whichever is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmseg.models.losses import CrossEntropyLoss, cross_entropy_loss
from torch import Tensor

from densekd.engine.data_checks import check_data, data_errors
from densekd.engine.generated_data import with_generated_data
from densekd.engine.generated_masks import write_masks
from densekd.engine.parts_check import check_parts
from densekd.engine.preflight import check, first_batch
from densekd.engine.run import prepare
from densekd.engine.weighed_losses import check_class_weights, needs_every_pixel
from densekd.errors import ConfigError, DataError
from tests.engine.test_coco_checks import refusal, says
from tests.engine.test_mask_checks import CLASSES, everywhere, masks_config, painted

ROOT = Path(__file__).parents[2]
DIGITS = 'configs/digits/deeplabv3plus_r18w16_8e_digits.py'
DISTILLED = (
    'configs/kd/kd/segmentation/deeplabv3plus/'
    'kd_deeplabv3plus_r18w16_8e_digits_teacher_r18w32_head_mimic.py'
)
computed = cross_entropy_loss.cross_entropy
WEIGHED = dict(type='CrossEntropyLoss', class_weight=[1.0, 2.0, 3.0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images and masks with pixels to ignore."""
    names = [f'{i:06d}' for i in range(4)]
    write_masks(tmp_path / 'img/train', tmp_path / 'ann/train', names, CLASSES, (40, 60))
    return tmp_path


@pytest.fixture
def looks_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An mmseg that asks for the weight of every pixel's label, as 1.2.2 does."""

    def cross_entropy(pred: Tensor, label: Tensor, *args: Any, **more: Any) -> Tensor:
        if more.get('class_weight') is not None:
            more['class_weight'][label]
        # Where no label is ignored, all versions say the same.
        return computed(pred, label, *args, **more)

    monkeypatch.setattr(cross_entropy_loss, 'cross_entropy', cross_entropy)


@pytest.fixture
def has_one_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """An mmseg that can't average over what is not ignored beside weights, as onedl's 1.4.2."""

    def cross_entropy(pred: Tensor, label: Tensor, *args: Any, **more: Any) -> Tensor:
        if more.get('class_weight') is not None and more.get('avg_non_ignore'):
            raise IndexError('too many indices for tensor of dimension 1')
        return pred.sum() * 0

    monkeypatch.setattr(cross_entropy_loss, 'cross_entropy', cross_entropy)


def config(root: Path, **heads: Any) -> Any:
    """Returns a config of masks whose plain student has these heads."""
    cfg = masks_config(root)
    cfg.model = ConfigDict(type='EncoderDecoder', **heads)
    return cfg


def head(*losses: Any) -> dict[str, Any]:
    return dict(type='FCNHead', loss_decode=list(losses) if len(losses) > 1 else losses[0])


@pytest.mark.parametrize('avg_non_ignore', [False, True])
def test_what_is_said_of_a_loss_is_what_mmseg_does(avg_non_ignore: bool, tmp_path: Path) -> None:
    given = dict(WEIGHED, avg_non_ignore=avg_non_ignore)
    cfg = config(tmp_path, decode_head=head(given))
    loss = CrossEntropyLoss(class_weight=[1.0, 2.0, 3.0], avg_non_ignore=avg_non_ignore)

    def fails(label: int) -> bool:
        try:
            loss(torch.zeros(1, 3, 1, 2), torch.tensor([[[1, label]]]), ignore_index=255)
        except IndexError:
            return True
        return False

    assert (needs_every_pixel(cfg) is not None) == fails(255)
    if fails(2):
        with pytest.raises(ConfigError, match='class_weight and avg_non_ignore'):
            check_class_weights(cfg)
    else:
        check_class_weights(cfg)


PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    'a head': ('decode_head', dict(decode_head=head(WEIGHED))),
    'one of several losses': (
        'decode_head',
        dict(decode_head=head(dict(type='DiceLoss'), dict(WEIGHED, type='mmseg.CrossEntropyLoss'))),
    ),
    'one of several heads': (
        'auxiliary_head',
        dict(
            decode_head=head(dict(type='CrossEntropyLoss')),
            auxiliary_head=[
                head(dict(type='DiceLoss')),
                head(dict(WEIGHED, type=CrossEntropyLoss)),
            ],
        ),
    ),
    'of a student': (
        'decode_head',
        dict(
            type='densekd.DistillSegmentor',
            student=dict(type='EncoderDecoder', decode_head=head(WEIGHED)),
            teacher=dict(model=dict(type='EncoderDecoder')),
        ),
    ),
}


@pytest.mark.parametrize('name', PLACES)
@pytest.mark.usefixtures('looks_up')
def test_masks_with_ignored_pixels_are_refused(name: str, folder: Path) -> None:
    place, model = PLACES[name]
    cfg = config(folder, decode_head=head(dict(type='CrossEntropyLoss')))
    check_data(cfg)
    cfg.model = {'type': 'EncoderDecoder', **model}
    said = refusal(cfg, folder)
    assert says(
        said,
        'train_dataloader: ann/train/000000.png has pixels to ignore (255), for which mmseg … '
        f'looks up a weight in the class_weight of {place}.loss_decode, and fails. Leave out '
        'class_weight, or install onedl-mmsegmentation instead of mmsegmentation; '
        'avg_non_ignore=True does not help.',
    ), said
    cfg.train_dataloader.dataset.reduce_zero_label = True
    everywhere(lambda m: np.where(m == 255, 0, m + 1).astype(np.uint8))(folder)
    assert 'has pixels to ignore (0 or 255)' in refusal(cfg, folder)


@pytest.mark.usefixtures('looks_up')
def test_other_losses_and_other_masks_are_taken(folder: Path) -> None:
    other = [
        dict(type='CrossEntropyLoss'),
        dict(WEIGHED, use_sigmoid=True),
        dict(WEIGHED, reduction='sum'),
        dict(type='OhemCrossEntropy', class_weight=[1.0, 2.0, 3.0]),
    ]
    for loss in other:
        check_data(config(folder, decode_head=head(loss)))
    cfg = config(folder, decode_head=head(WEIGHED))
    scored = ConfigDict(default_scope='mmseg', model=cfg.model, val_dataloader=cfg.train_dataloader)
    check_data(scored)  # no loss is computed there
    everywhere(lambda m: np.where(m == 255, 0, m).astype(np.uint8))(folder)
    check_data(cfg)


@pytest.mark.usefixtures('looks_up')
def test_a_mask_beyond_those_that_are_looked_into_and_padding(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('densekd.engine.mask_checks.SAMPLE', 2)
    cfg = config(folder, decode_head=head(WEIGHED))
    error = IndexError('index 255 is out of bounds for dimension 0 with size 3')
    everywhere(lambda m: np.where(m == 255, 0, m).astype(np.uint8))(folder)
    with pytest.raises(DataError) as caught, data_errors(cfg):
        raise error
    assert str(caught.value).startswith(
        'train_dataloader: images are padded, with pixels to ignore (255), for which mmseg '
    )
    with pytest.raises(IndexError, match='another'), data_errors(cfg):
        raise IndexError('another')

    def one_pixel(mask: np.ndarray) -> np.ndarray:
        mask[0, 0] = 255
        return mask

    painted(one_pixel)(folder)
    check_data(cfg)
    with pytest.raises(DataError, match='000001.png has pixels to ignore'), data_errors(cfg):
        raise error


def distilled() -> Any:
    cfg = prepare(str(ROOT / DISTILLED))
    cfg.model.teacher.pop('checkpoint', None)
    cfg.model.teacher.untrained = True
    return cfg


@pytest.mark.usefixtures('looks_up')
def test_digit_masks_have_no_such_pixels_and_pass_the_check(tmp_path: Path) -> None:
    cfg = with_generated_data(prepare(str(ROOT / DIGITS)), tmp_path, 4, splits=('train',))
    for sample in first_batch(cfg)['data_samples']:
        assert 255 not in sample.gt_sem_seg.data
    for full_size in (False, True):
        (term,) = check(distilled(), full_size=full_size).terms
        assert term.value > 0 and term.gradient > 0


@pytest.mark.usefixtures('looks_up')
def test_padding_is_found_by_the_check(tmp_path: Path) -> None:
    cfg = distilled()
    teacher = prepare(str(ROOT / cfg.model.teacher.model)).model
    for network in (cfg.model.student, teacher):
        network.data_preprocessor.size = (160, 160)
    cfg.model.teacher.model = teacher
    with pytest.raises(DataError, match='train_dataloader: images are padded'):
        check(cfg)


def test_generated_masks_have_ignored_pixels_where_the_losses_can_leave_them_out(
    tmp_path: Path,
) -> None:
    cfg = prepare(str(ROOT / DIGITS))
    for name in ('decode_head', 'auxiliary_head'):
        cfg.model[name].loss_decode.pop('class_weight')
    cfg = with_generated_data(cfg, tmp_path, 4, splits=('train',))
    assert any(255 in sample.gt_sem_seg.data for sample in first_batch(cfg)['data_samples'])


@pytest.mark.usefixtures('has_one_only')
def test_two_options_that_can_not_be_had_together(tmp_path: Path) -> None:
    cfg = config(tmp_path, decode_head=head(dict(WEIGHED, avg_non_ignore=True)))
    with pytest.raises(ConfigError) as caught:
        check_parts(cfg)
    assert says(
        str(caught.value),
        "decode_head.loss_decode: mmseg … can't compute class_weight and avg_non_ignore=True "
        'together. Leave out avg_non_ignore: with class_weight, it averages over the pixels that '
        'are not ignored by itself.',
    )
    check_parts(config(tmp_path, decode_head=head(WEIGHED)))
    check_parts(
        config(tmp_path, decode_head=head(dict(type='CrossEntropyLoss', avg_non_ignore=True)))
    )
