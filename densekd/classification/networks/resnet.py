"""ResNet-18 to 152: mmdet's own backbone, so that checkpoints of the toolboxes fit.

Paper: He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016.
    https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from typing import Any

from torch import nn

from densekd.classification.arguments import check_whole
from densekd.classification.networks.layers import check_stem
from densekd.errors import ConfigError

DEPTHS = (18, 34, 50, 101, 152)


def resnet(
    depth: int = 50,
    stem: str = 'imagenet',
    base_channels: int = 64,
    frozen_stages: int = -1,
    norm_eval: bool = False,
    zero_init_residual: bool = True,
    init_cfg: Any = None,
) -> Any:
    """Returns mmdet's `ResNet` with the settings of a classifier.

    Args:
        depth: 18, 34, 50, 101 or 152.
        stem: `'imagenet'`: a 7x7 convolution and a pooling, strides 4 to 32; `'cifar'`: a 3x3
            convolution alone, strides 1 to 8.
        base_channels: Channels of the stem.
        frozen_stages: Stages that do not train; -1 for none.
        norm_eval: Whether norms keep their running statistics.
        zero_init_residual: Whether the last norm of each block starts at 0.
        init_cfg: How the weights start, as in mmengine.

    Raises:
        ConfigError: If there is no such depth or stem, or no channel.
    """
    check_stem(stem, 'ResNet')
    check_whole('ResNet: depth', depth, min(DEPTHS))
    check_whole('ResNet: base_channels', base_channels, 1)
    if depth not in DEPTHS:
        has = ', '.join(map(str, DEPTHS))
        raise ConfigError(f'ResNet: there is no depth {depth}. It has: {has}.')
    try:
        from mmdet.models.backbones import ResNet
    except ImportError as error:
        raise ConfigError(
            f"ResNet: it is mmdet's, which can't be imported ({error}). Run: make env, or take "
            "type='densekd.CifarResNet'."
        ) from error

    network = ResNet(
        depth=depth,
        base_channels=base_channels,
        stem_channels=base_channels,
        frozen_stages=frozen_stages,
        norm_cfg={'type': 'BN', 'requires_grad': True},
        norm_eval=norm_eval,
        style='pytorch',
        zero_init_residual=zero_init_residual,
        init_cfg=init_cfg,
    )
    if stem == 'cifar':
        network.conv1 = nn.Conv2d(3, base_channels, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
    network.out_channels = network.feat_dim
    return network
