"""One pass over a small image: which places run, and with what shapes and strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.ops import private_rng
from densekd.core.taps import Place, Tap, Taps, resolve, tensors

# Height and width are multiples of 128, so that strides up to 128 come out exact, and they
# differ, so that a height taken for a width shows.
TRACE_SIZE = (256, 384)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Runs its body with the network in eval mode; modes, buffers, generators stay as they were."""
    modes = [(module, module.training) for module in model.modules()]
    # Some networks write into a buffer, others put a new tensor in its place.
    buffers = [
        (module, name, buffer, buffer.clone())
        for module, _ in modes
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        for module, _ in modes:
            module.training = False  # train() is overridden by networks that freeze parts
        with torch.no_grad(), private_rng(0):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def trace(
    model: nn.Module,
    taps: Mapping[Any, Tap],
    forward: Callable[[nn.Module, Tensor], Any],
    size: tuple[int, int] = TRACE_SIZE,
    channels: int = 3,
) -> dict[Any, Place]:
    """Returns the place of each tap, from one pass over an empty image.

    Args:
        model: The network.
        taps: The taps, by any key.
        forward: Runs the part of the network that holds them on images (1, channels, H, W).
        size: Height and width of the image.
        channels: Channels of the image.

    Raises:
        TapError: If a place does not exist, or never runs.
    """
    parameter = next(model.parameters(), torch.zeros(()))
    image = torch.zeros(1, channels, *size, device=parameter.device, dtype=parameter.dtype)
    return find(model, taps, lambda: forward(model, image), size)


def find(
    model: nn.Module,
    taps: Mapping[Any, Tap],
    run: Callable[[], Any],
    size: tuple[int, int] | None = None,
) -> dict[Any, Place]:
    """Returns the place of each tap, from one pass of the caller's.

    Args:
        model: The network.
        taps: The taps, by any key.
        run: Runs the network.
        size: Height and width of the images that it runs on; None if they are no images, and then
            nothing has a stride.

    Raises:
        TapError: If a place does not exist, or never runs.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> find(net, {'a': Tap('')}, lambda: net(torch.zeros(5, 2)))['a'].channels
        3
    """
    with undisturbed(model), Taps(model, taps, size=size) as reading:
        run()
    places = {}
    for key, tap in taps.items():
        found = tensors(reading[key])
        places[key] = Place(
            tap,
            shapes=tuple(tuple(t.shape) for t in found),
            strides=tuple(_stride(t, size) for t in found),
            norm=_norm(model, tap),
            model=model,
        )
    return places


def _stride(x: Tensor, size: tuple[int, int] | None) -> tuple[float, float] | None:
    if size is None or x.dim() != 4 or not x.shape[-2] or not x.shape[-1]:
        return None
    return size[0] / x.shape[-2], size[1] / x.shape[-1]


def _norm(model: nn.Module, tap: Tap) -> nn.Module | None:
    if tap.norm is not None:
        return model.get_submodule(tap.norm)
    module = resolve(model, tap)
    # A tap at a norm's own output is fed by that norm.
    affine = getattr(module, 'weight', None) is not None and hasattr(module, 'bias')
    if tap.side == 'out' and affine and 'norm' in type(module).__name__.lower():
        return module
    return None
