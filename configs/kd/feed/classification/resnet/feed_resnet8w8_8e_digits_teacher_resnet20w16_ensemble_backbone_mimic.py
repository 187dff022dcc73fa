"""FEED on cut-out digits: ResNet-8 of width 8 learns the last maps of two ResNet-20 of width 16.

Commands: densekd train configs/digits/resnet20w16_12e_digits.py
          densekd train configs/digits/resnet20w16_12e_digits.py \
              --cfg-options randomness.seed=1 --work-dir work_dirs/resnet20w16_12e_digits_seed1
          densekd train CONFIG
    with CONFIG = configs/kd/feed/classification/resnet/
    feed_resnet8w8_8e_digits_teacher_resnet20w16_ensemble_backbone_mimic.py

Each teacher has a translator of its own. The paper's teachers are built as the student is.
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
    preset='feed',
)
