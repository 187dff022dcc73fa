"""FSP on CIFAR-100 in two stages: flows, then the task, WRN-16-4 by WRN-40-4.

Commands: densekd train configs/classification/wrn40_4_100e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/fsp/classification/wrn/fsp_wrn16_4_130e_cifar100_teacher_wrn40_4_backbone_mimic.py
Expected: 76.47 top-1, published by Knowledge_distillation_via_TF2.0 (student alone 76.25, teacher
          78.59).
          Not yet run by us.

The pair is that of an earlier version of its page, the stages are those of its code: for 30 epochs
the backbone learns the flows between the ends of its three stages, ahead of the ReLUs and through
connectors, at the first learning rate; for 100 the whole student learns the task alone. The loss
there is the sum over a matrix, divided by the number of images, 128, once more; hence the weights
64 * 128 / 128 and 128 * 256 / 128 of the mean here. The end of the second stage is in both flows;
it has a connector in each here, and one for both there.
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
        name='init',
        train=['backbone', 'distillers'],
        distillers=[
            dict(
                student_module=[f'backbone.{first}.pre_relu', f'backbone.{second}.pre_relu'],
                teacher_module=[f'backbone.{first}.pre_relu', f'backbone.{second}.pre_relu'],
                head=dict(
                    type='FSPDistillationHead',
                    loss=dict(type='FSPLoss', loss_weight=weight),
                    stu_connector=dict(type='BNConnector'),
                    name=f'fsp_{first}_{second}',
                ),
            )
            for first, second, weight in (('c2', 'c3', 64.0), ('c3', 'c4', 256.0))
        ],
        task_loss=False,
        train_cfg=dict(max_epochs=30),
        param_scheduler=[],
        hand_over=['backbone'],
    ),
    dict(name='train', distillers=[]),
]
