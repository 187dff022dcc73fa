"""The files in a work_dir: the plain student's, whole at every moment, and what may be loaded."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage

from densekd.core.checkpoint import read_checkpoint
from densekd.engine import hooks, runner
from densekd.engine.run import evaluate, student_config, train
from densekd.engine.runner import DistillRunner, FormattedOnce, latest_checkpoint
from densekd.errors import CheckpointError
from densekd.wrappers.build import build_network
from tests.helpers.detectors import DETECTORS, MODELS, distilled, entry, state, unlike
from tests.helpers.runs import KILLED, differences, digits_config, in_process

NAMES = [*MODELS, 'gfl']
three = pytest.mark.parametrize('name', NAMES)
EMA = dict(type='EMAHook', momentum=0.1)


def network(name: str = 'retinanet') -> torch.nn.Module:
    """Returns the student of the runs, as mmdet builds it."""
    return build_network(DETECTORS[name](classes=10), 'mmdet', 'student')


def done(config: Config, kills: bool = False, resume: bool = False) -> Path:
    """Trains in a process of its own, and returns the folder."""
    folder = Path(config.work_dir)
    folder.mkdir(exist_ok=True)
    code = in_process(lambda: train(config, resume, preflight=False), folder / 'log.txt')
    expected = KILLED if kills else 0
    assert code == expected, f'{code}\n{(folder / "log.txt").read_text()[-3000:]}'
    return folder


@pytest.fixture(scope='module')
def runs(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """The config of a finished run of one epoch, by the student's name."""
    configs = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name) / 'run'
        configs[name] = digits_config(digits, folder, model=name, epochs=1, custom_hooks=[EMA])
        done(configs[name])
    return configs


def last(config: Config) -> Path:
    return Path(config.work_dir) / 'epoch_1.pth'


# The file is the student ------------------------------------------------------------------------


@three
def test_the_state_dict_is_the_plain_students(runs: dict[str, Config], name: str) -> None:
    student = network(name)
    checkpoint = read_checkpoint(last(runs[name]))
    assert list(checkpoint['state_dict']) == list(student.state_dict())
    assert student.load_state_dict(checkpoint['state_dict'], strict=True)
    average = ExponentialMovingAverage(student)
    assert list(checkpoint['ema_state_dict']) == list(average.state_dict())
    assert average.load_state_dict(checkpoint['ema_state_dict'], strict=True)
    # EMAHook saves the average under state_dict, and what was trained under ema_state_dict.
    trained = {k[7:]: v for k, v in checkpoint['ema_state_dict'].items() if k.startswith('module.')}
    assert any(k.endswith('weight') for k in unlike(trained, checkpoint['state_dict']))


@three
def test_all_else_is_under_one_key(runs: dict[str, Config], name: str) -> None:
    checkpoint = read_checkpoint(last(runs[name]))
    usual = {'meta', 'state_dict', 'message_hub', 'optimizer', 'param_schedulers', 'ema_state_dict'}
    assert checkpoint.keys() - usual == {'densekd'}
    added = distilled(name).distillers.state_dict()
    assert checkpoint['densekd']['distillers'].keys() == added.keys()
    assert checkpoint['densekd']['teachers']['teacher']['declared_untrained'] is True
    assert not [k for k in checkpoint['state_dict'] if 'teacher' in k or 'distill' in k]


def test_the_file_is_read_without_running_code(runs: dict[str, Config]) -> None:
    # In a process that has torch alone, where the log's history has no class.
    code = (
        'import sys; from densekd.core.checkpoint import read_checkpoint; '
        'found = read_checkpoint(sys.argv[1]); assert "mmengine" not in sys.modules; '
        'print(len(found["state_dict"]))'
    )
    result = subprocess.run(
        [sys.executable, '-c', code, str(last(runs['retinanet']))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == str(len(network().state_dict())), result.stderr


INFERENCE = """
import json, sys, warnings

class NoDenseKD:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'densekd':
            raise ImportError('densekd is not here')

sys.meta_path.insert(0, NoDenseKD())
import mmdet.datasets, mmdet.models, torch
from mmdet.apis import inference_detector, init_detector
torch.set_num_threads(1)
answers = []
for config, checkpoint, image in json.loads(sys.argv[1]):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', category=DeprecationWarning)
        warnings.filterwarnings('ignore', 'DeprecationWarning: `num_anchors`')  # of mmdet's own
        warnings.filterwarnings('ignore', 'Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD')
        model = init_detector(config, checkpoint, device='cpu')
        found = inference_detector(model, image).pred_instances
    assert model.dataset_meta['classes'][0] == 'zero', model.dataset_meta
    answers.append([found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist()])
assert not [name for name in sys.modules if name.startswith('densekd')]
print('ANSWERS', json.dumps(answers))
"""


def test_plain_mmdet_loads_the_file_and_finds_the_same_boxes(
    runs: dict[str, Config], digits: Path, tmp_path: Path
) -> None:
    image = str(digits / 'test' / '000000.png')
    jobs, expected = [], []
    for name, config in runs.items():
        plain = student_config(config)
        # A model that has hardly learnt is sure of nothing.
        settings = plain.model.test_cfg
        settings.get('rcnn', settings).score_thr = 0.0
        plain.dump(tmp_path / f'{name}.py')
        jobs.append([str(tmp_path / f'{name}.py'), str(last(config)), image])
        expected.append(predicted(config, plain, tmp_path / name, image))
    result = subprocess.run(
        [sys.executable, '-c', INFERENCE, json.dumps(jobs)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': '', 'OMP_NUM_THREADS': '1', **able_to_load()},
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert 'do not match exactly' not in output and 'Could not safely load' not in output
    (answers,) = [line for line in result.stdout.splitlines() if line.startswith('ANSWERS')]
    for found, wanted in zip(json.loads(answers.removeprefix('ANSWERS')), expected, strict=True):
        assert len(found[0]) > 0
        assert found == wanted


def able_to_load() -> dict[str, str]:
    """Returns what mmengine needs to load a checkpoint of any runner with this torch.

    Since 2.6 torch refuses the log's history in it. The maintained family admits that; with the
    other one, users set this variable for plain training's files as well.
    """
    from mmengine.runner import checkpoint

    admits = hasattr(checkpoint, 'get_torch_safe_globals')
    return {} if admits else {'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'}


def predicted(config: Config, plain: Config, folder: Path, image: str) -> list[Any]:
    """Returns what the distillation model itself finds in an image."""
    from mmdet.apis import inference_detector

    checkpoint, config = last(config), copy.deepcopy(config)
    config.work_dir = str(folder)
    config.model.student.test_cfg = plain.model.test_cfg
    config.custom_hooks = []
    made = DistillRunner.from_cfg(config)
    made.load_checkpoint(str(checkpoint))
    made.model.cfg = config
    found = inference_detector(made.model.eval(), image).pred_instances
    return [found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist()]


@three
def test_the_student_is_scored_alike_with_either_config(
    runs: dict[str, Config], tmp_path: Path, name: str
) -> None:
    scores = []
    for number, given in enumerate((runs[name], student_config(runs[name]))):
        config, answer = copy.deepcopy(given), tmp_path / f'{number}.json'
        config.work_dir = str(tmp_path / str(number))

        def score(config: Config = config, answer: Path = answer) -> None:
            answer.write_text(json.dumps(evaluate(config, last(runs[name]))))

        assert in_process(score, tmp_path / 'log.txt') == 0, (tmp_path / 'log.txt').read_text()
        scores.append(json.loads(answer.read_text()))
    assert scores[0] == scores[1]


# What may be loaded -----------------------------------------------------------------------------


def loading(digits: Path, tmp_path: Path, checkpoint: dict[str, Any], **more: Any) -> DistillRunner:
    """Returns a runner that has loaded a checkpoint."""
    torch.save(checkpoint, tmp_path / 'given.pth')
    made = DistillRunner.from_cfg(digits_config(digits, tmp_path / 'run', **more))
    made.load_checkpoint(str(tmp_path / 'given.pth'))
    return made


@pytest.mark.parametrize('prefix', ['', 'module.', 'student.', 'architecture.', 'module.student.'])
@pytest.mark.parametrize(
    'distillers', [None, [entry('neck.p3', 'PKD')]], ids=['plain', 'distilled']
)
def test_a_students_weights_are_loaded_whatever_is_before_their_names(
    digits: Path, tmp_path: Path, prefix: str, distillers: Any
) -> None:
    given = network().state_dict()
    checkpoint = {'state_dict': {prefix + k: v for k, v in given.items()}, 'meta': {}}
    made = loading(digits, tmp_path, checkpoint, distillers=distillers)
    assert unlike(given, state(made.model)) == []


def test_a_bare_state_dict_is_loaded(digits: Path, tmp_path: Path) -> None:
    given = network().state_dict()
    made = loading(digits, tmp_path, dict(given))
    assert unlike(given, state(made.model)) == []


def test_loading_a_student_leaves_connectors_and_the_clock_as_they_are(
    digits: Path, tmp_path: Path, runs: dict[str, Config]
) -> None:
    path = last(runs['retinanet'])
    made = DistillRunner.from_cfg(digits_config(digits, tmp_path / 'run'))
    before = state(made.model.distillers)
    made.load_checkpoint(str(path))
    assert unlike(before, state(made.model.distillers)) == []
    assert made.model.iteration == 0
    assert unlike(read_checkpoint(path)['state_dict'], state(made.model)) == []


@pytest.mark.parametrize(
    'distillers', [None, [entry('neck.p3', 'PKD')]], ids=['plain', 'distilled']
)
def test_a_file_of_something_else_is_refused(digits: Path, tmp_path: Path, distillers: Any) -> None:
    foreign = {'state_dict': {'encoder.weight': torch.zeros(2)}, 'meta': {}}
    with pytest.raises(CheckpointError, match=r'given.pth: none .* fits the student: .*encoder'):
        loading(digits, tmp_path, foreign, distillers=distillers)


def test_a_wrapper_refuses_it_by_itself() -> None:
    with pytest.raises(CheckpointError, match='no weight of the checkpoint fits the student'):
        distilled().load_state_dict({'encoder.weight': torch.zeros(2)}, strict=False)


# Killed while it is written ---------------------------------------------------------------------


def kill(*unused: Any, **more: Any) -> None:
    os.kill(os.getpid(), 9)


def second(action: Callable[..., Any], before: Callable[..., Any]) -> Callable[..., Any]:
    """Returns what does as `before` does, and on its second call `action` instead."""
    calls: list[int] = []

    def function(*args: Any, **more: Any) -> Any:
        calls.append(1)
        return (action if len(calls) == 2 else before)(*args, **more)

    return function


def in_mid_save(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.save

    def half(checkpoint: Any, file: Any, *args: Any, **more: Any) -> None:
        file.write(b'PK\x03\x04 and no more')
        file.flush()
        kill()

    monkeypatch.setattr(torch, 'save', second(half, whole))


def before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, 'put_in_place', second(kill, runner.put_in_place))


def before_the_old_one_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    place = runner.put_in_place

    def and_die(aside: Path, target: Path) -> None:
        place(aside, target)
        kill()

    monkeypatch.setattr(runner, 'put_in_place', second(and_die, place))


def keeping_one(digits: Path, work_dir: Path) -> Config:
    """Returns a config that keeps the last checkpoint only."""
    config = digits_config(digits, work_dir, [entry('neck.p3', 'PKD')])
    config.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)
    return config


@pytest.fixture(scope='module')
def uninterrupted(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was let be."""
    return done(keeping_one(digits, tmp_path_factory.mktemp('whole') / 'run'))


@pytest.mark.parametrize(
    ('moment', 'left'),
    [
        (in_mid_save, ['epoch_1.pth']),
        (before_it_has_its_name, ['epoch_1.pth']),
        (before_the_old_one_is_removed, ['epoch_1.pth', 'epoch_2.pth']),
    ],
)
def test_a_run_killed_while_saving_goes_on(
    digits: Path,
    tmp_path: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: Callable[[pytest.MonkeyPatch], None],
    left: list[str],
) -> None:
    config = keeping_one(digits, tmp_path / 'killed')
    with monkeypatch.context() as patch:
        moment(patch)
        folder = done(config, kills=True)
    assert sorted(p.name for p in folder.glob('*.pth')) == left
    for name in left:
        assert read_checkpoint(folder / name)['state_dict']
    assert latest_checkpoint(folder) == folder / 'epoch_1.pth'
    done(config, resume=True)
    assert sorted(p.name for p in folder.glob('*.pth')) == ['epoch_2.pth']
    assert not list(folder.glob('.*partial'))
    assert differences(uninterrupted / 'epoch_2.pth', folder / 'epoch_2.pth') == []


def test_the_best_is_kept_beside_the_last(digits: Path, tmp_path: Path) -> None:
    config = digits_config(digits, tmp_path / 'run', [entry('neck.p3', 'PKD')], epochs=2)
    config.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='coco/bbox_mAP', rule='less'
    )
    config.train_cfg.val_interval = 1
    config.val_cfg = dict(type='ValLoop')
    config.val_dataloader, config.val_evaluator = config.test_dataloader, config.test_evaluator
    config.model.student.test_cfg.score_thr = 0.0
    folder = done(config)
    names = sorted(p.name for p in folder.glob('*.pth'))
    assert names in (
        ['best_coco_bbox_mAP_epoch_1.pth', 'epoch_2.pth'],
        ['best_coco_bbox_mAP_epoch_2.pth', 'epoch_2.pth'],
    )
    for name in names:
        assert network().load_state_dict(read_checkpoint(folder / name)['state_dict'], strict=True)
    assert latest_checkpoint(folder) == folder / 'epoch_2.pth'


def test_an_error_while_saving_removes_nothing() -> None:
    class Backend:
        removed: list[str] = []

        def isfile(self, path: str) -> bool:
            return True

        def remove(self, path: str) -> None:
            self.removed.append(path)

    hook = hooks.SafeCheckpointHook(interval=1)
    hook.file_backend = backend = Backend()
    with pytest.raises(OSError, match='disk full'), hook._removals_last():
        hook.file_backend.remove('epoch_1.pth')
        raise OSError('disk full')
    assert backend.removed == [] and hook.file_backend is backend
    with hook._removals_last():
        hook.file_backend.remove('epoch_1.pth')
        assert backend.removed == []
    assert backend.removed == ['epoch_1.pth']


def test_a_configs_text_is_laid_out_once_and_again_if_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is in each checkpoint of a run."""
    laid_out = []

    def text(self: Config) -> str:
        laid_out.append(self)
        return repr(self.to_dict())

    monkeypatch.setattr(Config, 'pretty_text', property(text))
    cfg = FormattedOnce(dict(model=dict(depth=8)))
    texts = [c.pretty_text for c in (cfg, cfg, cfg.copy(), copy.deepcopy(cfg))]
    assert len(laid_out) == 1 and len({*texts}) == 1
    cfg.model.depth = 20
    assert '20' in cfg.pretty_text and '20' not in texts[0] and len(laid_out) == 2
