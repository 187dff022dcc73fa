"""Backbones of classifiers, one family a file. Each returns the outputs of its stages.

A backbone has `out_channels`, the channels of its last output. Where its stages are no
`layer1`, `layer2` … of residual blocks that end with a ReLU, it has `stage_taps()` too: the named
taps, with paths from the backbone on.
"""

from densekd.classification.networks.cifar_resnet import CifarResNet
from densekd.classification.networks.mobilenet_v2 import MobileNetV2
from densekd.classification.networks.resnet import resnet
from densekd.classification.networks.shufflenet_v2 import ShuffleNetV2
from densekd.classification.networks.wide_resnet import WideResNet

__all__ = ['CifarResNet', 'MobileNetV2', 'ShuffleNetV2', 'WideResNet', 'resnet']
