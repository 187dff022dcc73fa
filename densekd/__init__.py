"""densekd: distillation for dense prediction.

A distiller taps one place in the student and one in the teacher, sends each through a connector,
and compares them with a loss. Importing this package needs torch alone.
"""

__version__ = '0.1.0'
