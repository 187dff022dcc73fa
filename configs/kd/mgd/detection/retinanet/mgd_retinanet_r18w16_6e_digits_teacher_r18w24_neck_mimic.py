"""MGD on the neck: RetinaNet on digit scenes, R-18 of width 16 by width 24.

Command: densekd demo --detector retinanet --method mgd
"""

_base_ = ['../../../../digits/retinanet_r18w16_6e_digits.py']

model = dict(
    _delete_=True,
    type='densekd.DistillDetector',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../digits/retinanet_r18w24_8e_digits.py',
        checkpoint='work_dirs/retinanet_r18w24_8e_digits/epoch_8.pth',
    ),
    preset='mgd',
)
