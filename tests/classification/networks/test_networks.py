"""Networks have the published numbers of parameters, and stages at the strides they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from densekd.classification.networks import (
    CifarResNet,
    MobileNetV2,
    ShuffleNetV2,
    WideResNet,
    resnet,
)
from densekd.errors import ConfigError


def parameters(backbone: Any, classes: int) -> int:
    """Counts a classifier's: the backbone's and those of a linear layer."""
    own = sum(p.numel() for p in backbone.parameters())
    return own + (backbone.out_channels + 1) * classes


# In millions, as a published table has them, for CIFAR-10 and for CIFAR-100.
TABLE = {20: (0.27, 0.28), 32: (0.47, 0.47), 44: (0.66, 0.67), 56: (0.86, 0.86), 110: (1.73, 1.74)}


@pytest.mark.parametrize('depth', TABLE)
def test_cifar_resnets_have_the_parameters_of_the_table(depth: int) -> None:
    network = CifarResNet(depth)
    found = tuple(round(parameters(network, k) / 1e6, 2) for k in (10, 100))
    assert found == TABLE[depth]


# He et al., table 6: no weights in the shortcuts.
@pytest.mark.parametrize(
    ('depth', 'millions'), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_the_papers_shortcut_has_no_weights(depth: int, millions: float) -> None:
    network = CifarResNet(depth, shortcut='pad')
    assert round(parameters(network, 10) / 1e6, 2) == pytest.approx(millions, abs=0.03 * millions)
    assert not any('downsample' in name for name, _ in network.named_parameters())
    projected = CifarResNet(depth)
    more = sum(p.numel() for n, p in projected.named_parameters() if 'downsample' in n)
    assert parameters(projected, 10) - parameters(network, 10) == more == 16 * 32 + 32 * 64 + 192


# WRN-28-10 is 36.5 million in the paper; the others in the papers of AT and OFD.
@pytest.mark.parametrize(
    ('depth', 'factor', 'millions'),
    [(16, 2, 0.7), (16, 4, 2.7), (28, 4, 5.8), (40, 2, 2.2), (40, 1, 0.6), (28, 10, 36.5)],
)
def test_wide_resnets(depth: int, factor: int, millions: float) -> None:
    assert round(parameters(WideResNet(depth, factor), 10) / 1e6, 1) == millions


EXACT = {
    'resnet18': (lambda: resnet(18), 11_689_512),
    'resnet34': (lambda: resnet(34), 21_797_672),
    'resnet50': (lambda: resnet(50), 25_557_032),
    'resnet101': (lambda: resnet(101), 44_549_160),
    'resnet152': (lambda: resnet(152), 60_192_808),
    'mobilenet_v2': (MobileNetV2, 3_504_872),
    'shufflenet_v2 0.5': (lambda: ShuffleNetV2(0.5), 1_366_792),
    'shufflenet_v2 1.0': (lambda: ShuffleNetV2(1.0), 2_278_604),
    'shufflenet_v2 1.5': (lambda: ShuffleNetV2(1.5), 3_503_624),
    'shufflenet_v2 2.0': (lambda: ShuffleNetV2(2.0), 7_393_996),
}


@pytest.mark.parametrize('name', EXACT)
def test_imagenet_networks_have_the_parameters_of_the_public_ones(name: str) -> None:
    make, count = EXACT[name]
    with torch.device('meta') if 'resnet' not in name else torch.device('cpu'):
        network = make()
    assert parameters(network, 1000) == count


SMALL = {
    'cifar_resnet': (lambda: CifarResNet(8), [1, 2, 4]),
    'pad': (lambda: CifarResNet(8, shortcut='pad'), [1, 2, 4]),
    'wrn': (lambda: WideResNet(10, 2, drop_rate=0.3), [1, 2, 4]),
    'resnet': (lambda: resnet(18, 'cifar', 8), [1, 2, 4, 8]),
    'resnet imagenet': (lambda: resnet(18, 'imagenet', 8), [4, 8, 16, 32]),
    'mobilenet': (lambda: MobileNetV2(0.5, 'cifar'), [1, 2, 4, 8]),
    'mobilenet imagenet': (lambda: MobileNetV2(0.5), [4, 8, 16, 32]),
    'shufflenet': (lambda: ShuffleNetV2(0.5, 'cifar'), [1, 2, 4, 8]),
    'shufflenet imagenet': (lambda: ShuffleNetV2(0.5), [4, 8, 16, 32]),
}


@pytest.mark.parametrize('name', SMALL)
def test_stages_have_their_strides_and_every_parameter_learns(name: str) -> None:
    make, strides = SMALL[name]
    network = make()
    network.train()
    outputs = network(torch.randn(2, 3, 64, 96))
    assert [64 / x.shape[-2] for x in outputs] == strides
    assert [96 / x.shape[-1] for x in outputs] == strides
    assert outputs[-1].shape[1] == network.out_channels
    outputs[-1].square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_a_padded_shortcut_keeps_every_other_pixel_in_the_middle_channels() -> None:
    block = CifarResNet(8, shortcut='pad').layer2[0]
    x = torch.randn(1, 16, 4, 4)
    short = block.downsample(x)
    assert torch.equal(short[:, 8:24], x[:, :, ::2, ::2])
    assert not short[:, :8].any() and not short[:, 24:].any()


def test_a_wide_shortcut_takes_the_rectified_input() -> None:
    """As the authors' code: where the shape changes, norm and ReLU stand before both branches."""
    block = WideResNet(10, 2).layer2[0].eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 32, 8, 8)
    assert torch.allclose(block(x), block.shortcut(block.bn1(x).relu()))
    last = WideResNet(16, 2).layer2[1].eval()
    nn.init.zeros_(last.conv2.weight)
    x = torch.randn(1, 64, 8, 8)
    assert torch.equal(last(x), x)


def test_half_of_the_channels_passes_a_shuffle_block_untouched() -> None:
    block = ShuffleNetV2(0.5).stage2[1].eval()
    x = torch.randn(1, 48, 4, 4)
    assert torch.equal(block(x)[:, ::2], x[:, :24])


WRONG: list[tuple[Any, str]] = [
    (lambda: CifarResNet(21), 'CifarResNet: depth is 6n.2, as 20, 32, 44, 56 or 110, not 21'),
    (lambda: CifarResNet(20, shortcut='projektion'), "Did you mean 'projection'"),
    (lambda: WideResNet(20), 'WideResNet: depth is 6n.4, as 16, 28 or 40, not 20'),
    (lambda: resnet(20), 'ResNet: there is no depth 20. It has: 18, 34, 50, 101, 152'),
    (lambda: resnet(18, 'cifar10'), "ResNet: there is no stem 'cifar10'. Did you mean 'cifar'"),
    (lambda: MobileNetV2(stem='small'), "MobileNetV2: there is no stem 'small'"),
    (lambda: ShuffleNetV2(0.7), 'ShuffleNetV2: there is no widen_factor 0.7. It has: 0.5, 1.0'),
    *(
        (lambda make=make, value=value: make(value), f'{name}: depth is a whole number from')
        for name, make in (
            ('CifarResNet', CifarResNet),
            ('WideResNet', WideResNet),
            ('ResNet', resnet),
        )
        for value in (True, '20', 18.0, None, -4, [18])
    ),
    *(
        (
            lambda make=make, value=value: make(widen_factor=value),
            f'{make.__name__}: widen_factor is a number above 0, not ',
        )
        for make in (WideResNet, MobileNetV2, ShuffleNetV2)
        for value in (0, -1.0, '1.0', True, None, [1.0], float('nan'), float('inf'))
    ),
    (lambda: WideResNet(16, 0.01), 'WideResNet: a widen_factor of 0.01 leaves none of 16 channels'),
    *(
        (
            lambda make=make, value=value: make(base_channels=value),
            f'{name}: base_channels is a whole number from 1 on, not ',
        )
        for name, make in (('CifarResNet', CifarResNet), ('ResNet', resnet))
        for value in (0, -16, 16.0, '16', True, None)
    ),
]


@pytest.mark.parametrize(('make', 'sentence'), WRONG)
def test_wrong_arguments_are_a_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()
