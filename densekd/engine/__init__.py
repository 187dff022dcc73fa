"""Running on mmengine: configs, training, resuming, stages, and the proof before the first step."""

from densekd.wrappers.config import load_config

__all__ = ['load_config']
