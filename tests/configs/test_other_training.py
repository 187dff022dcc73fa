"""Configs of Pascal VOC and of a user's own data train on data in their own form."""

from __future__ import annotations

from pathlib import Path

from densekd.engine.data_checks import check_data, datasets
from densekd.engine.run import train
from tests.configs.test_coco_training import refuse_unlike_student, short_run
from tests.configs.test_configs import DISTILLED, TEMPLATE

VOC = [name for name in DISTILLED if '_voc0712_' in name]


def test_voc_trains_on_small_images(tmp_path: Path) -> None:
    """R-50 by R-101 on two data sets, each with an image, both repeated twice: two iterations."""
    cfg = short_run(VOC[0], tmp_path, (96, 128), 1, **{'train_dataloader.dataset.times': 2})
    assert cfg.train_dataloader.dataset.type == 'RepeatDataset'
    for year in ('VOC2007', 'VOC2012'):
        folders = [p for p in (tmp_path / 'data').rglob(year) if p.is_dir()]
        assert len(folders) == (2 if year == 'VOC2007' else 1)
        assert {p.name for p in folders[0].iterdir()} == {'Annotations', 'ImageSets', 'JPEGImages'}
        assert (folders[0] / 'ImageSets' / 'Main').is_dir()
    check_data(cfg)
    refuse_unlike_student(train(cfg, preflight=False))


def test_the_template_trains_on_small_images(tmp_path: Path) -> None:
    """R-50 by R-101 on three classes, four images."""
    cfg = short_run(TEMPLATE, tmp_path, (96, 128))
    assert all(d.metainfo.classes == ('cat', 'dog', 'bird') for _, d in datasets(cfg))
    check_data(cfg)
    last = train(cfg, preflight=False)
    refuse_unlike_student(last)
