"""VID on CIFAR-100: the three stages of WRN-16-4 predict those of WRN-40-4.

Commands: densekd train configs/classification/wrn40_4_100e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/vid/classification/wrn/vid_wrn16_4_100e_cifar100_teacher_wrn40_4_backbone_mimic.py
Expected: no figure is published; the table of Knowledge_distillation_via_TF2.0 has an empty row for
          it (student alone 76.25, teacher 78.59).
          Not yet run by us.

The pair is that of an earlier version of its page, the schedule that of its script. Regressors of
three 1x1 convolutions and a variance for each channel are learnt beside the student, which weight 1
is meant for.
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
    preset='vid',
)
