"""The student of the digits demo: Faster R-CNN, R-18 of base width 16, 6 epochs.

Command: densekd train configs/digits/faster_rcnn_r18w16_6e_digits.py
"""

_base_ = ['./faster_rcnn_r18w8_8e_digits.py']

model = dict(backbone=dict(base_channels=16), neck=dict(in_channels=[16, 32, 64, 128]))

max_epochs = 6
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
