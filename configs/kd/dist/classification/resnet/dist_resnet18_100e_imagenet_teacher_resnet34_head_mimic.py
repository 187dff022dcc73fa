"""DIST on ImageNet: correlated probabilities, ResNet-18 by ResNet-34.

Command:  densekd train CONFIG; on 8 GPUs (32 images each): sh tools/dist_train.sh CONFIG 8
    with CONFIG =
    configs/kd/dist/classification/resnet/dist_resnet18_100e_imagenet_teacher_resnet34_head_mimic.py
Expected: 72.07 top-1, published by its authors (student alone 69.76, teacher 73.31).
          Not yet run by us.

Their factors: weight 2, temperature 1. Their teacher is torchvision's; here it is
mmclassification's (73.62).
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
    preset='dist',
)
