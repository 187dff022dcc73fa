"""FGFI: imitation of features near objects, where anchors say what is near.

Paper: Wang, Yuan, Zhang, Feng: Distilling Object Detectors with Fine-grained Feature Imitation.
    CVPR 2019. https://arxiv.org/abs/1906.03609
Reads: the outputs of a detector's neck (`neck.pN`), together with the student's anchors and the
    true boxes. A student without anchors has points, of which each stands for one square box around
    it, 8 strides wide, as ATSS has for its only anchor: our reading, since the paper knows none.
Stages: one.
Tasks: detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import float_island, zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError, ShapeError, TapError, did_you_mean
from densekd.methods.presets import choose_at, fitting_taps
from densekd.registry import HEADS, LOSSES, PRESETS

POLICIES = ('global', 'assigned', 'per_level')
NORMS = ('pooled', 'per_level')
# Pairs of a cell and a box that are held at a time, some 70 bytes each: boxes beyond it are done in
# turns.
BUDGET = 2**18
# Side of a box in pixels below which 'assigned' stays on the first level.
FIRST_LEVEL = 56.0
# What a bound on an overlap is raised by, since the overlap itself is rounded.
ROUNDING = 1.001


@torch.no_grad()
def imitation_mask(
    anchors: Sequence[Tensor],  # L of (H, W, A, 4) as x1, y1, x2, y2
    gt_boxes: Tensor,  # (G, 4)
    psi: float = 0.5,
    policy: str = 'global',
    valid: Sequence[Tensor] | None = None,  # L of (H, W, A) bool
) -> list[Tensor]:
    """Marks the cells with an anchor that overlaps a box nearly as well as any anchor does.

        M_g  = max IoU(a, g) over the anchors that the policy gives box g
        I_hw = 1 iff IoU(a_hwk, g) > psi M_g for some g and k, and M_g > 0

    Args:
        anchors: Anchors of each level.
        gt_boxes: True boxes of one image, crowds left out.
        psi: Share of the best overlap that is enough; 0 keeps whatever overlaps at all.
        policy: `'global'` gives a box all anchors of all levels, `'assigned'` those of the one
            level floor(log2(sqrt(w h) / 56)), clamped to the levels there are, `'per_level'` looks
            for the best on each level by itself, which floods coarse levels with small boxes.
        valid: Which anchors lie in the image and not in padding; the others count nowhere.

    Returns:
        L masks (H, W), bool.

    Deviations: the authors have one level, and boxes that include their last pixel. The level rule
    of `'assigned'` is DeFeat's, and clamps to all levels.

    Raises:
        ConfigError: If there is no such policy, or psi is not a share.
        ShapeError: If anchors or boxes have other shapes.

    Example:
        >>> y, x = torch.meshgrid(16.0 * torch.arange(4), 16.0 * torch.arange(6), indexing='ij')
        >>> anchors = torch.stack([x - 16, y - 16, x + 16, y + 16], -1)[:, :, None]
        >>> (mask,) = imitation_mask([anchors], torch.tensor([[20.0, 4.0, 52.0, 36.0]]))
        >>> mask.nonzero().tolist()
        [[1, 2], [1, 3], [2, 2]]
    """
    _check_options(psi, policy)
    anchors = [float_island(level) for level in anchors]
    _check_boxes(anchors, gt_boxes, valid)
    masks = [torch.zeros(a.shape[:2], dtype=torch.bool, device=a.device) for a in anchors]
    if not len(gt_boxes):
        return masks
    boxes = gt_boxes.to(anchors[0]).T.contiguous()  # (4, G)
    windows = [_windows(level, boxes) for level in anchors]
    bounds = [ROUNDING * _bound(level, boxes) for level in anchors]
    corners = [level.permute(2, 3, 0, 1).flatten(2).contiguous() for level in anchors]
    flags = [None if valid is None else v.flatten(0, 1).T for v in valid or anchors]
    home = _home_level(boxes, len(anchors))
    # The coarse levels first: they are cheap, and large boxes find most of their M there.
    order = sorted(range(len(anchors)), key=lambda i: masks[i].numel())
    cost = torch.stack([window[1] * window[3] for window in windows]).sum(0)
    for turn in _turns(cost.tolist()):
        top = boxes.new_zeros(turn.stop - turn.start)
        found = []
        for i in order:
            wanted = torch.ones_like(home[turn], dtype=torch.bool)
            if policy == 'assigned':
                wanted = home[turn] == i
            elif policy == 'global':
                wanted = ~(bounds[i][turn] <= psi * top)
            cell, box = _pairs(windows[i][:, turn], wanted, masks[i].shape[1])
            best = _best_overlap(corners[i], flags[i], boxes[:, turn], cell, box)
            own = torch.zeros_like(top).scatter_reduce_(0, box, best, 'amax')
            top = own if policy == 'per_level' else torch.maximum(top, own)
            near = _above(best, psi, top, box)  # M can only grow: the others are out for good
            found.append((masks[i], cell[near], box[near], best[near], top))
        for mask, cell, box, best, own in found:
            limit = own if policy == 'per_level' else top
            mask.view(-1)[cell[_above(best, psi, limit, box)]] = True
    return masks


def _above(best: Tensor, psi: float, top: Tensor, box: Tensor) -> Tensor:
    # Strictly above, and M > 0: a box without any overlap would mark every cell.
    return best > torch.where(top > 0, psi * top, torch.inf)[box]


def _turns(cost: list[int]) -> list[slice]:
    """Returns slices of boxes, in order, that have `BUDGET` pairs at most, or one box each."""
    turns, start, total = [], 0, 0
    for i, pairs in enumerate(cost):
        if total and total + pairs > BUDGET:
            turns.append(slice(start, i))
            start, total = i, 0
        total += pairs
    return [*turns, slice(start, len(cost))]


def _windows(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Returns the cells (4, G) that may overlap: first row, rows, first column, columns.

    A row of cells is out of a box's reach where even the anchor that ends last ends before it.
    Compared so that a NaN leaves a row in.
    """
    if not anchors.numel():
        return torch.zeros(boxes.shape, dtype=torch.long, device=boxes.device)
    sides = []
    for others, low, high in (((1, 2), 1, 3), ((0, 2), 0, 2)):
        first, last = anchors[..., low].amin(others), anchors[..., high].amax(others)
        near = ~((last <= boxes[low, :, None]) | (first >= boxes[high, :, None]))  # (G, H or W)
        begin = near.int().argmax(1)
        end = near.shape[1] - near.flip(1).int().argmax(1)
        sides += [begin, (end - begin) * near.any(1)]
    return torch.stack(sides)


def _bound(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Returns what no IoU (G,) with an anchor of the level is above: the ratio of two areas."""
    if not anchors.numel():
        return boxes.new_zeros(boxes.shape[1])
    smallest, largest = _area(anchors.movedim(-1, 0)).aminmax()
    own = _area(boxes)
    return torch.minimum(own / smallest, largest / own)


def _pairs(windows: Tensor, wanted: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Returns every cell of every wanted window, and its box: two times (P,), by boxes."""
    first, rows, left, columns = windows
    rows = rows * wanted
    count = torch.arange(len(rows), device=rows.device)
    box = count.repeat_interleave(rows)  # of each row of each window
    line = torch.arange(len(box), device=rows.device) - (rows.cumsum(0) - rows - first)[box]
    columns = columns[box]
    start = line * width + left[box] - (columns.cumsum(0) - columns)
    cell = start.repeat_interleave(columns)
    return cell.add_(torch.arange(len(cell), device=cell.device)), box.repeat_interleave(columns)


def _best_overlap(
    anchors: Tensor,  # (A, 4, H*W)
    valid: Tensor | None,  # (A, H*W)
    boxes: Tensor,  # (4, G)
    cell: Tensor,  # (P,)
    box: Tensor,  # (P,)
) -> Tensor:
    """Returns max_k IoU (P,), one anchor shape at a time: memory does not grow with A."""
    boxes, areas = boxes[:, box], _area(boxes)[box]
    best = boxes.new_zeros(len(cell))
    for k, shape in enumerate(anchors):
        overlap = _iou(shape[:, cell], boxes, areas)
        if valid is not None:
            overlap *= valid[k, cell]
        torch.maximum(best, overlap, out=best)
    return best


def _iou(anchors: Tensor, boxes: Tensor, areas: Tensor) -> Tensor:
    """Returns the overlaps (P,) of boxes (4, P) one by one, 0 for boxes without area."""
    width = (torch.minimum(anchors[2], boxes[2]) - torch.maximum(anchors[0], boxes[0])).clamp_(0)
    height = (torch.minimum(anchors[3], boxes[3]) - torch.maximum(anchors[1], boxes[1])).clamp_(0)
    shared = width.mul_(height)
    union = _area(anchors).add_(areas).sub_(shared)
    # An empty union has an empty intersection: 0 over the smallest number is the 0 that is meant.
    return shared.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def _area(boxes: Tensor) -> Tensor:
    """Returns the areas of boxes (4, ...)."""
    return (boxes[2] - boxes[0]).clamp(0) * (boxes[3] - boxes[1]).clamp(0)


def _home_level(boxes: Tensor, levels: int) -> Tensor:
    # Clamped before the conversion: an empty box has log2 0 = -inf.
    scale = (_area(boxes).sqrt() / FIRST_LEVEL).log2().floor()
    return scale.clamp(0, levels - 1).long()


def imitation_loss(
    students: Sequence[Tensor],  # L of (N, C, H, W), through a connector
    teachers: Sequence[Tensor],  # L of (N, C, H, W)
    masks: Sequence[Tensor],  # L of (N, H, W) bool
) -> Tensor:
    """Squared distance at the marked cells, summed over channels, averaged over cells.

        N_p = sum_{l,n,h,w} I
        L   = 1/(2 N_p) sum_{l,n,h,w} I sum_c (S - T)^2

    Deviations: N_p is pooled over the batch and the levels, where the authors have one of each.
    Without a marked cell the loss is 0, where theirs is NaN. Channels are summed, as theirs are;
    ports that average them need weights C times larger.

    Raises:
        ShapeError: If levels, maps or masks do not fit together.

    Example:
        >>> teacher = torch.tensor([1.0, 3.0, 5.0]).reshape(1, 3, 1, 1)
        >>> mask = torch.ones(1, 1, 1, dtype=torch.bool)
        >>> imitation_loss([torch.zeros(1, 3, 1, 1)], [teacher], [mask])  # (1 + 9 + 25) / 2
        tensor(17.5000)
    """
    if not len(students) == len(teachers) == len(masks):
        raise ShapeError(
            f'imitation_loss: there are {len(students)} student maps, {len(teachers)} teacher maps '
            f'and {len(masks)} masks; each level needs one of each.'
        )
    if not students:
        raise ShapeError('imitation_loss: it needs at least one level.')
    total = zero_like_loss(*students)
    count = 0
    for student, teacher, mask in zip(students, teachers, masks, strict=True):
        check_same_shape(student, teacher, 'imitation_loss')
        if tuple(mask.shape) != (student.shape[0], *student.shape[2:]):
            raise ShapeError(
                f'imitation_loss: a mask is {tuple(mask.shape)} and its map '
                f'{tuple(student.shape)}; images, H and W must agree.'
            )
        # Few cells are marked, so they are picked out before anything is computed.
        mask = mask.to(student.device, torch.bool)
        s = student.permute(0, 2, 3, 1)[mask]
        t = teacher.detach().permute(0, 2, 3, 1)[mask]
        total = total + (s - t).square().sum()
        count += len(s)
    return total / (2 * max(count, 1))


@LOSSES.register
class FGFILoss(DistillLoss):
    """`imitation_loss` near the true boxes of the batch.

    The masks are computed over all levels that the student has anchors on, the loss over those
    that are tapped. Over several processes the sum is divided by the mean of their N_p.

    Args:
        loss_weight: Factor; the authors' is 0.01.
        psi: Share of a box's best overlap from which a cell counts.
        policy: See `imitation_mask`.
        norm: `'pooled'` divides by the cells of all tapped levels together, `'per_level'` takes the
            mean of the levels' losses.

    Raises:
        ConfigError: If an option is none of these.
    """

    needs = ('gt_boxes', 'anchors', 'anchors_valid')
    pairs = False
    align = 'to_student'  # the masks are on the student's grid
    alignments = ('to_student', 'strict')

    def __init__(
        self,
        loss_weight: float = 0.01,
        psi: float = 0.5,
        policy: str = 'global',
        norm: str = 'pooled',
    ) -> None:
        super().__init__(loss_weight)
        _check_options(psi, policy)
        if norm not in NORMS:
            raise ConfigError(f'FGFILoss: there is no norm {norm!r}. {did_you_mean(norm, NORMS)}')
        self.psi = psi
        self.policy = policy
        self.norm = norm
        self.strides: list[tuple[int, int]] | None = None

    def bind(self, student: Place, teacher: Place) -> None:
        """Remembers the strides of the student's tapped levels."""
        known = [stride for stride in student.strides if stride is not None]
        if len(known) == len(student.strides):
            self.strides = [(round(y), round(x)) for y, x in known]

    def compute(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        """Returns the unweighted loss.

        Raises:
            TapError: If a tapped level has no anchors.
        """
        masks = self.masks(batch, len(student))
        if self.norm == 'pooled':
            return _over_processes(imitation_loss(student, teacher, masks), masks)
        levels = [
            _over_processes(imitation_loss([s], [t], [m]), [m])
            for s, t, m in zip(student, teacher, masks, strict=True)
        ]
        return torch.stack(levels).mean()

    def masks(self, batch: Batch, levels: int) -> list[Tensor]:
        """Returns the masks (N, H, W) of the tapped levels."""
        tapped = self._tapped(list(batch.anchors), levels)
        anchors = list(batch.anchors.values())
        images = []
        for i, boxes in enumerate(batch.gt_boxes):
            valid = [batch.anchors_valid[stride][i] for stride in batch.anchors]
            images.append(imitation_mask(anchors, boxes, self.psi, self.policy, valid))
        if not images:  # nothing to stack
            shapes = [anchors[level].shape[:2] for level in tapped]
            return [torch.zeros(0, *shape, dtype=torch.bool) for shape in shapes]
        return [torch.stack([image[level] for image in images]) for level in tapped]

    def _tapped(self, strides: list[tuple[int, int]], levels: int) -> list[int]:
        if self.strides is None:  # used alone: only the number of levels can be compared
            if levels != len(strides):
                raise TapError(
                    f'FGFILoss: {levels} levels are tapped, of unknown stride, and there are '
                    f'anchors on {len(strides)}. Tap all of them, or bind the head first.'
                )
            return list(range(levels))
        for stride in self.strides:
            if stride not in strides:
                names = ', '.join(f'{y}x{x}' for y, x in strides)
                raise TapError(
                    f'FGFILoss: a tapped level of the student has stride {stride[0]}x{stride[1]}, '
                    f'where it has no anchors. Tap levels of these strides: {names}.'
                )
        return [strides.index(stride) for stride in self.strides]


def _over_processes(loss: Tensor, masks: Sequence[Tensor]) -> Tensor:
    # DDP averages gradients. Dividing each process' sum by the mean count makes that average the
    # loss of the whole batch; its own count would let a lone cell weigh as much as a thousand.
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return loss
    own = torch.stack([mask.sum() for mask in masks]).sum().float()
    mean = own.clone()
    distributed.all_reduce(mean)
    mean /= distributed.get_world_size()
    # One cell among many processes is a mean below 1; only no cell at all is none to divide by.
    return loss * own / torch.where(mean > 0, mean, 1.0)


def _check_options(psi: float, policy: str) -> None:
    if policy not in POLICIES:
        hint = did_you_mean(policy, POLICIES)
        raise ConfigError(f'FGFI: there is no policy {policy!r}. {hint}')
    if not 0 <= psi <= 1:
        raise ConfigError(f'FGFI: psi is a share of the best overlap, from 0 to 1, not {psi}.')


def _check_boxes(anchors: list[Tensor], gt_boxes: Tensor, valid: Sequence[Tensor] | None) -> None:
    if not anchors:
        raise ShapeError('imitation_mask: it needs the anchors of at least one level.')
    for level in anchors:
        if level.dim() != 4 or level.shape[-1] != 4:
            raise ShapeError(
                'imitation_mask: anchors are (H, W, A, 4) for each level, not '
                f'{tuple(level.shape)}.'
            )
    if gt_boxes.numel() and (gt_boxes.dim() != 2 or gt_boxes.shape[-1] != 4):
        raise ShapeError(f'imitation_mask: boxes are (G, 4), not {tuple(gt_boxes.shape)}.')
    if valid is not None and [v.shape for v in valid] != [a.shape[:3] for a in anchors]:
        raise ShapeError(
            f'imitation_mask: valid is {[tuple(v.shape) for v in valid]}, and the anchors '
            f'need {[tuple(a.shape[:3]) for a in anchors]}.'
        )


@HEADS.register
class FGFIDistillationHead(DistillationHead):
    """Imitation on the levels of a neck, each through a 3x3 convolution of its own.

    The convolution is there even for equal channels and starts near 0, as the authors' does; theirs
    ends in a ReLU, which fits their rectified target and not a neck's signed outputs.
    """

    default_loss: ClassVar[dict[str, Any]] = {'type': 'FGFILoss', 'loss_weight': 0.01}
    default_stu_connector: ClassVar[dict[str, Any]] = {
        'type': 'ConvConnector',
        'kernel_size': 3,
        'init_std': 1e-4,
    }


@PRESETS.register(name='fgfi')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns one distiller over all levels of the neck."""
    choose_at('fgfi', at, preset.at)
    if anatomy.kind not in ('one-stage', 'two-stage'):
        raise ConfigError(
            f"preset 'fgfi': it needs a detector's anchors and boxes; a {anatomy.kind} has none."
        )
    names = fitting_taps('fgfi', anatomy, 'neck.p*')
    head = {'type': 'FGFIDistillationHead', 'name': 'fgfi'}
    return [{'student_module': names, 'teacher_module': list(names), 'head': head}]


preset.at = ('neck',)
