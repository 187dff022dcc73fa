"""DKD on cut-out digits: ResNet-8 of width 8 by ResNet-20 of width 16.

Commands: densekd train configs/digits/resnet20w16_12e_digits.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/dkd/classification/resnet/dkd_resnet8w8_8e_digits_teacher_resnet20w16_head_mimic.py

The authors' factors for most pairs on CIFAR-100. Of 240 epochs they warm up for 20; here it is two
of eight.
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
            student_module='logits',
            teacher_module='logits',
            schedule=dict(by='epoch', warmup=2),
            head=dict(
                type='DKDDistillationHead',
                loss=dict(type='DKDLoss', alpha=1.0, beta=8.0, tau=4.0),
                name='dkd',
            ),
        )
    ],
)
