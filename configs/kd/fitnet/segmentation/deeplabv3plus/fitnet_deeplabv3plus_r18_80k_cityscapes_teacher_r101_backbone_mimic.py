"""FitNet on Cityscapes: DeepLabV3+ R-18 regresses the stages of R-101's backbone.

Reproduces: nobody's run: no figure is published for this pair.
Command:  densekd train CONFIG; on 4 GPUs (2 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/fitnet/segmentation/deeplabv3plus/fitnet_deeplabv3plus_r18_80k_cityscapes_teacher_r101_backbone_mimic.py
Expected: more than the student's 76.89 mIoU on val (teacher 80.97).
          Not yet run by us.

Hints in joint training, through a 1x1 convolution and a ReLU, since the teacher's values come out
of one. No weight for the element mean is published for dense tasks; it is 1.
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
            student_module=f'backbone.{stage}',
            teacher_module=f'backbone.{stage}',
            head=dict(
                type='FitNetDistillationHead',
                loss=dict(type='FitNetLoss', loss_weight=1.0),
                name=f'fitnet_{stage}',
                stu_connector=dict(type='ConvConnector', act='relu'),
            ),
        )
        for stage in ('c2', 'c3', 'c4', 'c5')
    ],
)
