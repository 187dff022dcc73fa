"""A run that was killed and resumed ends with the bits of one that was not."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.utils.data import Sampler

from densekd.core.checkpoint import read_checkpoint
from densekd.engine.data_order import SeededDataset, SeededSampler
from densekd.engine.hooks import SafeCheckpointHook
from densekd.engine.run import train
from densekd.engine.runner import DistillRunner, latest_checkpoint
from densekd.errors import CheckpointError
from densekd.wrappers.build import build_network
from densekd.wrappers.detector import DistillDetector
from tests.helpers.classifier_runs import labels_config
from tests.helpers.detectors import distilled, entry, retinanet, state, unlike
from tests.helpers.runs import (
    ITERATIONS,
    KILLED,
    differences,
    digits_config,
    in_process,
    save_teacher,
)

EMA = dict(type='EMAHook', momentum=0.1)
# What has a state beside weights: connectors with running statistics, margins that are counted
# from the data, a schedule, a place that is left alone from some iteration on.
DISTILLERS = [
    entry('backbone.c3', 'FitNet', 0.1, schedule=dict(warmup=8)),
    dict(
        student_module='backbone.c5.pre_relu',
        head=dict(
            type='OFDDistillationHead',
            loss=dict(type='OFDLoss', loss_weight=1e-3, margin='empirical'),
        ),
    ),
    entry(['neck.p2', 'neck.p3'], 'FGFI'),
    entry('neck.p3', 'PKD', schedule=dict(stop=7)),
]


def go(
    config: Config,
    kill_at: int | None = None,
    resume: bool = False,
    kill: dict[str, Any] | None = None,
) -> None:
    """Trains in a process of its own, which is killed before iteration `kill_at`, or by a hook."""
    folder = Path(config.work_dir)
    folder.mkdir(exist_ok=True)
    if kill_at is not None:
        kill = dict(type='mmengine.KillHook', at=kill_at)
    if kill is not None:
        # Not among the custom hooks, which decide whether it is the same run.
        config = config.copy()
        config['default_hooks'] = {**config.default_hooks, 'killing': kill}
    code = in_process(lambda: train(config, resume, preflight=False), folder / 'log.txt')
    expected = 0 if kill is None else KILLED
    assert code == expected, f'{code}\n{(folder / "log.txt").read_text()[-3000:]}'


def by_iteration(interval: int) -> dict[str, Any]:
    return dict(type='CheckpointHook', by_epoch=False, interval=interval)


IN_SECOND_EPOCH = 5  # of a classifier's run
EACH_EPOCH = dict(type='CheckpointHook', by_epoch=True, interval=1)
ITERATION_LOOP = dict(
    train_cfg=dict(type='IterBasedTrainLoop', max_iters=8, val_interval=1000),
    param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=7)],
)


@pytest.mark.parametrize(
    ('checkpoint', 'kill_at', 'left', 'last', 'more'),
    [
        pytest.param(
            by_iteration(3),
            8,
            'iter_6.pth',
            'iter_10.pth',
            dict(custom_hooks=[EMA], model='faster_rcnn'),  # whose sampler draws in each step
            id='within',
        ),
        pytest.param(EACH_EPOCH, 8, 'epoch_1.pth', 'epoch_2.pth', {}, id='between'),
        pytest.param(
            by_iteration(ITERATIONS), 6, 'iter_5.pth', 'iter_10.pth', {}, id='counted-between'
        ),
        pytest.param(
            by_iteration(3), 5, 'iter_3.pth', 'iter_8.pth', ITERATION_LOOP, id='without-epochs'
        ),
        pytest.param(
            by_iteration(3), 5, 'iter_3.pth', 'iter_10.pth', dict(gather=4), id='gathering'
        ),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    digits: Path,
    tmp_path: Path,
    checkpoint: dict[str, Any],
    kill_at: int,
    left: str,
    last: str,
    more: dict[str, Any],
) -> None:
    gather = more.get('gather', 1)
    more = {key: value for key, value in more.items() if key != 'gather'}

    def config(name: str) -> Config:
        made = digits_config(digits, tmp_path / name, DISTILLERS, workers=2, **more)
        made.default_hooks.checkpoint = checkpoint
        made.optim_wrapper.accumulative_counts = gather
        return made

    go(config('whole'))
    go(config('killed'), kill_at=kill_at)
    assert latest_checkpoint(tmp_path / 'killed').name == left
    assert not (tmp_path / 'killed' / last).exists()
    go(config('killed'), resume=True)
    assert differences(tmp_path / 'whole' / last, tmp_path / 'killed' / last) == []
    saved = read_checkpoint(tmp_path / 'killed' / last)
    assert ('ema_state_dict' in saved) == ('custom_hooks' in more)
    assert saved['densekd']['distillers'] and saved['optimizer']['state']
    # After iteration 3 one more is waited for; the last one steps in any case.
    between = read_checkpoint(tmp_path / 'killed' / left)
    assert ('gathered' in between) == (gather > 1) and 'gathered' not in saved
    said = (tmp_path / 'killed' / 'log.txt').read_text()
    assert ('gathered since the last step are taken up' in said) == (gather > 1)


def test_batches_grouped_by_shape_resume_within_an_epoch(digits: Path, tmp_path: Path) -> None:
    def config(name: str) -> Config:
        made = digits_config(digits, tmp_path / name, None, workers=2)
        made.train_dataloader.batch_sampler = dict(type='AspectRatioBatchSampler')
        made.default_hooks.checkpoint = by_iteration(3)
        return made

    go(config('whole'))
    go(config('killed'), kill_at=8)
    go(config('killed'), resume=True)
    whole, killed = (tmp_path / name / 'iter_10.pth' for name in ('whole', 'killed'))
    assert differences(whole, killed) == []


def test_a_run_without_a_seed_keeps_the_one_that_it_drew(digits: Path, tmp_path: Path) -> None:
    def config(name: str, seed: int | None) -> Config:
        return labels_config(digits, tmp_path / name, workers=2, randomness=dict(seed=seed))

    go(config('killed', None), kill_at=IN_SECOND_EPOCH)
    saved = read_checkpoint(tmp_path / 'killed' / 'epoch_1.pth')
    np.random.seed(saved['meta']['seed'] % 1000)  # else a fork of this process draws the same one
    go(config('killed', None), resume=True)
    go(config('whole', saved['meta']['seed']))
    whole, killed = (tmp_path / name / 'epoch_2.pth' for name in ('whole', 'killed'))
    assert differences(whole, killed) == []
    assert read_checkpoint(killed)['meta']['seed'] == saved['meta']['seed']


def test_a_comparison_would_notice(digits: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        go(digits_config(digits, tmp_path / str(seed), None, epochs=1, randomness=dict(seed=seed)))
    found = differences(tmp_path / '0' / 'epoch_1.pth', tmp_path / '1' / 'epoch_1.pth')
    assert any(key.startswith('state_dict/') for key in found)
    assert any(key.startswith('optimizer/') for key in found)


# A validation that was lost ---------------------------------------------------------------------


@HOOKS.register_module(force=True)
class KillBeforeValidationHook(Hook):
    """Kills its own process right after a checkpoint, at whose place it would be validated."""

    def __init__(self, at: int) -> None:
        self.at = at

    def before_val(self, runner: Any) -> None:
        """Sends SIGKILL."""
        if self.at in (runner.epoch, runner.iter):
            os.kill(os.getpid(), 9)


PLATEAU = dict(
    type='ReduceOnPlateauLR', monitor='accuracy/top1', rule='greater', patience=0, threshold=50
)
BY_ITERATION = dict(
    train_cfg=dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2),
    param_scheduler=[],
    default_hooks=dict(
        checkpoint=dict(**by_iteration(2), save_best='accuracy/top1', rule='greater')
    ),
)
LAST_ONLY = dict(
    default_hooks=dict(
        checkpoint=dict(**EACH_EPOCH, max_keep_ckpts=1, save_best='accuracy/top1', rule='greater')
    )
)


@pytest.mark.parametrize(
    ('killing', 'more'),
    [
        pytest.param(1, dict(epochs=3, param_scheduler=[PLATEAU]), id='first'),
        pytest.param(2, LAST_ONLY, id='last'),
        pytest.param(2, BY_ITERATION, id='counted'),
        pytest.param(None, dict(param_scheduler=[PLATEAU]), id='not-lost'),
    ],
)
def test_a_validation_that_was_lost_is_made_up_for(
    digits: Path, tmp_path: Path, killing: int | None, more: dict[str, Any]
) -> None:
    def config(name: str) -> Config:
        return labels_config(digits, tmp_path / name, **copy.deepcopy(more))

    go(config('whole'))
    if killing is None:
        go(config('killed'), kill_at=IN_SECOND_EPOCH)
    else:
        go(config('killed'), kill=dict(type='mmengine.KillBeforeValidationHook', at=killing))
    go(config('killed'), resume=True)
    folders = [tmp_path / name for name in ('whole', 'killed')]
    scores = [json.loads((folder / 'scores.json').read_text()) for folder in folders]
    assert scores[0] == scores[1] and len(scores[0]['all']) > 1
    names = [sorted(path.name for path in folder.glob('*.pth')) for folder in folders]
    assert names[0] == names[1]
    for name in names[0]:
        assert differences(*(folder / name for folder in folders)) == []
    saved = [read_checkpoint(latest_checkpoint(folder)) for folder in folders]
    info = [one['message_hub']['runtime_info'] for one in saved]
    assert info[0]['best_score'] == info[1]['best_score']
    assert Path(info[0]['best_ckpt']).name == Path(info[1]['best_ckpt']).name


def test_a_best_that_was_moved_is_not_looked_for_where_it_was(digits: Path, tmp_path: Path) -> None:
    made = [labels_config(digits, tmp_path / name, epochs=1) for name in ('here', 'there')]
    go(made[0])
    (tmp_path / 'here').rename(tmp_path / 'there')
    (best,) = (tmp_path / 'there').glob('best_*.pth')
    runner = DistillRunner.from_cfg(made[1])
    runner._resume = True
    runner.message_hub.update_info('best_ckpt', str(tmp_path / 'here' / best.name))
    hook = next(h for h in runner.hooks if isinstance(h, SafeCheckpointHook))
    hook.before_train(runner)
    assert hook.best_ckpt_path == str(best)


# Other beginnings ---------------------------------------------------------------------------------


def test_a_run_that_began_from_other_weights_resumes_its_own(digits: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    beginning = tmp_path / 'beginning.pth'
    torch.save({'state_dict': student().state_dict(), 'meta': {}}, beginning)
    made = [
        digits_config(digits, tmp_path / name, DISTILLERS, load_from=str(beginning))
        for name in ('whole', 'killed')
    ]
    go(made[0])
    go(made[1], kill_at=7)
    beginning.unlink()
    go(made[1], resume=True)
    whole, killed = (tmp_path / name / 'epoch_2.pth' for name in ('whole', 'killed'))
    assert differences(whole, killed) == []


def student() -> torch.nn.Module:
    """Returns the student of the runs."""
    return build_network(retinanet(classes=10), 'mmdet', 'student')


# What is not resumed ----------------------------------------------------------------------------


def test_another_teacher_is_refused(digits: Path, tmp_path: Path) -> None:
    def config(teacher: dict[str, Any]) -> Config:
        return digits_config(
            digits, tmp_path / 'run', [entry('neck.p3', 'PKD')], teacher=teacher, epochs=1
        )

    go(config(save_teacher(tmp_path / 'teacher.pth', seed=0)))
    same_file = save_teacher(tmp_path / 'teacher.pth', seed=0)
    other = save_teacher(tmp_path / 'teacher.pth', seed=1)
    assert same_file == other, 'the config says nothing of it'
    runner = DistillRunner.from_cfg(config(other))
    runner._resume = True
    saved = tmp_path / 'run' / 'epoch_1.pth'
    with pytest.raises(CheckpointError, match="another teacher 'teacher'.*teacher.pth"):
        runner.load_checkpoint(str(saved))


def test_other_distillers_are_refused() -> None:
    saved = distilled(distillers=[entry('neck.p3', 'PKD')]).distillation_state()
    for others in ([entry('neck.p4', 'PKD')], [entry('neck.p3', 'FitNet')]):
        with pytest.raises(CheckpointError, match='resume: .*other distillers .neck_pkd_p3., and'):
            distilled(distillers=others).load_distillation_state(saved)


def test_other_shapes_are_refused() -> None:
    saved = distilled(distillers=[entry('neck.p3', 'PKD')]).distillation_state()
    wider = dict(model=retinanet(8, 32), untrained=True)
    model = distilled(distillers=[entry('neck.p3', 'PKD')], teacher=wider)
    with pytest.raises(CheckpointError, match='other distillers'):
        model.load_distillation_state(saved)


def test_other_distillers_without_parameters_are_refused_too() -> None:
    teacher = dict(model=retinanet(8), untrained=True)
    make = lambda place: distilled(distillers=[entry(place, 'PKD')], teacher=teacher)  # noqa: E731
    assert not list(make('neck.p3').distillers.parameters())
    with pytest.raises(CheckpointError, match=r'other distillers \(neck_pkd_p3\), .* neck_pkd_p4'):
        make('neck.p4').load_distillation_state(make('neck.p3').distillation_state())


def test_a_teacher_more_or_less_is_refused() -> None:
    def make(*names: str) -> DistillDetector:
        teachers = [dict(name=n, model=retinanet(8), untrained=True) for n in names]
        return distilled(distillers=[entry('neck.p3', 'PKD', teacher='a')], teacher=teachers)

    for one, other in ((make('a'), make('a', 'b')), (make('a', 'b'), make('a'))):
        with pytest.raises(CheckpointError, match="another teacher 'b'"):
            one.load_distillation_state(other.distillation_state())


def test_a_file_that_no_distillation_wrote_is_not_resumed(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / 'plain.pth'
    torch.save({'state_dict': student().state_dict(), 'meta': {}}, path)
    runner = DistillRunner.from_cfg(digits_config(digits, tmp_path / 'run'))
    runner.load_checkpoint(str(path))
    runner._resume = True
    with pytest.raises(CheckpointError, match='no state of distillation'):
        runner.load_checkpoint(str(path))


def test_the_state_of_distillation_comes_back() -> None:
    first, second = distilled(), distilled(seed=3)
    first.set_clock(17, 2)
    assert unlike(state(first.distillers), state(second.distillers))
    second.load_distillation_state(first.distillation_state())
    assert unlike(state(first.distillers), state(second.distillers)) == []
    assert (second.iteration, second.epoch) == (17, 2)


def test_a_resumed_run_without_a_checkpoint_begins(digits: Path, tmp_path: Path) -> None:
    go(digits_config(digits, tmp_path / 'run', None, epochs=1), resume=True)
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()


# The order of the data --------------------------------------------------------------------------


class Endless(Sampler):
    """A sampler that never ends, as mmengine's InfiniteSampler; it can skip on some releases."""

    def __iter__(self) -> Iterator[int]:
        return (7 * i % 10 for i in count())

    def skip(self, number: int) -> None:
        raise AssertionError('positions would be counted anew')


def test_an_endless_sampler_resumes_with_the_seeds_of_its_positions() -> None:
    sampler = SeededSampler(Endless(), seed=3)
    whole = [(int(i), i.seed) for i in islice(sampler, 12)]
    assert len({seed for _, seed in whole}) == 12
    sampler.skip(5)
    assert [(int(i), i.seed) for i in islice(sampler, 7)] == whole[5:]
    assert [(int(i), i.seed) for i in islice(sampler, 12)] == whole, 'once'
    assert not hasattr(SeededSampler(range(10), seed=3), 'skip'), 'an end would be skipped over'


def test_a_hook_may_change_the_dataset_inside() -> None:
    class Data:
        pipeline = 'first'

    inner = Data()
    dataset = SeededDataset(inner)
    dataset.pipeline = 'second'
    assert inner.pipeline == dataset.pipeline == 'second'


# Which checkpoint is the last -------------------------------------------------------------------


def written(folder: Path, *names: str) -> Path:
    """Makes files, the later ones newer."""
    for age, name in enumerate(reversed(names)):
        (folder / name).write_bytes(b'')
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    return folder


def test_the_file_that_names_the_last_checkpoint_is_believed(tmp_path: Path) -> None:
    folder = written(tmp_path, 'epoch_1.pth', 'epoch_2.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    assert latest_checkpoint(folder) == folder / 'epoch_1.pth'


def test_a_folder_that_was_moved_is_still_resumed(tmp_path: Path) -> None:
    folder = written(tmp_path, 'epoch_1.pth', 'epoch_2.pth')
    (folder / 'last_checkpoint').write_text('/where/it/was/epoch_1.pth')
    assert latest_checkpoint(folder) == folder / 'epoch_1.pth'


def test_a_folder_that_was_moved_keeps_its_own_where_another_run_is(tmp_path: Path) -> None:
    for name in ('here', 'there'):
        (tmp_path / name).mkdir()
        written(tmp_path / name, 'epoch_1.pth')
        (tmp_path / name / 'last_checkpoint').write_text(str(tmp_path / 'here' / 'epoch_1.pth'))
    assert latest_checkpoint(tmp_path / 'there') == tmp_path / 'there' / 'epoch_1.pth'


def test_checkpoints_may_be_elsewhere(tmp_path: Path) -> None:
    """As `out_dir` of the checkpoint hook has them."""
    elsewhere = tmp_path / 'out'
    elsewhere.mkdir()
    written(elsewhere, 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text(str(elsewhere / 'epoch_1.pth'))
    assert latest_checkpoint(tmp_path) == elsewhere / 'epoch_1.pth'


@pytest.mark.parametrize('torn', ['', '/runs/other/epo', 'epoch_3.pth', '\n'])
def test_where_it_is_torn_the_newest_is_taken(tmp_path: Path, torn: str) -> None:
    folder = written(tmp_path, 'best_coco_epoch_1.pth', 'epoch_9.pth', 'epoch_10.pth')
    (folder / '.epoch_11.pth.partial').write_bytes(b'')
    (folder / 'last_checkpoint').write_text(torn)
    assert latest_checkpoint(folder) == folder / 'epoch_10.pth'


def test_there_may_be_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / 'missing') is None
