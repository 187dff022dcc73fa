"""The student on Pascal VOC 2012 with extra masks: DeepLabV3+ R-18, which mmseg has no config of.

Command: densekd train configs/voc/deeplabv3plus_r18_40k_voc12aug.py, or on 4 GPUs (4 images each):
    sh tools/dist_train.sh configs/voc/deeplabv3plus_r18_40k_voc12aug.py 4
Expected: mIoU 72.62 on val, published by GML for such a student. Not yet run by us.

Data: data/VOCdevkit/VOC2012 with the masks of SBD in SegmentationClassAug, as mmseg prepares it.
"""

_base_ = ['mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-40k_voc12aug-512x512.py']

# As mmseg narrows it for Cityscapes.
model = dict(
    pretrained='open-mmlab://resnet18_v1c',
    backbone=dict(depth=18),
    decode_head=dict(c1_in_channels=64, c1_channels=12, in_channels=512, channels=128),
    auxiliary_head=dict(in_channels=256, channels=64),
)
