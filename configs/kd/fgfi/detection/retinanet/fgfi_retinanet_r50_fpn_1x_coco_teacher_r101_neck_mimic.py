"""FGFI on COCO: RetinaNet R-50 imitates R-101 on the neck, near the objects.

Reproduces: nobody's run: no figure is published for FGFI with this pair and a 1x schedule.
Command:  densekd train CONFIG; on 8 GPUs (2 images each): sh tools/dist_train.sh CONFIG 8
    with CONFIG =
    configs/kd/fgfi/detection/retinanet/fgfi_retinanet_r50_fpn_1x_coco_teacher_r101_neck_mimic.py
Expected: more than the student's 36.5 box mAP on val2017 (teacher 38.5). Not yet run by us.
    With 2x schedules (student 37.4, teacher 38.9) 38.6 was published by FGD and
    by Guo et al. 2021.

Anchors (the head's) of all levels compete for a box, so that it marks the one or two levels where
they fit it best. The weight is the authors' 0.01, and as in their code imitation starts gently:
they switch it on after 400 iterations, here it grows over that time.
"""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']

teacher_checkpoint = (
    'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_1x_coco/'
    'retinanet_r101_fpn_1x_coco_20200130-7a93545f.pth'
)
levels = ['neck.p3', 'neck.p4', 'neck.p5', 'neck.p6', 'neck.p7']
model = dict(
    _delete_=True,
    type='densekd.DistillDetector',
    student=_base_.model,
    teacher=dict(
        model='mmdet::retinanet/retinanet_r101_fpn_1x_coco.py',
        checkpoint=teacher_checkpoint,
    ),
    distillers=[
        dict(
            student_module=levels,
            teacher_module=levels,
            head=dict(
                type='FGFIDistillationHead',
                loss=dict(type='FGFILoss', loss_weight=0.01, psi=0.5, policy='global'),
                name='fgfi',
                stu_connector=dict(type='ConvConnector', kernel_size=3, init_std=1e-4),
            ),
            schedule=dict(warmup=400),
        ),
    ],
)
