"""OFD on the backbone: Faster R-CNN on digit scenes, R-18 of width 16 by width 24.

Command: densekd demo --detector faster-rcnn --method ofd

The weight was chosen for these scenes (projects/digits_benchmark), sixty times what is
published for segmentors: a sum over small maps is small.
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
            student_module=f'backbone.{stage}.pre_relu',
            teacher_module=f'backbone.{stage}.pre_relu',
            head=dict(
                type='OFDDistillationHead',
                loss=dict(type='OFDLoss', loss_weight=weight),
                name=f'ofd_{stage}',
            ),
        )
        for stage, weight in (('c2', 7.5e-5), ('c3', 1.5e-4), ('c4', 3e-4), ('c5', 6e-4))
    ],
)
