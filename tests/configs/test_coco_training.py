"""The COCO configs train on data in COCO's own form, and say it where weights can't be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from densekd.engine.generated_data import with_generated_data
from densekd.engine.run import prepare, train
from densekd.engine.runner import DistillRunner
from densekd.errors import CheckpointError
from tests.configs.test_configs import COCO, ROOT, stem

# What a user without a network says: the student starts from random weights, the teacher too.
OFFLINE = {
    'model.student.backbone.init_cfg': None,
    'model.teacher.checkpoint': None,
    'model.teacher.untrained': True,
}


def short_run(
    name: str, folder: Path, size: tuple[int, int] | None, images: int = 4, **options: Any
) -> Any:
    """Returns a prepared config of an epoch on generated images, nothing else changed."""
    cfg = prepare(
        str(ROOT / name),
        folder / 'work',
        {
            **OFFLINE,
            'train_cfg.max_epochs': 1,
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
    return with_generated_data(cfg, folder / 'data', images, size)


def refuse_unlike_student(checkpoint: Path) -> None:
    """The file must hold the student alone, finite, and what distillation needs under one key."""
    content = torch.load(checkpoint, weights_only=False)
    weights = content['state_dict']
    assert {key.split('.')[0] for key in weights} <= {
        'backbone', 'neck', 'bbox_head', 'rpn_head', 'roi_head',
    }  # fmt: skip
    assert all(torch.isfinite(v).all() for v in weights.values() if v.is_floating_point())
    assert content['densekd']['iteration'] == content['meta']['iter'] - 1
    assert content['meta']['iter'] == 2


def test_it_trains_on_small_images(tmp_path: Path) -> None:
    """One of them, R-50 by R-101, two iterations of two images."""
    cfg = short_run(COCO[0], tmp_path, (96, 128))
    refuse_unlike_student(train(cfg, preflight=False))


@pytest.mark.slow
@pytest.mark.parametrize('name', COCO, ids=stem)
def test_it_trains_at_full_size(name: str, tmp_path: Path) -> None:
    """Photographs of COCO's size, resized as the config says, with the proof of the wiring."""
    refuse_unlike_student(train(short_run(name, tmp_path, None)))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network and no files fetched before; returns a folder that checkpoints may lie in."""
    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    monkeypatch.setenv('DENSEKD_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('DENSEKD_CHECKPOINTS', str(folder))
    for name in ('http_proxy', 'https_proxy'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    return folder


WEIGHTS = {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet50'}


def test_initial_weights_that_no_host_gives_are_a_sentence(tmp_path: Path, offline: Path) -> None:
    """The student's ImageNet weights are asked for before the first step, by their file's name."""
    cfg = short_run(COCO[0], tmp_path, (96, 128), **{'model.student.backbone.init_cfg': WEIGHTS})
    with pytest.raises(CheckpointError) as caught:
        train(cfg, preflight=False)
    said = str(caught.value)
    assert said.startswith(
        "model.student.backbone.init_cfg: the student's initial weights can't be had: "
        'torchvision://resnet50: resnet50-0676ba61.pth: it could not be fetched ('
    )
    assert '$DENSEKD_CHECKPOINTS' in said
    assert said.endswith('--cfg-options model.student.backbone.init_cfg=None')
    assert '\n' not in said
    assert not (tmp_path / 'work').exists()


def test_initial_weights_that_carry_code_are_refused(tmp_path: Path, offline: Path) -> None:
    """Mmengine's own loader would run it."""
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'x': Path}, offline / 'resnet50-0676ba61.pth')
    cfg = short_run(COCO[0], tmp_path, (96, 128), **{'model.student.backbone.init_cfg': WEIGHTS})
    with pytest.raises(CheckpointError, match='carries code .*Path'):
        train(cfg, preflight=False)


def test_initial_weights_in_a_known_folder_are_taken(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student starts from the file, whose first layer is marked here."""
    first = torch.full((64, 3, 7, 7), 0.25)
    torch.save({'conv1.weight': first}, offline / 'resnet50-0676ba61.pth')
    started: dict[str, torch.Tensor] = {}

    def look(self: DistillRunner, *args: Any) -> None:
        self._init_model_weights()
        started['first'] = self.model.student.backbone.conv1.weight.detach().clone()
        raise KeyboardInterrupt

    monkeypatch.setattr(DistillRunner, 'train', look)
    cfg = short_run(COCO[0], tmp_path, (96, 128), **{'model.student.backbone.init_cfg': WEIGHTS})
    with pytest.raises(KeyboardInterrupt):
        train(cfg, preflight=False)
    assert torch.equal(started['first'], first)
