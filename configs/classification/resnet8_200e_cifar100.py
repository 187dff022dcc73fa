"""ResNet-8 by itself on CIFAR-100: the student of the teaching assistant in configs/kd/takd.

Command:  densekd train configs/classification/resnet8_200e_cifar100.py
Expected: no figure is published for this schedule.
          Not yet run by us.
"""

_base_ = [
    '../_base_/classification/cifar100.py',
    '../_base_/classification/schedule_200e.py',
]

model = dict(backbone=dict(type='densekd.CifarResNet', depth=8))
