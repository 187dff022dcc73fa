"""MHGD in two stages on cut-out digits: ResNet-8 of width 8 by ResNet-20 of width 16.

Commands: densekd train configs/digits/resnet20w16_12e_digits.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/mhgd/classification/resnet/mhgd_resnet8w8_11e_digits_teacher_resnet20w16_backbone_mimic.py

For 3 epochs an attention between the images of a batch learns of the teacher alone, and no student
is needed; for 8 the student learns the task, and to be attended to as the teacher is.
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
)

places = ['backbone.c2', 'backbone.c3', 'backbone.c4']
short = [
    dict(
        type='OneCycleLR',
        eta_max=2e-2,
        total_steps=3,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
stages = [
    dict(
        name='attention',
        train=['distillers'],
        distillers=[
            dict(
                student_module=places,  # which are not read: the teacher alone is estimated
                teacher_module=places,
                head=dict(type='MHGDEstimatorDistillationHead', name='mhgd'),
            )
        ],
        task_loss=False,
        train_cfg=dict(max_epochs=3),
        param_scheduler=short,
        hand_over=['distillers.*.attention.*', 'distillers.*.trained'],
    ),
    dict(
        name='train',
        distillers=[
            dict(
                student_module=places,
                teacher_module=places,
                head=dict(type='MHGDDistillationHead', name='mhgd'),
                clip_to_task=True,
            )
        ],
    ),
]
