"""KD-SVD: how the main directions of the channels change from one layer to the next.

Paper: Lee, Kim, Song: Self-supervised Knowledge Distillation Using Singular Value Decomposition.
    ECCV 2018. https://arxiv.org/abs/1807.06819
Reads: consecutive maps of a backbone (`backbone.cN`), all of them in one list.
Stages: one.
Tasks: classification.

KD-EID is this method with the eigenvalues of X^T X in place of the singular values of X, which is
how both are computed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from densekd.core.anatomy import Anatomy
from densekd.core.batch import Batch
from densekd.core.head import DistillationHead, DistillLoss
from densekd.core.ops import l2n, zero_like_loss
from densekd.core.taps import Place
from densekd.errors import ConfigError, ShapeError, TapError, did_you_mean
from densekd.methods.presets import choose_at, fitting_taps, only_classifiers
from densekd.registry import HEADS, LOSSES, PRESETS

BASES = ('teacher', 'own')
FURTHER = 3  # vectors of the student, beyond k, that an alignment may choose from
NEGLIGIBLE = 1e-6  # of the largest singular value: what lies below is rounding
NEAR = 1e-5  # of the largest eigenvalue: two that are nearer than that no longer repel each other
TERMS = 12  # of the series of exp(x), |x| <= 1/4: the next is 1e-16


def kdsvd_loss(
    students: Sequence[Tensor],  # of (N, C_l, H, W), one a layer
    teachers: Sequence[Tensor],  # of (N, C_l, H, W)
    basis: str = 'teacher',
    k: int = 4,
) -> Tensor:
    """Squared difference of how singular vectors of consecutive layers relate.

        X = a map of one image, (H*W, C);   X_t ~ U_t diag(sigma) V_t^T, the k largest
        V_s = X_s^T U_t, columns of unit length   ('teacher')
        V_s = for each of V_t, that of X_s's k + 3 with the largest |cos|, turned   ('own')
        v = V sigma / ||sigma||   for both, with the teacher's sigma
        R_l[c, d] = exp(-(v_l[c] - v_{l-1}[d])^2 / 8)   for each of the k
        L = 1/N sum_{n, l, k} sum_{c,d} (R_l^s - R_l^t)^2

    Each column of V_t has the sign that makes its entry of largest magnitude positive. So the loss
    is blind to the scale of a student's or a teacher's map and to the order of positions.

    Deviations: with the basis 'teacher', as in a later version of the authors' code, nothing is
    differentiated through a decomposition, and no vectors need to be matched. With 'own', the first
    version, the derivative has 1/(lambda_i - lambda_j), which is held finite where two are equal.
    The authors leave signs to the decomposition, by which their loss depends on the order of
    positions. They sum over the batch instead of taking its mean, so that a weight of theirs, which
    is 1, is N here. They clip the gradient of this loss to the task's: `densekd.core.clip`.

    Args:
        students: The student's maps, at least two.
        teachers: The teacher's, of as many channels each.
        basis: `'teacher'` or `'own'`; only with 'own' may H and W differ between the two.
        k: Singular vectors of each map; fewer where a map has fewer channels or positions.

    Raises:
        ConfigError: If there is no such basis, or k is not positive.
        ShapeError: If the lists are too short or do not fit each other.

    Example:
        >>> x, y = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0, 0.0]], [[0.0, 1.0]]]])
        >>> kdsvd_loss([x, y], [x, y]), kdsvd_loss([x, y.flip(1)], [x, y], k=1)
        (tensor(0.), tensor(0.0276))
    """
    _check_options(basis, k)
    _check_maps(students, teachers, basis)
    if not all(x.numel() for x in (*students, *teachers)):
        return zero_like_loss(*students)
    k = min(k, *(min(x.shape[1], x.shape[2:].numel()) for x in (*students, *teachers)))
    layers = []
    for student, teacher in zip(students, teachers, strict=True):
        x_s, x_t = (x.flatten(2).mT for x in (student, teacher.detach()))  # (N, H*W, C)
        left, right, weight = main_vectors(x_t, k)
        own = l2n(torch.bmm(x_s.mT, left), 1) if basis == 'teacher' else _aligned(x_s, right)
        layers.append((own * weight, right * weight))
    terms = [_apart(later, earlier) for earlier, later in pairwise(layers)]
    return torch.stack(terms).sum() / len(students[0])


def main_vectors(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns left (N, H*W, k) and right (N, C, k) vectors, and their weights (N, 1, k).

    Of maps as (N, H*W, C), the largest first. What has no singular value to speak of has zeros for
    vectors. No gradient is meant to go through it.
    """
    exact = x.double()
    tall = x.shape[1] > x.shape[2]
    gram = torch.bmm(exact.mT, exact) if tall else torch.bmm(exact, exact.mT)
    values, vectors = torch.linalg.eigh(gram)  # ascending
    values, vectors = values[:, -k:].flip(1).clamp(min=0), vectors[:, :, -k:].flip(2)
    sigma = values.sqrt()
    kept = (sigma > NEGLIGIBLE * sigma[:, :1])[:, None]
    left = l2n(torch.bmm(exact, vectors), 1) if tall else vectors
    left = torch.where(kept, left, 0.0)
    # By the same product as the student's, so that equal maps have equal vectors.
    right = l2n(torch.bmm(exact.mT, left), 1)
    sign = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()
    weight = torch.where(kept, l2n(sigma)[:, None], 0.0)
    return (left * sign).to(x), (right * sign).to(x), weight.to(x)


def _aligned(x: Tensor, right: Tensor) -> Tensor:
    """Returns the student's own vectors (N, C, k), each the likeliest partner of the teacher's."""
    most = min(right.shape[2] + FURTHER, *x.shape[1:])
    exact = x.double()
    tall = x.shape[1] > x.shape[2]
    gram = torch.bmm(exact.mT, exact) if tall else torch.bmm(exact, exact.mT)
    values, vectors = _Eigenvectors.apply(gram)
    values, vectors = values[:, -most:], vectors[:, :, -most:]
    kept = (values > NEGLIGIBLE**2 * values[:, -1:])[:, None]
    own = vectors if tall else l2n(torch.bmm(exact.mT, vectors), 1)
    own = torch.where(kept, own, 0.0).to(x)
    cosine = torch.bmm(right.mT, own).detach()  # (N, k, most)
    best = cosine.abs().argmax(2, keepdim=True)
    sign = torch.where(cosine.gather(2, best) < 0, -1.0, 1.0).to(x)
    return own.gather(2, best.mT.expand(-1, own.shape[1], -1)) * sign.mT


class _Eigenvectors(torch.autograd.Function):
    """Eigenvalues and vectors of symmetric matrices, the slope of the vectors finite always."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrices)
        ctx.save_for_backward(values, vectors)
        ctx.mark_non_differentiable(values)
        return values, vectors

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Tensor:
        values, vectors = ctx.saved_tensors
        gap = values[:, None, :] - values[:, :, None]
        square = gap.square() + (NEAR * values[:, -1:, None]).square()
        inverse = torch.where(square > 0, gap / torch.where(square > 0, square, 1.0), 0.0)
        return vectors @ (inverse * (vectors.mT @ slopes[1])) @ vectors.mT


Layer = tuple[Tensor, Tensor]  # the student's and the teacher's vectors of a layer, (N, C, k)


def _apart(later: Layer, earlier: Layer) -> Tensor:
    """Returns the sum of (R^s - R^t)^2, without any of the N*k matrices C_l x C_{l-1}.

    With exp(a*b/4) as its series, R = P(a) P(b)^T for P(a) of few columns, and the squared
    difference of two such products comes from products of few columns with each other.
    """
    (a_s, a_t), (b_s, b_t) = ([_series(x) for x in layer] for layer in (later, earlier))
    # R^s - R^t = a b_s^T + a_t b^T: in differences, for which nothing large has to cancel.
    a, b = a_s - a_t, b_s - b_t
    first = (a.mT @ a) * (b_s.mT @ b_s)
    mixed = (a.mT @ a_t) * (b_s.mT @ b)
    second = (a_t.mT @ a_t) * (b.mT @ b)
    return (first + 2 * mixed + second).sum()


def _series(v: Tensor) -> Tensor:
    """Returns P(v) (N, k, C, TERMS) with exp(-(a - b)^2 / 8) = P(a) P(b)^T, for |a|, |b| <= 1."""
    v = v.mT
    term = (v.square() / -8).exp()
    terms = [term]
    for n in range(1, TERMS):
        term = term * v / (2 * n**0.5)
        terms.append(term)
    return torch.stack(terms, 3)


@LOSSES.register
class KDSVDLoss(DistillLoss):
    """`kdsvd_loss` as a module, of a list of at least two places on each side.

    Args:
        loss_weight: Factor.
        basis: `'teacher'` or `'own'`.
        k: Singular vectors of each map.
        size: Height and width that larger maps are averaged down to before the decomposition, of
            which there is one an image and layer. Its time grows with the cube of the smaller of
            channels and cells.

    Raises:
        ConfigError: If an option is none of these.

    Example:
        >>> x, y = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[2.0, 0.0]], [[0.0, 1.0]]]])
        >>> KDSVDLoss(loss_weight=10.0, k=1)([x, y.flip(1)], [x, y])
        tensor(0.2761)
    """

    pairs = False
    align = 'pool_larger'

    def __init__(
        self, loss_weight: float = 1.0, basis: str = 'teacher', k: int = 4, size: int = 16
    ) -> None:
        super().__init__(loss_weight)
        _check_options(basis, k)
        if size < 1:
            raise ConfigError(f'KDSVDLoss: size is a number of cells, not {size}.')
        self.basis = basis
        self.k = k
        self.size = size

    def bind(self, student: Place, teacher: Place) -> None:
        """Refuses taps that do not give several maps.

        Raises:
            TapError: If a side gives one tensor, or something that is no map.
        """
        for place in (student, teacher):
            if len(place.shapes) < 2 or any(len(shape) != 4 for shape in place.shapes):
                raise TapError(
                    f'KDSVDLoss: tap {place.tap.label!r} gives {list(place.shapes)}, and it '
                    'compares how maps follow each other. Give a list of places, such as '
                    '["backbone.c3", "backbone.c4"].'
                )

    def compute(self, student: list[Tensor], teacher: list[Tensor], batch: Batch) -> Tensor:
        """Returns the unweighted loss."""
        s, t = ([self._pooled(x) for x in side] for side in (student, teacher))
        return kdsvd_loss(s, t, self.basis, self.k)

    def _pooled(self, x: Tensor) -> Tensor:
        if not x.numel() or max(x.shape[2:]) <= self.size:
            return x
        h, w = (min(side, self.size) for side in x.shape[2:])
        return F.adaptive_avg_pool2d(x, (h, w))


def _check_options(basis: str, k: int) -> None:
    if basis not in BASES:
        raise ConfigError(f'KD-SVD: there is no basis {basis!r}. {did_you_mean(basis, BASES)}')
    if k < 1:
        raise ConfigError(f'KD-SVD: k is a number of singular vectors, not {k}.')


def _check_maps(students: Sequence[Tensor], teachers: Sequence[Tensor], basis: str) -> None:
    if len(students) != len(teachers) or len(students) < 2:
        raise ShapeError(
            f'kdsvd_loss: the student gives {len(students)} maps and the teacher {len(teachers)}; '
            'it takes two or more consecutive ones, as many on each side.'
        )
    for s, t in zip(students, teachers, strict=True):
        axes = 4 if basis == 'teacher' else 2
        if s.dim() != 4 or t.dim() != 4 or s.shape[:axes] != t.shape[:axes]:
            same = 'channels, H and W' if basis == 'teacher' else 'channels'
            raise ShapeError(
                f'kdsvd_loss: the student map is {tuple(s.shape)} and the teacher map '
                f'{tuple(t.shape)}; both must be (N, C, H, W), and images, {same} must agree.'
            )


@HEADS.register
class KDSVDDistillationHead(DistillationHead):
    """Relations of consecutive maps, by the teacher's singular vectors.

    Where channels differ, a 1x1 convolution and a normalisation bring the student's to the
    teacher's.
    """

    default_loss: ClassVar[dict[str, Any]] = {'type': 'KDSVDLoss', 'loss_weight': 1.0}
    default_stu_connector: ClassVar[dict[str, Any]] = {
        'type': 'ConvConnector',
        'norm': 'BN',
        'only_if_needed': True,
    }


@PRESETS.register(name='kdsvd')
def preset(anatomy: Anatomy, at: str | None = None) -> list[dict[str, Any]]:
    """Returns KD-SVD over the ends of all stages of a classifier, with weight 1.

    Its gradient is clipped to the task's, as by the authors. The weight is that of ports that have
    the mean over the batch; the authors' sum is a weight of N.
    """
    choose_at('kdsvd', at, preset.at)
    only_classifiers('kdsvd', anatomy, 'a decomposition of each map of an image costs too much')
    names = fitting_taps('kdsvd', anatomy, 'backbone.c?')
    if len(names) < 2:
        raise ConfigError(
            f"preset 'kdsvd': it needs two taps backbone.cN that can be taught, and there is "
            f'{names}.'
        )
    head = {'type': 'KDSVDDistillationHead', 'name': 'kdsvd'}
    places = {'student_module': names, 'teacher_module': list(names)}
    return [{**places, 'head': head, 'clip_to_task': True}]


preset.at = ('backbone',)
