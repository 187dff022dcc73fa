"""The commands, in one process, on tiny digit scenes: what they say, and what they leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from densekd.core.checkpoint import read_checkpoint
from tests.helpers.commands import (
    Answer,
    Snapshot,
    command,
    hint,
    make_workplace,
    tiny_config,
    write_config,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a teacher, and a run that the tests only look at."""
    root = tmp_path_factory.mktemp('workplace')
    make_workplace(root)
    return root


@pytest.fixture(scope='module')
def trained(workplace: Path) -> tuple[Path, Path, Answer]:
    """A distilled student: its config, its work_dir, and what training said."""
    config = write_config(tiny_config(workplace), workplace / 'distilled.py')
    work = workplace / 'work'
    return config, work, command('train', config, '--work-dir', work)


def test_train_ends_with_the_student_and_the_next_command(trained: Any) -> None:
    """The last two lines name the file, and what to do with it."""
    config, work, answer = trained
    assert answer.code == 0, answer.err
    student, following = answer.out.strip().splitlines()[-2:]
    path = Path(student.removeprefix('The student: '))
    assert path.is_file() and path.parent == work
    assert following == f'Next: densekd test {config} {path}'
    assert 'distill.loss_neck_fitnet_p3' in answer.out
    assert 'densekd' in read_checkpoint(work / 'epoch_1.pth')


def test_a_run_leaves_the_teacher_and_the_data_alone(workplace: Path, tmp_path: Path) -> None:
    """Everything is written into the work_dir."""
    config = write_config(tiny_config(workplace), tmp_path / 'config' / 'distilled.py')
    before = Snapshot([workplace, config.parent])
    options = [
        '--cfg-options',
        'train_dataloader.batch_size=6',
        'val_cfg=None',
        'val_evaluator=None',
    ]
    answer = command(
        'train', config, '--work-dir', tmp_path / 'work', *options, 'val_dataloader=None'
    )
    assert answer.code == 0, answer.err
    # mmengine's log of an earlier run in this process is written to until the next one begins.
    assert [p for p in before.changes() if not p.endswith('.log')] == []


def test_a_plain_config_trains_too(workplace: Path, tmp_path: Path) -> None:
    """Without a teacher, with the options that the toolboxes have."""
    config = write_config(tiny_config(workplace, distilled=False), tmp_path / 'plain.py')
    answer = command(
        'train', config, '--work-dir', tmp_path / 'work', '--auto-scale-lr', '--no-check',
        '--cfg-options', 'auto_scale_lr.base_batch_size=4', 'optim_wrapper.optimizer.lr=0.004',
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert 'densekd' not in read_checkpoint(tmp_path / 'work' / 'epoch_1.pth')
    group = read_checkpoint(tmp_path / 'work' / 'epoch_1.pth')['optimizer']['param_groups'][0]
    assert group['initial_lr'] == pytest.approx(0.002)


def test_another_run_is_not_written_over(trained: Any, workplace: Path, tmp_path: Path) -> None:
    """The same run needs --resume, another one another folder."""
    config, work, _ = trained
    before = Snapshot([work])
    again = command('train', config, '--work-dir', work)
    assert again.code == 1 and 'a run of this config already. Pass --resume' in again.err
    changed = tiny_config(workplace)
    changed['optim_wrapper']['optimizer']['lr'] = 1e-4
    other = command(
        'train', write_config(changed, tmp_path / 'o.py'), '--work-dir', work, '--resume'
    )
    assert other.code == 1 and 'another run: its optim_wrapper differs' in other.err
    assert before.changes() == []


def test_a_mistake_that_is_put_right_is_run_in_the_same_folder(
    workplace: Path, tmp_path: Path
) -> None:
    """A run that wrote no checkpoint does not hold its folder."""
    cfg = tiny_config(workplace)
    cfg['model']['distillers'] = [hint('neck.p33')]
    config = write_config(cfg, tmp_path / 'c.py')
    assert command('train', config, '--work-dir', tmp_path / 'work').code == 1
    write_config(tiny_config(workplace), config)
    assert command('train', config, '--work-dir', tmp_path / 'work').code == 0


def test_a_config_is_not_written_over(workplace: Path, tmp_path: Path) -> None:
    """A run's copy of it would have its name, and be in its place."""
    config = write_config(tiny_config(workplace), tmp_path / 'my.py')
    before = Snapshot([tmp_path])
    answer = command('train', config, '--work-dir', tmp_path)
    assert answer.code == 1 and answer.err == (
        f'densekd train: {config}: the run would write its copy of the config over this very '
        'file. Give another --work-dir.\n'
    )
    assert before.changes() == []


def test_a_teacher_that_is_trusted_is_read_in_the_check_too(
    workplace: Path, tmp_path: Path
) -> None:
    """And whether it is does not make a run another one."""
    weights = torch.load(workplace / 'teacher.pth')
    torch.save({**weights, 'meta': {'made_by': Answer(0, '', '')}}, tmp_path / 'teacher.pth')
    cfg = tiny_config(workplace)
    cfg['model']['teacher']['checkpoint'] = str(tmp_path / 'teacher.pth')
    config, work = write_config(cfg, tmp_path / 'c.py'), tmp_path / 'work'
    refused = command('train', config, '--work-dir', work)
    assert refused.code == 1 and 'pass --trust-checkpoint' in refused.err
    answer = command('train', config, '--work-dir', work, '--trust-checkpoint')
    assert answer.code == 0, answer.err
    again = command('train', config, '--work-dir', work)
    assert again.code == 1 and 'a run of this config already. Pass --resume' in again.err


def test_resume_goes_on_where_the_run_stopped(workplace: Path, tmp_path: Path) -> None:
    """Two epochs, the second of which is lost and trained again, to the same bits."""
    cfg = tiny_config(workplace)
    cfg['train_cfg']['max_epochs'] = 2
    cfg['default_hooks']['checkpoint'] = dict(type='CheckpointHook', interval=1)
    config, work = write_config(cfg, tmp_path / 'c.py'), tmp_path / 'work'
    assert command('train', config, '--work-dir', work).code == 0
    whole = read_checkpoint(work / 'epoch_2.pth')['state_dict']
    (work / 'epoch_2.pth').unlink()
    (work / 'last_checkpoint').write_text(str(work / 'epoch_1.pth'))
    answer = command('train', config, '--work-dir', work, '--resume')
    assert answer.code == 0, answer.err
    again = read_checkpoint(work / 'epoch_2.pth')['state_dict']
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    assert 'Epoch(train) [1]' not in answer.out


def test_resume_without_a_run_starts_one(workplace: Path, tmp_path: Path) -> None:
    """As a job script that is started again and again needs it."""
    config = write_config(tiny_config(workplace), tmp_path / 'c.py')
    answer = command('train', config, '--work-dir', tmp_path / 'work', '--resume')
    assert answer.code == 0, answer.err


def test_test_scores_the_student(trained: Any, tmp_path: Path) -> None:
    """The metrics come as a table and as a file, without the teacher."""
    config, work, _ = trained
    answer = command(
        'test', config, work / 'epoch_1.pth', '--work-dir', tmp_path, '--out', tmp_path / 'm.json',
        '--eval', 'bbox', '--cfg-options', 'model.teacher.checkpoint=gone.pth',
    )  # fmt: skip
    assert answer.code == 0, answer.err
    metrics = json.loads((tmp_path / 'm.json').read_text())
    assert 'coco/bbox_mAP' in metrics and 'coco/bbox_mAP' in answer.out
    assert answer.out.strip().splitlines()[-1].startswith('Next: densekd ')


@pytest.mark.parametrize(
    ('argv', 'sentence'),
    [
        (['gone.pth'], 'gone.pth: there is no such checkpoint.'),
        (
            ['STUDENT', '--eval', 'bbx'],
            "--eval: CocoMetric has no metric 'bbx'. Did you mean 'bbox'",
        ),
        (['TEACHER'], 'The student config and its checkpoint differ'),
        (['STUDENT', '--cfg-options', 'test_evaluator=None'], 'the config has no test_evaluator'),
    ],
)
def test_test_says_what_is_wrong(
    argv: list[str], sentence: str, trained: Any, workplace: Path, tmp_path: Path
) -> None:
    """A sentence, and nothing written."""
    config, work, _ = trained
    files = {'STUDENT': work / 'epoch_1.pth', 'TEACHER': workplace / 'teacher.pth'}
    answer = command('test', config, *(files.get(a, a) for a in argv), '--work-dir', tmp_path / 'w')
    assert answer.code == 1
    assert answer.err.startswith('densekd test: ') and sentence in answer.err
    assert answer.err.count('\n') == 1


def test_check_is_quiet_and_says_what_it_found(trained: Any, tmp_path: Path) -> None:
    """A table, four sentences, and nothing of the libraries' talk; no file is left."""
    config, work, _ = trained
    before = Snapshot([work.parent])
    answer = command('check', config)
    assert answer.code == 0 and answer.err == ''
    assert 'DistillDetector(RetinaNet), one step on a generated batch 2x3x64x64' in answer.out
    assert 'neck_fitnet_p3' in answer.out and 'ConvConnector 16->24' in answer.out
    for noise in ('annotations into memory', 'mmengine', 'Warning', 'index'):
        assert noise not in answer.out
    assert answer.out.strip().splitlines()[-1] == f'Next: densekd train {config}'
    assert before.changes() == []


def test_check_needs_no_weights(workplace: Path, tmp_path: Path) -> None:
    """With --without-weights, a teacher's file may be missing."""
    cfg = tiny_config(workplace)
    cfg['model']['teacher']['checkpoint'] = 'gone.pth'
    config = write_config(cfg, tmp_path / 'c.py')
    assert command('check', config).code == 1
    assert command('check', config, '--without-weights', '--small').code == 0


def test_taps_lists_places_and_presets(trained: Any) -> None:
    """Named taps of both networks, the presets that fit, and what one stands for."""
    config, _, _ = trained
    answer = command('taps', config)
    assert answer.code == 0 and answer.err == ''
    for name in ('student: RetinaNet', 'teacher: RetinaNet', 'backbone.c4.pre_relu', 'neck.p5'):
        assert name in answer.out
    following = answer.out.strip().splitlines()[-1]
    assert following.startswith(f'Next: densekd taps {config} --preset ')
    text = command(*following.removeprefix('Next: densekd ').split()).out
    scope: dict[str, Any] = {}
    exec(text, scope)
    assert scope['distillers'][0]['student_module']


def test_taps_lists_every_module(trained: Any) -> None:
    """With --all, also those without a name of their own."""
    config, _, _ = trained
    answer = command('taps', config, '--all')
    assert answer.code == 0 and 'backbone.layer2.0.conv1' in answer.out


def stages(data: Path) -> dict[str, Any]:
    """Returns a config of two stages: the hint alone, on the backbone, then everything."""
    cfg = tiny_config(data)
    cfg['default_hooks']['checkpoint'] = dict(type='CheckpointHook', interval=1)
    cfg['stages'] = [
        dict(
            name='hint', train=['backbone.*', 'distillers'], distillers=[hint('backbone.c3')],
            task_loss=False, hand_over=['backbone.*'],
        ),
        dict(name='train'),
    ]  # fmt: skip
    return cfg


def test_stages_run_one_after_the_other_and_resume(workplace: Path, tmp_path: Path) -> None:
    """A stage that has ended is not run again; the next starts from what it handed over."""
    config, work = write_config(stages(workplace), tmp_path / 'c.py'), tmp_path / 'work'
    answer = command('train', config, '--work-dir', work)
    assert answer.code == 0, answer.err
    assert json.loads((work / 'stages.json').read_text()) == {
        'hint': 'hint/epoch_1.pth',
        'train': 'train/epoch_1.pth',
    }
    handed = read_checkpoint(work / 'hint_to_train.pth')['state_dict']
    first = read_checkpoint(work / 'hint' / 'epoch_1.pth')['state_dict']
    assert set(handed) == {k for k in first if k.startswith('backbone.')}
    assert all(torch.equal(handed[k], first[k]) for k in handed)

    again = command('train', config, '--work-dir', work)
    assert again.code == 1 and '--resume' in again.err

    whole = read_checkpoint(work / 'train' / 'epoch_1.pth')['state_dict']
    (work / 'stages.json').write_text(json.dumps({'hint': 'hint/epoch_1.pth'}))
    for path in (work / 'train').glob('*.pth'):
        path.unlink()
    (work / 'train' / 'last_checkpoint').unlink()
    before = Snapshot([work / 'hint'])
    resumed = command('train', config, '--work-dir', work, '--resume')
    assert resumed.code == 0, resumed.err
    assert before.changes() == []
    for stage in ('hint', 'train'):
        assert list((work / stage).rglob('scalars.json')), f'the curves of {stage} are elsewhere'
    same = read_checkpoint(work / 'train' / 'epoch_1.pth')['state_dict']
    assert all(torch.equal(whole[k], same[k]) for k in whole)


def test_a_stage_trains_only_what_it_names(workplace: Path, tmp_path: Path) -> None:
    """The neck and the head are as they began, statistics included."""
    cfg = stages(workplace)
    cfg['stages'] = cfg['stages'][:1]
    config = write_config(cfg, tmp_path / 'c.py')
    start = command(
        'train', config, '--work-dir', tmp_path / 'w', '--cfg-options', 'train_cfg.max_epochs=2'
    )
    assert start.code == 0, start.err
    one, two = (read_checkpoint(tmp_path / f'w/hint/epoch_{i}.pth')['state_dict'] for i in (1, 2))
    moved = {k.split('.')[0] for k in one if not torch.equal(one[k], two[k])}
    assert moved == {'backbone'}


def test_version_help_and_no_command() -> None:
    """These need no config."""
    assert 'check' in command().out
    with pytest.raises(SystemExit) as ended:
        command('--version')
    assert ended.value.code == 0


def test_scripts_of_the_toolboxes(tmp_path: Path) -> None:
    """They are plain sh, and say how they are called."""
    for path in sorted((ROOT / 'tools').glob('*.sh')):
        assert subprocess.run(['sh', '-n', path]).returncode == 0
        called = subprocess.run(['sh', path], capture_output=True, text=True)
        assert called.returncode == 2 and called.stderr.startswith(f'usage: sh tools/{path.name} ')


@pytest.mark.parametrize(
    ('script', 'argv', 'expected'),
    [
        ('slurm_train.sh', ['part', 'job', 'c.py', 'work', '--resume'],
         'c.py --work-dir work --launcher slurm --resume'),
        ('slurm_test.sh', ['part', 'job', 'c.py', 'a.pth', '--eval', 'bbox'],
         'c.py a.pth --launcher slurm --eval bbox'),
    ],
)  # fmt: skip
def test_slurm_gets_the_arguments(
    script: str, argv: list[str], expected: str, tmp_path: Path
) -> None:
    """A stand-in for srun says what it was called with."""
    stand_in = tmp_path / 'srun'
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    environment = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'GPUS': '4', 'SRUN_ARGS': '-w node1'}
    said = subprocess.run(
        ['sh', ROOT / 'tools' / script, *argv], env=environment, capture_output=True, text=True
    ).stdout
    assert '--partition=part --job-name=job --gres=gpu:4 --ntasks=4' in said and '-w node1' in said
    assert said.strip().endswith(expected)


@pytest.mark.slow
def test_two_processes_without_a_gpu(workplace: Path, tmp_path: Path) -> None:
    """dist_train.sh and dist_test.sh, where there is no GPU."""
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    config = write_config(tiny_config(workplace), tmp_path / 'c.py')
    environment = {'PATH': '/usr/bin:/bin', 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1',
                   'PORT': '29617', 'HOME': str(tmp_path)}  # fmt: skip
    work = tmp_path / 'work'
    for script, argv in (
        ('dist_train.sh', [config, '2', '--work-dir', work]),
        ('dist_test.sh', [config, work / 'epoch_1.pth', '2', '--work-dir', tmp_path / 'test']),
    ):
        ran = subprocess.run(
            ['sh', ROOT / 'tools' / script, *argv], env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count('Next: ') == 1
