"""The demo on a few scenes: what it leaves, what it does again, and what it refuses."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

import torch

from densekd.cli import demo_steps
from densekd.cli.demo_picture import read_scalars, split_losses
from densekd.cli.demo_progress import BarReporter, Reporter
from densekd.cli.demo_score import verdict
from densekd.cli.main import main
from densekd.errors import ConfigError, DataError

SPEC = dict(train=16, val=2, test=4)
OPTIONS = {'train_cfg.max_epochs': 2, 'default_hooks.logger.interval': 1}
REAL = demo_steps.train_all


def small_train_all(recipe, out, data, seed, shown):
    """`train_all` on a few scenes, for two epochs."""
    return REAL(recipe, out, data, seed, shown, OPTIONS, SPEC)


@pytest.fixture(scope='module')
def small(request):
    patch = pytest.MonkeyPatch()
    patch.setattr(demo_steps, 'train_all', small_train_all)
    request.addfinalizer(patch.undo)


@pytest.fixture(scope='module')
def demo(small, tmp_path_factory, request) -> tuple[Path, list[str]]:
    """A finished demo: the arguments of the command, and where it wrote."""
    root = tmp_path_factory.mktemp('demo')
    arguments = ['demo', '--out', str(root / 'out'), '--data', str(root / 'digits')]
    assert main(arguments) == 0
    return root / 'out', arguments


def test_everything_is_written(demo):
    out, _ = demo
    for name in ('detections.png', 'losses.png', 'student.pth', 'student.py', 'demo.json'):
        assert (out / name).stat().st_size > 0, name
    for name in ('teacher', 'plain', 'distilled-pkd'):
        assert (out / name / 'result.json').is_file(), name
    found = json.loads((out / 'demo.json').read_text())
    assert found['split'] == 'test'
    teacher, plain, distilled = found['models']
    assert teacher['parameters'] > 2 * plain['parameters'] == 2 * distilled['parameters']
    assert teacher['flops'] > plain['flops'] > 1e6
    assert all(row['latency_ms'] > 0 and row['train_seconds'] > 0 for row in found['models'])


def test_the_student_is_a_plain_checkpoint_that_the_next_command_scores(demo, capsys):
    out, _ = demo
    saved = torch.load(out / 'student.pth', weights_only=False)
    assert set(saved) == {'meta', 'state_dict'}
    assert not any(key.startswith(('student.', 'distillers.')) for key in saved['state_dict'])
    plain = torch.load(out / 'plain' / 'epoch_2.pth', weights_only=False)
    assert saved['state_dict'].keys() == plain['state_dict'].keys()
    assert 'DistillDetector' not in (out / 'student.py').read_text()
    assert main(['test', str(out / 'student.py'), str(out / 'student.pth')]) == 0


def test_a_second_run_trains_nothing_and_says_the_same(demo, small, monkeypatch, capsys):
    out, arguments = demo
    monkeypatch.setattr('densekd.engine.run.train', None)
    monkeypatch.setattr('densekd.engine.run.evaluate', None)
    assert main(arguments) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert {'teacher', 'plain', 'distilled-pkd'} <= lines.keys()
    for column in ('mAP', 'AP50', 'parameters', 'FLOPs', 'CPU latency', 'gap recovered'):
        assert column in text
    assert 'not above the plain one' in text or 'above the plain one:' in text
    assert text.splitlines()[-1] == f'Next: densekd test {out}/student.py {out}/student.pth'
    # One table, and none of what the toolboxes print.
    assert 'Average Precision' not in text and 'mmengine' not in text
    assert 'mmengine' in (out / 'demo.log').read_text()


def test_a_folder_of_another_seed_is_refused(demo, small, capsys):
    out, arguments = demo
    assert main([*arguments, '--seed', '1']) == 1
    assert 'Give another --out' in capsys.readouterr().err
    assert json.loads((out / 'teacher' / 'result.json').read_text())['mark']


def test_an_interrupted_run_goes_on_where_it_stopped(demo, tmp_path):
    recipe = demo_steps.find_recipe('retinanet', 'pkd')
    data = Path(demo[1][-1])
    options = {**demo_steps.data_options(data), **OPTIONS}
    run = functools.partial(demo_steps.train_and_score, 'plain', recipe.plain, tmp_path, 0)

    class Interrupting(Reporter):
        def step(self, done, total, epoch, epochs, loss):
            steps.append(done)
            if done == 3 and len(steps) == 3:  # in the second epoch, once
                raise KeyboardInterrupt

    steps: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run(Interrupting(io.StringIO()), options)
    assert not (tmp_path / 'plain' / 'result.json').exists()
    interrupted = json.loads((tmp_path / 'plain' / 'clock.json').read_text())
    result = run(Interrupting(io.StringIO()), options)
    assert steps == [1, 2, 3, 3, 4]
    assert result.seconds > interrupted['seconds'] > 0
    resumed = torch.load(result.checkpoint, weights_only=False)['state_dict']
    whole = torch.load(demo[0] / 'plain' / 'epoch_2.pth', weights_only=False)['state_dict']
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_a_result_of_another_teacher_is_not_taken_for_this_one(demo):
    folder = demo[0] / 'distilled-pkd'
    mark = json.loads((folder / 'result.json').read_text())['mark']
    assert demo_steps.finished(folder, mark) is not None
    assert demo_steps.finished(folder, 'another') is None


def test_a_half_written_result_counts_as_none(tmp_path):
    (tmp_path / 'result.json').write_text('{"mark": "a", "check')
    assert demo_steps.finished(tmp_path, 'a') is None


@pytest.mark.parametrize('detector', ['retinanet', 'faster-rcnn'])
def test_every_method_has_three_configs(detector):
    with pytest.raises(ConfigError, match='no digits config') as error:
        demo_steps.find_recipe(detector, 'pdk')
    assert "Did you mean 'pkd'?" in str(error.value)
    recipe = demo_steps.find_recipe(detector, 'pkd')
    assert recipe.teacher.is_file() and recipe.plain.is_file() and recipe.distilled.is_file()


def test_unknown_folders_are_left_alone(tmp_path):
    recipe = demo_steps.find_recipe('retinanet', 'pkd')
    (tmp_path / 'plain').mkdir()
    (tmp_path / 'plain' / 'result.json').write_text('{}')
    from densekd.engine.run import prepare

    with pytest.raises(DataError, match='another seed'):
        demo_steps._check_folder(tmp_path / 'plain', prepare(recipe.plain, tmp_path / 'plain'))


def test_the_log_of_a_resumed_run_has_each_step_once(tmp_path):
    for name, lines in (
        ('1', ['{"loss": 3.0, "step": 1}', '{"loss": 2.0, "step": 2}', '{"loss": 1.']),
        ('2', ['{"loss": 2.5, "step": 2}', '{"coco/bbox_mAP": 0.5, "step": 1}']),
    ):
        (tmp_path / name / 'vis_data').mkdir(parents=True)
        (tmp_path / name / 'vis_data' / 'scalars.json').write_text('\n'.join(lines))
    assert [(e['step'], e['loss']) for e in read_scalars(tmp_path)] == [(1, 3.0), (2, 2.5)]


def test_losses_are_told_apart():
    log = {'loss': 3.5, 'student.loss_rpn': 1.0, 'loss_cls': 2.0, 'distill.loss_a': 0.5}
    assert split_losses(log) == (3.0, 0.5)


def test_the_verdict_says_so_when_distillation_did_not_help():
    assert 'did not help' in verdict(teacher=0.5, plain=0.3, distilled=0.3)
    assert '50% of the gap' in verdict(teacher=0.5, plain=0.3, distilled=0.4)
    assert 'no gap' in verdict(teacher=0.3, plain=0.3, distilled=0.4)


def test_plain_output_has_a_line_an_epoch():
    output = io.StringIO()
    shown = Reporter(output)
    shown.begin('plain')
    for done in range(1, 7):
        shown.step(done, 6, (done + 2) // 3, 2, 0.5)
    shown.end('mAP 0.100')
    lines = output.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith('plain: epoch 1/2, loss 0.500')


def test_bars_show_the_loss():
    output = io.StringIO()
    shown = BarReporter(output)
    with shown.progress:
        shown.begin('plain')
        shown.step(1, 6, 1, 2, 0.5)
        shown.progress.refresh()
        assert shown.progress.tasks[0].completed == 1
        assert 'loss 0.500' in shown.progress.tasks[0].fields['note']
        shown.end('mAP 0.100')
        assert shown.progress.tasks[0].finished
