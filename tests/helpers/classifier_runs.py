"""Short runs of tiny classifiers on cut-out digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

from densekd.datasets.digits import CLASSES
from densekd.engine.run import prepare
from tests.helpers.classifiers import classifier
from tests.helpers.runs import RUNS


def images(data: Path, split: str, pipeline: list[Any], **more: Any) -> dict[str, Any]:
    """Returns a split of the digits as a data set of labelled images."""
    return dict(
        type='densekd.ImageFolder',
        data_root=str(data / 'crops'),
        split=split,
        metainfo=dict(classes=CLASSES),
        pipeline=pipeline,
        **more,
    )


def labels_config(
    data: Path,
    work_dir: Path,
    distillers: Any = None,
    epochs: int = 2,
    workers: int = 0,
    preprocessor: Any = None,
    fraction: float = 1.0,
    **options: Any,
) -> Any:
    """Returns a prepared config of a short run.

    Args:
        data: What `make_tiny_digits` returned.
        work_dir: Where the run writes.
        distillers: A list, or None for plain training.
        epochs: How long it runs.
        workers: Processes that load.
        preprocessor: Further arguments of the student's preprocessor.
        fraction: The share of each class that is trained on.
        options: Anything else at the top of the config.
    """
    network = classifier(classes=10, preprocessor=preprocessor)
    if distillers is not None:
        teacher = classifier(classes=10, base_channels=8)
        network = dict(
            type='densekd.DistillClassifier',
            student=network,
            teacher=dict(model=teacher, untrained=True),
            distillers=distillers,
        )
    load, pack = dict(type='densekd.LoadImage'), dict(type='densekd.PackImage')
    cut, flip = dict(type='densekd.PadCrop', size=32), dict(type='densekd.Flip')
    shuffled = dict(type='DefaultSampler', shuffle=True)
    ordered = dict(type='DefaultSampler', shuffle=False)
    scored = dict(
        batch_size=8,
        num_workers=0,
        sampler=ordered,
        dataset=images(data, 'val', [load, pack], test_mode=True),
    )
    accuracy = dict(type='densekd.Accuracy')
    cfg = dict(
        default_scope='mmengine',
        model=network,
        train_dataloader=dict(
            batch_size=16,
            num_workers=workers,
            sampler=shuffled,
            dataset=images(data, 'train', [load, cut, flip, pack], fraction=fraction),
        ),
        val_dataloader=scored,
        test_dataloader=scored,
        val_evaluator=accuracy,
        test_evaluator=accuracy,
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4),
        ),
        param_scheduler=[dict(type='MultiStepLR', by_epoch=True, milestones=[1], gamma=0.1)],
        default_hooks=dict(
            checkpoint=dict(
                type='CheckpointHook', interval=1, save_best='accuracy/top1', rule='greater'
            ),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[dict(type='densekd.BestAndLastHook')],
        log_level='WARNING',
        randomness=dict(seed=0),
        # mmengine keeps what belongs to an experiment by this name and the second it began in.
        experiment_name=f'labels{next(RUNS)}',
    )
    return prepare(Config({**cfg, **options}), work_dir)
