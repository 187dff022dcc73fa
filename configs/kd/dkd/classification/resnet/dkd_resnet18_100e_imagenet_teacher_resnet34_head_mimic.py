"""DKD on ImageNet: decoupled soft labels, ResNet-18 by ResNet-34.

Command:  densekd train CONFIG; on 8 GPUs (32 images each): sh tools/dist_train.sh CONFIG 8
    with CONFIG =
    configs/kd/dkd/classification/resnet/dkd_resnet18_100e_imagenet_teacher_resnet34_head_mimic.py
Expected: 71.70 top-1, published by mdistiller, the authors' code (student alone 69.75, teacher
          73.31).
          Not yet run by us.

Their factors: alpha 1, beta 0.5, temperature 1, a warm-up of one epoch. Their batches have 512
images at twice the learning rate, and the teacher is torchvision's; here it is mmclassification's
(73.62).
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
    distillers=[
        dict(
            student_module='logits',
            teacher_module='logits',
            schedule=dict(by='epoch', warmup=1),
            head=dict(
                type='DKDDistillationHead',
                loss=dict(type='DKDLoss', alpha=1.0, beta=0.5, tau=1.0),
                name='dkd',
            ),
        )
    ],
)
