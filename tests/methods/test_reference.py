"""Each function against the loops of reference.py: value, and slope along every coordinate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from densekd.methods import (
    binary_kl_loss,
    hint_loss,
    imitation_loss,
    imitation_mask,
    kd_qfl_loss,
    margin_from_bn,
    ofd_loss,
    pkd_loss,
)
from tests.methods import reference

SHAPES = [(2, 3, 2, 4), (1, 2, 3, 1), (3, 1, 2, 2)]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def check(fast: Callable[[Tensor], Tensor], slow: Callable[[Tensor], float], at: Tensor) -> None:
    """The two agree at `at`, and so do the gradient and the differences of the slow one."""
    x = at.clone().requires_grad_()
    value = fast(x)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(slow(at), rel=1e-10, abs=1e-12)
    (gradient,) = torch.autograd.grad(value, x)
    step = 1e-6
    slopes = torch.zeros_like(at).flatten()
    for i in range(at.numel()):
        ahead, behind = at.clone(), at.clone()
        ahead.view(-1)[i] += step
        behind.view(-1)[i] -= step
        slopes[i] = (slow(ahead) - slow(behind)) / (2 * step)
    torch.testing.assert_close(gradient.flatten(), slopes, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('shape', SHAPES)
def test_hint(shape: tuple[int, ...]) -> None:
    s, t = random(*shape), random(*shape, seed=1)
    check(lambda x: hint_loss(x, t), lambda x: reference.hint(x.tolist(), t.tolist()), s)


@pytest.mark.parametrize('shape', SHAPES)
def test_ofd(shape: tuple[int, ...]) -> None:
    s, t = random(*shape), random(*shape, seed=1)
    margin = -random(shape[1], seed=2).abs()
    check(
        lambda x: ofd_loss(x, t, margin),
        lambda x: reference.ofd(x.tolist(), t.tolist(), margin.tolist()),
        s,
    )


def test_margins() -> None:
    gamma = [1.0, -2.0, 0.5, 0.0, 0.0, 1.0, 1e-3]
    beta = [0.0, 1.0, -3.0, -0.5, 0.5, 4.0, -1e-3]
    expected = [reference.margin(g, b) for g, b in zip(gamma, beta, strict=True)]
    fast = margin_from_bn(torch.tensor(gamma).double(), torch.tensor(beta).double())
    torch.testing.assert_close(fast, torch.tensor(expected).double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('shape', SHAPES)
def test_pkd(shape: tuple[int, ...]) -> None:
    s, t = random(*shape), random(*shape, seed=1)
    check(lambda x: pkd_loss(x, t), lambda x: reference.pkd(x.tolist(), t.tolist()), s)


def grid(height: int, width: int, stride: int, sides: list[tuple[float, float]]) -> Tensor:
    """Returns anchors (H, W, A, 4) of these widths and heights, centred on multiples of stride."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    centre = torch.stack([x, y, x, y], -1)[:, :, None] * float(stride)
    half = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides])
    return (centre + half).double()


@pytest.mark.parametrize('policy', ['global', 'assigned', 'per_level'])
@pytest.mark.parametrize('psi', [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize('with_valid', [False, True])
def test_masks(policy: str, psi: float, with_valid: bool) -> None:
    anchors = [
        grid(6, 9, 16, [(32, 32), (48, 24)]),
        grid(3, 5, 32, [(64, 64), (90, 45)]),
        grid(2, 3, 64, [(128, 128), (180, 90)]),
    ]
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(7, 2, generator=generator) * torch.tensor([140.0, 90.0])
    size = 12 + 180 * torch.rand(7, 2, generator=generator)
    boxes = torch.cat([corner, corner + size], 1).double()
    valid = None
    if with_valid:
        valid = [torch.rand(a.shape[:3], generator=generator) > 0.3 for a in anchors]
    fast = imitation_mask(anchors, boxes, psi, policy, valid)
    slow = reference.masks(
        [a.tolist() for a in anchors],
        boxes.tolist(),
        psi,
        policy,
        None if valid is None else [v.tolist() for v in valid],
    )
    assert [m.tolist() for m in fast] == slow
    assert any(m.any() for m in fast)
    assert psi == 0 or not all(m.all() for m in fast)


def test_imitation() -> None:
    first, second = random(2, 3, 2, 3), random(2, 3, 1, 2, seed=1)
    teachers = [random(2, 3, 2, 3, seed=2), random(2, 3, 1, 2, seed=3)]
    marks = [random(2, 2, 3, seed=4) > 0, random(2, 1, 2, seed=5) > -1]
    listed = [t.tolist() for t in teachers], [m.tolist() for m in marks]
    check(
        lambda x: imitation_loss([x, second], teachers, marks),
        lambda x: reference.imitation([x.tolist(), second.tolist()], *listed),
        first,
    )


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('avg_factor', [None, 2.5])
@pytest.mark.parametrize('option', [0.5, 1.0, 2.0])
def test_sigmoid_losses(weighted: bool, avg_factor: float | None, option: float) -> None:
    s, t = 2 * random(5, 3), 2 * random(5, 3, seed=1)
    weight = random(5, seed=2).abs() if weighted else None
    listed = weight.tolist() if weighted else None
    for fast, slow in ((kd_qfl_loss, reference.kd_qfl), (binary_kl_loss, reference.binary_kl)):
        check(
            lambda x, f=fast: f(x, t, option, weight, avg_factor),
            lambda x, f=slow: f(x.tolist(), t.tolist(), option, listed, avg_factor),
            s,
        )
