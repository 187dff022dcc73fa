"""Registers the wrappers and the classifiers; imported by the registry when it is first asked."""

from densekd.classification import networks
from densekd.classification.classifier import ImageClassifier
from densekd.classification.heads import GlobalPool, LinearHead
from densekd.classification.preprocessor import ImagePreprocessor
from densekd.engine.registry import MODELS
from densekd.wrappers.classifier import DistillClassifier
from densekd.wrappers.detector import DistillDetector
from densekd.wrappers.segmentor import DistillSegmentor

for wrapper in (DistillClassifier, DistillDetector, DistillSegmentor):
    MODELS.register_module(module=wrapper)
for part in (
    ImageClassifier,
    ImagePreprocessor,
    GlobalPool,
    LinearHead,
    networks.CifarResNet,
    networks.WideResNet,
    networks.MobileNetV2,
    networks.ShuffleNetV2,
):
    MODELS.register_module(module=part)
MODELS.register_module(name='ResNet', module=networks.resnet)
