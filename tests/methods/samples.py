"""Random inputs for any loss, made from what it declares: `needs`, `pairs` and `ensemble`.

A loss that needs regions gets rows, one that needs anchors gets a map for each level of `GRIDS`,
any other gets one map. A new field of the batch is one more function in `FIELDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from densekd.core.batch import Batch
from densekd.core.head import DistillLoss
from densekd.core.taps import Place, Tap

CHANNELS, CLASSES, ANCHORS = 3, 3, 2
REGIONS = 8  # of an image
MAP = (4, 5)
# Cells of each level by stride, for images of 32x48, and sides of the anchors of a cell.
GRIDS = {(8, 8): (4, 6), (16, 16): (2, 3)}
SIDES = {(8, 8): [(16.0, 16.0), (24.0, 12.0)], (16, 16): [(32.0, 32.0), (48.0, 24.0)]}
# A box that fits the anchors of the first level, and one for the second.
BOXES = [[6.0, 6.0, 26.0, 22.0], [2.0, 0.0, 44.0, 30.0]]


def grid(height: int, width: int, stride: int, sides: list[tuple[float, float]]) -> Tensor:
    """Returns anchors (H, W, A, 4) of these widths and heights, centred on multiples of stride."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    centre = torch.stack([x, y, x, y], -1)[:, :, None] * float(stride)
    return centre + torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides])


@dataclass
class Sample:
    """What one step hands to a loss, and where it was tapped."""

    student: Any
    teacher: Any
    batch: Batch
    places: tuple[Place, Place]

    def students(self) -> list[Tensor]:
        return self.student if isinstance(self.student, list) else [self.student]

    def teachers(self) -> list[Tensor]:
        return self.teacher if isinstance(self.teacher, list) else [self.teacher]

    def mapped(self, change: Callable[[Tensor], Tensor], side: str = 'both') -> Sample:
        """Returns the sample with `change` applied to the tensors of one side, or of both."""

        def of(value: Any, name: str) -> Any:
            if side not in ('both', name):
                return value
            return [change(x) for x in value] if isinstance(value, list) else change(value)

        return replace(
            self, student=of(self.student, 'student'), teacher=of(self.teacher, 'teacher')
        )

    def trained(self) -> Sample:
        """Returns copies that ask for a gradient, on both sides."""
        return self.mapped(lambda x: x.detach().clone().requires_grad_())

    def equal(self) -> Sample:
        """Returns the sample of a student that is its teacher."""
        own = self.mapped(torch.clone)
        if isinstance(own.student, Tensor) and isinstance(own.teacher, list):
            return replace(own, teacher=[own.student.clone() for _ in own.teacher])
        own.teacher = own.mapped(torch.clone).student
        return own


def sample(
    loss: DistillLoss,
    images: int | None = None,
    seed: int = 0,
    objects: bool = True,
    teachers: int = 1,
    wider: int = 1,
) -> Sample:
    """Returns random inputs that fit `loss`.

    Args:
        loss: The loss, which need not be bound.
        images: Images of the batch; None are two, or more where images are related.
        seed: Seed of all random numbers.
        objects: Whether the images hold anything: boxes, positive anchors, sampled anchors.
        teachers: Teachers of an ensemble.
        wider: How many times the student's channels the teacher has.

    Raises:
        AssertionError: If the loss needs a field that nothing here makes.
    """
    numbers = torch.Generator().manual_seed(seed)
    images = (2 if loss.fewest == 1 else loss.fewest + 2) if images is None else images
    values = {}
    for need in loss.needs:
        if need not in FIELDS:
            raise AssertionError(
                f'{type(loss).__name__} needs {need!r}, a field that is not made here yet: add '
                'a function for it to FIELDS in tests/methods/samples.py.'
            )
        values[need] = FIELDS[need](images, objects, numbers)
    shapes, strides = _shapes(loss, images)
    student = [torch.randn(shape, generator=numbers) for shape in shapes]
    wide = [(n, wider * c, *size) for n, c, *size in shapes]
    teacher = [torch.randn(shape, generator=numbers) for _ in range(teachers) for shape in wide]
    alone = loss.pairs and len(shapes) == 1
    if 'input_grad' in loss.needs:
        # What is compared is as large as the images, and comes of logits that are tapped.
        shapes, strides, wide = [(images, CLASSES)], (None,), [(images, CLASSES)]
    places = (_place(shapes, strides, numbers), _place(wide, strides, numbers))
    return Sample(
        student[0] if alone else student,
        teacher[0] if alone and teachers == 1 else teacher,
        Batch(values),
        places,
    )


Strides = tuple[tuple[float, float] | None, ...]


def _shapes(loss: DistillLoss, images: int) -> tuple[list[tuple[int, ...]], Strides]:
    needs = set(loss.needs)

    def some(*prefixes: str) -> bool:
        return any(need.startswith(prefixes) for need in needs)

    if some('roi'):
        columns = 4 if some('roi_box') else CLASSES + 1
        return [(REGIONS * images, columns)], (None,)
    if some('dense', 'rpn', 'anchors'):
        channels = CHANNELS
        if some('dense'):
            channels = ANCHORS * (4 if some('dense_box') else CLASSES)
        if some('rpn'):
            channels = ANCHORS * (4 if some('rpn_box') else 1)
        shapes = [(images, channels, *cells) for cells in GRIDS.values()]
        return shapes, tuple((float(y), float(x)) for y, x in GRIDS)
    if loss.vectors:
        return [(images, 2 * CHANNELS)], (None,)
    count = 1 if loss.pairs else 2
    return [(images, CHANNELS, *MAP)] * count, ((8.0, 8.0),) * count


def _place(shapes: list[tuple[int, ...]], strides: Strides, numbers: torch.Generator) -> Place:
    """Returns a place with a batch normalisation before it, whose shift says what is negative."""
    norm = nn.BatchNorm2d(shapes[0][1])
    with torch.no_grad():
        norm.bias.copy_(torch.randn(norm.bias.shape, generator=numbers))
    return Place(Tap('sample', name='sample'), tuple((1, *s[1:]) for s in shapes), strides, norm)


# What is made for each field of the batch, from the number of images, whether they hold anything,
# and random numbers.
Make = Callable[[int, bool, torch.Generator], Any]


def _each_level(make: Callable[[tuple[int, int]], Tensor]) -> list[Tensor]:
    """Returns what `make` gives for (N, H*W*A) of each level, without the N."""
    return [make((h, w)) for h, w in GRIDS.values()]


def _weights(images: int, objects: bool, numbers: torch.Generator) -> list[Tensor]:
    def level(cells: tuple[int, int]) -> Tensor:
        count = (images, cells[0] * cells[1] * ANCHORS)
        weight = torch.rand(count, generator=numbers)
        return weight * (torch.rand(count, generator=numbers) > 0.3) * objects

    return _each_level(level)


def _positive(images: int, objects: bool, numbers: torch.Generator) -> list[Tensor]:
    return [weight > 0.2 for weight in _weights(images, objects, numbers)]


def _targets(images: int, objects: bool, numbers: torch.Generator) -> list[Tensor]:
    return _each_level(
        lambda cells: torch.randn(images, cells[0] * cells[1] * ANCHORS, 4, generator=numbers)
    )


def _factor(images: int, objects: bool, numbers: torch.Generator) -> Tensor:
    return torch.tensor(5.0 * images * objects)


def _pixel_labels(images: int, objects: bool, numbers: torch.Generator) -> Tensor:
    labels = torch.randint(CLASSES, (images, 32, 48), generator=numbers)
    ignored = torch.rand(labels.shape, generator=numbers) < 0.1
    return labels.masked_fill(ignored if objects else torch.ones_like(ignored), 255)


def _roi_labels(images: int, objects: bool, numbers: torch.Generator) -> Tensor:
    labels = torch.arange(REGIONS * images) % (CLASSES + 1)  # the last is background
    return labels if objects else torch.full_like(labels, CLASSES)


FIELDS: dict[str, Make] = {
    'inputs': lambda n, objects, numbers: torch.randn(n, 3, 32, 48, generator=numbers),
    'labels': _pixel_labels,
    'gt_boxes': lambda n, objects, numbers: [
        torch.tensor(BOXES if objects else []).reshape(-1, 4) for _ in range(n)
    ],
    'valid': lambda n, objects, numbers: torch.rand(n, 32, 48, generator=numbers) > 0.2,
    'anchors': lambda n, objects, numbers: {
        stride: grid(*cells, stride[0], SIDES[stride]) for stride, cells in GRIDS.items()
    },
    'anchors_valid': lambda n, objects, numbers: {
        stride: torch.ones(n, *cells, ANCHORS, dtype=torch.bool) for stride, cells in GRIDS.items()
    },
    'dense_weights': _weights,
    'dense_avg_factor': _factor,
    'dense_positive': _positive,
    'dense_box_targets': _targets,
    'rpn_weights': _weights,
    'rpn_avg_factor': _factor,
    'rpn_positive': _positive,
    'rpn_box_targets': _targets,
    'rois': lambda n, objects, numbers: torch.rand(REGIONS * n, 5, generator=numbers),
    'roi_labels': _roi_labels,
    'roi_positive': lambda n, objects, numbers: _roi_labels(n, objects, numbers) < CLASSES,
    'roi_box_targets': lambda n, objects, numbers: torch.randn(REGIONS * n, 4, generator=numbers),
    'iteration': lambda n, objects, numbers: 3,
    'seed': lambda n, objects, numbers: 5,
    'input_grad': lambda n, objects, numbers: None,  # it stands in the place of the two tensors
}
