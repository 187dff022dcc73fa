"""MHGD on CIFAR-100 in two stages: attention between images, WRN-16-4 by WRN-40-4.

Commands: densekd train configs/classification/wrn40_4_100e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/mhgd/classification/wrn/mhgd_wrn16_4_140e_cifar100_teacher_wrn40_4_backbone_mimic.py
Expected: 77.23 top-1, published by Knowledge_distillation_via_TF2.0 at commit 0474ff4 (student
          alone 76.37, teacher 77.80); its later table has an empty row.
          Not yet run by us.

The pair is that of an earlier version of its page, the schedule that of its script. The authors'
code trains the attention for 40 epochs, of the teacher alone, and then the student for 100. The
learning rate of the first stage stays as it is at the start. Weight 1 is ours.
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

places = ['backbone.c2', 'backbone.c3', 'backbone.c4']
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
        train_cfg=dict(max_epochs=40),
        param_scheduler=[],
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
