"""DIST on Cityscapes: DeepLabV3+ R-18 ranks classes and pixels as R-101 does.

Reproduces: nobody's run: no figure is published for this pair.
Command:  densekd train CONFIG; on 4 GPUs (2 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/dist/segmentation/deeplabv3plus/dist_deeplabv3plus_r18_80k_cityscapes_teacher_r101_head_mimic.py
Expected: more than the student's 76.89 mIoU on val (teacher 80.97).
          Not yet run by us.

Weight 1 and temperature 1 are the authors' for DeepLabV3 and PSPNet, whose R-18 reach 77.10 and
76.31 from their R-101; a term on the auxiliary head, at 0.4, is left out here. Logits are compared
at a quarter of the crop's size; pixels whose label is ignored, and padding, are no rows.
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
            student_module='decode.logits',
            teacher_module='decode.logits',
            head=dict(
                type='DISTDistillationHead',
                loss=dict(type='DISTLoss', loss_weight=1.0, beta=1.0, gamma=1.0, tau=1.0),
                name='dist',
            ),
        ),
    ],
)
