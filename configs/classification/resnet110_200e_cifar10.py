"""ResNet-110 by itself on CIFAR-10: student or teacher of the configs in configs/kd.

Command:  densekd train configs/classification/resnet110_200e_cifar10.py
Expected: 93.77 top-1, published by "Knowledge Distillation for Image Classification",
          the best epoch of its run.
          Not yet run by us.
"""

_base_ = [
    '../_base_/classification/cifar10.py',
    '../_base_/classification/schedule_200e.py',
]

model = dict(backbone=dict(type='densekd.CifarResNet', depth=110))
