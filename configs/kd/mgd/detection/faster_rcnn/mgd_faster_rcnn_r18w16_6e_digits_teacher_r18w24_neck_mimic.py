"""MGD on the neck: Faster R-CNN on digit scenes, R-18 of width 16 by width 24.

Command: densekd demo --detector faster-rcnn --method mgd

The weight is the one chosen for RetinaNet on these scenes (projects/digits_benchmark), and not
tuned anew.
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
            student_module=f'neck.{level}',
            teacher_module=f'neck.{level}',
            head=dict(
                type='MGDDistillationHead',
                loss=dict(type='MGDLoss', loss_weight=2e-4, masked=0.65),
                name=f'mgd_{level}',
            ),
        )
        for level in ('p2', 'p3', 'p4', 'p5')
    ],
)
