"""FitNets on CIFAR-10 in two stages: a hint, then soft labels, ResNet-20 by ResNet-56.

Commands: densekd train configs/classification/resnet56_200e_cifar10.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/fitnet/classification/resnet/fitnet_resnet20_250e_cifar10_teacher_resnet56_backbone_mimic.py
Expected: no figure is published; alone the student has 91.70 top-1 and the teacher 93.63, published
          by "Knowledge Distillation for Image Classification".
          Not yet run by us.

Its two stages: the layers up to the hint learn it and nothing else, then the whole student learns
soft labels with its settings, temperature 4 and alpha 0.9; one tenth of the loss is the labels'. It
does not say how long the first is, nor where the hint. Here it is at the end of the second of three
residual stages, with RepDistiller's weight of 100 and, as there, a normalisation in the regressor,
ahead of its ReLU; the 50 epochs from a tenth of the learning rate are the first stage of the config
of FSP.
"""

_base_ = ['../../../../classification/resnet20_200e_cifar10.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/resnet56_200e_cifar10.py',
        checkpoint='work_dirs/resnet56_200e_cifar10/epoch_200.pth',
    ),
)

stages = [
    dict(
        name='hint',
        train=[f'backbone.{part}' for part in ('conv1', 'bn1', 'layer1', 'layer2')]
        + ['distillers'],
        distillers=[
            dict(
                student_module='backbone.c3',
                teacher_module='backbone.c3',
                head=dict(
                    type='FitNetDistillationHead',
                    loss=dict(type='FitNetLoss', loss_weight=100.0),
                    stu_connector=dict(type='ConvConnector', norm='BN', act='relu'),
                    name='fitnet_c3',
                ),
            )
        ],
        task_loss=False,
        train_cfg=dict(max_epochs=50),
        optim_wrapper=dict(optimizer=dict(lr=0.01)),
        param_scheduler=[dict(type='MultiStepLR', by_epoch=True, milestones=[30, 40], gamma=0.1)],
        hand_over=['backbone'],
    ),
    dict(name='train', preset='kd', scale_student_loss=dict(loss_cls=0.1)),
]
