"""LSL: layers that are chosen by what they tell classes apart by, aligned in a space of their own.

Paper: Li, Lin, Chen, Chiang: Layer-Level Knowledge Distillation for Deep Neural Network Learning.
    Applied Sciences 2019.
Reads: the ends of stages (`backbone.cN`) or other layers, those that a `LayerSelector` chooses.
Stages: one; the layers are chosen before it, in one pass of the teacher.
Tasks: classification.

No code of the authors is public, and of their normalisations only the abstract's words are known
here: which layers, by a layered inter-class and an inter-layered Gram matrix (`LayerSelector`), and
a projection of each side to vectors that are aligned (`lsl_loss`). What is ours is said where it
stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from densekd.core.batch import Batch
from densekd.core.head import Connector, DistillationHead, DistillLoss, check_same_shape
from densekd.core.ops import l2n, zero_like_loss
from densekd.core.taps import Place, Tap, Taps
from densekd.errors import ConfigError, ShapeError
from densekd.methods.relation.vectors import check_images, vectors_of
from densekd.registry import CONNECTORS, HEADS, LOSSES

MOST = 200_000  # choices of layers that are compared


def lsl_loss(
    student: Tensor,  # (N, D), projected
    teacher: Tensor,  # (N, D), projected
    eps: float = 1e-5,
) -> Tensor:
    """Squared difference of two projections, each dimension standardised over the batch.

        y_nd = (x_nd - mean_n x_nd) / sqrt(var_n x_nd + eps)
        L = mean_{n,d} (y^s - y^t)^2

    So it is blind to shift and scale of each dimension, and at most 4: two heads that map all
    images to one point gain nothing by it. A dimension's share is 2 - 2 times its correlation.

    Deviations: the paper has the Euclidean distance of projections that both learn, whose least
    value is that of two heads of zeros; the standardisation is ours.

    Raises:
        ShapeError: If a side is not (N, D), or the shapes differ.

    Example:
        >>> student = torch.tensor([[0.0], [2.0]])
        >>> lsl_loss(student, 5 * student, eps=0.0), lsl_loss(student, -student, eps=0.0)
        (tensor(0.), tensor(4.))
    """
    check_images(student, teacher, 'lsl_loss')
    check_same_shape(student, teacher, 'lsl_loss')
    if len(student) < 2 or not student.numel():
        return zero_like_loss(student)
    return (_standard(student, eps) - _standard(teacher.detach(), eps)).square().mean()


def _standard(x: Tensor, eps: float) -> Tensor:
    apart = x - x.mean(0)
    return apart * (apart.square().mean(0) + eps).rsqrt()


def class_likeness(
    means: Tensor,  # (K, C), a layer's mean of each class
) -> Tensor:
    """How alike the classes are at a layer: the mean beside the diagonal of their Gram matrix.

        L = mean_{i != j} <m_i, m_j> / (||m_i|| ||m_j||)

    It is 1 where all classes have one direction, and 0 where they are at right angles.

    Deviations: the paper has the Gram matrix; that its vectors are of unit length, and its mean,
    are ours.

    Raises:
        ShapeError: If these are not the means of at least two classes.

    Example:
        >>> class_likeness(torch.eye(3)), class_likeness(torch.ones(3, 2))
        (tensor(0.), tensor(1.0000))
    """
    if means.dim() != 2 or len(means) < 2:
        raise ShapeError(
            f'class_likeness: means of two classes or more are needed, (K, C), not '
            f'{tuple(means.shape)}.'
        )
    unit = l2n(means)
    gram = unit @ unit.T
    count = len(means)
    return (gram.sum() - gram.diagonal().sum()) / (count * (count - 1))


def layer_likeness(
    first: Tensor,  # (K, C1), a layer's mean of each class
    second: Tensor,  # (K, C2), another layer's
) -> Tensor:
    """How alike two layers see the classes: the cosine of their Gram matrices.

        G = (m - mean_k m)(m - mean_k m)^T
        L = <G_1, G_2> / (||G_1|| ||G_2||)

    It is 1 where one layer is a rotation of the other, and it is never negative.

    Deviations: the paper has inner products between layers, which need equal widths; this form of
    them, of matrices K x K, is ours.

    Raises:
        ShapeError: If the classes differ.

    Example:
        >>> first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> layer_likeness(first, 3 * first.flip(1))
        tensor(1.0000)
    """
    if first.dim() != 2 or second.dim() != 2 or len(first) != len(second):
        raise ShapeError(
            f'layer_likeness: means of the same classes are needed, (K, C), not '
            f'{tuple(first.shape)} and {tuple(second.shape)}.'
        )
    grams = []
    for means in (first, second):
        apart = means - means.mean(0)
        grams.append(l2n((apart @ apart.T).flatten()))
    return (grams[0] * grams[1]).sum()


class LayerSelector:
    """Chooses layers of a network that tell classes apart, and that differ from each other.

    It takes the choice of so many layers of which this is least:

        mean over layers of class_likeness + mean over pairs of layers of layer_likeness

    It sees the mean of each class at each layer, of pooled maps, from a pass over some data. The
    paper determines layers of both networks; that the teacher's are chosen, and paired with the
    student's of the same depth, is ours.

    Example:
        >>> selector = LayerSelector()
        >>> labels = torch.tensor([0, 1, 0, 1])
        >>> apart, alike = torch.eye(2)[labels], torch.ones(4, 1)
        >>> selector.update({'deep': apart, 'shallow': alike}, labels)
        >>> selector.select(1), selector.class_likeness()
        (['deep'], {'deep': 0.0, 'shallow': 1.0})
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[int, Tensor]] = {}
        self._counts: dict[int, int] = {}

    @torch.no_grad()
    def update(self, layers: Mapping[str, Tensor], labels: Tensor) -> None:
        """Adds a batch.

        Args:
            layers: The tensor of each layer, a vector or a map an image.
            labels: The class of each image, (N,).

        Raises:
            ShapeError: If there are other layers than before, or other than one label an image.
        """
        if self._sums and set(layers) != set(self._sums):
            raise ShapeError(
                f'LayerSelector: the layers are {", ".join(layers)}, and were '
                f'{", ".join(self._sums)} in the batch before.'
            )
        for name, value in layers.items():
            vectors = vectors_of(value.double(), f'LayerSelector: {name}')
            if labels.shape != (len(vectors),):
                raise ShapeError(
                    f'LayerSelector: {name} has {len(vectors)} images, and the labels are '
                    f'{tuple(labels.shape)}.'
                )
            sums = self._sums.setdefault(name, {})
            for k in labels.unique().tolist():
                total = vectors[labels == k].sum(0)
                sums[k] = sums[k] + total if k in sums else total
        for k in labels.tolist():
            self._counts[k] = self._counts.get(k, 0) + 1

    def read(
        self, model: nn.Module, taps: Mapping[str, Tap], batches: Iterable[tuple[Tensor, Tensor]]
    ) -> LayerSelector:
        """Adds what a network makes of some data, in eval mode, and leaves it as it was.

        Args:
            model: The network.
            taps: The layers, by name.
            batches: Images, as the network is given them, and the class of each.
        """
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            for images, labels in batches:
                with torch.no_grad(), Taps(model, taps) as reading:
                    model(images)
                self.update({name: reading[name] for name in taps}, labels)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return self

    def means(self) -> dict[str, Tensor]:
        """Returns the mean of each class (K, C) at each layer, of the classes that were seen.

        Raises:
            ConfigError: If there are fewer than two.
        """
        classes = sorted(self._counts)
        if len(classes) < 2:
            raise ConfigError(
                f'LayerSelector: it compares classes, and has seen images of {len(classes)}. Give '
                'it labelled images of two or more.'
            )
        return {
            name: torch.stack([sums[k] / self._counts[k] for k in classes])
            for name, sums in self._sums.items()
        }

    def class_likeness(self) -> dict[str, float]:
        """Returns how alike the classes are at each layer."""
        return {name: float(class_likeness(means)) for name, means in self.means().items()}

    def select(self, count: int) -> list[str]:
        """Returns the names of the layers that are chosen, in the order that they were given in.

        Args:
            count: How many.

        Raises:
            ConfigError: If there are not so many, or too many choices.
        """
        means = self.means()
        names = list(means)
        if not 1 <= count <= len(names) or math.comb(len(names), count) > MOST:
            raise ConfigError(
                f'LayerSelector: {count} layers of {len(names)} can not be chosen: at least one, '
                f'and no more than {MOST} choices are compared.'
            )
        alone = self.class_likeness()
        both = {
            pair: float(layer_likeness(means[pair[0]], means[pair[1]]))
            for pair in combinations(names, 2)
        }

        def score(chosen: tuple[str, ...]) -> float:
            pairs = [both[pair] for pair in combinations(chosen, 2)]
            mean = sum(pairs) / len(pairs) if pairs else 0.0
            return sum(alone[name] for name in chosen) / count + mean

        scores = {chosen: score(chosen) for chosen in combinations(names, count)}
        best = min(scores, key=scores.__getitem__)
        return list(best)


@LOSSES.register
class LSLLoss(DistillLoss):
    """`lsl_loss` as a module.

    Args:
        loss_weight: Factor.
        eps: What is added to each variance.

    Raises:
        ConfigError: If eps is not positive.

    Example:
        >>> round(LSLLoss(loss_weight=10.0)(torch.eye(2), torch.eye(2).flip(0)).item(), 2)
        40.0
    """

    vectors = True
    fewest = 2

    def __init__(self, loss_weight: float = 1.0, eps: float = 1e-5) -> None:
        super().__init__(loss_weight)
        if eps <= 0:
            raise ConfigError(f'LSLLoss: eps keeps a variance from 0, and {eps} is not positive.')
        self.eps = eps

    def compute(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        s, t = vectors_of(student, 'LSLLoss'), vectors_of(teacher, 'LSLLoss')
        return lsl_loss(s, t, self.eps)


@CONNECTORS.register
class ProjectionConnector(Connector):
    """Pools a map, or takes a vector, and projects it linearly.

    It starts as an orthogonal projection, which keeps as much of what it is given as it can.

    Args:
        out_channel: Length of the projection; None is the smaller of both sides' channels.
        frozen: Whether it stays as it starts. Of two that learn, both may forget what is hard.

    Raises:
        ConfigError: If the length is not positive.

    Example:
        >>> connector = ProjectionConnector(out_channel=8)
        >>> connector.bind(*(Place(Tap('x'), ((1, c, 4, 4),), (None,)) for c in (4, 6)))
        >>> connector(torch.zeros(2, 4, 5, 3)).shape
        torch.Size([2, 8])
    """

    def __init__(self, out_channel: int | None = None, frozen: bool = False) -> None:
        super().__init__()
        if out_channel is not None and out_channel < 1:
            raise ConfigError(f'ProjectionConnector: out_channel={out_channel} is not positive.')
        self.out_channel = out_channel
        self.frozen = frozen
        self.layer: nn.Linear | None = None

    def bind(self, own: Place, other: Place) -> None:
        """Builds the projection."""
        length = self.out_channel or min(own.channels, other.channels)
        # A shift of all images is taken away where they are standardised.
        self.layer = nn.Linear(own.channels, length, bias=False)
        nn.init.orthogonal_(self.layer.weight)
        self.layer.requires_grad_(not self.frozen)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the projections (N, D)."""
        if self.layer is None:
            raise ConfigError(
                'ProjectionConnector: its channels are not known yet. Bind it to two places, as a '
                'head does.'
            )
        return self.layer(vectors_of(x, 'ProjectionConnector'))


@HEADS.register
class LSLDistillationHead(DistillationHead):
    """One pair of layers: a projection that learns for the student, a fixed one for the teacher.

    The weight of 1 is ours, as is that the teacher's projection is fixed.
    """

    default_loss: ClassVar[dict[str, Any]] = {'type': 'LSLLoss', 'loss_weight': 1.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {'type': 'ProjectionConnector'}
    default_tea_connector: ClassVar[dict[str, Any]] = {
        'type': 'ProjectionConnector',
        'frozen': True,
    }
