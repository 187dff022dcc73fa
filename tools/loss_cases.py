"""What `benchmark_losses.py` measures: inputs for each loss, beside its formula in plain torch.

Each case makes tensors of the sizes that its method reads in training, and writes the formula of
the method's docstring down once more, straight and without any trick. A new loss gets a function
here, under `@case`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import densekd.methods  # noqa: F401  fills the table of losses
from densekd.core.batch import Batch
from densekd.core.head import DistillLoss
from densekd.core.taps import Place, Tap, tensors
from densekd.registry import LOSSES

Formula = Callable[[Any, Any, Batch], Tensor]


@dataclass(frozen=True)
class Sizes:
    """How large the inputs are, and where and in which precision they lie.

    Args:
        fpn: A level of a neck.
        c5: The last stage of a ResNet-50.
        logits: A segmentor's, at the stride of its head.
        vectors: A batch of images before a ResNet-50's classifier.
        stages: A batch of images after each stage of a ResNet-50 for 224x224.
        inputs: A batch of images for a classifier.
        image: Height and width that pyramids of maps belong to.
        images: Images of those pyramids.
        channels: Channels of a neck's pyramid.
        classes: Of a detector, without background.
        rois: Regions that a box head is trained on.
        boxes: True boxes of an image.
        device: Where the tensors are.
        dtype: float32, or float64 for comparisons.
    """

    fpn: tuple[int, ...] = (2, 256, 100, 168)
    c5: tuple[int, ...] = (2, 2048, 25, 42)
    logits: tuple[int, ...] = (4, 21, 128, 128)
    vectors: tuple[int, ...] = (64, 2048)
    stages: tuple[tuple[int, ...], ...] = (
        (64, 256, 56, 56),
        (64, 512, 28, 28),
        (64, 1024, 14, 14),
        (64, 2048, 7, 7),
    )
    inputs: tuple[int, ...] = (64, 3, 224, 224)
    image: tuple[int, int] = (800, 1344)
    images: int = 1
    channels: int = 256
    classes: int = 80
    rois: int = 1024
    boxes: int = 20
    device: str = 'cpu'
    dtype: torch.dtype = torch.float32
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def normal(self, *shape: int) -> Tensor:
        """Returns random numbers of standard deviation 1."""
        return torch.randn(shape, generator=self.generator, dtype=self.dtype).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Returns random numbers from 0 to 1."""
        return torch.rand(shape, generator=self.generator, dtype=self.dtype).to(self.device)

    def student(self, *shape: int) -> Tensor:
        """Returns random numbers that a gradient is wanted of."""
        return self.normal(*shape).requires_grad_()


SMALL = Sizes(
    fpn=(2, 4, 5, 7),
    c5=(2, 6, 3, 4),
    logits=(2, 5, 4, 6),
    vectors=(6, 5),
    stages=((4, 2, 6, 8), (4, 3, 3, 4), (4, 4, 2, 2), (4, 5, 1, 2)),
    inputs=(4, 3, 6, 8),
    image=(64, 96),
    images=2,
    channels=3,
    classes=4,
    rois=12,
    boxes=4,
)

RETINA_STRIDES, RPN_STRIDES = (8, 16, 32, 64, 128), (4, 8, 16, 32, 64)


@dataclass
class Problem:
    """One loss with its inputs.

    Args:
        loss: The module, at weight 1.
        student: A tensor, or one for each level.
        teacher: Likewise.
        formula: The formula in plain torch; None where it can't be afforded at this size.
        batch: What else the loss reads.
    """

    loss: DistillLoss
    student: Tensor | list[Tensor]
    teacher: Tensor | list[Tensor]
    formula: Formula | None
    batch: Batch = field(default_factory=Batch)

    def ours(self) -> Tensor:
        """Runs the module, forward and backward."""
        return self._run(self.loss)

    def naive(self) -> Tensor:
        """Runs the formula, forward and backward."""
        assert self.formula is not None
        return self._run(self.formula)

    def _run(self, function: Callable[..., Tensor]) -> Tensor:
        self.clear()
        value = function(self.student, self.teacher, self.batch)
        value.backward()
        return value.detach()

    def clear(self) -> None:
        """Forgets gradients."""
        for leaf in (*tensors(self.student), *self.loss.parameters()):
            leaf.grad = None

    @property
    def map_bytes(self) -> int:
        """Bytes of what the student gives."""
        return sum(t.numel() * t.element_size() for t in tensors(self.student))


@dataclass(frozen=True)
class Case:
    """How a loss is measured.

    Args:
        loss: Its name in the registry.
        reads: What the tensors stand for.
        needed: How many maps of the student's size must be held at once, beside the inputs.
        held: What these are. The gradient is one that every loss has to return.
        make: Makes the problem.
    """

    loss: str
    reads: str
    needed: float
    held: str
    make: Callable[[Sizes], Problem]

    @property
    def short(self) -> str:
        """The name for the command line: without 'Loss', in lower case."""
        return short(self.loss)


def short(loss: str) -> str:
    """Returns a loss's name for the command line.

    Example:
        >>> short('KDQFLLoss'), short('kd_qfl')
        ('kdqfl', 'kdqfl')
    """
    return loss.removesuffix('Loss').replace('_', '').lower()


CASES: list[Case] = []


def case(
    loss: str, reads: str, needed: float, held: str
) -> Callable[[Callable[[Sizes], Problem]], Callable[[Sizes], Problem]]:
    """Adds a function as a case."""

    def add(make: Callable[[Sizes], Problem]) -> Callable[[Sizes], Problem]:
        CASES.append(Case(loss, reads, needed, held, make))
        return make

    return add


def build(loss: str, **options: Any) -> DistillLoss:
    """Returns a loss at weight 1."""
    return LOSSES.build(dict(type=loss, loss_weight=1.0, **options), 'benchmark')


def maps(
    sizes: Sizes, shape: tuple[int, ...], loss: str, formula: Formula, **options: Any
) -> Problem:
    """Returns a problem of two maps of one shape."""
    return Problem(build(loss, **options), sizes.student(*shape), sizes.normal(*shape), formula)


def grids(sizes: Sizes, strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns height and width of a pyramid's levels."""
    return [(math.ceil(sizes.image[0] / s), math.ceil(sizes.image[1] / s)) for s in strides]


def pyramid(
    sizes: Sizes, strides: tuple[int, ...], channels: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns a student's and a teacher's maps on all levels."""
    shapes = [(sizes.images, channels, h, w) for h, w in grids(sizes, strides)]
    return [sizes.student(*s) for s in shapes], [sizes.normal(*s) for s in shapes]


def anchors_of(sizes: Sizes, detector: str) -> dict[tuple[int, int], Tensor]:
    """Returns the anchors of RetinaNet (9 a cell) or of a Faster R-CNN's RPN (3 a cell)."""
    retina = detector == 'retinanet'
    strides = RETINA_STRIDES if retina else RPN_STRIDES
    scales = [4 * 2 ** (i / 3) for i in range(3)] if retina else [8.0]
    shapes = [(scale / r**0.5, scale * r**0.5) for r in (0.5, 1.0, 2.0) for scale in scales]
    half = torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in shapes], dtype=sizes.dtype)
    levels = {}
    for stride, (h, w) in zip(strides, grids(sizes, strides), strict=True):
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
        centre = torch.stack([x, y, x, y], -1)[:, :, None]
        levels[stride, stride] = (stride * (centre + half)).to(sizes.device)
    return levels


def boxes_of(sizes: Sizes, count: int, low: float, high: float) -> Tensor:
    """Returns boxes in the image, their sides log-uniform between two lengths."""
    limit = torch.tensor(sizes.image[::-1], dtype=sizes.dtype, device=sizes.device)
    side = (low * (high / low) ** sizes.uniform(count, 2)).minimum(limit)
    corner = sizes.uniform(count, 2) * (limit - side)
    return torch.cat([corner, corner + side], 1)


def rows_of(logits: Tensor, anchors: int) -> Tensor:
    """Returns one row an anchor, by row, column and anchor."""
    return logits.permute(0, 2, 3, 1).reshape(-1, logits.shape[1] // anchors)


def unit(x: Tensor) -> Tensor:
    """Returns rows of unit length."""
    return x / x.norm(dim=-1, keepdim=True)


# Features


@case('FitNetLoss', 'FPN level', 1, 'gradient')
def fitnet(sizes: Sizes) -> Problem:
    """L = mean (S - T)^2."""
    return maps(sizes, sizes.fpn, 'FitNetLoss', lambda s, t, _: (s - t).square().mean())


@case('ABLoss', 'ResNet-50 C5', 1, 'gradient')
def ab(sizes: Sizes) -> Problem:
    """L = 1/N sum max(0, 1 - S)^2 where T > 0, max(0, 1 + S)^2 elsewhere."""

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        hinge = torch.where(t > 0, (1 - s).clamp(min=0) ** 2, (1 + s).clamp(min=0) ** 2)
        return hinge.sum() / len(s)

    return maps(sizes, sizes.c5, 'ABLoss', formula)


@case('ATLoss', 'ResNet-50 C5', 1, 'gradient')
def at(sizes: Sizes) -> Problem:
    """L = mean (Q_s - Q_t)^2, Q = F / ||F||, F = sum_c |A|^2."""

    def unit(x: Tensor) -> Tensor:
        f = (x.abs() ** 2).sum(1).flatten(1)
        return f / f.norm(dim=1, keepdim=True)

    return maps(sizes, sizes.c5, 'ATLoss', lambda s, t, _: ((unit(s) - unit(t)) ** 2).mean())


@case('OFDLoss', 'ResNet-50 C5', 1, 'gradient')
def ofd(sizes: Sizes) -> Problem:
    """L = 1/N sum (S - T')^2 [S > T' or T' > 0], T' = max(T, m_c)."""
    margin = -sizes.uniform(sizes.c5[1])

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        target = torch.maximum(t, margin[:, None, None])
        return ((s - target) ** 2 * ((s > target) | (target > 0))).sum() / len(s)

    problem = maps(sizes, sizes.c5, 'OFDLoss', formula)
    problem.loss.margin = margin
    return problem


@case('PKDLoss', 'FPN level', 1, 'gradient')
def pkd(sizes: Sizes) -> Problem:
    """L = 1/2 mean (S^ - T^)^2, x^ = (x - mean) / (std + 1e-6)."""

    def standard(x: Tensor) -> Tensor:
        return (x - x.mean((0, 2, 3), True)) / (x.std((0, 2, 3), keepdim=True) + 1e-6)

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        return 0.5 * ((standard(s) - standard(t)) ** 2).mean()

    return maps(sizes, sizes.fpn, 'PKDLoss', formula)


def channel_divergence(s: Tensor, t: Tensor, tau: float) -> Tensor:
    """L = tau^2/(N*C) sum KL(q_t || q_s), q = softmax_hw(x / tau)."""
    q_s, q_t = ((x.flatten(2) / tau).softmax(2) for x in (s, t))
    return tau**2 / (s.shape[0] * s.shape[1]) * (q_t * (q_t / q_s).log()).sum()


@case('CWDLoss', "a segmentor's logits", 3, 'gradient, log q_s, q_t')
def cwd_logits(sizes: Sizes) -> Problem:
    """At temperature 4."""
    return maps(
        sizes, sizes.logits, 'CWDLoss', lambda s, t, _: channel_divergence(s, t, 4.0), tau=4.0
    )


@case('CWDLoss', 'FPN level', 3, 'gradient, log q_s, q_t')
def cwd_level(sizes: Sizes) -> Problem:
    """At temperature 1."""
    return maps(sizes, sizes.fpn, 'CWDLoss', lambda s, t, _: channel_divergence(s, t, 1.0))


@case('MGDLoss', 'FPN level', 4, 'gradient, M*S, G: its middle and its output')
def mgd(sizes: Sizes) -> Problem:
    """L = 1/N sum (G(M * S) - T)^2."""
    loss: Any = build('MGDLoss')
    place = Place(Tap('neck.p3', name='neck.p3'), (sizes.fpn,), (None,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loss.bind(place, place)
    loss.to(sizes.device, sizes.dtype)

    def formula(s: Tensor, t: Tensor, batch: Batch) -> Tensor:
        first, _, second = loss.generator
        masked = loss.mask(s, batch.seed) * s
        middle = F.conv2d(masked, first.weight, first.bias, padding=1).clamp(min=0)
        made = F.conv2d(middle, second.weight, second.bias, padding=1)
        return ((made - t) ** 2).sum() / len(s)

    student, teacher = sizes.student(*sizes.fpn), sizes.normal(*sizes.fpn)
    return Problem(loss, student, teacher, formula, Batch({'seed': 0}))


def naive_mask(
    anchors: list[Tensor],
    boxes: Tensor,
    psi: float = 0.5,
    policy: str = 'global',
    valid: list[Tensor] | None = None,
) -> list[Tensor]:
    """I = 1 iff IoU > psi M_g for some box and anchor, M_g > 0: every anchor with every box."""
    overlaps = []
    for i, level in enumerate(anchors):
        a = level[..., None, :]  # (H, W, A, 1, 4)
        size = torch.minimum(a[..., 2:], boxes[:, 2:]) - torch.maximum(a[..., :2], boxes[:, :2])
        shared = size.clamp(min=0).prod(-1)
        areas = [(x[..., 2:] - x[..., :2]).clamp(min=0).prod(-1) for x in (a, boxes)]
        overlap = shared / (areas[0] + areas[1] - shared).clamp(min=1e-30)
        if policy == 'assigned':
            home = (areas[1].sqrt() / 56).log2().floor().clamp(0, len(anchors) - 1)
            overlap = overlap * (home == i)
        overlaps.append(overlap if valid is None else overlap * valid[i][..., None])
    tops = [overlap.amax((0, 1, 2)) for overlap in overlaps]
    if policy != 'per_level':
        tops = [torch.stack(tops).amax(0)] * len(tops)
    pairs = zip(overlaps, tops, strict=True)
    return [((o > psi * top) & (top > 0)).flatten(2).any(2) for o, top in pairs]


@case('FGFILoss', "a neck's five levels, RetinaNet's anchors", 1, 'gradient')
def fgfi(sizes: Sizes) -> Problem:
    """L = 1/(2 N_p) sum I (S - T)^2."""
    student, teacher = pyramid(sizes, RETINA_STRIDES, sizes.channels)
    anchors = anchors_of(sizes, 'retinanet')
    batch = Batch(
        {
            'gt_boxes': [boxes_of(sizes, sizes.boxes, 16, 512) for _ in range(sizes.images)],
            'anchors': anchors,
            'anchors_valid': {
                key: level[..., 0].new_ones(sizes.images, *level.shape[:3]).bool()
                for key, level in anchors.items()
            },
        }
    )

    def formula(students: list[Tensor], teachers: list[Tensor], batch: Batch) -> Tensor:
        levels = list(batch.anchors.values())
        images = [naive_mask(levels, boxes) for boxes in batch.gt_boxes]
        total = count = torch.zeros((), dtype=sizes.dtype, device=sizes.device)
        for i, (s, t) in enumerate(zip(students, teachers, strict=True)):
            mask = torch.stack([image[i] for image in images])
            total = total + (mask[:, None] * (s - t) ** 2).sum()
            count = count + mask.sum()
        return total / (2 * count)

    return Problem(build('FGFILoss'), student, teacher, formula, batch)


# Answers


@case('KDLoss', "a segmentor's logits", 3, 'gradient, log q, p')
def kd(sizes: Sizes) -> Problem:
    """L = tau^2 mean sum_k p log(p/q), at temperature 4."""

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        p, q = (t / 4).softmax(1), (s / 4).softmax(1)
        return 16 * (p * (p / q).log()).sum(1).mean()

    return maps(sizes, sizes.logits, 'KDLoss', formula)


@case('DMLLoss', 'logits of 1000 classes of 64 images, by two peers', 4, 'gradient, log q, p twice')
def dml(sizes: Sizes) -> Problem:
    """L = mean over two peers of mean sum_k p log(p/q)."""
    shape = (sizes.vectors[0], 1000)

    def formula(s: Tensor, t: Any, _: Batch) -> Tensor:
        q = s.softmax(1)
        return sum((x.softmax(1) * (x.softmax(1) / q).log()).sum(1).mean() for x in t) / 2

    peers = [sizes.normal(*shape) for _ in range(2)]
    return Problem(build('DMLLoss'), sizes.student(*shape), peers, formula)


@case('DKDLoss', "a segmentor's logits", 3, 'gradient, log h_s, h_t')
def dkd(sizes: Sizes) -> Problem:
    """L = tau^2 mean KL(b_t || b_s) + 8 KL(h_t || h_s), at temperature 4, a tenth ignored."""
    n, classes, h, w = sizes.logits
    labels = (sizes.uniform(n, h, w) * classes).long()
    labels = labels.masked_fill(sizes.uniform(n, h, w) < 0.1, 255)

    def formula(s: Tensor, t: Tensor, batch: Batch) -> Tensor:
        known = batch.labels != 255
        true = F.one_hot(batch.labels.clamp(max=classes - 1), classes).movedim(3, 1)
        p, q = (t / 4).softmax(1), (s / 4).softmax(1)
        a, b = (p * true).sum(1), (q * true).sum(1)
        target = a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()
        others = [(x / 4 - 1e3 * true).softmax(1) for x in (t, s)]
        other = (others[0] * ((others[0] + true) / (others[1] + true)).log()).sum(1)
        return 16 * ((target + 8 * other) * known).sum() / known.sum()

    problem = maps(sizes, sizes.logits, 'DKDLoss', formula)
    return replace(problem, batch=Batch({'labels': labels}))


@case('DISTLoss', "a segmentor's logits", 3, 'gradient, Y_s, Y_t')
def dist(sizes: Sizes) -> Problem:
    """L = 2 - mean corr of rows - mean corr of columns, of the probabilities of all pixels."""

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        rows = [x.softmax(1).movedim(1, 3).flatten(0, 2) for x in (s, t)]
        found = []
        for dim in (1, 0):
            a, b = (y - y.mean(dim, keepdim=True) for y in rows)
            found.append(((a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim))).mean())
        return 2 - found[0] - found[1]

    return maps(sizes, sizes.logits, 'DISTLoss', formula)


def dense_logits(sizes: Sizes, loss: str, entry: Callable[[Tensor, Tensor], Tensor]) -> Problem:
    """Returns a problem on a RetinaNet's classification logits, summed over entries."""
    student, teacher = pyramid(sizes, RETINA_STRIDES, 9 * sizes.classes)
    counts = [sizes.images * h * w * 9 for h, w in grids(sizes, RETINA_STRIDES)]
    weights = [(sizes.uniform(n) > 0.02).to(sizes.dtype).reshape(sizes.images, -1) for n in counts]

    def formula(students: list[Tensor], teachers: list[Tensor], batch: Batch) -> Tensor:
        total = torch.zeros((), dtype=sizes.dtype, device=sizes.device)
        for s, t, weight in zip(students, teachers, batch.dense_weights, strict=True):
            rows = entry(rows_of(s, 9), rows_of(t, 9)).sum(1)
            total = total + (weight.reshape(-1) * rows).sum()
        return total / batch.dense_avg_factor

    batch = Batch({'dense_weights': weights, 'dense_avg_factor': 50.0})
    return Problem(build(loss), student, teacher, formula, batch)


@case('KDQFLLoss', "RetinaNet's class logits, five levels", 1, 'gradient')
def kd_qfl(sizes: Sizes) -> Problem:
    """|q - p| BCE(q, p)."""

    def entry(s: Tensor, t: Tensor) -> Tensor:
        p, q = t.sigmoid(), s.sigmoid()
        return (q - p).abs() * -(p * q.log() + (1 - p) * (1 - q).log())

    return dense_logits(sizes, 'KDQFLLoss', entry)


@case('BinaryKLLoss', "RetinaNet's class logits, five levels", 1, 'gradient')
def binary_kl(sizes: Sizes) -> Problem:
    """P log(p/q) + (1 - p) log((1 - p)/(1 - q))."""

    def entry(s: Tensor, t: Tensor) -> Tensor:
        p, q = t.sigmoid(), s.sigmoid()
        return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()

    return dense_logits(sizes, 'BinaryKLLoss', entry)


@case('WeightedSoftLabelLoss', 'class logits of 1024 regions', 3, 'gradient, log q, w p')
def weighted_soft_label(sizes: Sizes) -> Problem:
    """L = -mean sum_k w_k p_k log q_k, the background's w 1.5."""
    shape = sizes.rois, sizes.classes + 1

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        weight = torch.ones_like(t)
        weight[:, -1] = 1.5
        return -(weight * t.softmax(1) * s.softmax(1).log()).sum(1).mean()

    problem = maps(sizes, shape, 'WeightedSoftLabelLoss', formula)
    return replace(problem, batch=Batch({'rois': sizes.uniform(sizes.rois, 5)}))


@case('WeightedSoftObjectnessLoss', "an RPN's logits, five levels, 256 an image", 1, 'gradient')
def weighted_soft_objectness(sizes: Sizes) -> Problem:
    """L = -mean p log sigmoid(z_s) + 1.5 (1 - p) log(1 - sigmoid(z_s))."""
    student, teacher = pyramid(sizes, RPN_STRIDES, 3)
    shapes = [(sizes.images, h * w * 3) for h, w in grids(sizes, RPN_STRIDES)]
    share = min(256 / sum(n for _, n in shapes), 0.5)
    weights = [(sizes.uniform(*shape) < share).to(sizes.dtype) for shape in shapes]

    def formula(students: list[Tensor], teachers: list[Tensor], batch: Batch) -> Tensor:
        sampled = torch.cat([w.reshape(-1) for w in batch.rpn_weights]) > 0
        s, t = (torch.cat([rows_of(x, 3)[:, 0] for x in y])[sampled] for y in (students, teachers))
        p, q = t.sigmoid(), s.sigmoid()
        return -(p * q.log() + 1.5 * (1 - p) * (1 - q).log()).mean()

    batch = Batch({'rpn_weights': weights})
    return Problem(build('WeightedSoftObjectnessLoss'), student, teacher, formula, batch)


@case('BoundedRegressionLoss', 'deltas of 1024 regions, for each class', 1, 'gradient')
def bounded_regression(sizes: Sizes) -> Problem:
    """L = 1/R sum e_s [e_s > e_t], of each positive region's own class."""
    shape = sizes.rois, 4 * sizes.classes
    positive = sizes.uniform(sizes.rois) < 0.25
    labels = torch.where(positive, (sizes.uniform(sizes.rois) * sizes.classes).long(), -1)
    batch = Batch(
        {
            'rois': sizes.uniform(sizes.rois, 5),
            'roi_labels': labels,
            'roi_positive': positive,
            'roi_box_targets': sizes.normal(sizes.rois, 4),
        }
    )

    def formula(s: Tensor, t: Tensor, batch: Batch) -> Tensor:
        index = torch.arange(sizes.rois, device=s.device)
        errors = []
        for x in (s, t):
            own = x.reshape(sizes.rois, -1, 4)[index, batch.roi_labels.clamp(min=0)]
            errors.append(((own - batch.roi_box_targets) ** 2).sum(1))
        counts = batch.roi_positive & (errors[0] > errors[1])
        return (errors[0] * counts).sum() / sizes.rois

    problem = maps(sizes, shape, 'BoundedRegressionLoss', formula)
    return replace(problem, batch=batch)


@case('NSTLoss', 'ResNet-50 C5 of 64 images', 1, 'gradient')
def nst(sizes: Sizes) -> Problem:
    """L = mean <s, s>^2 + mean <t, t>^2 - 2 mean <s, t>^2, of channels of unit length."""

    def products(x: Tensor, y: Tensor) -> Tensor:
        return (unit(x.flatten(2)) @ unit(y.flatten(2)).transpose(1, 2)) ** 2

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        return products(s, s).mean() + products(t, t).mean() - 2 * products(s, t).mean()

    return maps(sizes, sizes.stages[-1], 'NSTLoss', formula)


def stages(sizes: Sizes, loss: str, formula: Formula, count: int, **options: Any) -> Problem:
    """Returns a problem on the last stages of a classifier."""
    shapes = sizes.stages[-count:]
    student, teacher = [sizes.student(*x) for x in shapes], [sizes.normal(*x) for x in shapes]
    return Problem(build(loss, **options), student, teacher, formula)


@case('FSPLoss', 'ResNet-50 C4 and C5 of 64 images', 3, 'gradients, pooled, in double')
def fsp(sizes: Sizes) -> Problem:
    """L = mean (G_s - G_t)^2, G = first second^T / (H*W)."""

    def flow(pair: list[Tensor]) -> Tensor:
        size = pair[1].shape[2:]
        first = F.adaptive_max_pool2d(pair[0], size)
        return torch.einsum('nihw,njhw->nij', first, pair[1]) / (size[0] * size[1])

    def formula(s: list[Tensor], t: list[Tensor], _: Batch) -> Tensor:
        return ((flow(s) - flow(t)) ** 2).mean()

    return stages(sizes, 'FSPLoss', formula, 2)


@case('KDSVDLoss', 'ResNet-50 C4 and C5 of 64 images', 2, 'gradients, vectors and their powers')
def kdsvd(sizes: Sizes) -> Problem:
    """L = 1/N sum (R_s - R_t)^2, R = exp(-(v[c] - w[d])^2 / 8) of singular vectors."""
    k = min(4, *(min(c, h * w) for _, c, h, w in sizes.stages[-2:]))

    def vectors(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        left, sigma, right = torch.linalg.svd(t.flatten(2).transpose(1, 2), full_matrices=False)
        left, sigma, right = left[..., :k], sigma[:, :k], right[:, :k]
        top = right.gather(2, right.abs().argmax(2, keepdim=True)).sign()
        own = unit((s.flatten(2) @ (left * top.transpose(1, 2))).transpose(1, 2))
        weight = unit(sigma)[..., None]
        return own * weight, right * top * weight

    def formula(s: list[Tensor], t: list[Tensor], _: Batch) -> Tensor:
        layers = [vectors(a, b) for a, b in zip(s, t, strict=True)]
        total = torch.zeros((), dtype=sizes.dtype, device=sizes.device)
        for n in range(len(s[0])):  # all at once would take 6 GB
            r_s, r_t = (
                (-((later[n, :, :, None] - earlier[n, :, None]) ** 2) / 8).exp()
                for earlier, later in zip(*layers, strict=True)
            )
            total = total + ((r_s - r_t) ** 2).sum()
        return total / len(s[0])

    return stages(sizes, 'KDSVDLoss', formula, 2)


@case('VIDLoss', 'ResNet-50 C5 of 64 images', 2, 'gradient, the difference')
def vid(sizes: Sizes) -> Problem:
    """L = mean ((mean - T)^2 / v + log v) / 2, v = log(1 + exp(a)) + 1e-5."""
    loss: Any = build('VIDLoss')
    shape = sizes.stages[-1]
    place = Place(Tap('backbone.c5', name='backbone.c5'), (shape,), (None,))
    loss.bind(place, place)
    loss.to(sizes.device, sizes.dtype)

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        v = ((1 + loss.raw_variance.exp()).log() + 1e-5)[:, None, None]
        return ((s - t) ** 2 / v + v.log()).mean() / 2

    return Problem(loss, sizes.student(*shape), sizes.normal(*shape), formula)


@case('FTLoss', 'factors as large as ResNet-50 C5 of 64 images', 2, 'gradient, the difference')
def ft(sizes: Sizes) -> Problem:
    """L = mean |f_s - f_t|, of factors of unit length."""

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        return (unit(s.flatten(1)) - unit(t.flatten(1))).abs().mean()

    return maps(sizes, sizes.stages[-1], 'FTLoss', formula)


@case(
    'FEEDLoss', 'two translations as large as ResNet-50 C5 of 64 images', 2, 'gradient, differences'
)
def feed(sizes: Sizes) -> Problem:
    """L = mean over two teachers of mean |tr_s - t|, of maps of unit length."""
    n, c, h, w = sizes.stages[-1]

    def formula(s: Tensor, t: Any, _: Batch) -> Tensor:
        pairs = zip(s.chunk(2, 1), t, strict=True)
        apart = [(unit(a.flatten(1)) - unit(b.flatten(1))).abs().mean() for a, b in pairs]
        return torch.stack(apart).mean()

    teachers = [sizes.normal(n, c, h, w) for _ in range(2)]
    return Problem(build('FEEDLoss'), sizes.student(n, 2 * c, h, w), teachers, formula)


@case('LSLLoss', 'vectors of 64 images', 3, 'gradient, both standardised')
def lsl(sizes: Sizes) -> Problem:
    """L = mean (y_s - y_t)^2, of each dimension's mean 0 and variance 1."""

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        y_s, y_t = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in (s, t))
        return ((y_s - y_t) ** 2).mean()

    return maps(sizes, sizes.vectors, 'LSLLoss', formula)


# Gradients with respect to the images


@case('JacobianLoss', 'gradients of 64 images of 224x224', 2, 'gradient, the difference')
def jacobian(sizes: Sizes) -> Problem:
    """L = mean || g_s - g_t ||^2, of unit length in each image."""

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        return (unit(s.flatten(1)) - unit(t.flatten(1))).square().sum(1).mean()

    return maps(sizes, sizes.inputs, 'JacobianLoss', formula)


@case('GradientAttentionLoss', 'gradients of 64 images of 224x224', 2, 'gradient, the difference')
def gradient_attention(sizes: Sizes) -> Problem:
    """L = 1/2 mean || J_s - J_t ||^2, of unit length in each image."""

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        return (unit(s.flatten(1)) - unit(t.flatten(1))).square().sum(1).mean() / 2

    return maps(sizes, sizes.inputs, 'GradientAttentionLoss', formula)


# Relations between images


@case('RKDLoss', 'vectors of 64 images', 3, 'gradient, N^3 angles')
def rkd(sizes: Sizes) -> Problem:
    """L = mean huber(d_s - d_t) + 2 mean huber(a_s - a_t), of all pairs and triples."""

    def relations(x: Tensor) -> tuple[Tensor, Tensor]:
        apart = x[None] - x[:, None]  # (N, N, C)
        # No distance to oneself: its root has no slope.
        other = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        square = apart.square().sum(2)
        d = torch.where(other, torch.where(other, square, 1.0).sqrt(), 0.0)
        e = apart / torch.where(other, d, 1.0)[..., None]
        return d / (d.sum() / other.sum()), e @ e.transpose(1, 2)

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        (d_s, a_s), (d_t, a_t) = relations(s), relations(t)
        return F.smooth_l1_loss(d_s, d_t) + 2 * F.smooth_l1_loss(a_s, a_t)

    return maps(sizes, sizes.vectors, 'RKDLoss', formula)


@case('PKTLoss', 'vectors of 64 images', 1, 'gradient')
def pkt(sizes: Sizes) -> Problem:
    """L = mean p log(p/q), of the cosines' probabilities."""

    def neighbours(x: Tensor) -> Tensor:
        kernel = (unit(x) @ unit(x).T + 1) / 2
        return kernel / kernel.sum(1, keepdim=True) + 1e-7

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        q, p = neighbours(s), neighbours(t)
        return (p * (p / q).log()).mean()

    return maps(sizes, sizes.vectors, 'PKTLoss', formula)


@case('MHGDLoss', 'ResNet-50 C4 and C5 of 64 images', 1, 'gradients')
def mhgd(sizes: Sizes) -> Problem:
    """L = mean p^s log(p^s/p^t), p = softmax(tanh(BN(V A) BN(V' B)^T)), V of the SVD."""
    loss: Any = bound_to_stages(sizes, 'MHGDLoss', untrained=True)

    def graphs(later: Tensor, earlier: Tensor) -> Tensor:
        attention = loss.attention[0]
        s, r = attention.sender(later), attention.receiver(earlier)
        s, r = (x.reshape(len(x), attention.heads, -1).transpose(0, 1) for x in (s, r))
        return (s @ r.transpose(1, 2)).tanh().softmax(2)

    def formula(s: list[Tensor], t: list[Tensor], _: Batch) -> Tensor:
        (a_s, a_t), (b_s, b_t) = (main_vectors(*pair) for pair in zip(s, t, strict=True))
        q, p = graphs(b_s, a_s), graphs(b_t, a_t)
        return (q * (q / p).log()).sum(2).mean()

    shapes = sizes.stages[-2:]
    student, teacher = [sizes.student(*x) for x in shapes], [sizes.normal(*x) for x in shapes]
    return Problem(loss, student, teacher, formula)


@case('MHGDEstimatorLoss', 'ResNet-50 C4 and C5 of 64 images', 1, 'gradients')
def mhgd_estimator(sizes: Sizes) -> Problem:
    """L = mean 1 - cos(estimate, V), of what the attention has seen."""
    loss: Any = bound_to_stages(sizes, 'MHGDEstimatorLoss').eval()

    def formula(s: list[Tensor], t: list[Tensor], batch: Batch) -> Tensor:
        (a, _), (b, target) = (main_vectors(*pair) for pair in zip(s, t, strict=True))
        attention, estimator = loss.attention[0], loss.estimators[0]
        x, r = attention.sender(b), attention.receiver(a)
        x, r = (y.reshape(len(y), attention.heads, -1).transpose(0, 1) for y in (x, r))
        seen = (x @ r.transpose(1, 2)).softmax(2) @ estimator.value(a)
        estimate = unit(estimator.out(seen.transpose(0, 1).flatten(1)))
        return (1 - (estimate * target).sum(1)).mean()

    shapes = sizes.stages[-2:]
    student, teacher = [sizes.student(*x) for x in shapes], [sizes.normal(*x) for x in shapes]
    return Problem(loss, student, teacher, formula)


def bound_to_stages(sizes: Sizes, loss: str, **options: Any) -> DistillLoss:
    """Returns a loss that is bound to the last two stages of a classifier."""
    module = build(loss, **options)
    places = Place(Tap('backbone', name='backbone'), sizes.stages[-2:], (None, None))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module.bind(places, places)
    return module.to(sizes.device, sizes.dtype)


def main_vectors(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the main right singular vectors, the student's at the teacher's left ones."""
    left, _, right = torch.linalg.svd(teacher.flatten(2).transpose(1, 2), full_matrices=False)
    right = right[:, 0]
    sign = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()
    return unit((student.flatten(2) @ left[:, :, :1]).squeeze(2) * sign), right * sign


@case('SPLoss', 'ResNet-50 C5 of 64 images', 1, 'gradient')
def sp(sizes: Sizes) -> Problem:
    """L = mean (G_s - G_t)^2, rows of G of unit length."""

    def similarity(x: Tensor) -> Tensor:
        return unit(x.flatten(1) @ x.flatten(1).T)

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        return ((similarity(s) - similarity(t)) ** 2).mean()

    return maps(sizes, sizes.stages[-1], 'SPLoss', formula)


@case('CCLoss', 'vectors of 64 images', 1, 'gradient')
def cc(sizes: Sizes) -> Problem:
    """L = mean (K_s - K_t)^2, K = exp(-0.8) (1 + 0.8 c + 0.32 c^2)."""

    def kernel(x: Tensor) -> Tensor:
        c = unit(x) @ unit(x).T
        return math.exp(-0.8) * (1 + 0.8 * c + 0.32 * c**2)

    return maps(
        sizes, sizes.vectors, 'CCLoss', lambda s, t, _: ((kernel(s) - kernel(t)) ** 2).mean()
    )


@case('FELoss', 'vectors of 64 images', 6, 'gradient, differences to 5 neighbours')
def fe(sizes: Sizes) -> Problem:
    """L = mean a ||s_i - s_j||^2 over the teacher's 5 nearest, a = exp(-d^2/delta^2)."""

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        squares = [(x[None] - x[:, None]).square().sum(2) for x in (s, t)]
        near = squares[1] + torch.diag(torch.full_like(t[:, 0], torch.inf))
        index = near.argsort(1)[:, :5]
        d_s, d_t = (square.gather(1, index) for square in squares)
        return ((-d_t / d_t.mean()).exp() * d_s).mean()

    return maps(sizes, sizes.vectors, 'FELoss', formula)


# Relations within an image


def cosines(x: Tensor) -> Tensor:
    """Cosines between all positions of each image, the lengths constants to the gradient."""
    rows = x.flatten(2)
    unit = rows / rows.detach().norm(dim=1, keepdim=True)
    return torch.einsum('nci,ncj->nij', unit, unit)


@case('SKDPairwiseLoss', 'a map of 256 channels', 1, 'gradient')
def skd_pairwise(sizes: Sizes) -> Problem:
    """L = 1/(N (hw)^2) sum (a_s - a_t)^2, a the cosines between regions' maxima."""
    h, w = sizes.fpn[2:]

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        pooled = (F.max_pool2d(x, (h // 2, w // 2), ceil_mode=True) for x in (s, t))
        ours, theirs = (cosines(x) for x in pooled)
        return ((ours - theirs) ** 2).sum() / ours[0].numel() / len(s)

    return maps(sizes, sizes.fpn, 'SKDPairwiseLoss', formula)


@case('SKDPixelwiseLoss', "a segmentor's logits", 3, 'gradient, log q, p')
def skd_pixelwise(sizes: Sizes) -> Problem:
    """L = -1/(H W) sum p log q."""

    def formula(s: Tensor, t: Tensor, _: Batch) -> Tensor:
        return -(t.softmax(1) * s.softmax(1).log()).sum() / s[0, 0].numel()

    return maps(sizes, sizes.logits, 'SKDPixelwiseLoss', formula)


@case('IFVDLoss', 'a map of 256 channels, 19 classes', 2, 'gradient, S without ignored pixels')
def ifvd(sizes: Sizes) -> Problem:
    """L = mean (v_s - v_t)^2, v the cosine of a pixel with the mean of its class."""
    n, _, h, w = sizes.fpn
    shape = n, 4 * h, 4 * w
    labels = (19 * sizes.uniform(*shape)).long()
    batch = Batch({'labels': labels, 'valid': sizes.uniform(*shape) > 0.05})

    def variation(x: Tensor, batch: Batch) -> Tensor:
        small = batch.labels[:, ::4, ::4]
        valid = batch.valid[:, ::4, ::4]
        centre = torch.zeros_like(x)
        for k in range(19):
            own = ((small == k) & valid)[:, None]
            mean = (x * own).sum((2, 3), True) / own.sum((2, 3), True).clamp(min=1)
            centre = torch.where(own, mean, centre)
        return torch.where(valid, F.cosine_similarity(x, centre, dim=1), 0.0)

    def formula(s: Tensor, t: Tensor, batch: Batch) -> Tensor:
        return ((variation(s, batch) - variation(t, batch)) ** 2).mean()

    return replace(maps(sizes, sizes.fpn, 'IFVDLoss', formula), batch=batch)
