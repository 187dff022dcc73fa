"""Knowledge pre-regression, as a project: its formula, its config, and both of its stages."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmengine')

import torch

from tests.helpers.commands import command
from tests.helpers.runs import in_process, make_tiny_digits

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'projects' / 'dk2pnet'
CONFIG = next(FOLDER.glob('*_mimic.py'))


def apart(function: Callable[[], None], output: Path) -> str:
    """Runs a function in a process of its own: the names it registers stay there."""
    code = in_process(function, output)
    said = output.read_text()
    assert code == 0, said
    return said


def by_loops(student: Any, teacher: Any) -> float:
    total, cells = 0.0, 0
    for s, t in zip(student, teacher, strict=True):
        for y in range(len(s[0])):
            for x in range(len(s[0][0])):
                own = [math.exp(channel[y][x]) for channel in s]
                theirs = [math.exp(channel[y][x]) for channel in t]
                for a, b in zip(own, theirs, strict=True):
                    total -= b / sum(theirs) * math.log(a / sum(own))
                cells += 1
    return total / cells


def test_the_function_is_what_its_docstring_says(tmp_path: Path) -> None:
    def examine() -> None:
        import projects.dk2pnet.pre_regression as method

        result = doctest.testmod(method)
        assert result.attempted and not result.failed
        s = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
        t = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
        value = method.pre_regression_loss(s, t)
        assert abs(value.item() - by_loops(s.tolist(), t.tolist())) < 1e-12
        assert torch.autograd.gradcheck(lambda x: method.pre_regression_loss(x, t.detach()), s)
        value.backward()
        assert t.grad is None
        # Least where both are alike, and blind to what is added to all channels of a position.
        same = t.detach() + torch.randn(2, 1, 4, 5)
        assert method.pre_regression_loss(same, t) < value
        (slope,) = torch.autograd.grad(method.pre_regression_loss(same.requires_grad_(), t), same)
        assert slope.abs().max() < 1e-12
        empty = torch.zeros(0, 3, 2, 2, requires_grad=True)
        method.pre_regression_loss(empty, empty.detach()).backward()
        from densekd.errors import ShapeError

        for pair in ((s, t[:, :2]), (s[0, 0], t[0, 0])):
            with pytest.raises(ShapeError, match='pre_regression_loss'):
                method.pre_regression_loss(*pair)

    apart(examine, tmp_path / 'said.txt')


def test_the_config_is_wired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def check() -> None:
        answer = command('check', CONFIG, '--small', '--without-weights')
        assert answer.code == 0, answer.err
        print(answer.out)

    said = apart(check, tmp_path / 'said.txt')
    assert 'pre_regression_c3' in said
    assert 'Every term is finite and reaches the student with a gradient.' in said


def test_both_stages_train(tmp_path: Path) -> None:
    data = make_tiny_digits(tmp_path)

    def train() -> None:
        from densekd.engine import load_config
        from densekd.engine.run import prepare
        from densekd.engine.stages import train_stages

        cfg = load_config(CONFIG)
        changes: dict[str, Any] = {
            'model.teacher.checkpoint': None,
            'model.teacher.untrained': True,
            'train_dataloader.batch_size': 16,
            'train_cfg.max_epochs': 1,
        }
        for split in ('train', 'val', 'test'):
            changes[f'{split}_dataloader.dataset.data_root'] = f'{data}/crops/'
        cfg.merge_from_dict(changes)
        cfg.param_scheduler = []
        for stage in cfg.stages:
            stage.pop('param_scheduler', None)
            stage.pop('train_cfg', None)
        last = train_stages(prepare(cfg, tmp_path / 'work'))
        first = next((tmp_path / 'work' / 'pre_regression').glob('epoch_*.pth'))
        ends = [
            torch.load(path, map_location='cpu', weights_only=False)['state_dict']
            for path in (first, last)
        ]
        head = [end['head.fc.weight'] for end in ends]
        assert not torch.equal(*head)
        assert all(v.isfinite().all() for end in ends for v in end.values())
        assert not any('connector' in key for end in ends for key in end)

    said = apart(train, tmp_path / 'said.txt')
    assert 'distill.loss_backbone_pre_regression_c3' in said
    assert 'distill.loss_head_kd' in said


def test_nothing_in_the_package_knows_it() -> None:
    for path in (ROOT / 'densekd').rglob('*.py'):
        assert 'pre_regression' not in path.read_text(), path
    assert CONFIG.name in (FOLDER / 'README.md').read_text()
