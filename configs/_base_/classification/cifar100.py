"""CIFAR-100: its own archive in data/cifar100, as it is fetched or unpacked.

A part of the training set: --cfg-options train_dataloader.dataset.fraction=0.25
"""

data_root = 'data/cifar100/'
model = dict(
    type='densekd.ImageClassifier',
    data_preprocessor=dict(
        type='densekd.ImagePreprocessor',
        mean=[129.3105, 124.0575, 112.4295],
        std=[68.1615, 65.382, 70.431],
    ),
    head=dict(type='densekd.LinearHead', num_classes=100),
)
train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='densekd.CIFAR100',
        data_root=data_root,
        split='train',
        fraction=1.0,
        pipeline=[
            dict(type='densekd.PadCrop', size=32, padding=4),
            dict(type='densekd.Flip', prob=0.5),
            dict(type='densekd.PackImage'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='densekd.CIFAR100',
        data_root=data_root,
        split='test',
        test_mode=True,
        pipeline=[dict(type='densekd.PackImage')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='densekd.Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
