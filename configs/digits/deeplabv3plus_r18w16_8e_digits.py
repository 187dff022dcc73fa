"""The student on digit masks: DeepLabV3+, R-18 of base width 16, 8 epochs.

Command: densekd train configs/digits/deeplabv3plus_r18w16_8e_digits.py

Nine in ten pixels are background, and nothing here has seen images before: a network this small
easily calls everything background and stays there, its pixels 90% right. Hence the weights of the
classes, the auxiliary head on the deepest features, the wide skip connection, and a decode head
that passes gradients of both signs.
"""

_base_ = ['../_base_/digits/segmentation.py']

norm_cfg = dict(type='BN', requires_grad=True)
loss_decode = dict(
    type='CrossEntropyLoss', use_sigmoid=False, class_weight=[0.3] + [1.0] * 10, loss_weight=1.0
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(128, 128),
    ),
    backbone=dict(
        type='ResNetV1c',
        depth=18,
        base_channels=16,
        stem_channels=16,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 1, 2),
        strides=(1, 2, 2, 1),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
        contract_dilation=True,
    ),
    decode_head=dict(
        type='DepthwiseSeparableASPPHead',
        in_channels=128,
        in_index=3,
        channels=32,
        dilations=(1, 2, 4, 6),
        c1_in_channels=16,
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        act_cfg=dict(type='LeakyReLU', negative_slope=0.3),
        align_corners=False,
        loss_decode=loss_decode,
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=128,
        in_index=3,
        channels=64,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=loss_decode,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

max_epochs = 8
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=3e-3,
        total_steps=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
