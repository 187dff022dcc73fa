"""Soft logits on CIFAR-100: WRN-16-4 learns the class probabilities of WRN-40-4.

Commands: densekd train configs/classification/wrn40_4_100e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/kd/classification/wrn/kd_wrn16_4_100e_cifar100_teacher_wrn40_4_head_mimic.py
Expected: 76.57 top-1, published by Knowledge_distillation_via_TF2.0 (student alone 76.25, teacher
          78.59).
          Not yet run by us.

The pair is that of an earlier version of its page, the schedule that of its script. There the
temperature is 5, without its square as a factor, and labels and teacher count half each. Here it is
4; nine tenths of the loss are the teacher's, one tenth the labels'.
"""

_base_ = ['../../../../classification/wrn16_4_100e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/wrn40_4_100e_cifar100.py',
        checkpoint='work_dirs/wrn40_4_100e_cifar100/epoch_100.pth',
    ),
    preset='kd',
    scale_student_loss=dict(loss_cls=0.1),
)
