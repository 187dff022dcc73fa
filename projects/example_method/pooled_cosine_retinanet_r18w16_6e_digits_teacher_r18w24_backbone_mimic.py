"""Pooled cosine on the backbone: RetinaNet on digit scenes, R-18 of width 16 by width 24.

Command, in the repository's root: python tools/train.py projects/example_method/<this file>
The teacher is `configs/digits/retinanet_r18w24_8e_digits.py`, trained first.
"""

_base_ = ['../../configs/digits/retinanet_r18w16_6e_digits.py']

# Read with the config: this is what makes the names below known.
custom_imports = dict(imports=['projects.example_method.pooled_cosine'])

model = dict(
    _delete_=True,
    type='densekd.DistillDetector',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../configs/digits/retinanet_r18w24_8e_digits.py',
        checkpoint='work_dirs/retinanet_r18w24_8e_digits/epoch_8.pth',
    ),
    distillers=[
        dict(
            student_module='backbone.c5',
            teacher_module='backbone.c5',
            head=dict(
                type='PooledCosineDistillationHead',
                loss=dict(type='PooledCosineLoss', loss_weight=1.0),
                name='pooled_cosine_c5',
            ),
        )
    ],
)
