"""OFD on ImageNet: ResNet-18 learns from ResNet-50, ahead of the ReLUs.

Command:  densekd train CONFIG; on 8 GPUs (32 images each): sh tools/dist_train.sh CONFIG 8
    with CONFIG =
    configs/kd/ofd/classification/resnet/ofdloss_res18_imagenet_distillation_8xb32_teacher_res50_train.py
Expected: 70.34 top-1, published by GML (student alone 69.90, teacher 76.55).
          Not yet run by us.

Its own config was not published. Here taps and weights are the authors': the sums ahead of the last
ReLUs of the stages, 1e-4 for the last and half of the next for each one before.
"""

_base_ = ['../../../../classification/resnet18_100e_imagenet.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/resnet50_100e_imagenet.py',
        checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/'
        'resnet50_8xb32_in1k_20210831-ea4938fc.pth',
    ),
    distillers=[
        dict(
            student_module=f'backbone.{stage}.pre_relu',
            teacher_module=f'backbone.{stage}.pre_relu',
            head=dict(
                type='OFDDistillationHead',
                loss=dict(type='OFDLoss', loss_weight=1e-4 / divisor),
                name=f'ofd_{stage}',
                stu_connector=dict(type='BNConnector'),
            ),
        )
        for stage, divisor in (('c2', 8), ('c3', 4), ('c4', 2), ('c5', 1))
    ],
)
