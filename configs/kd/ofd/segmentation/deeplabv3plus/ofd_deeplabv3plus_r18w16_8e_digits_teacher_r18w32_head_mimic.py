"""OFD in the decoder: DeepLabV3+ on digit masks, R-18 of width 16 by width 32.

Command, after the teacher's: densekd train CONFIG, with CONFIG =
    configs/kd/ofd/segmentation/deeplabv3plus/ofd_deeplabv3plus_r18w16_8e_digits_teacher_r18w32_head_mimic.py

The weights were chosen for these scenes (projects/digits_benchmark), twenty times what is
published: a sum over small maps is small.
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
            student_module=f'decode.{place}',
            teacher_module=f'decode.{place}',
            head=dict(
                type='OFDDistillationHead',
                loss=dict(type='OFDLoss', loss_weight=2e-4 / divisor),
                name=f'ofd_{place}',
            ),
            lr_mult=10.0,
            schedule=dict(by='epoch', connectors_first=1),
        )
        for place, divisor in (('aspp', 1), ('feature', 16))
    ],
)
