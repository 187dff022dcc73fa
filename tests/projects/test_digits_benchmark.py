"""The benchmark's statistics, and the order of its jobs."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

import arms
import cost
import run as bench
import table

VALUES = {
    'teacher': (0.60, 0.50, 0.55),
    'plain': (0.30, 0.20, 0.40),
    'pkd': (0.50, 0.40, 0.39),
    'untrained-teacher': (0.30, 0.21, 0.10),
}


def runs(values):
    return [
        dict(arm=arm, seed=seed, mAP=value, AP50=value, cpu_seconds=10.0 * (seed + 1))
        for arm, of_arm in values.items()
        for seed, value in enumerate(of_arm)
    ]


def test_rows_are_means_and_sample_deviations():
    rows = {row['arm']: row for row in table.summarise(runs(VALUES))}
    assert rows['teacher']['mean'] == pytest.approx(0.55)
    # (0.05^2 + 0.05^2 + 0) / (3 - 1)
    assert rows['teacher']['sd'] == pytest.approx(0.05)
    assert rows['plain']['cpu_seconds'] == pytest.approx(20.0)
    assert rows['plain']['values'] == {0: 0.30, 1: 0.20, 2: 0.40}


def test_the_gap_is_that_of_the_means():
    rows = {row['arm']: row for row in table.summarise(runs(VALUES))}
    assert rows['pkd']['gap_recovered'] == pytest.approx((0.43 - 0.30) / (0.55 - 0.30))
    assert rows['untrained-teacher']['gap_recovered'] < 0
    assert rows['teacher']['gap_recovered'] is None and rows['plain']['gap_recovered'] is None


def test_the_gap_of_an_arm_of_fewer_seeds_is_that_of_these_seeds():
    few = [run for run in runs(VALUES) if run['arm'] != 'pkd' or run['seed'] == 1]
    rows = {row['arm']: row for row in table.summarise(few)}
    assert rows['pkd']['gap_recovered'] == pytest.approx((0.40 - 0.20) / (0.50 - 0.20))


def test_a_win_is_counted_against_the_same_seed_and_a_tie_is_none():
    rows = {row['arm']: row for row in table.summarise(runs(VALUES))}
    assert rows['pkd']['wins'] == 2
    assert rows['untrained-teacher']['wins'] == 1


def test_the_gain_is_the_mean_of_paired_differences():
    rows = {row['arm']: row for row in table.summarise(runs(VALUES))}
    differences = (0.2, 0.2, -0.01)
    assert rows['pkd']['gain'] == pytest.approx(0.13)
    deviation = (sum((d - 0.13) ** 2 for d in differences) / 2) ** 0.5
    assert rows['pkd']['gain_interval'] == pytest.approx(4.3027 * deviation / 3**0.5, rel=1e-4)
    assert rows['plain']['gain'] is None


def test_methods_follow_the_controls_the_best_one_last():
    values = {'at': (0.2,), 'plain': (0.3,), 'fgfi': (0.5,), 'ofd': (0.4,), 'teacher': (0.6,)}
    arms = [row['arm'] for row in table.summarise(runs(values))]
    assert arms == ['teacher', 'plain', 'at', 'ofd', 'fgfi']


def test_what_earlier_calls_finished_is_in_the_table(tmp_path):
    for name in ('teacher_s0', 'untrained-teacher_s12', 'other'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'result.json').write_text('{}')
    found = [job for job, _ in arms.finished(tmp_path)]
    assert found == [arms.Job('teacher', 0), arms.Job('untrained-teacher', 12)]


def test_a_factor_is_part_of_the_arm_and_not_of_the_method():
    assert (arms.Job('cwd@0.3', 100).method, arms.Job('cwd@0.3', 100).factor) == ('cwd', 0.3)
    assert (arms.Job('cwd', 100).method, arms.Job('cwd', 100).factor) == ('cwd', 1.0)


@pytest.mark.parametrize('arm', ['cwd@', 'cwd@0', 'cwd@-1', 'cwd@x', 'cwd@inf', 'plain@2'])
def test_a_factor_that_weighs_nothing_is_refused(arm, capsys):
    with pytest.raises(SystemExit):
        bench.main(['--arms', arm])
    assert f"'{arm}': a factor above 0 follows the @, on a method" in capsys.readouterr().err


def test_the_factor_multiplies_every_loss_once():
    import torch

    from densekd.engine.registry import HOOKS
    from densekd.methods import build

    arms.register_weighing()
    heads = [build('PKDDistillationHead'), build('CWDDistillationHead')]
    before = [head.loss.loss_weight for head in heads]
    model = torch.nn.Module()
    model.distillers = torch.nn.ModuleDict()
    for i, head in enumerate(heads):
        model.distillers[str(i)] = torch.nn.Module()
        model.distillers[str(i)].head = head
    runner = type('Runner', (), {'model': model})()
    HOOKS.build({'type': 'densekd.WeighHook', 'factor': 0.5}).before_train(runner)
    assert [head.loss.loss_weight for head in heads] == [0.5 * weight for weight in before]


def test_what_is_tuned_and_what_is_reported_share_neither_scenes_nor_seeds(tmp_path):
    assert not set(arms.SEEDS['val']) & set(arms.SEEDS['test'])
    for task in ('detection', 'segmentation', 'classification'):
        options = arms.scored_on('val', tmp_path, task)
        values = [str(value).replace(str(tmp_path), '') for value in options.values()]
        assert values and not any('test' in value for value in values)


def test_an_arm_that_is_no_method_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(['--arms', 'pdk'])
    assert "there is no 'pdk' for retinanet. Did you mean 'pkd'?" in capsys.readouterr().err


def test_one_teacher_for_all_seeds():
    few = [r for r in runs(VALUES) if r['arm'] != 'teacher' or r['seed'] == 0]
    rows = {row['arm']: row for row in table.summarise(few)}
    assert rows['teacher']['sd'] is None
    assert rows['pkd']['gap_recovered'] == pytest.approx(0.13 / 0.30)


def test_no_gap_is_no_number():
    rows = table.summarise(runs({'teacher': (0.3,), 'plain': (0.3,), 'pkd': (0.4,)}))
    assert rows[-1]['gap_recovered'] is None
    assert 'nan' not in table.markdown(rows)


def test_the_table_has_a_row_an_arm_and_a_cell_a_column(tmp_path):
    table.write_results(
        runs(VALUES),
        {'equal_epochs': 12, 'split': 'test', 'scores': ['mAP', 'AP50']},
        tmp_path,
        'retinanet',
    )
    lines = (tmp_path / 'retinanet.md').read_text().splitlines()
    assert len(lines) == 2 + len(VALUES)
    assert len({line.count('|') for line in lines}) == 1
    assert '| pkd | 0.430 |' in lines[-1] and '| 52% | 2 of 3 | +0.130 ± ' in lines[-1]
    content = json.loads((tmp_path / 'retinanet.json').read_text())
    assert content['equal_epochs'] == 12 and len(content['runs']) == 12
    assert (tmp_path / 'retinanet.png').stat().st_size > 0


def test_a_student_waits_for_the_teacher_of_its_seed():
    todo = arms.jobs((*arms.CONTROLS, 'pkd'), (0, 1), number={'pkd': 1})
    assert len(todo) == 12
    assert todo[arms.Job('pkd', 1)] == [arms.Job('teacher', 1)]
    for arm in arms.CONTROLS:
        assert todo[arms.Job(arm, 1)] == []
    one = arms.jobs(('teacher', 'plain', 'pkd'), (0, 1), number={'pkd': 1}, teacher_seed=7)
    assert one[arms.Job('pkd', 1)] == [arms.Job('teacher', 7)]
    assert next(iter(one)) == arms.Job('teacher', 7) and len(one) == 5


def test_the_equal_time_arm_stretches_the_whole_schedule():
    config = Path('configs/digits/retinanet_r18w16_6e_digits.py').resolve()
    options = arms.longer(config, 9)
    assert options['train_cfg.max_epochs'] == 9
    assert [entry['total_steps'] for entry in options['param_scheduler']] == [9]
    assert options['param_scheduler'][0]['eta_max'] == 2e-3


def test_the_untrained_teacher_depends_on_the_seed(tmp_path):
    import torch

    config = Path('configs/digits/retinanet_r18w16_6e_digits.py').resolve()
    weights = [
        torch.load(arms.untrained(config, folder, seed))['state_dict']['backbone.conv1.weight']
        for folder, seed in ((tmp_path, 0), (tmp_path, 1), (tmp_path / 'again', 0))
        if folder.mkdir(exist_ok=True) is None
    ]
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])


def test_a_failed_teacher_fails_its_students_alone(tmp_path, monkeypatch):
    class Process:
        def __init__(self, failed: bool) -> None:
            self.returncode = int(failed)

        def poll(self) -> int:
            return self.returncode

        def terminate(self) -> None: ...

    started = []

    def start(job, args):
        started.append(job)
        return Process(job == arms.Job('teacher', 0))

    monkeypatch.setattr(bench, 'start', start)
    monkeypatch.setattr(bench.time, 'sleep', lambda seconds: None)
    args = type('Args', (), dict(jobs=2, work_dir=tmp_path))
    failed = bench.run_all(arms.jobs(('teacher', 'plain', 'pkd'), (0, 1), number={'pkd': 1}), args)
    assert set(failed) == {arms.Job('teacher', 0), arms.Job('pkd', 0)}
    assert {arms.Job('pkd', 1), arms.Job('plain', 0), arms.Job('plain', 1)} <= set(started)


@pytest.mark.parametrize('module', [arms, table])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_logs_hold_no_times(tmp_path):
    (tmp_path / 'x' / 'vis_data').mkdir(parents=True)
    entry = {'loss': 1 / 3, 'step': 50, 'epoch': 1, 'time': 0.5, 'data_time': 0.1, 'iter': 50}
    (tmp_path / 'x' / 'vis_data' / 'scalars.json').write_text(json.dumps(entry))
    table.write_log(tmp_path, tmp_path / 'logs' / 'a.jsonl')
    written = json.loads((tmp_path / 'logs' / 'a.jsonl').read_text())
    assert written == {'loss': 0.33333, 'step': 50, 'epoch': 1}


def test_a_ratio_is_the_median_of_those_by_round():
    times = {'plain': [1.0, 10.0, 2.0], 'pkd': [1.5, 12.0, 4.0]}
    assert cost.ratios(times) == {'plain': 1.0, 'pkd': 1.5}
    assert doctest.testmod(cost).failed == 0


def test_an_iteration_of_each_arm_is_measured(tmp_path, monkeypatch, capsys):
    from densekd.cli.demo_steps import find_recipe
    from densekd.datasets import make_digits

    data = make_digits(tmp_path / 'digits', train=24, val=1, test=1, progress=False)
    teacher = arms.untrained(find_recipe('retinanet', 'pkd').teacher, tmp_path, 0)
    (tmp_path / 'result.json').write_text(json.dumps({'checkpoint': teacher.name}))
    given = ['--teacher', tmp_path, '--data', data, '--results', tmp_path / 'out']
    assert cost.main([*map(str, given), '--methods', 'pkd', '--rounds', '2']) == 0
    written = (tmp_path / 'out' / 'retinanet_cost.md').read_text()
    rows = [line.split(' | ') for line in written.splitlines()[2:]]
    assert [row[0] for row in rows] == ['| plain', '| pkd'] and written in capsys.readouterr().out
    assert rows[0][2] == '1.00 |' and all(float(row[1]) > 0 for row in rows)
