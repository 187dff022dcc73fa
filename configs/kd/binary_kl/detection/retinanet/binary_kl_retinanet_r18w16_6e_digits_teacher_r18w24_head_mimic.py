"""Soft labels of sigmoids: RetinaNet on digit scenes, R-18 of width 16 by width 24.

Command: densekd demo --detector retinanet --method binary_kl
"""

_base_ = ['../../../../digits/retinanet_r18w16_6e_digits.py']

model = dict(
    _delete_=True,
    type='densekd.DistillDetector',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../digits/retinanet_r18w24_8e_digits.py',
        checkpoint='work_dirs/retinanet_r18w24_8e_digits/epoch_8.pth',
    ),
    distillers=[
        dict(
            student_module='head.cls_logits',
            teacher_module='head.cls_logits',
            head=dict(
                type='BinaryKLDistillationHead',
                loss=dict(type='BinaryKLLoss', loss_weight=1.0, tau=1.0),
                name='binary_kl',
            ),
        ),
    ],
)
