"""Stages of classifiers: what each one trains, what it hands over, and that kills do no harm."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from densekd.core.checkpoint import read_checkpoint
from densekd.engine import load_config
from densekd.engine.optim import unwrapped
from densekd.engine.run import evaluate, prepare, train, write_json
from densekd.engine.runner import latest_checkpoint
from densekd.engine.stage_config import stage_config
from densekd.engine.stages import staged, train_stages
from densekd.errors import CheckpointError, ConfigError, DenseKDError
from densekd.wrappers.classifier import DistillClassifier
from densekd.wrappers.wiring import resting
from tests.helpers.classifiers import classifier
from tests.helpers.commands import Snapshot, command
from tests.helpers.detectors import entry, state, unlike
from tests.helpers.runs import KILLED, RUNS, differences, in_process

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/kd/{0}/classification/resnet/{0}_resnet8w8_{1}e_digits_teacher_resnet20w16_'
SHIPPED = {
    name: f'{CONFIG.format(name, epochs)}backbone_mimic.py'
    for name, epochs in (('ab', 11), ('fitnet', 11), ('fsp', 11), ('ft', 11), ('sskd', 12))
}
BATCH = 16


def options(data: Path, epochs: int = 1) -> dict[str, Any]:
    """Returns the overrides that make a shipped config a short run on tiny data."""
    found: dict[str, Any] = {
        'model.teacher.checkpoint': None,
        'model.teacher.untrained': True,
        'train_dataloader.batch_size': BATCH,
        'train_cfg.max_epochs': epochs,
        'log_level': 'WARNING',
        'default_hooks.logger.interval': 1,
    }
    for split in ('train', 'val', 'test'):
        found[f'{split}_dataloader.dataset.data_root'] = f'{data}/crops/'
    return found


def shipped(name: str, data: Path, work_dir: Path, epochs: int = 1, **more: Any) -> Any:
    """Returns a shipped config of stages, each of them short.

    Args:
        name: A key of `SHIPPED`.
        data: What `make_tiny_digits` returned.
        work_dir: Where the run writes.
        epochs: How long each stage runs.
        more: Anything else at the top of the config.
    """
    cfg = load_config(ROOT / SHIPPED[name])
    cfg.merge_from_dict(options(data, epochs))
    cfg.param_scheduler = []
    for stage in cfg.stages:
        stage.pop('param_scheduler', None)
        stage.pop('train_cfg', None)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='mmengine.KeepStartHook')]
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    for key, value in more.items():
        cfg[key] = value
    return prepare(cfg, work_dir)


@HOOKS.register_module(force=True)
class KeepStartHook(Hook):
    """Writes what a stage begins with."""

    def before_train(self, runner: Any) -> None:
        """Writes the file, once."""
        path = Path(runner.work_dir) / 'start.pt'
        if not path.exists():
            torch.save(everything(unwrapped(runner.model)), path)


@HOOKS.register_module(force=True)
class KillStageHook(Hook):
    """Kills its own process before an iteration of one stage, or as soon as the stage has ended."""

    priority = 'LOWEST'

    def __init__(self, stage: str, at: int | None) -> None:
        self.stage, self.at = stage, at

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Sends SIGKILL."""
        if Path(runner.work_dir).name == self.stage and runner.iter == self.at:
            os.kill(os.getpid(), 9)

    def after_run(self, runner: Any) -> None:
        """Sends SIGKILL."""
        if Path(runner.work_dir).name == self.stage and self.at is None:
            os.kill(os.getpid(), 9)


def everything(model: Any) -> dict[str, Tensor]:
    """Returns a copy of the student's state and of the distillers'."""
    added = {f'distillers.{k}': v for k, v in state(model.distillers).items()}
    return {**state(model.student), **added}


def began(folder: Path) -> dict[str, Tensor]:
    """Returns what a stage began with."""
    return torch.load(folder / 'start.pt')


def ended(folder: Path) -> dict[str, Tensor]:
    """Returns what a stage ended with."""
    saved = read_checkpoint(latest_checkpoint(folder))
    added = {f'distillers.{k}': v for k, v in saved['densekd']['distillers'].items()}
    return {**saved['state_dict'], **added}


def moved(folder: Path) -> set[str]:
    """Returns the names of all that a stage changed."""
    return set(unlike(began(folder), ended(folder)))


def go(cfg: Config, kill: tuple[str, int | None] | None = None) -> None:
    """Trains in a process of its own, which may be killed; each time it is the same command."""
    folder = Path(cfg.work_dir)
    folder.mkdir(exist_ok=True)
    cfg = cfg.copy()
    if kill is not None:
        # Not among the custom hooks, which decide whether it is the same run.
        killing = dict(type='mmengine.KillStageHook', stage=kill[0], at=kill[1])
        cfg['default_hooks'] = {**cfg.default_hooks, 'killing': killing}
    log = folder / 'log.txt'
    code = in_process(lambda: train_stages(cfg, preflight=False), log)
    assert code == (KILLED if kill else 0), f'{code}\n{log.read_text()[-3000:]}'


# The command --------------------------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'first'), [('ab', 'pretrain'), ('fitnet', 'hint')])
def test_one_command_runs_both_stages(name: str, first: str, digits: Path, tmp_path: Path) -> None:
    """From the shipped file, checked before; the second starts with the backbone of the first."""
    given = {**options(digits), 'stages.0.train_cfg.max_epochs': 1}
    work = tmp_path / 'work'
    answer = command(
        'train', ROOT / SHIPPED[name], '--work-dir', work,
        '--cfg-options', *(f'{key}={value}' for key, value in given.items()),
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert json.loads((work / 'stages.json').read_text()) == {
        first: f'{first}/epoch_1.pth',
        'train': 'train/epoch_1.pth',
    }
    saved, handed = (
        read_checkpoint(path)['state_dict']
        for path in (work / first / 'epoch_1.pth', work / f'{first}_to_train.pth')
    )
    assert set(handed) == {k for k in saved if k.startswith('backbone.')}
    assert all(torch.equal(handed[k], saved[k]) for k in handed)
    assert not list((work / first).glob('best_*')), 'its head has learnt nothing to be scored on'
    assert list((work / 'train').glob('best_*'))
    again = command('train', ROOT / SHIPPED[name], '--work-dir', work, '--cfg-options',
                    *(f'{key}={value}' for key, value in given.items()))  # fmt: skip
    assert again.code == 1 and '--resume' in again.err


# Kills --------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of AB, FitNet and FT that nothing interrupted."""
    folders = {name: tmp_path_factory.mktemp('whole') / name for name in ('ab', 'fitnet', 'ft')}
    with pytest.MonkeyPatch.context() as patched:  # as the engine's tests do it for each test
        patched.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
        for name, folder in folders.items():
            go(shipped(name, digits, folder))
    return folders


@pytest.mark.parametrize(
    ('name', 'kills'),
    [
        ('ab', [('pretrain', 3)]),
        ('ab', [('train', 3)]),
        ('fitnet', [('hint', 3), ('train', 1)]),
        ('fitnet', [('hint', None)]),
        ('ft', [('paraphraser', 3), ('train', 0), ('train', 3), ('train', None)]),
    ],
    ids=lambda value: value if isinstance(value, str) else '-'.join(f'{s}{i}' for s, i in value),
)
def test_killed_and_started_again_it_ends_the_same(
    name: str,
    kills: list[tuple[str, int | None]],
    whole: dict[str, Path],
    digits: Path,
    tmp_path: Path,
) -> None:
    """In the first stage, in the second, before a first checkpoint, and between stages."""
    cfg = shipped(name, digits, tmp_path / 'run')
    for kill in kills:
        go(cfg, kill)
    go(cfg)
    for stage in [s.name for s in cfg.stages]:
        one, two = (latest_checkpoint(root / stage) for root in (whole[name], tmp_path / 'run'))
        assert one is not None and two is not None and one.name == two.name
        assert differences(one, two) == []


def test_a_comparison_would_notice(whole: dict[str, Path], digits: Path, tmp_path: Path) -> None:
    """Another seed ends elsewhere."""
    go(shipped('ab', digits, tmp_path / 'run', randomness=dict(seed=1)))
    one, two = (latest_checkpoint(root / 'train') for root in (whole['ab'], tmp_path / 'run'))
    assert one is not None and two is not None
    assert any(key.startswith('state_dict/') for key in differences(one, two))


def test_an_interrupted_run_of_another_config_is_left_alone(digits: Path, tmp_path: Path) -> None:
    """Nothing is written into its folder."""
    go(shipped('ab', digits, tmp_path / 'run'), ('train', 1))
    before = Snapshot([tmp_path / 'run'])
    with pytest.raises(DenseKDError, match='another run: its (model|stages) differs'):
        train_stages(shipped('fitnet', digits, tmp_path / 'run'), preflight=False)
    assert before.changes() == []


def test_the_list_of_ended_stages_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What interrupts the writing leaves what was there."""
    path = tmp_path / 'stages.json'
    write_json(path, {'first': 'first/epoch_1.pth'})

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr('densekd.engine.run.os.replace', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {'first': 'first/epoch_1.pth', 'second': 'second/epoch_1.pth'})
    assert json.loads(path.read_text()) == {'first': 'first/epoch_1.pth'}


# What a stage trains ------------------------------------------------------------------------------


def parts(names: set[str]) -> set[str]:
    """Returns the parts of the network that names belong to."""
    return {'.'.join(name.split('.')[: 2 if name.startswith('backbone') else 1]) for name in names}


def test_each_stage_of_sskd_moves_its_own_block_and_no_other_bit(
    digits: Path, tmp_path: Path
) -> None:
    """Parameters and running statistics; and each begins where the one before it ended."""
    go(shipped('sskd', digits, tmp_path / 'run'))
    own = {
        'c2': {'backbone.conv1', 'backbone.bn1', 'backbone.layer1', 'distillers'},
        'c3': {'backbone.layer2', 'distillers'},
        'c4': {'backbone.layer3', 'distillers'},
        'head': {'head'},
    }
    before: dict[str, Tensor] = {}
    for stage, block in own.items():
        folder = tmp_path / 'run' / stage
        found = moved(folder)
        assert parts(found) == block
        if stage != 'head':
            assert any('running_mean' in name for name in found)
            assert any('num_batches_tracked' in name for name in found)
        start = {k: v for k, v in began(folder).items() if not k.startswith('distillers.')}
        assert not before or unlike(before, start) == []
        before = {k: v for k, v in ended(folder).items() if not k.startswith('distillers.')}


def test_the_paraphraser_learns_of_the_teacher_alone_and_is_then_left_alone(
    whole: dict[str, Path],
) -> None:
    """The student does not move in the first stage, nor the paraphraser in the second."""
    first, second = (whole['ft'] / name for name in ('paraphraser', 'train'))
    found = moved(first)
    assert found and all(name.startswith('distillers.') for name in found)
    of_encoder = {name for name in found if '.encoder.' in name}
    assert of_encoder and all(f'tea_connector{n.partition("tea_connector")[2]}' for n in of_encoder)
    learnt, start, end = ended(first), began(second), ended(second)
    for name in of_encoder:
        assert torch.equal(learnt[name], start[name]) and torch.equal(start[name], end[name])
    assert start['distillers.backbone_ft_c4.head.tea_connector.trained']
    also = moved(second)
    assert {'backbone.layer1', 'head', 'distillers'} <= parts(also)
    assert all('stu_connector' in name for name in also if name.startswith('distillers.'))


@pytest.mark.parametrize('name', ['ab', 'fitnet'])
def test_the_head_and_what_lies_behind_a_hint_rest_meanwhile(
    name: str, whole: dict[str, Path]
) -> None:
    found = parts(moved(whole[name] / ('pretrain' if name == 'ab' else 'hint')))
    assert found - {'distillers'} == {
        'backbone.conv1', 'backbone.bn1', 'backbone.layer1', 'backbone.layer2',
        *(['backbone.layer3'] if name == 'ab' else []),
    }  # fmt: skip
    assert 'head' in parts(moved(whole[name] / 'train'))


def test_a_stage_of_distillers_alone_takes_options_by_name(digits: Path, tmp_path: Path) -> None:
    """Where nothing of the student trains, there is no name of it that they could be for."""
    cfg = shipped('ft', digits, tmp_path / 'run')
    cfg.optim_wrapper.paramwise_cfg = dict(norm_decay_mult=0.0)
    go(cfg)
    saved = read_checkpoint(latest_checkpoint(tmp_path / 'run' / 'paraphraser'))
    assert len(saved['optimizer']['param_groups']) == 1
    assert moved(tmp_path / 'run' / 'paraphraser')


def test_after_fsp_the_task_comes_alone(digits: Path, tmp_path: Path) -> None:
    """Its stage has no term but the task's, and all of the student trains."""
    cfg = shipped('fsp', digits, tmp_path / 'run')
    go(cfg)
    saved = read_checkpoint(latest_checkpoint(tmp_path / 'run' / 'train'))
    assert saved['densekd']['terms'] == []
    assert {'backbone.conv1', 'backbone.layer3', 'head'} <= parts(moved(tmp_path / 'run' / 'train'))


def test_a_module_without_parameters_goes_with_what_holds_it() -> None:
    """Dropout in a head that trains is on; a norm without weights beside what trains rests."""
    model = nn.ModuleDict(
        dict(
            body=nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2)),
            head=nn.Sequential(nn.Dropout(), nn.Linear(2, 2)),
        )
    )
    head = ['head.1.weight', 'head.1.bias']
    assert resting(model, head) == ['body', 'body.0', 'body.1', 'body.2']
    assert resting(model, [*head, 'body.2.weight']) == ['body.0', 'body.1']
    assert resting(model, [n for n, _ in model.named_parameters()]) == []


def test_a_connector_that_does_not_train_rests_with_its_statistics() -> None:
    """A connector's norm is in eval like the student's."""
    teacher = dict(model=classifier(base_channels=8), untrained=True)
    distillers = [entry('backbone.c3.pre_relu', 'OFD', 1.0)]
    for patterns, trains in ((['backbone'], False), (['backbone', 'distillers'], True)):
        model = DistillClassifier(classifier(), teacher, distillers, trainable=patterns)
        norms = [m for m in model.distillers.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms and all(norm.training is trains for norm in norms if model.train())
        assert not model.student.head.training and model.student.backbone.training


# Two configs --------------------------------------------------------------------------------------


def test_two_configs_and_load_from_do_what_stages_do(
    whole: dict[str, Path], digits: Path, tmp_path: Path
) -> None:
    """To the bit, and the student that comes out is scored like any other."""
    pieces = staged(shipped('ab', digits, tmp_path / 'stages'))
    last: Path | None = None
    for name, cfg, _ in pieces:
        cfg.work_dir = str(tmp_path / name)
        cfg.experiment_name = f'two{next(RUNS)}'
        cfg.load_from = None if last is None else str(last)
        last = train(cfg, preflight=False)
        one = latest_checkpoint(whole['ab'] / name)
        if name == 'pretrain':
            assert differences(one, last) == []
    # Here the head is handed over as well; it is the one that both begin with.
    assert one is not None and last is not None and differences(one, last) == []
    assert evaluate(cfg, last)['accuracy/top1'] >= 0


def test_the_two_configs_of_imagenet_are_the_one_with_stages() -> None:
    """Same networks, terms and weights, and the first one's file is where the second looks."""
    folder = ROOT / 'configs/kd/ab/classification/resnet'
    cfg = load_config(folder / 'ab_resnet18_120e_imagenet_teacher_resnet50_backbone_mimic.py')
    cfg = prepare(cfg, 'work_dirs/both')
    pair = [
        prepare(folder / f'abloss_{name}_resnet50_resnet18_8xb32_in1k.py')
        for name in ('pretrain_backbone', 'logits')
    ]
    for stage, one in zip(cfg.stages, pair, strict=True):
        same = stage_config(cfg, stage)
        for key in ('model', 'train_cfg', 'param_scheduler', 'optim_wrapper', 'train_dataloader'):
            assert same[key] == one[key], key
    assert pair[1].load_from == f'{pair[0].work_dir}/epoch_20.pth'


# What is refused ----------------------------------------------------------------------------------

AUTOENCODER = dict(
    student_module='backbone.c4',
    head=dict(type='DistillationHead', loss='FitNetLoss', tea_connector='AutoencoderConnector'),
)
BROKEN: dict[str, tuple[list[dict[str, Any]], str]] = {
    'a module that is not there': (
        [dict(name='a', train=['backbone.layer9'], preset='ab')],
        r"stage 'a': train: 'backbone.layer9' matches nothing. Did you mean 'backbone'",
    ),
    'connectors of a method without any': (
        [dict(name='a', train=['distillers'], preset='kd')],
        r"stage 'a': train: nothing of 'distillers' can be trained: .*distillers add no parameters",
    ),
    'a part that the terms do not reach': (
        [dict(name='a', train=['head'], preset='fitnet', task_loss=False)],
        "stage 'a': .*'backbone.c3': no gradient reaches the student here",
    ),
    'neither terms nor task': (
        [dict(name='a', distillers=[], task_loss=False)],
        r'stages\[0\]: it has neither distillers nor the task to learn from',
    ),
    'a hand-over of what is not there': (
        [dict(name='a', preset='ab', hand_over=['neck']), dict(name='b', preset='kd')],
        "stage 'a': hand_over: 'neck' matches nothing",
    ),
    'a hand-over of connectors that are not there': (
        [dict(name='a', preset='ab', hand_over=['distillers.*.encoder.*']), dict(name='b')],
        "stage 'a': hand_over: distillers: '[*].encoder.[*]' matches nothing",
    ),
    'a hand-over of what the next stage has no place for': (
        [
            dict(
                name='a', train=['distillers'], distillers=[AUTOENCODER], task_loss=False,
                hand_over=['distillers'],
            ),
            dict(name='b', preset='ab'),
        ],
        "stage 'b': hand_over: distillers.*c4.head.* is handed over, and here it is missing",
    ),
    'a second stage that can not be merged': (
        [dict(name='a', preset='ab'), dict(name='b', preset='kd', optim_wrapper=dict(type={}))],
        "^stage 'b': optim_wrapper: ",
    ),
    'a stage that can not be merged, and hands over connectors': (
        [
            dict(
                name='a', distillers=[AUTOENCODER], hand_over=['distillers'],
                optim_wrapper=dict(type={}),
            ),
        ],
        "^stage 'a': optim_wrapper: ",
    ),
    'a scheduler that is a number': (
        [dict(name='a', preset='ab'), dict(name='b', preset='kd', param_scheduler=[3])],
        r"^stage 'b': param_scheduler\[0\]: a dict such as .* is needed, not 3.$",
    ),
    'a rate that is a text': (
        [
            dict(name='a', preset='ab'),
            dict(name='b', preset='kd', optim_wrapper=dict(optimizer=dict(lr='fast'))),
        ],
        "^stage 'b': optim_wrapper.optimizer: it can't be built: ",
    ),
    'milestones that are a number': (
        [
            dict(name='a', preset='ab'),
            dict(
                name='b',
                preset='kd',
                param_scheduler=[dict(type='MultiStepLR', milestones=5)],
            ),
        ],
        r"^stage 'b': param_scheduler\[0\]: it can't be built: ",
    ),
    **{
        f'{value!r} epochs': (
            [
                dict(name='a', preset='ab'),
                dict(name='b', preset='kd', train_cfg=dict(max_epochs=value)),
            ],
            "^stage 'b': train_cfg.max_epochs: a whole number above 0 is needed, not ",
        )
        for value in ('many', 0, -1, 1.5, True, float('nan'))
    },
    'the name of a file': ([dict(name='stages.json', preset='ab')], "a stage can't be called"),
    'a text for a list': ([dict(name='a', train='backbone', preset='ab')], 'a list of patterns'),
    'a number for a dict': ([dict(name='a', train_cfg=3, preset='ab')], 'train_cfg: a dict is'),
    'a text for a choice': ([dict(name='a', task_loss='no', preset='ab')], 'True or False'),
    'a name that is a path': ([dict(name='../a', preset='ab')], "a stage needs a 'name'"),
    'a paraphraser that nobody trained': (
        [
            dict(
                name='a',
                distillers=[
                    dict(student_module='backbone.c4', head=dict(type='FTDistillationHead'))
                ],
            )
        ],
        "stage 'a': .*no weights are given, and an untrained paraphraser",
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', list(BROKEN))
def test_what_is_wrong_is_said_before_anything_is_written(
    case: str, digits: Path, tmp_path: Path
) -> None:
    """In one sentence, also where only the last stage is wrong."""
    stages, message = BROKEN[case]
    cfg = shipped('ab', digits, tmp_path / 'run')
    cfg.stages = stages
    with pytest.raises(DenseKDError, match=message) as caught:
        train_stages(cfg)
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'run').exists()


def test_weights_of_an_ended_stage_that_are_gone_are_missed(digits: Path, tmp_path: Path) -> None:
    """And not replaced by random ones."""
    cfg = shipped('ab', digits, tmp_path / 'run')
    go(cfg, ('train', 0))
    for path in (tmp_path / 'run' / 'pretrain').glob('*.pth'):
        path.unlink()
    with pytest.raises(CheckpointError, match="stage 'pretrain' has ended, but .* is gone"):
        train_stages(cfg, resume=True, preflight=False)


def test_a_damaged_list_of_ended_stages_is_a_sentence(digits: Path, tmp_path: Path) -> None:
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'stages.json').write_text('{"pre')
    with pytest.raises(CheckpointError, match='stages.json: .* is damaged. Remove it'):
        train_stages(shipped('ab', digits, tmp_path / 'run'), resume=True, preflight=False)


def test_a_stage_changes_what_it_says_and_keeps_the_rest(digits: Path, tmp_path: Path) -> None:
    """Dicts are merged, and replaced with `_delete_`."""
    cfg = shipped('ab', digits, tmp_path)
    one = stage_config(cfg, dict(name='a', optim_wrapper=dict(optimizer=dict(lr=0.5))))
    assert one.optim_wrapper.optimizer == {**cfg.optim_wrapper.optimizer, 'lr': 0.5}
    assert one.optim_wrapper.clip_grad == cfg.optim_wrapper.clip_grad
    loop = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=3)
    assert stage_config(cfg, dict(name='a', train_cfg=loop)).train_cfg == dict(
        type='IterBasedTrainLoop', max_iters=3
    )
    with pytest.raises(ConfigError, match='^train_cfg: '):
        stage_config(cfg, dict(name='a', train_cfg=dict(max_epochs=dict(of=3))))
    own = cfg.optim_wrapper.pop('optimizer')  # which each stage may have for itself
    one = stage_config(prepare(cfg), dict(name='a', optim_wrapper=dict(optimizer=own)))
    assert one.optim_wrapper.optimizer == own
