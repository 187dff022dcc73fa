"""Attention transfer on CIFAR-100: WRN-16-4 is active where WRN-40-4 is.

Commands: densekd train configs/classification/wrn40_4_100e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/at/classification/wrn/at_wrn16_4_100e_cifar100_teacher_wrn40_4_backbone_mimic.py
Expected: 78.14 top-1, published by Knowledge_distillation_via_TF2.0 (student alone 76.25, teacher
          78.59).
          Not yet run by us.

The pair is that of an earlier version of its page, the schedule that of its script. What has the
name there is another method: channels are not summed up but compared one by one, before the ReLU
and through a connector. Here it is that of the paper: sums of squares over channels at the ends of
the three stages, with weight 1000.
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
    preset='at',
)
