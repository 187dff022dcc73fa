"""Attention transfer on CIFAR-10: ResNet-20 by ResNet-56, maxima over channels.

Commands: densekd train configs/classification/resnet56_200e_cifar10.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/at/classification/resnet/at_resnet20_200e_cifar10_teacher_resnet56_max_backbone_mimic.py
Expected: no figure is published; alone the student has 91.70 top-1 and the teacher 93.63, published
          by "Knowledge Distillation for Image Classification".
          Not yet run by us.

The second of the two kinds of maps: max |A|^p over channels in place of sum |A|^p, with p = 2.
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
            head=dict(
                type='ATDistillationHead',
                loss=dict(type='ATLoss', loss_weight=1000.0, p=2, kind='max'),
                name=f'at_{stage}',
            ),
        )
        for stage in ('c2', 'c3', 'c4')
    ],
)
