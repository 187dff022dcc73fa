"""Losses that compare what the input does to two networks: gradients with respect to the images.

Such a loss says what number of each image is differentiated (`scalar`), of what is tapped; what it
compares is then not the tapped tensors but the gradients of these numbers, (N, 3, H, W).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from densekd.core.batch import Batch
from densekd.core.head import DistillLoss
from densekd.core.ops import float_island, no_autocast
from densekd.core.taps import Value
from densekd.errors import ConfigError, TapError


class InputGradientLoss(DistillLoss):
    """A loss between the gradients of two networks with respect to their common input."""

    needs: ClassVar[tuple[str, ...]] = ('input_grad',)
    compares_cells = False  # of what is tapped: the gradients have those of the input

    def scalar(self, tapped: Tensor, batch: Batch) -> Tensor:
        """Returns the number of each image (N,) that is differentiated."""
        raise NotImplementedError


def wants_input_grad(head: Any) -> bool:
    """Whether a head compares gradients with respect to the input."""
    return 'input_grad' in head.needs


def input_gradient(
    loss: InputGradientLoss, tapped: Value, inputs: Tensor, batch: Batch, create_graph: bool
) -> Tensor:
    """Returns the gradient (N, 3, H, W) of each image's number with respect to that image.

    In a network that normalises by its batch an image moves the numbers of the others too, and the
    gradient is that of their sum.

    Args:
        loss: What says which number it is.
        tapped: What was read of the network, which ran on `inputs`.
        inputs: The images, of which a gradient was asked for before.
        batch: What the loss may know of the batch.
        create_graph: Whether the gradient is differentiated in its turn, as the student's is.

    Raises:
        TapError: If several tensors are tapped, or what is tapped does not depend on the input.
        ConfigError: If no graph was recorded, or in half precision.

    Example:
        >>> from densekd.methods import JacobianLoss
        >>> x = torch.ones(1, 2, requires_grad=True)
        >>> batch = Batch({'labels': torch.tensor([1])})
        >>> logits = x @ torch.tensor([[1.0, 3.0], [2.0, 4.0]])
        >>> input_gradient(JacobianLoss(), logits, x, batch, create_graph=False)
        tensor([[3., 4.]])
    """
    name = type(loss).__name__
    if not isinstance(tapped, Tensor):
        raise TapError(f'{name}: it differentiates one tensor, and {len(tapped)} are tapped.')
    if tapped.dtype == torch.float16:
        raise ConfigError(
            f"{name}: gradients with respect to the input leave float16's range, where no scale "
            'of the loss helps them. Train in float32 or bfloat16.'
        )
    if not torch.is_grad_enabled():
        raise ConfigError(f'{name}: it differentiates the networks, which no_grad prevents.')
    with no_autocast(inputs.device):
        number = loss.scalar(float_island(tapped), batch).sum()
    if number.requires_grad:
        (gradient,) = torch.autograd.grad(
            number, inputs, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
        if gradient is not None:
            return gradient
    raise TapError(f'{name}: what is tapped does not depend on the input, or was cut off from it.')
