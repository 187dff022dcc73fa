"""AT on the backbone: DeepLabV3+ on digit masks, R-18 of width 16 by width 32.

Command, after the teacher's: densekd train CONFIG, with CONFIG =
    configs/kd/at/segmentation/deeplabv3plus/at_deeplabv3plus_r18w16_8e_digits_teacher_r18w32_backbone_mimic.py
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
    preset='at',
)
