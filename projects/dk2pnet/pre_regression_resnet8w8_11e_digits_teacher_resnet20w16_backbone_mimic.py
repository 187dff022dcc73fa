"""Knowledge pre-regression on cut-out digits: ResNet-8 of width 8 by ResNet-20 of width 16.

Commands, in the repository's root:
    densekd train configs/digits/resnet20w16_12e_digits.py
    PYTHONPATH=. densekd train projects/dk2pnet/<this file>

For 3 epochs the layers up to the end of the second of three residual stages learn the teacher's
shares of channels there, and nothing else; for 8 the whole student learns the task and soft
labels. It reproduces no number: the paper's networks are not these, and its own is not here.
"""

_base_ = ['../../configs/digits/resnet8w8_8e_digits.py']

# Read with the config: this is what makes the names below known.
custom_imports = dict(imports=['projects.dk2pnet.pre_regression'])

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../configs/digits/resnet20w16_12e_digits.py',
        checkpoint='work_dirs/resnet20w16_12e_digits/epoch_12.pth',
    ),
)

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
        name='pre_regression',
        train=[f'backbone.{part}' for part in ('conv1', 'bn1', 'layer1', 'layer2')]
        + ['distillers'],
        distillers=[
            dict(
                student_module='backbone.c3',
                teacher_module='backbone.c3',
                head=dict(type='PreRegressionDistillationHead', name='pre_regression_c3'),
            )
        ],
        task_loss=False,
        train_cfg=dict(max_epochs=3),
        param_scheduler=short,
        hand_over=['backbone'],
    ),
    dict(name='train', preset='kd', scale_student_loss=dict(loss_cls=0.1)),
]
