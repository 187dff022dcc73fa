"""A teaching assistant on CIFAR-100: ResNet-110 teaches ResNet-20, and that one ResNet-8.

Commands: densekd train configs/classification/resnet110_200e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/takd/classification/resnet/takd_resnet8_200e_cifar100_teacher_resnet110_head_mimic.py
Expected: no figure is published for this schedule.
          Not yet run by us.

The three networks are those that the authors have for CIFAR-100, in the README of their code. There
each round has 160 epochs, and temperature and the labels' share are searched for; here it has 200,
temperature 4, and a tenth of the loss is the labels'.
"""

_base_ = ['../../../../classification/resnet8_200e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/resnet110_200e_cifar100.py',
        checkpoint='work_dirs/resnet110_200e_cifar100/epoch_200.pth',
    ),
    preset='kd',
    scale_student_loss=dict(loss_cls=0.1),
)
rounds = [
    dict(
        name='assistant',
        student='{{ fileDirname }}/../../../../classification/resnet20_200e_cifar100.py',
    ),
    dict(name='student'),
]
