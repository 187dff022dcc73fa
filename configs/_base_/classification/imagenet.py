"""ImageNet in data/imagenet: train/<class>/*.JPEG and val/<class>/*.JPEG.

Where the validation images lie together, a list of files and labels says their classes:
--cfg-options val_dataloader.dataset.ann_file=meta/val.txt
"""

data_root = 'data/imagenet/'
model = dict(
    type='densekd.ImageClassifier',
    data_preprocessor=dict(
        type='densekd.ImagePreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
    ),
    head=dict(type='densekd.LinearHead', num_classes=1000),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='densekd.ImageFolder',
        data_root=data_root,
        split='train',
        fraction=1.0,
        pipeline=[
            dict(type='densekd.LoadImage'),
            dict(type='densekd.RandomResizedCrop', size=224),
            dict(type='densekd.Flip', prob=0.5),
            dict(type='densekd.PackImage'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='densekd.ImageFolder',
        data_root=data_root,
        split='val',
        test_mode=True,
        pipeline=[
            dict(type='densekd.LoadImage'),
            dict(type='densekd.ResizeEdge', size=256),
            dict(type='densekd.CenterCrop', size=224),
            dict(type='densekd.PackImage'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='densekd.Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
