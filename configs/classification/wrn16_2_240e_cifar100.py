"""WRN-16-2 by itself on CIFAR-100, 240 epochs: student or teacher of the configs in configs/kd.

Command:  densekd train configs/classification/wrn16_2_240e_cifar100.py
Expected: 73.26 top-1, published by RepDistiller.
          Not yet run by us.
"""

_base_ = [
    '../_base_/classification/cifar100.py',
    '../_base_/classification/schedule_240e.py',
]

model = dict(backbone=dict(type='densekd.WideResNet', depth=16, widen_factor=2))
train_dataloader = dict(batch_size=64)
