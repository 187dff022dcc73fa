"""SKD: DeepLabV3+ on digit masks, R-18 of width 16 by width 32.

Command, after the teacher's: densekd train CONFIG, with CONFIG =
    configs/kd/skd/segmentation/deeplabv3plus/skd_deeplabv3plus_r18w16_8e_digits_teacher_r18w32_head_mimic.py

The weights are a hundredth of what is published, the best of what was tried on these scenes, and
still lose to the plain student (projects/digits_benchmark).
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
                type='SKDPairwiseDistillationHead',
                loss=dict(type='SKDPairwiseLoss', loss_weight=5e-3, scale=0.5),
                name='skd_pairwise',
            ),
        ),
        dict(
            student_module='decode.logits',
            teacher_module='decode.logits',
            head=dict(
                type='SKDPixelwiseDistillationHead',
                loss=dict(type='SKDPixelwiseLoss', loss_weight=0.1),
                name='skd_pixelwise',
            ),
        ),
    ],
)
