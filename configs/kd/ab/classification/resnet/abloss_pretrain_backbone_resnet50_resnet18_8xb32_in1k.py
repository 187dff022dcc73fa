"""AB on ImageNet, the first of two configs: ResNet-18 learns boundaries of ResNet-50, 20 epochs.

Command:  densekd train CONFIG, or for 8 GPUs sh tools/dist_train.sh CONFIG 8, with CONFIG =
          configs/kd/ab/classification/resnet/abloss_pretrain_backbone_resnet50_resnet18_8xb32_in1k.py
Expected: the backbone for abloss_logits_resnet50_resnet18_8xb32_in1k.py; no figure is published
          for it alone.
          Not yet run by us.

The task is no part of it and the head does not move, so that there is nothing to validate. The
learning rate stays at 0.1. One config does both parts, one after the other:
ab_resnet18_120e_imagenet_teacher_resnet50_backbone_mimic.py
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
    preset='ab',
    task_loss=False,
    trainable=['backbone', 'distillers'],
)

max_epochs = 20
train_cfg = dict(max_epochs=max_epochs)
val_dataloader = None
val_evaluator = None
val_cfg = None
default_hooks = dict(checkpoint=dict(save_best=None, rule=None))
custom_hooks = []
