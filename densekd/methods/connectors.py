"""Connectors: what a tapped tensor goes through before it is compared.

Their channels are taken from the two places when the head is bound, so a config need not state
them. One that it does state is checked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.head import Connector
from densekd.core.taps import Place, Tap, resolve
from densekd.errors import ConfigError, ShapeError, did_you_mean
from densekd.registry import CONNECTORS

ACTIVATIONS = {'relu': nn.ReLU}
NORMS = {'BN': nn.BatchNorm2d}


@CONNECTORS.register
class IdentityConnector(Connector):
    """Passes the tensor on as it is: what switches off the connector that a head has by itself.

    The head refuses it, when it is bound, between unlike channels that its loss compares.

    Example:
        >>> from densekd.methods import FitNetDistillationHead
        >>> head = FitNetDistillationHead(stu_connector='IdentityConnector')
        >>> head(torch.zeros(1, 2, 1, 2), torch.full((1, 2, 1, 2), 3.0)), list(head.parameters())
        (tensor(9.), [])
    """

    shared = True  # it has nothing that a tensor could have for itself
    keeps_channels = True

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x`."""
        return x


class ChannelConnector(Connector):
    """Takes the channels of its own place to those of the other; the base of those below.

    Args:
        in_channel: Channels of the tensor that comes in; None takes those of the tap.
        out_channel: Channels of the tensor that goes out; None takes those of the other side's tap.
    """

    def __init__(self, in_channel: int | None = None, out_channel: int | None = None) -> None:
        super().__init__()
        self.in_channel = in_channel
        self.out_channel = out_channel
        self.layers: nn.Module | None = None

    def build(self, in_channel: int, out_channel: int) -> nn.Module:
        """Returns the layers for these channels."""
        raise NotImplementedError

    def build_early(self) -> None:
        """Builds the layers if the config states both channels, for use without a model around.

        The random numbers are given back: a connector must not shift those of the student. `bind`
        builds again, on the generator that its caller has set.
        """
        if self.in_channel is not None and self.out_channel is not None:
            with torch.random.fork_rng(devices=[]):
                self.layers = self.build(self.in_channel, self.out_channel)

    def bind(self, own: Place, other: Place) -> None:
        """Builds the layers.

        Raises:
            ShapeError: If the config states channels that a tap does not have.
        """
        self._check('in_channel', self.in_channel, own)
        self._check('out_channel', self.out_channel, other)
        self.layers = self.build(own.channels, other.channels)

    def _check(self, argument: str, given: int | None, place: Place) -> None:
        if given is not None and given != place.channels:
            raise ShapeError(
                f'{type(self).__name__}: {argument}={given} was given, but tap '
                f'{place.tap.label!r} has {place.channels} channels. Leave {argument} out and it '
                'is taken from the tap.'
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to the other side's channels."""
        if self.layers is None:
            name = type(self).__name__
            raise ConfigError(
                f'{name}: its channels are not known yet. Bind it to two places, as a head does, '
                f'or give {name} both in_channel and out_channel.'
            )
        return self.layers(x)


@CONNECTORS.register
class BNConnector(ChannelConnector):
    """A 1x1 convolution without bias and a batch normalisation, the student transform of OFD.

    The convolution starts from N(0, sqrt(2 / C_out)), the normalisation from scale 1 and shift 0.
    There is no activation: OFD compares values from before a ReLU.

    Args:
        in_channel: Channels of the student's tap; None takes them from it.
        out_channel: Channels of the teacher's tap; None takes them from it.

    Example:
        >>> connector = BNConnector(in_channel=4, out_channel=8)
        >>> tuple(connector(torch.zeros(2, 4, 5, 3)).shape)
        (2, 8, 5, 3)
    """

    def __init__(self, in_channel: int | None = None, out_channel: int | None = None) -> None:
        super().__init__(in_channel, out_channel)
        self.build_early()

    def build(self, in_channel: int, out_channel: int) -> nn.Module:
        """Returns the convolution and the normalisation."""
        conv = nn.Conv2d(in_channel, out_channel, 1, bias=False)
        nn.init.normal_(conv.weight, 0.0, (2.0 / out_channel) ** 0.5)
        return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channel)))


@CONNECTORS.register
class ConvConnector(ChannelConnector):
    """A convolution that keeps height and width, with or without a norm and an activation.

    Args:
        in_channel: Channels of the tensor that comes in; None takes those of the tap.
        out_channel: Channels that go out; None takes those of the other side's tap.
        kernel_size: Odd, so that the size can stay.
        bias: Whether the convolution has a bias; None gives it one where no norm follows.
        norm: `'BN'` or None.
        act: `'relu'` or None. It must follow the target: against values that are negative here and
            there (a neck's outputs, anything before a ReLU), an activation can never match them.
        init_std: Standard deviation of a truncated normal that the weights are drawn from, with
            bias 0; None leaves torch's own start.
        only_if_needed: Whether the tensor is passed on untouched where the channels agree already.

    Raises:
        ConfigError: If a value is none of these.

    Example:
        >>> connector = ConvConnector(in_channel=4, out_channel=8, kernel_size=3)
        >>> tuple(connector(torch.zeros(2, 4, 5, 3)).shape)
        (2, 8, 5, 3)
    """

    def __init__(
        self,
        in_channel: int | None = None,
        out_channel: int | None = None,
        kernel_size: int = 1,
        bias: bool | None = None,
        norm: str | None = None,
        act: str | None = None,
        init_std: float | None = None,
        only_if_needed: bool = False,
    ) -> None:
        super().__init__(in_channel, out_channel)
        if kernel_size % 2 == 0:
            raise ConfigError(f'ConvConnector: kernel_size must be odd, and {kernel_size} is not.')
        for argument, value, table in (('norm', norm, NORMS), ('act', act, ACTIVATIONS)):
            if value is not None and value not in table:
                raise ConfigError(
                    f'ConvConnector: there is no {argument} {value!r}. {did_you_mean(value, table)}'
                )
        self.kernel_size = kernel_size
        self.bias = norm is None if bias is None else bias
        self.norm = norm
        self.act = act
        self.init_std = init_std
        self.only_if_needed = only_if_needed
        self.build_early()

    def build(self, in_channel: int, out_channel: int) -> nn.Module:
        """Returns the layers, or an identity where none is needed."""
        if self.only_if_needed and in_channel == out_channel:
            return nn.Identity()
        size = self.kernel_size
        conv = nn.Conv2d(in_channel, out_channel, size, padding=size // 2, bias=self.bias)
        if self.init_std is not None:
            nn.init.trunc_normal_(
                conv.weight, std=self.init_std, a=-2 * self.init_std, b=2 * self.init_std
            )
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
        if self.norm is not None:
            layers['norm'] = NORMS[self.norm](out_channel)
        if self.act is not None:
            layers['act'] = ACTIVATIONS[self.act]()
        return nn.Sequential(layers)


@CONNECTORS.register
class LinearConnector(ChannelConnector):
    """A linear layer for vectors (N, C): embeddings, pooled features.

    Args:
        in_channel: Length of the vectors that come in; None takes it from the tap.
        out_channel: Length that goes out; None takes that of the other side. Any other is allowed,
            for methods that bring both sides to one small length.
        bias: Whether the layer has a bias.

    Example:
        >>> tuple(LinearConnector(in_channel=4, out_channel=8)(torch.zeros(2, 4)).shape)
        (2, 8)
    """

    def __init__(
        self, in_channel: int | None = None, out_channel: int | None = None, bias: bool = True
    ) -> None:
        super().__init__(in_channel, out_channel)
        self.bias = bias
        self.build_early()

    def bind(self, own: Place, other: Place) -> None:
        """Builds the layer.

        Raises:
            ShapeError: If the config states an `in_channel` that the tap does not have.
        """
        self._check('in_channel', self.in_channel, own)
        out_channel = other.channels if self.out_channel is None else self.out_channel
        self.layers = self.build(own.channels, out_channel)

    def build(self, in_channel: int, out_channel: int) -> nn.Module:
        """Returns the layer."""
        return nn.Linear(in_channel, out_channel, bias=self.bias)


class _Frozen:
    """Holds a network that is someone else's: no part of the module tree, never copied."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> _Frozen:
        return self


@CONNECTORS.register
class TeacherModule(Connector):
    """Runs a frozen part of the teacher inside the graph, as CrossKD and SimKD do.

    The gradient flows through it to the student; the teacher's own parameters are frozen and stay
    where they are: in no state_dict, optimiser or copy of this connector.

    Args:
        path: Module of the teacher, or several that run one after the other.
        side: Side on which the connector stands, `'student'` or `'teacher'`.

    Raises:
        ConfigError: If `side` is neither, or there is no teacher to take the module from.
        TapError: If the teacher has no such module.
    """

    # The module is one, whatever the number of tensors: a detection head is shared by all levels.
    shared = True

    def __init__(self, path: str | Sequence[str], side: str = 'student') -> None:
        super().__init__()
        if side not in ('student', 'teacher'):
            raise ConfigError(f"TeacherModule: side is 'student' or 'teacher', not {side!r}.")
        self.paths = [path] if isinstance(path, str) else list(path)
        self.side = side
        self._teacher: _Frozen | None = None

    def bind(self, own: Place, other: Place) -> None:
        """Takes the teacher from its place, and checks that it has the modules."""
        model = (other if self.side == 'student' else own).model
        if model is None:
            raise ConfigError(
                f'TeacherModule: {self.paths[0]!r} is a part of the teacher, and this head was '
                'bound without one. Use it in the distillers of a model.'
            )
        for path in self.paths:
            resolve(model, Tap(path, name=path), 'TeacherModule')
        self._teacher = _Frozen(model)  # no nn.Module, so that no module tree adopts it

    def forward(self, x: Tensor) -> Tensor:
        """Runs the teacher's modules on `x`."""
        if self._teacher is None:
            raise ConfigError(
                f'TeacherModule: {self.paths[0]!r} has not been taken from a teacher yet. Bind the '
                'head first.'
            )
        # Resolved at every call, since parts of a teacher may be replaced (fused, converted).
        for path in self.paths:
            x = self._teacher.model.get_submodule(path)(x)
        return x
