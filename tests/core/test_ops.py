"""Shared tensor operations, where the plain form goes wrong."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from densekd.core.ops import (
    align,
    float_island,
    l2n,
    masked_mean,
    no_autocast,
    private_rng,
    resize_to,
    zero_like_loss,
)
from densekd.errors import ConfigError, ShapeError


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


# l2n --------------------------------------------------------------------------------------------


def test_l2n_gives_unit_rows() -> None:
    x = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(l2n(x), F.normalize(x, dim=-1))
    torch.testing.assert_close(l2n(x, dim=0), F.normalize(x, dim=0))


def test_l2n_of_whole_numbers_is_not_cut_to_whole_numbers() -> None:
    torch.testing.assert_close(l2n(torch.tensor([[3, 4]])), torch.tensor([[0.6, 0.8]]))


def test_l2n_takes_several_dimensions() -> None:
    x = torch.randn(2, 3, 4, 5)
    unit = l2n(x, dim=(1, 2, 3))
    torch.testing.assert_close(unit.flatten(1).norm(dim=1), torch.ones(2))
    torch.testing.assert_close(unit[0] / unit[0, 0, 0, 0], x[0] / x[0, 0, 0, 0])


def test_l2n_keeps_a_zero_row_and_its_gradient_at_zero() -> None:
    x = rows([0.0, 0.0], [3.0, 4.0])
    unit = l2n(x)
    assert unit[0].tolist() == [0.0, 0.0]
    unit.sum().backward()
    assert x.grad[0].tolist() == [0.0, 0.0]
    # The others' gradient is that of the plain form: (1 - u u^T) 1 / |x|.
    torch.testing.assert_close(x.grad[1], torch.tensor([0.032, -0.024], dtype=torch.float64))


def test_the_plain_form_blows_up_at_a_zero_row() -> None:
    # What l2n is there for; were it otherwise, l2n could go.
    x = rows([0.0, 0.0])
    F.normalize(x, dim=-1).sum().backward()
    assert x.grad.abs().max() > 1e11


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_l2n_has_the_right_gradient(scale: float) -> None:
    x = (torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, 2.0]], dtype=torch.float64) * scale).detach()
    unit = x / x.norm(dim=-1, keepdim=True)
    x.requires_grad_()
    (l2n(x) * torch.arange(6.0).reshape(2, 3)).sum().backward()
    weight = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    by_hand = (weight - (weight * unit).sum(-1, keepdim=True) * unit) / x.detach().norm(
        dim=-1, keepdim=True
    )
    torch.testing.assert_close(x.grad, by_hand)


def test_l2n_passes_gradcheck() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(l2n, (x,))


LARGE_ROWS = [
    (torch.float16, 3e4),
    (torch.bfloat16, 1e38),
    (torch.float32, 1e10),
    (torch.float32, 1e16),
    (torch.float32, 1e20),
    (torch.float32, 1e38),
    (torch.float64, 1e155),
    (torch.float64, 1e307),
]


@pytest.mark.parametrize(('dtype', 'scale'), LARGE_ROWS)
@pytest.mark.parametrize('dim', [1, (1, 2), -1])
def test_l2n_of_large_values_is_that_of_float64(
    dtype: torch.dtype, scale: float, dim: int | tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    small, weight = torch.rand(2, 3, 4, 50, dtype=torch.float64, generator=generator) * 4 - 2
    # The reference has the very values that the row has, at a scale that nothing overflows at.
    x = (small * scale).to(dtype).requires_grad_()
    exact = (x.detach().double() / scale).requires_grad_()
    unit, expected = l2n(x, dim), exact / exact.norm(dim=dim, keepdim=True)
    (unit * weight.to(dtype)).sum().backward()
    (expected * weight).sum().backward()
    precision = 8 * torch.finfo(dtype).eps
    assert unit.dtype == dtype
    torch.testing.assert_close(unit.double(), expected, rtol=precision, atol=precision)
    torch.testing.assert_close(
        x.grad.double() * scale, exact.grad, rtol=0.0, atol=4 * precision * exact.grad.abs().max()
    )


def test_l2n_leaves_rows_beside_a_large_one_as_they_are() -> None:
    row, large = torch.tensor([[0.3, -7.0, 2e5]]), torch.tensor([[1e30, 1.0, -1e30]])
    assert torch.equal(l2n(torch.cat([row, large]))[:1], l2n(row))
    assert torch.equal(l2n(row), row * row.square().sum().rsqrt())


@pytest.mark.parametrize('shape', [(0, 3), (2, 0)])
def test_l2n_takes_no_rows_and_empty_rows(shape: tuple[int, int]) -> None:
    x = torch.ones(shape, requires_grad=True)
    assert l2n(x).shape == shape and l2n(x).requires_grad


@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
def test_l2n_hides_nothing_that_is_not_finite(value: str) -> None:
    assert l2n(torch.tensor([[float(value), 1.0]])).isnan().any()


# Precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize('given', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_island_is_at_least_float32(given: torch.dtype) -> None:
    x = torch.ones(2, dtype=given)
    wanted = given if given in (torch.float32, torch.float64) else torch.float32
    assert float_island(x).dtype == wanted
    assert (float_island(x) is x) == (given == wanted)


def test_no_autocast_is_an_island() -> None:
    x = torch.ones(2, 2)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with no_autocast(x.device):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


# Zeros and means --------------------------------------------------------------------------------


@pytest.mark.parametrize('shape', [(), (3,), (2, 3), (0, 4)])
def test_zero_hangs_on_the_graph_of_every_tensor(shape: tuple[int, ...]) -> None:
    first = torch.ones(shape, requires_grad=True)
    second = torch.ones(2, requires_grad=True)
    zero = zero_like_loss(first * 2, second * 2)
    assert zero.shape == () and zero.item() == 0.0
    zero.backward()
    for tensor in (first, second):
        assert tensor.grad is not None and not tensor.grad.any()


def test_zero_of_infinite_values_is_zero() -> None:
    x = torch.full((3,), float('inf'), requires_grad=True)
    zero = zero_like_loss(x)
    zero.backward()
    assert zero.item() == 0.0 and x.grad.tolist() == [0.0] * 3


def test_masked_mean_is_over_what_is_masked() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert masked_mean(values, mask).item() == pytest.approx((0 + 2 + 5) / 3)
    assert masked_mean(values).item() == pytest.approx(2.5)


def test_masked_mean_counts_what_a_narrow_mask_is_stretched_over() -> None:
    values = torch.ones(2, 3, 2, 2)
    mask = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0] = True
    assert masked_mean(values, mask).item() == 1.0


def test_masked_mean_of_nothing_is_an_attached_zero() -> None:
    x = torch.ones(2, 2, requires_grad=True)
    mean = masked_mean(x, torch.zeros(2, 2, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0.0 and x.grad.tolist() == [[0.0, 0.0]] * 2
    empty = torch.ones(0, 2, requires_grad=True)
    mean = masked_mean(empty * 1)
    mean.backward()
    assert mean.item() == 0.0 and empty.grad.shape == (0, 2)


def test_masked_mean_does_not_meet_what_is_masked_out() -> None:
    values = torch.tensor([1.0, float('-inf'), float('nan')], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False, False]))
    mean.backward()
    assert mean.item() == 1.0 and values.grad.tolist() == [1.0, 0.0, 0.0]


# Sizes ------------------------------------------------------------------------------------------


def test_resize_leaves_what_fits() -> None:
    x = torch.randn(1, 2, 3, 5)
    assert resize_to(x, (3, 5)) is x
    # Both sides are compared, and not their product.
    assert resize_to(x, (5, 3)).shape == (1, 2, 5, 3)
    assert resize_to(x, (3, 4)).shape == (1, 2, 3, 4)


def test_resize_is_bilinear_without_aligned_corners() -> None:
    x = torch.tensor([[[[0.0, 4.0]]]])
    assert resize_to(x, (1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ('how', 'student', 'teacher'),
    [
        ('to_teacher', (8, 3), (8, 3)),
        ('to_student', (4, 6), (4, 6)),
        ('pool_larger', (4, 3), (4, 3)),
    ],
)
def test_align(how: str, student: tuple[int, int], teacher: tuple[int, int]) -> None:
    s, t = align(torch.randn(1, 2, 4, 6), torch.randn(1, 5, 8, 3), how)
    assert (tuple(s.shape[-2:]), tuple(t.shape[-2:])) == (student, teacher)
    assert (s.shape[1], t.shape[1]) == (2, 5)


def test_align_pools_by_averaging() -> None:
    teacher = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    student = torch.zeros(1, 1, 1, 2)
    s, t = align(student, teacher, 'pool_larger')
    assert s.tolist() == student.tolist() and t.flatten().tolist() == [3.0, 5.0]


@pytest.mark.parametrize('how', ['to_teacher', 'to_student', 'pool_larger', 'strict'])
def test_align_leaves_maps_that_fit_and_tensors_that_are_no_maps(how: str) -> None:
    student, teacher = torch.randn(1, 2, 4, 6), torch.randn(1, 3, 4, 6)
    assert align(student, teacher, how) == (student, teacher)
    flat = torch.randn(4, 10)
    assert align(flat, flat, how) == (flat, flat)


def test_align_strict_compares_height_and_width() -> None:
    for shape in ((1, 1, 4, 5), (1, 1, 5, 4)):
        with pytest.raises(ShapeError, match='4x4'):
            align(torch.zeros(1, 1, 4, 4), torch.zeros(shape), 'strict')


def test_align_refuses_an_unknown_way_even_where_nothing_differs() -> None:
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ConfigError, match="Did you mean 'strict'"):
        align(x, x, 'strikt')


# Random numbers ---------------------------------------------------------------------------------


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def test_private_rng_gives_all_generators_back() -> None:
    seed(3)
    wanted = [drawn(), drawn()]
    seed(3)
    first = drawn()
    with private_rng(11):
        inside = drawn()
    assert [first, drawn()] == wanted
    assert inside not in wanted


def test_private_rng_is_seeded() -> None:
    with private_rng(11):
        first = drawn()
    with private_rng(11):
        assert drawn() == first
    with private_rng(12):
        assert drawn() != first


def test_private_rng_gives_generators_back_after_an_error() -> None:
    seed(4)
    wanted = drawn()
    seed(4)
    with pytest.raises(RuntimeError, match='on purpose'), private_rng(0):
        drawn()
        raise RuntimeError('on purpose')
    assert drawn() == wanted


def test_private_rng_takes_seeds_beyond_32_bits() -> None:
    with private_rng(2**40 + 1):
        drawn()
