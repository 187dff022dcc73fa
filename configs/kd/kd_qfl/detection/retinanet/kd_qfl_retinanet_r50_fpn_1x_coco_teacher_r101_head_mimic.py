"""KD-QFL on COCO: RetinaNet R-50 learns the class probabilities of R-101.

Reproduces: nobody's run: no figure is published for this pair with a 1x schedule.
Command:  densekd train CONFIG; on 8 GPUs (2 images each): sh tools/dist_train.sh CONFIG 8
    with CONFIG =
    configs/kd/kd_qfl/detection/retinanet/kd_qfl_retinanet_r50_fpn_1x_coco_teacher_r101_head_mimic.py
Expected: more than the student's 36.5 box mAP on val2017 (teacher 38.5). Not yet run by us.

CrossKD uses this loss on predictions that cross from the student to the teacher's head; here it is
on the student's own.
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
            student_module='head.cls_logits',
            teacher_module='head.cls_logits',
            head=dict(
                type='KDQFLDistillationHead',
                loss=dict(type='KDQFLLoss', loss_weight=1.0, beta=1.0),
                name='kd_qfl',
            ),
        ),
    ],
)
