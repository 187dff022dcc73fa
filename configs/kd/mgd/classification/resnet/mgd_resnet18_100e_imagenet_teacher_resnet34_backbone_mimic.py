"""MGD on ImageNet: from 85% of its channels, ResNet-18 generates the last map of ResNet-34.

Command:  densekd train CONFIG; on 8 GPUs (32 images each): sh tools/dist_train.sh CONFIG 8
    with CONFIG =
    configs/kd/mgd/classification/resnet/mgd_resnet18_100e_imagenet_teacher_resnet34_backbone_mimic.py
Expected: 71.69 top-1, published by its authors (student alone 69.90, teacher 73.62).
          Not yet run by us.

Their factors: 7e-5, and 15% of the channels masked. Their code is built on mmclassification, as the
teacher here is.
"""

_base_ = ['../../../../classification/resnet18_100e_imagenet.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/resnet34_100e_imagenet.py',
        checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/'
        'resnet34_8xb32_in1k_20210831-f257d4e6.pth',
    ),
    preset='mgd',
)
