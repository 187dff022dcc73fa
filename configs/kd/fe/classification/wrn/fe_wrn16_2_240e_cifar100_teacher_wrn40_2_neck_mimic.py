"""FE on CIFAR-100: the teacher's neighbours stay near, WRN-16-2 by WRN-40-2.

Commands: densekd train configs/classification/wrn40_2_240e_cifar100.py
          densekd train CONFIG
    with CONFIG =
    configs/kd/fe/classification/wrn/fe_wrn16_2_240e_cifar100_teacher_wrn40_2_neck_mimic.py
Expected: no figure is published for this pair (student alone 73.26, teacher 75.61).
          Not yet run by us.

Student and teacher alone are RepDistiller's. The constants are not the authors', whose code is not
public.
"""

_base_ = ['../../../../classification/wrn16_2_240e_cifar100.py']

model = dict(
    _delete_=True,
    type='densekd.DistillClassifier',
    student=_base_.model,
    teacher=dict(
        model='{{ fileDirname }}/../../../../classification/wrn40_2_240e_cifar100.py',
        checkpoint='work_dirs/wrn40_2_240e_cifar100/epoch_240.pth',
    ),
    preset='fe',
)
