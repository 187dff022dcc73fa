"""Soft labels on CIFAR-100: ResNet-20 learns the class probabilities of ResNet-56.

Commands: densekd train configs/classification/resnet56_200e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/kd/classification/resnet/kd_resnet20_200e_cifar100_teacher_resnet56_head_mimic.py
Expected: no figure is published; alone the student has 67.86 top-1 and the teacher 71.09, published
          by "Knowledge Distillation for Image Classification".
          Not yet run by us.

Its settings: temperature 4 and alpha 0.9; one tenth of the loss is the labels'.
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
    preset='kd',
    scale_student_loss=dict(loss_cls=0.1),
)
