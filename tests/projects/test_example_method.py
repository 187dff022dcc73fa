"""The worked example of a method that is added from outside: it is checked, and it trains."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

import torch

from densekd.core.checkpoint import read_checkpoint
from tests.helpers.commands import command
from tests.helpers.runs import in_process, make_tiny_digits

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'projects' / 'example_method'
CONFIG = next(FOLDER.glob('*_mimic.py'))
OVERRIDES = """
_base_ = ['{config}']
train_dataloader = dict(batch_size=9, dataset=dict(data_root='{data}/'))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2)
param_scheduler = []
val_dataloader = val_evaluator = val_cfg = None
default_hooks = dict(
    checkpoint=dict(_delete_=True, type='CheckpointHook', interval=2, by_epoch=False),
    logger=dict(interval=1),
)
model = dict(
    teacher=dict(
        _delete_=True,
        model='{root}/configs/digits/retinanet_r18w24_8e_digits.py',
        checkpoint='{teacher}',
    ),
)
"""


def apart(function: Callable[[], None], output: Path) -> str:
    """Runs a function in a process of its own: the names it registers stay there."""
    code = in_process(function, output)
    said = output.read_text()
    assert code == 0, said
    return said


def test_the_config_is_wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def check() -> None:
        answer = command('check', CONFIG, '--small', '--without-weights')
        assert answer.code == 0, answer.err
        print(answer.out)

    said = apart(check, tmp_path / 'said.txt')
    assert 'pooled_cosine_c5' in said
    assert 'Every term is finite and reaches the student with a gradient.' in said


def test_two_iterations_train_the_student(tmp_path: Path) -> None:
    data = make_tiny_digits(tmp_path)
    config = tmp_path / 'config.py'
    teacher = tmp_path / 'teacher.pth'
    config.write_text(OVERRIDES.format(config=CONFIG, data=data, root=ROOT, teacher=teacher))

    def train() -> None:
        from densekd.wrappers.build import build_network, model_config

        torch.manual_seed(0)
        network = build_network(
            model_config(f'{ROOT}/configs/digits/retinanet_r18w24_8e_digits.py', 'teacher'),
            'mmdet',
            'teacher',
        )
        torch.save({'state_dict': network.state_dict(), 'meta': {}}, teacher)
        answer = command('train', config, '--work-dir', tmp_path / 'work')
        assert answer.code == 0, answer.err
        print(answer.out)

    said = apart(train, tmp_path / 'said.txt')
    assert 'distill.loss_backbone_pooled_cosine_c5' in said
    (last,) = (tmp_path / 'work').glob('*.pth')
    checkpoint = read_checkpoint(last)
    assert checkpoint['meta']['iter'] == 2
    assert all(v.isfinite().all() for v in checkpoint['state_dict'].values())
    assert not any('teacher' in key or 'connector' in key for key in checkpoint['state_dict'])


def test_the_function_is_what_its_docstring_says(tmp_path: Path) -> None:
    def examine() -> None:
        import projects.example_method.pooled_cosine as method

        result = doctest.testmod(method)
        assert result.attempted and not result.failed
        s = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
        t = torch.randn(2, 3, 2, 2, dtype=torch.float64)
        value = method.pooled_cosine_loss(s, t)
        pooled = s.mean((2, 3)), t.mean((2, 3))
        expected = 1 - torch.nn.functional.cosine_similarity(*pooled)
        torch.testing.assert_close(value, expected.mean())
        torch.testing.assert_close(method.pooled_cosine_loss(7 * s, t), value)
        assert torch.autograd.gradcheck(lambda x: method.pooled_cosine_loss(x, t), s)
        zero = torch.zeros(1, 3, 2, 2, requires_grad=True)
        method.pooled_cosine_loss(zero, torch.ones(1, 3, 1, 1)).backward()
        assert not zero.grad.any()

    apart(examine, tmp_path / 'said.txt')


def test_it_is_one_file_that_nothing_in_the_package_knows() -> None:
    assert [p.name for p in sorted(FOLDER.glob('*.py'))] == ['pooled_cosine.py', CONFIG.name]
    for path in (ROOT / 'densekd').rglob('*.py'):
        assert not re.search(r'pooled_?cosine', path.read_text(), re.IGNORECASE), path
    assert CONFIG.name in (FOLDER / 'README.md').read_text()
