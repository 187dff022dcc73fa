"""IFVD: DeepLabV3+ on digit masks, R-18 of width 16 by width 32.

Command, after the teacher's: densekd train CONFIG, with CONFIG =
    configs/kd/ifvd/segmentation/deeplabv3plus/ifvd_deeplabv3plus_r18w16_8e_digits_teacher_r18w32_head_mimic.py

The weights were chosen for these scenes (projects/digits_benchmark), a two-hundredth of what is
published: the feature's variation outweighs the task 900 times when the training begins.
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
            student_module='decode.feature',
            teacher_module='decode.feature',
            head=dict(
                type='IFVDDistillationHead',
                loss=dict(type='IFVDLoss', loss_weight=1.0),
                name='ifvd',
            ),
        ),
        dict(
            student_module='decode.logits',
            teacher_module='decode.logits',
            head=dict(
                type='KDDistillationHead',
                loss=dict(type='KDLoss', loss_weight=2.65e-3, tau=1.0),
                name='ifvd_kd',
            ),
        ),
    ],
)
