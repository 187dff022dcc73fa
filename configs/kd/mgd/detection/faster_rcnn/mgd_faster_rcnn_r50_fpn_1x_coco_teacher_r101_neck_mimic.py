"""MGD on COCO: Faster R-CNN R-50 generates the neck of R-101 from masked features.

Reproduces: nobody's run: no figure is published for this pair with a 1x schedule.
Command:  densekd train CONFIG; on 8 GPUs (2 images each): sh tools/dist_train.sh CONFIG 8
    with CONFIG =
    configs/kd/mgd/detection/faster_rcnn/mgd_faster_rcnn_r50_fpn_1x_coco_teacher_r101_neck_mimic.py
Expected: more than the student's 37.4 box mAP on val2017 (teacher 39.4). Not yet run by us.

Weight 5e-7 and 45% masked are the authors' for two-stage detectors. Their best results also start
with the teacher's neck and head, which this does not.
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
                type='MGDDistillationHead',
                loss=dict(type='MGDLoss', loss_weight=5e-7, masked=0.45),
                name=f'mgd_{level}',
            ),
        )
        for level in ('p2', 'p3', 'p4', 'p5', 'p6')
    ],
)
