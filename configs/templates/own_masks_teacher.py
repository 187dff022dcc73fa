"""The teacher of `own_masks.py`, trained by itself on the same data.

Command: densekd train COPY_teacher, see there.
"""

_base_ = ['own_masks.py']

model = dict(_delete_=True, **_base_.model.teacher.model)
