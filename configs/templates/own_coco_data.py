"""Your own data in COCO's format: RetinaNet R-50 learns from R-101. Copy it, change five lines.

Commands, with this file and the next as COPY and COPY_teacher:
    densekd check COPY                            proves the wiring, before there is a teacher
    densekd train COPY_teacher --auto-scale-lr    the teacher, unless you have one
    densekd train COPY --auto-scale-lr
"""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']

# 1. Your classes, in the order of the file's categories; a single one needs its comma: ('cat',).
classes = ('cat', 'dog', 'bird')
# 2. The folder of your data; what follows lies in it.
data_root = 'data/my_data/'
# 3. and 4. The annotations and the images, to train on and to score on.
train_data = dict(ann_file='annotations/train.json', data_prefix=dict(img='train/'))
val_data = dict(ann_file='annotations/val.json', data_prefix=dict(img='val/'))
# 5. The trained teacher, such as 'work_dirs/own_coco_data_teacher/epoch_12.pth'.
teacher_checkpoint = None

# From here on nothing needs to be changed. A preset is a method: `densekd methods` lists them.
_base_.model.bbox_head.num_classes = len(classes)
model = dict(
    _delete_=True,
    type='densekd.DistillDetector',
    student=_base_.model,
    teacher=dict(
        model=dict(
            _base_.model,
            backbone=dict(
                _base_.model.backbone,
                depth=101,
                init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet101'),
            ),
        ),
        checkpoint=teacher_checkpoint,
    ),
    preset='pkd',
)

data = dict(metainfo=dict(classes=classes), data_root=data_root)
train_dataloader = dict(dataset=dict(**data, **train_data))
val_dataloader = dict(dataset=dict(**data, **val_data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + val_data['ann_file'])
test_evaluator = val_evaluator
