"""CWD on Cityscapes: PSPNet R-18 learns where each class of R-101 is active.

Reproduces: MMRazor's run of CWD (Shu et al., ICCV 2021) on the logits.
Command:  densekd train CONFIG; on 4 GPUs (2 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/cwd/segmentation/pspnet/cwd_pspnet_r18_80k_cityscapes_teacher_r101_head_mimic.py
Expected: mIoU 75.54 on val, published by MMRazor; student alone 74.87, teacher 79.76.
          Not yet run by us.

Weight 5 and temperature 1 are MMRazor's. Unlike there, pixels whose label is ignored, and padding,
are left out of the softmax; mask_padding=False in the loss keeps them in.
"""

_base_ = ['mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py']

teacher_checkpoint = (
    'https://download.openmmlab.com/mmsegmentation/v0.5/pspnet/'
    'pspnet_r101-d8_512x1024_80k_cityscapes/'
    'pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth'
)
model = dict(
    _delete_=True,
    type='densekd.DistillSegmentor',
    student=_base_.model,
    teacher=dict(
        model='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        checkpoint=teacher_checkpoint,
    ),
    distillers=[
        dict(
            student_module='decode.logits',
            teacher_module='decode.logits',
            head=dict(
                type='CWDDistillationHead',
                loss=dict(type='CWDLoss', loss_weight=5.0, tau=1.0),
                name='cwd',
            ),
        ),
    ],
)
