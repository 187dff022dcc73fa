"""WRN-16-4 by itself on CIFAR-100: student or teacher of the configs in configs/kd.

Command:  densekd train configs/classification/wrn16_4_200e_cifar100.py
Expected: 78.12 top-1, published by GML.
          Not yet run by us.
"""

_base_ = [
    '../_base_/classification/cifar100.py',
    '../_base_/classification/schedule_200e.py',
]

model = dict(backbone=dict(type='densekd.WideResNet', depth=16, widen_factor=4))
