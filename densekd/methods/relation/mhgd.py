"""MHGD: how images attend to each other from one layer to the next, by an attention of the teacher.

Paper: Lee, Song: Graph-based Knowledge Distillation by Multi-head Attention Network. BMVC 2019.
    https://arxiv.org/abs/1907.02226
Reads: consecutive maps of a backbone (`backbone.cN`), all of them in one list.
Stages: two; the attention, of the teacher alone, is trained first, by what it can estimate.
Tasks: classification.

The first stage needs no student. In a config with stages it is a distiller of the teacher alone,

    places = ['backbone.c2', 'backbone.c3', 'backbone.c4']
    dict(name='attention', train=['distillers'], task_loss=False,
         distillers=[dict(student_module=places, teacher_module=places,
                          head=dict(type='MHGDEstimatorDistillationHead', name='mhgd'))],
         hand_over=['distillers.*.attention.*', 'distillers.*.trained'])

and the second has the same with MHGDDistillationHead, of the same name. In a loop of your own,
train an `MHGDEstimatorLoss` (40 epochs of the authors' 140), save its state_dict, and name the file
in the head: loss=dict(type='MHGDLoss', checkpoint=…).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.core.batch import Batch
from densekd.core.checkpoint import load_weights, read_checkpoint, weights_in
from densekd.core.head import DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import l2n, numbers_of, zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError, ShapeError, TapError
from densekd.methods.feature.kdsvd import main_vectors
from densekd.registry import HEADS, LOSSES

HEADS_OF_PAPER = 8


def mhgd_loss(
    student: Tensor,  # (heads, N, N), before any softmax
    teacher: Tensor,  # (heads, N, N)
) -> Tensor:
    """Divergence of the student's attention between images from the teacher's.

        p = softmax_j(tanh(G_hij))
        L = mean_{h,i} sum_j p^s log(p^s / p^t)

    So a row of p has no entry above e^2 times another.

    Deviations: the student comes first in the divergence, as in the authors' code. They sum over
    heads and rows: a weight of theirs would be 8 N times ours. They clip the gradient of that sum
    to a growing share of the task's: `densekd.core.clip`.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> student, teacher = torch.tensor([[[9.0, -9.0]]]), torch.tensor([[[0.0, 0.0]]])
        >>> mhgd_loss(student, teacher)  # log 2 - entropy of (e, 1/e) / (e + 1/e)
        tensor(0.3278)
    """
    check_same_shape(student, teacher, 'mhgd_loss')
    if not student.numel():
        return zero_like_loss(student)
    s, t = student.tanh().log_softmax(2), teacher.detach().tanh().log_softmax(2)
    return (s.exp() * (s - t)).sum(2).mean()


def mhgd_estimator_loss(
    estimate: Tensor,  # (N, C)
    teacher: Tensor,  # (N, C)
) -> Tensor:
    """What the attention is trained by: how far estimates of a layer's vectors are turned away.

        L = mean_n (1 - cos(e_n, v_n))

    Deviations: none from the authors' code. A vector of zeros is at a right angle to all others.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> mhgd_estimator_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
        tensor(0.4000)
    """
    check_same_shape(estimate, teacher, 'mhgd_estimator_loss')
    if not estimate.numel():
        return zero_like_loss(estimate)
    return (1 - (l2n(estimate) * l2n(teacher.detach())).sum(1)).mean()


class GraphAttention(nn.Module):
    """Attention of the images of a batch, from a layer to the one before it, once a head.

        G_h = BN(V_l A_h) BN(V_{l-1} B_h)^T

    Args:
        earlier: Channels of the earlier layer.
        later: Channels of the later one.
        heads: How many.

    Example:
        >>> attention = GraphAttention(3, 5, heads=2)
        >>> attention(torch.randn(4, 3), torch.randn(4, 5)).shape
        torch.Size([2, 4, 4])
    """

    def __init__(self, earlier: int, later: int, heads: int = HEADS_OF_PAPER) -> None:
        super().__init__()
        self.heads = heads
        wide = heads * ((earlier + later) // 2)
        self.sender = nn.Sequential(nn.Linear(later, wide, bias=False), nn.BatchNorm1d(wide))
        # A shift of all receivers is the same to each of them: no softmax over them would see it.
        self.receiver = nn.Sequential(
            nn.Linear(earlier, wide, bias=False), nn.BatchNorm1d(wide, affine=False)
        )

    def forward(self, earlier: Tensor, later: Tensor) -> Tensor:
        """Returns the graphs (heads, N, N): a row for each image of the later layer."""
        return self._split(self.sender(later)) @ self._split(self.receiver(earlier)).mT

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), self.heads, -1).transpose(0, 1)


class GraphEstimator(nn.Module):
    """Estimates a layer's vectors from those before it, of the images that each attends to.

    While it trains, each image sees about half of the heads.

    Args:
        earlier: Channels of the earlier layer.
        later: Channels of the later one.
        heads: Of the attention.

    Example:
        >>> estimator = GraphEstimator(3, 5, heads=2).eval()
        >>> estimator(torch.randn(4, 3), torch.randn(2, 4, 4)).shape
        torch.Size([4, 5])
    """

    def __init__(self, earlier: int, later: int, heads: int = HEADS_OF_PAPER) -> None:
        super().__init__()
        width = (earlier + later) // 2
        self.value = nn.Sequential(
            nn.Linear(earlier, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()
        )
        self.out = nn.Linear(heads * width, later)

    def forward(
        self, earlier: Tensor, graphs: Tensor, numbers: torch.Generator | None = None
    ) -> Tensor:
        """Returns the estimates (N, C), of unit length.

        Args:
            earlier: The earlier layer's vectors, (N, C).
            graphs: The attention, (heads, N, N).
            numbers: What decides which heads an image sees, on the CPU; None for torch's own.
        """
        weights = graphs.softmax(2)
        if self.training:
            noise = torch.randn((*weights.shape[:2], 1), generator=numbers).to(weights)
            weights = torch.where(noise > noise.mean(0), weights, 0.0)
        seen = weights @ self.value(earlier)
        return l2n(self.out(seen.transpose(0, 1).flatten(1)))


def _vectors(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Returns the main vector of the channels, student's and teacher's, (N, C), of each layer.

    The student's is read at the teacher's left vector, by which it needs no partner and no sign.
    """
    found = []
    for student, teacher in zip(students, teachers, strict=True):
        if student.dim() != 4 or student.shape != teacher.shape:
            raise ShapeError(
                f'MHGD: the student map is {tuple(student.shape)} and the teacher map '
                f'{tuple(teacher.shape)}; both must be (N, C, H, W), and alike.'
            )
        x_s, x_t = (x.flatten(2).mT for x in (student, teacher.detach()))
        left, right, _ = main_vectors(x_t, 1)
        found.append((l2n(torch.bmm(x_s.mT, left).squeeze(2)), right.squeeze(2)))
    return found


class _Attending(DistillLoss):
    """What both stages have: an attention between each layer and the one before it."""

    pairs = False
    align = 'pool_larger'
    fewest = 2

    trained: Tensor

    def __init__(self, loss_weight: float, heads: int, size: int, trained: bool) -> None:
        super().__init__(loss_weight)
        name = type(self).__name__
        if heads < 1 or size < 1:
            raise ConfigError(f'{name}: heads={heads} and size={size} are numbers, 1 at least.')
        self.heads = heads
        self.size = size
        self.attention = nn.ModuleList()
        self.register_buffer('trained', torch.tensor(trained))

    def bind(self, student: Place, teacher: Place) -> None:
        """Builds the attention for the teacher's channels, which the student's are brought to.

        Raises:
            TapError: If a side gives one tensor, or something that is no map.
        """
        name = type(self).__name__
        for place in (student, teacher):
            if len(place.shapes) < 2 or any(len(shape) != 4 for shape in place.shapes):
                raise TapError(
                    f'{name}: tap {place.tap.label!r} gives {list(place.shapes)}, and it compares '
                    'how maps follow each other. Give a list of places, such as '
                    '["backbone.c3", "backbone.c4"].'
                )
        self.build([shape[1] for shape in teacher.shapes])

    def build(self, channels: Sequence[int]) -> None:
        """Builds what depends on the channels of each layer."""
        self.attention = nn.ModuleList(
            GraphAttention(a, b, self.heads) for a, b in pairwise(channels)
        )

    def layers(self, student: list[Tensor], teacher: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Returns the main vectors of each layer, student's and teacher's."""
        if len(student) != len(self.attention) + 1:
            raise ShapeError(
                f'{type(self).__name__}: the student gives {len(student)} maps, and the attention '
                f'is one of {len(self.attention) + 1}. Bind it to its places, as a head does.'
            )
        return _vectors(*([self._pooled(x) for x in side] for side in (student, teacher)))

    def _pooled(self, x: Tensor) -> Tensor:
        if not x.numel() or max(x.shape[2:]) <= self.size:
            return x
        h, w = (min(side, self.size) for side in x.shape[2:])
        return F.adaptive_avg_pool2d(x, (h, w))


@LOSSES.register
class MHGDLoss(_Attending):
    """`mhgd_loss`, summed over each layer and the one before, by a frozen attention.

        V_l = the main right singular vector of each image's map, (N, C_l);
              the student's is X_s^T u_t, of unit length, u_t the teacher's left one

    Deviations: the authors take the student's own vector of its first four that is nearest to the
    teacher's, and leave signs to the decomposition. Normalisations are in eval mode, as theirs are.

    Args:
        loss_weight: Factor.
        heads: Of the attention; that of the first stage.
        size: Height and width that larger maps are averaged down to.
        checkpoint: State of the `MHGDEstimatorLoss` that was trained: a path or a URL.
        untrained: Whether an attention of random weights is meant, as for a test.

    Raises:
        ConfigError: If an option is none of these, or it is used without weights.
        CheckpointError: If the weights are not those of an attention for these channels.

    Example:
        >>> from densekd.methods import MHGDDistillationHead
        >>> head = MHGDDistillationHead(loss=dict(type='MHGDLoss', untrained=True))
        >>> maps = [torch.randn(4, 2, 3, 3), torch.randn(4, 5, 2, 2)]
        >>> bool(head(maps, maps) < 1e-6 < head([x.flip(2, 3) for x in maps], maps))
        True
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        heads: int = HEADS_OF_PAPER,
        size: int = 16,
        checkpoint: str | os.PathLike[str] | None = None,
        untrained: bool = False,
    ) -> None:
        super().__init__(loss_weight, heads, size, trained=False)
        self.checkpoint = checkpoint
        self.untrained = untrained

    def build(self, channels: Sequence[int]) -> None:
        """Builds the attention, and loads it."""
        super().build(channels)
        if self.checkpoint is not None:
            saved = weights_in(read_checkpoint(self.checkpoint), self.checkpoint)
            own = {
                name.removeprefix('attention.'): value
                for name, value in saved.items()
                if name.startswith('attention.')
            }
            load_weights(self.attention, own, self.checkpoint, 'attention')
            self.trained.fill_(True)
        self.attention.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MHGDLoss:
        """Keeps the attention in eval mode."""
        super().train(mode)
        self.attention.eval()
        return self

    def compute(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        if not (self.untrained or self.trained):
            raise ConfigError(
                'MHGDLoss: no weights are given, and an untrained attention has nothing to say. '
                'Give checkpoint=…, the state of an MHGDEstimatorLoss, hand it over from a stage '
                'before, or give untrained=True if that is meant.'
            )
        if len(student[0]) < 2 or not all(x.numel() for x in student):
            return zero_like_loss(*student)
        terms = []
        layers = self.layers(student, teacher)
        for attention, (earlier, later) in zip(self.attention, pairwise(layers), strict=True):
            own, theirs = (attention(earlier[side], later[side]) for side in (0, 1))
            terms.append(mhgd_loss(own, theirs))
        return torch.stack(terms).sum()


@LOSSES.register
class MHGDEstimatorLoss(_Attending):
    """`mhgd_estimator_loss`, summed over each layer but the first: MHGD's first stage.

    What is estimated is the teacher's; what it is estimated from are the maps on the student's
    side, which are the teacher's own in `MHGDEstimatorDistillationHead`.

    Args:
        loss_weight: Factor.
        heads: Of the attention.
        size: Height and width that larger maps are averaged down to.

    Example:
        >>> from densekd.methods import MHGDEstimatorDistillationHead
        >>> maps = [torch.randn(4, 2, 3, 3), torch.randn(4, 5, 2, 2)]
        >>> value = MHGDEstimatorDistillationHead()(None, maps)
        >>> bool(0 < value < 2), value.requires_grad
        (True, True)
    """

    needs: ClassVar[tuple[str, ...]] = ('seed',)
    minimum_at_equality = False

    def __init__(
        self, loss_weight: float = 1.0, heads: int = HEADS_OF_PAPER, size: int = 16
    ) -> None:
        super().__init__(loss_weight, heads, size, trained=True)
        self.estimators = nn.ModuleList()

    def build(self, channels: Sequence[int]) -> None:
        """Builds the attention and the estimators."""
        super().build(channels)
        self.estimators = nn.ModuleList(
            GraphEstimator(a, b, self.heads) for a, b in pairwise(channels)
        )

    def compute(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        if len(student[0]) < 2 or not all(x.numel() for x in student):
            return zero_like_loss(*student, *self.parameters())
        # One for all layers, so that each has heads of its own.
        numbers = numbers_of(batch.seed if batch.has('seed') else 0)
        terms = []
        steps = zip(
            self.attention, self.estimators, pairwise(self.layers(student, teacher)), strict=True
        )
        for attention, estimator, (earlier, later) in steps:
            graphs = attention(earlier[0], later[0])
            estimate = estimator(earlier[0], graphs, numbers)
            terms.append(mhgd_estimator_loss(estimate, later[1]))
        return torch.stack(terms).sum()


@HEADS.register
class MHGDDistillationHead(DistillationHead):
    """Attention between images over consecutive maps, with weight 1, which is ours.

    Where channels differ, a 1x1 convolution and a normalisation bring the student's to the
    teacher's. The attention's weights have to be given.
    """

    default_loss: ClassVar[dict[str, Any]] = {'type': 'MHGDLoss', 'loss_weight': 1.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {
        'type': 'ConvConnector',
        'norm': 'BN',
        'only_if_needed': True,
    }


@HEADS.register
class MHGDEstimatorDistillationHead(DistillationHead):
    """MHGD's first stage: the attention learns of the teacher alone; the student is not read."""

    default_loss: ClassVar[dict[str, Any]] = {'type': 'MHGDEstimatorLoss', 'loss_weight': 1.0}

    @property
    def reads_student(self) -> bool:
        """Never."""
        return False
