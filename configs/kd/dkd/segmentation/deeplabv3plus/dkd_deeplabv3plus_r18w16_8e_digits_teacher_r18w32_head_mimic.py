"""DKD at each pixel: DeepLabV3+ on digit masks, R-18 of width 16 by width 32.

Command, after the teacher's: densekd train CONFIG, with CONFIG =
    configs/kd/dkd/segmentation/deeplabv3plus/dkd_deeplabv3plus_r18w16_8e_digits_teacher_r18w32_head_mimic.py

The warm-up is a twelfth of the training, as in the paper. The weight was chosen for these scenes
(projects/digits_benchmark), three tenths of what is published.
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
            student_module='decode.logits',
            teacher_module='decode.logits',
            head=dict(
                type='DKDDistillationHead',
                loss=dict(type='DKDLoss', loss_weight=0.3),
                name='dkd',
            ),
            schedule=dict(by='epoch', warmup=1),
        ),
    ],
)
