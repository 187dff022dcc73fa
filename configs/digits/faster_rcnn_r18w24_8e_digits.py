"""The teacher of the digits demo: Faster R-CNN, R-18 of base width 24, 8 epochs.

Command: densekd train configs/digits/faster_rcnn_r18w24_8e_digits.py
"""

_base_ = ['./faster_rcnn_r18w16_6e_digits.py']

model = dict(
    backbone=dict(base_channels=24),
    neck=dict(in_channels=[24, 48, 96, 192], out_channels=48),
    rpn_head=dict(in_channels=48, feat_channels=48),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=48),
        bbox_head=dict(in_channels=48, fc_out_channels=192),
    ),
)

max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=2e-3,
        total_steps=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
