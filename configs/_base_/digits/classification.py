"""Digits cut out of their scenes, as labelled images of 24x24 pixels: loading and evaluation.

The data is the folder of the detection configs; `densekd demo` writes it, or
`python -c "from densekd.datasets import make_digits; make_digits('data/digits')"`.
A part of the training set: --cfg-options train_dataloader.dataset.fraction=0.25
"""

_base_ = ['./runtime.py']

default_scope = 'mmengine'
data_root = 'data/digits/crops/'
classes = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
metainfo = dict(classes=classes)

model = dict(
    type='densekd.ImageClassifier',
    data_preprocessor=dict(
        type='densekd.ImagePreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        channels_last=True,  # a CPU convolves faster so
    ),
    head=dict(type='densekd.LinearHead', num_classes=10),
)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='densekd.ImageFolder',
        data_root=data_root,
        split='train',
        fraction=1.0,
        metainfo=metainfo,
        pipeline=[
            dict(type='densekd.LoadImage'),
            dict(type='densekd.ResizeEdge', size=24),
            dict(type='densekd.PadCrop', size=24, padding=2),
            dict(type='densekd.PackImage'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='densekd.ImageFolder',
        data_root=data_root,
        split='val',
        metainfo=metainfo,
        test_mode=True,
        pipeline=[
            dict(type='densekd.LoadImage'),
            dict(type='densekd.ResizeEdge', size=24),
            dict(type='densekd.CenterCrop', size=24),
            dict(type='densekd.PackImage'),
        ],
    ),
)
test_dataloader = dict(
    batch_size=256,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='densekd.ImageFolder',
        data_root=data_root,
        split='test',
        metainfo=metainfo,
        test_mode=True,
        pipeline=[
            dict(type='densekd.LoadImage'),
            dict(type='densekd.ResizeEdge', size=24),
            dict(type='densekd.CenterCrop', size=24),
            dict(type='densekd.PackImage'),
        ],
    ),
)
val_evaluator = dict(type='densekd.Accuracy', topk=(1, 5))
test_evaluator = dict(type='densekd.Accuracy', topk=(1, 5))

default_hooks = dict(checkpoint=dict(save_best='accuracy/top1', rule='greater'))
custom_hooks = [dict(type='densekd.BestAndLastHook')]
