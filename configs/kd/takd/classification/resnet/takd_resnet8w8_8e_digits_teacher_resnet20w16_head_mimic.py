"""A teaching assistant on cut-out digits: ResNet-20 teaches ResNet-14, and that one ResNet-8.

Commands: densekd train configs/digits/resnet20w16_12e_digits.py
          densekd train CONFIG
    with CONFIG = configs/kd/takd/classification/resnet/
    takd_resnet8w8_8e_digits_teacher_resnet20w16_head_mimic.py

Paper: Mirzadeh et al.: Improved Knowledge Distillation via Teacher Assistant. AAAI 2020.
    https://arxiv.org/abs/1902.03393
Each round has a folder, `assistant` and `student`. A run that is interrupted goes on with
the same command.
"""

_base_ = ['../../../../digits/resnet8w8_8e_digits.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../digits/resnet20w16_12e_digits.py',
        checkpoint='work_dirs/resnet20w16_12e_digits/epoch_12.pth',
    ),
    preset='kd',
    scale_student_loss=dict(loss_cls=0.1),
)
rounds = [
    dict(
        name='assistant',
        student='{{ fileDirname }}/../../../../digits/resnet14w12_10e_digits.py',
    ),
    dict(name='student'),
]
