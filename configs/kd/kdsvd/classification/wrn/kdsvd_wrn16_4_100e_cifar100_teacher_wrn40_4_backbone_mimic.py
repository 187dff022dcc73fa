"""KD-SVD on CIFAR-100: how the three stages of WRN-16-4 follow each other, by WRN-40-4.

Commands: densekd train configs/classification/wrn40_4_100e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/kdsvd/classification/wrn/kdsvd_wrn16_4_100e_cifar100_teacher_wrn40_4_backbone_mimic.py
Expected: 76.85 top-1, published by Knowledge_distillation_via_TF2.0 at commit 0474ff4 (student
          alone 76.37, teacher 77.80); its later table has an empty row.
          Not yet run by us.

The pair is that of an earlier version of its page, the schedule that of its script. As in its code,
the maps are those ahead of the ReLUs, the student's through connectors; the teacher alone is
decomposed, into four singular vectors a map, and the gradient of the term is clipped to that of the
task. The loss there is a sum over the batch of 128, hence the weight of the mean here.
"""

_base_ = ['../../../../classification/wrn16_4_100e_cifar100.py']

places = ['backbone.c2.pre_relu', 'backbone.c3.pre_relu', 'backbone.c4.pre_relu']
model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/wrn40_4_100e_cifar100.py',
        checkpoint='work_dirs/wrn40_4_100e_cifar100/epoch_100.pth',
    ),
    distillers=[
        dict(
            student_module=places,
            teacher_module=places,
            head=dict(
                type='KDSVDDistillationHead',
                loss=dict(type='KDSVDLoss', loss_weight=128.0),
                stu_connector=dict(type='BNConnector'),
                name='kdsvd',
            ),
            clip_to_task=True,
        )
    ],
)
