"""Sequential FEED on cut-out digits: each ResNet-8 learns the last map of the one before it.

Command: densekd train CONFIG
    with CONFIG = configs/kd/feed/classification/resnet/
    feed_resnet8w8_8e_digits_teacher_resnet8w8_backbone_mimic.py

The first round has no teacher; from the second on it is the round before.
"""

_base_ = ['../../../../digits/resnet8w8_8e_digits.py']

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
