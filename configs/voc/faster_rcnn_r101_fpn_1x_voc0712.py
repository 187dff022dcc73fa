"""The teacher for Pascal VOC, of which no checkpoint is published: Faster R-CNN, R-101.

Command: densekd train CONFIG; on 8 GPUs (2 images each): sh tools/dist_train.sh CONFIG 8
    with CONFIG = configs/voc/faster_rcnn_r101_fpn_1x_voc0712.py
    On fewer GPUs, densekd train CONFIG --auto-scale-lr.

Data: data/VOCdevkit/VOC2007 and data/VOCdevkit/VOC2012, each with Annotations, ImageSets/Main and
JPEGImages. Training is on both trainval splits, the score is VOC2007 test's mAP at an IoU of 0.5.
"""

_base_ = ['mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py']

model = dict(
    backbone=dict(
        depth=101,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'),
    ),
)
