"""Factor transfer in two stages on cut-out digits: ResNet-8 of width 8 by ResNet-20 of 16.

Commands: densekd train configs/digits/resnet20w16_12e_digits.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/ft/classification/resnet/ft_resnet8w8_11e_digits_teacher_resnet20w16_backbone_mimic.py

For 3 epochs, at a tenth of the learning rate, an autoencoder learns the teacher's last map, and the
student rests; for 8 the student learns the task and, through a translator, the code of it.
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

short = [
    dict(
        type='OneCycleLR',
        eta_max=2e-3,
        total_steps=3,
        by_epoch=True,
        convert_to_iter_based=True,
    )
]
stages = [
    dict(
        name='paraphraser',
        train=['distillers'],
        distillers=[
            dict(
                student_module='backbone.c4',  # which is not read: the teacher alone is compared
                teacher_module='backbone.c4',
                head=dict(
                    type='DistillationHead',
                    loss=dict(type='FitNetLoss'),
                    tea_connector=dict(type='AutoencoderConnector', rate=0.5),
                    name='ft_c4',
                ),
            )
        ],
        task_loss=False,
        train_cfg=dict(max_epochs=3),
        param_scheduler=short,
        hand_over=['distillers.*.encoder.*', 'distillers.*.trained'],
    ),
    dict(
        name='train',
        distillers=[
            dict(
                student_module='backbone.c4',
                teacher_module='backbone.c4',
                head=dict(type='FTDistillationHead', name='ft_c4'),
            )
        ],
    ),
]
