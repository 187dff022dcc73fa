"""Names for places in detectors, found by anatomy and not by class name.

backbone.c2 … c5          stage outputs; residual stage 1 is c2, whatever its stride; of backbones
                          without residual stages (transformers), c_k has stride 2^k
backbone.cN.pre_relu      the sum before the last ReLU of stage N's last block
neck.p2 … p7              neck outputs; p_k has stride 2^k
head.cls_logits           class logits of a one-stage head, one map a level
head.bbox_deltas          its box regression, likewise (head.bbox_dist where it is a distribution);
                          no name where a student gives it in other units than a teacher
head.centerness           likewise, where there is one
rpn.objectness, rpn.deltas  what an RPN says of its anchors, one map a level
roi.cls_logits            class logits of a box head, a row a region, background last
roi.bbox_deltas           its box regression, likewise
roi.s0.cls_logits … roi.s2.bbox_deltas  those of each stage of a cascade, on regions of its own;
                          stages are counted from 0, as in the names of their losses
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from densekd.core.taps import Coding, Place, Tap
from densekd.core.trace import trace
from densekd.errors import TapError
from densekd.wrappers.regions import box_heads, score_regions
from densekd.wrappers.targets import gives_deltas

PARTS = frozenset(('backbone', 'neck', 'rpn_head', 'bbox_head', 'roi_head'))


def detector_forward(
    model: Any,
    images: Tensor,
    parts: frozenset[str] | None = None,
    rois: Mapping[int, Tensor] | None = None,
) -> None:
    """Runs the part of a detector that holds places in `parts`; all of it by default.

    Args:
        model: A detector of mmdet.
        images: Preprocessed images, (N, 3, H, W).
        parts: First parts of the tapped paths: `'backbone'`, `'neck'`, `'bbox_head'`,
            `'rpn_head'`, `'roi_head'`.
        rois: Regions for each stage of the box heads, (R, 5) as image, x1, y1, x2, y2; None takes
            a few that any image has, for a pass that only asks what runs.

    Raises:
        TapError: If a box head is asked for that does not score given regions in one pass.
    """
    if parts is not None and parts <= {'backbone'}:
        model.backbone(images)
        return
    features = model.extract_feat(images)
    # A part that is none of these is run with everything else.
    wanted = PARTS if parts is None or not parts <= PARTS else parts
    for head in ('rpn_head', 'bbox_head'):
        if head in wanted and hasattr(model, head):
            getattr(model, head)(features)
    if 'roi_head' not in wanted or not hasattr(model, 'roi_head'):
        return
    scored = score_regions(model, features, rois, images)
    if not scored and parts is not None and parts <= PARTS:
        raise TapError(
            f'{type(model.roi_head).__name__}: it has no box head that scores given regions in one '
            'pass. Tap the backbone, the neck or the RPN instead.'
        )


def detector_taps(model: Any) -> dict[str, Tap]:
    """Returns the named taps of a detector, shallowest first."""
    taps = backbone_taps(model)
    if getattr(model, 'neck', None) is not None:
        taps.update(neck_taps(model))
    if getattr(model, 'bbox_head', None) is not None:
        taps.update(_dense_head_taps(model.bbox_head))
    if getattr(model, 'rpn_head', None) is not None:
        taps['rpn.objectness'] = _tap('rpn.objectness', 'rpn_head', 'head', 0)
        coding = box_coding(model.rpn_head)
        taps['rpn.deltas'] = _tap('rpn.deltas', 'rpn_head', 'head', 1, coding=coding)
    heads = box_heads(model)
    for stage, (path, head) in enumerate(heads):
        taps.update(_box_head_taps(head, path, f'roi.s{stage}' if len(heads) > 1 else 'roi'))
    return taps


def _box_head_taps(head: Any, path: str, prefix: str) -> dict[str, Tap]:
    taps = {}
    # Some losses bring an activation of their own, which is no softmax with background last.
    if not getattr(head, 'custom_cls_channels', False):
        name = f'{prefix}.cls_logits'
        taps[name] = _tap(name, path, 'head', 0)
    if getattr(head, 'with_reg', True):
        name = f'{prefix}.bbox_deltas'
        taps[name] = _tap(name, path, 'head', 1, coding=box_coding(head))
    return taps


def box_coding(head: Any) -> Coding | None:
    """Returns how a head encodes boxes: the coder's type, its means and its deviations."""
    coder = getattr(head, 'bbox_coder', None)
    if coder is None:
        return None
    numbers = [tuple(float(x) for x in getattr(coder, key, ())) for key in ('means', 'stds')]
    return type(coder).__name__, numbers[0], numbers[1]


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
        return _taps_by_stride(model)
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


def _taps_by_stride(model: Any) -> dict[str, Tap]:
    whole = Tap('backbone', name='backbone', copy=False)
    try:
        place = trace(model, {'backbone': whole}, lambda m, x: m.backbone(x))['backbone']
    except TapError:  # it hands out something else than tensors
        return {}
    levels = [round(math.log2(stride[0])) for stride in place.strides if stride is not None]
    count = len(place.strides)
    if len(set(levels)) < count:
        # A plain transformer keeps one stride throughout: its outputs go by their order.
        levels = list(range(6 - count, 6))
    names = [f'backbone.c{level}' for level in levels]
    return {name: _tap(name, 'backbone', 'backbone', i) for i, name in enumerate(names)}


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


def neck_taps(model: Any) -> dict[str, Tap]:
    """Returns the named taps of a neck, by the strides of its outputs."""
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
    # A layer that makes it, and not a loss that was inherited with nothing to compare.
    if any('centerness' in name and 'loss' not in name for name, _ in head.named_modules()):
        names.append('centerness')
    taps = {
        f'head.{name}': _tap(f'head.{name}', 'bbox_head', 'head', index)
        for index, name in enumerate(names)
    }
    if getattr(getattr(head, 'loss_cls', None), 'activated', False):
        del taps['head.cls_logits']  # it gives probabilities
    if not distribution:
        taps['head.bbox_deltas'] = replace(taps['head.bbox_deltas'], coding=box_coding(head))
        if not gives_deltas(head):
            del taps['head.bbox_deltas']
    return taps


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
