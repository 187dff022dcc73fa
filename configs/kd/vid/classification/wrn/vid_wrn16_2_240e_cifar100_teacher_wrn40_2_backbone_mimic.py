"""VID on CIFAR-100: the three stages of WRN-16-2 predict those of WRN-40-2.

Commands: densekd train configs/classification/wrn40_2_240e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/vid/classification/wrn/vid_wrn16_2_240e_cifar100_teacher_wrn40_2_backbone_mimic.py
Expected: 74.11 top-1, published by RepDistiller (student alone 73.26, teacher 75.61).
          Not yet run by us.

Weight 1 and three 1x1 convolutions a stage, as there.
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
    preset='vid',
)
