"""Your own images and masks: DeepLabV3+ R-18 learns from R-101. Copy it, change five lines.

Commands, with this file and the next as COPY and COPY_teacher:
    densekd check COPY            proves the wiring, before there is a teacher
    densekd train COPY_teacher    the teacher, unless you have one
    densekd train COPY
On several GPUs (8 images each), with --auto-scale-lr.
"""

_base_ = ['mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py']

# 1. Your classes. The pixels of a mask are their numbers, from 0 on; 255 is left out of training.
classes = ('background', 'cat', 'dog')
# 2. The folder of your data; what follows lies in it.
data_root = 'data/my_data/'
# 3. and 4. The folders of images and of masks, to train on and to score on. A mask has the name of
# its image, and is as large; folders within folders are found too.
endings = dict(img_suffix='.jpg', seg_map_suffix='.png')
train_data = dict(data_prefix=dict(img_path='images/train', seg_map_path='masks/train'))
val_data = dict(data_prefix=dict(img_path='images/val', seg_map_path='masks/val'))
# 5. The trained teacher, such as 'work_dirs/own_masks_teacher/iter_40000.pth'.
teacher_checkpoint = None

# From here on nothing needs to be changed. A preset is a method: `densekd methods` lists them.
crop_size = (512, 512)
_base_.model.decode_head.num_classes = len(classes)
_base_.model.auxiliary_head.num_classes = len(classes)
_base_.model.data_preprocessor.size = crop_size
model = dict(
    _delete_=True,
    type='densekd.DistillSegmentor',
    student=_base_.model,
    teacher=dict(
        model=dict(
            _base_.model,
            pretrained='open-mmlab://resnet101_v1c',
            backbone=dict(_base_.model.backbone, depth=101),
            decode_head=dict(
                _base_.model.decode_head,
                in_channels=2048,
                channels=512,
                c1_in_channels=256,
                c1_channels=48,
            ),
            auxiliary_head=dict(_base_.model.auxiliary_head, in_channels=1024, channels=256),
        ),
        checkpoint=teacher_checkpoint,
    ),
    preset='cwd',
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
data = dict(type='BaseSegDataset', metainfo=dict(classes=classes), data_root=data_root, **endings)
train_dataloader = dict(
    batch_size=8, dataset=dict(_delete_=True, **data, **train_data, pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(_delete_=True, **data, **val_data, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(_delete_=True, **data, **val_data, pipeline=test_pipeline))

max_iters = 40000
train_cfg = dict(max_iters=max_iters, val_interval=4000)
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=max_iters, by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=4000))
auto_scale_lr = dict(enable=False, base_batch_size=8)
