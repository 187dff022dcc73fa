"""Configs of the repository on tiny digit scenes: shortened, and with an untrained teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import distributed

from densekd.engine import load_config
from densekd.engine.optim import unwrapped
from densekd.engine.run import prepare
from densekd.wrappers.targets import Call

ROOT = Path(__file__).resolve().parents[2]
# By a short name: the config, the config of its student alone, and where its test score is set.
SHIPPED = {
    'chen2017': (
        'configs/kd/chen2017/detection/faster_rcnn/'
        'chen2017_faster_rcnn_r18w16_6e_digits_teacher_r18w24_head_mimic.py',
        'configs/digits/faster_rcnn_r18w16_6e_digits.py',
        'test_cfg.rcnn.score_thr',
    ),
    'fgfi': (
        'configs/kd/fgfi/detection/retinanet/'
        'fgfi_retinanet_r18w16_6e_digits_teacher_r18w24_neck_mimic.py',
        'configs/digits/retinanet_r18w16_6e_digits.py',
        'test_cfg.score_thr',
    ),
}


def data_options(data: Path, batch: int = 4) -> dict[str, Any]:
    """Returns the overrides that point a digits config at other scenes."""
    options: dict[str, Any] = {
        'train_dataloader.batch_size': batch,
        'train_dataloader.dataset.indices': 8,  # two steps of four images
    }
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.dataset.data_root'] = f'{data}/'
    for split in ('val', 'test'):
        # One image at a time, so that what is found does not depend on how they are batched.
        options[f'{split}_dataloader.batch_size'] = 1
        options[f'{split}_evaluator.ann_file'] = f'{data}/annotations/instances_{split}.json'
    return options


def shipped(
    name: str, data: Path, work_dir: Path, batch: int = 4, launcher: str = 'none', **more: Any
) -> Any:
    """Returns a prepared config of `SHIPPED`, an epoch long.

    Args:
        name: A key of `SHIPPED`.
        data: What `make_tiny_digits` returned.
        work_dir: Where the run writes.
        batch: Images in a batch of a process.
        launcher: See `prepare`.
        more: Anything else at the top of the config.
    """
    cfg = load_config(ROOT / SHIPPED[name][0])
    cfg.merge_from_dict(data_options(data, batch))
    cfg.model.teacher.pop('checkpoint')
    cfg.model.teacher.untrained = True
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1000)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    cfg.log_level = 'WARNING'
    for key in ('val_dataloader', 'val_evaluator', 'val_cfg', 'visualizer', 'vis_backends'):
        cfg.pop(key)
    cfg.default_hooks.pop('visualization')
    for key, value in more.items():
        cfg[key] = value
    return prepare(cfg, work_dir, launcher=launcher)


def without_chance(cfg: Any) -> Any:
    """Makes a step on a batch the same in one process and in several that have a part of it each.

    Statistics of batch normalisation are those of a process' own images, and samplers draw from a
    generator of the process: here norms use their running statistics, as in the toolboxes' configs
    for COCO, and samplers take all that there is. Whether a student is nearer to the boxes than a
    teacher that is untrained too is chance as well: a margin has the bound reached nowhere.
    """
    student = cfg.model.student
    student.backbone.norm_eval = True
    for part in ('rpn', 'rcnn'):
        if part in student.train_cfg:
            student.train_cfg[part].sampler.num = 10**6
    for distiller in cfg.model.distillers:
        if distiller.head.loss.type == 'BoundedRegressionLoss':
            distiller.head.loss.margin = 1e3
    return cfg


def terms_of(losses: Mapping[str, Any]) -> dict[str, float]:
    """Returns the terms of a step as numbers, those of several levels summed."""
    return {
        key: float(sum(v.sum() for v in (value if isinstance(value, list) else [value])))
        for key, value in losses.items()
        if 'loss' in key.rpartition('.')[2] and key != 'loss'
    }


@HOOKS.register_module(force=True)
class FirstStepHook(Hook):
    """Writes what the first step was made of: its images, its terms and what they are divided by.

    Before it, the same step is made on a copy of the model that knows of no other process.
    """

    priority = 'LOWEST'

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: dict[str, Any] = {}

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Makes the step alone, and notes the divisors of the step that follows."""
        if runner.iter:
            return
        model = unwrapped(runner.model)
        self.found['images'] = [int(image.long().sum()) for image in data_batch['inputs']]
        group, distributed.is_initialized = distributed.is_initialized, lambda: False
        try:
            with torch.random.fork_rng():
                alone = deepcopy(model)
                ready = alone.data_preprocessor(deepcopy(data_batch), True)
                losses = alone(ready['inputs'], ready['data_samples'], mode='loss')
        finally:
            distributed.is_initialized = group
        self.found['alone'] = terms_of(losses)
        self.counts: dict[str, Any] = {}
        student = model.student
        if hasattr(student, 'roi_head'):
            self._note(student.rpn_head, 'get_targets', 'rpn', lambda call: call.result[-1])
            self._note(
                student.roi_head.bbox_head,
                'loss_and_target',
                'roi',
                lambda call: len(call.kwargs['rois']),
            )
        else:
            self._note(student.bbox_head, 'get_targets', 'dense', lambda call: call.result[-1])

    def _note(self, owner: Any, method: str, key: str, count: Any) -> None:
        whole = getattr(owner, method)

        def noting(*args: Any, **more: Any) -> Any:
            result = whole(*args, **more)
            self.counts[key] = float(count(Call(args, more, result)))
            return result

        owner.__dict__[method] = noting

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Writes the file."""
        if runner.iter:
            return
        for name in ('rpn_head', 'bbox_head'):
            vars(getattr(unwrapped(runner.model).student, name, runner)).pop('get_targets', None)
        logged = {k: v.sum() for k, v in outputs.items()}
        self.found.update(logged=terms_of(logged), counts=self.counts, total=float(logged['loss']))
        Path(self.path).write_text(json.dumps(self.found))
