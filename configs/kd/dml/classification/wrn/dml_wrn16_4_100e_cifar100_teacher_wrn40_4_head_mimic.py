"""Mutual learning on CIFAR-100: WRN-16-4 and WRN-40-4 learn together, from scratch.

Command: densekd train CONFIG
    with CONFIG =
    configs/kd/dml/classification/wrn/dml_wrn16_4_100e_cifar100_teacher_wrn40_4_head_mimic.py
Expected: no figure is published; the table of Knowledge_distillation_via_TF2.0 has an empty row for
          it (student alone 76.25, teacher 78.59).
          Not yet run by us.

The pair is that of an earlier version of its page, the schedule that of its script. There the
temperature is 5, without its square as a factor, and labels and peer count half each. Here both
weigh 1, at temperature 1, as in the paper. Each network is scored after every epoch, the larger one
as `wide/accuracy/top1`; the checkpoint is that of the small one.
"""

_base_ = ['../../../../classification/wrn16_4_100e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    peers=[
        dict(
            name='wide',
            model='{{ fileDirname }}/../../../../classification/wrn40_4_100e_cifar100.py',
        )
    ],
    preset='dml',
)
