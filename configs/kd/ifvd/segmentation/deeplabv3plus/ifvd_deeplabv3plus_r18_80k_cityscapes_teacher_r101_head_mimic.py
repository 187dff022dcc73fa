"""IFVD on Cityscapes: DeepLabV3+ R-18 learns how the pixels of a class vary in R-101.

Reproduces: nobody's run: no figure is published for this pair.
Command:  densekd train CONFIG; on 4 GPUs (2 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/ifvd/segmentation/deeplabv3plus/ifvd_deeplabv3plus_r18_80k_cityscapes_teacher_r101_head_mimic.py
Expected: more than the student's 76.89 mIoU on val (teacher 80.97).
          Not yet run by us.

Without the paper's adversarial term. The authors' weight of the pixel term, 10, is for a mean over
pixels and classes; KDLoss sums over the 19 classes, hence 10/19. Pixels whose label is ignored, and
padding, are in no class and count in neither term.
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
                type='IFVDDistillationHead',
                loss=dict(type='IFVDLoss', loss_weight=200.0),
                name='ifvd',
            ),
        ),
        dict(
            student_module='decode.logits',
            teacher_module='decode.logits',
            head=dict(
                type='KDDistillationHead',
                loss=dict(type='KDLoss', loss_weight=10 / 19, tau=1.0),
                name='ifvd_kd',
            ),
        ),
    ],
)
