"""FitNets on CIFAR-100 in two stages: hints, then the task, WRN-16-4 by WRN-40-4.

Commands: densekd train configs/classification/wrn40_4_100e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/fitnet/classification/wrn/fitnet_wrn16_4_130e_cifar100_teacher_wrn40_4_backbone_mimic.py
Expected: 75.04 top-1, published by Knowledge_distillation_via_TF2.0 (student alone 76.25, teacher
          78.59).
          Not yet run by us.

The pair is that of an earlier version of its page, the stages are those of its code: for 30 epochs
the backbone learns hints at the ends of all three of its stages, ahead of the ReLUs, at the first
learning rate; for 100 the whole student learns the task alone. A hint is the sum over channels
there, so that its weight here is their number. What that gave is below the student alone, and the
page says so; the paper has one hint, in the middle, and soft labels after it, as in the configs of
ResNet-20.
"""

_base_ = ['../../../../classification/wrn16_4_100e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/wrn40_4_100e_cifar100.py',
        checkpoint='work_dirs/wrn40_4_100e_cifar100/epoch_100.pth',
    ),
)

stages = [
    dict(
        name='hint',
        train=['backbone', 'distillers'],
        distillers=[
            dict(
                student_module=f'backbone.{stage}.pre_relu',
                teacher_module=f'backbone.{stage}.pre_relu',
                head=dict(
                    type='FitNetDistillationHead',
                    loss=dict(type='FitNetLoss', loss_weight=channels),
                    stu_connector=dict(type='BNConnector'),
                    name=f'fitnet_{stage}',
                ),
            )
            for stage, channels in (('c2', 64.0), ('c3', 128.0), ('c4', 256.0))
        ],
        task_loss=False,
        train_cfg=dict(max_epochs=30),
        param_scheduler=[],
        hand_over=['backbone'],
    ),
    dict(name='train', distillers=[]),
]
