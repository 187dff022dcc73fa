"""SKD on Cityscapes: DeepLabV3+ R-18 learns which regions R-101 finds alike, and its classes.

Reproduces: nobody's run: no figure is published for this pair.
Command:  densekd train CONFIG; on 4 GPUs (2 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/skd/segmentation/deeplabv3plus/skd_deeplabv3plus_r18_80k_cityscapes_teacher_r101_head_mimic.py
Expected: more than the student's 76.89 mIoU on val (teacher 80.97).
          Not yet run by us.

Without the paper's critic. The authors' weights are for 8 images in one process: the pixelwise term
is a sum over images, so that with 2 a process its 10 weighs what 2.5 weighs there. Pixels whose
label is ignored, and padding, are left out of both terms.
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
            student_module='decode.feature',
            teacher_module='decode.feature',
            head=dict(
                type='SKDPairwiseDistillationHead',
                loss=dict(type='SKDPairwiseLoss', loss_weight=0.5, scale=0.5),
                name='skd_pairwise',
            ),
        ),
        dict(
            student_module='decode.logits',
            teacher_module='decode.logits',
            head=dict(
                type='SKDPixelwiseDistillationHead',
                loss=dict(type='SKDPixelwiseLoss', loss_weight=10.0),
                name='skd_pixelwise',
            ),
        ),
    ],
)
