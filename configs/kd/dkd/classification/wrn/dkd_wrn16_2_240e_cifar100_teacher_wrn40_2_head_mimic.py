"""DKD on CIFAR-100: decoupled soft labels, WRN-16-2 by WRN-40-2.

Commands: densekd train configs/classification/wrn40_2_240e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/dkd/classification/wrn/dkd_wrn16_2_240e_cifar100_teacher_wrn40_2_head_mimic.py
Expected: 76.23 top-1, published by mdistiller, the authors' code (student alone 73.26, teacher
          75.61).
          Not yet run by us.

Their settings for this pair: alpha 1, beta 6, temperature 4, a warm-up of 20 epochs.
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
            schedule=dict(by='epoch', warmup=20),
            head=dict(
                type='DKDDistillationHead',
                loss=dict(type='DKDLoss', alpha=1.0, beta=6.0, tau=4.0),
                name='dkd',
            ),
        )
    ],
)
