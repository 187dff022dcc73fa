"""CWD on COCO: Faster R-CNN R-50 learns from R-101 where each channel of the neck is active.

Reproduces: nobody's run: no figure is published for this pair with a 1x schedule.
Command:  densekd train CONFIG; on 8 GPUs (2 images each): sh tools/dist_train.sh CONFIG 8
    with CONFIG =
    configs/kd/cwd/detection/faster_rcnn/cwd_faster_rcnn_r50_fpn_1x_coco_teacher_r101_neck_mimic.py
Expected: more than the student's 37.4 box mAP on val2017 (teacher 39.4). Not yet run by us.

Temperature 1 and weight 10 are those of a public port to detectors.
"""

_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py']

teacher_checkpoint = (
    'https://download.openmmlab.com/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_1x_coco/'
    'faster_rcnn_r101_fpn_1x_coco_20200130-f513f705.pth'
)
model = dict(
    _delete_=True,
    type='densekd.DistillDetector',
    student=_base_.model,
    teacher=dict(
        model='mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py',
        checkpoint=teacher_checkpoint,
    ),
    distillers=[
        dict(
            student_module=f'neck.{level}',
            teacher_module=f'neck.{level}',
            head=dict(
                type='CWDDistillationHead',
                loss=dict(type='CWDLoss', loss_weight=10.0, tau=1.0),
                name=f'cwd_{level}',
            ),
        )
        for level in ('p2', 'p3', 'p4', 'p5', 'p6')
    ],
)
