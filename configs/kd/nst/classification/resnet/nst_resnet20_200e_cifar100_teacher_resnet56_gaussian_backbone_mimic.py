"""NST on CIFAR-100: ResNet-20 by ResNet-56, with the Gaussian kernel.

Commands: densekd train configs/classification/resnet56_200e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/nst/classification/resnet/nst_resnet20_200e_cifar100_teacher_resnet56_gaussian_backbone_mimic.py
Expected: no figure is published; alone the student has 67.86 top-1 and the teacher 71.09, published
          by "Knowledge Distillation for Image Classification".
          Not yet run by us.

The end of the last stage, with the weight 100 that a later version of its page has.
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
    distillers=[
        dict(
            student_module='backbone.c4',
            teacher_module='backbone.c4',
            head=dict(
                type='NSTDistillationHead',
                loss=dict(type='NSTLoss', loss_weight=100.0, kernel='gaussian'),
                name='nst',
            ),
        )
    ],
)
