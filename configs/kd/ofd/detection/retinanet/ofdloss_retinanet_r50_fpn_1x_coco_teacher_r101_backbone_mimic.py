"""OFD on COCO: RetinaNet R-50 learns from R-101 at the ends of the backbone's stages.

Reproduces: the RetinaNet row of GML's results with OFD (Heo et al., ICCV 2019), backbone mimic.
Command:  densekd train CONFIG; on 8 GPUs (2 images each): sh tools/dist_train.sh CONFIG 8
    with CONFIG =
    configs/kd/ofd/detection/retinanet/ofdloss_retinanet_r50_fpn_1x_coco_teacher_r101_backbone_mimic.py
Expected: box mAP 37.3 on val2017, published by GML; student alone 36.5, teacher 38.5.
          Not yet run by us.

Its own config was not published. What is known of it is that it taps "bn". Here the taps are the
paper's: the sum before a stage's last ReLU. A norm's own output is written as its module path,
which differs between the two networks where they have unlike numbers of blocks:
    student_module='backbone.layer3.5.bn3', teacher_module='backbone.layer3.22.bn3'
Stage c2 is left out: it is frozen in the student (frozen_stages=1), where nothing can learn.
The weights are 1e-5, halved a stage from deep to shallow, as in OFD's segmentation; none is
published for detection.
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
            student_module='backbone.c3.pre_relu',
            teacher_module='backbone.c3.pre_relu',
            head=dict(
                type='OFDDistillationHead',
                loss=dict(type='OFDLoss', loss_weight=2.5e-6),
                name='ofd_c3',
                stu_connector=dict(type='BNConnector'),
            ),
        ),
        dict(
            student_module='backbone.c4.pre_relu',
            teacher_module='backbone.c4.pre_relu',
            head=dict(
                type='OFDDistillationHead',
                loss=dict(type='OFDLoss', loss_weight=5e-6),
                name='ofd_c4',
                stu_connector=dict(type='BNConnector'),
            ),
        ),
        dict(
            student_module='backbone.c5.pre_relu',
            teacher_module='backbone.c5.pre_relu',
            head=dict(
                type='OFDDistillationHead',
                loss=dict(type='OFDLoss', loss_weight=1e-5),
                name='ofd_c5',
                stu_connector=dict(type='BNConnector'),
            ),
        ),
    ],
)
