"""AB on ImageNet in two stages of one config: ResNet-18 by ResNet-50, 20 and 100 epochs.

Command:  densekd train CONFIG, or for 8 GPUs sh tools/dist_train.sh CONFIG 8, with CONFIG =
          configs/kd/ab/classification/resnet/ab_resnet18_120e_imagenet_teacher_resnet50_backbone_mimic.py
Expected: 69.94 top-1, published by mmrazor (student alone 69.90, teacher 76.55), whose taps and
          weight of soft labels are others.
          Not yet run by us.

What the two configs abloss_pretrain_… and abloss_logits_… beside it do, in one command.
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
)

stages = [
    dict(
        name='pretrain',
        train=['backbone', 'distillers'],
        preset='ab',
        task_loss=False,
        train_cfg=dict(max_epochs=20),
        hand_over=['backbone'],
    ),
    dict(
        name='train',
        distillers=[
            dict(
                student_module='logits',
                teacher_module='logits',
                head=dict(
                    type='KDDistillationHead', loss=dict(type='KDLoss', tau=1.0, loss_weight=0.5)
                ),
            )
        ],
        scale_student_loss=dict(loss_cls=0.5),
    ),
]
