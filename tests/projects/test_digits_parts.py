"""The benchmark on classifiers: stages, rounds, several teachers, parts of the data, tables."""

from __future__ import annotations

import argparse
import doctest
import json
import math
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

import arms
import parts
import run as bench
import table

from densekd.cli import demo_steps
from densekd.datasets import make_digits
from densekd.engine import load_config

METHODS = demo_steps.methods_of('resnet', 'classification')
SETTING = arms.SETTINGS['resnet']
# One batch and one epoch a stage, so that what is logged is the loss before the first step.
OPTIONS = {
    'train_cfg.max_epochs': 1,
    'train_dataloader.batch_size': 512,
    'default_hooks.logger.interval': 1,
}
SHORT = {'stages.0.train_cfg.max_epochs': 1}


@pytest.mark.parametrize('model', list(arms.SETTINGS))
def test_each_config_has_a_name_of_its_own(model):
    task = arms.SETTINGS[model].task
    pattern = f'*/{task}/{model.replace("-", "_")}/*_digits_teacher_*.py'
    paths = demo_steps.configs_folder('demo').glob(f'kd/{pattern}')
    assert set(demo_steps.methods_of(model, task).values()) == set(paths)


@pytest.mark.parametrize('model', list(arms.SETTINGS))
def test_a_setting_names_what_there_is(model):
    setting = arms.SETTINGS[model]
    digits = demo_steps.configs_folder('demo') / 'digits'
    assert (digits / f'{setting.student}.py').is_file()
    assert (digits / f'{setting.teacher}.py').is_file()
    assert setting.control_method in demo_steps.methods_of(model, setting.task)


def test_a_name_says_what_tells_configs_of_one_method_apart():
    assert {'kd', 'kd-ema', 'kd-ensemble', 'feed-ensemble', 'feed-resnet8w8', 'ofd'} <= set(METHODS)
    assert METHODS['kd'].stem == 'kd_resnet8w8_8e_digits_teacher_resnet20w16_head_mimic'
    found = demo_steps.methods_of('deeplabv3plus', 'segmentation')
    assert {'ofd-backbone', 'ofd-head', 'cwd'} <= set(found)


def test_every_trained_teacher_of_a_config_is_the_benchmarks_teacher():
    numbers = set()
    for method, path in METHODS.items():
        teachers = load_config(path).model.get('teacher') or []
        teachers = teachers if isinstance(teachers, list) else [teachers]
        trained = [teacher for teacher in teachers if teacher.get('checkpoint')]
        assert len(demo_steps.teacher_keys(path)) == len(trained)
        numbers.add(len(trained))
        for teacher in trained:
            assert Path(teacher.model).stem == SETTING.teacher, method
    assert numbers == {0, 1, 2}


def test_an_ensemble_waits_for_all_its_teachers_and_they_see_all_data():
    number = {'kd-ensemble': 2}
    todo = arms.jobs(('plain', 'kd-ensemble'), (0,), (1.0, 0.1), number)
    teachers = [arms.Job('teacher', 0), arms.Job('teacher', 1)]
    assert todo[arms.Job('kd-ensemble', 0, 0.1)] == todo[arms.Job('kd-ensemble', 0)] == teachers
    assert list(todo)[:2] == teachers and len(todo) == 6
    assert len({str(job) for job in todo}) == len(todo)


def test_a_part_is_drawn_by_the_seed_and_the_same_for_all_arms():
    drawn = [arms.part_of_data(arms.Job(*job)) for job in (('kd', 3, 0.1), ('plain', 3, 0.1))]
    assert drawn[0] == drawn[1]
    assert drawn[0] != arms.part_of_data(arms.Job('kd', 4, 0.1))
    assert arms.part_of_data(arms.Job('kd', 3)) == {}


def test_all_methods_run_with_the_weights_that_were_chosen():
    args = argparse.Namespace(
        model='resnet', arms=['all'], fractions=[0.5], control_method='kd', teacher_seed=None
    )
    teachers = bench.check(args, argparse.ArgumentParser())
    ours = args.arms[len(arms.CONTROLS) :]
    assert [arms.Job(arm, 0).method for arm in ours] == list(METHODS)
    factors = {arms.Job(arm, 0).method: arms.Job(arm, 0).factor for arm in ours}
    assert {m: f for m, f in factors.items() if f != 1} == SETTING.factors
    assert teachers['kd'] == 1 and teachers['kd-ensemble'] == 2 and teachers['dml'] == 0


def test_rounds_of_two_runs_share_no_seed():
    seeds = [set(arms.round_seeds(METHODS['born_again'], seed).values()) for seed in (0, 1)]
    assert all(len(of_run) == 2 for of_run in seeds) and not seeds[0] & seeds[1]
    assert arms.round_seeds(METHODS['kd'], 1) == {}


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (['--fractions', '0.5'], '--fractions: the data of retinanet has none'),
        (['--model', 'resnet', '--fractions', '0'], 'above 0 and up to 1, not 0.'),
        (['--model', 'resnet', '--control-method', 'dml'], "'dml' has not one trained teacher"),
        (
            ['--arms', 'untrained-teacher', '--control-method', 'pdk'],
            "--control-method: there is no 'pdk' for retinanet. Did you mean 'pkd'?",
        ),
    ],
)
def test_what_can_not_be_run_is_refused(given, message, capsys):
    with pytest.raises(SystemExit):
        bench.main(given)
    assert message in capsys.readouterr().err


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Returns a folder with data, and teachers of two seeds, which are not trained."""
    root = tmp_path_factory.mktemp('digits')
    make_digits(root / 'digits', train=40, val=4, test=8, progress=False)
    wide = METHODS['kd'].parents[4] / 'digits' / f'{SETTING.teacher}.py'
    for seed in (0, 1):
        run = root / str(arms.Job('teacher', seed))
        run.mkdir()
        held = arms.untrained(wide, run, seed)
        (run / 'result.json').write_text(json.dumps({'checkpoint': held.name}))
    return root


@pytest.fixture
def train(folder, monkeypatch):
    """Returns a function that runs a job, without the check before it."""
    import densekd.engine.preflight as preflight

    monkeypatch.setattr(preflight, 'check_before_training', lambda *args, **more: None)
    # The layout of the configs that a run writes takes most of its time.
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))

    def run(arm: str, fraction: float = 1.0, options: dict | None = None) -> demo_steps.Run:
        job = arms.Job(arm, 0, fraction)
        args = argparse.Namespace(
            model='resnet', data=folder / 'digits', split='test', teacher_seed=None,
            options=json.dumps({**OPTIONS, **(options or {})}), work_dir=folder,
            control_method='kd', equal_epochs=2, long_epochs=1,
        )  # fmt: skip
        return arms.train(job, args)

    return run


def test_stages_are_run_weighed_and_resumed(train):
    once, thrice = (
        {stage: parts.columns(run.folder / stage) for stage in parts.stages_of(run.folder)}
        for run in (train('fitnet', options=SHORT), train('fitnet@3', options=SHORT))
    )
    assert list(once) == list(thrice) == ['hint', 'train']
    hint, kd = 'distill.loss_backbone_fitnet_c3', 'distill.loss_head_kd'
    assert thrice['hint'][hint][0] == pytest.approx(3 * once['hint'][hint][0], rel=1e-3)
    # The first stage's step has hardly any other length for another weight, by Adam.
    assert thrice['train'][kd][0] == pytest.approx(3 * once['train'][kd][0], rel=0.2)
    run = train('fitnet', options=SHORT)
    assert run.checkpoint == run.folder / 'train/epoch_1.pth' and 'accuracy/top1' in run.metrics
    (run.folder / 'result.json').unlink()
    (run.folder / 'stages.json').write_text(json.dumps({'hint': 'hint/epoch_1.pth'}))
    run.checkpoint.unlink()
    written = (run.folder / 'hint' / 'epoch_1.pth').stat().st_mtime_ns
    assert train('fitnet', options=SHORT).metrics == run.metrics
    assert (run.folder / 'hint' / 'epoch_1.pth').stat().st_mtime_ns == written


def test_rounds_are_run_and_weighed_of_which_the_first_has_no_teacher(train):
    run = train('born_again@2')
    assert run.checkpoint == run.folder / 'third/epoch_1.pth'
    rounds = parts.stages_of(run.folder)
    assert rounds == ['first', 'second', 'third']
    configs = [load_config(next((run.folder / name).glob('*.py'))) for name in rounds]
    assert [cfg.randomness.seed for cfg in configs] == [0, 1000, 2000]


def test_an_ensemble_on_half_the_data_seen_twice_is_taught_by_both_teachers(train, folder):
    run = train('kd-ensemble', 0.5, {'train_dataloader.batch_size': 16})
    cfg = run.config
    teachers = [Path(teacher.checkpoint).parent.name for teacher in cfg.model.teacher]
    assert teachers == ['teacher_s0', 'teacher_s1'] and cfg.model.seed == 0
    images = len(list((folder / 'digits' / 'crops' / 'train').glob('*/*.png')))
    shown = cfg.train_dataloader.dataset
    assert (shown.fraction, shown.fraction_seed, shown.repeat) == (0.5, 0, 2)
    steps = parts.columns(run.folder)['step'][-1]
    assert abs(steps - math.ceil(images / 16)) <= 1 < steps / 2
    mark = json.loads((run.folder / 'result.json').read_text())['mark']
    assert demo_steps.run_mark(cfg) == mark
    # The same config, but the second teacher's file is another.
    held = Path(cfg.model.teacher[1].checkpoint)
    held.write_bytes(Path(cfg.model.teacher[0].checkpoint).read_bytes())
    assert demo_steps.run_mark(cfg) != mark


def test_the_untrained_teacher_teaches_with_the_weight_that_its_method_has(train):
    hooks = train('untrained-teacher').config.custom_hooks
    expected = arms.weighing(METHODS['kd'], SETTING.factors['kd'])
    assert expected[-1] in [dict(hook) for hook in hooks]


def test_peers_are_run_without_a_teacher(train):
    assert train('dml').checkpoint.name == 'epoch_1.pth'


RUNS = [
    dict(arm=arm, seed=seed, fraction=part, **{'top-1': value, 'top-5': 99.0}, cpu_seconds=9.0)
    for arm, part, values in (
        ('teacher', 1.0, (98.0, 96.0)),
        ('plain', 1.0, (90.0, 92.0)),
        ('plain', 0.1, (70.0, 72.0)),
        ('kd', 1.0, (94.0, 95.0)),
        ('kd', 0.1, (69.0,)),
    )
    for seed, value in enumerate(values)
]


def test_the_gap_of_each_part_is_that_to_the_teacher_of_all_data():
    rows = parts.summarise(RUNS, ('top-1', 'top-5'))
    assert list(rows) == [1.0, 0.1]
    found = {(part, row['arm']): row for part in rows for row in rows[part]}
    assert found[1.0, 'kd']['gap_recovered'] == pytest.approx((94.5 - 91) / (97 - 91))
    assert found[0.1, 'kd']['gap_recovered'] == pytest.approx((69 - 70) / (98 - 70))
    assert found[0.1, 'plain']['mean'] == 71.0


def test_the_table_has_a_column_a_part_and_says_where_seeds_are_missing(tmp_path):
    settings = {'scores': ['top-1', 'top-5'], 'split': 'test'}
    parts.write_results(RUNS, settings, tmp_path, 'resnet')
    scores, gains = (tmp_path / 'resnet.md').read_text().split('\n\n')
    assert scores.splitlines()[0].startswith('| arm | 100% | 10% | gap recovered | above plain |')
    assert '| teacher | 97.00 ± 1.41 |  |  |  | 9 |' in scores
    assert '| kd | 94.50 ± 0.71 | 69.00 (1) | 58% | 2 of 2 | 9 |' in scores
    # 12.706 * sqrt(0.5) / sqrt(2), by Student's t of one degree of freedom
    assert gains.splitlines()[2:] == ['| kd | +3.50 ± 6.35 | -1.00 |']
    content = json.loads((tmp_path / 'resnet.json').read_text())
    assert len(content['runs']) == len(RUNS) and set(content['fractions']) == {'1.0', '0.1'}
    assert (tmp_path / 'resnet.png').stat().st_size > 0


def test_a_teacher_whose_seed_no_student_has_is_in_no_mean(tmp_path):
    work = tmp_path / 'work'
    for name, top1 in (('teacher_s0', 98.0), ('teacher_s1', 50.0), ('kd-ensemble_f0.5_s0', 91.0)):
        (work / name).mkdir(parents=True)
        metrics = {'accuracy/top1': top1, 'accuracy/top5': 99.0}
        (work / name / 'result.json').write_text(json.dumps({'metrics': metrics, 'cpu_seconds': 1}))
    args = argparse.Namespace(
        model='resnet', split='test', teacher_seed=None, equal_epochs=1, long_epochs=1,
        work_dir=work, results=tmp_path,
    )  # fmt: skip
    bench.write(args)
    content = json.loads((tmp_path / 'resnet.json').read_text())
    assert [(run['arm'], run['fraction']) for run in content['runs']] == [
        ('kd-ensemble', 0.5), ('teacher', 1.0)
    ]  # fmt: skip
    assert '| teacher | 98.00 |' in (tmp_path / 'resnet.md').read_text()


def test_logs_of_an_arm_are_a_line_a_run_in_columns(tmp_path):
    run = tmp_path / 'fsp_s0'
    for stage in ('init', 'train'):
        (run / stage / 'x' / 'vis_data').mkdir(parents=True)
        lines = [
            json.dumps({'loss': 1 / step, 'lr': 0.1, 'step': step, 'time': 2.0, 'epoch': 1})
            for step in (1, 3)
        ]
        (run / stage / 'x' / 'vis_data' / 'scalars.json').write_text('\n'.join(lines))
    (run / 'stages.json').write_text(json.dumps({'init': 'a.pth', 'train': 'b.pth'}))
    parts.write_logs([({'seed': 0}, run)], tmp_path / 'logs' / 'fsp.jsonl')
    written = [json.loads(line) for line in (tmp_path / 'logs' / 'fsp.jsonl').open()]
    column = {'loss': [1.0, 0.33333], 'step': [1, 3]}
    assert written == [{'seed': 0, 'log': {'init': column, 'train': column}}]


def test_examples():
    for module in (parts, table):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed
