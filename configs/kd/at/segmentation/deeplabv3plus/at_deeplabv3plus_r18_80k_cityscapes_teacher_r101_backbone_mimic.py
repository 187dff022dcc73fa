"""AT on Cityscapes: DeepLabV3+ R-18 looks where the stages of R-101's backbone look.

Reproduces: nobody's run: no figure is published for this pair.
Command:  densekd train CONFIG; on 4 GPUs (2 images each): sh tools/dist_train.sh CONFIG 4
    with CONFIG =
    configs/kd/at/segmentation/deeplabv3plus/at_deeplabv3plus_r18_80k_cityscapes_teacher_r101_backbone_mimic.py
Expected: more than the student's 76.89 mIoU on val (teacher 80.97).
          Not yet run by us.

Each stage's map is compared after its last ReLU. No weight is published for dense tasks: it is the
authors' 1000, for the maps that they used it on (7x7 cells in c5, twice the side a stage before),
which 'reference' carries over to the larger maps of a crop.
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
                type='ATDistillationHead',
                loss=dict(type='ATLoss', loss_weight=1000.0, reference=cells),
                name=f'at_{stage}',
            ),
        )
        for stage, cells in (('c2', 3136), ('c3', 784), ('c4', 196), ('c5', 49))
    ],
)
