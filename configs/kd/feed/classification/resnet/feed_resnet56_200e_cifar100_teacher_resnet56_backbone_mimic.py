"""Sequential FEED on CIFAR-100: each ResNet-56 learns the last map of the one before it.

Command: densekd train CONFIG
    with CONFIG =
    configs/kd/feed/classification/resnet/feed_resnet56_200e_cifar100_teacher_resnet56_backbone_mimic.py
Expected: no figure is published for this schedule; alone the network has 71.09 top-1, published by
          "Knowledge Distillation for Image Classification".
          Not yet run by us.

The first round has no teacher; from the second on it is the round before.
"""

_base_ = ['../../../../classification/resnet56_200e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    # What the rounds put here is as large as the student.
    teacher=dict(model=_base_.model, untrained=True),
    preset='feed',
)
rounds = [
    dict(name='first', plain=True),
    dict(name='second', randomness=dict(seed=1)),
    dict(name='third', randomness=dict(seed=2)),
]
