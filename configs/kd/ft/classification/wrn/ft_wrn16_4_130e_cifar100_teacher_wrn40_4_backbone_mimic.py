"""Factor transfer on CIFAR-100 in two stages, WRN-16-4 by WRN-40-4.

Commands: densekd train configs/classification/wrn40_4_100e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/ft/classification/wrn/ft_wrn16_4_130e_cifar100_teacher_wrn40_4_backbone_mimic.py
Expected: no figure is published; the table of Knowledge_distillation_via_TF2.0 has an empty row for
          it (student alone 76.25, teacher 78.59).
          Not yet run by us.

The pair is that of an earlier version of its page, the lengths are those of its code: for 30 epochs
an autoencoder learns the teacher's last map, behind its last ReLU, and the student rests; for 100
the student learns the task and, through a translator, the code of it. Share of channels and weight
are the authors', a half and 500; a tenth of the learning rate for the autoencoder is ours.
"""

_base_ = ['../../../../classification/wrn16_4_100e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/wrn40_4_100e_cifar100.py',
        checkpoint='work_dirs/wrn40_4_100e_cifar100/epoch_100.pth',
    ),
)

stages = [
    dict(
        name='paraphraser',
        train=['distillers'],
        distillers=[
            dict(
                student_module='backbone.relu',  # which is not read: the teacher alone is compared
                teacher_module='backbone.relu',
                head=dict(
                    type='DistillationHead',
                    loss=dict(type='FitNetLoss'),
                    tea_connector=dict(type='AutoencoderConnector', rate=0.5),
                    name='ft_c4',
                ),
            )
        ],
        task_loss=False,
        train_cfg=dict(max_epochs=30),
        optim_wrapper=dict(optimizer=dict(lr=0.01)),
        param_scheduler=[],
        hand_over=['distillers.*.encoder.*', 'distillers.*.trained'],
    ),
    dict(
        name='train',
        distillers=[
            dict(
                student_module='backbone.relu',
                teacher_module='backbone.relu',
                head=dict(type='FTDistillationHead', name='ft_c4'),
            )
        ],
    ),
]
