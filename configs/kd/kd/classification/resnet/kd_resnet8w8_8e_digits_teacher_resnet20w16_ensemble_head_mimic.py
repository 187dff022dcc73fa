"""An ensemble on cut-out digits: ResNet-8 of width 8 learns from the mean of two ResNet-20.

Commands: densekd train configs/digits/resnet20w16_12e_digits.py
          densekd train configs/digits/resnet20w16_12e_digits.py \
              --cfg-options randomness.seed=1 --work-dir work_dirs/resnet20w16_12e_digits_seed1
          densekd train CONFIG
    with CONFIG = configs/kd/kd/classification/resnet/
    kd_resnet8w8_8e_digits_teacher_resnet20w16_ensemble_head_mimic.py

The target is the mean of both teachers' probabilities at temperature 4. Of their logits instead:
distillers=[dict(student_module='logits', teacher=['a', 'b'],
head=dict(type='KDDistillationHead', loss=dict(mode='mean_logit')))] in place of the preset.
"""

_base_ = ['../../../../digits/resnet8w8_8e_digits.py']

resnet20 = '{{ fileDirname }}/../../../../digits/resnet20w16_12e_digits.py'
model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=[
        dict(
            name='a',
            model=resnet20,
            checkpoint='work_dirs/resnet20w16_12e_digits/epoch_12.pth',
        ),
        dict(
            name='b',
            model=resnet20,
            checkpoint='work_dirs/resnet20w16_12e_digits_seed1/epoch_12.pth',
        ),
    ],
    preset='kd',
    scale_student_loss=dict(loss_cls=0.1),
)
