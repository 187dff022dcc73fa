"""densekd: distillation for dense prediction.

A distiller taps one place in the student and one in the teacher, sends each through a connector,
and compares them with a loss. Importing this package needs torch alone, and so does a training loop
of one's own with `Distiller` and `Distillers`.
"""

from typing import Any

__version__ = '0.1.0'

# A config says type='densekd.DistillDetector'; what that needs is imported when it is asked for.
_LAZY = {
    'DistillClassifier': 'densekd.wrappers.classifier',
    'DistillDetector': 'densekd.wrappers.detector',
    'DistillSegmentor': 'densekd.wrappers.segmentor',
    'Distiller': 'densekd.core.distiller',
    'Distillers': 'densekd.core.loop',
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
