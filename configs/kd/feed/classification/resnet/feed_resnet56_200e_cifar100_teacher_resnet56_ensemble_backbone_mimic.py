"""Parallel FEED on CIFAR-100: ResNet-56 learns the last maps of two ResNet-56.

Commands: densekd train configs/classification/resnet56_200e_cifar100.py
          densekd train configs/classification/resnet56_200e_cifar100.py \
              --cfg-options randomness.seed=1 --work-dir work_dirs/resnet56_200e_cifar100_seed1
          densekd train CONFIG
    with CONFIG =
    configs/kd/feed/classification/resnet/feed_resnet56_200e_cifar100_teacher_resnet56_ensemble_backbone_mimic.py
Expected: no figure is published for this schedule; alone the network has 71.09 top-1, published by
          "Knowledge Distillation for Image Classification".
          Not yet run by us.

Each teacher has a translator of its own.
"""

_base_ = ['../../../../classification/resnet56_200e_cifar100.py']

resnet56 = '{{ fileDirname }}/../../../../classification/resnet56_200e_cifar100.py'
model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=[
        dict(name='a', model=resnet56, checkpoint='work_dirs/resnet56_200e_cifar100/epoch_200.pth'),
        dict(
            name='b',
            model=resnet56,
            checkpoint='work_dirs/resnet56_200e_cifar100_seed1/epoch_200.pth',
        ),
    ],
    preset='feed',
)
