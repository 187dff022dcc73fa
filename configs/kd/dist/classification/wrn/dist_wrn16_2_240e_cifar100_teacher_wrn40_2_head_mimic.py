"""DIST on CIFAR-100: correlated probabilities, WRN-16-2 by WRN-40-2.

Commands: densekd train configs/classification/wrn40_2_240e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/dist/classification/wrn/dist_wrn16_2_240e_cifar100_teacher_wrn40_2_head_mimic.py
Expected: no figure is published for this pair (student alone 73.26, teacher 75.61).
          Not yet run by us.

Student and teacher alone are RepDistiller's. The factors are the paper's for CIFAR: 2 and 2 at
temperature 4.
"""

_base_ = ['../../../../classification/wrn16_2_240e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/wrn40_2_240e_cifar100.py',
        checkpoint='work_dirs/wrn40_2_240e_cifar100/epoch_240.pth',
    ),
    distillers=[
        dict(
            student_module='logits',
            teacher_module='logits',
            head=dict(
                type='DISTDistillationHead',
                loss=dict(type='DISTLoss', loss_weight=1.0, beta=2.0, gamma=2.0, tau=4.0),
                name='dist',
            ),
        )
    ],
)
