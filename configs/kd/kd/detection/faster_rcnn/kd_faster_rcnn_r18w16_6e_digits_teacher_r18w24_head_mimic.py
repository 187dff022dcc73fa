"""Soft labels on the box head: Faster R-CNN on digit scenes, R-18 of width 16 by width 24.

Command: densekd demo --detector faster-rcnn --method kd

The teacher scores the student's own regions. Temperature 1 is what Chen et al. found best for
detection; chen2017 has their weight of the background, too.
"""

_base_ = ['../../../../digits/faster_rcnn_r18w16_6e_digits.py']

model = dict(
    _delete_=True,
    type='densekd.DistillDetector',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../digits/faster_rcnn_r18w24_8e_digits.py',
        checkpoint='work_dirs/faster_rcnn_r18w24_8e_digits/epoch_8.pth',
    ),
    distillers=[
        dict(
            student_module='roi.cls_logits',
            teacher_module='roi.cls_logits',
            head=dict(
                type='KDDistillationHead',
                loss=dict(type='KDLoss', loss_weight=0.5, tau=1.0),
                name='kd',
            ),
        ),
    ],
)
