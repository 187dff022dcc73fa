"""Tiny detectors, batches made of noise and boxes, and what tests ask of a network."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from densekd.engine.optim import build_for_distillation
from densekd.wrappers.build import build_network
from densekd.wrappers.detector import DistillDetector
from densekd.wrappers.model import DistillModel

PREPROCESSOR = dict(
    type='DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_size_divisor=32,
)
ADAMW = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
SGD = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(max_norm=1.0),
)


def backbone(width: int = 4, **more: Any) -> dict[str, Any]:
    """Returns a ResNet-18 of a base width, every stage trainable and every norm in use."""
    config: dict[str, Any] = dict(
        type='ResNet',
        depth=18,
        base_channels=width,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    )
    return {**config, **more}


def _anchors(strides: list[int]) -> dict[str, Any]:
    return dict(type='AnchorGenerator', scales=[4], ratios=[0.7, 1.4], strides=strides)


def _coder(stds: list[float]) -> dict[str, Any]:
    return dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=stds)


def _assigner(positive: float, negative: float, least: float) -> dict[str, Any]:
    return dict(
        type='MaxIoUAssigner',
        pos_iou_thr=positive,
        neg_iou_thr=negative,
        min_pos_iou=least,
        ignore_iof_thr=-1,
    )


def _neck(width: int, channels: int, levels: int) -> dict[str, Any]:
    widths = [width * 2**i for i in range(4)]
    return dict(type='FPN', in_channels=widths, out_channels=channels, num_outs=levels)


def retinanet(width: int = 4, channels: int = 16, classes: int = 3, **more: Any) -> dict[str, Any]:
    """Returns the config of a RetinaNet with four levels, strides 4 to 32."""
    return dict(
        type='RetinaNet',
        data_preprocessor=PREPROCESSOR,
        backbone=backbone(width, **more),
        neck=_neck(width, channels, 4),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=classes,
            in_channels=channels,
            stacked_convs=1,
            feat_channels=channels,
            anchor_generator=_anchors([4, 8, 16, 32]),
            bbox_coder=_coder([1.0] * 4),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
            loss_bbox=dict(type='L1Loss'),
        ),
        train_cfg=dict(
            assigner=_assigner(0.5, 0.4, 0),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        test_cfg=dict(
            nms_pre=100,
            min_bbox_size=0,
            score_thr=0.005,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=20,
        ),
    )


def faster_rcnn(width: int = 4, channels: int = 16, classes: int = 3) -> dict[str, Any]:
    """Returns the config of a Faster R-CNN with five levels, strides 4 to 64."""
    proposals = dict(nms_pre=60, max_per_img=30, nms=dict(type='nms', iou_threshold=0.7))
    sampler = dict(type='RandomSampler', pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True)
    return dict(
        type='FasterRCNN',
        data_preprocessor=PREPROCESSOR,
        backbone=backbone(width),
        neck=_neck(width, channels, 5),
        rpn_head=dict(
            type='RPNHead',
            in_channels=channels,
            feat_channels=channels,
            anchor_generator=_anchors([4, 8, 16, 32, 64]),
            bbox_coder=_coder([1.0] * 4),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=dict(type='L1Loss'),
        ),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=0),
                out_channels=channels,
                featmap_strides=[4, 8, 16, 32],
            ),
            bbox_head=dict(
                type='Shared2FCBBoxHead',
                in_channels=channels,
                fc_out_channels=16,
                roi_feat_size=3,
                num_classes=classes,
                bbox_coder=_coder([0.1, 0.1, 0.2, 0.2]),
                reg_class_agnostic=False,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False),
                loss_bbox=dict(type='L1Loss'),
            ),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=_assigner(0.7, 0.3, 0.3),
                sampler=dict(sampler, num=32, add_gt_as_proposals=False),
                allowed_border=-1,
                pos_weight=-1,
                debug=False,
            ),
            rpn_proposal=dict(proposals, min_bbox_size=0),
            rcnn=dict(
                assigner=_assigner(0.5, 0.5, 0.5),
                sampler=dict(sampler, num=16, pos_fraction=0.25),
                pos_weight=-1,
                debug=False,
            ),
        ),
        test_cfg=dict(
            rpn=dict(proposals, min_bbox_size=0),
            rcnn=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10),
        ),
    )


def mask_rcnn(width: int = 4, channels: int = 16, classes: int = 3) -> dict[str, Any]:
    """Returns the config of a Mask R-CNN: the Faster R-CNN with a mask head."""
    config = faster_rcnn(width, channels, classes)
    config['type'] = 'MaskRCNN'
    roi = config['roi_head']
    roi['mask_roi_extractor'] = dict(
        roi['bbox_roi_extractor'],
        roi_layer=dict(type='RoIAlign', output_size=4, sampling_ratio=0),
    )
    roi['mask_head'] = dict(
        type='FCNMaskHead',
        num_convs=1,
        in_channels=channels,
        conv_out_channels=8,
        num_classes=classes,
        loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
    )
    config['train_cfg']['rcnn']['mask_size'] = 8
    config['test_cfg']['rcnn']['mask_thr_binary'] = 0.5
    return config


def cascade_rcnn(
    width: int = 4, channels: int = 16, classes: int = 3, stages: int = 2
) -> dict[str, Any]:
    """Returns the config of a Cascade R-CNN whose stages differ in overlap and deviations."""
    config = faster_rcnn(width, channels, classes)
    config['type'] = 'CascadeRCNN'
    roi, rcnn = config['roi_head'], config['train_cfg']['rcnn']
    config['roi_head'] = dict(
        type='CascadeRoIHead',
        num_stages=stages,
        stage_loss_weights=[0.5**i for i in range(stages)],
        bbox_roi_extractor=roi['bbox_roi_extractor'],
        bbox_head=[
            dict(
                roi['bbox_head'],
                reg_class_agnostic=True,
                bbox_coder=_coder([x / (i + 1) for x in (0.1, 0.1, 0.2, 0.2)]),
            )
            for i in range(stages)
        ],
    )
    overlaps = [0.5 + 0.1 * i for i in range(stages)]
    config['train_cfg']['rcnn'] = [dict(rcnn, assigner=_assigner(x, x, x)) for x in overlaps]
    return config


def _dense(
    width: int, channels: int, classes: int, kind: str, head: dict[str, Any]
) -> dict[str, Any]:
    config = retinanet(width, channels, classes)
    config['type'] = kind
    config['bbox_head'] = dict(
        num_classes=classes,
        in_channels=channels,
        stacked_convs=1,
        feat_channels=channels,
        norm_cfg=dict(type='GN', num_groups=4, requires_grad=True),
        loss_cls=config['bbox_head']['loss_cls'],
        loss_bbox=dict(type='GIoULoss'),
        **head,
    )
    return config


def fcos(width: int = 4, channels: int = 16, classes: int = 3, **head: Any) -> dict[str, Any]:
    """Returns the config of an FCOS with four levels, strides 4 to 32."""
    config = _dense(
        width,
        channels,
        classes,
        'FCOS',
        dict(
            type='FCOSHead',
            strides=[4, 8, 16, 32],
            regress_ranges=((-1, 16), (16, 24), (24, 48), (48, 1e8)),
            **head,
        ),
    )
    del config['train_cfg']
    return config


def _one_anchor_a_cell() -> dict[str, Any]:
    return dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[4, 8, 16, 32])


def atss(width: int = 4, channels: int = 16, classes: int = 3) -> dict[str, Any]:
    """Returns the config of an ATSS with four levels, strides 4 to 32."""
    head = dict(
        type='ATSSHead',
        anchor_generator=_one_anchor_a_cell(),
        bbox_coder=_coder([0.1, 0.1, 0.2, 0.2]),
    )
    config = _dense(width, channels, classes, 'ATSS', head)
    config['train_cfg']['assigner'] = dict(type='ATSSAssigner', topk=9)
    return config


def gfl(width: int = 4, channels: int = 16, classes: int = 3) -> dict[str, Any]:
    """Returns the config of a GFL with four levels, strides 4 to 32."""
    head = dict(type='GFLHead', anchor_generator=_one_anchor_a_cell(), reg_max=4)
    config = _dense(width, channels, classes, 'GFL', head)
    config['bbox_head']['loss_cls'] = dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0)
    config['train_cfg']['assigner'] = dict(type='ATSSAssigner', topk=9)
    return config


# What most tests are run on, one detector of each sort; all that are known come after.
MODELS = {'retinanet': retinanet, 'faster_rcnn': faster_rcnn}
DETECTORS = {
    **MODELS,
    'mask_rcnn': mask_rcnn,
    'cascade_rcnn': cascade_rcnn,
    'fcos': fcos,
    'atss': atss,
    'gfl': gfl,
}
DENSE = ('retinanet', 'fcos', 'atss', 'gfl')


def entry(place: str | list[str], head: str, weight: float | None = None, **more: Any) -> Any:
    """Returns one distiller on the same place of both sides."""
    kind = head.removesuffix('DistillationHead')
    config: dict[str, Any] = dict(type=f'{kind}DistillationHead')
    if weight is not None:
        config['loss'] = dict(type=f'{kind}Loss', loss_weight=weight)
    return dict(student_module=place, head=config, **more)


def every_method(model: str, weight: float | None = None) -> list[dict[str, Any]]:
    """Returns a distiller of each method that fits a model of `DETECTORS`, all at one weight."""
    levels = ['neck.p2', 'neck.p3', 'neck.p4', 'neck.p5']
    entries = [
        entry('backbone.c3', 'FitNet', weight),
        entry('backbone.c5.pre_relu', 'OFD', weight),
        entry(levels, 'FGFI', weight),
        entry('neck.p3', 'PKD', weight),
    ]
    if model in DENSE:
        entries += [
            entry('head.cls_logits', 'KDQFL', weight),
            entry('head.cls_logits', 'BinaryKL', weight),
        ]
        if model != 'gfl':  # which gives no deltas
            entries.append(bounded('head.bbox_deltas', 'dense', weight))
        return entries
    for stage in ('roi.s0', 'roi.s1') if model == 'cascade_rcnn' else ('roi',):
        entries += [
            entry(f'{stage}.cls_logits', 'WeightedSoftLabel', weight),
            bounded(f'{stage}.bbox_deltas', 'roi', weight),
        ]
    entries += [
        entry('rpn.objectness', 'WeightedSoftObjectness', weight),
        bounded('rpn.deltas', 'rpn', weight),
    ]
    return entries


def bounded(place: str, boxes: str, weight: float | None = None, **loss: Any) -> Any:
    """Returns the bounded regression of one head."""
    if weight is not None:
        loss['loss_weight'] = weight
    head = dict(
        type='BoundedRegressionDistillationHead',
        name='_'.join(['bounded', boxes, *place.split('.')[1:-1]]),
        loss=dict(type='BoundedRegressionLoss', boxes=boxes, **loss),
    )
    return dict(student_module=place, head=head)


def distilled(
    model: str = 'retinanet',
    distillers: Any = None,
    teacher: Any = None,
    weights: float | None = None,
    **more: Any,
) -> DistillDetector:
    """Returns a tiny student beside an untrained teacher of twice its width."""
    make = DETECTORS[model]
    return DistillDetector(
        make(),
        teacher or dict(model=make(8, 24), untrained=True),
        every_method(model, weights) if distillers is None else distillers,
        **more,
    )


def plain(model: str = 'retinanet') -> nn.Module:
    """Returns the student alone."""
    return build_network(DETECTORS[model](), 'mmdet', 'student')


def batch(
    seed: int = 0,
    size: tuple[int, int] = (96, 64),
    images: int = 2,
    boxes: int = 3,
    classes: int = 3,
    masks: bool = False,
) -> dict[str, Any]:
    """Returns what a dataloader hands to `train_step`: noise, and boxes that lie in it."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    rng = np.random.default_rng(seed)
    height, width = size
    inputs, samples = [], []
    for number in range(images):
        inputs.append(torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8)))
        corner = rng.uniform(0, (width - 32, height - 32), (boxes, 2))
        side = rng.uniform(12, 32, (boxes, 2))
        sample = DetDataSample()
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(np.concatenate([corner, corner + side], 1)).float(),
            labels=torch.from_numpy(rng.integers(0, classes, boxes)),
        )
        if masks:  # each object fills its box
            filled = np.zeros((boxes, height, width), dtype=np.uint8)
            for mask, ((x, y), (w, h)) in zip(filled, zip(corner, side, strict=True), strict=True):
                mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
            sample.gt_instances.masks = BitmapMasks(filled, height, width)
        sample.set_metainfo(
            dict(
                img_id=number,
                img_shape=size,
                ori_shape=size,
                pad_shape=size,
                batch_input_shape=size,
                scale_factor=(1.0, 1.0),
            )
        )
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def prepared(model: nn.Module, data: dict[str, Any]) -> dict[str, Any]:
    """Returns a batch as it comes out of the model's preprocessor."""
    return model.data_preprocessor(copy.deepcopy(data), True)


def losses_of(model: nn.Module, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the loss dict of a batch."""
    ready = prepared(model, batch() if data is None else data)
    return model(ready['inputs'], ready['data_samples'], mode='loss')


def optimiser(model: nn.Module, config: dict[str, Any]) -> Any:
    """Returns the optimiser wrapper that the runner would build."""
    if isinstance(model, DistillModel):
        return build_for_distillation(model, config)
    return build_optim_wrapper(model, copy.deepcopy(config))


def train(
    model: nn.Module, steps: int, config: dict[str, Any] = ADAMW, seed: int = 0, **data: Any
) -> Any:
    """Trains on the same batches for the same seed, and returns the optimiser wrapper."""
    return train_on(model, [batch(seed + step, **data) for step in range(steps)], config, seed)


def train_on(
    model: nn.Module, batches: Iterable[Any], config: dict[str, Any] = ADAMW, seed: int = 0
) -> Any:
    """Trains a step on each batch, and returns the optimiser wrapper."""
    wrapper = optimiser(model, config)
    model.train()
    torch.manual_seed(seed)
    for data in batches:
        model.train_step(data, wrapper)
    return wrapper


def state(model: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of all parameters and buffers."""
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def unlike(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Returns the keys that are in one only, or whose bits differ."""
    keys = first.keys() ^ second.keys()
    return sorted(keys) + [k for k in first if k in second and not torch.equal(first[k], second[k])]
