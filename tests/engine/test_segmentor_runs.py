"""Whole runs of segmentors by iterations: resumed to the bit, at weight 0, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from densekd.core.checkpoint import read_checkpoint
from densekd.engine.preflight import check_before_training
from densekd.engine.run import evaluate, student_config, train
from densekd.engine.runner import latest_checkpoint
from densekd.errors import DataError
from densekd.wrappers.build import build_network
from tests.engine.test_checkpoints import able_to_load
from tests.engine.test_resume import go
from tests.helpers.detectors import entry
from tests.helpers.runs import differences
from tests.helpers.segmentor_runs import ITERATIONS, masks_config
from tests.helpers.segmentors import SEGMENTORS

EMA = dict(type='EMAHook', momentum=0.1)
# With states of their own: running statistics, margins that are counted, a schedule.
DISTILLERS = [
    dict(
        student_module='backbone.c5.pre_relu',
        head=dict(
            type='OFDDistillationHead',
            loss=dict(type='OFDLoss', loss_weight=1e-4, margin='empirical'),
        ),
    ),
    entry('decode.feature', 'OFD', 1e-5),
    entry('decode.logits', 'CWD', schedule=dict(warmup=6)),
    entry('backbone.c4', 'MGD', 1e-5),
]
LAST = f'iter_{ITERATIONS}.pth'


@pytest.mark.parametrize('more', [{}, dict(custom_hooks=[EMA], model='cascade')], ids=['', 'ema'])
def test_killed_and_resumed_equals_uninterrupted(
    digits: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    def config(name: str) -> Config:
        return masks_config(digits, tmp_path / name, DISTILLERS, workers=2, **more)

    go(config('whole'))
    go(config('killed'), kill_at=5)
    assert latest_checkpoint(tmp_path / 'killed').name == 'iter_3.pth'
    go(config('killed'), resume=True)
    assert differences(tmp_path / 'whole' / LAST, tmp_path / 'killed' / LAST) == []
    saved = read_checkpoint(tmp_path / 'killed' / LAST)
    assert ('ema_state_dict' in saved) == ('custom_hooks' in more)
    assert saved['densekd']['distillers'] and saved['optimizer']['state']


def test_weight_0_is_plain_training(digits: Path, tmp_path: Path) -> None:
    for name, more in {
        'plain': dict(distillers=None),
        'zero': dict(weight=0.0),
        'one': dict(weight=1e-4),
    }.items():
        go(masks_config(digits, tmp_path / name, iterations=4, **more))
    plain, zero, one = (
        read_checkpoint(tmp_path / name / 'iter_4.pth')['state_dict']
        for name in ('plain', 'zero', 'one')
    )
    assert list(plain) == list(zero)
    assert [k for k in plain if not torch.equal(plain[k], zero[k])] == []
    assert [k for k in plain if not torch.equal(plain[k], one[k])]


@pytest.mark.parametrize(('iterations', 'begun'), [(5, 1), (6, 2)])
def test_connectors_have_the_first_epoch_to_themselves(
    digits: Path, tmp_path: Path, iterations: int, begun: int
) -> None:
    """Five batches of four hold the 18 images, in a loop that knows iterations alone."""
    first = dict(
        entry('decode.feature', 'OFD', 1e-2),
        lr_mult=10.0,
        schedule=dict(by='epoch', connectors_first=1),
    )
    saved = {}
    for name, distillers in (('plain', None), ('beside', [first])):
        go(masks_config(digits, tmp_path / name, distillers, iterations=iterations))
        saved[name] = read_checkpoint(tmp_path / name / f'iter_{iterations}.pth')
    plain, beside = (saved[name]['state_dict'] for name in ('plain', 'beside'))
    assert all(torch.equal(plain[k], beside[k]) for k in plain) == (begun == 1)
    assert saved['beside']['densekd']['epoch'] == begun - 1
    own, added = saved['beside']['optimizer']['param_groups']
    assert added['initial_lr'] == pytest.approx(10 * own['initial_lr'])
    moved = saved['beside']['optimizer']['state']
    assert all(moved[i]['momentum_buffer'].any() for i in added['params'])


@pytest.fixture(scope='module', params=['deeplabv3plus', 'cascade'])
def finished(
    digits: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[str, Config]:
    """The config of a finished run."""
    config = masks_config(digits, tmp_path_factory.mktemp('run') / 'run', model=request.param)
    go(config)
    return request.param, config


def last(config: Config) -> Path:
    return Path(config.work_dir) / LAST


def test_the_file_is_the_student(finished: tuple[str, Config]) -> None:
    name, config = finished
    saved = read_checkpoint(last(config))
    student = build_network(SEGMENTORS[name](classes=11), 'mmseg', 'student')
    assert list(saved['state_dict']) == list(student.state_dict())
    assert student.load_state_dict(saved['state_dict'], strict=True)
    usual = {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers'}
    assert saved.keys() - usual == {'densekd'}
    assert saved['densekd']['iteration'] == ITERATIONS - 1


PLAIN = """
import json, sys

class NoDenseKD:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'densekd':
            raise ImportError('densekd is not here')

sys.meta_path.insert(0, NoDenseKD())
import mmseg.datasets, mmseg.engine, mmseg.evaluation, mmseg.models, torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model
torch.set_num_threads(1)
config, checkpoint, image = sys.argv[1:]
cfg = Config.fromfile(config)
model = init_model(cfg, checkpoint, device='cpu')
assert model.dataset_meta['classes'][0] == 'background', model.dataset_meta
found = inference_model(model, image).pred_sem_seg.data
model.load_state_dict(torch.load(checkpoint, weights_only=False)['state_dict'], strict=True)
for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
    cfg.pop(key)
cfg.load_from, cfg.work_dir = checkpoint, cfg.work_dir + '_tested'
metrics = Runner.from_cfg(cfg).test()
assert not [name for name in sys.modules if name.startswith('densekd')]
print('ANSWER', json.dumps([found.tolist(), {k: float(v) for k, v in metrics.items()}]))
"""


def test_plain_mmseg_loads_it_and_scores_the_same(
    finished: tuple[str, Config], digits: Path, tmp_path: Path
) -> None:
    _, config = finished
    plain = student_config(config)
    plain.dump(str(tmp_path / 'plain.py'))
    image = digits / 'test' / '000000.png'
    command = [sys.executable, '-c', PLAIN, str(tmp_path / 'plain.py'), str(last(config)), image]
    # What mmengine needs of torch, and no densekd.
    env = {**os.environ, **able_to_load()}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    answers = [line for line in result.stdout.splitlines() if line.startswith('ANSWER')]
    assert answers, result.stderr[-3000:]
    mask, metrics = json.loads(answers[0].removeprefix('ANSWER'))
    own = evaluate(config, last(config))
    assert metrics['mIoU'] > 0
    assert {k: own[k] for k in metrics} == pytest.approx(metrics)
    student = build_network(plain.model, 'mmseg', 'student').eval()
    student.load_state_dict(read_checkpoint(last(config))['state_dict'])
    pixels = torch.from_numpy(np.array(Image.open(image))[..., ::-1].copy()).permute(2, 0, 1)
    data = student.data_preprocessor(dict(inputs=[pixels], data_samples=None), False)
    logits = student.encode_decode(
        data['inputs'], [dict(img_shape=pixels.shape[1:], ori_shape=pixels.shape[1:])]
    )
    assert torch.equal(torch.tensor(mask), logits.argmax(1))


def ignored(digits: Path, folder: Path, kept: int) -> Path:
    """Copies the digits, with every pixel ignored in all masks but the first few."""
    for split in ('train', 'masks/train'):
        (folder / split).mkdir(parents=True)
    for i, path in enumerate(sorted((digits / 'train').iterdir())):
        mask = np.array(Image.open(digits / 'masks/train' / path.name))
        mask = mask if i < kept else np.full_like(mask, 255)
        (folder / 'train' / path.name).write_bytes(path.read_bytes())
        Image.fromarray(mask).save(folder / 'masks/train' / path.name)
    return folder


def test_every_method_trains_where_most_masks_are_ignored(digits: Path, tmp_path: Path) -> None:
    data = ignored(digits, tmp_path / 'data', kept=2)
    cfg = masks_config(data, tmp_path / 'run', iterations=3)
    weights = read_checkpoint(train(cfg, preflight=False))['state_dict'].values()
    assert all(w.isfinite().all() for w in weights if w.is_floating_point())


def test_masks_that_are_ignored_whole_are_refused_before_the_first_step(
    digits: Path, tmp_path: Path
) -> None:
    data = ignored(digits, tmp_path / 'data', kept=0)
    with pytest.raises(DataError, match='nothing to learn: all of them are ignored'):
        check_before_training(masks_config(data, tmp_path / 'run'))


@pytest.mark.parametrize('workers', [0, 1])
def test_a_mask_that_only_training_meets_is_a_sentence_too(
    digits: Path, tmp_path: Path, workers: int
) -> None:
    data = ignored(digits, tmp_path / 'data', kept=18)
    for path in sorted((data / 'masks/train').iterdir())[1::2]:
        Image.fromarray(np.array(Image.open(path))[:40]).save(path)
    cfg = masks_config(data, tmp_path / 'run', workers=workers)
    with pytest.raises(DataError, match='000001.png is 40x64, and its image .*000001.png is 64x64'):
        train(cfg, preflight=False)
