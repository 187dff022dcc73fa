"""Tokens brought back to maps: where each one goes, and those that are no map."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from densekd.core.taps import Place, Tap, Taps
from densekd.core.tokens import tokens_to_map
from densekd.core.trace import trace
from densekd.errors import TapError


class Embedding(nn.Module):
    """Cuts an image into patches, one token each, as transformers do; the edge is padded."""

    def __init__(self, stride: int, more: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, stride + 1, stride, (stride + 1) // 2)
        self.tokens = nn.Identity()
        self.more = more

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cells = self.conv(x)
        tokens = cells.flatten(2).transpose(1, 2)
        self.tokens(torch.cat([tokens[:, : self.more], tokens], 1))
        return cells


@pytest.mark.parametrize('stride', [2, 4, 8, 16])
@pytest.mark.parametrize('size', [(64, 96), (48, 80), (65, 97), (50, 70)])
def test_each_token_goes_where_its_cell_was(stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = Embedding(stride)
    taps = {'tokens': Tap('tokens', tokens=True), 'map': Tap('conv')}
    with Taps(net, taps, student=True, size=size) as reading:
        net(torch.randn(2, 3, *size))
    assert torch.equal(reading['tokens'], reading['map'])
    assert reading['tokens'].requires_grad


def test_patches_that_leave_out_the_edge() -> None:
    cells = torch.randn(1, 3, 50 // 16, 90 // 16)
    assert torch.equal(tokens_to_map(cells.flatten(2).transpose(1, 2), (50, 90)), cells)


def test_a_traced_place_is_a_map() -> None:
    place = trace(Embedding(8), {'a': Tap('tokens', tokens=True)}, lambda m, x: m(x))['a']
    assert place.shapes == ((1, 5, 32, 48),)
    assert place.strides == ((8, 8),) and place.channels == 5


def test_tokens_have_no_channels_unless_they_are_read_as_a_map() -> None:
    place = trace(Embedding(8), {'a': Tap('tokens')}, lambda m, x: m(x))['a']
    assert place.strides == (None,)
    with pytest.raises(
        TapError,
        match=r"tap 'tokens': it gives 1536x5 an image, .* dict\(path='tokens', tokens=True\)",
    ):
        _ = place.channels
    assert Place(Tap('a'), ((4, 7),), (None,)).channels == 7


def test_a_class_token_is_refused() -> None:
    net = Embedding(8, more=1)
    with Taps(net, {'a': Tap('tokens', tokens=True)}, size=(64, 96)) as reading:
        net(torch.randn(1, 3, 64, 96))
    with pytest.raises(
        TapError, match="tap 'tokens': 97 tokens are the cells of no map of a 64x96"
    ):
        _ = reading['a']


def test_what_is_a_map_already_is_refused() -> None:
    with pytest.raises(TapError, match=r"tap 'x': tokens=True is for .* gives \(1, 2, 3, 4\)"):
        tokens_to_map(torch.zeros(1, 2, 3, 4), (8, 8), 'x')
    with pytest.raises(TapError, match='size of the image .* is unknown'):
        tokens_to_map(torch.zeros(1, 2, 3), None, 'x')
