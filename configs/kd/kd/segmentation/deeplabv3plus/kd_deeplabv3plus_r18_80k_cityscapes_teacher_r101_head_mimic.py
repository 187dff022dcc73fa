"""KD on Cityscapes: DeepLabV3+ R-18 learns the class probabilities of R-101 at each pixel.

Reproduces: nobody's run: no figure is published for this pair.
Command:  densekd train CONFIG; on 4 GPUs (2 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/kd/segmentation/deeplabv3plus/kd_deeplabv3plus_r18_80k_cityscapes_teacher_r101_head_mimic.py
Expected: more than the student's 76.89 mIoU on val (teacher 80.97).
          Not yet run by us.

Logits are compared at a quarter of the crop's size, before they are enlarged; pixels whose label is
ignored, and padding, don't count. The mean over valid pixels is on the scale of the student's own
loss, whatever the size of the crop.
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
                type='KDDistillationHead',
                loss=dict(type='KDLoss', loss_weight=1.0, tau=4.0),
                name='kd',
            ),
        ),
    ],
)
