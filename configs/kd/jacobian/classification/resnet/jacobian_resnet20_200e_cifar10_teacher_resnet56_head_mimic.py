"""Jacobian matching on CIFAR-10: ResNet-20 by ResNet-56.

Commands: densekd train configs/classification/resnet56_200e_cifar10.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/jacobian/classification/resnet/jacobian_resnet20_200e_cifar10_teacher_resnet56_head_mimic.py
Expected: no figure is published; alone the student has 91.70 top-1 and the teacher 93.63, published
          by "Knowledge Distillation for Image Classification".
          Not yet run by us.

What each pixel does to the true class's logit is to be as in the teacher. Weight 1 is ours. A step
takes about three times as long as without it, and twice the memory.
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
    preset='jacobian',
)
