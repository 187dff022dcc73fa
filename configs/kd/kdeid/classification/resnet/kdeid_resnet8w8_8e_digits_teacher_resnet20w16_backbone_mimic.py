"""KD-EID on cut-out digits: ResNet-8 of width 8 by ResNet-20 of width 16.

Commands: densekd train configs/digits/resnet20w16_12e_digits.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/kdeid/classification/resnet/kdeid_resnet8w8_8e_digits_teacher_resnet20w16_backbone_mimic.py

The three stages, student's and teacher's decomposed, with weight 1.
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
            student_module=['backbone.c2', 'backbone.c3', 'backbone.c4'],
            teacher_module=['backbone.c2', 'backbone.c3', 'backbone.c4'],
            head=dict(
                type='KDSVDDistillationHead',
                loss=dict(type='KDSVDLoss', basis='own', k=1),
                name='kdeid',
            ),
            clip_to_task=True,
        )
    ],
)
