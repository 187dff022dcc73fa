"""OFD on CIFAR-10: WRN-16-2 learns from WRN-28-4, ahead of the ReLUs.

Commands: densekd train configs/classification/wrn28_4_200e_cifar10.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/ofd/classification/wideresnet/ofdloss_wrn16_2_cifar10_distillation_8xb16_teacher_wrn28_4_train.py
Expected: 95.23 top-1, published by GML (student alone 93.43, teacher 95.49).
          Not yet run by us.

Its own config was not published. Here taps and weights are the authors': the norms that follow the
stages, 1e-3 for the last and half of the next for each one before. A batch is 128 images in one
process; on 8 GPUs, as its name has it: sh tools/dist_train.sh CONFIG 8 --cfg-options
train_dataloader.batch_size=16
"""

_base_ = ['../../../../classification/wrn16_2_200e_cifar10.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/wrn28_4_200e_cifar10.py',
        checkpoint='work_dirs/wrn28_4_200e_cifar10/epoch_200.pth',
    ),
    preset='ofd',
)
