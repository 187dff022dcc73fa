"""Short runs of the digits config, each in a process of its own that may be killed."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

# What a run imports is imported here, once, before processes are forked.
import mmdet.datasets
import mmdet.engine
import mmdet.evaluation
import mmdet.models
import mmdet.visualization  # noqa: F401
import torch
import torch._dynamo
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from densekd.core.checkpoint import read_checkpoint
from densekd.datasets import make_digits
from densekd.engine import load_config
from densekd.engine.run import prepare
from densekd.wrappers.build import build_network
from densekd.wrappers.config import plain
from tests.helpers.detectors import DETECTORS, every_method, retinanet

STUDENT = 'configs/digits/retinanet_r18w16_6e_digits.py'
RUNS = count()
KILLED = -9  # what a process that got SIGKILL is reported to end with
SIZE = 64
ITERATIONS = 5  # of an epoch: 18 scenes in batches of 4, the last one of 2


def make_tiny_digits(root: Path) -> Path:
    """Makes 18 training scenes of 64 pixels, and a few of the other splits."""
    return make_digits(
        root / 'digits', train=18, val=3, test=4, size=SIZE, max_side=40, progress=False
    )


def augmented() -> list[dict[str, Any]]:
    """Returns a pipeline that draws from Python's and numpy's generators."""
    return [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='RandomResize', scale=(SIZE, SIZE), ratio_range=(0.8, 1.2), keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackDetInputs'),
    ]


def digits_config(
    data: Path,
    work_dir: Path,
    distillers: Any = 'all',
    teacher: Any = None,
    model: str = 'retinanet',
    epochs: int = 2,
    workers: int = 0,
    weight: float | None = None,
    launcher: str = 'none',
    **options: Any,
) -> Any:
    """Returns a prepared config of a short run on tiny digits.

    Args:
        data: What `make_tiny_digits` returned.
        work_dir: Where the run writes.
        distillers: A list, `'all'` for one of each method, or None for plain training.
        teacher: The teacher's config; untrained by default.
        model: A name of `detectors.DETECTORS`.
        epochs: How long it runs.
        workers: Processes that load.
        weight: Loss weight of all distillers, with `'all'`.
        launcher: See `prepare`.
        options: Anything else at the top of the config.
    """
    cfg = load_config(STUDENT)
    make = DETECTORS[model]
    student = make(classes=10)
    if distillers is None:
        network: dict[str, Any] = student
    else:
        network = dict(
            type='densekd.DistillDetector',
            student=student,
            teacher=teacher or dict(model=make(8, 24, 10), untrained=True),
            distillers=every_method(model, weight) if distillers == 'all' else distillers,
        )
    cfg.__setattr__('model', network)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = f'{data}/'
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'].ann_file = f'{data}/annotations/instances_{split}.json'
        cfg[f'{split}_dataloader'].dataset.pipeline[1].scale = (SIZE, SIZE)
        cfg[f'{split}_dataloader'].batch_size = 2
    cfg.train_dataloader.dataset.pipeline = augmented()
    cfg.train_dataloader.batch_size = 4
    cfg.train_dataloader.num_workers = workers
    cfg.train_dataloader.persistent_workers = False
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1000)
    for key in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg.pop(key)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=7),
        dict(type='MultiStepLR', milestones=[1], by_epoch=True),
    ]
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    cfg.log_level = 'WARNING'
    # mmengine keeps what belongs to an experiment by this name and the second it began in.
    cfg.experiment_name = f'run{next(RUNS)}'
    cfg.pop('visualizer')
    cfg.pop('vis_backends')
    cfg.default_hooks.pop('visualization')
    for key, value in options.items():
        cfg[key] = value
    return prepare(cfg, work_dir, launcher=launcher)


def save_teacher(path: Path, seed: int = 0, classes: int = 10) -> dict[str, Any]:
    """Writes the weights of a teacher, and returns its part of a config."""
    config = retinanet(8, 24, classes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(plain(config), 'mmdet', 'teacher')
        torch.save({'state_dict': network.state_dict(), 'meta': {}}, path)
    return dict(model=config, checkpoint=str(path))


@HOOKS.register_module(force=True)
class KillHook(Hook):
    """Kills its own process, as the machine would, before an iteration begins."""

    priority = 'LOWEST'

    def __init__(self, at: int) -> None:
        self.at = at

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Sends SIGKILL."""
        if runner.iter == self.at:
            os.kill(os.getpid(), 9)


def in_process(function: Callable[[], Any], output: Path | None = None) -> int:
    """Runs a function in a forked process, and returns 0, 1 if it raised, or minus its signal.

    Args:
        function: What to run. Nothing comes back: it writes files.
        output: Where to write what it prints, and its traceback.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with open(output or os.devnull, 'w') as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                sys.stdout = sys.stderr = file
                try:
                    function()
                    code = 0
                except BaseException:
                    traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tensors_in(value: Any, prefix: str = '') -> dict[str, Any]:
    """Returns every tensor and number in a nest of containers, by its path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {prefix: value}
    return {k: v for key, item in items for k, v in tensors_in(item, f'{prefix}/{key}').items()}


def differences(first: Path, second: Path) -> list[str]:
    """Returns what two checkpoints differ in: everything but the log, the clock and the paths."""
    found = []
    read = [read_checkpoint(path) for path in (first, second)]
    for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'densekd'):
        one, two = (tensors_in(checkpoint.get(key), key) for checkpoint in read)
        found += sorted(one.keys() ^ two.keys())
        found += [k for k in one.keys() & two.keys() if not same(one[k], two[k])]
    return found + [k for k in ('epoch', 'iter') if read[0]['meta'][k] != read[1]['meta'][k]]


def same(first: Any, second: Any) -> bool:
    """Whether two values are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    return first == second
