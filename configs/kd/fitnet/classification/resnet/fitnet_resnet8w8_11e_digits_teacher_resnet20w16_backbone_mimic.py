"""FitNets in two stages on cut-out digits: ResNet-8 of width 8 by ResNet-20 of width 16.

Commands: densekd train configs/digits/resnet20w16_12e_digits.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/fitnet/classification/resnet/fitnet_resnet8w8_11e_digits_teacher_resnet20w16_backbone_mimic.py

For 3 epochs the layers up to the hint, the end of the second of three residual stages, learn it and
nothing else; for 8 the whole student learns the task and soft labels, as in the config of KD.
"""

_base_ = ['../../../../digits/resnet8w8_8e_digits.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../digits/resnet20w16_12e_digits.py',
        checkpoint='work_dirs/resnet20w16_12e_digits/epoch_12.pth',
    ),
)

short = [
    dict(
        type='OneCycleLR',
        eta_max=2e-2,
        total_steps=3,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
stages = [
    dict(
        name='hint',
        train=[f'backbone.{part}' for part in ('conv1', 'bn1', 'layer1', 'layer2')]
        + ['distillers'],
        preset='fitnet',
        task_loss=False,
        train_cfg=dict(max_epochs=3),
        param_scheduler=short,
        hand_over=['backbone'],
    ),
    dict(name='train', preset='kd', scale_student_loss=dict(loss_cls=0.1)),
]
