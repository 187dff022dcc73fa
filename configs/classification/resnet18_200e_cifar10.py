"""ResNet-18 with a stem for small images by itself on CIFAR-10, for configs/kd.

Command:  densekd train configs/classification/resnet18_200e_cifar10.py
Expected: 94.96 top-1, published by GML.
          Not yet run by us.
"""

_base_ = [
    '../_base_/classification/cifar10.py',
    '../_base_/classification/schedule_200e.py',
]

model = dict(backbone=dict(type='densekd.ResNet', depth=18, stem='cifar'))
