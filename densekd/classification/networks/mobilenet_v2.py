"""MobileNetV2: thin stages without a ReLU at their ends, wide layers of depth-wise kernels between.

Paper: Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear
    Bottlenecks. CVPR 2018. https://arxiv.org/abs/1801.04381
"""

from __future__ import annotations

from torch import Tensor, nn

from densekd.classification.arguments import check_factor
from densekd.classification.networks.layers import ConvNorm, check_stem, initialise
from densekd.core.taps import Tap

# Expansion, channels, blocks, stride of the first: the paper's table 2.
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


def round_to_eight(channels: float) -> int:
    """Returns the nearest multiple of 8 that is less than a tenth below.

    Example:
        >>> [round_to_eight(c) for c in (24, 11.2, 44.8)]
        [24, 16, 48]
    """
    near = max(8, int(channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8


class InvertedResidual(nn.Module):
    """Widened, filtered channel by channel, made thin again; added where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNorm(inputs, wide, act=nn.ReLU6(inplace=True)))
        layers += [
            ConvNorm(wide, wide, 3, stride, groups=wide, act=nn.ReLU6(inplace=True)),
            ConvNorm(wide, outputs),
        ]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, not rectified."""
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileNetV2(nn.Module):
    """MobileNetV2.

    Args:
        widen_factor: Factor on the channels of every stage.
        stem: `'imagenet'`, strides up to 32, or `'cifar'`, up to 8.

    Raises:
        ConfigError: If there is no such stem, or the factor is no number above 0.

    Example:
        >>> import torch
        >>> [tuple(x.shape) for x in MobileNetV2()(torch.zeros(1, 3, 64, 64))]
        [(1, 24, 16, 16), (1, 32, 8, 8), (1, 96, 4, 4), (1, 1280, 2, 2)]
    """

    def __init__(self, widen_factor: float = 1.0, stem: str = 'imagenet') -> None:
        super().__init__()
        check_stem(stem, 'MobileNetV2')
        check_factor('MobileNetV2', widen_factor)
        small = stem == 'cifar'
        inputs = round_to_eight(32 * widen_factor)
        self.conv1 = ConvNorm(3, inputs, 3, 1 if small else 2, act=nn.ReLU6(inplace=True))
        for number, (expansion, channels, count, stride) in enumerate(STAGES, start=1):
            outputs = round_to_eight(channels * widen_factor)
            blocks = []
            for i in range(count):
                first = 1 if i or (small and number == 2) else stride
                blocks.append(InvertedResidual(inputs, outputs, first, expansion))
                inputs = outputs
            self.add_module(f'stage{number}', nn.Sequential(*blocks))
        self.out_channels = round_to_eight(1280 * max(1.0, widen_factor))
        self.last = ConvNorm(inputs, self.out_channels, act=nn.ReLU6(inplace=True))
        initialise(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns the ends of the stages before a change of size, and what is pooled."""
        outputs = []
        x = self.conv1(x)
        for number in range(1, len(STAGES) + 1):
            x = getattr(self, f'stage{number}')(x)
            if number in (2, 3, 5):
                outputs.append(x)
        return (*outputs, self.last(x))

    def stage_taps(self) -> dict[str, Tap]:
        """Returns where the size is about to change; only the last of these has a ReLU."""
        ends = {'c2': 'stage2', 'c3': 'stage3', 'c4': 'stage5'}
        taps = {name: Tap(path, copy=False) for name, path in ends.items()}
        taps['c5'] = Tap('last', copy=False, rectified=True)
        taps['c5.pre_relu'] = Tap('last.bn', norm='last.bn')
        return taps
