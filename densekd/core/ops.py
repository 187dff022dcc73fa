"""Small tensor operations that every method shares, each safe where the plain form is not."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.errors import ConfigError, ShapeError, did_you_mean

ALIGNMENTS = ('to_teacher', 'to_student', 'pool_larger', 'strict')
LARGE = 1e6  # rows with greater values are scaled before they are squared


def l2n(x: Tensor, dim: int | tuple[int, ...] = -1, tiny: float = 1e-24) -> Tensor:
    """Scales `x` to unit Euclidean length along `dim`; a zero row stays zero.

    The gradient of a row with squared length at most `tiny` is zero. `F.normalize` has a gradient
    of 1e12 there, and division by a guarded norm has NaN, since the root has no slope at 0. Large
    rows are right as long as they are finite, also where their squares are not. Whole numbers come
    back in float32.

    Example:
        >>> l2n(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    if not x.numel():
        return x  # an empty row has no largest value
    wide = float_island(x)
    # A unit row does not depend on the row's scale, so that its peak is a constant to the gradient.
    # In float32 squares overflow from 1e19 on, and from a length of 1e15 on 1/length cubed, which
    # the gradient has, is 0. Selected and not branched on, which would make a GPU wait.
    peak = torch.linalg.vector_norm(wide.detach(), torch.inf, dim, keepdim=True)
    wide = wide / torch.where(peak > LARGE, peak, 1.0)
    square = wide.square().sum(dim, keepdim=True)
    alive = ~(square <= tiny)  # and not `square > tiny`, which would hide a NaN
    # Two selections: the inner keeps the root away from 0, so that the outer one's zero gradient
    # is not multiplied by an infinity.
    scale = torch.where(alive, square, 1.0).rsqrt()
    unit = wide * torch.where(alive, scale, 0.0)
    return unit.to(x.dtype) if x.is_floating_point() else unit


def float_island(x: Tensor) -> Tensor:
    """Returns `x` in at least float32: squares summed over C*H*W leave float16's range."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def numbers_of(seed: int, offset: int = 0) -> torch.Generator:
    """Returns a generator for what a loss draws in a step, apart from all other random numbers.

    On the CPU, so that every device draws the same; each process draws for itself.

    Args:
        seed: The batch's.
        offset: What tells the places of one step apart.
    """
    distributed = torch.distributed
    known = distributed.is_available() and distributed.is_initialized()
    rank = distributed.get_rank() if known else 0
    # torch's generator on the CPU reads the low 32 bits.
    return torch.Generator().manual_seed((seed + offset + 7919 * rank) % 2**32)


@contextmanager
def no_autocast(device: torch.device | str) -> Iterator[None]:
    """Runs its body with autocast off on the type of `device`, so that float32 stays float32."""
    kind = torch.device(device).type
    with torch.autocast(kind, enabled=False):
        yield


def zero_like_loss(*tensors: Tensor) -> Tensor:
    """Returns a zero that hangs on the graph of every tensor, for batches without anything.

    A constant zero would leave parameters without a gradient, and DDP waits for each of them.
    """
    return sum(((t[:0] if t.dim() else t * 0).sum() for t in tensors), tensors[0].new_zeros(()))


def masked_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns the mean of `values` where `mask` is true; 0, attached, where it is nowhere true.

    A mask with dimensions of length 1 is stretched over them, as in (N, 1, H, W) over channels.
    """
    if mask is None:
        return values.mean() if values.numel() else zero_like_loss(values)
    # Selected and not multiplied: what is masked out may be infinite, as log(0) of padding is.
    mask = mask.to(torch.bool).expand_as(values)
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def resize_to(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes maps (N, C, H, W) to `size`, both H and W compared; the same tensor if they fit."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode='bilinear', align_corners=False)


def align(student: Tensor, teacher: Tensor, how: str = 'to_teacher') -> tuple[Tensor, Tensor]:
    """Brings two maps (N, C, H, W) to one height and width.

    Args:
        student: The student's map.
        teacher: The teacher's map.
        how: `to_teacher` resizes the student's map bilinearly, `to_student` the teacher's,
            `pool_larger` averages the larger one down, in each direction, `strict` refuses.

    Raises:
        ShapeError: With `strict`, if the sizes differ.
        ConfigError: If `how` is none of these.

    Example:
        >>> s, t = align(torch.zeros(1, 1, 4, 6), torch.zeros(1, 1, 8, 3), 'pool_larger')
        >>> tuple(s.shape), tuple(t.shape)
        ((1, 1, 4, 3), (1, 1, 4, 3))
    """
    if how not in ALIGNMENTS:
        raise ConfigError(f'align: there is no alignment {how!r}. {did_you_mean(how, ALIGNMENTS)}')
    if student.dim() < 4 or teacher.dim() < 4 or student.shape[-2:] == teacher.shape[-2:]:
        return student, teacher
    if how == 'strict':
        raise ShapeError(
            f'the student map is {student.shape[-2]}x{student.shape[-1]} and the teacher map '
            f'{teacher.shape[-2]}x{teacher.shape[-1]}, and align="strict" allows no resizing. '
            f'Tap places of equal stride, or choose one of {", ".join(ALIGNMENTS[:3])}.'
        )
    if how == 'to_teacher':
        return resize_to(student, teacher.shape[-2:]), teacher
    if how == 'to_student':
        return student, resize_to(teacher, student.shape[-2:])
    size = [min(s, t) for s, t in zip(student.shape[-2:], teacher.shape[-2:], strict=True)]
    return _pooled(student, size), _pooled(teacher, size)


def _pooled(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.adaptive_avg_pool2d(x, (size[0], size[1]))


@contextmanager
def private_rng(seed: int) -> Iterator[None]:
    """Runs its body on random generators of its own, seeded with `seed`.

    The caller's generators (torch's CPU and CUDA ones, numpy's, Python's) continue afterwards as
    if nothing had been drawn: building a teacher or a connector must not change the student.
    """
    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
