"""Mean teacher on cut-out digits: ResNet-8 of width 8 learns from the average of its own weights.

Command: densekd train CONFIG
    with CONFIG =
    configs/kd/kd/classification/resnet/kd_resnet8w8_8e_digits_teacher_ema_head_mimic.py

The average is scored as `mean/accuracy/top1`. Its say grows over the first three epochs, in which
it is hardly better than chance.
"""

_base_ = ['../../../../digits/resnet8w8_8e_digits.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    peers=[dict(name='mean', ema=0.99)],
    distillers=[
        dict(
            student_module='logits',
            teacher='mean',
            schedule=dict(by='epoch', warmup=3),
            head=dict(
                type='KDDistillationHead', loss=dict(type='KDLoss', loss_weight=1.0, tau=1.0)
            ),
        )
    ],
)
