"""Where implementations of the losses on class logits usually go wrong: DKD and DIST."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from densekd.core.batch import Batch
from densekd.core.columns import Columns
from densekd.core.distiller import Distiller, check_needs
from densekd.core.head import DistillationHead
from densekd.core.taps import Place, Tap
from densekd.errors import ConfigError, DataError, ShapeError
from densekd.methods import (
    DISTDistillationHead,
    DISTLoss,
    DKDDistillationHead,
    DKDLoss,
    dist_loss,
    dkd_loss,
)

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    'dkd': lambda s, t: dkd_loss(s, t, torch.zeros(len(s), *s.shape[2:], dtype=torch.long)),
    'dist': dist_loss,
}
HEADS = {'dkd': DKDDistillationHead, 'dist': DISTDistillationHead}
both = pytest.mark.parametrize('name', list(LOSSES))


def place(
    name: str = 'decode.logits',
    shape: tuple[int, ...] = (1, 4, 4, 5),
    columns: Columns | None = None,
) -> Place:
    return Place(Tap(name, name=name, columns=columns), (shape,), (None,))


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


# Both


@both
def test_no_rows_are_an_attached_zero(name: str) -> None:
    for shape in ((0, 4), (0, 4, 3, 3), (2, 4, 0, 3)):
        s = torch.zeros(shape, requires_grad=True)
        value = LOSSES[name](s, torch.zeros(shape))
        value.backward()
        assert value.item() == 0.0 and s.grad is not None


@both
def test_certain_networks_that_disagree_are_finite(name: str) -> None:
    # Probabilities round to 0 and 1 here, whose logarithm is infinite.
    s = torch.tensor([[2000.0, 0.0, -2000.0, 0.0]] * 2, requires_grad=True)
    t = torch.tensor([[-2000.0, 0.0, 2000.0, 0.0], [0.0, 2000.0, 0.0, 0.0]])
    value = LOSSES[name](s, t)
    value.backward()
    assert bool(value.isfinite()) and bool(s.grad.isfinite().all())


@both
def test_what_can_not_be_compared_is_refused(name: str) -> None:
    loss = LOSSES[name]
    with pytest.raises(ShapeError, match='the student has 4 classes and the teacher 5'):
        loss(torch.zeros(2, 4), torch.zeros(2, 5))
    with pytest.raises(ShapeError, match='the student has 2 images and the teacher 3'):
        loss(torch.zeros(2, 4), torch.zeros(3, 4))
    with pytest.raises(ShapeError, match=r'\(N, K\) or \(N, K, H, W\), not \(2, 5, 4\)'):
        loss(torch.zeros(2, 5, 4), torch.zeros(2, 5, 4))


@pytest.mark.parametrize('junk', [float('inf'), float('nan'), 1e30])
@both
def test_ignored_pixels_may_hold_anything(name: str, junk: float) -> None:
    s, t = torch.randn(2, 2, 4, 3, 5)
    labels = torch.randint(4, (2, 3, 5))
    hidden = torch.rand(2, 3, 5) > 0.6

    def loss(x: Tensor, y: Tensor) -> Tensor:
        if name == 'dist':
            return dist_loss(x, y, valid=~hidden)
        return dkd_loss(x, y, labels.masked_fill(hidden, 255))

    expected = loss(s, t)
    away = hidden[:, None].expand_as(s)
    x = s.masked_fill(away, junk).requires_grad_()
    value = loss(x, t.masked_fill(away, junk))
    value.backward()
    torch.testing.assert_close(value, expected)
    assert bool(x.grad.isfinite().all()) and not x.grad[away].any()


@both
def test_heads_refuse_sigmoids_and_unlike_classes_when_they_are_built(name: str) -> None:
    with pytest.raises(ConfigError, match='kd_qfl or binary_kl'):
        HEADS[name]().bind(place('head.cls_logits'), place('head.cls_logits'))
    with pytest.raises(ConfigError, match='WeightedSoftObjectnessLoss'):
        HEADS[name]().bind(place(), place('rpn.objectness'))
    with pytest.raises(ShapeError, match='the student has 4 classes and the teacher 5'):
        HEADS[name]().bind(place(), place(shape=(1, 5, 4, 5)))
    # Behind a connector the channels may be anything.
    head = HEADS[name](stu_connector={'type': 'ConvConnector'})
    head.bind(place('backbone.c5', (1, 8, 4, 5)), place())
    batch = Batch({'labels': torch.zeros(1, 4, 5, dtype=torch.long)})
    assert head(torch.randn(1, 8, 4, 5), torch.randn(1, 4, 4, 5), batch).requires_grad


@both
def test_modules_leave_out_the_pixels_that_the_student_ignores(name: str) -> None:
    s, t = torch.randn(2, 2, 4, 2, 3)
    cells = torch.tensor([[[True, True, False], [True, True, False]], [[True] * 3, [False] * 3]])
    classes = torch.randint(4, (2, 2, 3))
    # The index that this student ignores is a class elsewhere: `valid` knows it, no number does.
    labels = classes.masked_fill(~cells, 0)

    def pixels(x: Tensor) -> Tensor:
        return x.repeat_interleave(4, 1).repeat_interleave(4, 2)

    module: Any = DISTLoss(3.0, tau=2.0) if name == 'dist' else DKDLoss(3.0, tau=2.0)
    if name == 'dist':
        expected, plain = dist_loss(s, t, tau=2.0, valid=cells), dist_loss(s, t, tau=2.0)
    else:
        expected = dkd_loss(s, t, labels.masked_fill(~cells, -1), tau=2.0)
        plain = dkd_loss(s, t, labels, tau=2.0)
    for valid, given in ((cells, labels), (pixels(cells), pixels(labels))):
        batch = Batch({'labels': lambda x=given: x, 'valid': lambda x=valid: x})
        torch.testing.assert_close(module(s, t, batch), 3 * expected)
    torch.testing.assert_close(module(s, t, Batch({'labels': labels})), 3 * plain)
    assert abs(float(expected - plain)) > 1e-3


@both
def test_a_batch_without_a_labelled_pixel_is_an_attached_zero(name: str) -> None:
    s = torch.randn(2, 4, 2, 3, requires_grad=True)
    batch = Batch(
        {
            'labels': torch.full((2, 8, 12), 255),
            'valid': torch.zeros(2, 8, 12, dtype=torch.bool),
        }
    )
    value = HEADS[name]()(s, torch.randn(2, 4, 2, 3), batch)
    value.backward()
    assert value.item() == 0.0 and not s.grad.any()


@both
def test_the_teachers_logits_are_resized_before_the_softmax(name: str) -> None:
    s, t = torch.randn(2, 4, 3, 5), 5 * torch.randn(2, 4, 6, 10)
    small = torch.nn.functional.interpolate(t, size=(3, 5), mode='bilinear', align_corners=False)
    batch = Batch({'labels': torch.zeros(2, 3, 5, dtype=torch.long)})
    module = HEADS[name](loss={'loss_weight': 1.0})
    torch.testing.assert_close(module(s, t, batch), LOSSES[name](s, small))


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: DKDLoss(tau=0.0), 'DKDLoss: tau is a temperature above 0'),
        (lambda: DKDLoss(alpha=-1.0), 'DKDLoss: alpha is a number from 0 up'),
        (lambda: DKDLoss(beta=float('nan')), 'DKDLoss: beta is a number from 0 up'),
        (lambda: DISTLoss(tau=-1.0), 'DISTLoss: tau is a temperature above 0'),
        (lambda: DISTLoss(gamma=-1.0), 'DISTLoss: gamma is a number from 0 up'),
    ],
)
def test_options_are_checked(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


# DKD


def test_a_class_that_is_certain_leaves_a_finite_rest() -> None:
    # 1 - p rounds to 0 in float32, whose logarithm is -inf; the divergence is 29.3 p, and not inf.
    s, t = torch.tensor([[30.0, 0.0, 0.0]]), torch.zeros(1, 3)
    value = dkd_loss(s, t, torch.tensor([0]), beta=0.0, tau=1.0)
    exact = dkd_loss(s.double(), t.double(), torch.tensor([0]), beta=0.0, tau=1.0)
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    assert 18 < value.item() < 20


def test_labels_are_hard_and_one_a_row() -> None:
    s = torch.zeros(2, 4)
    with pytest.raises(ShapeError, match='one class each, which soft labels.*mixup'):
        dkd_loss(s, s, torch.full((2, 4), 0.25))
    with pytest.raises(ShapeError, match=r'labels are \(2,\) of torch.float32'):
        dkd_loss(s, s, torch.zeros(2))
    with pytest.raises(ShapeError, match=r'labels are \(2,\).*they must be \(2, 3, 5\)'):
        DKDLoss()(*torch.zeros(2, 2, 4, 3, 5), Batch({'labels': torch.zeros(2).long()}))
    with pytest.raises(DataError, match='a label is 4, and the logits are those of classes 0 to 3'):
        dkd_loss(s, s, torch.tensor([1, 4]))
    with pytest.raises(ShapeError, match='two classes at least'):
        dkd_loss(s[:, :1], s[:, :1], torch.tensor([0, 0]))


def test_255_is_a_class_where_there_are_so_many() -> None:
    s, t = torch.randn(2, 1, 300)
    assert dkd_loss(s, t, torch.tensor([255])).item() > 0
    assert dkd_loss(s[:, :200], t[:, :200], torch.tensor([255])).item() == 0


@pytest.mark.parametrize('classes', [1, 2])
def test_dkd_of_two_classes_is_refused_when_it_is_built(classes: int) -> None:
    few = place(shape=(1, classes, 4, 5))
    with pytest.raises(ShapeError, match=f"'decode.logits' has {classes} logits.*Take KD"):
        DistillationHead(loss='DKDLoss').bind(few, few)


def test_labels_of_regions_are_those_that_the_student_sampled() -> None:
    s, t = torch.randn(2, 6, 4)
    labels = torch.tensor([0, 3, 1, 3, 2, 0])  # 3 is the background, a class like the others
    head = DKDDistillationHead(loss={'beta': 0.25, 'tau': 1.0})
    assert head.needs == ('labels',)
    head.bind(place('roi.cls_logits', (6, 4)), place('roi.cls_logits', (6, 4)))
    assert head.needs == ('rois', 'roi_labels')
    batch = Batch({'rois': torch.zeros(6, 5), 'roi_labels': labels})
    torch.testing.assert_close(head(s, t, batch), dkd_loss(s, t, labels, 1.0, 0.25, 1.0))
    with pytest.raises(ShapeError, match="the teacher's logits are 5 rows.*6 regions"):
        head(s, t[:5], batch)
    with pytest.raises(ConfigError, match="DKDLoss needs rois .*which W can't supply"):
        check_needs([Distiller(head, Tap('roi'), Tap('roi'), 'x')], ('labels',), 'W')


def test_another_loss_of_the_same_process_keeps_its_needs() -> None:
    head = DKDDistillationHead()
    head.bind(place('roi.cls_logits', (6, 4)), place('roi.cls_logits', (6, 4)))
    assert DKDLoss.needs == DKDLoss().needs == ('labels',)


def test_labels_follow_the_classes_that_both_networks_have() -> None:
    # The student knows 5; 3, 0 and 4 are compared, in this order.
    columns = Columns('dense', 5, (3, 0, 4))
    s, t = torch.randn(2, 1, 3, 2, 3)
    labels = torch.tensor([[[3, 0, 4], [1, 255, 2]]])
    among = torch.tensor([[[0, 1, 2], [-1, -1, -1]]])
    loss = DKDLoss()
    loss.bind(place(shape=(1, 3, 2, 3), columns=columns), place(shape=(1, 3, 2, 3)))
    expected = dkd_loss(s, t, among)
    torch.testing.assert_close(loss(s, t, Batch({'labels': labels})), expected)


def test_the_background_of_regions_stays_last_among_shared_classes() -> None:
    columns = Columns('rows', 3, (2, 0), background=True)
    s, t = torch.randn(2, 4, 3)
    loss = DKDLoss()
    loss.bind(place('roi.cls_logits', (4, 3), columns), place('roi.cls_logits', (4, 3)))
    batch = Batch({'rois': torch.zeros(4, 5), 'roi_labels': torch.tensor([3, 2, 1, 0])})
    torch.testing.assert_close(loss(s, t, batch), dkd_loss(s, t, torch.tensor([2, 0, -1, 1])))


def test_a_cell_has_the_label_of_the_pixel_nearest_to_it_and_no_mean_of_labels() -> None:
    s, t = torch.randn(2, 1, 4, 1, 2)
    labels = torch.tensor([[[0, 3, 3, 0], [255, 255, 255, 255]]])
    expected = dkd_loss(s, t, torch.tensor([[[0, 3]]]))
    torch.testing.assert_close(DKDLoss()(s, t, Batch({'labels': labels})), expected)


# DIST


def test_a_single_row_has_no_columns_to_correlate() -> None:
    s = torch.randn(1, 5, requires_grad=True)
    t = torch.randn(1, 5)
    value = dist_loss(s, t, beta=0.0)
    value.backward()
    # And not 1, which no training could lower.
    assert value.item() == 0.0 and not s.grad.any()
    torch.testing.assert_close(dist_loss(s, t), dist_loss(s, t, gamma=0.0))


def test_a_class_that_is_nowhere_in_the_batch_is_left_out() -> None:
    s, t = torch.randn(2, 6, 4)
    absent = torch.cat([t, torch.full((6, 1), -40.0)], 1)
    more = torch.cat([s, torch.randn(6, 1)], 1).requires_grad_()
    value = dist_loss(more, absent, beta=0.0)
    value.backward()
    # Of the other four columns alone.
    p, q = more.detach().softmax(1)[:, :4], absent.softmax(1)[:, :4]
    p, q = p - p.mean(0), q - q.mean(0)
    expected = 1 - ((p * q).sum(0) / (p.norm(dim=0) * q.norm(dim=0))).mean()
    torch.testing.assert_close(value, expected)
    assert float(more.grad.abs().max()) < 10


def test_a_teacher_that_is_undecided_everywhere_teaches_nothing() -> None:
    s = torch.randn(6, 4, requires_grad=True)
    value = dist_loss(s, 3.7 * torch.ones(6, 4))
    value.backward()
    assert value.item() == 0.0 and not s.grad.any()


def test_a_student_that_hardly_gives_a_class_still_learns_where_it_is() -> None:
    # Squares of 1e-30 are 0 in float32: the column would be constant, and nothing would move it.
    s = torch.randn(6, 3)
    s[:, 2] -= 69
    s.requires_grad_()
    t = torch.randn(6, 3)
    (gradient,) = torch.autograd.grad(dist_loss(s, t, beta=0.0), s)
    exact = s.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(dist_loss(exact, t.double(), beta=0.0), exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-6)
    assert bool(gradient[:, 2].abs().max() > 1e-2)


def test_a_constant_student_has_the_loss_of_no_correlation_and_no_gradient() -> None:
    s = torch.full((7, 3), 0.1, requires_grad=True)
    value = dist_loss(s, torch.randn(7, 3))
    value.backward()
    assert value.item() == pytest.approx(2.0, abs=1e-5)
    assert float(s.grad.abs().max()) < 1


def test_valid_must_fit() -> None:
    with pytest.raises(ShapeError, match=r'valid is \(2, 1, 3\).*must be \(2, 3, 3\)'):
        ones = torch.ones(2, 1, 3, dtype=torch.bool)
        dist_loss(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3), valid=ones)
