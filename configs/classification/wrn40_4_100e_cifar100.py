"""WRN-40-4 by itself on CIFAR-100, 100 epochs: student or teacher of the configs in configs/kd.

Command:  densekd train configs/classification/wrn40_4_100e_cifar100.py
Expected: 78.59 top-1, published by Knowledge_distillation_via_TF2.0.
          Not yet run by us.
"""

_base_ = [
    '../_base_/classification/cifar100.py',
    '../_base_/classification/schedule_100e_cifar.py',
]

model = dict(backbone=dict(type='densekd.WideResNet', depth=40, widen_factor=4))
