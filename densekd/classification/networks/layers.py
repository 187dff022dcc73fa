"""What several families share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from densekd.errors import ConfigError, did_you_mean

STEMS = ('imagenet', 'cifar')


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size at stride 1, its norm, and a ReLU if there is one.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel_size: Height and width of the kernel.
        stride: Stride.
        groups: Groups of channels.
        act: The module behind the norm, or None.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(
            inputs, outputs, kernel_size, stride, padding, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)
        if act is not None:
            self.act = act


def check_stem(stem: str, who: str) -> None:
    """Refuses a stem that there is not.

    Raises:
        ConfigError: With those that there are.
    """
    if stem not in STEMS:
        raise ConfigError(f'{who}: there is no stem {stem!r}. {did_you_mean(stem, STEMS)}')


def initialise(model: nn.Module) -> None:
    """Draws the weights: He et al.'s normal for convolutions by what leaves them, norms 1 and 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def run_stages(x: Tensor, stages: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """Returns the output of each of a chain of modules."""
    outputs = []
    for stage in stages:
        x = stage(x)
        outputs.append(x)
    return tuple(outputs)
