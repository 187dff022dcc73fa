"""Registers the wrappers with mmengine; imported by the registry when it is first asked."""

from densekd.engine.registry import MODELS
from densekd.wrappers.detector import DistillDetector
from densekd.wrappers.segmentor import DistillSegmentor

MODELS.register_module(module=DistillDetector)
MODELS.register_module(module=DistillSegmentor)
