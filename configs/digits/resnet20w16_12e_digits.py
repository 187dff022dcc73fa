"""The teacher on cut-out digits: ResNet-20 for small images, of its usual width 16, 12 epochs.

Command: densekd train configs/digits/resnet20w16_12e_digits.py
"""

_base_ = ['./resnet8w8_8e_digits.py']

model = dict(backbone=dict(depth=20, base_channels=16))

max_epochs = 12
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=1e-2,
        total_steps=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
