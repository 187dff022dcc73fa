"""The teacher of the digits demo: Faster R-CNN, R-18 of base width 32, 6 epochs.

Command: densekd train configs/digits/faster_rcnn_r18w32_6e_digits.py
"""

_base_ = ['./faster_rcnn_r18w16_6e_digits.py']

model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
    ),
)
