"""Tokens of a transformer, (N, L, C), brought back to the map that they are the cells of."""

from __future__ import annotations

import math
from functools import lru_cache

from torch import Tensor

from densekd.errors import TapError


def tokens_to_map(x: Tensor, size: tuple[int, int] | None, label: str = '') -> Tensor:
    """Returns tokens (N, L, C), which stand row by row, as a map (N, C, h, w); nothing is copied.

    Args:
        x: The tokens.
        size: Height and width of the image that they were made of.
        label: What the place is called in messages.

    Raises:
        TapError: If they are no tokens, or not one for each cell of a map of that image.

    Example:
        >>> import torch
        >>> tokens = torch.arange(6.0).reshape(1, 6, 1)
        >>> tokens_to_map(tokens, (8, 12))[0, 0]
        tensor([[0., 1., 2.],
                [3., 4., 5.]])
    """
    if x.dim() != 3:
        raise TapError(
            f'tap {label!r}: tokens=True is for tensors of images, tokens and channels, and it '
            f'gives {tuple(x.shape)}. Leave it out.'
        )
    if size is None:
        raise TapError(f'tap {label!r}: the size of the image that tokens were made of is unknown.')
    return x.transpose(1, 2).unflatten(2, _grid(x.shape[1], *size, label))


@lru_cache(maxsize=256)
def _grid(count: int, height: int, width: int, label: str) -> tuple[int, int]:
    """Returns rows and columns of the one map with so many cells that has one stride."""
    found: dict[tuple[int, int], int] = {}
    for stride in range(1, max(height, width) + 1):
        # A patch embedding pads what is left over at the edge, or else leaves it out.
        for grid in (
            (math.ceil(height / stride), math.ceil(width / stride)),
            (height // stride, width // stride),
        ):
            if grid[0] * grid[1] == count:
                found.setdefault(grid, stride)
    if len(found) > 1:  # of several, the one that a network would make
        found = {g: s for g, s in found.items() if s & (s - 1) == 0} or found
    if len(found) != 1:
        which = 'more than one map' if found else 'no map'
        raise TapError(
            f'tap {label!r}: {count} tokens are the cells of {which} of a {height}x{width} image; '
            'a class token or windows may be among them. Tap an output of the backbone instead, '
            'such as "backbone.c5", which is a map.'
        )
    return next(iter(found))
