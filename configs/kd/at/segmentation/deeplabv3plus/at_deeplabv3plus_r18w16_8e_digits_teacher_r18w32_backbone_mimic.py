"""AT on the backbone: DeepLabV3+ on digit masks, R-18 of width 16 by width 32.

Command, after the teacher's: densekd train CONFIG, with CONFIG =
    configs/kd/at/segmentation/deeplabv3plus/at_deeplabv3plus_r18w16_8e_digits_teacher_r18w32_backbone_mimic.py

The weight was chosen for these scenes (projects/digits_benchmark), a twentieth of what the authors
have for photographs: as published it outweighs the task 400 times when the training begins.
"""

_base_ = ['../../../../digits/deeplabv3plus_r18w16_8e_digits.py']

model = dict(
    _delete_=True,
    type='densekd.DistillSegmentor',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../digits/deeplabv3plus_r18w32_10e_digits.py',
        checkpoint='work_dirs/deeplabv3plus_r18w32_10e_digits/epoch_10.pth',
    ),
    distillers=[
        dict(
            student_module=f'backbone.{stage}',
            teacher_module=f'backbone.{stage}',
            head=dict(
                type='ATDistillationHead',
                loss=dict(type='ATLoss', loss_weight=50.0, reference=cells),
                name=f'at_{stage}',
            ),
        )
        for stage, cells in (('c2', 3136), ('c3', 784), ('c4', 196), ('c5', 49))
    ],
)
