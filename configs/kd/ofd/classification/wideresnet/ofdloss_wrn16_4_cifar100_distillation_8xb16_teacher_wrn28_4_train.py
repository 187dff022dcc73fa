"""OFD on CIFAR-100: WRN-16-4 learns from WRN-28-4, ahead of the ReLUs.

Commands: densekd train configs/classification/wrn28_4_200e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/ofd/classification/wideresnet/ofdloss_wrn16_4_cifar100_distillation_8xb16_teacher_wrn28_4_train.py
Expected: 79.25 top-1, published by GML (student alone 78.12, teacher 79.20).
          Not yet run by us.

Its own config was not published. Here taps and weights are the authors': the norms that follow the
stages, 1e-3 for the last and half of the next for each one before. A batch is 128 images in one
process; on 8 GPUs, as its name has it: sh tools/dist_train.sh CONFIG 8 --cfg-options
train_dataloader.batch_size=16

The authors' own figure for this pair, with batches of 128 in one process, is 79.11 from 77.28.
"""

_base_ = ['../../../../classification/wrn16_4_200e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/wrn28_4_200e_cifar100.py',
        checkpoint='work_dirs/wrn28_4_200e_cifar100/epoch_200.pth',
    ),
    preset='ofd',
)
