"""Born again on CIFAR-100: WRN-28-4 learns from one that was trained before it.

Command: densekd train CONFIG
    with CONFIG =
    configs/kd/born_again/classification/wrn/born_again_wrn28_4_200e_cifar100_teacher_wrn28_4_head_mimic.py
Expected: no figure is published for this network; alone it has 79.20 top-1, published by GML.
          Not yet run by us.

The first round has no teacher; from the second on it is the round before. Temperature 1, and labels
and teacher count alike.
"""

_base_ = ['../../../../classification/wrn28_4_200e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    # What the rounds put here is as large as the student.
    teacher=dict(model=_base_.model, untrained=True),
    distillers=[
        dict(
            student_module='logits',
            head=dict(
                type='KDDistillationHead', loss=dict(type='KDLoss', loss_weight=1.0, tau=1.0)
            ),
        )
    ],
)
rounds = [
    dict(name='first', plain=True),
    dict(name='second', randomness=dict(seed=1)),
    dict(name='third', randomness=dict(seed=2)),
]
