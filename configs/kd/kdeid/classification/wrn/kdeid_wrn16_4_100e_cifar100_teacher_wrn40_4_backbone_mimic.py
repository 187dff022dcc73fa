"""KD-EID on CIFAR-100: KD-SVD with vectors of both sides, WRN-16-4 by WRN-40-4.

Commands: densekd train configs/classification/wrn40_4_100e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/kdeid/classification/wrn/kdeid_wrn16_4_100e_cifar100_teacher_wrn40_4_backbone_mimic.py
Expected: 77.22 top-1, published by Knowledge_distillation_via_TF2.0 at commit 0474ff4 (student
          alone 76.37, teacher 77.80); its later table has an empty row.
          Not yet run by us.

The pair is that of an earlier version of its page, the schedule that of its script. KD-EID is
KD-SVD by eigenvalues of the Gram matrix, which is how densekd computes both. This is the form of
the code that had it by this name: student and teacher are decomposed, and of the four main vectors
of the student that one is compared which is nearest to the teacher's first. Places and weight 1,
of a mean over the batch, are ours.
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
    distillers=[
        dict(
            student_module=['backbone.c2', 'backbone.c3', 'backbone.c4'],
            teacher_module=['backbone.c2', 'backbone.c3', 'backbone.c4'],
            head=dict(
                type='KDSVDDistillationHead',
                loss=dict(type='KDSVDLoss', basis='own', k=1),
                name='kdeid',
            ),
            clip_to_task=True,
        )
    ],
)
