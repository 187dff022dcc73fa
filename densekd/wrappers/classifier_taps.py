"""Names for places in classifiers, found by anatomy and not by class name.

backbone.c2 … c5          ends of the stages: residual stage 1 is c2, whatever its stride
backbone.cN.pre_relu      what goes into the ReLU that ends stage N, or that follows its sum
embedding                 the pooled features, (N, C)
logits                    the class logits, (N, K)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from densekd.core.taps import Tap
from densekd.wrappers.named_taps import backbone_taps


def classifier_forward(model: Any, images: Tensor, parts: frozenset[str] | None = None) -> None:
    """Runs the part of a classifier that holds places in `parts`; all of it by default.

    Args:
        model: A classifier: backbone, pooling, head.
        images: Preprocessed images, (N, 3, H, W).
        parts: First parts of the tapped paths: `'backbone'`, `'pool'`, `'head'`.
    """
    if parts is not None and parts <= {'backbone'}:
        model.backbone(images)
        return
    embedding = model.extract_feat(images)
    if parts is None or not parts <= {'backbone', 'pool'}:
        model.head(embedding)


def classifier_taps(model: Any) -> dict[str, Tap]:
    """Returns the named taps of a classifier, shallowest first."""
    taps: dict[str, Tap] = {}
    if hasattr(model.backbone, 'stage_taps'):
        # A family whose stages don't end with a ReLU says itself where they do.
        for short, tap in model.backbone.stage_taps().items():
            name = f'backbone.{short}'
            norm = f'backbone.{tap.norm}' if tap.norm else None
            path = f'backbone.{tap.path}'
            taps[name] = replace(tap, path=path, name=name, level='backbone', norm=norm)
    else:
        taps.update(backbone_taps(model))
    taps['embedding'] = Tap('pool', name='embedding', level='neck', copy=False)
    taps['logits'] = Tap('head', name='logits', level='head', copy=False)
    return taps
