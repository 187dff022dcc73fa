"""Soft labels and bounded regression: RetinaNet on digit scenes, R-18 of width 16 by width 24.

Command: densekd demo --detector retinanet --method chen2017

The paper is about two-stage detectors. Of its two parts the regression carries over as it is; soft
labels of sigmoid outputs are the binary KL.

The weight was chosen for these scenes (projects/digits_benchmark), 0.3 of 1 and of the
paper's 0.5.
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
                loss=dict(type='BinaryKLLoss', loss_weight=0.3, tau=1.0),
                name='binary_kl',
            ),
        ),
        dict(
            student_module='head.bbox_deltas',
            teacher_module='head.bbox_deltas',
            head=dict(
                type='BoundedRegressionDistillationHead',
                loss=dict(
                    type='BoundedRegressionLoss', loss_weight=0.15, margin=0.0, boxes='dense'
                ),
                name='bounded',
            ),
        ),
    ],
)
