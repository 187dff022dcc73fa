"""Names for places in mmseg's segmentors, found by anatomy and not by class name.

backbone.c2 … c5, ….pre_relu, neck.p2 …   as in detectors
decode.aspp       the norm after the pyramid of dilated convolutions, before its ReLU
decode.feature    the last norm before the classifier, before its ReLU
decode.logits     the class logits, at the stride of the decode head
aux.logits        those of the (last) auxiliary head
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from densekd.core.taps import Tap
from densekd.wrappers.named_taps import backbone_taps, neck_taps

# Where a decode head ends before its classifier, by the names that mmseg's heads give; the first
# that there is. A list or a chain of layers stands for its last one.
LAST_LAYERS = (
    'sep_bottleneck',
    'fpn_bottleneck',
    'fusion_conv',
    'conv_cat',
    'bottleneck',
    'convs',
    'output_conv',
)


def segmentor_forward(model: Any, images: Tensor, parts: frozenset[str] | None = None) -> None:
    """Runs the part of a segmentor that holds places in `parts`; all of it by default.

    Nothing is resized to the images' size, and no loss is computed.

    Args:
        model: A segmentor of mmseg.
        images: Preprocessed images, (N, 3, H, W).
        parts: First parts of the tapped paths: `'backbone'`, `'neck'`, `'decode_head'`,
            `'auxiliary_head'`.
    """
    if parts is not None and parts <= {'backbone'}:
        model.backbone(images)
        return
    features = model.extract_feat(images)
    known = {'backbone', 'neck', 'decode_head', 'auxiliary_head'}
    wanted = known if parts is None or not parts <= known else parts
    if 'decode_head' in wanted:
        logits: Any = None
        for i, head in enumerate(heads(model, 'decode_head')):
            # Each further head of a cascade refines what the one before it says.
            logits = head.forward(features) if i == 0 else head.forward(features, logits)
    if 'auxiliary_head' in wanted:
        for head in heads(model, 'auxiliary_head'):
            head.forward(features)


def heads(model: Any, name: str) -> list[Any]:
    """Returns the heads under a name: none, one, or those of a list."""
    found = getattr(model, name, None)
    if found is None:
        return []
    return list(found) if isinstance(found, nn.ModuleList) else [found]


def segmentor_taps(model: Any) -> dict[str, Tap]:
    """Returns the named taps of a segmentor, shallowest first."""
    taps = backbone_taps(model)
    if getattr(model, 'neck', None) is not None:
        taps.update(neck_taps(model))
    decoders = heads(model, 'decode_head')
    path = _path(model, 'decode_head', len(decoders))
    head = decoders[-1]
    if hasattr(head, 'aspp_modules'):
        taps.update(_before_relu('decode.aspp', f'{path}.bottleneck', head.bottleneck))
    found = _last_layer(head)
    if found is not None:
        taps.update(_before_relu('decode.feature', f'{path}.{found[0]}', found[1]))
    taps.update(_logits('decode.logits', head, path))
    auxiliary = heads(model, 'auxiliary_head')
    if auxiliary:
        path = _path(model, 'auxiliary_head', len(auxiliary))
        taps.update(_logits('aux.logits', auxiliary[-1], path))
    return taps


def _path(model: Any, name: str, count: int) -> str:
    many = isinstance(getattr(model, name), nn.ModuleList)
    return f'{name}.{count - 1}' if many else name


def _logits(name: str, head: Any, path: str) -> dict[str, Tap]:
    # A head's own forward is called past its hooks, so its classifier is what can be tapped.
    if not isinstance(getattr(head, 'conv_seg', None), nn.Module):
        return {}
    return {name: Tap(f'{path}.conv_seg', name=name, level='head', copy=False)}


def _last_layer(head: Any) -> tuple[str, Any] | None:
    """Returns the last layer before a head's classifier, with its path in the head."""
    for name in LAST_LAYERS:
        layer = getattr(head, name, None)
        path = name
        while isinstance(layer, (nn.Sequential, nn.ModuleList)) and len(layer):
            path, layer = f'{path}.{len(layer) - 1}', layer[len(layer) - 1]
        if isinstance(layer, nn.Module) and not isinstance(layer, (nn.Sequential, nn.ModuleList)):
            return path, layer
    return None


def _before_relu(name: str, path: str, layer: Any) -> dict[str, Tap]:
    """Returns a tap on the norm of a convolution with one, whose output a ReLU overwrites."""
    inner = getattr(layer, 'pointwise_conv', None)
    if inner is not None:
        path, layer = f'{path}.pointwise_conv', inner
    norm = getattr(layer, 'norm_name', None)
    if not isinstance(norm, str) or not isinstance(getattr(layer, norm, None), nn.Module):
        return {}
    place = f'{path}.{norm}'
    return {name: Tap(place, name=name, level='head', norm=place)}
