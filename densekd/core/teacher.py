"""The teacher: a guest in the student's training that leaves no trace.

It is frozen and in eval mode throughout, dropout and drop-path included. It is no submodule of the
distillation model, so that it enters no checkpoint, optimiser, DDP wrapper or moving average, and
`init_weights` does not reach it; a deep copy of the model shares it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from densekd.core.taps import Tap, Taps


class Teacher:
    """Holds a frozen network outside the module tree.

    Args:
        model: The network, its weights loaded.
        name: What distillers call it.
        manifest: Where it came from: path, sha256, config. Saved with the student.

    Example:
        >>> import copy
        >>> teacher = Teacher(nn.Linear(2, 2))
        >>> copy.deepcopy(teacher) is teacher, teacher.model.weight.requires_grad
        (True, False)
    """

    def __init__(
        self, model: nn.Module, name: str = 'teacher', manifest: Mapping[str, Any] | None = None
    ) -> None:
        self.model = model
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

    def run(self, taps: Mapping[Any, Tap], forward: Callable[[nn.Module], Any]) -> Taps:
        """Runs the teacher under no_grad, no deeper than its taps.

        The first pass with a set of taps runs to its end and counts how often each place is
        called; later ones end where the last of those calls is made.

        Args:
            taps: The places to read, by any key.
            forward: Runs the network's part that holds them.

        Returns:
            The taps, read.
        """
        signature = tuple(taps.items())
        known = self._calls.get(signature)
        with torch.no_grad(), Taps(self.model, taps, known) as reading:
            forward(self.model)
        if known is None:
            self._calls[signature] = dict(reading.calls)
        return reading

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Forwards `Module._apply`: to, cuda, half and double all go through it."""
        self.model._apply(function)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self
