"""Losses of gradients: numbers and places that are known beforehand."""

from __future__ import annotations

import pytest
import torch

from densekd.core.batch import Batch
from densekd.core.input_grad import input_gradient
from densekd.core.taps import Place, Tap
from densekd.errors import ConfigError, ShapeError, TapError
from densekd.methods import (
    GradientAttentionLoss,
    JacobianLoss,
    gradient_attention_loss,
    jacobian_loss,
)
from tests.methods.test_presets import STAGES, anatomy, classifier, detector, preset, table


def test_linear_networks_have_their_rows_for_gradients() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    labels = torch.tensor([0, 1, 0])
    grads = []
    for weight in ([[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 5.0]]):
        logits = x @ torch.tensor(weight).T
        loss = JacobianLoss()
        grads.append(input_gradient(loss, logits, x, Batch({'labels': labels}), False))
    assert grads[0].tolist() == [[1, 0], [0, 1], [1, 0]]
    assert grads[1].tolist() == [[0, 2], [0, 5], [0, 2]]
    # Right angles in two images of three, 2 each; the middle one agrees.
    assert jacobian_loss(*grads).item() == pytest.approx(4 / 3)
    assert gradient_attention_loss(*grads).item() == pytest.approx(2 / 3)


def test_the_gradient_of_the_cross_entropy_by_hand() -> None:
    """It is p - 1 for the true class and p for the other, times their weights."""
    x = torch.tensor([[0.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    batch = Batch({'labels': torch.tensor([1])})
    grad = input_gradient(GradientAttentionLoss(), x @ weight.T, x, batch, False)
    assert grad.tolist() == [[0.5, -1.5]]


def test_the_maximum_of_a_map() -> None:
    """Of x and 2x, squares are 5 x^2; only the largest position counts."""
    x = torch.tensor([[[[1.0, 3.0]]]], requires_grad=True)
    tapped = torch.cat([x, 2 * x], 1)
    grad = input_gradient(JacobianLoss(of='attention'), tapped, x, Batch(), False)
    assert grad.tolist() == [[[[0.0, 30.0]]]]


def test_scales_do_not_count_unless_they_are_meant_to() -> None:
    s, t = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    for loss in (jacobian_loss, gradient_attention_loss):
        torch.testing.assert_close(loss(5 * s, 0.1 * t), loss(s, t))
    torch.testing.assert_close(
        gradient_attention_loss(5 * s, 5 * t, normalise=False),
        5 * gradient_attention_loss(s, t, normalise=False),
    )
    assert jacobian_loss(s, -s).item() == pytest.approx(4.0)


def test_a_gradient_of_zeros_harms_nothing() -> None:
    s, t = torch.randn(3, 3, 2, 2), torch.randn(3, 3, 2, 2)
    s[1] = 0
    for loss in (
        jacobian_loss,
        gradient_attention_loss,
        lambda a, b: gradient_attention_loss(a, b, normalise=False),
    ):
        for teacher in (t, 0 * t, s):
            x = s.clone().requires_grad_()
            loss(x, teacher).backward()
            assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().max() < 10
    for teacher in (0 * t, s):
        assert jacobian_loss(s, teacher).isfinite()


def place(*shapes: tuple[int, ...]) -> Place:
    return Place(Tap('x', name='x'), shapes, (None,) * len(shapes))


def test_what_can_not_be_differentiated_is_refused() -> None:
    logits, fmap = place((1, 5)), place((1, 8, 4, 4))
    for loss in (JacobianLoss(), GradientAttentionLoss()):
        loss.bind(logits, logits)
        with pytest.raises(TapError, match=r"tap 'x' gives .* it differentiates class logits"):
            loss.bind(logits, fmap)
    JacobianLoss(of='attention').bind(fmap, fmap)
    with pytest.raises(TapError, match=r'differentiates one map'):
        JacobianLoss(of='attention').bind(place((1, 8, 4, 4), (1, 8, 2, 2)), fmap)
    with pytest.raises(ConfigError, match="no of='labels'. Did you mean 'label'"):
        JacobianLoss(of='labels')
    for function in (jacobian_loss, gradient_attention_loss):
        with pytest.raises(ShapeError, match='the student has 3 channels and the teacher 1'):
            function(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2))
    x = torch.zeros(1, 5, requires_grad=True)
    batch = Batch({'labels': torch.tensor([0])})
    with pytest.raises(ConfigError, match="leave float16's range"):
        input_gradient(JacobianLoss(), x.half(), x, batch, False)
    with pytest.raises(TapError, match='does not depend on the input'):
        input_gradient(JacobianLoss(), torch.zeros(1, 5), x, batch, False)
    with pytest.raises(TapError, match='one tensor, and 2 are tapped'):
        input_gradient(JacobianLoss(), [x, x], x, batch, False)
    with torch.no_grad(), pytest.raises(ConfigError, match='which no_grad prevents'):
        input_gradient(JacobianLoss(), x, x, batch, False)


@pytest.mark.parametrize('name', ['jacobian', 'gradient_attention'])
def test_their_presets_stand_at_the_logits_of_a_classifier(name: str) -> None:
    assert table(preset(name, classifier(STAGES))) == {name: ('logits', 1.0)}
    for dense in (detector(), anatomy('segmentor', [*STAGES, 'decode.logits'])):
        with pytest.raises(ConfigError, match=f"preset '{name}': it needs a classifier"):
            preset(name, dense)


def test_only_what_needs_labels_asks_for_them() -> None:
    assert JacobianLoss().needs == ('input_grad', 'labels')
    assert JacobianLoss(of='attention').needs == ('input_grad',)
    assert JacobianLoss.needs == ('input_grad', 'labels')
