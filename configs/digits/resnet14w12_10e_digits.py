"""A teaching assistant on cut-out digits: ResNet-14 for 32x32 images, of width 12, 10 epochs.

Command: densekd train configs/digits/resnet14w12_10e_digits.py
"""

_base_ = ['./resnet8w8_10e_digits.py']

model = dict(backbone=dict(depth=14, base_channels=12))
