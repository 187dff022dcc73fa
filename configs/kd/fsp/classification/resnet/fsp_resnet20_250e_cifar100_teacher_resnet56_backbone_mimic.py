"""FSP on CIFAR-100 in two stages: flows, then the task, ResNet-20 by ResNet-56.

Commands: densekd train configs/classification/resnet56_200e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/fsp/classification/resnet/fsp_resnet20_250e_cifar100_teacher_resnet56_backbone_mimic.py
Expected: no figure is published; alone the student has 67.86 top-1 and the teacher 71.09, published
          by "Knowledge Distillation for Image Classification".
          Not yet run by us.

It names the method and has no settings of it. They are those of Knowledge-Distillation-Zoo, for the
same students: 50 epochs of these terms alone, from a tenth of the learning rate, and 200 of the
task. It has a third flow, from the stem, and the mean of all three; here two are summed.
"""

_base_ = ['../../../../classification/resnet20_200e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/resnet56_200e_cifar100.py',
        checkpoint='work_dirs/resnet56_200e_cifar100/epoch_200.pth',
    ),
)

stages = [
    dict(
        name='init',
        train=['backbone', 'distillers'],
        preset='fsp',
        task_loss=False,
        train_cfg=dict(max_epochs=50),
        optim_wrapper=dict(optimizer=dict(lr=0.01)),
        param_scheduler=[dict(type='MultiStepLR', by_epoch=True, milestones=[30, 40], gamma=0.1)],
        hand_over=['backbone'],
    ),
    dict(name='train', distillers=[]),
]
