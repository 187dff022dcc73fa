"""LSL on CIFAR-100: projected layers are aligned, WRN-16-2 by WRN-40-2.

Commands: densekd train configs/classification/wrn40_2_240e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/lsl/classification/wrn/lsl_wrn16_2_240e_cifar100_teacher_wrn40_2_backbone_mimic.py
Expected: no figure is published for this pair (student alone 73.26, teacher 75.61).
          Not yet run by us.

Student and teacher alone are RepDistiller's. The three stages have a term each;
densekd.methods.LayerSelector says of a trained teacher which of its layers tell classes apart best.
The weight is ours.
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
            student_module=f'backbone.{stage}',
            teacher_module=f'backbone.{stage}',
            head=dict(
                type='LSLDistillationHead',
                loss=dict(type='LSLLoss', loss_weight=1.0),
                name=f'lsl_{stage}',
            ),
        )
        for stage in ('c2', 'c3', 'c4')
    ],
)
