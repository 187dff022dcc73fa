"""PKD on COCO: RetinaNet R-50 correlates with R-101 on the neck.

Reproduces: nobody's run: no figure is published for this pair with a 1x schedule.
Command:  densekd train CONFIG; on 8 GPUs (2 images each): sh tools/dist_train.sh CONFIG 8
    with CONFIG =
    configs/kd/pkd/detection/retinanet/pkd_retinanet_r50_fpn_1x_coco_teacher_r101_neck_mimic.py
Expected: more than the student's 36.5 box mAP on val2017 (teacher 38.5). Not yet run by us.

Four of the five levels and the weight 10 are the authors' for one-stage detectors. They teach this
student by an X-101.
"""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']

teacher_checkpoint = (
    'https://download.openmmlab.com/mmdetection/v2.0/retinanet/retinanet_r101_fpn_1x_coco/'
    'retinanet_r101_fpn_1x_coco_20200130-7a93545f.pth'
)
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
            student_module=f'neck.{level}',
            teacher_module=f'neck.{level}',
            head=dict(
                type='PKDDistillationHead',
                loss=dict(type='PKDLoss', loss_weight=10.0),
                name=f'pkd_{level}',
            ),
        )
        for level in ('p3', 'p4', 'p5', 'p6')
    ],
)
