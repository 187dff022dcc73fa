"""CIFAR-100: its own archive in data/cifar100, as it is fetched or unpacked.

It is loaded and scored as CIFAR-10 is.
"""

_base_ = ['./cifar10.py']

data_root = 'data/cifar100/'
model = dict(
    data_preprocessor=dict(
        mean=[129.3105, 124.0575, 112.4295],
        std=[68.1615, 65.382, 70.431],
    ),
    head=dict(num_classes=100),
)
cifar100 = dict(dataset=dict(type='densekd.CIFAR100', data_root=data_root))
train_dataloader = cifar100
val_dataloader = cifar100
test_dataloader = cifar100
del cifar100
