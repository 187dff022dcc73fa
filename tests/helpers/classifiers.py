"""Tiny classifiers and their batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

CLASSES = 6
BACKBONES: dict[str, dict[str, Any]] = {
    'cifar_resnet': dict(type='densekd.CifarResNet', depth=8, base_channels=4),
    'wide_resnet': dict(type='densekd.WideResNet', depth=10, widen_factor=0.5),
    'resnet': dict(type='densekd.ResNet', depth=18, stem='cifar', base_channels=4),
    'mobilenet_v2': dict(type='densekd.MobileNetV2', widen_factor=0.25, stem='cifar'),
    'shufflenet_v2': dict(type='densekd.ShuffleNetV2', widen_factor=0.5, stem='cifar'),
}


def classifier(
    name: str = 'cifar_resnet', classes: int = CLASSES, preprocessor: Any = None, **more: Any
) -> dict[str, Any]:
    """Returns the config of a classifier; `more` goes to its backbone."""
    return dict(
        type='densekd.ImageClassifier',
        data_preprocessor=dict(
            type='densekd.ImagePreprocessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            **(preprocessor or {}),
        ),
        backbone={**BACKBONES[name], **more},
        head=dict(type='densekd.LinearHead', num_classes=classes),
    )


def batch(seed: int = 0, images: int = 4, size: int = 32) -> dict[str, Any]:
    """Returns what a dataloader hands to `train_step`: noise, with a label each."""
    from mmengine.structures import BaseDataElement

    rng = np.random.default_rng(seed)
    inputs = [
        torch.from_numpy(rng.integers(0, 256, (3, size, size), dtype=np.uint8))
        for _ in range(images)
    ]
    samples = [BaseDataElement(gt_label=torch.tensor(i % CLASSES)) for i in range(images)]
    return dict(inputs=inputs, data_samples=samples)
