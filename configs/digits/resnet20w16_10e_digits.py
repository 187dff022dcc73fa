"""The teacher on cut-out digits: ResNet-20 for 32x32 images, of its usual width 16, 10 epochs.

Command: densekd train configs/digits/resnet20w16_10e_digits.py
"""

_base_ = ['./resnet8w8_10e_digits.py']

model = dict(backbone=dict(depth=20, base_channels=16))
