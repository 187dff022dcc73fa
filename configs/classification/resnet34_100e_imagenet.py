"""ResNet-34 by itself on ImageNet: student or teacher of the configs in configs/kd.

Command:  densekd train configs/classification/resnet34_100e_imagenet.py
Expected: 73.62 top-1, published by mmclassification.
          Not yet run by us.
"""

_base_ = [
    '../_base_/classification/imagenet.py',
    '../_base_/classification/schedule_100e.py',
]

model = dict(backbone=dict(type='densekd.ResNet', depth=34))
