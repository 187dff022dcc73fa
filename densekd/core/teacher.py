"""The teacher: a guest in the student's training that leaves no trace.

It is frozen and in eval mode throughout, dropout and drop-path included. It is no submodule of the
distillation model, so that it enters no checkpoint, optimiser, DDP wrapper or moving average, and
`init_weights` does not reach it; a deep copy of the model shares it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.fusing import TOLERANCE, fused_if_equal, largest_difference
from densekd.core.taps import Tap, Taps, tensors
from densekd.core.trace import undisturbed


class Teacher:
    """Holds a frozen network outside the module tree.

    Args:
        model: The network, its weights loaded.
        name: What distillers call it.
        manifest: Where it came from: path, sha256, config. Saved with the student.
        precision: `'fp32'`, or `'bf16'` to run it under bfloat16 autocast.
        fuse: Whether to fold batch normalisation into convolutions.

    Example:
        >>> import copy
        >>> teacher = Teacher(nn.Linear(2, 2))
        >>> copy.deepcopy(teacher) is teacher, teacher.model.weight.requires_grad
        (True, False)
    """

    def __init__(
        self,
        model: nn.Module,
        name: str = 'teacher',
        manifest: Mapping[str, Any] | None = None,
        precision: str = 'fp32',
        fuse: bool = True,
    ) -> None:
        self.model = model
        self.precision = precision
        self.fuse = fuse
        self.channels_last = False
        self.name = name
        self.manifest = dict(manifest or {})
        self._calls: dict[tuple[Any, ...], dict[Any, int]] = {}
        self.freeze()

    def freeze(self) -> None:
        """Puts every module into eval mode and every parameter out of training."""
        self.model.requires_grad_(False)
        # Some networks override train() and freeze only what they think of: set the flag itself.
        for module in self.model.modules():
            module.training = False

    def speed_up(
        self,
        taps: Mapping[Any, Tap],
        forward: Callable[[nn.Module, Tensor], Any],
        size: tuple[int, int] = (128, 192),
    ) -> None:
        """Makes the network faster without changing what its taps read beyond rounding.

        Norms are folded into convolutions, and the weights are laid out channels last, which a
        CPU convolves faster. Either is taken back if an output changes by more than rounding: some
        kernels read memory as if it were always laid out channels first. To be called once, when
        everything that wants a norm has seen it.

        Args:
            taps: All places that are ever read, by any key.
            forward: Runs the part of the network that holds them on images (1, 3, H, W).
            size: Height and width of the image that the outcome is compared on.
        """
        device = self._device
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, 3, *size, generator=generator).to(device)

        def read(model: nn.Module) -> list[Tensor]:
            with Taps(model, taps, size=size) as reading:
                forward(model, self.prepared(image))
            return [t for key in taps for t in tensors(reading[key])]

        if self.fuse and taps:
            fused_if_equal(self.model, read, keep={tap.path for tap in taps.values()})
            with undisturbed(self.model):
                before = [t.clone() for t in read(self.model)]
            self._lay_out(channels_last=True)
            with undisturbed(self.model):
                after = read(self.model)
            if largest_difference(before, after) > TOLERANCE:
                self._lay_out(channels_last=False)

    def _lay_out(self, channels_last: bool) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=layout)  # type: ignore[call-overload]
        self.channels_last = channels_last

    @property
    def _device(self) -> torch.device:
        first = next(self.model.parameters(), None)
        return torch.device('cpu') if first is None else first.device

    def prepared(self, images: Tensor) -> Tensor:
        """Returns images in the memory format that the network runs fastest on."""
        if self.channels_last and images.device.type == 'cpu':
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def run(
        self,
        taps: Mapping[Any, Tap],
        forward: Callable[[nn.Module], Any],
        size: tuple[int, int] | None = None,
        input_grad: bool = False,
    ) -> Taps:
        """Runs the teacher under no_grad, no deeper than its taps.

        The first pass with a set of taps runs to its end and counts how often each place is
        called; later ones end where the last of those calls is made.

        Args:
            taps: The places to read, by any key.
            forward: Runs the network's part that holds them.
            size: Height and width of the images that it runs on, for taps of tokens.
            input_grad: Whether a graph is recorded after all, from the images to the taps. Its
                parameters stay frozen.

        Returns:
            The taps, read.
        """
        signature = tuple(taps.items())
        known = self._calls.get(signature)
        half = torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=True)
        precision = half if self.precision == 'bf16' else nullcontext()
        with (
            torch.set_grad_enabled(input_grad and torch.is_grad_enabled()),
            precision,
            Taps(self.model, taps, known, size=size) as reading,
        ):
            forward(self.model)
        if known is None:
            self._calls[signature] = dict(reading.calls)
        return reading

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Forwards `Module._apply`: to, cuda, half and double all go through it."""
        self.model._apply(function)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self
