"""Short runs of tiny segmentors on digit masks, by iterations, as mmseg's own schedules are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmseg.datasets
import mmseg.engine
import mmseg.evaluation
import mmseg.models
import mmseg.visualization  # noqa: F401
from mmengine.config import Config

from densekd.datasets.digits import MASK_CLASSES
from densekd.engine.run import prepare
from tests.helpers.runs import RUNS, SIZE
from tests.helpers.segmentors import SEGMENTORS, every_method

ITERATIONS = 8


def dataset(data: Path, split: str, pipeline: list[Any]) -> dict[str, Any]:
    """Returns a split of the digits as a data set of mmseg."""
    return dict(
        type='BaseSegDataset',
        data_root=f'{data}/',
        data_prefix=dict(img_path=split, seg_map_path=f'masks/{split}'),
        img_suffix='.png',
        metainfo=dict(classes=MASK_CLASSES),
        pipeline=pipeline,
    )


def masks_config(
    data: Path,
    work_dir: Path,
    distillers: Any = 'all',
    model: str = 'deeplabv3plus',
    iterations: int = ITERATIONS,
    workers: int = 0,
    weight: float | None = None,
    **options: Any,
) -> Any:
    """Returns a prepared config of a short run.

    Args:
        data: What `make_tiny_digits` returned.
        work_dir: Where the run writes.
        distillers: A list, `'all'` for one of each method, or None for plain training.
        model: A name of `segmentors.SEGMENTORS`.
        iterations: How long it runs.
        workers: Processes that load.
        weight: Loss weight of all distillers, with `'all'`.
        options: Anything else at the top of the config.
    """
    make, classes = SEGMENTORS[model], len(MASK_CLASSES)
    network: dict[str, Any] = make(classes=classes)
    if distillers is not None:
        network = dict(
            type='densekd.DistillSegmentor',
            student=network,
            teacher=dict(model=make(8, 24, classes), untrained=True),
            distillers=every_method(weight) if distillers == 'all' else distillers,
        )
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    pack = dict(type='PackSegInputs')
    augmented = [
        *load,
        dict(type='RandomResize', scale=(SIZE, SIZE), ratio_range=(0.8, 1.5), keep_ratio=True),
        dict(type='RandomCrop', crop_size=(SIZE, SIZE), cat_max_ratio=0.75),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        pack,
    ]
    scored = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dataset(data, 'test', [*load, pack]),
    )
    last = iterations
    cfg = dict(
        default_scope='mmseg',
        model=network,
        train_dataloader=dict(
            batch_size=4,
            num_workers=workers,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=dataset(data, 'train', augmented),
        ),
        test_pipeline=[*load, pack],  # which mmseg's inference asks for by this name
        test_dataloader=scored,
        test_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
        test_cfg=dict(type='TestLoop'),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=last, val_interval=1000),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4),
        ),
        param_scheduler=[
            dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=last, by_epoch=False)
        ],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3),
            logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
        ),
        log_processor=dict(by_epoch=False),
        log_level='WARNING',
        randomness=dict(seed=0),
        # mmengine keeps what belongs to an experiment by this name and the second it began in.
        experiment_name=f'masks{next(RUNS)}',
    )
    return prepare(Config({**cfg, **options}), work_dir)
