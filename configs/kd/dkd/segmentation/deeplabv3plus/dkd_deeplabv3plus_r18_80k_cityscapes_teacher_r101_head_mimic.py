"""DKD on Cityscapes: DeepLabV3+ R-18 learns from R-101 how the untrue classes of a pixel compare.

Reproduces: nobody's run: no figure is published for this pair.
Command:  densekd train CONFIG; on 4 GPUs (2 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/dkd/segmentation/deeplabv3plus/dkd_deeplabv3plus_r18_80k_cityscapes_teacher_r101_head_mimic.py
Expected: more than the student's 76.89 mIoU on val (teacher 80.97).
          Not yet run by us.

Factors and temperature are the authors' for most pairs of classifiers; nobody has published any for
pixels. Their warm-up, 20 epochs of 240, is a twelfth of the training here too: without it, a beta
of 8 may diverge. Logits are compared at a quarter of the crop's size, where a cell has the label of
the pixel nearest to it; pixels whose label is ignored, and padding, are left out.
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
                type='DKDDistillationHead',
                loss=dict(type='DKDLoss', loss_weight=1.0, alpha=1.0, beta=8.0, tau=4.0),
                name='dkd',
            ),
            schedule=dict(by='iter', warmup=6700),
        ),
    ],
)
