"""Stage by stage on cut-out digits: ResNet-8 of width 8 by ResNet-20 of width 16.

Commands: densekd train configs/digits/resnet20w16_12e_digits.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/sskd/classification/resnet/sskd_resnet8w8_12e_digits_teacher_resnet20w16_backbone_mimic.py

Each residual stage of the student in turn learns the map of the teacher's, for 3 epochs, with all
that comes before it as it was left; then the head learns the task on a backbone that rests.
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

# The rate falls from its full height in each stage anew.
optim_wrapper = dict(optimizer=dict(lr=1e-2))
train_cfg = dict(max_epochs=3)
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=3, end=3, by_epoch=True, convert_to_iter_based=True)
]
stages = [
    dict(
        name=tap,
        train=[*(f'backbone.{part}' for part in parts), 'distillers'],
        distillers=[
            dict(
                student_module=f'backbone.{tap}',
                teacher_module=f'backbone.{tap}',
                head=dict(
                    type='DistillationHead',
                    loss=dict(type='FitNetLoss'),
                    stu_connector=dict(type='ConvConnector', norm='BN', only_if_needed=True),
                    name=f'sskd_{tap}',
                ),
            )
        ],
        task_loss=False,
    )
    for tap, parts in (('c2', ('conv1', 'bn1', 'layer1')), ('c3', ('layer2',)), ('c4', ('layer3',)))
] + [dict(name='head', train=['head'], distillers=[])]
