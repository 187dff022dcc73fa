"""Whole runs with every method that fits a detector: at weight 0, and killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from densekd.core.checkpoint import read_checkpoint
from densekd.engine.run import train
from tests.helpers.detectors import MODELS, unlike
from tests.helpers.runs import KILLED, differences, digits_config, in_process

three = pytest.mark.parametrize('model', [*MODELS, 'gfl'])


def go(config: Config, kill_at: int | None = None, resume: bool = False) -> None:
    """Trains in a process of its own, which is killed before iteration `kill_at`."""
    folder = Path(config.work_dir)
    folder.mkdir(exist_ok=True)
    if kill_at is not None:
        config = config.copy()
        # Not among the custom hooks, which decide whether it is the same run.
        killing = dict(type='mmengine.KillHook', at=kill_at)
        config['default_hooks'] = {**config.default_hooks, 'killing': killing}
    code = in_process(lambda: train(config, resume, preflight=False), folder / 'log.txt')
    expected = 0 if kill_at is None else KILLED
    assert code == expected, f'{code}\n{(folder / "log.txt").read_text()[-3000:]}'


@three
def test_a_run_of_every_method_goes_on_where_it_was_killed(
    digits: Path, tmp_path: Path, model: str
) -> None:
    def config(name: str) -> Config:
        hooks: list[dict[str, Any]] = [dict(type='EMAHook', momentum=0.1)]
        made = digits_config(digits, tmp_path / name, model=model, epochs=1, custom_hooks=hooks)
        made.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
        return made

    go(config('whole'))
    go(config('killed'), kill_at=3)
    assert [p.name for p in (tmp_path / 'killed').glob('*.pth')] == ['iter_2.pth']
    go(config('killed'), resume=True)
    last = [tmp_path / name / 'iter_5.pth' for name in ('whole', 'killed')]
    assert differences(*last) == []
    saved = read_checkpoint(last[1])
    assert saved['ema_state_dict'] and saved['densekd']['distillers']
    terms = ' '.join(saved['densekd']['terms'])
    assert 'ofd' in terms and 'fgfi' in terms
    assert model != 'faster_rcnn' or all(f'bounded_{head}' in terms for head in ('roi', 'rpn'))


def test_a_gfl_run_at_weight_0_is_plain_training(digits: Path, tmp_path: Path) -> None:
    saved = []
    for name, more in (('plain', dict(distillers=None)), ('distilled', dict(weight=0.0))):
        made = digits_config(digits, tmp_path / name, model='gfl', epochs=1, **more)
        go(made)
        saved.append(read_checkpoint(tmp_path / name / 'epoch_1.pth')['state_dict'])
    assert unlike(*saved) == []
