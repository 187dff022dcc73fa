"""AB on ImageNet, the second of two configs: task and soft labels, from the first one's backbone.

Command:  densekd train CONFIG, or for 8 GPUs sh tools/dist_train.sh CONFIG 8, with CONFIG =
          configs/kd/ab/classification/resnet/abloss_logits_resnet50_resnet18_8xb32_in1k.py
Expected: 69.94 top-1, published by mmrazor (student alone 69.90, teacher 76.55), whose taps and
          weight of soft labels are others.
          Not yet run by us.

It starts from work_dirs/abloss_pretrain_backbone_resnet50_resnet18_8xb32_in1k/epoch_20.pth; where
that is elsewhere, --cfg-options load_from=… says so.
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
            student_module='logits',
            teacher_module='logits',
            head=dict(
                type='KDDistillationHead', loss=dict(type='KDLoss', tau=1.0, loss_weight=0.5)
            ),
        )
    ],
    scale_student_loss=dict(loss_cls=0.5),
)

load_from = 'work_dirs/abloss_pretrain_backbone_resnet50_resnet18_8xb32_in1k/epoch_20.pth'
