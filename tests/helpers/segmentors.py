"""Tiny segmentors, their batches, and distillers on each of their places."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.helpers.detectors import entry

CLASSES = 4
NORM = dict(type='SyncBN', requires_grad=True)
PREPROCESSOR = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size_divisor=32,
)


def backbone(width: int = 4, **more: Any) -> dict[str, Any]:
    """Returns the config of a ResNet-18 with the dilations of DeepLab."""
    return dict(
        type='ResNetV1c',
        depth=18,
        base_channels=width,
        stem_channels=width,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=NORM,
        norm_eval=False,
        style='pytorch',
        contract_dilation=True,
        **more,
    )


def deeplabv3plus(width: int = 4, channels: int = 16, classes: int = CLASSES) -> dict[str, Any]:
    """Returns the config of a DeepLabV3+ of strides 4 and 8."""
    loss = dict(type='CrossEntropyLoss', use_sigmoid=False)
    return dict(
        type='EncoderDecoder',
        data_preprocessor=PREPROCESSOR,
        backbone=backbone(width),
        decode_head=dict(
            type='DepthwiseSeparableASPPHead',
            in_channels=8 * width,
            in_index=3,
            channels=channels,
            dilations=(1, 2, 3, 4),
            c1_in_channels=width,
            c1_channels=4,
            dropout_ratio=0.1,
            num_classes=classes,
            norm_cfg=NORM,
            align_corners=False,
            loss_decode=dict(loss, loss_weight=1.0),
        ),
        auxiliary_head=dict(
            type='FCNHead',
            in_channels=4 * width,
            in_index=2,
            channels=8,
            num_convs=1,
            concat_input=False,
            dropout_ratio=0.1,
            num_classes=classes,
            norm_cfg=NORM,
            align_corners=False,
            loss_decode=dict(loss, loss_weight=0.4),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def pspnet(width: int = 4, channels: int = 16, classes: int = CLASSES) -> dict[str, Any]:
    """Returns the config of a PSPNet."""
    config = deeplabv3plus(width, channels, classes)
    head = config['decode_head']
    for key in ('dilations', 'c1_in_channels', 'c1_channels'):
        del head[key]
    config['decode_head'] = dict(head, type='PSPHead', pool_scales=(1, 2, 3, 6))
    return config


def cascade(width: int = 4, channels: int = 16, classes: int = CLASSES) -> dict[str, Any]:
    """Returns the config of an OCRNet: a coarse head, and one that refines it."""
    config = deeplabv3plus(width, channels, classes)
    head = dict(config['decode_head'])
    for key in ('dilations', 'c1_in_channels', 'c1_channels'):
        del head[key]
    first = dict(head, type='FCNHead', num_convs=1, kernel_size=1, concat_input=False)
    second = dict(head, type='OCRHead', ocr_channels=8)
    config.update(type='CascadeEncoderDecoder', num_stages=2, decode_head=[first, second])
    return config


def segformer(width: int = 8, channels: int = 24, classes: int = CLASSES) -> dict[str, Any]:
    """Returns the config of a SegFormer: a transformer of strides 4 to 32, tokens inside."""
    heads = (1, 2, 5, 8)
    return dict(
        type='EncoderDecoder',
        data_preprocessor=PREPROCESSOR,
        backbone=dict(
            type='MixVisionTransformer',
            embed_dims=width,
            num_layers=[1, 1, 1, 1],
            num_heads=heads,
            sr_ratios=[8, 4, 2, 1],
            mlp_ratio=2,
            drop_path_rate=0.1,
        ),
        decode_head=dict(
            type='SegformerHead',
            in_channels=[width * n for n in heads],
            in_index=[0, 1, 2, 3],
            channels=channels,
            dropout_ratio=0.1,
            num_classes=classes,
            norm_cfg=NORM,
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


def upernet_swin(width: int = 8, channels: int = 24, classes: int = CLASSES) -> dict[str, Any]:
    """Returns the config of a UPerNet on a Swin, whose stages hand out tokens and their shapes."""
    config = segformer(width, channels, classes)
    widths = [width * 2**i for i in range(4)]
    config['backbone'] = dict(
        type='SwinTransformer', embed_dims=width, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 4],
        window_size=4, mlp_ratio=2,
    )  # fmt: skip
    head = dict(config['decode_head'], type='UPerHead', in_channels=widths, pool_scales=(1, 2))
    return dict(config, decode_head=head)


SEGMENTORS = {'deeplabv3plus': deeplabv3plus, 'pspnet': pspnet, 'cascade': cascade}


def every_method(weight: float | None = None) -> list[dict[str, Any]]:
    """Returns distillers on the backbone, the decoder and the logits."""
    return [
        entry('backbone.c3', 'FitNet', weight),
        entry('backbone.c5.pre_relu', 'OFD', weight),
        entry('decode.feature', 'OFD', weight),
        entry('decode.logits', 'KD', weight),
        entry('decode.logits', 'CWD', weight),
        entry('backbone.c5', 'AT', weight),
        entry('backbone.c4', 'MGD', weight),
    ]


def batch(
    seed: int = 0,
    size: tuple[int, int] = (64, 96),
    images: int = 2,
    ignored: int = 8,
) -> dict[str, Any]:
    """Returns what a dataloader hands to `train_step`: noise with labels in two halves.

    Args:
        seed: Of the noise.
        size: Height and width.
        images: How many.
        ignored: Rows at the top that no label is given for.
    """
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    rng = np.random.default_rng(seed)
    height, width = size
    inputs, samples = [], []
    for _ in range(images):
        inputs.append(torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8)))
        mask = torch.zeros(1, height, width, dtype=torch.long)
        mask[:, :, width // 2 :] = int(rng.integers(1, CLASSES))
        mask[:, :ignored] = 255
        sample = SegDataSample(gt_sem_seg=PixelData(data=mask))
        sample.set_metainfo(
            dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
        )
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)
