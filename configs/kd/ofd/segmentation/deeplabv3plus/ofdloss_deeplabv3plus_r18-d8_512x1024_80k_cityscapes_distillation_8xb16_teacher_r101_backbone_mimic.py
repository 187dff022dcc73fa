"""OFD on Cityscapes: DeepLabV3+ R-18 learns from R-101 at the ends of the backbone's stages.

Reproduces: the Cityscapes row of GML's results with OFD (Heo et al., ICCV 2019), backbone mimic.
Command:  densekd train CONFIG; on 4 GPUs (2 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/ofd/segmentation/deeplabv3plus/ofdloss_deeplabv3plus_r18-d8_512x1024_80k_cityscapes_distillation_8xb16_teacher_r101_backbone_mimic.py
Expected: mIoU 77.02 on val, published by GML; student alone 76.89, teacher 80.97.
          Not yet run by us.

Its own config was not published, nor what "8xb16" counted; this one has mmseg's 8 images a step.
The taps are the paper's: the sum before a stage's last ReLU. The weights are the authors' 1e-5 for
segmentation, halved a stage from deep to shallow. Theirs also trained the connectors alone for an
epoch, and with ten times the learning rate.
"""

_base_ = ['mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py']

teacher_checkpoint = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/deeplabv3plus/'
    'deeplabv3plus_r101-d8_512x1024_80k_cityscapes/'
    'deeplabv3plus_r101-d8_512x1024_80k_cityscapes_20200606_114143-068fcfe9.pth'
)
model = dict(
    _delete_=True,
    type='densekd.DistillSegmentor',
    student=_base_.model,
    teacher=dict(
        model='mmseg::deeplabv3plus/deeplabv3plus_r101-d8_4xb2-80k_cityscapes-512x1024.py',
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
