"""AB on CIFAR-100 in two stages: boundaries, then soft labels, WRN-16-4 by WRN-40-4.

Commands: densekd train configs/classification/wrn40_4_100e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/ab/classification/wrn/ab_wrn16_4_130e_cifar100_teacher_wrn40_4_backbone_mimic.py
Expected: 76.57 top-1, published by Knowledge_distillation_via_TF2.0 at commit 0474ff4 (student
          alone 76.37, teacher 77.80); its later table has an empty row.
          Not yet run by us.

The pair is that of an earlier version of its page, the lengths are those of its code: for 30 epochs
the backbone learns the activation boundaries at the ends of its three stages, at the first learning
rate, and for 100 the whole student learns. Weights are the authors': 3e-3 for the last stage and
half of the next for each one before. The second stage is the config of KD, task and soft labels;
there it is the task alone, and in the authors' code soft labels alone.
"""

_base_ = ['../../../../classification/wrn16_4_100e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/wrn40_4_100e_cifar100.py',
        checkpoint='work_dirs/wrn40_4_100e_cifar100/epoch_100.pth',
    ),
)

stages = [
    dict(
        name='pretrain',
        train=['backbone', 'distillers'],
        preset='ab',
        task_loss=False,
        train_cfg=dict(max_epochs=30),
        param_scheduler=[],
        hand_over=['backbone'],
    ),
    dict(name='train', preset='kd', scale_student_loss=dict(loss_cls=0.1)),
]
