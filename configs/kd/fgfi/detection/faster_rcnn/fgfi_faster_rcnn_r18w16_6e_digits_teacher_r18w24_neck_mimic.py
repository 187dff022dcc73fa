"""FGFI on the neck: Faster R-CNN on digit scenes, R-18 of width 16 by width 24.

Command: densekd demo --detector faster-rcnn --method fgfi

The weight was chosen for these scenes (projects/digits_benchmark), 500 times what
is published for photographs, at which its gradient is less than a hundredth of the student's.
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
            student_module=[f'neck.{level}' for level in ('p2', 'p3', 'p4', 'p5')],
            teacher_module=[f'neck.{level}' for level in ('p2', 'p3', 'p4', 'p5')],
            head=dict(
                type='FGFIDistillationHead',
                loss=dict(type='FGFILoss', loss_weight=5.0),
                name='fgfi',
            ),
        ),
    ],
)
