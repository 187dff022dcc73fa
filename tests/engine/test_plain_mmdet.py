"""What two configs of the repository leave in their work_dir, in mmdet without this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from densekd.cli.main import main
from densekd.core.checkpoint import read_checkpoint
from densekd.engine.run import train
from tests.engine.test_checkpoints import able_to_load
from tests.helpers.runs import in_process
from tests.helpers.shipped import ROOT, SHIPPED, data_options, shipped

# As tools/train.py, tools/test.py and a user's own script of mmdet do it. Before each, densekd can
# no more be imported than on a machine that does not have it.
PLAIN = """
import json, os, sys

class NoDenseKD:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'densekd':
            raise ImportError('densekd is not here')

sys.meta_path.insert(0, NoDenseKD())
import mmdet.datasets, mmdet.engine, mmdet.evaluation, mmdet.models, mmdet.visualization, torch
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.runner import Runner
from yapf.yapflib import yapf_api
yapf_api.FormatCode = lambda text, **_: (text, True)
torch.set_num_threads(1)

def configured(job, work_dir, **options):
    config = Config.fromfile(job['config'])
    config.merge_from_dict({**job['options'], **options})
    config.work_dir = os.path.join(job['folder'], work_dir)
    config.load_from = job['checkpoint']
    config.experiment_name = f"{job['name']}-{work_dir}"
    config.visualizer.name = config.experiment_name
    return config

answers = {}
for job in json.loads(sys.argv[1]):
    answer = answers[job['name']] = {}
    boxes = os.path.join(job['folder'], 'plain')
    runner = Runner.from_cfg(configured(job, 'test', **{'test_evaluator.outfile_prefix': boxes}))
    answer['metrics'] = runner.test()
    answer['strict'] = str(runner.model.load_state_dict(
        torch.load(job['checkpoint'], weights_only=False)['state_dict'], strict=True))

    model = init_detector(configured(job, 'infer'), job['checkpoint'], device='cpu')
    answer['classes'] = model.dataset_meta['classes']
    answer['found'] = []
    for image in job['images']:
        found = inference_detector(model, image).pred_instances
        answer['found'].append([found.bboxes.tolist(), found.scores.tolist()])

    short = {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1, 'randomness.seed': 1}
    config = configured(job, 'train', **short)
    runner = Runner.from_cfg(config)
    runner.train()
    history = runner.message_hub.get_scalar('train/loss').data[0]
    answer['losses'] = [float(value) for value in history]
    answer['files'] = sorted(os.listdir(config.work_dir))
assert not [name for name in sys.modules if name.split('.')[0] == 'densekd']
print('ANSWERS', json.dumps(answers))
"""


@dataclass
class Run:
    """A finished run of densekd, scored by `densekd test`."""

    checkpoint: Path
    boxes: list[dict[str, Any]]  # in the order of the results' file
    metrics: dict[str, float]


def options_of(name: str, data: Path, prefix: str = '') -> dict[str, Any]:
    """Returns overrides; a model that has hardly learnt is sure of nothing, so any score counts."""
    return {**data_options(data), f'model.{prefix}{SHIPPED[name][2]}': 0.0}


@pytest.fixture(scope='module')
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each config, with what `densekd test` says of it."""
    found = {}
    for name in SHIPPED:
        folder = tmp_path_factory.mktemp(name)
        cfg = shipped(name, digits, folder / 'run')
        given = {**options_of(name, digits, 'student.'), 'test_evaluator.outfile_prefix': ''}
        given['test_evaluator.outfile_prefix'] = str(folder / 'own')
        pairs = [f'{key}={value}' for key, value in given.items()]
        checkpoint = folder / 'run' / 'epoch_1.pth'
        test = ['test', str(ROOT / SHIPPED[name][0]), str(checkpoint), '--out']
        test += [str(folder / 'own.json'), '--work-dir', str(folder / 'test')]

        def both(cfg: Any = cfg, test: list[str] = test, pairs: list[str] = pairs) -> None:
            train(cfg, preflight=False)
            assert main([*test, '--cfg-options', *pairs]) == 0

        with pytest.MonkeyPatch.context() as patch:  # see conftest.py
            patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
            code = in_process(both, folder / 'log.txt')
        assert code == 0, (folder / 'log.txt').read_text()[-3000:]
        found[name] = Run(
            checkpoint,
            json.loads((folder / 'own.bbox.json').read_text()),
            json.loads((folder / 'own.json').read_text()),
        )
    return found


@pytest.fixture(scope='module')
def plain(runs: dict[str, Run], digits: Path) -> dict[str, Any]:
    """What mmdet alone makes of the checkpoints."""
    jobs = [
        dict(
            name=name,
            config=str(ROOT / SHIPPED[name][1]),
            checkpoint=str(run.checkpoint),
            folder=str(run.checkpoint.parents[1]),
            options=options_of(name, digits),
            images=[str(path) for path in sorted((digits / 'test').glob('*.png'))],
        )
        for name, run in runs.items()
    ]
    folder = digits.parent / 'elsewhere'
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, '-c', PLAIN, json.dumps(jobs)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': '', 'OMP_NUM_THREADS': '1', **able_to_load()},
        timeout=300,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-6000:]
    assert 'do not match exactly' not in output and 'Could not safely load' not in output
    (line,) = [line for line in result.stdout.splitlines() if line.startswith('ANSWERS')]
    return json.loads(line.removeprefix('ANSWERS'))


configs = pytest.mark.parametrize('name', list(SHIPPED))


@configs
def test_its_tester_finds_the_boxes_that_densekd_test_finds(
    runs: dict[str, Run], plain: dict[str, Any], name: str
) -> None:
    run = runs[name]
    theirs = json.loads((run.checkpoint.parents[1] / 'plain.bbox.json').read_text())
    assert len(theirs) > 20
    assert theirs == run.boxes
    assert plain[name]['metrics'] == run.metrics != {}
    assert 'All keys matched' in plain[name]['strict']


@configs
def test_init_detector_finds_the_same_boxes(
    runs: dict[str, Run], plain: dict[str, Any], name: str
) -> None:
    wanted: dict[int, list[Any]] = {}
    for box in runs[name].boxes:
        wanted.setdefault(box['image_id'], []).append(box)
    found = plain[name]['found']
    assert len(found) == len(wanted) and plain[name]['classes'][0] == 'zero'
    for (boxes, scores), own in zip(found, wanted.values(), strict=True):
        assert scores == pytest.approx([box['score'] for box in own], abs=1e-6)
        corners = [[x, y, x + w, y + h] for x, y, w, h in (box['bbox'] for box in own)]
        for one, other in zip(boxes, corners, strict=True):
            assert one == pytest.approx(other, abs=1e-3)


@configs
def test_it_is_trained_on(runs: dict[str, Run], plain: dict[str, Any], name: str) -> None:
    answer = plain[name]
    assert len(answer['losses']) == 2 and all(0 < loss < 100 for loss in answer['losses'])
    assert 'epoch_1.pth' in answer['files']
    before = read_checkpoint(runs[name].checkpoint)['state_dict']
    # mmengine itself puts the function of a schedule into its file, which is not read untrusted.
    path = runs[name].checkpoint.parents[1] / 'train' / 'epoch_1.pth'
    after = read_checkpoint(path, trust=True)['state_dict']
    assert list(after) == list(before)
    moved = [key for key in after if not (after[key] == before[key]).all()]
    assert any(key.startswith('backbone.') for key in moved)
    # It goes on from the file: two steps do not carry weights to where another start lies.
    key = 'backbone.layer4.1.conv2.weight'
    assert (after[key] - before[key]).norm() < 0.5 * before[key].norm()
