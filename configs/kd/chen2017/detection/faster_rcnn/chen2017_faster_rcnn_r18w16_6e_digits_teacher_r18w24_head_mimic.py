"""Chen et al. on box head and RPN: Faster R-CNN on digit scenes, R-18 of width 16 by width 24.

Command: densekd demo --detector faster-rcnn --method chen2017

The teacher scores the student's own regions. Soft labels and the bounded regression are added to
the student's own losses. The paper halves the hard labels' in return, which this short training
can't afford: it is classes that the student learns last (projects/digits_benchmark).
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
                type='WeightedSoftLabelDistillationHead',
                loss=dict(type='WeightedSoftLabelLoss', loss_weight=0.5, bg_weight=1.5),
                name='soft_roi',
            ),
        ),
        dict(
            student_module='roi.bbox_deltas',
            teacher_module='roi.bbox_deltas',
            head=dict(
                type='BoundedRegressionDistillationHead',
                loss=dict(type='BoundedRegressionLoss', loss_weight=0.5, margin=0.0),
                name='bounded_roi',
            ),
        ),
        dict(
            student_module='rpn.objectness',
            teacher_module='rpn.objectness',
            head=dict(
                type='WeightedSoftObjectnessDistillationHead',
                loss=dict(type='WeightedSoftObjectnessLoss', loss_weight=0.5, bg_weight=1.5),
                name='soft_rpn',
            ),
        ),
        dict(
            student_module='rpn.deltas',
            teacher_module='rpn.deltas',
            head=dict(
                type='BoundedRegressionDistillationHead',
                loss=dict(type='BoundedRegressionLoss', loss_weight=0.5, margin=0.0, boxes='rpn'),
                name='bounded_rpn',
            ),
        ),
    ],
)
