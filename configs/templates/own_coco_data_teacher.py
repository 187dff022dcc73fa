"""The teacher of `own_coco_data.py`, trained by itself on the same data.

Command: densekd train COPY_teacher --auto-scale-lr, see there.
"""

_base_ = ['own_coco_data.py']

model = dict(_delete_=True, **_base_.model.teacher.model)
