"""Soft labels on cut-out digits: ResNet-8 of width 8 learns from ResNet-20 of width 16.

Commands: densekd train configs/digits/resnet20w16_12e_digits.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/kd/classification/resnet/kd_resnet8w8_8e_digits_teacher_resnet20w16_head_mimic.py

Temperature 4; nine tenths of the loss are the teacher's, one tenth the labels'.
"""

_base_ = ['../../../../digits/resnet8w8_8e_digits.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../digits/resnet20w16_12e_digits.py',
        checkpoint='work_dirs/resnet20w16_12e_digits/epoch_12.pth',
    ),
    preset='kd',
    scale_student_loss=dict(loss_cls=0.1),
)
