"""Mutual learning on cut-out digits: ResNet-8 of width 8 and ResNet-20 of width 16, from scratch.

Command: densekd train CONFIG
    with CONFIG =
    configs/kd/dml/classification/resnet/dml_resnet8w8_8e_digits_teacher_resnet20w16_head_mimic.py

Each is scored after every epoch, the larger one as `wide/accuracy/top1`. The checkpoint is that of
the small one; what the larger one learnt is in it under `densekd`:

    from densekd.engine.peers import export_peer
    export_peer('work_dirs/…/epoch_8.pth', 'wide', 'wide.pth')
"""

_base_ = ['../../../../digits/resnet8w8_8e_digits.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    peers=[
        dict(
            name='wide',
            model='{{ fileDirname }}/../../../../digits/resnet20w16_12e_digits.py',
        )
    ],
    preset='dml',
)
