"""What a run scored each time it was validated: the best, and the last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from densekd.engine.registry import HOOKS
from densekd.engine.run import write_json

SCORES_FILE = 'scores.json'


@HOOKS.register_module()
class BestAndLastHook(Hook):
    """Keeps every validation's metrics in `scores.json`, and reports the best and the last.

    The best of many validations flatters; tables of others give one or the other, so both are
    here. A resumed run goes on with the file, and scores again what was scored after its
    checkpoint.

    Args:
        metric: What the best is the best of; larger is better.
    """

    priority = 'LOW'

    def __init__(self, metric: str = 'accuracy/top1') -> None:
        self.metric = metric
        self.history: list[dict[str, float]] | None = None

    def before_train(self, runner: Any) -> None:
        """Begins, or takes up what the run has scored so far."""
        self.history = _read(Path(runner.work_dir)) if runner._resume else []

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Notes the metrics, and writes the file anew."""
        if self.history is None or not metrics or self.metric not in metrics:
            return
        scored = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
        entry = {'iteration': runner.iter, 'epoch': runner.epoch, **scored}
        self.history = [e for e in self.history if e['iteration'] < runner.iter] + [entry]
        if is_main_process():
            best = max(self.history, key=lambda e: e[self.metric])
            content = {'best': best, 'last': entry, 'all': self.history}
            write_json(Path(runner.work_dir) / SCORES_FILE, content)

    def after_train(self, runner: Any) -> None:
        """Says the best and the last."""
        if self.history:
            best = max(self.history, key=lambda e: e[self.metric])
            last = self.history[-1]
            runner.logger.info(
                f'{self.metric}: best {best[self.metric]:.2f} (epoch {best["epoch"]:.0f}), last '
                f'{last[self.metric]:.2f} (epoch {last["epoch"]:.0f}). See {SCORES_FILE}.'
            )
        self.history = None


def _read(folder: Path) -> list[dict[str, float]]:
    try:
        return list(json.loads((folder / SCORES_FILE).read_text())['all'])
    except (OSError, ValueError, KeyError, TypeError):
        return []
