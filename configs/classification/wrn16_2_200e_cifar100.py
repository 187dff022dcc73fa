"""WRN-16-2 by itself on CIFAR-100: student or teacher of the configs in configs/kd.

Command:  densekd train configs/classification/wrn16_2_200e_cifar100.py
Expected: 73.50 top-1, published by GML.
          Not yet run by us.
"""

_base_ = [
    '../_base_/classification/cifar100.py',
    '../_base_/classification/schedule_200e.py',
]

model = dict(backbone=dict(type='densekd.WideResNet', depth=16, widen_factor=2))
