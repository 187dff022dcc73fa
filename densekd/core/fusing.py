"""Folds batch normalisation into the convolution before it, in a network that no longer learns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from densekd.core.trace import undisturbed

# Largest change that is rounding, relative to an output's largest value.
TOLERANCE = 1e-4


def fusable_pairs(
    model: nn.Module, forward: Callable[[nn.Module], Any], keep: Collection[str] = ()
) -> list[tuple[str, str]]:
    """Returns the paths of convolutions and the norms that are fed by them and by nothing else.

    A pair is found by what happens in a pass, not by the order in which modules are declared: the
    norm's input is the very tensor that the convolution gave, and each of the two ran once.

    Args:
        model: The network, in eval mode.
        forward: Runs it.
        keep: Paths that must stay as they are, since they are tapped.
    """
    given: dict[int, str] = {}
    held: list[Tensor] = []  # an id is only unique while its object lives
    calls: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def gave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            given[id(output)] = name
            held.append(output)

        return hook

    def took(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[name] = calls.get(name, 0) + 1
            before = given.get(id(args[0]))
            if before is not None:
                pairs.append((before, name))

        return hook

    handles = []
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d:
            handles.append(module.register_forward_hook(gave(name)))
        elif isinstance(module, _BatchNorm) and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(took(name)))
    try:
        with undisturbed(model):
            forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (conv, norm)
        for conv, norm in pairs
        if calls[conv] == calls[norm] == 1 and conv not in keep and norm not in keep
    ]


def fuse(model: nn.Module, pairs: Collection[tuple[str, str]]) -> None:
    """Folds each norm into its convolution and leaves an identity in its place."""
    for conv_path, norm_path in pairs:
        conv, norm = model.get_submodule(conv_path), model.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None and norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        conv.weight, conv.bias = weight, bias
        parent, _, name = norm_path.rpartition('.')
        identity = nn.Identity()
        identity.training = False
        setattr(model.get_submodule(parent), name, identity)
    model.requires_grad_(False)


def fused_if_equal(
    model: nn.Module,
    forward: Callable[[nn.Module], Sequence[Tensor]],
    keep: Collection[str] = (),
    tolerance: float = TOLERANCE,
) -> int:
    """Fuses what can be fused, and takes it back if the outputs change by more than rounding.

    Args:
        model: The network, in eval mode and frozen.
        forward: Runs it and returns what is read of it.
        keep: Paths that must stay as they are, since they are tapped.
        tolerance: Largest difference allowed, relative to each output's largest value.

    Returns:
        How many norms were folded away.
    """
    pairs = fusable_pairs(model, forward, keep)
    with undisturbed(model):
        before = [t.clone() for t in forward(model)]
    undo = [
        (
            conv,
            model.get_submodule(conv).weight,
            model.get_submodule(conv).bias,
            norm,
            model.get_submodule(norm),
        )
        for conv, norm in pairs
    ]
    fuse(model, pairs)
    with undisturbed(model):
        after = list(forward(model))
    if largest_difference(before, after) <= tolerance:
        return len(pairs)
    for conv, weight, bias, norm_path, norm in undo:
        module = model.get_submodule(conv)
        module.weight, module.bias = weight, bias
        parent, _, name = norm_path.rpartition('.')
        setattr(model.get_submodule(parent), name, norm)
    return 0


def largest_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Returns the largest difference of outputs, relative to each output's largest value."""
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if a.numel():
            scale = max(float(a.abs().max()), 1e-12)
            difference = float((a - b).abs().max()) / scale
            # A difference that is no number is one, and must not pass for none.
            worst = max(worst, difference if difference == difference else float('inf'))
    return worst
