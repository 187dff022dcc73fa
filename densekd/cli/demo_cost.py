"""What a detector costs: its parameters, its operations, and its time for one image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn


def load_model(cfg: Any, checkpoint: Path) -> Any:
    """Returns the trained network of a config, the student's for a distillation config."""
    from densekd.core.checkpoint import load_weights, read_checkpoint
    from densekd.engine.run import student_config
    from densekd.wrappers.build import build_network, without_pretrained
    from densekd.wrappers.config import plain

    student = without_pretrained(plain(student_config(cfg).model))
    model = build_network(student, cfg.default_scope, 'student')
    load_weights(model, read_checkpoint(checkpoint), checkpoint, 'student')
    return model.eval()


def test_images(cfg: Any, count: int) -> list[Any]:
    """Returns the first images of a config's test split, each as a batch of one."""
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS, DefaultScope

    import_module(f'{cfg.default_scope}.datasets')  # which registers what it holds
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.test_dataloader.dataset.to_dict())
    return [pseudo_collate([dataset[i]]) for i in range(min(count, len(dataset)))]


def parameters(model: nn.Module) -> int:
    """Returns how many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def flops(model: Any, batch: Any) -> int:
    """Returns the floating-point operations of the networks for one image, as torch counts them.

    A multiplication and an addition are two operations; boxes are decoded for free.
    """
    from torch.utils.flop_counter import FlopCounterMode

    data = model.data_preprocessor(batch, False)
    with FlopCounterMode(display=False) as counter:
        model(data['inputs'], data['data_samples'], mode='predict')
    return counter.get_total_flops()


@torch.no_grad()
def latencies(models: Sequence[Any], batch: Any, rounds: int = 30) -> list[float]:
    """Returns the median milliseconds that each model takes from an image to its boxes.

    The models take turns, so that whatever else the machine does strikes all of them.
    """
    times: list[list[float]] = [[] for _ in models]
    for turn in range(rounds + 3):
        for model, taken in zip(models, times, strict=True):
            begun = time.perf_counter()
            model.test_step(batch)
            if turn >= 3:  # the first ones set caches up
                taken.append(1000 * (time.perf_counter() - begun))
    return [statistics.median(taken) for taken in times]
