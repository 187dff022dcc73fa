"""LSL on cut-out digits: ResNet-8 of width 8 by ResNet-20 of width 16.

Commands: densekd train configs/digits/resnet20w16_12e_digits.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/lsl/classification/resnet/lsl_resnet8w8_8e_digits_teacher_resnet20w16_backbone_mimic.py

The ends of the three stages, with weight 1, which is ours.
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
    distillers=[
        dict(
            student_module=f'backbone.{stage}',
            teacher_module=f'backbone.{stage}',
            head=dict(
                type='LSLDistillationHead',
                loss=dict(type='LSLLoss', loss_weight=1.0),
                name=f'lsl_{stage}',
            ),
        )
        for stage in ('c2', 'c3', 'c4')
    ],
)
