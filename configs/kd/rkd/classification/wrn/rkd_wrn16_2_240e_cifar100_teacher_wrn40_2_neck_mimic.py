"""RKD on CIFAR-100: distances and angles between images, WRN-16-2 by WRN-40-2.

Commands: densekd train configs/classification/wrn40_2_240e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/rkd/classification/wrn/rkd_wrn16_2_240e_cifar100_teacher_wrn40_2_neck_mimic.py
Expected: 73.35 top-1, published by RepDistiller (student alone 73.26, teacher 75.61).
          Not yet run by us.

The pooled features, with 25 on distances and 50 on angles, as there.
"""

_base_ = ['../../../../classification/wrn16_2_240e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/wrn40_2_240e_cifar100.py',
        checkpoint='work_dirs/wrn40_2_240e_cifar100/epoch_240.pth',
    ),
    preset='rkd',
)
