"""The student on cut-out digits: ResNet-8 for small images, of base width 8, 8 epochs.

Command: densekd train configs/digits/resnet8w8_8e_digits.py
"""

_base_ = ['../_base_/digits/classification.py']

model = dict(backbone=dict(type='densekd.CifarResNet', depth=8, base_channels=8))

max_epochs = 8
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=2e-2,
        total_steps=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
