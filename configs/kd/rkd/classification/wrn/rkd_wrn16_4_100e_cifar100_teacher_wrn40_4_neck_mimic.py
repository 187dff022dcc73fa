"""RKD on CIFAR-100: distances and angles between images, WRN-16-4 by WRN-40-4.

Commands: densekd train configs/classification/wrn40_4_100e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/rkd/classification/wrn/rkd_wrn16_4_100e_cifar100_teacher_wrn40_4_neck_mimic.py
Expected: 76.57 top-1, published by Knowledge_distillation_via_TF2.0 at commit 0474ff4 (student
          alone 76.37, teacher 77.80); its later table has an empty row.
          Not yet run by us.

The pair is that of an earlier version of its page, the schedule that of its script. The term reads
the pooled features, with 25 on distances and 50 on angles.
"""

_base_ = ['../../../../classification/wrn16_4_100e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/wrn40_4_100e_cifar100.py',
        checkpoint='work_dirs/wrn40_4_100e_cifar100/epoch_100.pth',
    ),
    preset='rkd',
)
