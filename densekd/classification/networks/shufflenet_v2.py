"""ShuffleNetV2: half of the channels pass by each block, and the halves are shuffled after it.

Paper: Ma, Zhang, Zheng, Sun: ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture
    Design. ECCV 2018. https://arxiv.org/abs/1807.11164
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from densekd.classification.arguments import check_factor
from densekd.classification.networks.layers import ConvNorm, check_stem, initialise
from densekd.core.taps import Tap
from densekd.errors import ConfigError

# Channels of three stages and of the last convolution, by the factor: the paper's table 5.
WIDTHS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
BLOCKS = (4, 8, 4)


class ShuffleBlock(nn.Module):
    """A block: one half is filtered; where the size changes, both are."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        entering = inputs if stride == 2 else half
        self.near: nn.Module | None = None
        if stride == 2:
            self.near = nn.Sequential(
                ConvNorm(inputs, inputs, 3, 2, groups=inputs),
                ConvNorm(inputs, half, act=nn.ReLU(inplace=True)),
            )
        self.far = nn.Sequential(
            ConvNorm(entering, half, act=nn.ReLU(inplace=True)),
            ConvNorm(half, half, 3, stride, groups=half),
            ConvNorm(half, half, act=nn.ReLU(inplace=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns both halves, shuffled."""
        if self.near is None:
            passing, filtered = x.chunk(2, 1)
            both = torch.cat([passing, self.far(filtered)], 1)
        else:
            both = torch.cat([self.near(x), self.far(x)], 1)
        n, c, h, w = both.shape
        return both.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2.

    Args:
        widen_factor: 0.5, 1.0, 1.5 or 2.0.
        stem: `'imagenet'`, strides up to 32, or `'cifar'`, up to 8.

    Raises:
        ConfigError: If there is no such factor or stem.

    Example:
        >>> import torch
        >>> [tuple(x.shape) for x in ShuffleNetV2(0.5)(torch.zeros(1, 3, 64, 64))]
        [(1, 24, 16, 16), (1, 48, 8, 8), (1, 96, 4, 4), (1, 1024, 2, 2)]
    """

    def __init__(self, widen_factor: float = 1.0, stem: str = 'imagenet') -> None:
        super().__init__()
        check_stem(stem, 'ShuffleNetV2')
        check_factor('ShuffleNetV2', widen_factor)
        if widen_factor not in WIDTHS:
            has = ', '.join(map(str, WIDTHS))
            raise ConfigError(
                f'ShuffleNetV2: there is no widen_factor {widen_factor}. It has: {has}.'
            )
        small = stem == 'cifar'
        *widths, self.out_channels = WIDTHS[widen_factor]
        inputs = 24
        self.conv1 = ConvNorm(3, inputs, 3, 1 if small else 2, act=nn.ReLU(inplace=True))
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        for number, (outputs, count) in enumerate(zip(widths, BLOCKS, strict=True), start=2):
            blocks = []
            for i in range(count):
                blocks.append(ShuffleBlock(inputs, outputs, 1 if i else 2))
                inputs = outputs
            self.add_module(f'stage{number}', nn.Sequential(*blocks))
        self.last = ConvNorm(inputs, self.out_channels, act=nn.ReLU(inplace=True))
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the stem, the ends of two stages, and what is pooled."""
        stem = self.maxpool(self.conv1(x))
        third = self.stage2(stem)
        fourth = self.stage3(third)
        return stem, third, fourth, self.last(self.stage4(fourth))

    def stage_taps(self) -> dict[str, Tap]:
        """Returns the stem and where the size is about to change.

        A stage ends with halves of which only one was rectified just now, so that only the last
        convolution has a place before its ReLU.
        """
        ends = {'c2': 'maxpool', 'c3': 'stage2', 'c4': 'stage3'}
        taps = {name: Tap(path, copy=False) for name, path in ends.items()}
        taps['c5'] = Tap('last', copy=False, rectified=True)
        taps['c5.pre_relu'] = Tap('last.bn', norm='last.bn')
        return taps
