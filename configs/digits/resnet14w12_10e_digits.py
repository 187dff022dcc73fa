"""A teaching assistant on cut-out digits: ResNet-14 for small images, of width 12, 10 epochs.

Command: densekd train configs/digits/resnet14w12_10e_digits.py
"""

_base_ = ['./resnet20w16_12e_digits.py']

model = dict(backbone=dict(depth=14, base_channels=12))

max_epochs = 10
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
