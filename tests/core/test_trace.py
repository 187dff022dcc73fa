"""Tracing finds shapes and strides, and leaves the network and all generators as they were."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from densekd.core.taps import Tap
from densekd.core.trace import TRACE_SIZE, trace, undisturbed
from densekd.errors import TapError


class Net(nn.Module):
    """A network that draws random numbers, counts, and whose train() touches a part only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.wide = nn.Conv2d(4, 6, 3, stride=(2, 4), padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.register_buffer('seen', torch.zeros(()))
        self.register_buffer('centre', torch.zeros(4))

    def train(self, mode: bool = True) -> Net:
        super().train(mode)
        self.norm.training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1), np.random.rand(), random.random()
        self.seen += 1  # written to
        self.centre = self.centre + 1  # replaced
        x = self.drop(self.norm(self.conv(x)))
        return self.pool(self.wide(x)).flatten(1)


def forward(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def trained() -> Net:
    net = Net().train()
    net.norm.training = True
    net(torch.randn(2, 3, 8, 8))
    return net


def modes(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]


def generators() -> list[Any]:
    numpy = np.random.get_state()
    return [torch.random.get_rng_state().tolist(), random.getstate(), numpy[1].tolist(), numpy[2]]


TAPS = {'a': Tap('norm'), 'b': Tap('wide'), 'c': Tap('', name='whole')}


def test_shapes_and_strides_of_an_oblong_image() -> None:
    places = trace(Net(), TAPS, forward)
    assert TRACE_SIZE == (256, 384)
    assert places['a'].shapes == ((1, 4, 128, 192),) and places['a'].strides == ((2.0, 2.0),)
    # Height before width: 4 vertically and 8 horizontally.
    assert places['b'].shapes == ((1, 6, 64, 48),) and places['b'].strides == ((4.0, 8.0),)
    assert places['c'].shapes == ((1, 6),) and places['c'].strides == (None,)
    assert [places[k].channels for k in 'abc'] == [4, 6, 6]


def test_the_size_of_the_image_can_be_chosen() -> None:
    place = trace(Net(), {'a': Tap('conv')}, forward, size=(32, 64))['a']
    assert place.shapes == ((1, 4, 16, 32),) and place.strides == ((2.0, 2.0),)


def test_all_calls_and_levels_have_a_shape_each() -> None:
    class Pyramid(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            return [x[..., ::2, ::2], x[..., ::8, ::8]]

    place = trace(Pyramid(), {'a': Tap('', name='neck')}, forward)['a']
    assert place.strides == ((2.0, 2.0), (8.0, 8.0))


def test_the_norm_is_the_one_that_the_tap_names_or_that_it_taps() -> None:
    net = Net()
    taps = {
        'named': Tap('wide', side='in', norm='norm'),
        'own': Tap('norm'),
        'before': Tap('norm', side='in'),
        'conv': Tap('conv'),
    }
    places = trace(net, taps, forward)
    assert places['named'].norm is net.norm and places['own'].norm is net.norm
    assert places['before'].norm is None and places['conv'].norm is None
    assert all(place.model is net for place in places.values())


def test_modes_stay_as_they_were() -> None:
    net = trained()
    net.drop.eval()
    before = modes(net)
    assert True in before and False in before
    trace(net, TAPS, forward)
    assert modes(net) == before


def test_the_network_is_in_eval_all_over_while_it_is_traced() -> None:
    found: list[bool] = []
    net = trained()
    trace(net, TAPS, lambda m, x: (found.extend(modes(m)), m(x)))
    assert found and not any(found)


def test_buffers_stay_as_they_were() -> None:
    net = trained()
    before = {name: (buffer, buffer.clone()) for name, buffer in net.named_buffers()}
    assert len(before) == 5
    trace(net, TAPS, forward)
    for name, buffer in net.named_buffers():
        assert buffer is before[name][0] and torch.equal(buffer, before[name][1]), name


def test_buffers_stay_even_if_the_pass_updates_running_statistics() -> None:
    net = trained()
    before = {k: v.clone() for k, v in net.state_dict().items()}

    def careless(model: nn.Module, x: Tensor) -> None:
        model.norm.training = True
        model(torch.randn_like(x) + 5)
        assert not torch.equal(model.norm.running_mean, before['norm.running_mean'])

    trace(net, TAPS, careless)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_generators_stay_as_they_were() -> None:
    net = trained()
    before = generators()
    trace(net, TAPS, forward)
    assert generators() == before
    net(torch.randn(2, 3, 8, 8))
    assert generators() != before


def test_no_gradient_is_recorded() -> None:
    net = trained()
    trace(net, TAPS, lambda m, x: setattr(m, 'out', m(x)))
    assert not net.out.requires_grad
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.is_grad_enabled()


def test_nothing_is_left_after_an_error() -> None:
    net = trained()
    before, state, mode = (
        generators(),
        {k: v.clone() for k, v in net.state_dict().items()},
        modes(net),
    )
    with pytest.raises(TapError, match='never ran'):
        trace(net, {**TAPS, 'd': Tap('drop')}, lambda m, x: m.conv(x))
    with pytest.raises(ZeroDivisionError), undisturbed(net):
        net(torch.randn(2, 3, 8, 8))
        raise ZeroDivisionError
    assert generators() == before and modes(net) == mode
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_a_network_in_another_precision_is_traced_in_it() -> None:
    net = nn.Conv2d(3, 2, 1).double()
    assert trace(net, {'a': Tap('', name='whole')}, forward)['a'].channels == 2


def test_a_network_without_parameters_is_traced() -> None:
    place = trace(nn.AvgPool2d(4), {'a': Tap('', name='whole')}, forward)['a']
    assert place.strides == ((4.0, 4.0),)
