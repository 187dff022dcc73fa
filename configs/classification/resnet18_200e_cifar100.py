"""ResNet-18 with a stem for small images by itself on CIFAR-100, for configs/kd.

Command:  densekd train configs/classification/resnet18_200e_cifar100.py
Expected: 78.89 top-1, published by GML.
          Not yet run by us.
"""

_base_ = [
    '../_base_/classification/cifar100.py',
    '../_base_/classification/schedule_200e.py',
]

model = dict(backbone=dict(type='densekd.ResNet', depth=18, stem='cifar'))
