"""Wide ResNets for 32x32 images: norms and ReLUs stand before the convolutions.

Paper: Zagoruyko, Komodakis: Wide Residual Networks. BMVC 2016. https://arxiv.org/abs/1605.07146
"""

from __future__ import annotations

from torch import Tensor, nn

from densekd.classification.arguments import check_factor, check_whole
from densekd.classification.networks.layers import initialise
from densekd.core.taps import Tap
from densekd.errors import ConfigError


class PreActBlock(nn.Module):
    """Norm, ReLU, convolution, twice, and a shortcut.

    Where the shape changes, the shortcut is a convolution of the rectified input, without a norm.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Stride of the first convolution.
        drop_rate: Share of what is dropped between the convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(drop_rate) if drop_rate else None
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum."""
        rectified = self.relu(self.bn1(x))
        out = self.relu(self.bn2(self.conv1(rectified)))
        if self.drop is not None:
            out = self.drop(out)
        return self.conv2(out) + (x if self.shortcut is None else self.shortcut(rectified))


class WideResNet(nn.Module):
    """A wide ResNet of 6n+4 layers: WRN-16-2 is depth 16, widen_factor 2.

    Args:
        depth: 16, 28, 40, or any 6n+4.
        widen_factor: How much wider than 16, 32 and 64 channels the stages are.
        drop_rate: Share of what is dropped in each block.

    Raises:
        ConfigError: If the depth is no 6n+4, or the factor leaves no channel.

    Example:
        >>> import torch
        >>> [tuple(x.shape) for x in WideResNet(10, 2)(torch.zeros(1, 3, 32, 32))]
        [(1, 32, 32, 32), (1, 64, 16, 16), (1, 128, 8, 8)]
    """

    def __init__(self, depth: int = 16, widen_factor: float = 2, drop_rate: float = 0.0) -> None:
        super().__init__()
        check_whole('WideResNet: depth', depth, 10)
        check_factor('WideResNet', widen_factor)
        if depth % 6 != 4:
            raise ConfigError(f'WideResNet: depth is 6n+4, as 16, 28 or 40, not {depth}.')
        inputs = 16
        if not round(inputs * widen_factor):
            raise ConfigError(
                f'WideResNet: a widen_factor of {widen_factor} leaves none of {inputs} channels.'
            )
        self.conv1 = nn.Conv2d(3, inputs, 3, 1, 1, bias=False)
        for number in range(3):
            outputs = round(16 * 2**number * widen_factor)
            blocks = []
            for i in range((depth - 4) // 6):
                stride = 2 if number and not i else 1
                blocks.append(PreActBlock(inputs, outputs, stride, drop_rate))
                inputs = outputs
            self.add_module(f'layer{number + 1}', nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.out_channels = inputs
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the sums after two stages, and after the third what is pooled: rectified."""
        first = self.layer1(self.conv1(x))
        second = self.layer2(first)
        return first, second, self.relu(self.bn(self.layer3(second)))

    def stage_taps(self) -> dict[str, Tap]:
        """Returns the sums after each stage, and what the next norm makes of them.

        The norm of a stage's last sum stands in what follows: in the next stage's first block, and
        behind the last stage by itself.
        """
        norms = ('layer2.0.bn1', 'layer3.0.bn1', 'bn')
        taps = {}
        for number, norm in enumerate(norms, start=2):
            taps[f'c{number}'] = Tap(f'layer{number - 1}', copy=False)
            taps[f'c{number}.pre_relu'] = Tap(norm, norm=norm)
        return taps
