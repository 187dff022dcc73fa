"""OFD on CIFAR-100: ResNet-18 learns from ResNet-50, ahead of the ReLUs.

Commands: densekd train configs/classification/resnet50_200e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/ofd/classification/resnet/ofdloss_res18_cifar100_distillation_8xb16_teacher_res50_train.py
Expected: 80.02 top-1, published by GML (student alone 78.89, teacher 79.98).
          Not yet run by us.

Its own config was not published. Here taps and weights are the authors': the sums ahead of the last
ReLUs of the stages, 1e-3 for the last and half of the next for each one before. A batch is 128
images in one process; on 8 GPUs, as its name has it: sh tools/dist_train.sh CONFIG 8 --cfg-options
train_dataloader.batch_size=16
"""

_base_ = ['../../../../classification/resnet18_200e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/resnet50_200e_cifar100.py',
        checkpoint='work_dirs/resnet50_200e_cifar100/epoch_200.pth',
    ),
    preset='ofd',
)
