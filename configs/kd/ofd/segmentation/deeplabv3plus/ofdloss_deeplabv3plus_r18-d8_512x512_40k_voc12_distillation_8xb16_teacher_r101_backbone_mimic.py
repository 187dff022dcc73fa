"""OFD on Pascal VOC 2012: DeepLabV3+ R-18 learns from R-101 at the ends of the backbone's stages.

Reproduces: the VOC2012Aug row of GML's results with OFD (Heo et al., ICCV 2019), backbone mimic.
Command:  densekd train CONFIG; on 4 GPUs (4 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/ofd/segmentation/deeplabv3plus/ofdloss_deeplabv3plus_r18-d8_512x512_40k_voc12_distillation_8xb16_teacher_r101_backbone_mimic.py
Expected: mIoU 72.49 on val, published by GML; student alone 72.62, teacher 78.62: there OFD on the
          backbone does not help. Not yet run by us.

Its own config was not published, nor what "8xb16" counted; this one has mmseg's 16 images a step.
The taps are the paper's: the sum before a stage's last ReLU. The weights are the authors' 1e-5 for
segmentation, halved a stage from deep to shallow. Theirs also trained the connectors alone for an
epoch, and with ten times the learning rate.
"""

_base_ = ['../../../../voc/deeplabv3plus_r18_40k_voc12aug.py']

teacher_checkpoint = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3plus/'
    'deeplabv3plus_r101-d8_512x512_40k_voc12aug/'
    'deeplabv3plus_r101-d8_512x512_40k_voc12aug_20200613_205333-faf03387.pth'
)
model = dict(
    _delete_=True,
    type='densekd.DistillSegmentor',
    student=_base_.model,
    teacher=dict(
        model='mmseg::deeplabv3plus/deeplabv3plus_r101-d8_4xb4-40k_voc12aug-512x512.py',
        checkpoint=teacher_checkpoint,
    ),
    distillers=[
        dict(
            student_module=f'backbone.{stage}.pre_relu',
            teacher_module=f'backbone.{stage}.pre_relu',
            head=dict(
                type='OFDDistillationHead',
                loss=dict(type='OFDLoss', loss_weight=1e-5 / divisor),
                name=f'ofd_{stage}',
                stu_connector=dict(type='BNConnector'),
            ),
        )
        for stage, divisor in (('c2', 8), ('c3', 4), ('c4', 2), ('c5', 1))
    ],
)
