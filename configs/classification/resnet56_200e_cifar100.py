"""ResNet-56 by itself on CIFAR-100: student or teacher of the configs in configs/kd.

Command:  densekd train configs/classification/resnet56_200e_cifar100.py
Expected: 71.09 top-1, published by "Knowledge Distillation for Image Classification",
          the best epoch of its run.
          Not yet run by us.
"""

_base_ = [
    '../_base_/classification/cifar100.py',
    '../_base_/classification/schedule_200e.py',
]

model = dict(backbone=dict(type='densekd.CifarResNet', depth=56))
