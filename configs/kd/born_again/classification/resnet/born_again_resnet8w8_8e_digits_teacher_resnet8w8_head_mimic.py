"""Born again on cut-out digits: ResNet-8 of width 8 learns from one that was trained before it.

Command: densekd train CONFIG
    with CONFIG = configs/kd/born_again/classification/resnet/
    born_again_resnet8w8_8e_digits_teacher_resnet8w8_head_mimic.py

Paper: Furlanello et al.: Born-Again Neural Networks. ICML 2018. https://arxiv.org/abs/1805.04770
The first round has no teacher; from the second on it is the round before. The paper's temperature
is 1, and labels and teacher count alike.
"""

_base_ = ['../../../../digits/resnet8w8_8e_digits.py']

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
