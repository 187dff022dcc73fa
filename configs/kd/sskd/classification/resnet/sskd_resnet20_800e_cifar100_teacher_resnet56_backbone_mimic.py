"""Stage by stage on CIFAR-100: ResNet-20 by ResNet-56.

Commands: densekd train configs/classification/resnet56_200e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/sskd/classification/resnet/sskd_resnet20_800e_cifar100_teacher_resnet56_backbone_mimic.py
Expected: no figure is published for this pair; alone the student has 67.86 top-1 and the teacher
          71.09, published by "Knowledge Distillation for Image Classification".
          Not yet run by us.

Each residual stage of the student in turn learns the map of the teacher's, with all that comes
before it as it was left; then the head learns the task on a backbone that rests. Each of the four
has 200 epochs, with the rate of the student's own schedule.
"""

_base_ = ['../../../../classification/resnet20_200e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/resnet56_200e_cifar100.py',
        checkpoint='work_dirs/resnet56_200e_cifar100/epoch_200.pth',
    ),
)

stages = [
    dict(
        name=tap,
        train=[*(f'backbone.{part}' for part in parts), 'distillers'],
        distillers=[
            dict(
                student_module=f'backbone.{tap}',
                teacher_module=f'backbone.{tap}',
                head=dict(
                    type='DistillationHead',
                    loss=dict(type='FitNetLoss'),
                    stu_connector=dict(type='ConvConnector', norm='BN', only_if_needed=True),
                    name=f'sskd_{tap}',
                ),
            )
        ],
        task_loss=False,
    )
    for tap, parts in (('c2', ('conv1', 'bn1', 'layer1')), ('c3', ('layer2',)), ('c4', ('layer3',)))
] + [dict(name='head', train=['head'], distillers=[])]
