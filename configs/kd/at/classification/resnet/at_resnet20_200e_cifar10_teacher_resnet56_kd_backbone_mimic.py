"""Attention transfer with soft labels on CIFAR-10: ResNet-20 by ResNet-56.

Commands: densekd train configs/classification/resnet56_200e_cifar10.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/at/classification/resnet/at_resnet20_200e_cifar10_teacher_resnet56_kd_backbone_mimic.py
Expected: no figure is published; alone the student has 91.70 top-1 and the teacher 93.63, published
          by "Knowledge Distillation for Image Classification".
          Not yet run by us.

The weight of the attention decays while that of the soft labels stays: linearly, down to 0 by the
end. That it decays is the authors', how is not said. Soft labels are at temperature 4 with 0.9, and
one tenth of the loss is the labels'.
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
    distillers=[
        dict(
            student_module=f'backbone.{stage}',
            teacher_module=f'backbone.{stage}',
            schedule=dict(by='epoch', decay='linear', end=200),
            head=dict(
                type='ATDistillationHead',
                loss=dict(type='ATLoss', loss_weight=1000.0),
                name=f'at_{stage}',
            ),
        )
        for stage in ('c2', 'c3', 'c4')
    ]
    + [
        dict(
            student_module='logits',
            teacher_module='logits',
            head=dict(type='KDDistillationHead', name='kd'),
        )
    ],
    scale_student_loss=dict(loss_cls=0.1),
)
