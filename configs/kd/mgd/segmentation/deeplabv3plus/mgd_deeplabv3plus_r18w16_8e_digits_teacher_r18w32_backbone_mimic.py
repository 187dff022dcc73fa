"""MGD on the deepest features and CWD on the logits: digit masks, R-18 of width 16 by width 32.

Command, after the teacher's: densekd train CONFIG, with CONFIG =
    configs/kd/mgd/segmentation/deeplabv3plus/mgd_deeplabv3plus_r18w16_8e_digits_teacher_r18w32_backbone_mimic.py

MGD's weight was chosen for these scenes (projects/digits_benchmark), 300 times what is published: a
sum over small maps is small.
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
            student_module='backbone.c5',
            teacher_module='backbone.c5',
            head=dict(
                type='MGDDistillationHead',
                loss=dict(type='MGDLoss', loss_weight=6e-3, masked=0.75),
                name='mgd_c5',
            ),
        ),
        dict(
            student_module='decode.logits',
            teacher_module='decode.logits',
            head=dict(
                type='CWDDistillationHead',
                loss=dict(type='CWDLoss', loss_weight=3.0, tau=4.0),
                name='cwd',
            ),
        ),
    ],
)
