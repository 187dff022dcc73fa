"""The teacher on digit masks: DeepLabV3+, R-18 of base width 32, 10 epochs.

Command: densekd train configs/digits/deeplabv3plus_r18w32_10e_digits.py
"""

_base_ = ['./deeplabv3plus_r18w16_8e_digits.py']

model = dict(
    backbone=dict(base_channels=32, stem_channels=32),
    decode_head=dict(in_channels=256, channels=64, c1_in_channels=32, c1_channels=96),
    auxiliary_head=dict(in_channels=256, channels=128),
)

max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(
        type='OneCycleLR',
        eta_max=3e-3,
        total_steps=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
