"""FGFI on Pascal VOC: Faster R-CNN R-50 imitates R-101 on the neck, near the objects.

Reproduces: nobody's run with this schedule; the nearest figures are DeFeat's, below.
Command:  first the teacher, then the student; on 8 GPUs (2 images each):
    sh tools/dist_train.sh configs/voc/faster_rcnn_r101_fpn_1x_voc0712.py 8
    sh tools/dist_train.sh CONFIG 8
    with CONFIG =
    configs/kd/fgfi/detection/faster_rcnn/fgfi_faster_rcnn_r50_fpn_1x_voc0712_teacher_r101_neck_mimic.py
    On fewer GPUs, densekd train … --auto-scale-lr.
Expected: about half a point more than the student's AP50 on VOC2007 test. Not yet run by us.
    With the student at 80.5 to 81.0 and the teacher at 82.3, FGFI at 81.0 to 82.0 was published by
    DeFeat (8 GPUs, 2 images each).

Anchors (the RPN's) of all levels compete for a box. The weight is the authors' 0.01, and as in
their code imitation starts gently, over 400 iterations.
"""

_base_ = ['mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py']

levels = ['neck.p2', 'neck.p3', 'neck.p4', 'neck.p5', 'neck.p6']
model = dict(
    _delete_=True,
    type='densekd.DistillDetector',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../voc/faster_rcnn_r101_fpn_1x_voc0712.py',
        checkpoint='work_dirs/faster_rcnn_r101_fpn_1x_voc0712/epoch_4.pth',
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
