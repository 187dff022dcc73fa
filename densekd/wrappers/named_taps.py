"""Names for places in detectors, found by anatomy and not by class name.

backbone.c2 … c5          stage outputs; residual stage 1 is c2, whatever its stride
backbone.cN.pre_relu      the sum before the last ReLU of stage N's last block
neck.p2 … p7              neck outputs; p_k has stride 2^k
head.cls_logits           class logits of a one-stage head, one map a level
head.bbox_deltas          its box regression, likewise (head.bbox_dist where it is a distribution)
head.centerness           likewise, where there is one
rpn.objectness, rpn.deltas
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from densekd.core.taps import Place, Tap
from densekd.core.trace import trace


def detector_forward(model: Any, images: Tensor, parts: frozenset[str] | None = None) -> None:
    """Runs the part of a detector that holds places in `parts`; all of it but RoIs by default.

    Args:
        model: A detector of mmdet.
        images: Preprocessed images, (N, 3, H, W).
        parts: First parts of the tapped paths: `'backbone'`, `'neck'`, `'bbox_head'`, `'rpn_head'`.
    """
    if parts is not None and parts <= {'backbone'}:
        model.backbone(images)
        return
    features = model.extract_feat(images)
    for head in ('rpn_head', 'bbox_head'):
        if hasattr(model, head) and (parts is None or not parts <= {'backbone', 'neck'}):
            getattr(model, head)(features)


def detector_taps(model: Any) -> dict[str, Tap]:
    """Returns the named taps of a detector, shallowest first."""
    taps = backbone_taps(model)
    if getattr(model, 'neck', None) is not None:
        taps.update(_neck_taps(model))
    if getattr(model, 'bbox_head', None) is not None:
        taps.update(_dense_head_taps(model.bbox_head))
    if getattr(model, 'rpn_head', None) is not None:
        for index, name in enumerate(('objectness', 'deltas')):
            taps[f'rpn.{name}'] = _tap(f'rpn.{name}', 'rpn_head', 'head', index)
    return taps


def _tap(name: str, path: str, level: str, index: int | None = None, **more: Any) -> Tap:
    # Stage, neck and head outputs are not written to by what follows in any toolbox model that
    # was met; the version counter is compared all the same, so copying them would only cost.
    return Tap(path, name=name, level=level, index=index, copy=False, **more)


def backbone_taps(model: Any) -> dict[str, Tap]:
    """Returns the named taps of a backbone: stage outputs, and the sums before their last ReLU."""
    backbone = model.backbone
    stages = stage_names(backbone)
    taps = {}
    if not stages:
        indices = list(getattr(backbone, 'out_indices', ()))
        for position, index in enumerate(indices):
            name = f'backbone.c{index + 2}'
            taps[name] = _tap(name, 'backbone', 'backbone', position)
        return taps
    for number, stage in enumerate(stages, start=2):
        name, path = f'backbone.c{number}', f'backbone.{stage}'
        last = list(getattr(backbone, stage).named_children())[-1]
        norm = _last_norm(last[1])
        block = f'{path}.{last[0]}'
        relu = isinstance(getattr(last[1], 'relu', None), nn.Module)
        taps[name] = _tap(name, path, 'backbone', rectified=relu)
        if relu:
            taps[f'{name}.pre_relu'] = Tap(
                f'{block}.relu',
                side='in',
                name=f'{name}.pre_relu',
                level='backbone',
                norm=f'{block}.{norm}' if norm else None,
            )
    return taps


def stage_names(backbone: Any) -> list[str]:
    """Returns the attributes that hold a backbone's residual stages, in order."""
    if isinstance(getattr(backbone, 'res_layers', None), (list, tuple)):
        return list(backbone.res_layers)
    return [name for name in (f'layer{i}' for i in range(1, 5)) if hasattr(backbone, name)]


def _last_norm(block: Any) -> str | None:
    """Returns the attribute of the norm that ends a residual branch."""
    for attribute in ('norm3_name', 'norm2_name'):
        name = getattr(block, attribute, None)
        if isinstance(name, str) and hasattr(block, name):
            return name
    return next((name for name in ('bn3', 'bn2') if hasattr(block, name)), None)


def _neck_taps(model: Any) -> dict[str, Tap]:
    whole = Tap('neck', name='neck', copy=False)
    places = trace(model, {'neck': whole}, lambda m, x: m.extract_feat(x))
    taps: dict[str, Tap] = {}
    for index, stride in enumerate(places['neck'].strides):
        if stride is None:
            continue
        name = f'neck.p{round(math.log2(stride[0]))}'
        # Two outputs of one stride can't be told apart by it: the first keeps the name.
        taps.setdefault(name, _tap(name, 'neck', 'neck', index))
    return taps


def _dense_head_taps(head: Any) -> dict[str, Tap]:
    distribution = hasattr(head, 'reg_max')
    names = ['cls_logits', 'bbox_dist' if distribution else 'bbox_deltas']
    if any('centerness' in name for name, _ in head.named_modules()):
        names.append('centerness')
    return {
        f'head.{name}': _tap(f'head.{name}', 'bbox_head', 'head', index)
        for index, name in enumerate(names)
    }


def frozen_taps(model: Any, taps: dict[str, Tap]) -> frozenset[str]:
    """Returns the names of the taps that no trainable parameter comes before."""
    backbone = getattr(model, 'backbone', None)
    frozen = set()
    stages = stage_names(backbone) if backbone is not None else []
    for number, _ in enumerate(stages, start=2):
        later = tuple(f'{name}.' for name in stages[number - 1 :])
        before = [p for n, p in backbone.named_parameters() if not n.startswith(later or ('\0',))]
        if not any(p.requires_grad for p in before):
            frozen |= {n for n in taps if n.split('.pre_relu')[0] == f'backbone.c{number}'}
    return frozenset(frozen)


def describe(place: Place) -> tuple[str, str]:
    """Returns the shapes and strides of a place as a person reads them."""
    shapes = ', '.join('x'.join(map(str, shape[1:])) for shape in place.shapes)
    strides = ', '.join('-' if s is None else f'{s[0]:g}' for s in place.strides)
    return shapes, strides
