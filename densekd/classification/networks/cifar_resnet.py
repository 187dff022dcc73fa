"""ResNets for 32x32 images: three stages of 16, 32 and 64 channels.

Paper: He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition. CVPR 2016.
    https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from densekd.classification.arguments import check_whole
from densekd.classification.networks.layers import initialise, run_stages
from densekd.errors import ConfigError, did_you_mean

SHORTCUTS = ('projection', 'pad')


class PaddedShortcut(nn.Module):
    """Every other pixel, with channels of zeros before and after: a shortcut without weights."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        """Returns the smaller, deeper map."""
        before = self.more // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.more - before))


class BasicBlock(nn.Module):
    """Two convolutions with their norms, and a shortcut; a ReLU after the first and the sum.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Stride of the first convolution.
        shortcut: What the shortcut is where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
            padded = PaddedShortcut(outputs - inputs)
            self.downsample = projection if shortcut == 'projection' else padded

    def forward(self, x: Tensor) -> Tensor:
        """Returns the rectified sum."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class CifarResNet(nn.Module):
    """A ResNet of 6n+2 layers.

    Args:
        depth: 20, 32, 44, 56, 110, or any 6n+2.
        base_channels: Channels of the first stage; each further one has twice as many.
        shortcut: Where the shape changes: `'projection'` is a convolution and a norm, as in most
            public code and tables (0.27, 0.47, 0.66, 0.86 and 1.73 million parameters with ten
            classes); `'pad'` is the paper's own for CIFAR, without weights (0.27, 0.46, 0.66, 0.85
            and 1.73).

    Raises:
        ConfigError: If the depth is no 6n+2, there is no channel, or no such shortcut.

    Example:
        >>> import torch
        >>> [tuple(x.shape) for x in CifarResNet(8)(torch.zeros(1, 3, 32, 32))]
        [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]
    """

    def __init__(
        self, depth: int = 20, base_channels: int = 16, shortcut: str = 'projection'
    ) -> None:
        super().__init__()
        check_whole('CifarResNet: depth', depth, 8)
        check_whole('CifarResNet: base_channels', base_channels, 1)
        if depth % 6 != 2:
            raise ConfigError(f'CifarResNet: depth is 6n+2, as 20, 32, 44, 56 or 110, not {depth}.')
        if shortcut not in SHORTCUTS:
            hint = did_you_mean(shortcut, SHORTCUTS)
            raise ConfigError(f'CifarResNet: there is no shortcut {shortcut!r}. {hint}')
        self.conv1 = nn.Conv2d(3, base_channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.ReLU(inplace=True)
        inputs = base_channels
        for number in range(3):
            outputs = base_channels * 2**number
            blocks = []
            for i in range((depth - 2) // 6):
                stride = 2 if number and not i else 1
                blocks.append(BasicBlock(inputs, outputs, stride, shortcut))
                inputs = outputs
            self.add_module(f'layer{number + 1}', nn.Sequential(*blocks))
        self.out_channels = inputs
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the outputs of the three stages, at strides 1, 2 and 4."""
        x = self.relu(self.bn1(self.conv1(x)))
        return run_stages(x, [self.layer1, self.layer2, self.layer3])  # type: ignore[list-item]
