"""OFD on Cityscapes: DeepLabV3+ R-18 learns from R-101 in the decoder.

Reproduces: the Cityscapes row of GML's results with OFD (Heo et al., ICCV 2019), head mimic.
Command:  densekd train CONFIG; on 4 GPUs (2 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/ofd/segmentation/deeplabv3plus/ofdloss_deeplabv3plus_r18-d8_512x1024_80k_cityscapes_distillation_8xb16_teacher_r101_head_mimic.py
Expected: mIoU 77.65 on val, published by GML; student alone 76.89, teacher 80.97.
          Not yet run by us.

Its own config was not published, nor what "8xb16" counted; this one has mmseg's 8 images a step.
The taps are the authors': the two normalisations before a ReLU in the decoder, after the ASPP and
before the classifier. A 1x1 convolution takes the student's 128 channels to the teacher's 512. The
weights are their 1e-5, over 16 at the second. Theirs also trained the connectors alone for an
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
            student_module=place,
            teacher_module=place,
            head=dict(
                type='OFDDistillationHead',
                loss=dict(type='OFDLoss', loss_weight=1e-5 / divisor),
                name=name,
                stu_connector=dict(type='BNConnector', in_channel=128, out_channel=512),
            ),
        )
        for place, name, divisor in (
            ('decode.aspp', 'ofd_aspp', 1),
            ('decode.feature', 'ofd_feature', 16),
        )
    ],
)
